"""Equally many rows for each value of a column."""

from __future__ import annotations

import numpy as np

from pyids._typing import Int64
from pyids.methods.draws import draw_evenly
from pyids.methods.method import method
from pyids.methods.pool import Pool


@method(
    uses=("already",), source="Yu et al., arXiv 2409.11378 (a baseline of its code)", cost="O(N)"
)
def select(pool: Pool, budget: int, *, seed: int, column: str) -> Int64:
    """Draw equally many rows for each value of a column.

    A value with too few rows gives all of them; the others share what is left.

    Parameters
    ----------
    column
        Name of a column of the data set; values are compared by their text.
    """
    values = [str(value) for value in pool.column(column)]
    trained = [] if pool.already is None else [str(v) for v in pool.already.column(column)]
    _, groups = np.unique(np.asarray(values + trained), return_inverse=True)
    charge = np.bincount(groups[len(values) :], minlength=groups.max() + 1).astype(np.int64)
    return draw_evenly(pool, groups[: len(values)].astype(np.int32), budget, seed, charge)
