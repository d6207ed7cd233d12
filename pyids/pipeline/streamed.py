"""K-means over the vectors of a run folder, in bounded memory and on any engine.

What an iteration knows of a row (28 bytes of bounds, its label) is kept in memory for as many rows
as may be held; the others are worked on group by group, and what is known of them is found anew in
each iteration. On an engine of several workers each group is a task, which returns
integer sums of K x D; rows never cross the network. All of it is exact: labels, centers and inertia
are bitwise those of `pyids.clustering.kmeans.KMeans` over all rows at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyids._typing import Float64, Int64
from pyids.clustering.extent import Extent, Metric, measure, scale_by_power
from pyids.clustering.lloyd import FarRow, Fit, Partial, ShardPass, lloyd
from pyids.clustering.seeding import SEEDING_ROWS_PER_CLUSTER, seed_centers, spread_sample
from pyids.clustering.two_level import two_level_centers
from pyids.engine import Engine, LocalEngine, in_process
from pyids.errors import DataError
from pyids.neighbors import take_rows
from pyids.resources import processors
from pyids.store.arrays import MOST_MAPPED, ShardArrays, map_npy
from pyids.store.files import atomic_write, create_npy, write_npy
from pyids.store.ledger import load_npy

# Rows of a group that is not held, at most: some 16 MB of what is known of them.
_GROUP_ROWS = 1 << 18
# Several workers share an iteration: each has some groups, so that none waits long for the last
# one, of not too few rows, for each group sends back sums of all clusters.
_GROUPS_PER_WORKER = 4
_LEAST_GROUP_ROWS = 1 << 14
# Shards of a group, at most: a task maps all of them at once.
_GROUP_SHARDS = 4096
# Bytes an iteration keeps of a row, and of a value of the centers; and for its threads.
_ROW_BYTES = 60
_CENTER_BYTES = 50
_THREAD_BYTES = 16 << 20
# Iterations over all clusters that follow the two levels: a third of the most.
_REFINING = 3


@dataclass(frozen=True)
class Plan:
    """How k-means goes about its work; with the vectors it decides the result.

    Attributes
    ----------
    n_clusters, max_iter, seed, metric
        As for `KMeans`.
    init : {"k-means++", "random", "two-level"}
        How the first centers are found.
    sample_rows : int or None
        Rows that the centers are fitted to, drawn by the seed; None: all.
    """

    n_clusters: int
    max_iter: int
    seed: int
    metric: Metric
    init: str
    sample_rows: int | None


class Clusters(NamedTuple):
    """What k-means has found."""

    centers: Float64
    inertia: float
    n_iter: int
    labels: Iterator[NDArray[np.int32]]


@dataclass(frozen=True)
class _Group:
    """Some shards one after the other; a task of an engine."""

    first: int
    paths: tuple[str, ...]
    rows: int


@dataclass(frozen=True)
class _Task:
    """What is to be done with a group; paths and numbers."""

    group: _Group
    metric: Metric
    threads: int
    extent: Extent | None = None
    centers: str = ""
    labels: str = ""
    far: int = 0


class _Done(NamedTuple):
    partial: Partial
    inertia: int
    far: list[FarRow]


class StreamedPass:
    """All rows of a pool: the first ones held from one iteration to the next, the others not.

    Parameters
    ----------
    vectors, paths, lengths
        The vectors, the files that hold them, and their rows, shard by shard.
    plan, extent
        What k-means does; the extent of all rows.
    engine, threads
        Where groups are worked on, and with how many threads; None: every core.
    scratch : Path
        Folder for centers and labels, which every worker sees.
    max_memory : int
        Bytes that may be taken.
    once
        There is one assignment only, so that nothing needs to be held.
    """

    def __init__(
        self,
        vectors: ShardArrays,
        paths: Sequence[Path],
        lengths: Sequence[int],
        plan: Plan,
        extent: Extent,
        *,
        engine: Engine,
        threads: int | None,
        scratch: Path,
        max_memory: int,
        once: bool = False,
    ) -> None:
        self.extent = extent
        self._plan, self._engine, self._scratch = plan, engine, scratch
        self._lengths = lengths
        self._threads = threads_of_task(engine, threads)
        room = _room(max_memory, plan.n_clusters, len(extent.largest), _GROUP_ROWS)
        most = 0 if once or not in_process(engine) else room // _ROW_BYTES
        ends = np.cumsum(lengths)
        if ends[-1] <= most:
            n_held, held = len(lengths), vectors.all(scratch)
        else:  # all of these are mapped at once
            n_held = min(int(np.searchsorted(ends, most, "right")), MOST_MAPPED)
            held = vectors[:n_held]
        self._held: ShardPass | None = None
        self._n_held = n_held if n_held and ends[n_held - 1] else 0
        if self._n_held:
            self._held = ShardPass(
                held,
                plan.n_clusters,
                extent,
                metric=plan.metric,
                n_threads=threads,
                max_memory=room,
            )
        self._groups = list(_groups(paths, lengths, self._n_held, engine))
        self._inertia = self._iteration = 0
        self._far: list[FarRow] = []

    def assign(self, centers: Float64) -> Partial:
        """Label all rows; see `Pass`."""
        self._iteration += 1
        file = self._scratch / "centers.npy"
        with atomic_write(file) as temporary, temporary.open("wb") as out:
            write_npy(out, centers)
        parts = self._run()
        partial = None
        self._inertia = 0
        if self._held is not None:
            partial = self._held.assign(centers)
            self._inertia = self._held.inertia()
            partial = Partial(partial.sums.copy(), partial.mass.copy())
        for done in parts:
            partial = done.partial if partial is None else partial + done.partial
            self._inertia += done.inertia
        assert partial is not None
        return partial

    def inertia(self) -> int:
        """Inertia of the last assign; see `Pass`."""
        return self._inertia

    def farthest(self, count: int) -> list[FarRow]:
        """Return the rows farthest from their centers; groups are assigned once more for it."""
        far = [] if self._held is None else self._held.farthest(count)
        for done in self._run(far=count):
            far = sorted([*far, *done.far], key=lambda row: row[:2])[:count]
        return far

    def labels(self) -> Iterator[NDArray[np.int32]]:
        """Yield the labels of the last assign, shard by shard."""
        shard = 0
        if self._held is not None:
            yield from _cut(self._held.labels, self._lengths[: self._n_held])
            shard = self._n_held
        for group in self._groups:
            lengths = self._lengths[shard : shard + len(group.paths)]
            yield from _cut(map_npy(self._labels_of(group)), lengths)
            shard += len(lengths)

    def _labels_of(self, group: _Group) -> Path:
        return self._scratch / f"labels-{group.first}.npy"

    def _run(self, far: int = 0) -> Iterator[_Done]:
        tasks = [
            _Task(
                group,
                self._plan.metric,
                self._threads,
                self.extent,
                str(self._scratch / "centers.npy"),
                str(self._labels_of(group)),
                far,
            )
            for group in self._groups
        ]
        return self._engine.map(assign_group, tasks)


def clustering_bytes(n_clusters: int, width: int, n_rows: int, max_memory: int) -> int:
    """Return the bytes of memory that clustering takes where it may take `max_memory`."""
    least = 2 * (_CENTER_BYTES * n_clusters * width + _THREAD_BYTES) + _GROUP_ROWS * _ROW_BYTES
    held = min(n_rows * _ROW_BYTES, max(0, max_memory - least))
    return min(least, n_rows * _ROW_BYTES + least - _GROUP_ROWS * _ROW_BYTES) + held


def _room(max_memory: int, n_clusters: int, width: int, n_rows: int) -> int:
    """Bytes that are left beside the centers, the threads, and what is known of some rows."""
    fixed = _CENTER_BYTES * n_clusters * width + _THREAD_BYTES
    return max(0, max_memory - 2 * fixed - n_rows * _ROW_BYTES)


def threads_of_task(engine: Engine, threads: int | None) -> int:
    """Return the threads of one task: the cores, shared among the workers of this machine."""
    if threads is not None:
        return threads
    if isinstance(engine, LocalEngine):
        return max(1, processors() // engine.workers)
    return 1  # a worker of a cluster has one processor


def _groups(
    paths: Sequence[Path], lengths: Sequence[int], start: int, engine: Engine
) -> Iterator[_Group]:
    """Cut the shards from `start` on into groups of about as many rows; no result depends on it."""
    total = sum(lengths[start:])
    n_groups = max(1, -(-total // _GROUP_ROWS))
    if not in_process(engine):
        some = _GROUPS_PER_WORKER * engine.workers
        n_groups = max(n_groups, min(some, total // _LEAST_GROUP_ROWS))
        n_groups = -(-n_groups // engine.workers) * engine.workers
    first, held, rows, passed, number = int(sum(lengths[:start])), list[str](), 0, 0, 0
    for path, length in zip(paths[start:], lengths[start:], strict=True):
        # A shard belongs to the group that the middle of its rows lies in.
        own = (2 * passed + length) * n_groups // max(1, 2 * total)
        if held and (own != number or len(held) == _GROUP_SHARDS):
            yield _Group(first, tuple(held), rows)
            first, held, rows = first + rows, [], 0
        number = own
        held.append(str(path))
        rows, passed = rows + length, passed + length
    if held:
        yield _Group(first, tuple(held), rows)


def _cut(labels: NDArray[np.int32], lengths: Sequence[int]) -> Iterator[NDArray[np.int32]]:
    at = 0
    for length in lengths:
        yield labels[at : at + length]
        at += length


def assign_group(task: _Task) -> _Done:
    """Label the rows of a group, and sum them up by cluster."""
    assert task.extent is not None
    centers = np.array(map_npy(Path(task.centers)))
    if not task.group.rows:
        return _nothing(task, centers)
    work = ShardPass(
        [load_npy(Path(path)) for path in task.group.paths],
        len(centers),
        task.extent,
        metric=task.metric,
        n_threads=task.threads,
        once=True,
    )
    partial = work.assign(centers)
    with atomic_write(Path(task.labels)) as temporary, temporary.open("wb") as file:
        write_npy(file, work.labels)
    far = work.farthest(task.far, task.group.first) if task.far else []
    return _Done(Partial(partial.sums.copy(), partial.mass.copy()), work.inertia(), far)


def _nothing(task: _Task, centers: Float64) -> _Done:
    """Return the sums of a group whose shards are all empty."""
    with atomic_write(Path(task.labels)) as temporary, temporary.open("wb") as file:
        write_npy(file, np.empty(0, np.int32))
    empty = Partial(np.zeros(centers.shape, np.int64), np.zeros(len(centers), np.int64))
    return _Done(empty, 0, [])


def measure_group(task: _Task) -> Extent:
    """Measure the rows of a group; a shard that cannot be clustered is named."""
    extents = []
    for path in task.group.paths:
        array = load_npy(Path(path))
        if not len(array):
            continue
        try:
            extents.append(measure(array, metric=task.metric, n_threads=task.threads))
        except ValueError as error:
            raise DataError(
                f"{path}: {error}: compute the vectors again, or leave the row out"
            ) from None
        if task.metric == "cosine" and not array.any(axis=1).all():
            row = int(np.flatnonzero(~array.any(axis=1))[0])
            raise DataError(
                f"{path}: row {row} is all zeros, which has no direction: leave --metric cosine out"
            )
    empty = Extent(np.zeros(0), 1.0, 0)
    return reduce(Extent.merge, extents) if extents else empty


def fit(
    vectors: ShardArrays,
    paths: Sequence[Path],
    lengths: Sequence[int],
    plan: Plan,
    *,
    engine: Engine,
    threads: int | None,
    scratch: Path,
    max_memory: int,
) -> Clusters:
    """Cluster all rows; labels and inertia are those of all of them, exactly.

    Parameters
    ----------
    vectors, paths, lengths
        The vectors, the files that hold them, and their rows, shard by shard.
    plan : Plan
    engine, threads, scratch, max_memory
        As for `StreamedPass`.

    Returns
    -------
    Clusters
        ``labels`` comes shard by shard, once, while `scratch` stands.
    """
    dtype: Any = np.float64 if vectors[0].dtype == np.float64 else np.float32
    scratch.mkdir(exist_ok=True)
    tasks = [
        _Task(group, plan.metric, threads_of_task(engine, threads))
        for group in _groups(paths, lengths, 0, engine)
    ]
    measured = [extent for extent in engine.map(measure_group, tasks) if extent.n_rows]
    extent = reduce(Extent.merge, measured)
    shared: dict[str, Any] = {
        "engine": engine, "threads": threads, "scratch": scratch, "max_memory": max_memory,
    }  # fmt: skip
    sample, few = _sample(vectors, lengths, plan, extent, threads, scratch)
    # A sample is fitted beside what is known of all its rows.
    left = max_memory
    if sample is not None:
        left = _room(max_memory, plan.n_clusters, len(extent.largest), len(sample))
    start = _start(vectors, lengths, plan, sample, few, threads, scratch, left)
    work: ShardPass | StreamedPass
    if sample is None:
        work = StreamedPass(vectors, paths, lengths, plan, extent, **shared)
    else:
        work = ShardPass(
            [sample], plan.n_clusters, few, metric=plan.metric, n_threads=threads,
            max_memory=left,
        )  # fmt: skip
    refining = max(1, plan.max_iter // _REFINING)
    found: Fit = lloyd(
        work,
        start.astype(dtype).astype(np.float64),
        few,
        max_iter=refining if plan.init == "two-level" else plan.max_iter,
        metric=plan.metric,
        dtype=dtype,
    )
    if isinstance(work, StreamedPass):
        return Clusters(found.centers.astype(dtype), found.inertia, found.n_iter, work.labels())
    del work, sample
    work = StreamedPass(vectors, paths, lengths, plan, extent, once=True, **shared)
    work.assign(found.centers)
    inertia = scale_by_power(work.inertia(), -extent.inertia_shift(found.centers))
    return Clusters(found.centers.astype(dtype), inertia, found.n_iter, work.labels())


def _sample(
    vectors: ShardArrays,
    lengths: Sequence[int],
    plan: Plan,
    extent: Extent,
    threads: int | None,
    scratch: Path,
) -> tuple[NDArray[Any] | None, Extent]:
    """Copy the rows to fit to a file, and measure them; None: all rows are fitted."""
    n_rows = sum(lengths)
    if plan.sample_rows is None or n_rows <= plan.sample_rows:
        return None, extent
    rows = np.sort(spread_sample(n_rows, plan.sample_rows, plan.seed, None)[0])
    sample = _gather(vectors, rows, scratch / "sample.npy")
    return sample, measure(sample, metric=plan.metric, n_threads=threads)


def _start(
    vectors: ShardArrays,
    lengths: Sequence[int],
    plan: Plan,
    sample: NDArray[Any] | None,
    extent: Extent,
    threads: int | None,
    scratch: Path,
    max_memory: int,
) -> Float64:
    """Find the first centers: among all rows that are fitted, or a sample of them."""
    seed, k = plan.seed % 2**64, plan.n_clusters
    shared: dict[str, Any] = {
        "extent": extent, "seed": seed, "metric": plan.metric, "n_threads": threads,
        "max_memory": max_memory,
    }  # fmt: skip
    if plan.init == "two-level":
        dtype: Any = np.float64 if vectors[0].dtype == np.float64 else np.float32
        shards = vectors.all(scratch) if sample is None else [sample]
        return two_level_centers([s for s in shards if len(s)], k, dtype=dtype, **shared)
    if sample is not None:
        return seed_centers([sample], k, init=plan.init, **shared)
    n_rows = sum(lengths)
    if plan.init == "random":
        rng = np.random.Generator(np.random.Philox(key=seed))
        chosen = rng.choice(n_rows, k, replace=False)
        rows: Int64 = np.sort(chosen)
        taken = take_rows(vectors, rows)[np.searchsorted(rows, chosen)]
        return taken.astype(np.float64) if plan.metric == "euclidean" else _unit(taken)
    rows = spread_sample(n_rows, SEEDING_ROWS_PER_CLUSTER * k, seed, None)[0]
    some = _gather(vectors, rows, scratch / "seeding.npy")
    return seed_centers([some], k, init=plan.init, **shared)


def _unit(rows: NDArray[Any]) -> Float64:
    from pyids.clustering.extent import take_positions

    return take_positions([rows], np.arange(len(rows)), "cosine")


def _gather(vectors: ShardArrays, rows: Int64, path: Path) -> NDArray[Any]:
    """Copy ascending rows to a file, block by block, and map it."""
    first = vectors[0]
    out = create_npy(path, (len(rows), first.shape[1]), first.dtype)
    start = at = 0
    for shard in vectors:
        stop = int(np.searchsorted(rows, at + len(shard)))
        for begin in range(start, stop, 4096):
            some = rows[begin : min(begin + 4096, stop)]
            out[begin : begin + len(some)] = shard[some - at]
        start, at = stop, at + len(shard)
    del out
    return map_npy(path)
