"""What `pyids select --dry-run` says: rows, quotas, what is not selected; nothing is written."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyids.config import RunConfig
from pyids.data.ingest import describe
from pyids.methods.method import Method
from pyids.methods.select import check_method, configs_of, excluded_rows
from pyids.pipeline.budget import Budget
from pyids.pipeline.counts import count_beside
from pyids.pipeline.planned import plan_budget
from pyids.pipeline.preflight import check_inputs, look_through, vectors_line
from pyids.pipeline.prepare import Stage, reopen


def plan_selection(config: RunConfig, method: str, settings: Mapping[str, Any]) -> str:
    """Check data, options and output as `select` would, and say what it would do."""
    chosen = check_method(config, method, settings)
    found = look_through(config, check_inputs(config))
    lines = [describe(found.intake)]
    if {"embeddings", "labels", "centroids"} & set(chosen.needs):
        lines.append(vectors_line(config))
    if {"labels", "centroids"} & set(chosen.needs):
        n_clusters = config.cluster_count(found.intake.kept, found.budget.rows)
        lines.append(f"clusters  {n_clusters}, k-means")
    return "\n".join(
        [*lines, *found.lines, *_chosen(config, chosen, found.budget, found.intake.kept)]
    )


def plan_from_folder(
    folder: str | Path, method: str, settings: Mapping[str, Any], **changes: Any
) -> str:
    """Do so for a selection from a run folder."""
    folder_config, config = configs_of(Path(folder), changes)
    chosen = check_method(config, method, settings)
    until: Stage = "read" if config.exclude_cosine is None else "embed"
    with reopen(folder_config, until, may_write=False) as store:
        count_beside(store, config)
        try:
            without = excluded_rows(store, config, folder_config, store.scratch / "selected.jsonl")
            budget, lines = plan_budget(store, config, without)
        finally:
            shutil.rmtree(store.scratch, ignore_errors=True)
        first = f"{store.path} holds {store.kept} rows"
        return "\n".join([first, *lines, *_chosen(config, chosen, budget, store.kept)])


def _chosen(config: RunConfig, method: Method, budget: Budget, kept: int) -> list[str]:
    lines = [f"method    {method.name}: {method.summary}"]
    if config.already is not None and "already" not in method.uses:
        lines.append(f"          {method.name} shares nothing among clusters: they charge none")
    lines.append(f"select    {budget.rows} rows in all ({budget.rows / kept:.2%})")
    return lines
