"""kM-Random: clusters by size, rows at random."""

from __future__ import annotations

from pyids._typing import Int64
from pyids.methods.draws import draw, size_quotas
from pyids.methods.method import method
from pyids.methods.pool import Pool


@method(
    needs=("labels",),
    uses=("already",),
    source="Yu et al., arXiv 2409.11378, section 2.1",
    cost="O(N)",
)
def select(pool: Pool, budget: int, *, seed: int) -> Int64:
    """Draw from each cluster its share of the budget, uniformly."""
    return draw(pool, pool.labels, size_quotas(pool, budget), seed)
