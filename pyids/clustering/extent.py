"""What k-means is given, checked: shards of rows, weights, threads, and the extent of all rows."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyids import _core, checks
from pyids._typing import Float64

Labels: TypeAlias = NDArray[np.int32]
Metric: TypeAlias = Literal["euclidean", "cosine"]
Shards: TypeAlias = Sequence[NDArray[np.floating]]


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
    weight_exponents : frozenset of int
        The exponents e of the weights that are not zero, ``2**(e - 1) <= weight < 2**e``.
    """

    largest: Float64
    largest_weight: float
    n_rows: int
    weight_exponents: frozenset[int] = frozenset({1})

    def merge(self, other: Extent) -> Extent:
        """Return the extent of both sets of rows together."""
        return Extent(
            np.maximum(self.largest, other.largest),
            max(self.largest_weight, other.largest_weight),
            self.n_rows + other.n_rows,
            self.weight_exponents | other.weight_exponents,
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
        of its column's largest value. Where weights differ by more than these integers can bear,
        they are summed in classes (`weight_classes`), and what rounding takes is summed as well; a
        mean is then off by at most ``2**-49`` of its column's largest value, whatever the weights.
        """
        exponent = self.weight_exponent()
        classes = [top - exponent for top in self.weight_classes()]
        return _core.FixedScale(self.largest, self._largest_weight_held(), self.n_rows, classes)

    def weight_classes(self) -> list[int]:
        """Return the largest exponent of each class of weights, descending; [] where one will do.

        A class holds weights that differ by less than 2^(68 - 2 log2 N), as `scale` needs.
        """
        exponents = sorted(self.weight_exponents, reverse=True)
        bits = (max(2**11, self.n_rows) - 1).bit_length()
        if not exponents or exponents[0] - exponents[-1] + bits <= 20 or len(exponents) == 1:
            return []
        tops = exponents[:1]
        for exponent in exponents:
            if tops[-1] - exponent >= max(1, 67 - 2 * bits):
                tops.append(exponent)
        return tops

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


def in_classes(
    weights: Float64 | None, n_rows: int, tops: list[int]
) -> tuple[Float64 | None, NDArray[np.uint16] | None]:
    """Return each weight in units of 2^(its class's exponent), and its class."""
    if not tops:
        return None, None
    given = np.ones(n_rows) if weights is None else weights
    exponents = np.frexp(given)[1]
    # Zeros, whose exponent is 0, may be in any class.
    classes = np.searchsorted(-np.asarray(tops), -exponents, side="right") - 1
    classes = np.where(given > 0, classes, 0)
    return np.ldexp(given, -np.asarray(tops)[classes]), classes.astype(np.uint16)


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
    if weights is None:
        return Extent(largest, 1.0, n_rows)
    exponents = np.unique(np.frexp(weights[weights > 0])[1])
    return Extent(largest, float(weights.max(initial=0)), n_rows, frozenset(exponents.tolist()))


def row_at(shards: Shards, i: int) -> NDArray[np.floating]:
    """Return row i of all shards."""
    for shard in shards:
        if i < len(shard):
            row: NDArray[np.floating] = shard[i]
            return row
        i -= len(shard)
    raise IndexError(i)


def take_positions(shards: Shards, rows: NDArray[np.integer], metric: Metric) -> Float64:
    """Copy rows by their positions over all shards, float64, of unit length under the cosine."""
    taken = np.array([row_at(shards, int(i)) for i in rows], dtype=np.float64)
    factors = scale_factors([taken], metric)
    unit: Float64 = taken if factors is None else taken * factors[:, None]
    return unit


def check_finite(name: str, centers: Float64) -> None:
    """Refuse centers with a NaN or an infinity; the message names the first."""
    bad = np.flatnonzero(~np.isfinite(centers).all(axis=1))
    if len(bad):
        raise ValueError(f"{name}: row {bad[0]} contains NaN or infinity")


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
        if array.dtype.kind != "f" or array.itemsize > 8:
            array = array.astype(np.float64)
        elif not array.dtype.isnative:
            array = array.astype(array.dtype.newbyteorder("="))
        if array.shape[1] > 1 and array.strides[1] != array.itemsize:
            array = np.ascontiguousarray(array)
        shards.append(array)
    if len({s.shape[1] for s in shards}) > 1:
        raise ValueError(f"shards differ in width: {sorted({s.shape[1] for s in shards})} columns")
    if len({s.dtype for s in shards}) > 1:
        raise TypeError(f"shards differ in dtype: {sorted({str(s.dtype) for s in shards})}")
    return shards
