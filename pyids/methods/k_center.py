"""k-center: farthest point first."""

from __future__ import annotations

from pyids._typing import Int64
from pyids.methods.draws import draw_one
from pyids.methods.greedy import farthest_first
from pyids.methods.method import method
from pyids.methods.pool import Pool


@method(
    needs=("embeddings",),
    source="Gonzalez 1985; Sener and Savarese, arXiv 1708.00489",
    cost="O(b N D) time, 8 N bytes",
    guarantee="the covering radius is at most twice the least possible",
)
def select(pool: Pool, budget: int, *, seed: int) -> Int64:
    """Take the row farthest from all rows taken so far, again and again.

    Begins with a random row. In the order of picking: any prefix is the selection of a smaller
    budget. Equal distances go to the lower row.
    """
    first = draw_one(pool, seed)
    return farthest_first(pool.embeddings, budget, first=first, threads=pool.threads).rows
