"""Exact Lloyd iterations: shards of rows to partial sums, and those to the next centers."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyids import _core, checks
from pyids._typing import Float64

Labels: TypeAlias = NDArray[np.int32]


Metric: TypeAlias = Literal["euclidean", "cosine"]


Shards: TypeAlias = Sequence[NDArray[np.floating]]


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


def scale_factors(shards: Shards, metric: Metric) -> Float64 | None:
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


def checked_weights(sample_weight: ArrayLike | None, n_rows: int) -> Float64 | None:
    """Check the weights of rows, (N,) finite and not negative; None: all are 1."""
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


def in_units(weights: Float64 | None, n_rows: int, exponent: int) -> Float64 | None:
    """Return the weights times 2^-exponent; rows without any weigh 1."""
    if exponent == 0:
        return weights
    held: Float64 = np.ldexp(np.ones(n_rows) if weights is None else weights, -exponent)
    return held


def scale_by_power(value: float, exponent: int) -> float:
    """As `math.ldexp`, but infinity where float64 ends."""
    try:
        return math.ldexp(value, exponent)
    except OverflowError:
        return math.inf


def thread_count(n_threads: int | None) -> int:
    """Return the number of threads that are meant: None is one per core."""
    threads: int = _core.resolve_threads(checks.threads(n_threads))
    return threads


def memory_limit(max_memory: int | None) -> int:
    """Return the bytes that may be taken beyond the rows; None: no limit."""
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
    shards = as_shards(shard)
    n_rows = sum(map(len, shards))
    weights = checked_weights(sample_weight, n_rows)
    threads = thread_count(n_threads)
    largest = _core.largest_values(list(shards), None, threads)
    if metric == "cosine":
        largest = np.ones_like(largest)
    return Extent(largest, 1.0 if weights is None else float(weights.max(initial=0)), n_rows)


class ShardPass:
    """The rows of one worker: labels and sums, brought up to date with any centers.

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
        self._shards = as_shards(shard)
        self.extent = extent
        self._scale = extent.scale()
        n_rows = sum(map(len, self._shards))
        weights = checked_weights(sample_weight, n_rows)
        self._weights = in_units(weights, n_rows, extent.weight_exponent())
        self._factors = scale_factors(self._shards, metric)
        self._core = _core.Assigner(
            list(self._shards),
            self._factors,
            self._weights,
            self._scale,
            n_clusters,
            thread_count(n_threads),
            memory_limit(max_memory),
            not once,
        )
        self._centers: Float64 | None = None

    @property
    def labels(self) -> Labels:
        """Nearest center of each row, (N,) int32; ties go to the lowest index."""
        labels: Labels = self._core.labels
        return labels

    def assign(self, centers: Float64) -> Partial:
        """Label every row and return the sums by cluster, which the next call overwrites."""
        self._centers = centers
        self._core.assign(centers)
        return Partial(self._core.sums, self._core.mass)

    def inertia(self) -> int:
        """Weighted squared distances to the own centers, in units of 2^-extent.inertia_shift."""
        assert self._centers is not None
        shift = self.extent.inertia_shift(self._centers) + self.extent.weight_exponent()
        return int(self._core.inertia(shift))

    def farthest(self, count: int, first_row: int = 0) -> list[FarRow]:
        """Return the `count` rows with mass farthest from their centers.

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
    """Label one shard's rows with their nearest centers and sum them up, in one call.

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
    """Turn the sums of all shards into the next centers.

    A cluster without weight takes, as its center, the farthest row that is left in `far` (all
    shards' candidates): the row leaves its own cluster, whose last one it must not be. Clusters are
    served by index. Without a fitting row the center stays where it is.

    Returns
    -------
    centers : (K, D) float64
        Rounded to `dtype` (float32, unless the data are float64).
    moved : float
        Sum of the squared distances between old and new centers.
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
        """At least the `count` rows with mass farthest from their centers."""


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
    """Iterate until the centers move by no more than `tol` or `max_iter` is reached.

    `tol` is relative to the mean variance of the columns (weighted, if the rows are), and bounds
    the sum of the squared distances moved, as scikit-learn's. The labels that the pass is left with
    are those of the centers returned.
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
    inertia = scale_by_power(work.inertia(), -extent.inertia_shift(centers))
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
    scatter = scale_by_power(inertia, -shift) + between
    return float(max(0.0, scatter / total / centers.shape[1]))


def _row(shards: Shards, i: int) -> NDArray[np.floating]:
    for shard in shards:
        if i < len(shard):
            row: NDArray[np.floating] = shard[i]
            return row
        i -= len(shard)
    raise IndexError(i)


def take_positions(shards: Shards, rows: NDArray[np.integer], metric: Metric) -> Float64:
    """Copy rows by their positions over all shards, float64, of unit length under the cosine."""
    taken = np.array([_row(shards, int(i)) for i in rows], dtype=np.float64)
    factors = scale_factors([taken], metric)
    unit: Float64 = taken if factors is None else taken * factors[:, None]
    return unit


def check_finite(name: str, centers: Float64) -> None:
    """Refuse centers with a NaN or an infinity; the message names the first."""
    bad = np.flatnonzero(~np.isfinite(centers).all(axis=1))
    if len(bad):
        raise ValueError(f"{name}: row {bad[0]} contains NaN or infinity")


# ---- the estimator -------------------------------------------------------------------------------


def as_shards(x: Any) -> Shards:
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
