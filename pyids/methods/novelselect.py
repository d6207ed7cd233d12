"""NovelSelect: the most novel row, again and again."""

from __future__ import annotations

import numpy as np

from pyids._typing import Int64
from pyids.methods.draws import draw, draw_one
from pyids.methods.greedy import novel_select
from pyids.methods.method import method
from pyids.methods.pool import Pool
from pyids.neighbors import neighbor_distances


@method(
    needs=("embeddings",),
    source="Yang et al., Measuring Data Diversity (NovelSum), arXiv 2502.17184",
    cost="O(b N (D + horizon) + N m D) time with m reference rows, 8 N horizon bytes",
)
def select(
    pool: Pool,
    budget: int,
    *,
    seed: int,
    neighbors: int = 10,
    density: float = 0.5,
    proximity: float = 1.0,
    horizon: int = 256,
    reference: int = 100_000,
) -> Int64:
    """Take the row that is most novel beside those taken, novelty counting more in dense regions.

    The novelty of x is ``sum_y sigma(y)^density * (1 - cos(x, y)) / rank(y)^proximity`` over the
    rows y taken so far, ranked by their distance to x, where ``1 / sigma(y)`` is the sum of the
    distances from y to its nearest neighbors in the pool. Begins with a random row; in the order
    of picking; equal novelty goes to the lower row.

    Parameters
    ----------
    neighbors
        How many the density is taken from.
    density, proximity
        The exponents; the paper's values by default.
    horizon
        Only the nearest so many taken rows are kept by rank; those beyond enter by their mean.
        Exact for budgets up to it.
    reference
        Most rows that neighbors are looked for among; above it, a random sample of the pool.
    """
    threads = pool.threads
    rows = None
    if reference < len(pool):
        rows = draw(pool, np.zeros(len(pool), np.int32), [reference], seed)
    distances = neighbor_distances(
        pool.embeddings, min(neighbors, len(pool) - 1), reference=rows, threads=threads
    )
    # A row with as many exact repeats as neighbors has no distance to them: bound its density.
    weights = np.maximum(distances, 1e-3) ** -density
    return novel_select(
        pool.embeddings,
        budget,
        first=draw_one(pool, seed),
        weights=weights,
        proximity=proximity,
        horizon=horizon,
        threads=threads,
    ).rows
