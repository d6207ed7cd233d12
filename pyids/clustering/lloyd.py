"""Exact Lloyd iterations: shards of rows to partial sums, and those to the next centers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyids import _core
from pyids._typing import Float64
from pyids.clustering.extent import (
    Extent,
    Labels,
    Metric,
    as_shards,
    checked_weights,
    in_classes,
    in_units,
    measure,
    memory_limit,
    row_at,
    scale_by_power,
    scale_factors,
    thread_count,
)
from pyids.progress import report

__all__ = [
    "Extent",
    "Fit",
    "Partial",
    "Pass",
    "ShardPass",
    "assign_partial",
    "finish_update",
    "lloyd",
    "measure",
]

# ---- one iteration, cut where it may be spread ---------------------------------------------------


@dataclass(frozen=True)
class Partial:
    """Integer sums over some rows, by cluster; they add up in any order to the same bits.

    Attributes
    ----------
    sums : (K, D) int64
        Sum of the weighted rows in units of ``1 / scale.columns``. Where weights lie so far apart
        that they are summed in classes, (P, K, D): see ``pyids/fixed.hpp``.
    mass : (K,) or (P, K) int64
        Sum of the weights in units of ``1 / scale.mass``. Weights count in units of
        ``2**extent.weight_exponent()``, here as in `sums`.
    """

    sums: NDArray[np.int64]
    mass: NDArray[np.int64]

    def __add__(self, other: Partial) -> Partial:
        return Partial(self.sums + other.sums, self.mass + other.mass)

    def empty(self) -> NDArray[np.bool_]:
        """Return which clusters have no weight at all, (K,)."""
        nothing: NDArray[np.bool_] = (self.mass == 0).reshape(-1, self.mass.shape[-1]).all(axis=0)
        return nothing


class FarRow(NamedTuple):
    """A row that may re-seed an empty cluster; sorts farthest first, then by row."""

    negative_distance: float
    row: int
    label: int
    sums: NDArray[np.int64]
    mass: Any


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
        self._in_class, self._classes = in_classes(weights, n_rows, extent.weight_classes())
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
            self._in_class,
            self._classes,
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
            row = row_at(self._shards, i).astype(np.float64) * factor
            in_class = 0
            if self._in_class is not None and self._classes is not None:
                weight, in_class = float(self._in_class[i]), int(self._classes[i])
            sums, mass = self._scale.row(row, weight, in_class)
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
    empty = np.flatnonzero(partial.empty())
    if len(empty) and far:
        sums, mass = sums.copy(), mass.copy()
        waiting = list(empty[::-1])
        for row in sorted(far, key=lambda row: row[:2]):
            if not waiting or row.negative_distance == 0:
                break
            # Weights are positive: a cluster of the row's mass has no other row.
            if np.all(np.equal(row.mass, 0)) or np.all(mass[..., row.label] == row.mass):
                continue
            target = waiting.pop()
            sums[..., row.label, :] -= row.sums
            mass[..., row.label] -= row.mass
            sums[..., target, :], mass[..., target] = row.sums, row.mass
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
        report("k-means", n_iter, max_iter, "iterations")
        n_iter += 1
        partial = work.assign(centers)
        if limit is None:
            limit = tol * _mean_variance(partial, centers, extent, work.inertia()) if tol else 0.0
        n_empty = int(partial.empty().sum())
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
    report("k-means", max_iter, max_iter, "iterations")
    inertia = scale_by_power(work.inertia(), -extent.inertia_shift(centers))
    return Fit(centers, inertia, n_iter)


def _mean_variance(partial: Partial, centers: Float64, extent: Extent, inertia: int) -> float:
    """Mean over the columns of the variance of all rows, from the sums about `centers`.

    sum |x - m|^2 = sum |x - c|^2 + sum_j (2 (S_j - n_j c_j) + n_j (c_j - m)) . (c_j - m)
    """
    scale = extent.scale()
    sums, mass = scale.combine(partial.sums, partial.mass)
    total = mass.sum()
    if total == 0:
        return 0.0
    apart = centers - sums.sum(axis=0) / total
    n = mass[:, None]
    between = ((2 * (sums - n * centers) + n * apart) * apart).sum()
    shift = extent.inertia_shift(centers) + extent.weight_exponent()
    scatter = scale_by_power(inertia, -shift) + between
    return float(max(0.0, scatter / total / centers.shape[1]))
