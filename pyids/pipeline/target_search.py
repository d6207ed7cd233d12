"""What the rows of a pool are to a target, shard by shard, here or as tasks of an engine.

A task says of some shards which rows repeat the target, which are nearest to each of its rows, or
how near each row is. Every answer is a function of a row and the target alone, so that it depends
neither on the engine nor on how shards are put together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyids import _core
from pyids._typing import Float64, Int64
from pyids.chat.digest import digest
from pyids.chat.formats import Message, Turns, tools_of
from pyids.chat.near_copies import NearCopies
from pyids.engine import Engine, LocalEngine, in_process
from pyids.nearest import NearestLists, nearest, pair_cosines, rounding, unit_blocks
from pyids.neighbors import inverse_lengths
from pyids.pipeline.streamed import threads_of_task
from pyids.store.arrays import ShardArrays, join, map_npy
from pyids.store.files import read_sealed, save_array, write_sealed
from pyids.store.folder import Row, Shard, Store
from pyids.store.reading import cut_shards, store_of

# Rows of the target whose mean cosine says how near a row is.
_NEAREST = 3
# Rows nearer than this to a target row have their words compared with it: a copy with some words
# changed lies above it, with any encoder of sentences.
_LOOK = 0.8
_BLOCK_ROWS = 4096
# Rows of a task: to compare so many with a hundred rows of a target takes about a second.
_TASK_ROWS = 1 << 18


@dataclass(frozen=True)
class TargetSearch:
    """Searches the rows of a pool that stay.

    Attributes
    ----------
    store
        The run folder.
    engine
        Where its shards are looked at.
    conversations
        Q rows of the target.
    threads
        Threads of a task; None: every core.
    """

    store: Store
    engine: Engine
    conversations: Sequence[Sequence[Message]]
    threads: int | None = None

    def copies(self, vectors: Float64 | None) -> Int64:
        """Find the rows that repeat the target, or nearly (`NearCopies`); ids, ascending.

        With vectors, float64 (Q, D) of unit length, only the rows near a target row have their
        words compared; exact repeats are told by their digest.
        """
        with self._files(vectors, conversations=True) as files:
            found = list(self._map(find_copies, files))
        return np.concatenate([np.empty(0, np.int64), *found])

    def nearest_rows(
        self, vectors: Float64, length: int, taken: NDArray[np.bool_]
    ) -> tuple[list[Int64], list[Float64]]:
        """Find the rows nearest to each target row; see `pyids.nearest.nearest`.

        Parameters
        ----------
        vectors : float64 (Q, D)
        taken : bool (N,)
            Rows to leave out.
        """
        lists = NearestLists(len(vectors), length)
        with self._files(vectors, taken=taken) as files:

            def floors(number: int) -> Path:
                # The later a task is sent, the less it brings back: its rows must be above these.
                path = files / f"floors-{number}.npy"
                save_array(path, lists.floors)
                return path

            for found in self._map(find_nearest, files, length, floors):
                for query, (rows, cosines) in enumerate(zip(*found, strict=True)):
                    lists.add(query, rows, cosines)
        return lists.rows, lists.cosines

    def cosines(self, vectors: Float64) -> NDArray[np.float64]:
        """How near each row is to the target (`mean_cosines`), float64 (N,), in a mapped file."""
        with self._files(vectors) as files:
            parts = self._map(find_cosines, files)
            return join(parts, self.store.scratch, self.store.kept, np.float64)

    @contextmanager
    def _files(
        self,
        vectors: Float64 | None,
        *,
        conversations: bool = False,
        taken: NDArray[np.bool_] | None = None,
    ) -> Iterator[Path]:
        """Lay down what all tasks need."""
        self.store.scratch.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix="target-", dir=self.store.scratch) as name:
            folder = Path(name)
            for argument, array in (("vectors", vectors), ("taken", taken)):
                if array is not None:
                    save_array(folder / f"{argument}.npy", array)
            if conversations:
                turns = conversations_as_json(self.conversations)
                write_sealed(folder / "conversations.json", {"conversations": turns})
            yield folder

    def _map(
        self,
        find: Callable[[Store, _Task], Any],
        files: Path,
        length: int = 0,
        floors: Callable[[int], Path] | None = None,
    ) -> Iterator[Any]:
        # What lies beside a folder that is only read, other machines may not see.
        here = self.store.read_only or in_process(self.engine)
        threads = threads_of_task(LocalEngine() if here else self.engine, self.threads)

        def tasks() -> Iterator[_Task]:
            number = position = 0
            for shards in cut_shards(self.store.shards, _TASK_ROWS):
                yield _Task(
                    folder=str(self.store.path),
                    deduplicated=self.store.deduplicated,
                    find=find,
                    shards=shards,
                    number=number,
                    position=position,
                    files=str(files),
                    length=length,
                    floors=None if floors is None else str(floors(number)),
                    threads=threads,
                )
                number += len(shards)
                position += sum(len(self.store.row_ids(shard)) for shard in shards)

        if here:
            return (find(self.store, task) for task in tasks())
        return self.engine.map(search_shards, tasks())


def mean_cosines(vectors: NDArray[Any], targets: Float64, threads: int) -> Float64:
    """Give the mean cosine of each row to the target rows nearest to it.

    Parameters
    ----------
    vectors : float16 or float32 array (n, D)
    targets : float64 array (Q, D)
        Of unit length.

    Returns
    -------
    float64 array (n,)
    """
    m = min(_NEAREST, len(targets))
    out = np.empty(len(vectors))
    for at in range(0, len(vectors), _BLOCK_ROWS):
        block = np.ascontiguousarray(vectors[at : at + _BLOCK_ROWS])
        factors = inverse_lengths([block], threads)
        squares = _core.squared_distances([block], factors, targets, threads)
        cosines = 1 - np.sort(squares, axis=1)[:, :m].mean(axis=1) / 2
        out[at : at + len(block)] = np.where(factors > 0, cosines, 0)  # none of a row of zeros
    return out


def conversations_as_json(conversations: Sequence[Sequence[Message]]) -> list[dict[str, Any]]:
    """Turn conversations into JSON values."""
    return [{"turns": list(row), "tools": tools_of(row)} for row in conversations]


def conversations_from_json(content: Sequence[dict[str, Any]]) -> list[list[Message]]:
    """Make conversations of what `conversations_as_json` gave."""
    return [Turns(row["turns"], row["tools"]) for row in content]


# ---- tasks ---------------------------------------------------------------------------------------


class _Task(NamedTuple):
    """What `search_shards` needs: paths and numbers."""

    folder: str
    deduplicated: bool
    find: Callable[[Store, _Task], Any]
    shards: tuple[Shard, ...]
    number: int  # of the first shard
    position: int  # of the first row
    files: str
    length: int
    floors: str | None
    threads: int

    def vectors(self, store: Store) -> ShardArrays:
        """Give the vectors of the shards."""
        every = store.embeddings()
        return ShardArrays(lambda i: every[self.number + i], len(self.shards))

    def array(self, name: str) -> NDArray[Any]:
        """Map an array that all tasks need."""
        return map_npy(Path(self.files, f"{name}.npy"))


def search_shards(task: _Task) -> Any:
    """Search some shards in a worker."""
    return task.find(store_of(task.folder, deduplicated=task.deduplicated), task)


def find_copies(store: Store, task: _Task) -> Int64:
    """Find the rows of some shards that repeat the target; ids, ascending."""
    digests, known = _known(task.files)
    found: list[int] = []
    if Path(task.files, "vectors.npy").exists():
        found += _exact(store, task.shards, digests)
        ids = np.concatenate([store.row_ids(shard) for shard in task.shards])
        rows: Iterator[Row] = store.read_rows(ids[_near(store, task)])
    else:
        rows = chain.from_iterable(map(store.iter_rows, task.shards))
    found += [row.row_id for row in rows if row.messages in known]
    return np.unique(np.array(found, np.int64))


@lru_cache(maxsize=1)
def _known(files: str) -> tuple[set[bytes], NearCopies]:
    content = read_sealed(Path(files, "conversations.json"))["conversations"]
    conversations = conversations_from_json(content)
    return {digest(messages) for messages in conversations}, NearCopies(conversations)


def _exact(store: Store, shards: Sequence[Shard], digests: set[bytes]) -> list[int]:
    import pyarrow.parquet as pq

    found: list[int] = []
    for shard in shards:
        path = store.artifact("rows", shard, ".parquet")
        column = pq.read_table(path, columns=["digest"])["digest"].to_pylist()
        ids = [shard.first_row_id + n for n, key in enumerate(column) if key in digests]
        found += np.intersect1d(store.row_ids(shard), ids).tolist()
    return found


def _near(store: Store, task: _Task) -> Int64:
    """Find the rows that are near a row of the target; positions in the shards, ascending."""
    queries = task.array("vectors")
    small = queries.astype(np.float32)
    near = [np.empty(0, np.int64)]
    for start, units in unit_blocks(task.vectors(store)):
        products = units.astype(np.float32) @ small.T
        rows, of = np.nonzero(products >= np.float32(_LOOK) - rounding(queries.shape[1]))
        close = pair_cosines(units, queries, rows, of) >= _LOOK
        near.append(start + np.unique(rows[close]))
    return np.concatenate(near)


def find_nearest(store: Store, task: _Task) -> tuple[list[Int64], list[Float64]]:
    """Find the rows of some shards that are nearest to each target row."""
    assert task.floors is not None
    rows, cosines = nearest(
        task.vectors(store),
        task.array("vectors"),
        task.length,
        taken=task.array("taken")[task.position :],
        floors=map_npy(Path(task.floors)),
    )
    return [task.position + found for found in rows], cosines


def find_cosines(store: Store, task: _Task) -> Float64:
    """Give how near each row of some shards is to the target, float64 (n,)."""
    targets = np.array(task.array("vectors"))
    parts = [mean_cosines(vectors, targets, task.threads) for vectors in task.vectors(store)]
    return np.concatenate([np.empty(0), *parts])
