"""How k-means goes about its work: by the options, or by the size of the pool; and what is said."""

from __future__ import annotations

from pyids.config import RunConfig
from pyids.pipeline.streamed import Plan

# Multiply-adds of an iteration over all rows, from which the centers are fitted to a sample, and
# many of them found in two levels.
_LARGE_WORK = 1e12
_SAMPLE_ROWS_PER_CLUSTER = 256
_TWO_LEVEL_CLUSTERS = 1024


def kmeans_plan(config: RunConfig, n_rows: int, width: int, n_clusters: int) -> Plan:
    """Choose how the first centers are found, and the rows that they are fitted to."""
    large = n_rows * n_clusters * width > _LARGE_WORK
    init = config.kmeans_init
    if init is None:
        init = "two-level" if large and n_clusters >= _TWO_LEVEL_CLUSTERS else "k-means++"
    if config.kmeans_sample is None:
        rows = _SAMPLE_ROWS_PER_CLUSTER * n_clusters if large else None
    elif config.kmeans_sample == "all":
        rows = None
    else:
        rows = max(1, int(config.kmeans_sample) // n_clusters) * n_clusters
    return Plan(
        n_clusters,
        config.kmeans_max_iter,
        config.seed,
        config.metric,
        init,
        None if rows is None or rows >= n_rows else rows,
    )


def describe(plan: Plan, n_rows: int) -> str:
    """Say in one line how the rows are clustered, and what that costs beside the slowest way."""
    how = {
        "k-means++": "k-means++",
        "random": "random rows",
        "two-level": "two levels of k-means",
    }[plan.init]
    fitted = (
        "all rows"
        if plan.sample_rows is None
        else f"a sample of {plan.sample_rows:,}, then one exact pass over all"
    )
    cost = ""
    if plan.init != "k-means++" or plan.sample_rows is not None:
        cost = (
            "; an inertia up to 3% above that of k-means++ over all rows (--kmeans-init k-means++ "
            "--kmeans-sample all)"
        )
    return (
        f"clustering {n_rows:,} rows into {plan.n_clusters:,} clusters: begun by {how}, fitted to "
        f"{fitted}{cost}"
    )
