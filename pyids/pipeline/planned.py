"""What a dry run says of the budget: its units, the quotas of groups, what is excluded."""

from __future__ import annotations

import numpy as np

from pyids._typing import Int64
from pyids.config import RunConfig
from pyids.pipeline.budget import Budget, bounds_of, budget_of, names_of, token_budget, words
from pyids.pipeline.cells import Cells
from pyids.pipeline.counts import BY_FILE, count, tokens_of
from pyids.pipeline.exclude import Excluded, exclude
from pyids.quotas import bounded_quotas
from pyids.store.folder import Store


def needs_rows(config: RunConfig) -> bool:
    """Whether the plan of a budget takes the rows themselves, and not their number alone."""
    given = (config.group_by, config.exclude, config.already)
    return config.unit != "rows" or any(value is not None for value in given)


def plan_budget(
    store: Store, config: RunConfig, without: Excluded | None = None
) -> tuple[Budget, list[str]]:
    """Return the budget, and lines that say how it is shared and what is not drawn.

    Everything but matches of vectors is found as a run would find it, unless `without` has found
    it; without bounds a group is shown the part that it has of the rows that may be drawn, for
    weights are not known yet.

    Raises
    ------
    ConfigError
        The budget is above what may be drawn, or its groups have no quotas within their bounds.
    """
    if not needs_rows(config):
        return budget_of(store, config), []
    count(store, config)
    vectors_unknown = without is None and config.exclude_cosine is not None
    without = without or _without(store, config)
    budget = budget_of(store, config)
    lines = [] if budget.unit == "rows" else [f"budget    {budget}"]
    if config.group_by is not None:
        names, held = names_of(store, config), held_by_group(store, config, without.ids)
        lines.append(group_line(config, budget, names, held))
    if config.exclude is not None:
        found = without.facts["excluded"]
        shown = ", ".join(f"{rows} {why}" for why, rows in found.items()) or "none"
        if vectors_unknown:
            shown += "; how many by their vectors is not known yet"
        lines.append(f"excluded  {sum(found.values())} rows that match held-out rows ({shown})")
    if config.already is not None:
        lines.append(
            f"already   {without.facts['already']} rows of the pool are trained on: they are not "
            "drawn again"
        )
    return budget, lines


def _without(store: Store, config: RunConfig) -> Excluded:
    """Find what is never drawn, but for matches of vectors; the run folder stays what it is."""
    words_alone = config.model_copy(update={"exclude_cosine": None})
    store.scratch.mkdir(exist_ok=True)
    folder, listing = store.scratch / "planned", store.scratch / "planned.jsonl"
    return exclude(store, words_alone, folder=folder, listing=listing)


def group_line(config: RunConfig, budget: Budget, names: tuple[str, ...], held: Int64) -> str:
    """Say what each group has of the budget; `held`, int64 (G,), are units that may be drawn.

    Raises
    ------
    ConfigError
        A group is named that is not there, or no quotas are within the bounds.
    """
    bounds = bounds_of(names, config, budget.total, held)
    upper = np.minimum(bounds.caps, held).tolist()
    wanted = bounds.mix or held.tolist()
    quotas = bounded_quotas(budget.total, wanted, bounds.floors, upper)
    shown = [
        f"{name} {quota:,} of {holds:,}"
        for name, quota, holds in zip(names, quotas, held.tolist(), strict=True)
    ]
    return f"groups    {words(budget.unit)}, about: {', '.join(shown)}"


def estimate_budget(
    store: Store, config: RunConfig, rows: int, kept: int, files: dict[str, float]
) -> tuple[Budget, list[str]]:
    """Return the budget of a pool that a sample stands for, and what `plan_budget` says of it.

    Parameters
    ----------
    store
        The sample, read and counted.
    rows, kept
        Rows of the pool, and those of them that are expected to stay.
    files
        The pool's files and the share of its rows that each has: a sample is a file of its own.

    Raises
    ------
    ConfigError
        By the sample the budget is above the pool, or groups have no quotas within their bounds.
    """
    scale = kept / max(1, store.kept)
    without = _without(store, config)
    if config.unit == "rows":
        budget = Budget("rows", drawn := config.budget_rows(kept), drawn)
    else:
        tokens = sum(int(tokens_of(store, shard).sum()) for shard in store.shards)
        budget = token_budget(config, kept, round(tokens * scale))
    lines = [] if budget.unit == "rows" else [f"budget    {budget}"]
    if config.group_by is not None:
        names, held = names_of(store, config), held_by_group(store, config, without.ids) * scale
        if config.group_by == BY_FILE:
            names = tuple(sorted(files))
            held = held.sum() * np.array([files[name] for name in names])
        lines.append(group_line(config, budget, names, np.rint(held).astype(np.int64)))
    if config.exclude is not None:
        found = sum(without.facts["excluded"].values()) * rows / max(1, store.rows_read)
        lines.append(f"excluded  about {found:,.0f} rows that match held-out rows by their words")
    if config.already is not None:
        found = without.facts["already"] * scale
        lines.append(f"already   about {found:,.0f} rows of the pool are trained on")
    return budget, lines


def held_by_group(store: Store, config: RunConfig, left_out: Int64) -> Int64:
    """Sum the units of the budget that may be drawn of each group, int64 (G,)."""
    everyone = [np.zeros(len(store.row_ids(shard)), np.int32) for shard in store.shards]
    cells = Cells.of(store, config, everyone, 1)
    total: Int64 = cells.total()[1] - cells.total(left_out)[1]
    return total
