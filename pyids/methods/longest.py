"""The longest responses."""

from __future__ import annotations

import numpy as np

from pyids._typing import Int64
from pyids.methods.method import method
from pyids.methods.pool import Pool


@method(
    needs=("lengths",),
    source="Zhao et al., Long Is More for Alignment, arXiv 2402.04833",
    cost="O(N log N)",
)
def select(pool: Pool, budget: int, *, seed: int) -> Int64:
    """Take the rows with the longest responses.

    In descending order of length; equal lengths in the order of the rows. Nothing is drawn.
    """
    return np.argsort(-pool.lengths, kind="stable")[:budget]
