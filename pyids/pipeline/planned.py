"""What a dry run says of the budget: its units, the quotas of groups, what is excluded."""

from __future__ import annotations

import numpy as np

from pyids._typing import Int64
from pyids.config import RunConfig
from pyids.pipeline.budget import Budget, bounds_of, budget_of, names_of, words
from pyids.pipeline.budgeted import Cells
from pyids.pipeline.counts import count
from pyids.pipeline.exclude import Excluded, exclude
from pyids.quotas import bounded_quotas
from pyids.store.folder import Store


def needs_rows(config: RunConfig) -> bool:
    """Whether the plan of a budget takes the rows themselves, and not their number alone."""
    given = (config.group_by, config.exclude, config.already)
    return config.unit != "rows" or any(value is not None for value in given)


def plan_budget(store: Store, config: RunConfig) -> tuple[Budget, list[str]]:
    """Return the budget, and lines that say how it is shared and what is not drawn.

    Everything but matches of vectors is found as a run would find it; without bounds a group is
    shown the part that it has of the rows that may be drawn, for weights are not known yet.

    Raises
    ------
    ConfigError
        The budget is above what may be drawn, or its groups have no quotas within their bounds.
    """
    if not needs_rows(config):
        return budget_of(store, config), []
    count(store, config)
    without = exclude(store, config.model_copy(update={"exclude_cosine": None}))
    budget = budget_of(store, config)
    lines = [] if budget.unit == "rows" else [f"budget    {budget}"]
    lines += _group_lines(store, config, budget, without)
    if config.exclude is not None:
        found = without.facts["excluded"]
        shown = ", ".join(f"{rows} {why}" for why, rows in found.items()) or "none"
        if config.exclude_cosine is not None:
            shown += "; how many by their vectors is not known yet"
        lines.append(f"excluded  {sum(found.values())} rows that match held-out rows ({shown})")
    if config.already is not None:
        lines.append(f"already   {without.facts['already']} rows of the pool are trained on")
    return budget, lines


def _group_lines(store: Store, config: RunConfig, budget: Budget, without: Excluded) -> list[str]:
    if config.group_by is None:
        return []
    names = names_of(store, config)
    held = held_by_group(store, config, without.ids)
    bounds = bounds_of(names, config, budget.total, held)
    upper = np.minimum(bounds.caps, held).tolist()
    wanted = bounds.mix or held.tolist()
    quotas = bounded_quotas(budget.total, wanted, bounds.floors, upper)
    shown = [
        f"{name} {quota:,} of {holds:,}"
        for name, quota, holds in zip(names, quotas, held.tolist(), strict=True)
    ]
    return [f"groups    {words(budget.unit)}, about: {', '.join(shown)}"]


def held_by_group(store: Store, config: RunConfig, left_out: Int64) -> Int64:
    """Sum the units of the budget that may be drawn of each group, int64 (G,)."""
    everyone = [np.zeros(len(store.row_ids(shard)), np.int32) for shard in store.shards]
    cells = Cells(store, config, everyone, 1)
    total: Int64 = cells.total()[1] - cells.total(left_out)[1]
    return total
