"""QDIT: facility location and quality in one objective."""

from __future__ import annotations

from pyids._typing import Int64
from pyids.errors import ConfigError
from pyids.methods.greedy import facility_location
from pyids.methods.method import method
from pyids.methods.pool import Pool
from pyids.scoring.row_weights import rescale


@method(
    needs=("embeddings", "quality"),
    source="Bukharin et al., Data Diversity Matters, arXiv 2311.14736",
    cost="as facility-location",
    guarantee="at least 1 - 1/e of the best value; stochastic: 1 - 1/e - epsilon, expected",
)
def select(
    pool: Pool,
    budget: int,
    *,
    seed: int,
    alpha: float = 0.5,
    epsilon: float = 0.0,
    served: int | None = None,
    list_bytes: int = 1 << 29,
) -> Int64:
    """Take the rows that represent the pool and are good: facility location + alpha x quality.

    Maximises ``(1 - alpha) * mean_i max_{j in S} cos(i, j) + alpha * mean_{j in S} q(j)``, with q
    brought to [0, 1], so that both parts are means in [0, 1] and alpha means the same for any pool
    and budget. In the order of picking; equal gains go to the lower row.

    Parameters
    ----------
    alpha
        Weight of the quality, 0 to 1.
    epsilon, served, list_bytes
        See the method ``facility-location``.
    """
    if not 0 <= alpha <= 1:
        raise ConfigError(f"alpha is {alpha}: give 0 (only diversity) to 1 (only quality)")
    return facility_location(
        pool.embeddings,
        budget,
        quality=rescale(pool.quality),
        alpha=alpha,
        epsilon=epsilon,
        served=served,
        seed=seed,
        row_ids=pool.row_ids,
        list_bytes=list_bytes,
        threads=pool.threads,
    ).rows
