"""kM-Median: clusters by size, rows at the median distance from the center."""

from __future__ import annotations

import numpy as np

from pyids._typing import Int64
from pyids.methods.draws import distances_to_centroids, first_of_each_cluster, size_quotas
from pyids.methods.method import method
from pyids.methods.pool import Pool


@method(
    needs=("embeddings", "labels", "centroids"),
    uses=("already",),
    source="Yu et al., arXiv 2409.11378 (a baseline of its code)",
    cost="O(N D + N log N)",
)
def select(pool: Pool, budget: int, *, seed: int) -> Int64:
    """Take of each cluster the rows whose distance to the center is nearest the median distance.

    Neither the most typical rows nor the outliers. Clusters share the budget by size. Equal
    differences go to the lower row; nothing is drawn.
    """
    distances = distances_to_centroids(pool)
    order = np.argsort(pool.labels, kind="stable")
    keys = np.empty(len(pool))
    for rows in np.split(order, np.cumsum(pool.cluster_sizes)[:-1]):
        if len(rows):
            keys[rows] = np.abs(distances[rows] - np.median(distances[rows]))
    return first_of_each_cluster(pool, keys, size_quotas(pool, budget))
