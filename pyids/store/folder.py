"""The run folder: shards of rows, what the stages made of them, and the proof of both.

Everything here is written to a temporary file, fsynced and renamed (`atomic_write`), so that a file
that exists is whole. Beside it stands a small ledger entry: the files with their sizes and xxh3
hashes, and `inputs`: what they were made from, and the options that decide their content. A stage
asks `read_entry` before it works: that is all that resuming is.

A shard is a run of rows that were read one after the other; its files in ``rows/``, ``keep/``,
``embeddings/`` and ``labels/`` carry its name. Row ids are dense over all rows that were read:
the rows of shard s are ``first_row_id ... first_row_id + rows - 1``. Rows that were skipped or
dropped keep their number and lie in the shard too, but every stage after the reading works on the
rows that stay, ``row_ids(shard)``.
"""

from __future__ import annotations

import errno
import json
import shutil
import tempfile
import weakref
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import orjson
from filelock import BaseFileLock
from numpy.typing import NDArray

from pyids._typing import Int64
from pyids.chat.formats import Message, to_messages
from pyids.chat.rawjson import parse
from pyids.engine import Engine
from pyids.errors import ConfigError, DamagedError, DataError
from pyids.store.arrays import ShardArrays, map_npy
from pyids.store.files import (
    atomic_write,
    brief,
    create_npy,
    files_inside,
    fingerprint,
    read_sealed,
    write_sealed,
)
from pyids.store.ledger import checked, load_held, load_npy, load_sealed
from pyids.store.manifest import write_manifest
from pyids.store.place import check_links, check_place, is_run_folder, take_lock, write_mark
from pyids.store.remedies import remedy
from pyids.terminal import why_not_written

# What a folder answers that may be read and not written.
_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}
# Who holds which folder in this process: a notebook's cell that is run twice opens a folder twice.
_held: weakref.WeakValueDictionary[str, Store] = weakref.WeakValueDictionary()


def _supersede(store: Store) -> None:
    """Let a folder go that this process holds through another `Store`, which is then of no use."""
    name = str(store.path.resolve())
    if (other := _held.get(name)) is not None and other._lock is not None:
        other.close()
        other.superseded = True
    _held[name] = store


# ---- the run folder ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shard:
    """A run of rows read one after the other: a file in ``rows/``, and its name everywhere else."""

    name: str
    first_row_id: int
    rows: int
    source: int
    first_line: int

    @property
    def row_ids(self) -> range:
        """Ids of all its rows, the skipped and dropped ones too."""
        return range(self.first_row_id, self.first_row_id + self.rows)


class Row(NamedTuple):
    """A row that stays, with all that was in the input."""

    row_id: int
    raw: bytes
    messages: list[Message]
    path: str
    line: int

    @property
    def record(self) -> dict[str, Any]:
        """The original row; integers of any size are exact."""
        record: dict[str, Any] = json.loads(self.raw)
        return record


class Store:
    """A run folder.

    `Store.open` for the process that works in it, which takes its lock; `Store(path)` for those
    that only read, or write the one output that they were told to (the tasks of an engine).

    Parameters
    ----------
    path : Path
        The folder.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.deduplicated = False
        self._lock: BaseFileLock | None = None
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        # Whether this process has opened the folder again, and works there through that.
        self.superseded = False
        self.closed = False

    @classmethod
    def open(cls, path: Path | str, *, may_write: bool = True) -> Self:
        """Make the folder if need be, take its lock, remove what a killed process left behind.

        Parameters
        ----------
        path : path
            The folder.
        may_write : bool, default True
            Whether something will be written there. If not, a folder that cannot be written is
            opened all the same, without a lock.

        Raises
        ------
        ConfigError
            It cannot be written, holds files that are not a run's, or another process works in it.
        """
        store = cls(path)
        try:
            check_place(store.path)
            store.path.mkdir(parents=True, exist_ok=True)
            write_mark(store.path)  # before anything else lies there
            _supersede(store)
            store._lock = take_lock(store.path)
        except OSError as error:
            if not may_write and error.errno in _READ_ONLY and is_run_folder(store.path):
                store._scratch = tempfile.TemporaryDirectory(prefix="pyids-")
                return store
            if error.errno in (errno.EISDIR, errno.ENOTDIR) and store.path.is_dir():
                raise  # of something inside it, which the error names
            problem = why_not_written(error, "choose another --output-dir", "cannot write there")
            raise ConfigError(f"{store.path}: {problem}") from None
        for left_over in files_inside(store.path, ".*.tmp"):
            left_over.unlink(missing_ok=True)
        shutil.rmtree(store.scratch, ignore_errors=True)
        return store

    def check_place(self) -> None:
        """Check that nothing lies there but what a run has made (`pyids.store.place`)."""
        check_place(self.path)

    @property
    def read_only(self) -> bool:
        """Whether nothing can be written there."""
        return self._scratch is not None

    def close(self) -> None:
        """Give the lock back."""
        self.closed = True
        if self._lock is not None:
            self._lock.release()
            self._lock = None
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # -- identity --

    def claim(self, identity: Mapping[str, Any]) -> None:
        """Make this the folder of `identity`, or check that it is.

        Parameters
        ----------
        identity : mapping
            JSON values by name: everything that two runs in one folder must share.

        Raises
        ------
        ConfigError
            The folder belongs to another data set or configuration; names what differs.
        """
        self.check_claim(identity)
        write_sealed(self.path / "identity.json", identity)

    def check_claim(self, identity: Mapping[str, Any]) -> None:
        """Check that the folder is nobody's yet, or that of `identity`; see `claim`."""
        if (had := self.identity()) is None:
            return
        wanted = orjson.loads(orjson.dumps(dict(identity)))
        differing = [key for key in {**had, **wanted} if had.get(key) != wanted.get(key)]
        if differing:
            shown = "; ".join(
                f"{key} was {brief(had.get(key))}, now {brief(wanted.get(key))}"
                for key in differing[:3]
            )
            more = f" (and {len(differing) - 3} more)" if len(differing) > 3 else ""
            raise ConfigError(
                f"{self.path} is the folder of another run: {shown}{more}: choose another "
                "--output-dir, or repeat the run that it holds"
            )

    def identity(self) -> dict[str, Any] | None:
        """Read what the folder was claimed with; None where it is not claimed, or cannot be read.

        Nothing is lost with it: what was made carries its inputs, and what was drawn its options.
        """
        try:
            return read_sealed(self.path / "identity.json")
        except (FileNotFoundError, DamagedError):
            return None

    # -- shards --

    @property
    def scratch(self) -> Path:
        """Folder for what a stage spills; `Store.open` empties it."""
        return Path(self._scratch.name) if self._scratch else self.path / ".scratch"

    def artifact(self, kind: str, shard: Shard, suffix: str = ".npy") -> Path:
        """Path of a shard's file of one kind, such as ``embeddings``."""
        return self.path / kind / f"{shard.name}{suffix}"

    def deduplicate(self) -> None:
        """From now on, let the rows that stay be those of ``distinct/``: no near-duplicates.

        `kept`, `row_ids`, `labels`, `embeddings` and `cluster_sizes` answer for them.
        """
        self.deduplicated = True

    def path_of_pool(self, kind: str, shard: Shard) -> Path:
        """Path of a shard's ``keep`` or ``labels``, for the rows that stay."""
        folder = self.path / "distinct" if self.deduplicated else self.path
        return folder / kind / f"{shard.name}.npy"

    @cached_property
    def _distinct(self) -> dict[str, Any]:
        return load_sealed(self.path / "distinct" / "index.json")

    @property
    def _centroids(self) -> dict[str, Any]:
        return load_sealed(self.path / "centroids.json")

    @property
    def cluster_sizes(self) -> Int64:
        """Rows that stay of each cluster, int64 (K,)."""
        entry = self._distinct if self.deduplicated else self._centroids
        return np.array(entry["sizes"], dtype=np.int64)

    @cached_property
    def index(self) -> dict[str, Any]:
        """``rows/index.json``: what was read, shard by shard.

        Raises
        ------
        DataError
            The rows have not been read to the end.
        """
        check_links(self.path)
        return self._of_reading("rows")

    @cached_property
    def shards(self) -> list[Shard]:
        """The shards in the order of their row ids."""
        return [Shard(**shard) for shard in self.index["shards"]]

    def source(self, shard: Shard) -> Mapping[str, Any]:
        """Give the input file of a shard: its ``path``, ``kind``, ``format``, ``columns``, ..."""
        sources: list[Mapping[str, Any]] = self.index["sources"]
        return sources[shard.source]

    def forget(self) -> None:
        """Forget what was read of the folder, after a stage wrote it anew."""
        for name in ("index", "shards", "_keep", "_distinct"):
            self.__dict__.pop(name, None)

    @property
    def rows_read(self) -> int:
        """Rows in the input; row ids lie below it."""
        return int(self.index["rows"])

    @cached_property
    def _keep(self) -> dict[str, Any]:
        return self._of_reading("keep")

    def _of_reading(self, kind: str) -> dict[str, Any]:
        try:
            return load_held(self.path / kind / "index.json")
        except DamagedError:
            if (self.path / kind / "index.json").exists():
                raise
            raise DataError(
                f"{self.path} holds no rows that were read to the end ({kind}/index.json is missing"
                "): run `pyids run`, or the command that began it, again, with all its options"
            ) from None

    @property
    def kept(self) -> int:
        """Rows that stay: neither skipped nor dropped as duplicates."""
        return int((self._distinct if self.deduplicated else self._keep)["kept"])

    @property
    def skipped(self) -> int:
        """Rows that are unusable; ``skipped.jsonl`` lists them."""
        return int(self._keep["skipped"])

    @property
    def duplicates(self) -> int:
        """Rows dropped because they repeat an earlier one; ``duplicates.jsonl`` lists them."""
        return int(self._keep["duplicates"])

    @property
    def near_duplicates(self) -> int:
        """Rows dropped as near-duplicates; ``near_duplicates.jsonl`` lists them."""
        return int(self._distinct["near_duplicates"]) if self.deduplicated else 0

    def row_ids(self, shard: Shard) -> Int64:
        """Ids of the shard's rows that stay, ascending, memory-mapped."""
        return load_npy(self.path_of_pool("keep", shard))

    def fingerprint(self, shard: Shard) -> str:
        """Stands for the shard's kept rows, near-duplicates too, in what is made of them."""
        return fingerprint(
            [
                self.index["files"][f"{shard.name}.parquet"]["xxh3"],
                self._keep["files"][f"{shard.name}.npy"]["xxh3"],
            ]
        )

    def embeddings(self) -> ShardArrays:
        """Vectors of the rows that stay: float16 or float32, one memory-mapped (rows, D) a shard.

        Of a shard that lost near-duplicates the others are copied, to a file in `scratch`.
        """
        return ShardArrays(lambda i: self._narrowed(self.shards[i]), len(self.shards))

    def _narrowed(self, shard: Shard) -> NDArray[Any]:
        vectors, ids = load_npy(self.artifact("embeddings", shard)), self.row_ids(shard)
        if len(ids) == len(vectors):
            return vectors
        copy = self.scratch / f"{shard.name}.npy"
        if not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            positions = np.searchsorted(load_npy(self.artifact("keep", shard)), ids)
            with atomic_write(copy) as temporary:
                shorter = create_npy(temporary, (len(ids), vectors.shape[1]), vectors.dtype)
                for start in range(0, len(ids), 1024):
                    shorter[start : start + 1024] = vectors[positions[start : start + 1024]]
        return map_npy(copy)

    def embedding(self, row_id: int) -> NDArray[Any]:
        """Give the vector of one row that stays, (D,)."""
        shard = self.shards[bisect_right(self.shards, row_id, key=attrgetter("first_row_id")) - 1]
        position = int(np.searchsorted(load_npy(self.artifact("keep", shard)), row_id))
        return np.array(load_npy(self.artifact("embeddings", shard))[position])

    def labels(self) -> ShardArrays:
        """Cluster of each kept row, one memory-mapped int32 (rows,) a shard."""
        paths = [self.path_of_pool("labels", shard) for shard in self.shards]
        return ShardArrays(lambda i: load_npy(paths[i]), len(paths))

    # -- rows --

    def iter_rows(self, shard: Shard) -> Iterator[Row]:
        """Read the rows of a shard that stay, in order; one row group in memory at a time."""
        return self._rows_of(shard, self.row_ids(shard))

    def iter_messages(self, shard: Shard) -> Iterator[list[Message]]:
        """Read the conversations of a shard's rows that stay, in order."""
        return (row.messages for row in self.iter_rows(shard))

    def read_rows(self, row_ids: Sequence[int] | Int64) -> Iterator[Row]:
        """Read any rows, by ascending row id; only the row groups that hold them are decoded.

        Parameters
        ----------
        row_ids : int64 (n,)
            In any order; given back in ascending order, repeats once.

        Raises
        ------
        ValueError
            An id that was never read.
        """
        wanted = np.unique(np.asarray(row_ids, dtype=np.int64))
        if len(wanted) and (wanted[0] < 0 or wanted[-1] >= self.rows_read):
            stray = wanted[0] if wanted[0] < 0 else wanted[-1]
            raise ValueError(f"row id {stray} was never read: ids are 0 to {self.rows_read - 1}")
        firsts = np.array([shard.first_row_id for shard in self.shards], dtype=np.int64)
        cuts = np.searchsorted(wanted, firsts)
        for shard, start, stop in zip(self.shards, cuts, [*cuts[1:], len(wanted)], strict=True):
            if stop > start:
                yield from self._rows_of(shard, wanted[start:stop])

    def _rows_of(self, shard: Shard, row_ids: Int64) -> Iterator[Row]:
        import pyarrow.parquet as pq

        source = self.source(shard)
        path, format = source["path"], source["format"]
        positions = row_ids - shard.first_row_id
        rows = checked(self.artifact("rows", shard, ".parquet"))
        try:
            with pq.ParquetFile(rows, pre_buffer=False) as file:
                groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
                ends = np.cumsum(groups)
                group_of = np.searchsorted(ends, positions, side="right")
                for group in np.unique(group_of).tolist():
                    table = file.read_row_group(group, columns=["record", "line"])
                    inside = group_of == group
                    table = table.take(positions[inside] - (ends[group] - groups[group]))
                    columns = (table.column(name).to_pylist() for name in ("record", "line"))
                    for row_id, raw, line in zip(row_ids[inside].tolist(), *columns, strict=True):
                        messages = to_messages(parse(raw), format)
                        yield Row(row_id, raw, messages, path, shard.first_line + line)
        except OSError as error:
            if error.errno is not None:
                raise  # of the system, whatever the file holds
            reason = str(error).partition("\n")[0]
            raise DamagedError(f"{rows}: cannot be read ({reason}): {remedy(rows)}") from None

    def write_manifest(self, metadata: Mapping[str, Any], engine: Engine | None = None) -> None:
        """Write ``manifest.json`` (`pyids.store.manifest.write_manifest`)."""
        write_manifest(self.path, metadata, engine)
