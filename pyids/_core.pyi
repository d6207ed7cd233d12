"""The C++ core (csrc/bindings): what `pyids.clustering`, `pyids.sampling` and others call."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, SupportsFloat, SupportsIndex, SupportsInt

import numpy as np
from numpy.typing import ArrayLike, NDArray

class FixedScale:
    def __init__(
        self,
        largest: ArrayLike,
        largest_weight: SupportsFloat | SupportsIndex,
        n_rows: SupportsInt | SupportsIndex,
        classes: Sequence[SupportsInt | SupportsIndex] = [],
    ) -> None: ...
    def combine(
        self, sums: ArrayLike, mass: ArrayLike
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]: ...
    def row(
        self,
        row: ArrayLike,
        weight: SupportsFloat | SupportsIndex,
        in_class: SupportsInt | SupportsIndex,
    ) -> tuple[Any, ...]: ...
    @property
    def columns(self) -> NDArray[np.float64]: ...
    @property
    def mass(self) -> float: ...
    @property
    def n_planes(self) -> int: ...

class Assigner:
    def __init__(
        self,
        shards: Sequence[NDArray[Any]],
        factors: ArrayLike | None,
        weights: ArrayLike | None,
        scale: FixedScale,
        n_clusters: SupportsInt | SupportsIndex,
        n_threads: SupportsInt | SupportsIndex,
        max_memory_bytes: SupportsInt | SupportsIndex,
        keep_codes: bool,
        in_class: ArrayLike | None = None,
        classes: ArrayLike | None = None,
    ) -> None: ...
    def assign(self, centers: ArrayLike) -> int: ...
    def farthest(self, arg0: SupportsInt | SupportsIndex) -> list[tuple[float, int]]: ...
    def inertia(self, arg0: SupportsInt | SupportsIndex) -> int: ...
    @property
    def labels(self) -> NDArray[np.int32]: ...
    @property
    def mass(self) -> NDArray[np.int64]: ...
    @property
    def sums(self) -> NDArray[np.int64]: ...

class TokenMeans:
    def __init__(
        self,
        vectors: NDArray[np.float32],
        tokenize: Callable[[list[str]], tuple[NDArray[np.int64], NDArray[np.int64]]],
        cut: str,
        whole: Sequence[str],
        limit: SupportsInt | SupportsIndex | None,
        unknown: SupportsInt | SupportsIndex | None,
        normalize: bool,
        max_bytes: SupportsInt | SupportsIndex,
    ) -> None: ...
    def encode(
        self, texts: list[str], n_threads: SupportsInt | SupportsIndex = 0
    ) -> NDArray[np.float32]: ...
    @property
    def statistics(self) -> dict[str, int]: ...

def conversation_text(
    turns: object,
    role_key: str,
    content_key: str,
    roles: Mapping[str, str] | None,
    nfc: Callable[[str], str],
    whole: bool,
) -> bytes | None: ...
def best_keys(
    row_ids: NDArray[np.int64],
    labels: NDArray[np.int32],
    keys: NDArray[np.float64],
    quotas: NDArray[np.int64],
) -> NDArray[np.int64]: ...
def facility_location(
    shards: Sequence[NDArray[Any]],
    scales: ArrayLike,
    served_shards: Sequence[NDArray[Any]],
    served_scales: ArrayLike,
    budget: SupportsInt | SupportsIndex,
    alpha: SupportsFloat | SupportsIndex,
    quality: ArrayLike,
    epsilon: SupportsFloat | SupportsIndex,
    seed: SupportsInt | SupportsIndex,
    list_bytes: SupportsInt | SupportsIndex,
    n_threads: SupportsInt | SupportsIndex,
) -> tuple[NDArray[np.int64], NDArray[np.float64], int]: ...
def farthest_first(
    shards: Sequence[NDArray[Any]],
    scales: ArrayLike,
    budget: SupportsInt | SupportsIndex,
    first: SupportsInt | SupportsIndex,
    n_threads: SupportsInt | SupportsIndex,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]: ...
def filter_near(
    shards: Sequence[NDArray[Any]],
    scales: ArrayLike,
    order: ArrayLike,
    budget: SupportsInt | SupportsIndex,
    threshold: SupportsFloat | SupportsIndex,
    n_threads: SupportsInt | SupportsIndex,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]: ...
def largest_values(
    shards: Sequence[NDArray[Any]],
    factors: ArrayLike | None,
    n_threads: SupportsInt | SupportsIndex,
) -> NDArray[np.float64]: ...
def lower_to_distance(
    shards: Sequence[NDArray[Any]],
    factors: ArrayLike | None,
    other: ArrayLike,
    nearest: NDArray[np.float64],
    n_threads: SupportsInt | SupportsIndex,
) -> None: ...
def nearest(
    shards: Sequence[NDArray[Any]],
    factors: ArrayLike | None,
    others: ArrayLike,
    m: SupportsInt | SupportsIndex,
    n_threads: SupportsInt | SupportsIndex,
) -> tuple[NDArray[np.int32], NDArray[np.float64]]: ...
def neighbor_distances(
    shards: Sequence[NDArray[Any]],
    scales: ArrayLike,
    reference_shards: Sequence[NDArray[Any]],
    reference_scales: ArrayLike,
    reference_rows: ArrayLike,
    n_neighbors: SupportsInt | SupportsIndex,
    n_threads: SupportsInt | SupportsIndex,
) -> NDArray[np.float64]: ...
def novel_select(
    shards: Sequence[NDArray[Any]],
    scales: ArrayLike,
    budget: SupportsInt | SupportsIndex,
    first: SupportsInt | SupportsIndex,
    weights: ArrayLike,
    proximity: SupportsFloat | SupportsIndex,
    horizon: SupportsInt | SupportsIndex,
    n_threads: SupportsInt | SupportsIndex,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]: ...
def resolve_threads(arg0: SupportsInt | SupportsIndex) -> int: ...
def sample_by_cluster(
    labels: NDArray[np.int32],
    quotas: NDArray[np.int64],
    weights: NDArray[np.floating[Any]] | None,
    log_weights: bool,
    row_ids: NDArray[np.int64] | None,
    exclude: NDArray[np.bool_] | NDArray[np.int64] | None,
    seed: SupportsInt | SupportsIndex,
    return_keys: bool,
    allow_fewer: bool,
    n_threads: SupportsInt | SupportsIndex,
    floors: NDArray[np.float64] | None = None,
    max_memory_bytes: SupportsInt | SupportsIndex = ...,
) -> tuple[Any, ...]: ...
def seed_rows(
    shards: Sequence[NDArray[Any]],
    factors: ArrayLike | None,
    weights: ArrayLike | None,
    subset: ArrayLike,
    reach: SupportsFloat | SupportsIndex,
    k: SupportsInt | SupportsIndex,
    seed: SupportsInt | SupportsIndex,
    n_threads: SupportsInt | SupportsIndex,
    max_memory_bytes: SupportsInt | SupportsIndex,
) -> NDArray[np.int64]: ...
def simd_level() -> str: ...
def squared_distances(
    shards: Sequence[NDArray[Any]],
    factors: ArrayLike | None,
    others: ArrayLike,
    n_threads: SupportsInt | SupportsIndex,
) -> NDArray[np.float64]: ...
def update_centers(
    sums: ArrayLike,
    mass: ArrayLike,
    scale: FixedScale,
    centers: ArrayLike,
    wide: bool,
    cosine: bool,
) -> tuple[NDArray[np.float64], float]: ...

__version__: str
