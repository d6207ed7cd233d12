"""Exact k-means: Lloyd's algorithm with the same result for any threads, shards and workers.

Two faces. `KMeans` is an estimator as scikit-learn's, over an array, a memory map or a sequence
of shards. Underneath, `measure`, `assign_partial` and `finish_update` are one Lloyd iteration cut
where it may be spread: a worker sees one shard, what it returns adds up in any grouping, and
`lloyd` drives either.

Two things make the result independent of how the rows were grouped. A label is the nearest centre
by one canonical float64 distance (``pyids/distance.hpp``), ties to the lowest index, whatever
pruning came before. And sums are integers: each row is scaled by a power of two chosen from the
columns' largest values, and rounded once (`Extent.scale`).
"""

from __future__ import annotations

import math
import os
import secrets
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, NamedTuple, Protocol, Self, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyids import _core, checks

Float64: TypeAlias = NDArray[np.float64]
Labels: TypeAlias = NDArray[np.int32]
Metric: TypeAlias = Literal["euclidean", "cosine"]
Shards: TypeAlias = Sequence[NDArray[np.floating]]

# Seeding looks at every row up to this many rows a cluster, beyond that at a sample of as many.
SEEDING_ROWS_PER_CLUSTER = 64
_INITS = ("k-means++", "random")


# ---- one iteration, cut where it may be spread ---------------------------------------------------


@dataclass(frozen=True)
class Extent:
    """What must be known of all rows before their sums can be exact; `merge` is associative.

    Attributes
    ----------
    largest : (D,) float64
        Largest magnitude of each column (of the unit rows, for the cosine metric).
    largest_weight : float
        Largest sample weight; 1 where there are none.
    n_rows : int
        Number of rows.
    """

    largest: Float64
    largest_weight: float
    n_rows: int

    def merge(self, other: Extent) -> Extent:
        """Return the extent of both sets of rows together."""
        return Extent(
            np.maximum(self.largest, other.largest),
            max(self.largest_weight, other.largest_weight),
            self.n_rows + other.n_rows,
        )

    def weight_exponent(self) -> int:
        """Return e such that the largest weight is 1 to 2 in units of 2^e, which all are held in.

        So neither tiny nor huge weights take products out of float64's range.
        """
        return math.frexp(self.largest_weight)[1] - 1 if self.largest_weight > 0 else 0

    def scale(self) -> Any:
        """Return the powers of two that make sums exact.

        ``columns * x * weight`` is rounded to an integer, at most half away, and any sum of them
        fits an int64. A mean of unweighted rows is off by at most ``max(2**-51, n_rows * 2**-62)``
        of its column's largest value.
        """
        return _core.FixedScale(self.largest, self._largest_weight_held(), self.n_rows)

    def inertia_shift(self, centers: Float64) -> int:
        """Return s such that the inertia about `centers` in units of 2^-s fits 120 bits."""
        reach = self.largest + np.abs(centers).max(axis=0)
        exponent = math.frexp(reach.max(initial=0.0))[1]
        squares = math.fsum(np.ldexp(reach, -exponent) ** 2)
        bound = squares * self._largest_weight_held() * max(1, self.n_rows)
        if bound == 0:
            return 0
        return 120 - math.frexp(bound)[1] - 2 * exponent - self.weight_exponent()

    def _largest_weight_held(self) -> float:
        return math.ldexp(self.largest_weight, -self.weight_exponent())


@dataclass(frozen=True)
class Partial:
    """Integer sums over some rows, by cluster; they add up in any order to the same bits.

    Attributes
    ----------
    sums : (K, D) int64
        Sum of the weighted rows in units of ``1 / scale.columns``.
    mass : (K,) int64
        Sum of the weights in units of ``1 / scale.mass``. Weights count in units of
        ``2**extent.weight_exponent()``, here as in `sums`.
    """

    sums: NDArray[np.int64]
    mass: NDArray[np.int64]

    def __add__(self, other: Partial) -> Partial:
        return Partial(self.sums + other.sums, self.mass + other.mass)


class FarRow(NamedTuple):
    """A row that may re-seed an empty cluster; sorts farthest first, then by row."""

    negative_distance: float
    row: int
    label: int
    sums: NDArray[np.int64]
    mass: int


def _factors(shards: Shards, metric: Metric) -> Float64 | None:
    """Return what each row is multiplied by: its inverse length, for the cosine metric."""
    if metric == "euclidean":
        return None
    origin = np.zeros((1, shards[0].shape[1]))
    lengths = np.sqrt(_core.squared_distances(list(shards), None, origin, 1)[:, 0])
    zero = np.flatnonzero(lengths == 0)
    if len(zero):
        raise ValueError(f"row {zero[0]} is all zeros: it has no direction for metric='cosine'")
    factors: Float64 = 1.0 / lengths
    return factors


def _weights(sample_weight: ArrayLike | None, n_rows: int) -> Float64 | None:
    if sample_weight is None:
        return None
    weights = np.asarray(sample_weight, dtype=np.float64, order="C")
    if weights.ndim == 0:
        weights = np.full(n_rows, float(weights))
    if weights.shape != (n_rows,):
        raise ValueError(
            f"sample_weight.shape == {weights.shape}, expected ({n_rows},): one weight a row"
        )
    bad = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if len(bad):
        raise ValueError(
            f"sample_weight of row {bad[0]} is {weights[bad[0]]}: use finite ones >= 0"
        )
    return weights


def _in_units(weights: Float64 | None, n_rows: int, exponent: int) -> Float64 | None:
    """Return the weights times 2^-exponent; rows without any weigh 1."""
    if exponent == 0:
        return weights
    held: Float64 = np.ldexp(np.ones(n_rows) if weights is None else weights, -exponent)
    return held


def _ldexp(value: float, exponent: int) -> float:
    """As `math.ldexp`, but infinity where float64 ends."""
    try:
        return math.ldexp(value, exponent)
    except OverflowError:
        return math.inf


def _threads(n_threads: int | None) -> int:
    threads: int = _core.resolve_threads(checks.threads(n_threads))
    return threads


def _memory(max_memory: int | None) -> int:
    if max_memory is None:
        return sys.maxsize
    if max_memory < 0:
        raise ValueError(f"max_memory is {max_memory}: must not be negative")
    return min(int(max_memory), sys.maxsize)


def measure(
    shard: ArrayLike,
    *,
    sample_weight: ArrayLike | None = None,
    metric: Metric = "euclidean",
    n_threads: int | None = None,
) -> Extent:
    """Read a shard once for what `Extent` needs.

    Raises
    ------
    ValueError
        Naming the first row with a NaN, an infinity, a magnitude above 1e150 or (cosine) no length.
    """
    shards = _as_shards(shard)
    n_rows = sum(map(len, shards))
    weights = _weights(sample_weight, n_rows)
    threads = _threads(n_threads)
    largest = _core.largest_values(list(shards), None, threads)
    if metric == "cosine":
        largest = np.ones_like(largest)
    return Extent(largest, 1.0 if weights is None else float(weights.max(initial=0)), n_rows)


class ShardPass:
    """The rows of one worker: labels and sums, brought up to date with any centres.

    Keeping the object from one iteration to the next makes the next one cheaper; a new object gives
    the same bits. `once` says that there will be no next one, so that nothing is kept for it.
    """

    def __init__(
        self,
        shard: ArrayLike,
        n_clusters: int,
        extent: Extent,
        *,
        sample_weight: ArrayLike | None = None,
        metric: Metric = "euclidean",
        n_threads: int | None = None,
        max_memory: int | None = None,
        once: bool = False,
    ) -> None:
        self._shards = _as_shards(shard)
        self.extent = extent
        self._scale = extent.scale()
        n_rows = sum(map(len, self._shards))
        weights = _weights(sample_weight, n_rows)
        self._weights = _in_units(weights, n_rows, extent.weight_exponent())
        self._factors = _factors(self._shards, metric)
        self._core = _core.Assigner(
            list(self._shards),
            self._factors,
            self._weights,
            self._scale,
            n_clusters,
            _threads(n_threads),
            _memory(max_memory),
            not once,
        )
        self._centers: Float64 | None = None

    @property
    def labels(self) -> Labels:
        """Nearest centre of each row, (N,) int32; ties go to the lowest index."""
        labels: Labels = self._core.labels
        return labels

    def assign(self, centers: Float64) -> Partial:
        """Label every row and return the sums by cluster, which the next call overwrites."""
        self._centers = centers
        self._core.assign(centers)
        return Partial(self._core.sums, self._core.mass)

    def inertia(self) -> int:
        """Weighted squared distances to the own centres, in units of 2^-extent.inertia_shift."""
        assert self._centers is not None
        shift = self.extent.inertia_shift(self._centers) + self.extent.weight_exponent()
        return int(self._core.inertia(shift))

    def farthest(self, count: int, first_row: int = 0) -> list[FarRow]:
        """Return the `count` rows with mass farthest from their centres.

        They are numbered from `first_row`.
        """
        labels, far = self._core.labels, []
        for distance, i in self._core.farthest(count):
            weight = 1.0 if self._weights is None else self._weights[i]
            factor = 1.0 if self._factors is None else self._factors[i]
            row = _row(self._shards, i).astype(np.float64) * factor
            sums = np.rint(row * weight * self._scale.columns).astype(np.int64)
            mass = int(np.rint(weight * self._scale.mass))
            far.append(FarRow(-distance, first_row + i, int(labels[i]), sums, mass))
        return far


def assign_partial(
    shard: ArrayLike, centers: Float64, extent: Extent, **options: Any
) -> tuple[Labels, Partial]:
    """Label one shard's rows with their nearest centres and sum them up, in one call.

    Parameters
    ----------
    shard : (N, D) array
        float16, float32 or float64.
    centers : (K, D) float64
        The same for every shard.
    extent : Extent
        Of all shards: ``reduce(Extent.merge, map(measure, shards))``.
    options
        sample_weight, metric, n_threads, max_memory: as for `KMeans`.

    Returns
    -------
    labels : (N,) int32
    partial : Partial
        Sums of shards add up with ``+``, in any grouping, to the same bits.
    """
    work = ShardPass(shard, len(centers), extent, once=True, **options)
    partial = work.assign(centers)
    return work.labels, partial


def finish_update(
    partial: Partial,
    centers: Float64,
    extent: Extent,
    *,
    far: Sequence[FarRow] = (),
    metric: Metric = "euclidean",
    dtype: Any = np.float32,
) -> tuple[Float64, float]:
    """Turn the sums of all shards into the next centres.

    A cluster without weight takes, as its centre, the farthest row that is left in `far` (all
    shards' candidates): the row leaves its own cluster, whose last one it must not be. Clusters are
    served by index. Without a fitting row the centre stays where it is.

    Returns
    -------
    centers : (K, D) float64
        Rounded to `dtype` (float32, unless the data are float64).
    moved : float
        Sum of the squared distances between old and new centres.
    """
    sums, mass = partial.sums, partial.mass
    empty = np.flatnonzero(mass == 0)
    if len(empty) and far:
        sums, mass = sums.copy(), mass.copy()
        waiting = list(empty[::-1])
        for row in sorted(far, key=lambda row: row[:2]):
            if not waiting or row.negative_distance == 0:
                break
            if row.mass == 0 or mass[row.label] <= row.mass:
                continue
            target = waiting.pop()
            sums[row.label] -= row.sums
            mass[row.label] -= row.mass
            sums[target], mass[target] = row.sums, row.mass
    wide = np.dtype(dtype) == np.float64
    new, moved = _core.update_centers(sums, mass, extent.scale(), centers, wide, metric == "cosine")
    return new, float(moved)


class Pass(Protocol):
    """Who assigns: `ShardPass` for this process, or anything that adds up several of them."""

    def assign(self, centers: Float64) -> Partial:
        """Label all rows; return the sums by cluster."""

    def inertia(self) -> int:
        """Inertia of the last assign, in units of 2^-extent.inertia_shift(centers)."""

    def farthest(self, count: int) -> list[FarRow]:
        """At least the `count` rows with mass farthest from their centres."""


class Fit(NamedTuple):
    """What `lloyd` returns; the labels stay with the pass."""

    centers: Float64
    inertia: float
    n_iter: int


def lloyd(
    work: Pass,
    centers: Float64,
    extent: Extent,
    *,
    max_iter: int = 25,
    tol: float = 1e-4,
    metric: Metric = "euclidean",
    dtype: Any = np.float32,
) -> Fit:
    """Iterate until the centres move by no more than `tol` or `max_iter` is reached.

    `tol` is relative to the mean variance of the columns (weighted, if the rows are), and bounds
    the sum of the squared distances moved, as scikit-learn's. The labels that the pass is left with
    are those of the centres returned.
    """
    n_iter, limit = 0, None
    while n_iter < max_iter:
        n_iter += 1
        partial = work.assign(centers)
        if limit is None:
            limit = tol * _mean_variance(partial, centers, extent, work.inertia()) if tol else 0.0
        n_empty = int((partial.mass == 0).sum())
        # Every cluster may turn down its last row, so ask for more than there are empty ones.
        far = work.farthest(n_empty + len(centers)) if n_empty else []
        old = centers
        centers, moved = finish_update(partial, old, extent, far=far, metric=metric, dtype=dtype)
        if np.array_equal(centers, old):
            break
        if moved <= limit:
            work.assign(centers)
            break
    else:
        work.assign(centers)
    inertia = _ldexp(work.inertia(), -extent.inertia_shift(centers))
    return Fit(centers, inertia, n_iter)


def _mean_variance(partial: Partial, centers: Float64, extent: Extent, inertia: int) -> float:
    """Mean over the columns of the variance of all rows, from the sums about `centers`.

    sum |x - m|^2 = sum |x - c|^2 + sum_j (2 (S_j - n_j c_j) + n_j (c_j - m)) . (c_j - m)
    """
    scale = extent.scale()
    sums, mass = partial.sums / scale.columns, partial.mass / scale.mass
    total = mass.sum()
    if total == 0:
        return 0.0
    apart = centers - sums.sum(axis=0) / total
    n = mass[:, None]
    between = ((2 * (sums - n * centers) + n * apart) * apart).sum()
    shift = extent.inertia_shift(centers) + extent.weight_exponent()
    scatter = _ldexp(inertia, -shift) + between
    return float(max(0.0, scatter / total / centers.shape[1]))


# ---- seeding -------------------------------------------------------------------------------------


def seed_centers(
    shards: Shards,
    n_clusters: int,
    *,
    extent: Extent | None = None,
    init: str = "k-means++",
    seed: int = 0,
    sample_weight: ArrayLike | None = None,
    metric: Metric = "euclidean",
    n_threads: int | None = None,
) -> Float64:
    """Choose starting centres among the rows: (K, D) float64.

    ``random`` takes distinct rows with equal chance (or in proportion to their weights);
    ``k-means++`` each next row in proportion to its (weighted) squared distance to those taken.
    Equal weights are as good as none.
    """
    if init not in _INITS:
        raise ValueError(f"init={init!r}: expected one of {_INITS}")
    seed = checks.unsigned_seed(seed)
    n_rows = sum(map(len, shards))
    weights = _weights(sample_weight, n_rows)
    if weights is not None and (weights == weights[:1]).all():
        weights = None
    if weights is not None:  # to sums that float64 holds
        weights = _in_units(weights, n_rows, math.frexp(weights.max())[1])
    if init == "random":
        rng = np.random.Generator(np.random.Philox(key=seed))
        p = None if weights is None else weights / weights.sum()
        enough = p is None or np.count_nonzero(p) >= n_clusters
        chosen = rng.choice(n_rows, n_clusters, replace=not enough, p=p)
    else:
        factors = _factors(shards, metric)
        threads = _threads(n_threads)
        sample, weights = _spread_sample(
            n_rows, SEEDING_ROWS_PER_CLUSTER * n_clusters, seed, weights
        )
        if extent is None:
            extent = measure(shards, metric=metric, n_threads=n_threads)
        reach = float(extent.largest.max())
        chosen = _core.seed_rows(
            list(shards), factors, weights, sample, reach, n_clusters, seed, threads
        )
    return _take(shards, chosen, metric)


def _spread_sample(
    n_rows: int, size: int, seed: int, weights: Float64 | None
) -> tuple[NDArray[np.int64], Float64 | None]:
    """One row of each of `size` equal stretches, at random; all rows if there are no more.

    Weighted rows are drawn systematically, each with chance ``min(1, weight / unit)``, and stand
    for a weight of ``unit`` at least; also returned are the weights (N,) that drawn ones stand for.
    """
    rows = np.arange(n_rows) if weights is None else np.flatnonzero(weights)
    if len(rows) <= size:
        return rows, weights
    rng = np.random.Generator(np.random.Philox(key=seed))
    if weights is None:
        ends = np.linspace(0, n_rows, size + 1).astype(np.int64)
        sample: NDArray[np.int64] = rng.integers(ends[:-1], ends[1:])
        return sample, None
    # With the j heaviest rows certain, the others share what is left of the sample.
    ascending = np.sort(weights[rows])
    left = np.cumsum(ascending)[: -size - 1 : -1]
    units = left / np.arange(size, 0, -1)
    unit = units[np.argmax(ascending[: -size - 1 : -1] <= units)]
    chances = np.cumsum(np.minimum(1.0, weights[rows] / unit))
    at = (np.arange(size) + rng.random()) * (chances[-1] / size)
    drawn = np.minimum(np.searchsorted(chances, at, side="right"), len(rows) - 1)
    return rows[drawn], np.maximum(weights, unit)


def _row(shards: Shards, i: int) -> NDArray[np.floating]:
    for shard in shards:
        if i < len(shard):
            row: NDArray[np.floating] = shard[i]
            return row
        i -= len(shard)
    raise IndexError(i)


def _take(shards: Shards, rows: NDArray[np.integer], metric: Metric) -> Float64:
    taken = np.array([_row(shards, int(i)) for i in rows], dtype=np.float64)
    factors = _factors([taken], metric)
    unit: Float64 = taken if factors is None else taken * factors[:, None]
    return unit


# ---- other questions to the same centres ---------------------------------------------------------


def nearest_centers(
    x: ArrayLike,
    centers: ArrayLike,
    count: int = 1,
    *,
    metric: Metric = "euclidean",
    n_threads: int | None = None,
) -> tuple[Labels, Float64]:
    """Find each row's `count` nearest centres.

    Returns
    -------
    indices : (N, count) int32
        Nearest first; ties go to the lowest index.
    distances : (N, count) float64
        Squared.

    Raises
    ------
    ValueError
        If `count` is not between 1 and K, or naming the first bad row or centre.
    """
    values = np.ascontiguousarray(centers, dtype=np.float64)
    if values.ndim != 2:
        raise ValueError(f"centers: shape {values.shape}, expected (K, D)")
    _check_finite("centers", values)
    if not 1 <= count <= len(values):
        raise ValueError(f"count={count}: expected 1 to {len(values)}, the number of centres")
    shards = _as_shards(x)
    measure(shards, n_threads=n_threads)  # for its complaints
    threads = _threads(n_threads)
    indices, distances = _core.nearest(
        list(shards), _factors(shards, metric), values, count, threads
    )
    return indices, distances


def _check_finite(name: str, centers: Float64) -> None:
    bad = np.flatnonzero(~np.isfinite(centers).all(axis=1))
    if len(bad):
        raise ValueError(f"{name}: row {bad[0]} contains NaN or infinity")


def simplified_silhouette(
    x: ArrayLike,
    centers: ArrayLike,
    *,
    metric: Metric = "euclidean",
    n_threads: int | None = None,
) -> Float64:
    """(b - a) / max(a, b) of each row: (N,) float64 in [0, 1].

    a is the distance to the nearest centre, b to the second nearest: O(NK), where the silhouette
    proper takes every pair of rows. 0 where both are 0.
    """
    _, squares = nearest_centers(x, centers, 2, metric=metric, n_threads=n_threads)
    a, b = np.sqrt(squares).T
    silhouette: Float64 = np.divide(b - a, b, out=np.zeros_like(b), where=b > 0)
    return silhouette


# ---- the estimator -------------------------------------------------------------------------------


def _as_shards(x: Any) -> Shards:
    """See x as a sequence of 2-D floating arrays of one dtype; copies only what must be."""
    many = isinstance(x, (list, tuple)) and len(x) > 0 and all(np.ndim(s) == 2 for s in x)
    shards = []
    for shard in x if many else [x]:
        if type(shard).__module__.startswith("scipy.sparse"):
            raise TypeError("sparse input is not supported: pass X.toarray()")
        array = np.asarray(shard)
        if np.iscomplexobj(array):
            raise ValueError("Complex data not supported: pass real numbers")
        if array.ndim != 2:
            raise ValueError(
                f"Expected 2D array, got {array.ndim}D array instead. Reshape your data: "
                "array.reshape(-1, 1) if it has one column, array.reshape(1, -1) if it is one row"
            )
        if array.dtype.kind != "f" or array.itemsize > 8 or not array.dtype.isnative:
            array = array.astype(np.float64)
        if array.shape[1] > 1 and array.strides[1] != array.itemsize:
            array = np.ascontiguousarray(array)
        shards.append(array)
    if len({s.shape[1] for s in shards}) > 1:
        raise ValueError(f"shards differ in width: {sorted({s.shape[1] for s in shards})} columns")
    if len({s.dtype for s in shards}) > 1:
        raise TypeError(f"shards differ in dtype: {sorted({str(s.dtype) for s in shards})}")
    return shards


# Work, in multiply-adds an iteration, from which a GPU pays for moving the rows there.
_CUDA_WORTH = 1e10


class KMeans:
    """Exact k-means (Lloyd) with scikit-learn's interface.

    Minimises ``sum_i w_i |x_i - c_label(i)|^2``. After every iteration the labels are those of a
    brute-force float64 argmin over the centres (`squared_distance` in ``pyids/distance.hpp``); ties
    go to the lowest index. The result is bitwise the same for any number of threads, for any cut
    into shards, and with or without `max_memory`.

    Parameters
    ----------
    n_clusters : int
        K.
    init : {"k-means++", "random"} or (K, D) array
        Where to start.
    n_init : int
        Number of starts; the lowest inertia wins, the first of equals.
    max_iter : int
        Iterations of a start at most.
    tol : float
        Stops when the sum of the squared distances that the centres moved is at most this times the
        mean variance of the columns; 0 goes on until nothing moves.
    metric : {"euclidean", "cosine"}
        ``cosine`` is spherical k-means: rows are seen at unit length (nothing is copied), centres
        are brought to unit length.
    random_state : int, numpy Generator or RandomState, or None
        Seeds the start. None draws one from the operating system.
    device : {"auto", "cpu", "cuda"}
        ``auto`` is ``cuda`` only where torch is already imported, has a device and the work is
        large, or where ``PYIDS_BACKEND`` is ``triton``; never for the cosine metric.
    n_threads : int or None
        None is one a core.
    max_memory : int or None
        Bytes that copies derived from the rows may take. The result does not depend on it.

    Attributes
    ----------
    cluster_centers_ : (K, D) float32, or float64 where X is
    labels_ : (N,) int32
    inertia_ : float
    n_iter_ : int
    n_features_in_ : int
    """

    _parameters = (
        "n_clusters", "init", "n_init", "max_iter", "tol", "metric", "random_state", "device",
        "n_threads", "max_memory",
    )  # fmt: skip

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        init: str | ArrayLike = "k-means++",
        n_init: int = 1,
        max_iter: int = 25,
        tol: float = 1e-4,
        metric: Metric = "euclidean",
        random_state: Any = 0,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        n_threads: int | None = None,
        max_memory: int | None = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.init = init
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.metric = metric
        self.random_state = random_state
        self.device = device
        self.n_threads = n_threads
        self.max_memory = max_memory

    # -- fitting --

    def fit(self, X: Any, y: Any = None, sample_weight: ArrayLike | None = None) -> Self:
        """Cluster the rows of X.

        Parameters
        ----------
        X : (N, D) array, memory map, or sequence of such arrays (shards) of one D and dtype
            float16, float32 or float64, rows contiguous, used in place. Anything else is copied to
            float64.
        y : ignored
        sample_weight : (N,) array or None
            Finite, >= 0, not all zero.

        Raises
        ------
        ValueError
            A parameter out of range, or the first bad row of X or of the weights, by name.
        """
        self._check_parameters()
        shards = self._rows(X, fitting=True)
        n_rows = sum(map(len, shards))
        if n_rows < self.n_clusters:
            raise ValueError(f"n_samples={n_rows} should be >= n_clusters={self.n_clusters}.")
        weights = _weights(sample_weight, n_rows)
        if weights is not None and not weights.any():
            raise ValueError("Sample weights must contain at least one non-zero number.")
        shared: dict[str, Any] = {
            "sample_weight": weights,
            "metric": self.metric,
            "n_threads": self.n_threads,
        }
        extent = measure(shards, **shared)
        dtype: Any = np.float64 if shards[0].dtype == np.float64 else np.float32
        seed, best = _seed(self.random_state), None
        for trial in range(self.n_init):
            centers = self._start(shards, extent, weights, (seed + trial) % 2**64).astype(dtype)
            if self._on_cuda(n_rows * centers.size):
                labels, fit = self._fit_cuda(shards, centers, weights, extent.weight_exponent())
            else:
                work = ShardPass(
                    shards, self.n_clusters, extent, max_memory=self.max_memory, **shared
                )
                fit = lloyd(
                    work,
                    centers.astype(np.float64),
                    extent,
                    max_iter=self.max_iter,
                    tol=self.tol,
                    metric=self.metric,
                    dtype=dtype,
                )
                labels = work.labels
            if best is None or fit.inertia < best.inertia:
                best, self.labels_ = fit, labels
        assert best is not None
        self.cluster_centers_ = best.centers.astype(dtype)
        self.inertia_, self.n_iter_ = best.inertia, best.n_iter
        self.n_features_in_ = shards[0].shape[1]
        return self

    def _start(
        self, shards: Shards, extent: Extent, weights: Float64 | None, seed: int
    ) -> NDArray[np.floating]:
        if isinstance(self.init, str):
            return seed_centers(
                shards,
                self.n_clusters,
                extent=extent,
                init=self.init,
                seed=seed,
                sample_weight=weights,
                metric=self.metric,
                n_threads=self.n_threads,
            )
        centers = np.array(self.init, dtype=np.float64)
        expected = (self.n_clusters, len(extent.largest))
        if centers.shape != expected:
            raise ValueError(f"init: shape {centers.shape}, expected (n_clusters, D) = {expected}")
        _check_finite("init", centers)
        return (
            centers
            if self.metric == "euclidean"
            else _take([centers], np.arange(len(centers)), "cosine")
        )

    def _on_cuda(self, work: int) -> bool:
        if self.device == "auto":
            if self.metric != "euclidean":
                return False
            forced = os.environ.get("PYIDS_BACKEND")
            if forced:  # as in pyids.ops
                return forced == "triton"
            torch = sys.modules.get("torch")
            return work >= _CUDA_WORTH and torch is not None and torch.cuda.is_available()
        return self.device == "cuda"

    def _fit_cuda(
        self,
        shards: Shards,
        centers: NDArray[np.floating],
        weights: Float64 | None,
        weight_exponent: int,
    ) -> tuple[Labels, Fit]:
        if self.metric == "cosine":
            raise ValueError("metric='cosine' runs on the CPU: pass device='cpu', or unit rows")
        cuda = import_module("pyids.kernels.lloyd")

        held = None if weights is None else np.ldexp(weights, -weight_exponent)
        labels, new, inertia, n_iter = cuda.fit(
            shards, centers, max_iter=self.max_iter, tol=self.tol, sample_weight=held
        )
        return labels, Fit(new, _ldexp(inertia, weight_exponent), n_iter)

    # -- using the centres --

    def fit_predict(self, X: Any, y: Any = None, sample_weight: ArrayLike | None = None) -> Labels:
        """Fit and return `labels_`."""
        return self.fit(X, sample_weight=sample_weight).labels_

    def fit_transform(
        self,
        X: Any,
        y: Any = None,
        sample_weight: ArrayLike | None = None,
    ) -> NDArray[np.floating]:
        """Fit and return `transform` of the same rows."""
        return self.fit(X, sample_weight=sample_weight).transform(X)

    def predict(self, X: Any) -> Labels:
        """Nearest centre of each row, (N,) int32; ties go to the lowest index."""
        work, centers = self._pass(X)
        work.assign(centers)
        return work.labels

    def transform(self, X: Any) -> NDArray[np.floating]:
        """Distance (not squared) of each row to each centre, (N, K), float64 where X is."""
        shards, centers = self._rows(X), self._centers()
        measure(shards, n_threads=self.n_threads)  # for its complaints
        threads = _threads(self.n_threads)
        factors = _factors(shards, self.metric)
        squares = _core.squared_distances(list(shards), factors, centers, threads)
        dtype = np.float64 if shards[0].dtype == np.float64 else np.float32
        distances: NDArray[np.floating] = np.sqrt(squares, out=squares).astype(dtype, copy=False)
        return distances

    def score(self, X: Any, y: Any = None, sample_weight: ArrayLike | None = None) -> float:
        """Minus the inertia of these rows about the centres."""
        work, centers = self._pass(X, sample_weight)
        work.assign(centers)
        return -_ldexp(work.inertia(), -work.extent.inertia_shift(centers))

    def _pass(self, x: Any, sample_weight: ArrayLike | None = None) -> tuple[ShardPass, Float64]:
        centers, shards = self._centers(), self._rows(x)
        shared: dict[str, Any] = {"sample_weight": sample_weight, "metric": self.metric}
        extent = measure(shards, n_threads=self.n_threads, **shared)
        work = ShardPass(
            shards,
            len(centers),
            extent,
            n_threads=self.n_threads,
            max_memory=self.max_memory,
            once=True,
            **shared,
        )
        return work, centers

    def _centers(self) -> Float64:
        if not hasattr(self, "cluster_centers_"):
            raise _not_fitted()(
                f"This {type(self).__name__} instance is not fitted yet: call fit first"
            )
        return self.cluster_centers_.astype(np.float64)

    def _rows(self, x: Any, *, fitting: bool = False) -> Shards:
        shards = _as_shards(x)
        name, width = type(self).__name__, shards[0].shape[1]
        if not sum(map(len, shards)):
            raise ValueError(f"Found array with 0 sample(s), a minimum of 1 is required by {name}.")
        if width == 0:
            raise ValueError(
                f"Found array with 0 feature(s) (shape={shards[0].shape}) while a minimum of 1 is "
                f"required by {name}."
            )
        if not fitting and width != self.n_features_in_:
            raise ValueError(
                f"X has {width} features, but {name} is expecting {self.n_features_in_} features "
                "as input"
            )
        return shards

    def _check_parameters(self) -> None:
        for name in ("n_clusters", "n_init", "max_iter"):
            value = getattr(self, name)
            if not isinstance(value, (int, np.integer)) or value < 1:
                raise ValueError(f"{name}={value!r}: expected an integer >= 1")
        if not self.tol >= 0:
            raise ValueError(f"tol={self.tol!r}: expected a number >= 0")
        choices = {"metric": ("euclidean", "cosine"), "device": ("auto", "cpu", "cuda")}
        if isinstance(self.init, str):
            choices["init"] = _INITS
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected one of {allowed}")
        _threads(self.n_threads)
        _memory(self.max_memory)

    # -- scikit-learn's protocol, without scikit-learn --

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {name: getattr(self, name) for name in self._parameters}

    def set_params(self, **params: Any) -> Self:
        """Set constructor arguments by name."""
        for name, value in params.items():
            if name not in self._parameters:
                raise ValueError(
                    f"Invalid parameter {name!r} for estimator {self}. Valid parameters are: "
                    f"{list(self._parameters)!r}."
                )
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.get_params().items())
        return f"{type(self).__name__}({shown})"

    def __sklearn_tags__(self) -> Any:
        """Describe the estimator to scikit-learn, which is the only caller."""
        from sklearn.utils import InputTags, Tags, TargetTags, TransformerTags

        return Tags(
            estimator_type="clusterer",
            target_tags=TargetTags(required=False),
            transformer_tags=TransformerTags(preserves_dtype=["float64", "float32"]),
            input_tags=InputTags(sparse=False),
        )


def _seed(random_state: Any) -> int:
    """Return a 63-bit seed from whatever scikit-learn takes as random_state."""
    if random_state is None:
        return secrets.randbits(63)
    if isinstance(random_state, np.random.Generator):
        return int(random_state.integers(2**63))
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(2**31))
    return checks.unsigned_seed(random_state)


def _not_fitted() -> type[Exception]:
    """scikit-learn's own error where scikit-learn is in use, else one of the same kin."""
    if "sklearn" in sys.modules:
        from sklearn.exceptions import NotFittedError

        error: type[Exception] = NotFittedError
        return error
    return ValueError
