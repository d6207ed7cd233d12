"""Greedy selection over shards of rows, on the distance core.

Nothing here builds an N x N matrix, and nothing depends on the number of threads or on how the rows
are cut into shards: what a pair of rows is worth depends on these two alone, and what is added up
over rows are integers. Ties go to the lowest row. The cosine of an all-zero row with any row is 0.

Shards are C-contiguous float16 or float32 arrays (N_s, D), memory-mapped or not; rows are positions
in their concatenation. Products of rows are float32; distances between rows (`farthest_first`) are
float64.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyids import _core
from pyids._typing import Float64, Int64
from pyids.checks import integers
from pyids.checks import threads as checked_threads

Shards: TypeAlias = NDArray[Any] | Sequence[NDArray[Any]]


class Picks(NamedTuple):
    """Rows in the order of picking, with what each was worth at that time.

    Attributes
    ----------
    rows : int64 array of shape (B,)
        Positions.
    values : float64 array of shape (B,)
        The function says in which measure.
    """

    rows: Int64
    values: Float64


def filter_near(
    shards: Shards,
    order: ArrayLike,
    budget: int,
    *,
    threshold: float,
    threads: int | None = None,
) -> Picks:
    """Walk through `order` and keep a row unless its cosine to a kept row exceeds `threshold`.

    Parameters
    ----------
    shards : (N, D) in shards
    order : integer array
        Rows, each at most once.
    budget : int
        Stop when this many are kept; fewer come back when the order ends before.
    threshold : float
        A cosine.
    threads : int, optional
        One per core unless given.

    Returns
    -------
    Picks
        values: the largest cosine to an earlier pick; -inf for the first.
    """
    shards = checked_shards(shards)
    n = count_rows(shards)
    rows = integers("order", order)
    _check_rows(rows, n)
    check_in_range("budget", budget, 0, n)
    if math.isnan(threshold):
        raise ValueError("threshold is nan: must be a cosine")
    n_threads = checked_threads(threads, "threads")
    factors = inverse_lengths(shards, n_threads)
    return Picks(*_core.filter_near(shards, factors, rows, budget, float(threshold), n_threads))


def near_duplicates(
    shards: Shards, rows: ArrayLike, *, threshold: float, block_rows: int = 2048
) -> Int64:
    """Walk through `rows` and name for each the first kept row that it all but repeats.

    A row is kept unless its cosine to a kept row is at least `threshold`.

    A block of rows is compared with the kept ones before it, block by block, then within itself:
    memory is that of two blocks and their products. Float32 products settle all pairs but those
    within their error of the threshold, which float64 settles, pair by pair: blocks and threads
    change nothing.

    Parameters
    ----------
    shards : (N, D) in shards
    rows : int64 array (n,)
        In the order of the walk, each at most once.
    threshold : float
        A cosine in (0, 1).
    block_rows : int
        Rows of a block.

    Returns
    -------
    int64 array (n,)
        Positions in `rows`: a row's own if it is kept, else that of the first kept row near it.
    """
    shards = checked_shards(shards)
    wanted = integers("rows", rows)
    if not 0 < threshold < 1:
        raise ValueError(f"threshold is {threshold}: must lie in (0, 1)")
    # The rounding of both inputs and the threshold to float32, and any order of D multiply-adds.
    error = (shards[0].shape[1] + 6) * 2.0**-24
    repeats = np.arange(len(wanted))

    def near(others: Float64, units: Float64) -> NDArray[np.bool_]:
        products = others.astype(np.float32) @ units.astype(np.float32).T
        found = products >= threshold
        unsettled = np.argwhere(np.abs(products - threshold) <= error)
        for at in range(0, len(unsettled), block_rows):
            i, j = unsettled[at : at + block_rows].T
            found[i, j] = (others[i] * units[j]).sum(axis=1) >= threshold
        return found

    for begin in range(0, len(wanted), block_rows):
        end = min(begin + block_rows, len(wanted))
        units = _units(shards, wanted[begin:end])
        first = repeats[begin:end]  # a view
        kept = np.flatnonzero(repeats[:begin] == np.arange(begin))
        for at in range(0, len(kept), block_rows):
            before = kept[at : at + block_rows]
            found = near(_units(shards, wanted[before]), units)
            hit = found.any(axis=0) & (first >= begin)
            first[hit] = before[found.argmax(axis=0)[hit]]
        inside = np.triu(near(units, units), k=1)
        for i in np.flatnonzero(inside.any(axis=1)).tolist():
            if first[i] == begin + i:
                first[inside[i] & (first == np.arange(begin, end))] = begin + i
    return repeats


def neighbor_distances(
    shards: Shards,
    n_neighbors: int,
    *,
    reference: ArrayLike | None = None,
    threads: int | None = None,
) -> Float64:
    """Return for each row the sum of ``1 - cosine`` to its nearest neighbors.

    Parameters
    ----------
    shards : (N, D) in shards
    n_neighbors : int
        Less than the number of reference rows.
    reference : integer array, optional
        The rows among which neighbors are looked for (copied as float32), all unless given; no row
        neighbors itself, but a repeat of it does.
    threads : int, optional
        One per core unless given.

    Returns
    -------
    float64 array of shape (N,)
        In [0, 2 * n_neighbors].
    """
    shards = checked_shards(shards)
    n = count_rows(shards)
    n_threads = checked_threads(threads, "threads")
    factors = inverse_lengths(shards, n_threads)
    if reference is None:
        rows = np.arange(n, dtype=np.int64)
        others, other_factors = shards, factors
    else:
        rows = integers("reference", reference)
        others, other_factors = [gather_units(shards, factors, rows)], np.empty(0)
    check_in_range("n_neighbors", n_neighbors, 1, len(rows) - 1)
    distances: Float64 = _core.neighbor_distances(
        shards, factors, others, other_factors, rows, n_neighbors, n_threads
    )
    return distances


def take_rows(shards: Sequence[NDArray[Any]], rows: Int64) -> NDArray[Any]:
    """Copy rows in the order given.

    Parameters
    ----------
    shards : sequence of (N_s, D) arrays
        All of one dtype.
    rows : int64 array (n,)
        Positions.

    Raises
    ------
    ValueError
        There is no such row.
    """
    ends = np.cumsum([len(shard) for shard in shards])
    _check_rows(rows, int(ends[-1]))
    out = np.empty((len(rows), shards[0].shape[1]), shards[0].dtype)
    ascending = len(rows) < 2 or bool((rows[1:] >= rows[:-1]).all())
    order = None if ascending else np.argsort(rows, kind="stable")
    in_order = rows if order is None else rows[order]
    cuts = np.searchsorted(in_order, ends).tolist()
    for s, (start, stop) in enumerate(itertools.pairwise([0, *cuts])):
        if stop > start:
            first = int(ends[s - 1]) if s else 0
            where = slice(start, stop) if order is None else order[start:stop]
            out[where] = shards[s][in_order[start:stop] - first]
    return out


# ---- checks --------------------------------------------------------------------------------------


def checked_shards(shards: Shards) -> list[NDArray[Any]]:
    """Check that the shards are finite float matrices of one width."""
    listed = [shards] if isinstance(shards, np.ndarray) else list(shards)
    listed = [shard for shard in listed if len(shard)] or listed[:1]
    if not listed:
        raise ValueError("there is no shard")
    for s, shard in enumerate(listed):
        if shard.ndim != 2 or shard.shape[1] != listed[0].shape[1]:
            raise ValueError(f"shard {s} has shape {shard.shape}, expected (rows, D) as the first")
        if shard.dtype not in (np.float16, np.float32):
            raise TypeError(f"shard {s} is {shard.dtype}: only float16 and float32 are taken")
    if len({shard.dtype for shard in listed}) > 1:
        raise TypeError("some shards are float16, some float32: store all alike")
    return listed


def count_rows(shards: Sequence[NDArray[Any]]) -> int:
    """Return the rows of all shards."""
    return sum(len(shard) for shard in shards)


def row_lengths(shards: Sequence[NDArray[Any]], n_threads: int) -> Float64:
    """Euclidean lengths of all rows, float64 (N,)."""
    origin = np.zeros((1, shards[0].shape[1]))
    resolved = _core.resolve_threads(n_threads)
    squares = _core.squared_distances(list(shards), None, origin, resolved)[:, 0]
    bad = np.flatnonzero(~np.isfinite(squares))
    if len(bad):
        raise ValueError(f"row {bad[0]} of the embeddings has a NaN or infinite value")
    lengths: Float64 = np.sqrt(squares)
    return lengths


def inverse_lengths(shards: Sequence[NDArray[Any]], n_threads: int) -> Float64:
    """One over the lengths of all rows, float64 (N,); 0 for zero rows."""
    lengths = row_lengths(shards, n_threads)
    return np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0)


def _units(shards: Sequence[NDArray[Any]], rows: Int64) -> Float64:
    """Copy rows as float64 of unit length; all-zero rows stay."""
    out = take_rows(shards, rows).astype(np.float64)
    lengths = np.sqrt(np.square(out).sum(axis=1))
    bad = np.flatnonzero(~np.isfinite(lengths))
    if len(bad):
        raise ValueError(f"row {rows[bad[0]]} of the embeddings has a NaN or infinite value")
    np.divide(out, lengths[:, None], out=out, where=lengths[:, None] > 0)
    return out


def gather_units(
    shards: Sequence[NDArray[Any]], factors: Float64, rows: Int64
) -> NDArray[np.float32]:
    """Copy rows as float32 of unit length."""
    taken = take_rows(shards, rows)
    out = np.empty(taken.shape, np.float32)
    np.multiply(taken, factors[rows, None], out=out, casting="same_kind")  # in float64, rounded
    return out


def _check_rows(rows: Int64, n: int) -> None:
    outside = (rows < 0) | (rows >= n)
    if outside.any():
        raise ValueError(f"row {rows[outside.argmax()]} is outside 0 to {n - 1}")


def check_in_range(name: str, value: int, low: int, high: int | None) -> None:
    """Refuse an integer outside ``low ... high``; the message names it."""
    value = operator.index(value)
    if value < low or (high is not None and value > high):
        bounds = f"at least {low}" if high is None else f"{low} to {high}"
        raise ValueError(f"{name} is {value}: must be {bounds}")
