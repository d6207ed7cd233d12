"""Random rows."""

from __future__ import annotations

import numpy as np

from pyids.selection.draws import draw
from pyids.selection.method import Int64, method
from pyids.selection.pool import Pool


@method("random", source="the baseline of every study", cost="O(N)")
def select(pool: Pool, budget: int, *, seed: int) -> Int64:
    """Draw rows uniformly, without replacement."""
    return draw(pool, np.zeros(len(pool), np.int32), [budget], seed)
