"""The first centers: k-means++ or random rows of a sample."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyids import _core, checks
from pyids._typing import Float64
from pyids.clustering.extent import (
    Extent,
    Metric,
    Shards,
    as_shards,
    checked_weights,
    in_units,
    measure,
    memory_limit,
    scale_factors,
    take_positions,
    thread_count,
)

# Seeding looks at every row up to this many rows a cluster, beyond that at a sample of as many.
SEEDING_ROWS_PER_CLUSTER = 64


INITS = ("k-means++", "random")


# ---- seeding -------------------------------------------------------------------------------------


def seed_centers(
    shards: Shards,
    n_clusters: int,
    *,
    extent: Extent | None = None,
    init: str = "k-means++",
    seed: int = 0,
    sample_weight: ArrayLike | None = None,
    metric: Metric = "euclidean",
    n_threads: int | None = None,
    max_memory: int | None = None,
) -> Float64:
    """Choose starting centers among the rows: (K, D) float64.

    ``random`` takes distinct rows with equal chance (or in proportion to their weights);
    ``k-means++`` each next row in proportion to its (weighted) squared distance to those taken.
    Equal weights are as good as none.
    """
    if init not in INITS:
        raise ValueError(f"init={init!r}: expected one of {INITS}")
    seed = checks.unsigned_seed(seed)
    shards = as_shards(shards)
    n_rows = sum(map(len, shards))
    weights = checked_weights(sample_weight, n_rows)
    if weights is not None and (weights == weights[:1]).all():
        weights = None
    if weights is not None:  # to sums that float64 holds
        weights = in_units(weights, n_rows, math.frexp(weights.max())[1])
    if init == "random":
        rng = np.random.Generator(np.random.Philox(key=seed))
        p = None if weights is None else weights / weights.sum()
        enough = p is None or np.count_nonzero(p) >= n_clusters
        chosen = rng.choice(n_rows, n_clusters, replace=not enough, p=p)
    else:
        factors = scale_factors(shards, metric)
        threads = thread_count(n_threads)
        sample, weights = spread_sample(
            n_rows, SEEDING_ROWS_PER_CLUSTER * n_clusters, seed, weights
        )
        if extent is None:
            extent = measure(shards, metric=metric, n_threads=n_threads)
        reach = float(extent.largest.max())
        chosen = _core.seed_rows(
            list(shards),
            factors,
            weights,
            sample,
            reach,
            n_clusters,
            seed,
            threads,
            memory_limit(max_memory),
        )
    return take_positions(shards, chosen, metric)


def spread_sample(
    n_rows: int, size: int, seed: int, weights: Float64 | None
) -> tuple[NDArray[np.int64], Float64 | None]:
    """One row of each of `size` equal stretches, at random; all rows if there are no more.

    Weighted rows are drawn systematically, each with chance ``min(1, weight / unit)``, and stand
    for a weight of ``unit`` at least; also returned are the weights (N,) that drawn ones stand for.
    """
    rng = np.random.Generator(np.random.Philox(key=seed))
    if weights is None:
        if n_rows <= size:
            return np.arange(n_rows), None
        # Never the positions of all rows, which are 8 bytes each.
        ends = np.linspace(0, n_rows, size + 1).astype(np.int64)
        sample: NDArray[np.int64] = rng.integers(ends[:-1], ends[1:])
        return sample, None
    rows = np.flatnonzero(weights)
    if len(rows) <= size:
        return rows, weights
    # With the j heaviest rows certain, the others share what is left of the sample.
    ascending = np.sort(weights[rows])
    left = np.cumsum(ascending)[: -size - 1 : -1]
    units = left / np.arange(size, 0, -1)
    unit = units[np.argmax(ascending[: -size - 1 : -1] <= units)]
    chances = np.cumsum(np.minimum(1.0, weights[rows] / unit))
    at = (np.arange(size) + rng.random()) * (chances[-1] / size)
    drawn = np.minimum(np.searchsorted(chances, at, side="right"), len(rows) - 1)
    return rows[drawn], np.maximum(weights, unit)
