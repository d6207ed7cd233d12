"""Exact k-means: Lloyd's algorithm with the same result for any threads, shards and workers.

Two faces. `KMeans` is an estimator as scikit-learn's, over an array, a memory map or a sequence
of shards. Underneath, `measure`, `assign_partial` and `finish_update` are one Lloyd iteration cut
where it may be spread: a worker sees one shard, what it returns adds up in any grouping, and
`lloyd` drives either.

Two things make the result independent of how the rows were grouped. A label is the nearest center
by one canonical float64 distance (``pyids/distance.hpp``), ties to the lowest index, whatever
pruning came before. And sums are integers: each row is scaled by a power of two chosen from the
columns' largest values, and rounded once (`Extent.scale`).
"""

from __future__ import annotations

import os
import secrets
import sys
from importlib import import_module
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyids import _core, checks
from pyids._typing import Float64
from pyids.clustering.lloyd import (
    Extent,
    Fit,
    Labels,
    Metric,
    ShardPass,
    Shards,
    as_shards,
    check_finite,
    checked_weights,
    lloyd,
    measure,
    memory_limit,
    scale_by_power,
    scale_factors,
    take_positions,
    thread_count,
)
from pyids.clustering.seeding import INITS, seed_centers

# ---- other questions to the same centers ---------------------------------------------------------


def nearest_centers(
    x: ArrayLike,
    centers: ArrayLike,
    count: int = 1,
    *,
    metric: Metric = "euclidean",
    n_threads: int | None = None,
) -> tuple[Labels, Float64]:
    """Find each row's `count` nearest centers.

    Returns
    -------
    indices : (N, count) int32
        Nearest first; ties go to the lowest index.
    distances : (N, count) float64
        Squared.

    Raises
    ------
    ValueError
        If `count` is not between 1 and K, or naming the first bad row or center.
    """
    values = np.ascontiguousarray(centers, dtype=np.float64)
    if values.ndim != 2:
        raise ValueError(f"centers: shape {values.shape}, expected (K, D)")
    check_finite("centers", values)
    if not 1 <= count <= len(values):
        raise ValueError(f"count={count}: expected 1 to {len(values)}, the number of centers")
    shards = as_shards(x)
    measure(shards, n_threads=n_threads)  # for its complaints
    threads = thread_count(n_threads)
    indices, distances = _core.nearest(
        list(shards), scale_factors(shards, metric), values, count, threads
    )
    return indices, distances


def simplified_silhouette(
    x: ArrayLike,
    centers: ArrayLike,
    *,
    metric: Metric = "euclidean",
    n_threads: int | None = None,
) -> Float64:
    """(b - a) / max(a, b) of each row: (N,) float64 in [0, 1].

    a is the distance to the nearest center, b to the second nearest: O(NK), where the silhouette
    proper takes every pair of rows. 0 where both are 0.
    """
    _, squares = nearest_centers(x, centers, 2, metric=metric, n_threads=n_threads)
    a, b = np.sqrt(squares).T
    silhouette: Float64 = np.divide(b - a, b, out=np.zeros_like(b), where=b > 0)
    return silhouette


# Work, in multiply-adds an iteration, from which a GPU pays for moving the rows there.
_CUDA_WORTH = 1e10


class KMeans:
    """Exact k-means (Lloyd) with scikit-learn's interface.

    Minimises ``sum_i w_i |x_i - c_label(i)|^2``. After every iteration the labels are those of a
    brute-force float64 argmin over the centers (`squared_distance` in ``pyids/distance.hpp``); ties
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
        weights = checked_weights(sample_weight, n_rows)
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
        check_finite("init", centers)
        return (
            centers
            if self.metric == "euclidean"
            else take_positions([centers], np.arange(len(centers)), "cosine")
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
    ) -> NDArray[np.floating]:
        """Fit and return `transform` of the same rows."""
        return self.fit(X, sample_weight=sample_weight).transform(X)

    def predict(self, X: Any) -> Labels:
        """Nearest center of each row, (N,) int32; ties go to the lowest index."""
        work, centers = self._pass(X)
        work.assign(centers)
        return work.labels

    def transform(self, X: Any) -> NDArray[np.floating]:
        """Distance (not squared) of each row to each center, (N, K), float64 where X is."""
        shards, centers = self._rows(X), self._centers()
        measure(shards, n_threads=self.n_threads)  # for its complaints
        threads = thread_count(self.n_threads)
        factors = scale_factors(shards, self.metric)
        squares = _core.squared_distances(list(shards), factors, centers, threads)
        dtype = np.float64 if shards[0].dtype == np.float64 else np.float32
        distances: NDArray[np.floating] = np.sqrt(squares, out=squares).astype(dtype, copy=False)
        return distances

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
            raise _not_fitted()(
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
            choices["init"] = INITS
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected one of {allowed}")
        thread_count(self.n_threads)
        memory_limit(self.max_memory)

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
