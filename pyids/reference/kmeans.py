"""K-means: slow, in float64."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]


def squared_distances(x: NDArray[np.floating], centers: NDArray[np.floating]) -> Float64:
    """|x_i - c_j|^2 for every pair, (N, K), as the sum of squared differences: no cancellation."""
    c = centers.astype(np.float64)
    rows = [((row - c) ** 2).sum(axis=1) for row in x.astype(np.float64)]
    return np.stack(rows) if rows else np.zeros((0, len(c)))


def assign(
    x: NDArray[np.floating], centers: NDArray[np.floating]
) -> tuple[NDArray[np.int32], Float64]:
    """Nearest center of each point and the squared distance to it; ties go to the lowest index."""
    distances = squared_distances(x, centers)
    labels = distances.argmin(axis=1).astype(np.int32)
    return labels, np.take_along_axis(distances, labels[:, None], axis=1)[:, 0]


def update(
    x: NDArray[np.floating],
    labels: NDArray[np.integer],
    n_clusters: int,
    *,
    sample_weight: NDArray[np.floating] | None = None,
    centers: NDArray[np.floating] | None = None,
) -> tuple[Float64, Float64, Float64]:
    """Weighted sum (K, D), weight (K,) and inertia (K,) of each cluster.

    The inertia is taken about `centers`, or about the clusters' own means.
    """
    points = x.astype(np.float64)
    weights = np.ones(len(x)) if sample_weight is None else sample_weight.astype(np.float64)
    sums = np.zeros((n_clusters, x.shape[1]))
    counts, inertia = np.zeros(n_clusters), np.zeros(n_clusters)
    for j in range(n_clusters):
        own, w = points[labels == j], weights[labels == j]
        sums[j], counts[j] = w @ own, w.sum()
        about = sums[j] / max(counts[j], 1e-300) if centers is None else centers[j]
        inertia[j] = w @ ((own - about) ** 2).sum(axis=1)
    return sums, counts, inertia


def lloyd(
    x: NDArray[np.floating], centers: NDArray[np.floating], n_iter: int
) -> tuple[Float64, NDArray[np.int32]]:
    """Centers after `n_iter` iterations and the labels that belong to them.

    A cluster that loses all its points keeps its center; `pyids.clustering.kmeans` re-seeds it.
    """
    c = centers.astype(np.float64)
    for _ in range(n_iter):
        sums, counts, _ = update(x, assign(x, c)[0], len(c))
        c = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], c)
    return c, assign(x, c)[0]


def nearest_centers(
    x: NDArray[np.floating], centers: NDArray[np.floating], count: int
) -> tuple[NDArray[np.int32], Float64]:
    """Each point's nearest centers, nearest first, and the squared distances to them."""
    distances = squared_distances(x, centers)
    order = np.argsort(distances, axis=1, kind="stable")[:, :count]
    return order.astype(np.int32), np.take_along_axis(distances, order, axis=1)
