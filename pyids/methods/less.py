"""LESS: the rows whose gradients would help the target most."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pyids._typing import Float64, Int64
from pyids.errors import ConfigError
from pyids.methods.draws import draw
from pyids.methods.method import method
from pyids.methods.pool import Pool
from pyids.nearest import as_targets, deal, pair_cosines, unit_rows
from pyids.neighbors import take_rows


@method(
    needs=("embeddings", "labels", "target", "gradients"),
    source="Xia et al. (LESS), arXiv 2402.04333; a few rows a cluster: DataFlex, arXiv 2603.26164",
    cost="a warm-up, then (Q + rows looked at) x epochs backward passes, 32 KB a row",
)
def select(
    pool: Pool,
    budget: int,
    *,
    seed: int,
    exact: bool = False,
    rows_per_cluster: int = 3,
    warm_up: float = 0.05,
    epochs: int = 2,
    dims: int = 8192,
) -> Int64:
    """Let the target's rows take turns: each takes the row of most influence on it.

    The influence of a row is the sum over checkpoints of learning rate x cosine of Adam's step for
    it and the target row's gradient, both of a LoRA adapter and sketched to `dims` numbers
    (`pyids.models.influence`). A few rows of each cluster, drawn by the seed, stand for it: a
    target row takes from the cluster of largest mean influence on it the rows nearest to it. In
    the order of picking; equal influence goes to the lower cluster, or row.

    Parameters
    ----------
    exact
        Compute the gradients of all rows, as published.
    rows_per_cluster
        Rows that stand for a cluster.
    warm_up
        Share of the pool, drawn by the seed, that is trained on first; at least 64 rows, at most
        10,000.
    epochs
        Passes over them, and checkpoints.
    dims
        Of the random projection.
    """
    if rows_per_cluster < 1 or epochs < 1 or dims < 1 or not 0 < warm_up <= 1:
        raise ConfigError(
            f"less with rows_per_cluster, epochs, dims, warm_up of {rows_per_cluster}, {epochs}, "
            f"{dims}, {warm_up}: give at least 1, and a warm_up of 0 to 1"
        )
    n_warm = min(len(pool), max(64, min(10_000, round(warm_up * len(pool)))))
    everyone = np.zeros(len(pool), np.int32)
    warm = np.sort(draw(pool, everyone, [n_warm], seed))
    rows = np.arange(len(pool))
    if not exact:
        quotas = np.minimum(pool.cluster_sizes, rows_per_cluster)
        rows = np.sort(draw(pool, pool.labels, quotas, seed + 1))
    influence = pool.gradients(
        pool.row_ids[warm], pool.row_ids[rows], seed=seed, epochs=epochs, dims=dims
    )
    rankings: list[Iterator[int]]
    if exact:
        rankings = [iter(np.argsort(-of, kind="stable").tolist()) for of in influence.T]
    else:
        means = np.zeros((len(pool.cluster_sizes), influence.shape[1]))
        np.add.at(means, pool.labels[rows], influence)
        means /= np.maximum(quotas, 1)[:, None]
        targets = as_targets(pool.target.vectors, pool.embeddings[0].shape[1])
        rankings = [_by_cluster(pool, of, q) for of, q in zip(means.T, targets, strict=True)]
    return deal(rankings, budget, tasks=pool.target.tasks)


def _by_cluster(pool: Pool, influence: Float64, target: Float64) -> Iterator[int]:
    """Give all rows: clusters by influence, inside a cluster the nearest to a target row first."""
    for cluster in np.argsort(-influence, kind="stable").tolist():
        rows = np.flatnonzero(pool.labels == cluster)
        if not len(rows):
            continue
        units = unit_rows(take_rows(pool.embeddings, rows).astype(np.float64))
        one = np.zeros(len(rows), np.int64)
        cosines = pair_cosines(units, target[None], np.arange(len(rows)), one)
        yield from rows[np.argsort(-cosines, kind="stable")].tolist()
