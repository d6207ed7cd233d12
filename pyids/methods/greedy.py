"""Greedy picks over vectors: farthest first, facility location, NovelSelect."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from pyids import _core
from pyids._typing import Float64, Int64
from pyids.checks import integers, unsigned_seed
from pyids.checks import threads as checked_threads
from pyids.neighbors import (
    Picks,
    Shards,
    check_in_range,
    checked_shards,
    count_rows,
    gather_units,
    inverse_lengths,
    row_lengths,
)
from pyids.sampling import sample_by_cluster


def farthest_first(
    shards: Shards, budget: int, *, first: int = 0, threads: int | None = None
) -> Picks:
    """Gonzalez' traversal: each pick is the row whose nearest pick is farthest.

    The covering radius of the first b picks, ``radius(b) = max_i min_{j <= b} |x_i - x_j|``, is at
    most twice the least that any b rows have.

    Parameters
    ----------
    shards : (N, D) in shards
    budget : int
        1 to N.
    first : int
        The row to begin with.
    threads : int, optional
        One per core unless given.

    Returns
    -------
    Picks
        values[i]: the covering radius (Euclidean) of the picks up to i, which is the distance of
        the next pick.

    References
    ----------
    Gonzalez, "Clustering to minimize the maximum intercluster distance", 1985.
    """
    shards = checked_shards(shards)
    n = count_rows(shards)
    n_threads = checked_threads(threads, "threads")
    row_lengths(shards, n_threads)  # for its check
    check_in_range("budget", budget, 1, n)
    check_in_range("first", first, 0, n - 1)
    rows, distances = _core.farthest_first(shards, np.empty(0), budget, first, n_threads)
    return Picks(rows, distances[1:])


def facility_location(
    shards: Shards,
    budget: int,
    *,
    quality: ArrayLike | None = None,
    alpha: float = 0.0,
    epsilon: float = 0.0,
    served: int | None = None,
    seed: int = 0,
    row_ids: Int64 | None = None,
    list_bytes: int = 1 << 29,
    threads: int | None = None,
) -> Picks:
    """Greedy maximization of coverage and quality.

    ``F(S) = (1 - alpha) / |V| * sum_{i in V} max_{j in S} s(i, j) + alpha / budget * sum_{j in S}
    quality[j]`` with s the cosine, negative ones as 0, in whole units of 2**-20. In these units F
    is computed exactly. F is monotone submodular (for quality >= 0), so the lazy greedy, which
    picks what the plain greedy would, reaches at least ``1 - 1/e`` of the best value, and the
    stochastic one ``1 - 1/e - epsilon`` in expectation.

    Parameters
    ----------
    shards : (N, D) in shards
    budget : int
        1 to N.
    quality : float array (N,), optional
        Not negative; 0 unless given.
    alpha : float
        In [0, 1].
    epsilon : float
        0: lazy greedy. In (0, 1): stochastic greedy, which looks at ``ceil(N / budget * log(1 /
        epsilon))`` random rows for each pick; drawing these takes O(N) a pick on one thread.
    served : int, optional
        V is a random sample of this many rows, copied as float32; all rows unless given or if it
        is at least N.
    seed : int
        Of the samples.
    row_ids : int64 array (N,), optional
        What the sample of `served` is keyed with, strictly ascending; positions unless given.
    list_bytes : int
        As soon as the pairs with ``s(i, j) > max_{k in S} s(i, k)``, of which gains consist, are
        estimated to fit into this much memory, they are listed once and gains are walks along the
        lists. 0: never. Does not change the result.
    threads : int, optional
        One per core unless given.

    Returns
    -------
    Picks
        values: the gain in F of each pick.

    References
    ----------
    Minoux, "Accelerated greedy algorithms for maximizing submodular set functions", 1978.
    Mirzasoleiman et al., "Lazier than lazy greedy", AAAI 2015, arXiv 1409.7938.
    """
    shards = checked_shards(shards)
    n = count_rows(shards)
    check_in_range("budget", budget, 1, n)
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}: must lie in [0, 1]")
    if not 0 <= epsilon < 1:
        raise ValueError(f"epsilon is {epsilon}: must lie in [0, 1)")
    seed = unsigned_seed(seed)
    check_in_range("list_bytes", list_bytes, 0, None)
    n_threads = checked_threads(threads, "threads")
    ids = np.arange(n) if row_ids is None else integers("row_ids", row_ids, n)
    if (falls := np.flatnonzero(ids[1:] <= ids[:-1])).size:
        raise ValueError(f"row_ids[{falls[0] + 1}] is not above the one before it")
    values = np.empty(0) if quality is None else _per_row("quality", quality, n)
    if len(values) and values.min() < 0:
        row = int(values.argmin())
        raise ValueError(f"quality[{row}] is {values[row]}: must not be negative")
    factors = inverse_lengths(shards, n_threads)
    served_shards, served_factors = shards, factors
    if served is not None and served < n:
        check_in_range("served", served, 1, n)
        drawn = sample_by_cluster(np.zeros(n, np.int32), [served], row_ids=ids, seed=seed)
        served_shards = [gather_units(shards, factors, np.searchsorted(ids, drawn))]
        served_factors = np.empty(0)
    rows, gains, _ = _core.facility_location(
        shards,
        factors,
        served_shards,
        served_factors,
        budget,
        alpha,
        values,
        epsilon,
        seed,
        list_bytes,
        n_threads,
    )
    return Picks(rows, gains)


def novel_select(
    shards: Shards,
    budget: int,
    *,
    first: int = 0,
    weights: ArrayLike,
    proximity: float = 1.0,
    horizon: int = 256,
    threads: int | None = None,
) -> Picks:
    """Pick the most novel row again and again.

    That is the row of the largest ``v(x) = sum_y weights[y] * (1 - cos(x, y)) / rank(y)^proximity``
    over the rows y picked so far, ranked by ``1 - cos(x, y)``, 1 for the nearest; equal
    distances in the order of picking.

    Parameters
    ----------
    shards : (N, D) in shards
    budget : int
        1 to N.
    first : int
        The row to begin with.
    weights : float array (N,)
    proximity : float
        The exponent.
    horizon : int
        The picks beyond the nearest `horizon` ones of x enter with their mean value times the mean
        of ``1 / rank^proximity`` over their ranks: exact while at most `horizon` are picked.
    threads : int, optional
        One per core unless given.

    Returns
    -------
    Picks
        values: v of each pick at its time; 0 for the first.
    """
    shards = checked_shards(shards)
    n = count_rows(shards)
    check_in_range("budget", budget, 1, n)
    check_in_range("first", first, 0, n - 1)
    check_in_range("horizon", horizon, 1, None)
    if math.isnan(proximity):
        raise ValueError("proximity is nan: must be a number")
    n_threads = checked_threads(threads, "threads")
    return Picks(
        *_core.novel_select(
            shards,
            inverse_lengths(shards, n_threads),
            budget,
            first,
            _per_row("weights", weights, n),
            float(proximity),
            horizon,
            n_threads,
        )
    )


def _per_row(name: str, values: ArrayLike, n: int) -> Float64:
    array = np.ascontiguousarray(values, np.float64)
    if array.shape != (n,):
        raise ValueError(f"{name} has shape {array.shape}, expected ({n},)")
    bad = np.flatnonzero(~np.isfinite(array))
    if len(bad):
        raise ValueError(f"{name}[{bad[0]}] is {array[bad[0]]}: must be finite")
    return array
