"""A draw from the shards of a pool, in this process or as tasks of an engine.

A task takes from some shards all that the whole draw could take of them, with the keys that decide;
the whole draw takes the best of what the tasks have found. A key follows from the seed and the
row's id, so that what is drawn depends neither on the engine nor on how shards are put together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pyids._typing import Float64, Int64
from pyids.engine import Engine, LocalEngine, in_process
from pyids.pipeline.cells import Cells
from pyids.pipeline.token_draw import Part, draw_tokens, sample_part
from pyids.sampling import Sample, ShardedSample
from pyids.store.arrays import map_npy
from pyids.store.files import save_array
from pyids.store.folder import Shard, Store
from pyids.store.ledger import load_npy
from pyids.store.reading import cut_shards, store_of

# Rows of a task. To draw from so many takes a tenth of a second, to send a task some milliseconds;
# a pool that has no more is drawn from here.
_TASK_ROWS = 1 << 20


@dataclass(frozen=True)
class DrawnFrom:
    """What is drawn from.

    Attributes
    ----------
    store
        A run folder with its rows clustered.
    labels
        int32 of each shard: the clusters of its rows, or their cells.
    weights
        Kinds of files whose sum is the log weights of a shard's rows inside their clusters
        (`log_weights`); none: all count the same.
    exclude
        Ids of rows that must not be drawn, ascending.
    threads
        Threads of this process; None: every core.
    engine
        Where shards are drawn from, if they are many.
    """

    store: Store
    labels: Sequence[NDArray[np.int32]]
    weights: tuple[str, ...] = ()
    exclude: Int64 = field(default_factory=lambda: np.empty(0, np.int64))
    threads: int | None = None
    engine: Engine = field(default_factory=LocalEngine)

    def part(self, index: int) -> Part:
        """Give the rows of a shard."""
        shard = self.store.shards[index]
        return Part(
            self.store.row_ids(shard),
            self.labels[index],
            self.labels.units(index) if isinstance(self.labels, Cells) else None,
            log_weights(self.store, shard, self.weights),
        )

    def excluded_of(self, shard: Shard) -> Int64:
        """Give the rows of a shard that must not be drawn: all in each would be quadratic."""
        ids = shard.row_ids
        first, last = np.searchsorted(self.exclude, [ids.start, ids.stop])
        return self.exclude[first:last]


def log_weights(store: Store, shard: Shard, kinds: Sequence[str]) -> Float64 | None:
    """Log weights of a shard's rows inside their clusters, float64 (n,); None: all equal."""
    parts = [load_npy(store.artifact(kind, shard)) for kind in kinds]
    return sum(parts[1:], start=parts[0]) if parts else None


def draw_rows(drawn_from: DrawnFrom, quotas: Int64, *, seed: int) -> Int64:
    """Draw rows of each cluster or cell; ids, ascending.

    Parameters
    ----------
    drawn_from
        The shards.
    quotas
        int64 (C,): rows to draw of each, fewer where it has not so many.
    seed
        With a row's id it decides its key: the same rows for any shards, threads and workers.
    """
    taker = RowTaker(quotas)
    take(drawn_from, taker, seed)
    return taker.found().row_ids


def draw_by_tokens(
    drawn_from: DrawnFrom, quotas: Int64, group_of: Int64, targets: list[int], *, seed: int
) -> Int64:
    """Draw rows of so many tokens (`pyids.pipeline.token_draw.draw_tokens`); ids, ascending."""
    return draw_tokens(
        lambda pool: take(drawn_from, pool, seed), quotas, group_of, targets, seed=seed
    )


# ---- what takes rows -----------------------------------------------------------------------------


class Taker(Protocol):
    """Takes rows shard by shard; what several have found of a pool, one puts together."""

    @property
    def floors(self) -> Float64:
        """Keys (C, 2) below which a row of each cell is not taken."""
        ...

    def how(self) -> dict[str, NDArray[Any]]:
        """Give the arguments that make another of its kind."""
        ...

    def add(self, part: Part, exclude: Int64, seed: int, threads: int | None) -> None:
        """Take from one more shard."""
        ...

    def found(self) -> Any:
        """Give what may be drawn of all shards so far."""
        ...

    def merge(self, found: Any) -> None:
        """Take what another one has found in other shards."""
        ...


class RowTaker:
    """Takes the rows of each cell that have the largest keys, as many as its quota."""

    def __init__(self, quotas: Int64, floors: Float64 | None = None) -> None:
        self._quotas = quotas
        self._sample = ShardedSample(quotas)
        if floors is not None:
            self._sample.floors[:] = floors

    @property
    def floors(self) -> Float64:
        """See `Taker`."""
        return self._sample.floors

    def how(self) -> dict[str, NDArray[Any]]:
        """See `Taker`."""
        return {"quotas": self._quotas}

    def add(self, part: Part, exclude: Int64, seed: int, threads: int | None) -> None:
        """See `Taker`."""
        self.merge(sample_part(part, self._quotas, exclude, seed, threads, self.floors))

    def found(self) -> Sample:
        """See `Taker`."""
        return self._sample.result(allow_fewer=True)

    def merge(self, found: Sample) -> None:
        """See `Taker`."""
        self._sample.add(found)


# ---- tasks ---------------------------------------------------------------------------------------


def take(drawn_from: DrawnFrom, taker: Taker, seed: int) -> None:
    """Let it take from every shard, here or on the engine."""
    store = drawn_from.store
    groups = list(cut_shards(store.shards, _TASK_ROWS))
    # What lies beside a folder that is only read, other machines may not see.
    if len(groups) < 2 or store.read_only or in_process(drawn_from.engine):
        for index, shard in enumerate(store.shards):
            excluded = drawn_from.excluded_of(shard)
            taker.add(drawn_from.part(index), excluded, seed, drawn_from.threads)
        return
    store.scratch.mkdir(exist_ok=True)
    with TemporaryDirectory(prefix="draw-", dir=store.scratch) as name:
        folder = Path(name)
        for argument, array in {**taker.how(), "exclude": drawn_from.exclude}.items():
            save_array(folder / f"{argument}.npy", array)
        firsts = [0, *accumulate(map(len, groups[:-1]))]
        cells = drawn_from.labels.kind if isinstance(drawn_from.labels, Cells) else None

        def tasks() -> Iterator[_Task]:
            for first, shards in zip(firsts, groups, strict=True):
                # The later a task is sent, the less it brings back: its rows must be above these.
                floors = folder / f"floors-{first}.npy"
                save_array(floors, taker.floors)
                yield _Task(
                    folder=str(store.path),
                    deduplicated=store.deduplicated,
                    first=first,
                    shards=shards,
                    cells=cells,
                    weights=drawn_from.weights,
                    taker=type(taker),
                    arguments=tuple(taker.how()),
                    files=str(folder),
                    floors=str(floors),
                    seed=seed,
                )

        for found in drawn_from.engine.map(draw_shards, tasks()):
            taker.merge(found)


class _Task(NamedTuple):
    """What `draw_shards` needs: paths and numbers."""

    folder: str
    deduplicated: bool
    first: int
    shards: tuple[Shard, ...]
    cells: Any
    weights: tuple[str, ...]
    taker: Callable[..., Taker]
    arguments: tuple[str, ...]
    files: str
    floors: str
    seed: int


def draw_shards(task: _Task) -> Any:
    """Take from some shards; what was found."""
    store = store_of(task.folder, deduplicated=task.deduplicated)
    labels: Sequence[NDArray[np.int32]] = store.labels()
    if task.cells is not None:
        labels = Cells(store, labels, task.cells)
    files = Path(task.files)
    arguments = {name: np.array(map_npy(files / f"{name}.npy")) for name in task.arguments}
    taker = task.taker(**arguments, floors=np.array(map_npy(Path(task.floors))))
    drawn_from = DrawnFrom(store, labels, task.weights, map_npy(files / "exclude.npy"))
    for index, shard in enumerate(task.shards, task.first):
        taker.add(drawn_from.part(index), drawn_from.excluded_of(shard), task.seed, 1)
    return taker.found()
