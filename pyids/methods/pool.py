"""What a method selects from: the rows of a pool and what is known about each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyids._typing import Float64, Int64
from pyids.chat.render import response_length
from pyids.checks import check, integers
from pyids.errors import ConfigError

if TYPE_CHECKING:
    from pyids.clustering.extent import Metric
    from pyids.store.folder import Store


Loader = Callable[[], Any]


class Influences(Protocol):
    """The influence of rows on a target's, as `pyids.models.influence` computes it."""

    def __call__(
        self, warm_up: Int64, rows: Int64, *, seed: int, epochs: int, dims: int
    ) -> Float64:
        """Return float64 (B, Q) of B row ids, after a training on others; both ascending."""
        ...


# Rows that are looked at together.
_BLOCK_ROWS = 1 << 20


# What has an entry a row.
_BY_ROW = ("embeddings", "labels", "quality", "lengths")


_REMEDIES = {
    "embeddings": "embed the rows first",
    "labels": "cluster the rows first",
    "centroids": "cluster the rows first",
    "quality": "name a column or a signal with --quality",
    "lengths": "give the length of each response",
    "target": "name rows of what the model is to learn with --target",
    "gradients": "name a language model with --model, and a target with --target",
}


@dataclass(frozen=True)
class Target:
    """What is selected for, as a method sees it.

    Attributes
    ----------
    vectors : float array of shape (Q, D)
        Made as the pool's embeddings were.
    tasks : sequence of str
        The task of each of the Q rows.
    """

    vectors: NDArray[Any]
    tasks: Sequence[str]


@dataclass(frozen=True)
class Pool:
    """Rows to select from; everything about them is loaded when a method first asks for it.

    Make one with `pool_from_arrays` or `pool_from_store`.

    Attributes
    ----------
    row_ids : int64 array of shape (N,)
        Strictly ascending.
    loaders : mapping of str to callable
        How to get ``embeddings``, ``labels`` and so on; what is missing is not known.
    column_loader : callable
        Gives the N values of a column by name; raises KeyError where there is none.
    threads : int or None
        Threads that a method may use; one per core unless given. No result depends on it.
    metric : {"euclidean", "cosine"}
        Of the clusters; for the cosine, `centroids` are unit vectors and rows count at unit length.
    already : Pool or None
        Rows that are trained on already: none of them is in the pool, and the same is known of
        them. A method that shares its budget among clusters or groups counts them as drawn.
    """

    row_ids: Int64
    loaders: Mapping[str, Loader] = field(repr=False)
    column_loader: Callable[[str], Sequence[Any]] = field(repr=False)
    threads: int | None = None
    metric: Metric = "euclidean"
    already: Pool | None = None

    def __post_init__(self) -> None:
        if self.metric not in ("euclidean", "cosine"):
            raise ValueError(f"metric is {self.metric!r}: must be euclidean or cosine")
        for start in range(0, len(self.row_ids), _BLOCK_ROWS):
            steps = np.flatnonzero(np.diff(self.row_ids[start : start + _BLOCK_ROWS + 1]) <= 0)
            if len(steps):
                raise ValueError(f"row_ids[{start + steps[0] + 1}] is not above the one before it")

    def __len__(self) -> int:
        return len(self.row_ids)

    def knows(self, what: str) -> bool:
        """Whether the pool has ``what``: embeddings, labels, centroids, quality or lengths."""
        return what in self.loaders

    def _load(self, what: str) -> Any:
        if what not in self.loaders:
            raise ConfigError(f"this pool has no {what}: {_REMEDIES[what]}")
        return self.loaders[what]()

    def _load_column(self, what: str, dtype: type[np.generic]) -> NDArray[Any]:
        values = np.asarray(self._load(what))
        if np.issubdtype(dtype, np.integer) and values.dtype != dtype:
            # A cast would cut fractions off, and fold what is out of range back into it.
            values = integers(what, values)
            check(what, values, values.astype(dtype) == values, f"must fit into {dtype.__name__}")
        values = np.ascontiguousarray(values, dtype)
        if values.shape != (len(self),):
            raise ValueError(f"{what} has shape {values.shape}, expected ({len(self)},)")
        return values

    @cached_property
    def embeddings(self) -> Sequence[NDArray[Any]]:
        """Shards (N_s, D), float16 or float32, often memory-mapped; copy none of them whole."""
        shards: Sequence[NDArray[Any]] = self._load("embeddings")
        n_rows = sum(len(shard) for shard in shards)
        if n_rows != len(self):
            raise ValueError(f"embeddings have {n_rows} rows, expected {len(self)}")
        return shards

    @cached_property
    def labels(self) -> NDArray[np.int32]:
        """The cluster of each row: int32 (N,), in [0, K)."""
        labels = self._load_column("labels", np.int32)
        if len(labels) and labels.min() < 0:
            row = self.row_ids[np.argmin(labels)]
            raise ValueError(f"the label of row {row} is {labels.min()}, below 0")
        return labels

    @cached_property
    def cluster_sizes(self) -> Int64:
        """Rows of each cluster: int64 (K,)."""
        sizes = np.zeros(len(self.centroids) if self.knows("centroids") else 0, np.int64)
        if self.already is not None:  # which may be all of the last cluster
            sizes = np.zeros(max(len(sizes), len(self.already.cluster_sizes)), np.int64)
        for start in range(0, len(self), _BLOCK_ROWS):
            some = self.labels[start : start + _BLOCK_ROWS]
            counts = np.bincount(some, minlength=len(sizes))
            counts[: len(sizes)] += sizes
            sizes = counts
        return sizes

    @property
    def charge(self) -> Int64:
        """Rows of each cluster that are trained on already: int64 (K,)."""
        n_clusters = len(self.cluster_sizes)
        if self.already is None:
            return np.zeros(n_clusters, np.int64)
        return np.bincount(self.already.labels, minlength=n_clusters).astype(np.int64)

    @cached_property
    def centroids(self) -> NDArray[Any]:
        """The center of each cluster: (K, D)."""
        return np.asarray(self._load("centroids"))

    @cached_property
    def quality(self) -> Float64:
        """How good each row is: float64 (N,), higher is better, finite and not constant."""
        from pyids.scoring.row_weights import check_quality

        quality = self._load_column("quality", np.float64)
        check_quality(quality, self.row_ids)
        return quality

    @cached_property
    def target(self) -> Target:
        """The rows that are selected for."""
        target: Target = self._load("target")
        return target

    @cached_property
    def gradients(self) -> Influences:
        """How to find the influence of rows on the target's."""
        gradients: Influences = self._load("gradients")
        return gradients

    @cached_property
    def lengths(self) -> Int64:
        """Length of each row's responses: int64 (N,). Characters, where the pool is a store's."""
        return self._load_column("lengths", np.int64)

    def without(self, row_ids: ArrayLike) -> Pool:
        """Return the pool without some rows; shards become views around them, without a copy.

        Parameters
        ----------
        row_ids : int64 array
            Ascending; rows that the pool does not have are passed over.
        """
        if not len(gone := integers("row_ids", row_ids)):
            return self
        return self._where(~np.isin(self.row_ids, gone))

    def only(self, row_ids: ArrayLike) -> Pool:
        """Return the pool with these of its rows alone; see `without`."""
        return self._where(np.isin(self.row_ids, integers("row_ids", row_ids)))

    def _where(self, stays: NDArray[np.bool_]) -> Pool:
        if stays.all():
            return self
        loaders = {
            name: _narrowed(loader, name, stays) if name in _BY_ROW else loader
            for name, loader in self.loaders.items()
        }

        def column(name: str) -> Sequence[Any]:
            return [
                value for value, stay in zip(self.column_loader(name), stays, strict=True) if stay
            ]

        return replace(self, row_ids=self.row_ids[stays], loaders=loaders, column_loader=column)

    def column(self, name: str) -> Sequence[Any]:
        """Return the N values of a column of the data set.

        Raises
        ------
        ConfigError
            There is no such column.
        """
        try:
            return self.column_loader(name)
        except KeyError:
            raise ConfigError(
                f"the data have no column {name!r}: name one that they have"
            ) from None


def pool_from_arrays(
    *,
    embeddings: NDArray[Any] | Sequence[NDArray[Any]] | None = None,
    labels: ArrayLike | None = None,
    centroids: ArrayLike | None = None,
    quality: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
    columns: Mapping[str, Sequence[Any]] | None = None,
    row_ids: ArrayLike | None = None,
    target: ArrayLike | Target | None = None,
    gradients: Influences | None = None,
    threads: int | None = None,
    metric: Metric = "euclidean",
) -> Pool:
    """Make a pool of what is at hand; a method says what it needs.

    Parameters
    ----------
    embeddings : array (N, D) or sequence of arrays (N_s, D), optional
        float16 or float32; used without a copy.
    labels, quality, lengths, centroids : array, optional
        See `Pool`.
    columns : mapping of str to sequence, optional
        Columns of the data set, N values each.
    row_ids : int64 array (N,), optional
        Strictly ascending; 0 to N - 1 unless given.
    threads : int, optional
        One per core unless given.
    metric : {"euclidean", "cosine"}
        Of the k-means that `labels` and `centroids` come from.

    Raises
    ------
    ValueError
        Nothing says how many rows there are, lengths differ, or there is no such metric.
    """
    if isinstance(embeddings, np.ndarray):
        embeddings = [embeddings]
    known: dict[str, Any] = {
        "embeddings": embeddings,
        "labels": labels,
        "centroids": centroids,
        "quality": quality,
        "lengths": lengths,
    }
    if target is not None and not isinstance(target, Target):
        target = Target(vectors := np.asarray(target), [""] * len(vectors))
    known |= {"target": target, "gradients": gradients}
    columns = dict(columns or {})
    if row_ids is not None:
        ids = integers("row_ids", row_ids)
    else:
        by_row = [
            len(np.asarray(value)) for value in (labels, quality, lengths) if value is not None
        ]
        by_row += [len(column) for column in columns.values()]
        if embeddings is not None:
            by_row.append(sum(len(shard) for shard in embeddings))
        if not by_row:
            raise ValueError("a pool needs row_ids, or something that has one entry a row")
        ids = np.arange(by_row[0], dtype=np.int64)
    for name, values in columns.items():
        if len(values) != len(ids):
            raise ValueError(f"column {name!r} has {len(values)} values, expected {len(ids)}")
    loaders = {name: _constant(value) for name, value in known.items() if value is not None}
    return Pool(ids, loaders, columns.__getitem__, threads, metric)


def pool_from_store(
    store: Store,
    *,
    quality: ArrayLike | Loader | None = None,
    threads: int | None = None,
    **others: Loader,
) -> Pool:
    """Make a pool of the kept rows of a run folder; shards stay memory-mapped.

    Parameters
    ----------
    store : Store
        Its rows have been read; a method may ask for embeddings and clusters too.
    quality : float64 (N,) or callable returning it, optional
        One value for each kept row, in order (see `pyids.scoring.cache`).
    threads : int, optional
        One per core unless given.
    **others : callable
        How to get what else is known: ``target``, ``gradients``.
    """
    from pyids.store.arrays import join
    from pyids.store.ledger import load_sealed

    def joined(parts: Iterable[NDArray[Any]], dtype: Any) -> NDArray[Any]:
        return join(parts, store.scratch, store.kept, dtype)

    row_ids = joined(map(store.row_ids, store.shards), np.int64)
    loaders: dict[str, Loader] = {"lengths": lambda: response_lengths(store), **others}
    if all(store.artifact("embeddings", shard).exists() for shard in store.shards):
        loaders["embeddings"] = lambda: store.embeddings().all(store.scratch)
    if all(store.artifact("labels", shard).exists() for shard in store.shards):
        loaders["labels"] = lambda: joined(store.labels(), np.int32)
    metric: Metric = "euclidean"
    if (entry := store.path / "centroids.json").exists():
        loaders["centroids"] = lambda: _load_centroids(entry.with_suffix(".safetensors"))
        metric = load_sealed(entry)["inputs"]["metric"]
    if quality is not None:
        loaders["quality"] = quality if callable(quality) else _constant(quality)

    def column(name: str) -> list[Any]:
        values = []
        for shard in store.shards:
            for row in store.iter_rows(shard):
                if name not in row.record:
                    raise KeyError(name)
                values.append(row.record[name])
        return values

    return Pool(row_ids, loaders, column, threads, metric)


def response_lengths(store: Store) -> Int64:
    """Return the response length of each kept row: int64 (N,), in characters."""
    return np.fromiter(
        (response_length(m) for shard in store.shards for m in store.iter_messages(shard)),
        np.int64,
    )


def _load_centroids(path: Any) -> NDArray[Any]:
    from safetensors.numpy import load_file

    from pyids.store.ledger import checked

    centroids: NDArray[Any] = load_file(checked(path))["centroids"]
    return centroids


def _narrowed(loader: Loader, name: str, stays: NDArray[np.bool_]) -> Loader:
    """Return a loader of the rows that stay; shards are cut into views of those between others."""
    if name != "embeddings":
        return lambda: np.asarray(loader())[stays]

    def cut() -> list[NDArray[Any]]:
        parts, first = [], 0
        for shard in loader():
            edges = np.flatnonzero(
                np.diff(stays[first : first + len(shard)], prepend=False, append=False)
            )
            parts += [shard[a:b] for a, b in edges.reshape(-1, 2).tolist()]
            first += len(shard)
        return parts

    return cut


def _constant(value: Any) -> Loader:
    return lambda: value
