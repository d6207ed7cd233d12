"""kMQ: clusters by size, rows by quality."""

from __future__ import annotations

from typing import Literal

from pyids._typing import Int64
from pyids.methods.draws import draw, size_quotas
from pyids.methods.method import method
from pyids.methods.pool import Pool
from pyids.scoring.row_weights import log_weight_of


@method(
    needs=("labels", "quality"),
    uses=("already",),
    source="Yu et al., arXiv 2409.11378, section 2.1",
    cost="O(N)",
)
def select(
    pool: Pool,
    budget: int,
    *,
    seed: int,
    weighting: Literal["exponential", "proportional"] = "exponential",
    temperature: float = 1.0,
) -> Int64:
    """Draw from each cluster its share of the budget, with probability weighted by quality.

    Successive sampling without replacement inside a cluster.

    Parameters
    ----------
    weighting, temperature
        How quality becomes a weight: see `pyids.scoring.row_weights.log_weights`.
    """
    weigh = log_weight_of(pool.quality, weighting, temperature)
    return draw(pool, pool.labels, size_quotas(pool, budget), seed, pool.quality, weigh)
