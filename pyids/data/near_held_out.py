"""Which rows have a vector near a held-out row's: every one above a cosine, found exactly.

K-means' assignment says which held-out row is nearest to each row of the pool, by small integers
wherever these decide: the fastest search that the core has. Held-out rows that lie close together
(variants of one prompt) would all have to be told apart for every row, however far from them all.
So they are put into groups around a leader, and members are looked at only for rows that come near
enough to a leader.

Why no row is missed: at unit length a cosine of at least t is a distance of at most
``sqrt(2 - 2 t)``. If a row x is that near to a member h of a group with leader l, then
``|x - l| <= |x - h| + |h - l| <= sqrt(2 - 2 t) + r``, r the largest distance of any member from its
leader; and the nearest leader is no farther than l.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyids._typing import Float64, Int64
from pyids.clustering.extent import measure
from pyids.clustering.lloyd import assign_partial
from pyids.neighbors import near_duplicates

# Rows of this cosine share a group. Below it the assignment tells them apart cheaply: 16,384 rows
# of 384 dimensions and 10,000 held-out ones of mutual cosine 0.9 take 1.1 CPU seconds (spread ones
# 0.6, a product of float32 1.3), of 0.95 it would take 32.
_TOGETHER = 0.9
# More than rounding moves a distance of unit vectors: the square by some 2**-50.
_ROUNDING = 1e-6
# Products of rows with members that are in memory at a time.
_PRODUCTS = 1 << 22


class Near(NamedTuple):
    """For each row the held-out row of largest cosine, the first of equal ones, and that cosine.

    Attributes
    ----------
    held : int64 array (n,)
        -1: none reaches the threshold.
    cosines : float64 array (n,)
    """

    held: Int64
    cosines: Float64


class NearHeldOut:
    """Held-out vectors, made ready to find rows that are near one of them.

    Parameters
    ----------
    held
        float64 (Q, D), of unit length.
    threshold
        The least cosine, in (0, 1).
    """

    def __init__(self, held: Float64, threshold: float) -> None:
        self.held, self.threshold = held, threshold
        rows = np.arange(len(held))
        leader = near_duplicates([held.astype(np.float32)], rows, threshold=_TOGETHER)
        size = np.bincount(leader, minlength=len(held))
        # Of rows alone the nearest decides by itself.
        self._alone = np.flatnonzero(size == 1)
        self._leaders = np.flatnonzero(size > 1)
        self._members = np.flatnonzero(size[leader] > 1)
        of = leader[self._members]
        radius = np.sqrt(np.square(held[self._members] - held[of]).sum(axis=1)).max(initial=0)
        self._reach = float(np.sqrt(2 - 2 * threshold) + radius + _ROUNDING)
        self._small = held[self._members].astype(np.float32)

    def find(self, vectors: NDArray[Any], threads: int | None = None) -> Near:
        """Find the held-out row nearest to each row, if one reaches the threshold.

        Parameters
        ----------
        vectors
            float16 or float32 (n, D), of any length; a zero vector is near nothing.
        threads
            One per core unless given; no result depends on it.
        """
        best = Near(np.full(len(vectors), -1), np.full(len(vectors), -np.inf))
        there = np.flatnonzero(vectors.any(axis=1))
        if not len(there):
            return best
        block = vectors[there]
        units = block.astype(np.float64)
        units /= np.sqrt(np.square(units).sum(axis=1, keepdims=True))
        if len(self._alone):
            held, cosines = self._nearest(block, units, self._alone, threads)
            self._take(best, there, held, cosines)
        if len(self._leaders):
            _, cosines = self._nearest(block, units, self._leaders, threads)
            distances = np.sqrt(np.maximum(0, 2 - 2 * cosines))
            near = np.flatnonzero(distances <= self._reach)
            step = max(1, _PRODUCTS // len(self._members))
            for at in range(0, len(near), step):
                some = near[at : at + step]
                self._take(best, there[some], *self._among_members(units[some]))
        return best

    def _nearest(
        self, block: NDArray[Any], units: Float64, held: Int64, threads: int | None
    ) -> tuple[Int64, Float64]:
        """Find the nearest of some held-out rows to each row, and its cosine."""
        centers = np.ascontiguousarray(self.held[held])
        extent = measure(block, metric="cosine", n_threads=threads)
        options: dict[str, Any] = {"metric": "cosine", "n_threads": threads}
        labels, _ = assign_partial(block, centers, extent, **options)
        return held[labels], (units * centers[labels]).sum(axis=1)

    def _among_members(self, units: Float64) -> tuple[Int64, Float64]:
        """Find the nearest member of any group to each row, and its cosine."""
        products = units.astype(np.float32) @ self._small.T
        # The rounding of both inputs to float32, and any order of D multiply-adds.
        error = 2 * (units.shape[1] + 6) * 2.0**-24
        row, member = np.nonzero(products >= products.max(axis=1, keepdims=True) - error)
        held = self._members[member]
        cosines = (units[row] * self.held[held]).sum(axis=1)
        order = np.lexsort((held, -cosines, row))
        first = order[np.searchsorted(row[order], np.arange(len(units)))]
        return held[first], cosines[first]

    def _take(self, best: Near, rows: Int64, held: Int64, cosines: Float64) -> None:
        """Enter what reaches the threshold and beats what is known, or is as good and first."""
        had = best.cosines[rows]
        better = (cosines > had) | ((cosines == had) & (held < best.held[rows]))
        better &= cosines >= self.threshold
        best.held[rows[better]], best.cosines[rows[better]] = held[better], cosines[better]
