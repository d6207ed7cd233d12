"""Weighted draws without replacement inside clusters, and how a budget is shared among clusters."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Literal, NamedTuple, overload

import numpy as np
import xxhash
from numpy.typing import ArrayLike, NDArray

from pyids import _core
from pyids.checks import check, describe, excluded_rows, floats, integers, threads
from pyids.checks import unsigned_seed as checked_seed

Int64 = NDArray[np.int64]

# Parts that wait to be merged: each is an object, however few rows it has.
_MOST_WAITING = 4096


class Sample(NamedTuple):
    """Drawn rows with what is needed to merge them with the rows drawn from other shards.

    Attributes
    ----------
    row_ids : int64 array of shape (B,)
        Ascending.
    labels : int32 array of shape (B,)
        The cluster of each row.
    keys : float64 array of shape (B, 2)
        The key of each row, as the unevaluated sum of the two columns: the first is the key
        rounded, the second what rounding took away. Larger keys are drawn first.
    """

    row_ids: Int64
    labels: NDArray[np.int32]
    keys: NDArray[np.float64]


@overload
def sample_by_cluster(
    labels: ArrayLike,
    quotas: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    log_weights: ArrayLike | None = None,
    row_ids: ArrayLike | None = None,
    exclude: ArrayLike | None = None,
    seed: int,
    return_keys: Literal[False] = False,
    allow_fewer: bool = False,
    n_threads: int | None = None,
    floors: ArrayLike | None = None,
    max_memory: int | None = None,
) -> Int64: ...


@overload
def sample_by_cluster(
    labels: ArrayLike,
    quotas: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    log_weights: ArrayLike | None = None,
    row_ids: ArrayLike | None = None,
    exclude: ArrayLike | None = None,
    seed: int,
    return_keys: Literal[True],
    allow_fewer: bool = False,
    n_threads: int | None = None,
    floors: ArrayLike | None = None,
    max_memory: int | None = None,
) -> Sample: ...


def sample_by_cluster(
    labels: ArrayLike,
    quotas: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    log_weights: ArrayLike | None = None,
    row_ids: ArrayLike | None = None,
    exclude: ArrayLike | None = None,
    seed: int,
    return_keys: bool = False,
    allow_fewer: bool = False,
    n_threads: int | None = None,
    floors: ArrayLike | None = None,
    max_memory: int | None = None,
) -> Int64 | Sample:
    """Draw ``quotas[c]`` rows of each cluster ``c`` without replacement.

    Inside a cluster this is successive sampling: rows are drawn one after another, each with
    probability proportional to its weight among those left. Formally, with ``E_i`` a standard
    exponential number made from ``(seed, row_ids[i])`` alone, the rows of cluster ``c`` with the
    ``quotas[c]`` largest keys ``log(weights[i]) - log(E_i)`` are drawn.

    Parameters
    ----------
    labels : integer array of shape (N,)
        The cluster of each row, in ``[0, K)``; int32 is used without a copy.
    quotas : integer array of shape (K,)
        How many rows to draw from each cluster.
    weights : float32 or float64 array of shape (N,), optional
        Finite and not negative; only ratios inside a cluster matter. Rows of weight zero are never
        drawn. Without `weights` and `log_weights` all rows weigh the same.
    log_weights : float32 or float64 array of shape (N,), optional
        Logarithms of the weights, for weights of any scale; ``-inf`` stands for weight zero.
    row_ids : integer array of shape (N,), optional
        Distinct names of the rows, 0 to N - 1 unless given. A row draws the same random number
        whatever stands around it.
    exclude : boolean array of shape (N,) or ascending integer array, optional
        Rows that must not be drawn: a mask, or their row ids (ids of no row do no harm).
    seed : int
        In ``[0, 2**64)``. Another seed is another, independent draw. The same seed with the rows
        drawn so far excluded goes on where the first draw stopped, while the weights are the same.
    return_keys : bool
        Return a `Sample`, which `merge_samples` takes, instead of the row ids alone.
    allow_fewer : bool
        Take all that a cluster has where that is less than its quota, as is needed when the rows
        are one shard of the pool. Otherwise that is an error.
    n_threads : int, optional
        One per core unless given. The result does not depend on it.
    floors : float64 array of shape (K, 2), optional
        Keys: rows below that of their cluster are not drawn, so that clusters may give fewer than
        their quotas. `ShardedSample` has those below which no row of a further shard can be drawn.
    max_memory : int, optional
        About the bytes that may be used beside the rows drawn: fewer threads are started where that
        is little (one takes 128 a cluster). At most 64 MB or 4 a row, whichever is more, is used
        for threads in any case.

    Returns
    -------
    int64 array or Sample
        The drawn row ids, ascending.

    Raises
    ------
    ValueError
        For a length or label out of range, a weight that is NaN, infinite or negative, a row id
        that occurs twice, or a quota above the number of rows that can be drawn; the message names
        the first offender. Arrays that another thread writes meanwhile may be refused, or give any
        rows; they must not be resized.

    Notes
    -----
    The random numbers are Philox-4x32-10's. Probabilities are resolved to 2**-64 absolutely and
    2**-53 relatively; keys are compared exactly, and equal keys go to the lower row id. The
    result is the same for any order and any sharding of the rows.

    References
    ----------
    Efraimidis and Spirakis, "Weighted random sampling with a reservoir", 2006.
    """
    quotas_ = integers("quotas", quotas)
    labels_ = np.asarray(labels)
    if labels_.dtype != np.int32:
        labels_ = integers("labels", labels)
        # A cast could fold a label that is out of range back into it.
        in_range = (labels_ >= 0) & (labels_ < len(quotas_))
        check("labels", labels_, in_range, f"must lie in [0, {len(quotas_)})")
    elif labels_.ndim != 1:
        raise ValueError(f"labels must be 1-D integers, not {describe(labels_)}")
    if weights is not None and log_weights is not None:
        raise ValueError("weights and log_weights exclude each other: give one")
    name, given = ("weights", weights) if log_weights is None else ("log_weights", log_weights)
    row_ids_ = None if row_ids is None else integers("row_ids", row_ids, len(labels_))
    result = _core.sample_by_cluster(
        labels=np.ascontiguousarray(labels_, np.int32),
        quotas=quotas_,
        weights=None if given is None else floats(name, given, len(labels_)),
        log_weights=log_weights is not None,
        row_ids=row_ids_,
        exclude=None if exclude is None else excluded_rows(exclude, len(labels_)),
        seed=checked_seed(seed),
        return_keys=return_keys,
        allow_fewer=allow_fewer,
        n_threads=threads(n_threads),
        floors=None if floors is None else np.ascontiguousarray(floors, np.float64),
        max_memory_bytes=2**63 - 1 if max_memory is None else max_memory,
    )
    return Sample(*result) if return_keys else result[0]


@overload
def merge_samples(
    parts: Iterable[Sample],
    quotas: ArrayLike,
    *,
    return_keys: Literal[False] = False,
    allow_fewer: bool = False,
) -> Int64: ...


@overload
def merge_samples(
    parts: Iterable[Sample],
    quotas: ArrayLike,
    *,
    return_keys: Literal[True],
    allow_fewer: bool = False,
) -> Sample: ...


def merge_samples(
    parts: Iterable[Sample],
    quotas: ArrayLike,
    *,
    return_keys: bool = False,
    allow_fewer: bool = False,
) -> Int64 | Sample:
    """Make the draw from a whole pool out of the draws from its shards.

    Each part is ``sample_by_cluster(..., quotas, return_keys=True, allow_fewer=True)`` of one
    shard, with the same `quotas` and seed. The result is exactly what one call for the whole pool
    gives.

    Parameters
    ----------
    parts : iterable of Sample
        In any order. Consumed one by one: of a generator, only about two draws are ever held.
    quotas : integer array of shape (K,)
        Those of the parts.
    return_keys : bool
        Return a `Sample`, itself fit to be merged again.
    allow_fewer : bool
        Take all that a cluster has where all parts together have less than its quota.

    Returns
    -------
    int64 array or Sample
        The drawn row ids, ascending.

    Raises
    ------
    ValueError
        If a drawn row occurs twice, a label is not in ``[0, K)``, a key is NaN, or a cluster has
        fewer rows than its quota.
    """
    merged = ShardedSample(quotas)
    for part in parts:
        merged.add(part)
    result = merged.result(allow_fewer=allow_fewer)
    return result if return_keys else result.row_ids


class ShardedSample:
    """The draw from a whole pool, made shard by shard.

    Parameters
    ----------
    quotas : integer array of shape (K,)
        Rows to draw from each cluster.

    Attributes
    ----------
    floors : float64 array of shape (K, 2)
        Keys that the draw has reached: no row below that of its cluster will be drawn. Given to
        `sample_by_cluster`, they make the draws from further shards small; -infinity for a cluster
        that has not met its quota.

    Examples
    --------
    >>> sample = ShardedSample([2])
    >>> for first in (0, 50):
    ...     part = sample_by_cluster(np.zeros(50, np.int32), [2], seed=0, return_keys=True,
    ...                              row_ids=np.arange(first, first + 50), floors=sample.floors)
    ...     sample.add(part)
    >>> whole = sample_by_cluster(np.zeros(100, np.int32), [2], seed=0)
    >>> np.array_equal(sample.result().row_ids, whole)
    True
    """

    def __init__(self, quotas: ArrayLike) -> None:
        self._quotas = integers("quotas", quotas)
        check("quotas", self._quotas, self._quotas >= 0, "must not be negative")
        self._merged = Sample(np.empty(0, np.int64), np.empty(0, np.int32), np.empty((0, 2)))
        self._waiting: list[Sample] = []
        self._n_waiting = 0
        self._limit = max(int(self._quotas.sum()), 1 << 16)
        self.floors = np.tile([-np.inf, 0.0], (len(self._quotas), 1))

    def add(self, part: Sample) -> None:
        """Take the draw from one more shard: with keys, by the same quotas and seed."""
        shapes = np.shape(part.row_ids), np.shape(part.labels), np.shape(part.keys)
        n = len(part.row_ids)
        if shapes != ((n,), (n,), (n, 2)):
            raise ValueError(f"a part must hold n row ids, n labels and n x 2 keys, not {shapes}")
        self._waiting.append(part)
        self._n_waiting += n
        if self._n_waiting >= self._limit or len(self._waiting) >= _MOST_WAITING:
            self._merge()

    def _merge(self) -> None:
        self._merged = _best([self._merged, *self._waiting], self._quotas)
        self._waiting.clear()
        self._n_waiting = 0
        labels, (high, low) = self._merged.labels, self._merged.keys.T
        counts = np.bincount(labels, minlength=len(self._quotas))
        # The least key of each cluster, by its two parts: sorting for it would cost more than all
        # else here.
        least = np.full((2, len(counts)), np.inf)
        np.minimum.at(least[0], labels, high)
        least_high = high == least[0][labels]
        np.minimum.at(least[1], labels[least_high], low[least_high])
        full = (counts > 0) & (counts >= self._quotas)
        self.floors[full] = least.T[full]

    def result(self, *, allow_fewer: bool = False) -> Sample:
        """Return the rows drawn from all shards so far.

        Raises
        ------
        ValueError
            A cluster has fewer rows than its quota, unless `allow_fewer`; or as `merge_samples`.
        """
        self._merge()
        counts = np.bincount(self._merged.labels, minlength=len(self._quotas))
        if not allow_fewer and (short := counts < self._quotas).any():
            cluster = int(short.argmax())
            raise ValueError(
                f"quotas[{cluster}] is {self._quotas[cluster]}, but cluster {cluster} has only "
                f"{counts[cluster]} rows that can be drawn"
            )
        return self._merged


def _best(parts: list[Sample], quotas: Int64) -> Sample:
    """Keep the `quotas[c]` rows of each cluster with the largest keys, ascending by row id."""
    row_ids, labels, keys = (np.concatenate(field) for field in zip(*parts, strict=True))
    chosen = _core.best_keys(row_ids, labels, keys, quotas)
    # Each part ascends already: a stable sort merges such runs.
    chosen = chosen[np.argsort(row_ids[chosen], kind="stable")]
    twice = np.diff(row_ids[chosen]) == 0
    if twice.any():
        raise ValueError(f"row id {row_ids[chosen][twice.argmax()]} occurs in the parts twice")
    return Sample(row_ids[chosen], labels[chosen], keys[chosen])


def allocate(
    budget: int, shares: ArrayLike, capacity: ArrayLike, *, seed: int | None = None
) -> Int64:
    """Share `budget` rows among clusters in proportion to `shares`, exactly.

    A cluster whose proportional part is at least its capacity is filled, the rest is shared anew
    among the others until all parts fit; then parts are rounded down. The rows left over go to the
    largest remainders or, given a seed, are drawn by systematic sampling, so that each cluster can
    expect its exact part: where there are fewer rows than clusters the largest remainders are those
    of the largest clusters, and small ones would never have a row.

    Parameters
    ----------
    budget : int
        Rows to hand out, at least 0.
    shares : float array of shape (K,)
        Finite and not negative; only ratios matter, down to 2**-53 of the largest (smaller
        positive shares count as that).
    capacity : integer array of shape (K,)
        The most that each cluster can take, at least 0.
    seed : int, optional
        In ``[0, 2**64)``. Draws which clusters get the rows left over, keyed by (seed, cluster).

    Returns
    -------
    int64 array of shape (K,)
        Its sum is ``min(budget, capacity.sum())``. Clusters of share zero get rows only when
        every cluster of positive share is full, and then in proportion to their capacities.
        Without a seed equal remainders go to the lowest index.

    Raises
    ------
    ValueError
        For a negative budget or capacity, a share that is NaN, infinite or negative, or different
        lengths; the message names the first offender.

    Notes
    -----
    The arithmetic is that of whole numbers, so no rounding decides a tie. Systematic sampling
    (Madow 1949): remainders are laid end to end, clusters in the order of hashes of (seed,
    cluster), and cut at unit distances from a random start.

    Examples
    --------
    >>> allocate(10, [5, 3, 2], [100, 100, 100]).tolist()
    [5, 3, 2]
    >>> allocate(10, [5, 3, 2], [2, 100, 100]).tolist()
    [2, 5, 3]
    """
    budget = operator.index(budget)
    if budget < 0:
        raise ValueError(f"budget is {budget}: must not be negative")
    seed = None if seed is None else checked_seed(seed)
    capacity_ = integers("capacity", capacity)
    shares_ = np.asarray(floats("shares", shares, len(capacity_)), np.float64)
    check("capacity", capacity_, capacity_ >= 0, "must not be negative")
    check(
        "shares", shares_, np.isfinite(shares_) & (shares_ >= 0), "must be finite and not negative"
    )
    quotas = np.zeros(len(capacity_), np.int64)
    positive = np.flatnonzero(shares_ > 0)
    if len(positive):
        scaled = np.ldexp(shares_[positive] / shares_[positive].max(), 53)
        units = np.maximum(np.rint(scaled), 1).astype(np.int64)
        quotas[positive] = _apportion(budget, units, capacity_, positive, seed)
    zero = np.flatnonzero(shares_ == 0)
    rest = budget - int(quotas.sum(dtype=object))
    quotas[zero] = _apportion(rest, capacity_[zero], capacity_, zero, seed)
    return quotas


def _apportion(
    budget: int, shares: Int64, capacity: Int64, clusters: Int64, seed: int | None
) -> Int64:
    """`allocate` among some clusters, for whole shares; those without room may be zero."""
    capacity = capacity[clusters]
    quotas = capacity.copy()
    open_ = np.flatnonzero(capacity > 0)  # clusters that are not filled
    while len(open_):
        # Python's whole numbers: budget times share does not fit into 64 bits.
        parts = shares[open_].astype(object) * budget
        total = int(shares[open_].sum(dtype=object))
        full = np.asarray(parts >= capacity[open_].astype(object) * total, bool)
        if not full.any():
            quotas[open_] = parts // total
            left = budget - int(quotas[open_].sum())
            remainders = (parts % total).tolist()
            if seed is None:
                more = sorted(range(len(open_)), key=lambda j: -remainders[j])[:left]
            else:
                more = _systematic(remainders, total, clusters[open_].tolist(), seed)
            quotas[open_[more]] += 1
            break
        budget -= int(capacity[open_[full]].sum())
        open_ = open_[~full]
    return quotas


def _systematic(sizes: list[int], step: int, names: list[int], seed: int) -> list[int]:
    """Lay sizes below `step` end to end in random order; return which of them hold a mark.

    Marks are `step` apart, the first at random below it. Order and mark are keyed by the names.
    """

    def digest(name: int) -> int:
        return xxhash.xxh3_64_intdigest(name.to_bytes(8, "little", signed=True), seed)

    marked, end, mark = [], 0, digest(-1) * step >> 64
    for j in sorted(range(len(sizes)), key=lambda j: digest(names[j])):
        end += sizes[j]
        if mark < end:
            marked.append(j)
            mark += step
    return marked
