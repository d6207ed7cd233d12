"""Random rows."""

from __future__ import annotations

import numpy as np

from pyids._typing import Int64
from pyids.methods.draws import draw
from pyids.methods.method import method
from pyids.methods.pool import Pool


@method(source="the baseline of every study", cost="O(N)")
def select(pool: Pool, budget: int, *, seed: int) -> Int64:
    """Draw rows uniformly, without replacement."""
    return draw(pool, np.zeros(len(pool), np.int32), [budget], seed)
