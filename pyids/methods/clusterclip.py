"""ClusterClip: equally many rows of each cluster."""

from __future__ import annotations

from pyids._typing import Int64
from pyids.methods.draws import draw_evenly
from pyids.methods.method import method
from pyids.methods.pool import Pool


@method(
    needs=("labels",),
    uses=("already",),
    source="Shao et al., Balanced Data Sampling with Clustering, arXiv 2402.14526",
    cost="O(N)",
)
def select(pool: Pool, budget: int, *, seed: int) -> Int64:
    """Draw equally many rows of each cluster, as far as its size allows.

    The paper samples clusters uniformly and clips how often a row may repeat; a subset holds each
    row at most once, which is a clip of 1.
    """
    return draw_evenly(pool, pool.labels, budget, seed, pool.charge)
