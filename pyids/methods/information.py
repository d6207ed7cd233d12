"""The information of a set of rows on a graph of labels, and its greedy maximization.

``F(S) = sum_l phi((A sum_{x in S} q_x e_x)_l)`` with ``phi(z) = (z + 1e-6)^0.8``: e_x says which
labels row x bears, A lets a label speak for those like it, q_x is how good the row is. F is counted
in whole units, so that no gain depends on the order of a sum.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pyids._typing import Float64, Int64
from pyids.neighbors import Picks

# Units of e_x and of A: their product has units of 2**-20.
UNIT = 1 << 10
_SCALE = 2.0**-20
# Units of phi.
_PHI = 2.0**30
# Each of the four values of phi in two gains is within one unit of the true one.
_ROUNDING = 4
# Entries of label vectors in memory at a time.
_ENTRIES = 1 << 18
# Rows whose bounds lie in the heap; the others wait in an array.
_HEAP = 1 << 14


@dataclass(frozen=True)
class Labels:
    """What each row says about K labels: ``q_x A e_x``.

    Attributes
    ----------
    labels : int32 (N, m)
        Labels of each row.
    weights : int64 (N, m)
        Their weights in e_x, in units of 2**-10, not negative; 0 where a row has fewer than m.
    quality : float64 (N,)
        q_x, not negative.
    graph : int64 (K, d)
        Labels that each label speaks for, itself among them.
    shares : int64 (K, d)
        How strongly (a column of A), in units of 2**-10; 0 where there are fewer than d.
    """

    labels: NDArray[np.int32]
    weights: Int64
    quality: Float64
    graph: Int64
    shares: Int64

    def entries(self, rows: Int64) -> tuple[Int64, Int64, Int64]:
        """Return label vectors of rows, sparse: place in `rows`, label, and value > 0 (2**-20)."""
        n_labels = len(self.graph)
        of = self.labels[rows]
        label = self.graph[of]
        value = self.weights[rows][:, :, None] * self.shares[of]
        place = np.broadcast_to(np.arange(len(rows))[:, None, None], value.shape)
        there = value > 0
        keys, which = np.unique(place[there] * n_labels + label[there], return_inverse=True)
        # Whole numbers below 2**53: exact in any order.
        sums = np.bincount(which, weights=value[there], minlength=len(keys))
        places = keys // n_labels
        values = np.rint(sums * self.quality[rows[places]]).astype(np.int64)
        return places, keys % n_labels, values


def phi(z: Int64) -> Int64:
    """``(z + 1e-6)^0.8`` of values in units of 2**-20, in units of 2**-30, rounded."""
    rounded: Int64 = np.rint(_PHI * np.power(z * _SCALE + 1e-6, 0.8)).astype(np.int64)
    return rounded


def maximize(labels: Labels, budget: int, *, had: Labels | None = None) -> Picks:
    """Pick again and again the row of largest gain; equal gains go to the lower row.

    Lazily: a gain that was computed earlier bounds the present one, for phi is concave and what is
    covered only grows; rounding adds at most `_ROUNDING` units a label. So only rows whose bound
    reaches the best gain found are looked at, and every pick is the plain greedy's. Rows of one
    label vector wait in line behind the lowest of them.

    Parameters
    ----------
    labels
        The rows to pick from.
    budget
        How many.
    had
        Rows, of the same labels, that S begins with.

    Returns
    -------
    Picks
        values: the gains in F.

    References
    ----------
    Minoux, "Accelerated greedy algorithms for maximizing submodular set functions", 1978.
    """
    lines, first = _lines(labels)
    covered = np.zeros(len(labels.graph), np.int64)
    if had is not None:
        for at in range(0, len(had.labels), _ENTRIES):
            _, label, value = had.entries(np.arange(at, min(at + _ENTRIES, len(had.labels))))
            np.add.at(covered, label, value)
    slack = _ROUNDING * labels.labels.shape[1] * labels.graph.shape[1]
    heads = first[:-1].copy()  # of each line, the place in `lines` of its next row
    step = max(1, _ENTRIES // (labels.labels.shape[1] * labels.graph.shape[1]))
    bounds = np.concatenate(
        [_gains(labels, lines[heads[at : at + step]], covered) for at in range(0, len(heads), step)]
    )
    rows, values = np.empty(budget, np.int64), np.empty(budget)
    # `outside`: an upper bound of the lines that are not in the heap; -1: there are none.
    heap, outside = _fill(bounds, lines, heads, [])
    for pick in range(budget):
        best: tuple[int, int, int] | None = None  # minus gain, row, line
        looked: list[tuple[int, int, int]] = []
        batch = 1
        while True:
            need = -best[0] if best else -1
            if outside >= 0 and (not heap or -heap[0][0] < outside) and outside + slack >= need:
                for gain, _, line in (*heap, *looked):
                    bounds[line] = -gain
                heap, outside = _fill(bounds, lines, heads, [line for _, _, line in looked])
                continue
            if not heap or -heap[0][0] + slack < need:
                break
            taken = [heapq.heappop(heap) for _ in range(min(batch, len(heap)))]
            batch = min(2 * batch, 256)
            gains = _gains(labels, np.array([row for _, row, _ in taken]), covered)
            for gain, (_, row, line) in zip(gains.tolist(), taken, strict=True):
                entry = (-gain, row, line)
                looked.append(entry)
                best = entry if best is None else min(best, entry)
        assert best is not None
        gain, row, line = best
        rows[pick], values[pick] = row, -gain / _PHI
        _, label, value = labels.entries(np.array([row]))
        covered[label] += value
        heads[line] += 1
        for entry in looked:
            if entry is not best:
                heapq.heappush(heap, entry)
        if heads[line] < first[line + 1]:
            heapq.heappush(heap, (gain, int(lines[heads[line]]), line))
            bounds[line] = -gain
        else:
            bounds[line] = -1
    return Picks(rows, values)


def _lines(labels: Labels) -> tuple[Int64, Int64]:
    """Sort rows into lines of one label vector each: the rows, and where each line begins."""
    parts = [labels.labels.astype(np.int64), labels.weights, labels.quality.view(np.int64)[:, None]]
    facts = np.ascontiguousarray(np.concatenate(parts, axis=1))
    keys = facts.view(np.dtype((np.void, facts.itemsize * facts.shape[1]))).ravel()
    _, line = np.unique(keys, return_inverse=True)
    lines = np.argsort(line, kind="stable")
    return lines, np.concatenate([[0], np.cumsum(np.bincount(line))])


def _fill(
    bounds: Int64, lines: Int64, heads: Int64, but: list[int]
) -> tuple[list[tuple[int, int, int]], int]:
    """Return a heap of the lines of largest bound (`but` some), and the largest of the others."""
    waiting = bounds >= 0
    waiting[but] = False
    free = np.flatnonzero(waiting)
    outside = -1
    if len(free) > _HEAP:
        order = np.argpartition(-bounds[free], _HEAP)
        outside = int(bounds[free[order[_HEAP]]])
        free = free[order[:_HEAP]]
    heap = [(-int(bounds[i]), int(lines[heads[i]]), i) for i in free.tolist()]
    heapq.heapify(heap)
    return heap, outside


def _gains(labels: Labels, rows: Int64, covered: Int64) -> Int64:
    place, label, value = labels.entries(rows)
    gains = np.zeros(len(rows), np.int64)
    np.add.at(gains, place, phi(covered[label] + value) - phi(covered[label]))
    return gains
