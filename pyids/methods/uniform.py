"""Equally many rows for each value of a column."""

from __future__ import annotations

import numpy as np

from pyids._typing import Int64
from pyids.methods.draws import draw_evenly
from pyids.methods.method import method
from pyids.methods.pool import Pool


@method(source="Yu et al., arXiv 2409.11378 (a baseline of its code)", cost="O(N)")
def select(pool: Pool, budget: int, *, seed: int, column: str) -> Int64:
    """Draw equally many rows for each value of a column.

    A value with too few rows gives all of them; the others share what is left.

    Parameters
    ----------
    column
        Name of a column of the data set; values are compared by their text.
    """
    values = np.asarray([str(value) for value in pool.column(column)])
    _, groups = np.unique(values, return_inverse=True)
    return draw_evenly(pool, groups.astype(np.int32), budget, seed)
