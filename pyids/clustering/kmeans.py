"""Exact k-means: Lloyd's algorithm with the same result for any threads, shards and workers.

Two faces. `KMeans` is an estimator as scikit-learn's, over an array, a memory map or a sequence
of shards. Underneath, `measure`, `assign_partial` and `finish_update` (``lloyd.py``) are one Lloyd
iteration cut where it may be spread: a worker sees one shard, what it returns adds up in any
grouping, and `lloyd` drives either.

Two things make the result independent of how the rows were grouped. A label is the nearest center
by one canonical float64 distance (``pyids/distance.hpp``), ties to the lowest index, whatever
pruning came before. And sums are integers: each row is scaled by a power of two chosen from the
columns' largest values, and rounded once (`Extent.scale`).
"""

from __future__ import annotations

import os
import sys
import warnings
from importlib import import_module
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyids import _core
from pyids._typing import Float64
from pyids.clustering.estimator import Estimator, not_fitted_error, seed_of
from pyids.clustering.extent import (
    Extent,
    Labels,
    Metric,
    Shards,
    as_shards,
    check_finite,
    checked_weights,
    measure,
    memory_limit,
    scale_by_power,
    scale_factors,
    take_positions,
    thread_count,
)
from pyids.clustering.lloyd import Fit, ShardPass, lloyd
from pyids.clustering.seeding import INITS, seed_centers, spread_sample
from pyids.clustering.two_level import two_level_centers
from pyids.neighbors import take_rows

# Work, in multiply-adds an iteration, from which a GPU pays for moving the rows there.
_CUDA_WORTH = 1e10
# Work from which a fit looks at a sample of the rows and goes by two levels, unless told not to.
_LARGE_WORK = 1e12
_SAMPLE_ROWS_PER_CLUSTER = 256
_TWO_LEVEL_CLUSTERS = 1024
# Iterations over all clusters that follow the two levels: a third of `max_iter`.
_REFINING = 3


class KMeans(Estimator):
    """Exact k-means (Lloyd) with scikit-learn's interface.

    Minimizes ``sum_i w_i |x_i - c_label(i)|^2``. After every iteration the labels are those of a
    brute-force float64 argmin over the centers (`squared_distance` in ``pyids/distance.hpp``); ties
    go to the lowest index. The result is bitwise the same for any number of threads, for any cut
    into shards, and with or without `max_memory`.

    Parameters
    ----------
    n_clusters : int
        K.
    init : {"k-means++", "random"} or (K, D) array
        Where to start.
    n_init : int or "auto"
        Number of starts; the lowest inertia wins, the first of equals. ``auto`` is 1.
    max_iter : int
        Iterations of a start at most.
    tol : float
        Stops when the sum of the squared distances that the centers moved is at most this times the
        mean variance of the columns; 0 goes on until nothing moves.
    metric : {"euclidean", "cosine"}
        ``cosine`` is spherical k-means: rows are seen at unit length (nothing is copied), centers
        are brought to unit length.
    random_state : int, numpy Generator or RandomState, or None
        Seeds the start. None draws one from the operating system.
    device : {"auto", "cpu", "cuda"}
        ``auto`` is ``cuda`` only where torch is already imported, has a device and the work is
        large, or where ``PYIDS_BACKEND`` is ``triton``; never for the cosine metric.
    n_threads : int or None
        None is one a core.
    max_memory : int or None
        Bytes that a fit may take beside the least: 60 a row, about 50 a value of the centers, and
        16 MB for the threads. Where it is little, codes of the rows are made anew in each
        iteration, and fewer threads are started. The result does not depend on it.
    algorithm : {"auto", "lloyd", "two-level"}
        ``lloyd`` iterates over all clusters, `max_iter` times at most. ``two-level`` finds about
        sqrt(K) coarse clusters, divides each, and then iterates over all clusters ``max_iter // 3``
        times (at least once). ``auto`` is ``two-level`` where K is at least 1,024, no centers are
        given and N K D, of the rows fitted, is above 1e12.
    rows_per_cluster : int, "auto" or None
        Fit on a sample of so many rows a cluster, drawn by the seed; None: on all rows. ``auto`` is
        256 where N K D is above 1e12, else None. Labels and inertia are those of all rows about the
        centers found, exactly, in any case.

    Attributes
    ----------
    cluster_centers_ : (K, D) float32, or float64 where X is
    labels_ : (N,) int32
    inertia_ : float
    n_iter_ : int
    n_features_in_ : int
    feature_names_in_ : (D,) object array, where X is a data frame with names of columns
    """

    _parameters = (
        "n_clusters", "init", "n_init", "max_iter", "tol", "metric", "random_state", "device",
        "n_threads", "max_memory", "algorithm", "rows_per_cluster",
    )  # fmt: skip

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        init: str | ArrayLike = "k-means++",
        n_init: int | Literal["auto"] = 1,
        max_iter: int = 25,
        tol: float = 1e-4,
        metric: Metric = "euclidean",
        random_state: Any = 0,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        n_threads: int | None = None,
        max_memory: int | None = None,
        algorithm: Literal["auto", "lloyd", "two-level"] = "auto",
        rows_per_cluster: int | Literal["auto"] | None = "auto",
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
        self.algorithm = algorithm
        self.rows_per_cluster = rows_per_cluster

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
        weights = checked_weights(sample_weight, n_rows)
        if weights is not None and not weights.any():
            raise ValueError("Sample weights must contain at least one non-zero number.")
        extent = measure(
            shards, sample_weight=weights, metric=self.metric, n_threads=self.n_threads
        )
        dtype: Any = np.float64 if shards[0].dtype == np.float64 else np.float32
        seed, best = seed_of(self.random_state), None
        for trial in range(1 if self.n_init == "auto" else self.n_init):
            labels, fit = self._fit_once(shards, extent, weights, (seed + trial) % 2**64, dtype)
            if best is None or fit.inertia < best.inertia:
                best, self.labels_ = fit, labels
        assert best is not None
        self.cluster_centers_ = best.centers.astype(dtype)
        self.inertia_, self.n_iter_ = best.inertia, best.n_iter
        self.n_features_in_ = shards[0].shape[1]
        self._remember_names(X)
        self._warn_of_few_clusters()
        return self

    def _fit_once(
        self, shards: Shards, extent: Extent, weights: Float64 | None, seed: int, dtype: Any
    ) -> tuple[Labels, Fit]:
        """Fit from one seed; labels and inertia are those of all rows."""
        n_rows = sum(map(len, shards))
        some, some_weights = self._sample(shards, weights, seed)
        sampled = some is not shards
        few = extent
        if sampled:
            few = measure(
                some, sample_weight=some_weights, metric=self.metric, n_threads=self.n_threads
            )
        two_level = self._by_two_levels(sum(map(len, some)), len(extent.largest))
        start = self._start(some, few, some_weights, seed, dtype, two_level=two_level)
        if self.runs_on_cuda(n_rows * start.size):
            labels, fit = self._fit_cuda(some, start.astype(dtype), some_weights, few)
            if not sampled:
                return labels, fit
        else:
            work = self._work(some, few, some_weights)
            fit = lloyd(
                work,
                start.astype(dtype).astype(np.float64),
                few,
                max_iter=max(1, self.max_iter // _REFINING) if two_level else self.max_iter,
                tol=self.tol,
                metric=self.metric,
                dtype=dtype,
            )
            if not sampled:
                return work.labels, fit
        work = self._work(shards, extent, weights, once=True)
        work.assign(fit.centers)
        inertia = scale_by_power(work.inertia(), -extent.inertia_shift(fit.centers))
        return work.labels, Fit(fit.centers, inertia, fit.n_iter)

    def _work(
        self, shards: Shards, extent: Extent, weights: ArrayLike | None, *, once: bool = False
    ) -> ShardPass:
        return ShardPass(
            shards,
            self.n_clusters,
            extent,
            sample_weight=weights,
            metric=self.metric,
            n_threads=self.n_threads,
            max_memory=self.max_memory,
            once=once,
        )

    def _sample(
        self, shards: Shards, weights: Float64 | None, seed: int
    ) -> tuple[Shards, Float64 | None]:
        """Return the rows to fit, and their weights: all of them unless they are many."""
        n_rows, per_cluster = sum(map(len, shards)), self.rows_per_cluster
        if per_cluster == "auto":
            large = n_rows * self.n_clusters * shards[0].shape[1] > _LARGE_WORK
            per_cluster = _SAMPLE_ROWS_PER_CLUSTER if large else None
        if per_cluster is None or n_rows <= per_cluster * self.n_clusters:
            return shards, weights
        sample, held = spread_sample(n_rows, per_cluster * self.n_clusters, seed, weights)
        sample = np.sort(sample)
        return [take_rows(shards, sample)], None if held is None else held[sample]

    def _by_two_levels(self, n_rows: int, width: int) -> bool:
        if self.algorithm != "auto":
            return self.algorithm == "two-level"
        large = n_rows * self.n_clusters * width > _LARGE_WORK
        return large and self.n_clusters >= _TWO_LEVEL_CLUSTERS and isinstance(self.init, str)

    def _warn_of_few_clusters(self) -> None:
        distinct = int(np.count_nonzero(np.bincount(self.labels_, minlength=self.n_clusters)))
        if distinct < self.n_clusters:
            category: type[Warning] = UserWarning
            if "sklearn" in sys.modules:
                from sklearn.exceptions import ConvergenceWarning

                category = ConvergenceWarning
            warnings.warn(
                f"Number of distinct clusters ({distinct}) found smaller than n_clusters "
                f"({self.n_clusters}). Possibly due to duplicate points in X.",
                category,
                stacklevel=3,
            )

    def _start(
        self,
        shards: Shards,
        extent: Extent,
        weights: Float64 | None,
        seed: int,
        dtype: Any,
        *,
        two_level: bool,
    ) -> NDArray[np.floating]:
        if two_level and isinstance(self.init, str):
            return two_level_centers(
                shards,
                self.n_clusters,
                extent=extent,
                seed=seed,
                sample_weight=weights,
                metric=self.metric,
                dtype=dtype,
                n_threads=self.n_threads,
                max_memory=self.max_memory,
            )
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
                max_memory=self.max_memory,
            )
        centers = np.array(self.init, dtype=np.float64)
        if centers.shape != (expected := (self.n_clusters, len(extent.largest))):
            raise ValueError(f"init: shape {centers.shape}, expected (n_clusters, D) = {expected}")
        check_finite("init", centers)
        if self.metric == "euclidean":
            return centers
        return take_positions([centers], np.arange(len(centers)), "cosine")

    def runs_on_cuda(self, work: int) -> bool:
        """Whether a fit of so many multiply-adds an iteration runs on a GPU."""
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
        extent: Extent,
    ) -> tuple[Labels, Fit]:
        if self.metric == "cosine":
            raise ValueError("metric='cosine' runs on the CPU: pass device='cpu', or unit rows")
        cuda = import_module("pyids.kernels.lloyd")
        weight_exponent = extent.weight_exponent()
        held = None if weights is None else np.ldexp(weights, -weight_exponent)
        labels, new, inertia, n_iter = cuda.fit(
            shards, centers, max_iter=self.max_iter, tol=self.tol, sample_weight=held
        )
        return labels, Fit(new, scale_by_power(inertia, weight_exponent), n_iter)

    # -- using the centers --

    def fit_predict(self, X: Any, y: Any = None, sample_weight: ArrayLike | None = None) -> Labels:
        """Fit and return `labels_`."""
        return self.fit(X, sample_weight=sample_weight).labels_

    def fit_transform(
        self,
        X: Any,
        y: Any = None,
        sample_weight: ArrayLike | None = None,
    ) -> Any:
        """Fit and return `transform` of the same rows."""
        return self.fit(X, sample_weight=sample_weight).transform(X)

    def predict(self, X: Any) -> Labels:
        """Nearest center of each row, (N,) int32; ties go to the lowest index."""
        work, centers = self._pass(X)
        work.assign(centers)
        return work.labels

    def transform(self, X: Any) -> Any:
        """Distance (not squared) of each row to each center, (N, K), float64 where X is."""
        shards, centers = self._rows(X), self._centers()
        measure(shards, n_threads=self.n_threads)  # for its complaints
        threads = thread_count(self.n_threads)
        factors = scale_factors(shards, self.metric)
        squares = _core.squared_distances(list(shards), factors, centers, threads)
        dtype = np.float64 if shards[0].dtype == np.float64 else np.float32
        distances: NDArray[np.floating] = np.sqrt(squares, out=squares).astype(dtype, copy=False)
        return self._output(distances, X)

    def score(self, X: Any, y: Any = None, sample_weight: ArrayLike | None = None) -> float:
        """Minus the inertia of these rows about the centers."""
        work, centers = self._pass(X, sample_weight)
        work.assign(centers)
        return -scale_by_power(work.inertia(), -work.extent.inertia_shift(centers))

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
            raise not_fitted_error()(
                f"This {type(self).__name__} instance is not fitted yet: call fit first"
            )
        return self.cluster_centers_.astype(np.float64)

    def _rows(self, x: Any, *, fitting: bool = False) -> Shards:
        shards = as_shards(x)
        name, width = type(self).__name__, shards[0].shape[1]
        if not sum(map(len, shards)):
            raise ValueError(f"Found array with 0 sample(s), a minimum of 1 is required by {name}.")
        if width == 0:
            raise ValueError(
                f"Found array with 0 feature(s) (shape={shards[0].shape}) while a minimum of 1 is "
                f"required by {name}."
            )
        if not fitting:
            self._compare_names(x)
        if not fitting and width != self.n_features_in_:
            raise ValueError(
                f"X has {width} features, but {name} is expecting {self.n_features_in_} features "
                "as input"
            )
        return shards

    def _check_parameters(self) -> None:
        for name in ("n_clusters", "n_init", "max_iter", "rows_per_cluster"):
            value = getattr(self, name)
            if (name == "n_init" and value == "auto") or (
                name == "rows_per_cluster" and (value is None or value == "auto")
            ):
                continue
            whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
            if not whole or value < 1:
                raise ValueError(f"{name}={value!r}: expected an integer >= 1")
        if not isinstance(self.tol, (int, float, np.number)) or not self.tol >= 0:
            raise ValueError(f"tol={self.tol!r}: expected a number >= 0")
        choices = {"metric": ("euclidean", "cosine"), "device": ("auto", "cpu", "cuda")}
        choices["algorithm"] = ("auto", "lloyd", "two-level")
        if isinstance(self.init, str):
            choices["init"] = INITS
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected one of {allowed}")
        thread_count(self.n_threads)
        memory_limit(self.max_memory)

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:
        """Names of the columns of `transform`: kmeans0, kmeans1, ..."""
        name = type(self).__name__.lower()
        return np.array([f"{name}{j}" for j in range(len(self._centers()))], dtype=object)
