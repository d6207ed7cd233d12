"""The ops that the C++ core computes: what runs on a CPU where the core does better than torch.

Every function takes arrays that `pyids.ops` has validated, and returns arrays.
"""

from __future__ import annotations

import sys

import numpy as np
from numpy.typing import NDArray

from pyids import _core

_BLOCK_ELEMENTS = 1 << 22


def assign(
    x: NDArray[np.floating], centers: NDArray[np.floating]
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """See `pyids.ops.assign`; always exact. Names the first row that is not finite."""
    threads = _core.resolve_threads(0)
    shards, wide = [np.ascontiguousarray(x)], np.ascontiguousarray(centers, dtype=np.float64)
    # The sums are not looked at, but codes rest on how far the rows reach.
    scale = _core.FixedScale(_core.largest_values(shards, None, threads), 1.0, len(x))
    keep_codes = False  # they pay from the second assignment on
    work = _core.Assigner(shards, None, None, scale, len(centers), threads, sys.maxsize, keep_codes)
    work.assign(wide)
    labels: NDArray[np.int32] = work.labels
    distances = np.empty(len(x))
    step = max(1, _BLOCK_ELEMENTS // max(1, x.shape[1]))
    for start in range(0, len(x), step):
        rows = slice(start, start + step)
        distances[rows] = ((x[rows] - wide[labels[rows]]) ** 2).sum(axis=1)
    return labels, distances
