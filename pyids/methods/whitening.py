"""Whitening by the pool: directions that all rows share count no more than those that tell apart.

Everything that is summed over rows is an integer, so that shards, blocks and threads change
nothing: unit rows are rounded to `_UNIT`, the whitening matrix to `_BITS` bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyids._typing import Float64
from pyids.nearest import unit_blocks

# Of unit rows: an entry is at most 2**18 units, so the products of a block of 4096 rows sum to at
# most 2**48, exact in float64 in any order; those of 2**27 rows to at most 2**63.
_UNIT = 2.0**-18
# Of the matrix: |row - mean| <= 2**19 units times 2**20, summed over at most 8,192 dimensions, is
# at most 2**52: every product is exact.
_BITS = 20
_MOST_DIMS = 8192
# Directions of less than this share of the largest variance hold rounding, not text.
_LEAST_VARIANCE = 1e-6


@dataclass(frozen=True)
class Whitening:
    """The map ``v -> L^(-1/2) U^T (v - m)``, up to a common factor, which no cosine sees.

    Attributes
    ----------
    mean : float64 (D,)
        In units of 2**-18, whole.
    matrix : float64 (d, D)
        Whole numbers.
    """

    mean: Float64
    matrix: Float64

    def __call__(self, units: Float64) -> Float64:
        """Whiten unit rows (n, D) to (n, d); not scaled to unit length."""
        whole = np.rint(units / _UNIT) - self.mean
        out: Float64 = whole @ self.matrix.T
        return out


def fit_whitening(shards: Sequence[NDArray[Any]], components: int | None = None) -> Whitening:
    """Find mean m and covariance ``U L U^T`` of the pool's unit rows, in one pass.

    Parameters
    ----------
    shards : (N, D) in shards
    components : int, optional
        Directions kept, of largest variance; by default all that hold at least 1e-6 of the
        largest.

    Raises
    ------
    ValueError
        All rows are alike, or there are more than 8,192 dimensions.

    References
    ----------
    CRDS, arXiv 2602.13773.
    """
    dim = shards[0].shape[1]
    if dim > _MOST_DIMS:
        raise ValueError(f"vectors have {dim} dimensions: whitening takes at most {_MOST_DIMS}")
    sums, products, n = np.zeros(dim, np.int64), np.zeros((dim, dim), np.int64), 0
    for _, units in unit_blocks(shards):
        whole = np.rint(units / _UNIT)
        sums += whole.sum(axis=0).astype(np.int64)
        products += (whole.T @ whole).astype(np.int64)
        n += len(units)
    mean = sums / n
    variances, directions = np.linalg.eigh(products / n - np.outer(mean, mean))
    if variances[-1] < 1:  # below the rounding of the rows
        raise ValueError("whitening needs rows that differ: all vectors are alike")
    kept = np.flatnonzero(variances >= _LEAST_VARIANCE * variances[-1])[::-1][:components]
    matrix = (directions[:, kept] / np.sqrt(variances[kept])).T
    return Whitening(np.rint(mean), np.rint(matrix * (2**_BITS / np.abs(matrix).max())))
