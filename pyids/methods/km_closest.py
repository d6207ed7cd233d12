"""kM-Closest: clusters by size, rows nearest the center."""

from __future__ import annotations

from pyids._typing import Int64
from pyids.methods.draws import distances_to_centroids, first_of_each_cluster, size_quotas
from pyids.methods.method import method
from pyids.methods.pool import Pool


@method(
    needs=("embeddings", "labels", "centroids"),
    uses=("already",),
    source="Yu et al., arXiv 2409.11378, section 4.1",
    cost="O(N D)",
)
def select(pool: Pool, budget: int, *, seed: int) -> Int64:
    """Take of each cluster the rows nearest its center.

    Clusters share the budget by size. Equal distances go to the lower row; nothing is drawn.
    """
    return first_of_each_cluster(pool, distances_to_centroids(pool), size_quotas(pool, budget))
