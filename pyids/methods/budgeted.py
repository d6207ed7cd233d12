"""A method with a budget of tokens, or within bounds of groups.

A method selects a number of rows. For tokens, the largest number whose rows fit is looked for, and
what is left is filled up with rows of the next larger selection. For groups, what the method takes
of each without bounds says what they are to have within them; then it selects from each by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from pyids._typing import Int64
from pyids.methods.pool import Pool
from pyids.pipeline.budget import Bounds
from pyids.quotas import bounded_quotas
from pyids.sampling import sample_by_cluster

Choose = Callable[[Pool, int], Int64]

# Selections that are this near to each other in rows are near enough to fill up from one another.
_NEAR = 0.002


def choose_units(choose: Choose, pool: Pool, units: Int64, budget: int, seed: int) -> Int64:
    """Select rows of at most `budget` units, less than the largest row below it.

    Parameters
    ----------
    choose
        Selects a number of rows of a pool; ids.
    pool
        What is selected from.
    units
        int64 (N,), units of each of its rows, at least 1.
    budget
        At least 0.
    seed
        Of the order in which a draw is filled up.

    Returns
    -------
    int64 array
        Ids; all rows where they have no more units.
    """
    if int(units.sum()) <= budget:
        return pool.row_ids.copy()
    # Longer rows than the budget can never be selected: they would end the search at once.
    pool, units = _narrow(pool, units, units <= budget)
    if int(units.sum()) <= budget:
        return pool.row_ids.copy()

    def cost(ids: Int64) -> int:
        return int(units[np.searchsorted(pool.row_ids, ids)].sum())

    few, fits, spent = 0, np.empty(0, np.int64), 0
    many, beyond, over = len(pool), pool.row_ids, int(units.sum())
    guess = budget * len(pool) // over
    for step in range(64):
        if many - few <= max(1, int(_NEAR * few)):
            break
        rows = min(max(guess, few + 1), many - 1)
        chosen = choose(pool, rows)
        if (total := cost(chosen)) <= budget:
            few, fits, spent = rows, chosen, total
        else:
            many, beyond, over = rows, chosen, total
        # In turns by the line between both ends, and by halves, which ends for certain.
        share = (budget - spent) / (over - spent)
        guess = few + round(share * (many - few)) if step % 2 == 0 else (few + many) // 2
    more = beyond[~np.isin(beyond, fits)]
    if (np.diff(beyond) > 0).all():  # a draw, in no order of its own
        order = _drawn_order(np.sort(more), seed)
        more = np.sort(more)[order]
    counts = spent + np.cumsum(units[np.searchsorted(pool.row_ids, more)])
    return np.concatenate([fits, more[: int(np.searchsorted(counts, budget, side="right"))]])


def _drawn_order(row_ids: Int64, seed: int) -> Int64:
    """Return the positions of rows in the order of a draw keyed by (seed, row id)."""
    sample = sample_by_cluster(
        np.zeros(len(row_ids), np.int32), [len(row_ids)], row_ids=row_ids, seed=seed,
        return_keys=True,
    )  # fmt: skip
    return np.lexsort((row_ids, -sample.keys[:, 1], -sample.keys[:, 0])).astype(np.int64)


def _narrow(pool: Pool, units: Int64, stays: np.ndarray) -> tuple[Pool, Int64]:
    return pool.without(pool.row_ids[~stays]), units[stays]


def choose_groups(
    choose: Choose,
    pool: Pool,
    units: Int64,
    groups: Int64,
    bounds: Bounds,
    budget: int,
    seed: int,
    *,
    trained: Int64 | None = None,
) -> Int64:
    """Select within the bounds of groups; see `choose_units`.

    Parameters
    ----------
    groups
        int (N,), the group of each row.
    bounds
        What each may have.
    trained
        int (M,), the group of each row of ``pool.already``, which charges the clusters of its group
        alone.
    """
    n_groups = len(bounds.names)
    held = np.bincount(groups, weights=units, minlength=n_groups).astype(np.int64).tolist()
    if bounds.mix is None:
        free = choose_units(choose, pool, units, budget, seed)
        at = np.searchsorted(pool.row_ids, free)
        wanted = np.bincount(groups[at], weights=units[at], minlength=n_groups).tolist()
        limits = zip(wanted, bounds.floors, bounds.caps, strict=True)
        if all(low <= had <= up for had, low, up in limits):
            return free
    else:
        wanted = bounds.mix
    upper = [min(cap, holds) for cap, holds in zip(bounds.caps, held, strict=True)]
    quotas = bounded_quotas(budget, wanted, bounds.floors, upper)
    chosen, carried = [np.empty(0, np.int64)], 0
    for group, quota in enumerate(quotas):
        own, own_units = _narrow(pool, units, groups == group)
        if pool.already is not None and trained is not None:
            had = pool.already.without(pool.already.row_ids[trained != group])
            own = replace(own, already=had)
        if len(own) and quota + carried:
            taken = choose_units(choose, own, own_units, quota + carried, seed)
            carried += quota - int(own_units[np.searchsorted(own.row_ids, taken)].sum())
            chosen.append(taken)
    return np.concatenate(chosen)
