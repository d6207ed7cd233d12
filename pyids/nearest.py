"""Round-robin over target rows: each in its turn takes the row of the pool that is nearest to it.

The pool is streamed, block by block; of it only the nearest rows of each target row are kept. What
is picked is decided by float64 cosines, each a function of its two rows alone: float32 products
settle only what is further from a list's last entry than their error. So neither shards nor blocks
nor threads change a pick.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyids._typing import Float64, Int64
from pyids.neighbors import Picks, Shards, check_in_range, checked_shards, count_rows

# Maps unit rows (n, D), float64, to the rows whose cosine counts; see `pyids.methods.whitening`.
Transform: TypeAlias = Callable[[Float64], Float64]

BLOCK_ROWS = 4096
# Entries of all lists together, 16 bytes each: what bounds the memory.
_LIST_ENTRIES = 1 << 22
_PAIRS_AT_A_TIME = 2048


def round_robin(
    shards: Shards,
    targets: ArrayLike,
    budget: int,
    *,
    tasks: Sequence[str] | None = None,
    transform: Transform | None = None,
    free: NDArray[np.bool_] | None = None,
    list_length: int | None = None,
) -> Picks:
    """Let each target row in turn take the row of largest cosine to it that is not yet taken.

    Parameters
    ----------
    shards : (N, D) in shards
        float16 or float32; read once, and again where lists run dry.
    targets : float array (Q, D)
        Target rows.
    budget : int
        1 to N.
    tasks : sequence of str, optional
        The task of each target row. Tasks take turns, and inside a task its rows do, so that a task
        of few rows gets as much as one of many. One task unless given.
    transform : callable, optional
        Applied to unit rows of pool and target before cosines are taken.
    free : bool array (N,), optional
        Rows that may be taken, at least `budget`; all unless given.
    list_length : int, optional
        Rows kept for each target row in a first pass: time and memory, not the result.

    Returns
    -------
    Picks
        values: the cosine to the target row whose turn it was. Equal cosines go to the lower row.

    References
    ----------
    Ivison et al., "Large-Scale Data Selection for Instruction Tuning", arXiv 2503.01807.
    """
    shards = checked_shards(shards)
    taken = np.zeros(count_rows(shards), np.bool_) if free is None else ~np.asarray(free, np.bool_)
    queries = as_targets(targets, shards[0].shape[1])
    if transform is not None:
        queries = unit_rows(transform(queries))

    def find(length: int, taken: NDArray[np.bool_]) -> tuple[list[Int64], list[Float64]]:
        return nearest(shards, queries, length, taken=taken, transform=transform)

    of = tasks or [""] * len(queries)
    return take_in_turn(find, len(queries), budget, taken, tasks=of, list_length=list_length)


def take_in_turn(
    find: Callable[[int, NDArray[np.bool_]], tuple[list[Int64], list[Float64]]],
    n_targets: int,
    budget: int,
    taken: NDArray[np.bool_],
    *,
    tasks: Sequence[str],
    list_length: int | None = None,
) -> Picks:
    """Do what `round_robin` does, whoever finds the nearest rows.

    Parameters
    ----------
    find : callable
        Gives what `nearest` does for the length of its lists and the rows that are taken.
    n_targets : int
        Q target rows.
    budget : int
        As many as are free, or less.
    taken : bool array (N,)
        Rows that may not be taken; those that are will be marked.
    tasks, list_length
        See `round_robin`.
    """
    n_free = len(taken) - int(np.count_nonzero(taken))
    check_in_range("budget", budget, 1, n_free)
    order = turns(tasks, n_targets)
    longest = max(1, _LIST_ENTRIES // n_targets)
    length = list_length or 64 + 4 * -(-budget // n_targets)
    rows, values = np.empty(budget, np.int64), np.empty(budget)
    picked = 0
    turn = next(order)
    # Why this is exact: a list holds the best of all rows that were free when its pass began, in
    # order. Rows are only ever taken, so its first entry that is still free is the best free row of
    # the pool, as long as there is such an entry or the list holds all that were free. Where there
    # is none, another pass begins. It has picked at least `length` rows before that (each entry of
    # the dry list was taken by one pick), so passes come to an end.
    while picked < budget:
        length = min(length, longest, n_free - picked)
        lists, cosines = find(length, taken)
        at = np.zeros(n_targets, np.int64)
        while picked < budget:
            entries = lists[turn]
            while at[turn] < len(entries) and taken[entries[at[turn]]]:
                at[turn] += 1
            if at[turn] == len(entries):
                break
            rows[picked], values[picked] = entries[at[turn]], cosines[turn][at[turn]]
            taken[rows[picked]] = True
            picked += 1
            turn = next(order)
        length *= 4
    return Picks(rows, values)


def deal(rankings: Sequence[Iterator[int]], budget: int, *, tasks: Sequence[str]) -> Int64:
    """Let each target row in turn take the first row of its ranking that is not yet taken.

    Parameters
    ----------
    rankings : Q iterators of positions
        Together they hold at least `budget` rows.
    budget : int
    tasks : sequence of str
        As for `round_robin`. A target row whose ranking has ended is passed over.
    """
    taken: dict[int, None] = {}  # in order
    order = turns(tasks, len(rankings))
    while len(taken) < budget:
        for row in rankings[next(order)]:
            if row not in taken:
                taken[row] = None
                break
    return np.fromiter(taken, np.int64)


def turns(tasks: Sequence[str], n_targets: int) -> Iterator[int]:
    """Give the target rows in their turns, without end: tasks in turn, inside a task its rows.

    Raises
    ------
    ValueError
        There is not one task for each target row, or no target row.
    """
    if len(tasks) != n_targets or not n_targets:
        raise ValueError(f"{len(tasks)} tasks for {n_targets} target rows")
    groups: dict[str, list[int]] = {}
    for row, task in enumerate(tasks):
        groups.setdefault(task, []).append(row)
    return (members[n % len(members)] for n in count() for members in groups.values())


class NearestLists:
    """The nearest rows of each query so far, nearest first, equal ones by row.

    Parameters
    ----------
    n_queries, length : int
        Q lists of so many rows.
    floors : float32 array (Q,), optional
        Cosines below which no row is of use, for others have filled the list.

    Attributes
    ----------
    rows, cosines : lists of int64 and float64 arrays
        The lists.
    floors : float32 array (Q,)
        What a row's cosine must not be below to come into the list.
    """

    def __init__(
        self, n_queries: int, length: int, floors: NDArray[np.float32] | None = None
    ) -> None:
        self._length = length
        self.rows = [np.empty(0, np.int64) for _ in range(n_queries)]
        self.cosines = [np.empty(0) for _ in range(n_queries)]
        start = np.full(n_queries, -np.inf) if floors is None else floors
        self.floors = np.array(start, np.float32)

    def add(self, query: int, rows: Int64, cosines: Float64) -> None:
        """Add rows to a list."""
        rows = np.concatenate([self.rows[query], rows])
        cosines = np.concatenate([self.cosines[query], cosines])
        keep = np.lexsort((rows, -cosines))[: self._length]
        self.rows[query], self.cosines[query] = rows[keep], cosines[keep]
        if len(keep) == self._length:
            # Rounded down, so that no entry of equal cosine falls below it.
            last = np.nextafter(np.float32(cosines[keep[-1]]), np.float32(-np.inf))
            self.floors[query] = max(self.floors[query], last)


def nearest(
    shards: Iterable[NDArray[Any]],
    queries: Float64,
    length: int,
    *,
    taken: NDArray[np.bool_] | None = None,
    transform: Transform | None = None,
    floors: NDArray[np.float32] | None = None,
) -> tuple[list[Int64], list[Float64]]:
    """Find the nearest rows of each query by cosine, nearest first, equal ones by row.

    Parameters
    ----------
    shards : (N, D) in shards
    queries : float64 array (Q, D')
        Unit rows, transformed as the pool's are.
    length : int
        Rows for each query; fewer where not so many are free.
    taken : bool array (N or more,), optional
        Rows to leave out.
    floors : float32 array (Q,), optional
        Rows of a smaller cosine need not be found.

    Returns
    -------
    lists of int64 and float64 arrays
        For each query the positions and their cosines.
    """
    small, error = queries.astype(np.float32), rounding(queries.shape[1])
    best = NearestLists(len(queries), length, floors)
    for start, units in unit_blocks(shards, transform):
        products = units.astype(np.float32) @ small.T
        if taken is not None:
            products[taken[start : start + len(units)]] = -np.inf
        # What is too far below the last entry of its list, or below `length` rows of its block.
        lowest = best.floors - error
        if len(units) > length and not np.isfinite(best.floors).all():
            ranked = np.partition(products, len(units) - length, axis=0)[len(units) - length]
            lowest = np.maximum(lowest, ranked - 2 * error)
        found, of = np.nonzero((products >= lowest) & np.isfinite(products))
        exact = pair_cosines(units, queries, found, of)
        order = np.argsort(of, kind="stable")
        ends = np.searchsorted(of[order], np.arange(len(queries) + 1))
        for query in np.flatnonzero(np.diff(ends)).tolist():
            new = order[ends[query] : ends[query + 1]]
            best.add(query, start + found[new], exact[new])
    return best.rows, best.cosines


def rounding(dim: int) -> np.float32:
    """Bound how far a float32 product of two unit rows is from their cosine.

    It is the rounding of both rows to float32, and of any order of so many multiply-adds.
    """
    return np.float32((dim + 6) * 2.0**-24)


def pair_cosines(units: Float64, queries: Float64, rows: Int64, of: Int64) -> Float64:
    """Cosines of pairs of unit rows, each summed by itself: what stands beside it changes nothing.

    Returns
    -------
    float64 array (n,)
        ``units[rows[i]] . queries[of[i]]``.
    """
    out = np.empty(len(rows))
    for at in range(0, len(rows), _PAIRS_AT_A_TIME):
        part = slice(at, at + _PAIRS_AT_A_TIME)
        out[part] = (units[rows[part]] * queries[of[part]]).sum(axis=1)
    return out


def unit_blocks(
    shards: Iterable[NDArray[Any]], transform: Transform | None = None
) -> Iterator[tuple[int, Float64]]:
    """Stream rows at unit length: the position of a block's first row, and float64 (n, D')."""
    first = 0
    for shard in shards:
        for at in range(0, len(shard), BLOCK_ROWS):
            units = unit_rows(shard[at : at + BLOCK_ROWS].astype(np.float64), first + at)
            yield first + at, units if transform is None else unit_rows(transform(units))
        first += len(shard)


def unit_rows(x: Float64, first: int = 0) -> Float64:
    """Scale rows to unit length, each by itself; all-zero rows stay, and are near nothing."""
    lengths = np.sqrt(np.square(x).sum(axis=1))
    bad = np.flatnonzero(~np.isfinite(lengths))
    if len(bad):
        raise ValueError(f"row {first + bad[0]} of the embeddings has a NaN or infinite value")
    units: Float64 = np.divide(
        x, lengths[:, None], out=np.zeros_like(x), where=lengths[:, None] > 0
    )
    return units


def as_targets(targets: ArrayLike, dim: int) -> Float64:
    """Return target vectors as unit rows, float64 (Q, D).

    Raises
    ------
    ValueError
        Their shape does not fit the pool's, or one is zero or not finite.
    """
    queries = np.asarray(targets, np.float64)
    if queries.ndim != 2 or queries.shape[1] != dim or not len(queries):
        raise ValueError(f"target vectors have shape {queries.shape}, expected (rows, {dim})")
    units = unit_rows(queries)
    if len(zero := np.flatnonzero(~units.any(axis=1))):
        raise ValueError(f"the vector of target row {zero[0]} is zero: it is near nothing")
    return units
