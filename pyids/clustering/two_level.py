"""Centers for many clusters: coarse clusters first, then k-means inside each of them.

For K centers of N rows this takes about ``2 N sqrt(K) D`` multiply-adds an iteration instead of
``N K D``, and its seeding as much instead of ``K^2``.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyids._typing import Float64, Int64
from pyids.clustering.extent import Extent, Metric, Shards, measure, take_positions
from pyids.clustering.lloyd import ShardPass, lloyd
from pyids.clustering.seeding import seed_centers, spread_sample
from pyids.neighbors import take_rows
from pyids.sampling import allocate

# Rows a coarse cluster that the coarse clusters are found with.
_COARSE_ROWS = 256
_ITERATIONS = 10


def two_level_centers(
    shards: Shards,
    n_clusters: int,
    *,
    extent: Extent,
    seed: int,
    sample_weight: Float64 | None = None,
    metric: Metric = "euclidean",
    dtype: Any = np.float32,
    n_threads: int | None = None,
    max_memory: int | None = None,
) -> Float64:
    """Find K centers in two levels: (K, D) float64.

    About sqrt(K) coarse clusters are found on a sample of the rows and every row is given to the
    nearest. A coarse cluster is then divided, by k-means++ and ten iterations of k-means over its
    own rows, into a share of the K that is proportional to its inertia: that is where centers save
    most. The result depends on the rows and the seed alone.
    """
    options: dict[str, Any] = {
        "metric": metric, "n_threads": n_threads, "max_memory": max_memory,
    }  # fmt: skip
    n_rows = sum(map(len, shards))
    labels, coarse = _coarse_labels(
        shards, max(1, round(math.sqrt(n_clusters))), extent, seed, sample_weight, dtype, options
    )
    order = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[order], np.arange(len(coarse) + 1))
    counts = np.diff(starts)
    scatter = np.empty(len(coarse))
    groups: list[Int64] = [order[a:b] for a, b in itertools.pairwise(starts)]
    for j, rows in enumerate(groups):
        scatter[j] = _scatter(shards, rows, coarse[j], sample_weight, metric) if len(rows) else 0.0
    # Every cluster with rows has one center at least.
    first = (counts > 0).astype(np.int64)
    shares = first + allocate(n_clusters - int(first.sum()), scatter, counts - first)
    missing = n_clusters - int(shares.sum())
    assert missing == 0 or n_clusters > n_rows
    return np.concatenate(
        [
            _divide(shards, rows, int(share), seed, sample_weight, dtype, options)
            for rows, share in zip(groups, shares.tolist(), strict=True)
            if share > 0
        ]
    )


def _coarse_labels(
    shards: Shards,
    n_coarse: int,
    extent: Extent,
    seed: int,
    weights: Float64 | None,
    dtype: Any,
    options: dict[str, Any],
) -> tuple[NDArray[np.int32], Float64]:
    n_rows = sum(map(len, shards))
    sample, held = spread_sample(n_rows, _COARSE_ROWS * n_coarse, seed, weights)
    rows = take_rows(shards, np.sort(sample))
    some = None if held is None else held[np.sort(sample)]
    few = measure([rows], sample_weight=some, metric=options["metric"])
    start = seed_centers([rows], n_coarse, seed=seed, sample_weight=some, init="k-means++",
                         metric=options["metric"], n_threads=options["n_threads"])  # fmt: skip
    work = ShardPass([rows], n_coarse, few, sample_weight=some, **options)
    coarse = lloyd(
        work, start, few, max_iter=_ITERATIONS, tol=0, metric=options["metric"], dtype=dtype
    ).centers
    all_rows = ShardPass(shards, n_coarse, extent, sample_weight=weights, once=True, **options)
    all_rows.assign(coarse)
    return all_rows.labels, coarse


def _scatter(
    shards: Shards, rows: Int64, center: Float64, weights: Float64 | None, metric: Metric
) -> float:
    """About the inertia of some rows about their center, from a thousand of them."""
    some = rows[:: max(1, len(rows) // 1024)]
    values = take_positions(shards, some, metric)
    squares = np.square(values - center).sum(axis=1)
    if weights is None:
        return float(squares.mean() * len(rows))
    held = weights[some] / weights.max()
    return float((squares * held).mean() * len(rows))


def _divide(
    shards: Shards,
    rows: Int64,
    share: int,
    seed: int,
    weights: Float64 | None,
    dtype: Any,
    options: dict[str, Any],
) -> Float64:
    """Return the centers of a k-means over some rows."""
    values = [take_rows(shards, rows)]
    some = None if weights is None else weights[rows]
    if some is not None and not some.any():
        some = None
    metric = options["metric"]
    extent = measure(values, sample_weight=some, metric=metric, n_threads=options["n_threads"])
    start = seed_centers(
        values, share, extent=extent, seed=seed, sample_weight=some, init="k-means++",
        metric=metric, n_threads=options["n_threads"],
    )  # fmt: skip
    work = ShardPass(values, share, extent, sample_weight=some, **options)
    return lloyd(
        work, start, extent, max_iter=_ITERATIONS, tol=1e-3, metric=metric, dtype=dtype
    ).centers
