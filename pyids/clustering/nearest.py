"""Other questions to the same centers: the nearest of them, and how clear the choice is."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from pyids import _core
from pyids._typing import Float64
from pyids.clustering.extent import (
    Labels,
    Metric,
    as_shards,
    check_finite,
    measure,
    scale_factors,
    thread_count,
)


def nearest_centers(
    x: ArrayLike,
    centers: ArrayLike,
    count: int = 1,
    *,
    metric: Metric = "euclidean",
    n_threads: int | None = None,
) -> tuple[Labels, Float64]:
    """Find each row's `count` nearest centers.

    Returns
    -------
    indices : (N, count) int32
        Nearest first; ties go to the lowest index.
    distances : (N, count) float64
        Squared.

    Raises
    ------
    ValueError
        If `count` is not between 1 and K, or naming the first bad row or center.
    """
    values = np.ascontiguousarray(centers, dtype=np.float64)
    if values.ndim != 2:
        raise ValueError(f"centers: shape {values.shape}, expected (K, D)")
    check_finite("centers", values)
    if not 1 <= count <= len(values):
        raise ValueError(f"count={count}: expected 1 to {len(values)}, the number of centers")
    shards = as_shards(x)
    measure(shards, n_threads=n_threads)  # for its complaints
    threads = thread_count(n_threads)
    indices, distances = _core.nearest(
        list(shards), scale_factors(shards, metric), values, count, threads
    )
    return indices, distances


def simplified_silhouette(
    x: ArrayLike,
    centers: ArrayLike,
    *,
    metric: Metric = "euclidean",
    n_threads: int | None = None,
) -> Float64:
    """(b - a) / max(a, b) of each row: (N,) float64 in [0, 1].

    a is the distance to the nearest center, b to the second nearest: O(NK), where the silhouette
    proper takes every pair of rows. 0 where both are 0.
    """
    _, squares = nearest_centers(x, centers, 2, metric=metric, n_threads=n_threads)
    a, b = np.sqrt(squares).T
    silhouette: Float64 = np.divide(b - a, b, out=np.zeros_like(b), where=b > 0)
    return silhouette
