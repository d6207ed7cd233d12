"""Precomputed vectors in place of an encoder: files of vectors, or a column of the data.

They are copied shard by shard, the kept rows only, into ``embeddings/``: the run folder then needs
nothing outside it. Files are mapped, both ways, so that no shard is ever held whole. A shard that
has its vectors keeps them, whatever the files hold beside.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pyids.chat.rawjson import parse
from pyids.data.columnar import open_arrow, open_parquet
from pyids.data.fingerprints import fingerprint_files, fingerprint_sources
from pyids.data.shard_writer import split_name
from pyids.data.sources import Source
from pyids.data.splits import Split, plan_splits
from pyids.data.vector_files import (
    ROWS_PER_BLOCK,
    VectorFiles,
    blocks,
    matrix_of_lists,
    open_vectors,
)
from pyids.data.zero_vectors import (
    MAX_NAMED,
    drop_zero_rows,
    listed_ids,
    no_direction,
    zero_rows,
)
from pyids.engine import Engine, LocalEngine
from pyids.errors import ConfigError, DamagedError, DataError, PyidsWarning
from pyids.store.files import atomic_write, create_npy, fingerprint, read_sealed, write_sealed
from pyids.store.folder import Shard, Store
from pyids.store.ledger import (
    begin,
    checked,
    damaged_files,
    load_npy,
    read_entry,
    write_entry,
)

Block = tuple[int, NDArray[Any]]


def take_vectors(
    store: Store,
    file: str | None,
    *,
    column: str | None = None,
    engine: Engine | None = None,
    progress: Callable[[int], None] | None = None,
    metric: str = "euclidean",
    zero_vectors: str = "error",
    known: int = 0,
) -> int:
    """Copy precomputed vectors of the kept rows into ``embeddings/``; skip shards that are done.

    They are float16 where all of the pool are, else float32.

    Parameters
    ----------
    store : Store
        With its rows read; for a column, from sources opened with ``vectors=`` its name.
    file : str or None
        Files whose row i is the vector of row id i (`open_vectors`); None: they stand in `column`.
    column : str, optional
        A column that holds in each row a list of numbers, as many as in every other.
    engine : Engine, optional
        Where shards are copied.
    progress : callable, optional
        Called with the number of rows done, shard by shard.
    metric : str
        By ``cosine`` a zero vector has no direction and no cluster.
    zero_vectors : str
        What is then done with such rows: ``error``, or ``drop``, which lists them in
        ``skipped.jsonl``.

    known : int, default 0
        Of so many sources, from the first on, the rows must have the vectors that they had: the
        pool grows by the others.

    Returns
    -------
    int
        D, the length of the vectors.

    Raises
    ------
    DataError
        Shape, type or number of the vectors; rows with NaN or infinite values, or zero vectors
        under the cosine, the first named.
    ConfigError
        A row of a known source has another vector than before.

    Warns
    -----
    PyidsWarning
        Rows whose vector is zero: they have no direction, so the cosine metric cannot place them.
    """
    (store.path / "embeddings").mkdir(exist_ok=True)
    copied = _copy_all(store, file, column, engine or LocalEngine(), progress, known)
    if copied.zero_rows and metric == "cosine" and zero_vectors == "drop":
        drop_zero_rows(store)
        copied = _copy_all(store, file, column, engine or LocalEngine(), progress, known)
    if copied.zero_rows:
        if metric == "cosine":
            raise DataError(no_direction(copied.name, copied.zero_rows, copied.zeros))
        text = zero_rows(copied.name, copied.zero_rows, copied.zeros)
        warnings.warn(text, PyidsWarning, stacklevel=2)
    return copied.width


@dataclass
class _Copied:
    """What copying has found."""

    name: str
    width: int = 0
    zero_rows: int = 0
    zeros: list[int] = field(default_factory=list)


def _copy_all(
    store: Store,
    file: str | None,
    column: str | None,
    engine: Engine,
    progress: Callable[[int], None] | None,
    known: int,
) -> _Copied:
    if file is not None:
        vectors = open_vectors(file, store.rows_read, limit=store.index["limit"])
        tasks, name = _tasks_of_file(store, vectors, known), str(file)
    else:
        assert column is not None, "vectors are in a file or in a column"
        tasks, name = _tasks_of_column(store, column), f"column {column!r}"
    copied = _Copied(name)
    widths: dict[int, str] = {}
    done = 0
    for report in engine.map(_copy, tasks):
        for metadata in report:
            if metadata["rows"]:
                widths.setdefault(metadata["width"], metadata["name"])
            copied.zeros += metadata["zeros"][: MAX_NAMED - len(copied.zeros)]
            copied.zero_rows += metadata["zero_rows"]
            done += metadata["rows"]
            if progress is not None:
                progress(done)
    if len(widths) > 1:
        shown = ", ".join(f"{width} in shard {name}" for width, name in widths.items())
        raise DataError(f"{name}: vectors of several lengths ({shown}): make them one")
    copied.width = next(iter(widths), 0)
    return copied


# ---- tasks ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Target:
    """A shard: which of its rows stay, and where their vectors go."""

    name: str
    rows: int
    first_row_id: int
    keep: str
    parquet: str
    out: str
    fingerprint: str
    # Whether its rows must have the vectors that were copied before.
    fixed: bool = False

    @property
    def positions(self) -> NDArray[np.int64]:
        """Positions in the shard of the rows that stay."""
        positions: NDArray[np.int64] = load_npy(Path(self.keep)) - self.first_row_id
        return positions


@dataclass(frozen=True)
class _Task:
    """One shard out of files of vectors, or the shards of one split out of a column."""

    targets: tuple[_Target, ...]
    name: str
    xxh3: str
    half: bool
    split: Split | None = None
    files: VectorFiles | None = None


def _target(store: Store, shard: Shard, known: int = 0) -> _Target:
    return _Target(
        shard.name,
        shard.rows,
        shard.first_row_id,
        str(store.artifact("keep", shard)),
        str(store.artifact("rows", shard, ".parquet")),
        str(store.artifact("embeddings", shard)),
        store.fingerprint(shard),
        shard.source < known,
    )


def _tasks_of_file(store: Store, vectors: VectorFiles, known: int) -> Iterator[_Task]:
    hashes = [file["xxh3"] for file in fingerprint_files(vectors.paths, store)]
    half = vectors.dtype == np.float16
    files = VectorFiles(vectors.paths, vectors.column)  # without what is open here
    for shard in store.shards:
        ids = shard.row_ids
        # Of several files those of its own rows alone: others may come as the pool grows.
        own = [[hashes[n], first] for n, first in vectors.files_of(ids.start, ids.stop)]
        in_first = own == [[hashes[0], ids.start]]
        one = hashes[0] if in_first else fingerprint(own)
        yield _Task((_target(store, shard, known),), vectors.column or "", one, half, files=files)


def _tasks_of_column(store: Store, column: str) -> Iterator[_Task]:
    sources = [Source(**source) for source in store.index["sources"]]
    hashes = fingerprint_sources(sources, store, limit=store.index["limit"])
    half = all(_is_half(source, column) for source in sources)
    shards: dict[str, list[Shard]] = {}
    for shard in store.shards:
        shards.setdefault(shard.name.partition("-")[0], []).append(shard)
    for split in plan_splits(sources):
        targets = tuple(_target(store, shard) for shard in shards.get(split_name(split.number), []))
        if targets:
            yield _Task(targets, column, hashes[split.source_number]["xxh3"], half, split)


def _is_half(source: Source, column: str) -> bool:
    """Whether a column of vectors is float16."""
    if source.kind == "parquet":
        schema = open_parquet(source.path).schema_arrow
    elif source.kind == "arrow":
        schema = open_arrow(source.path).schema
    else:
        return False
    kind = schema.field(column).type
    return bool(getattr(kind, "value_type", None) == pa.float16())


def _copy(task: _Task) -> list[dict[str, Any]]:
    """Write the vectors of each target; idempotent."""
    stream = None
    if task.split is not None and task.split.source.kind in ("parquet", "arrow"):
        stream = _Stream(_matrices_of_table(task.split, task.name))
    reports = []
    for target in task.targets:
        inputs = {
            "vectors": task.xxh3,
            "column": task.name or None,
            "shard": target.fingerprint,
            "half": task.half,
        }
        out = Path(target.out)
        entry = out.with_suffix(".json")
        done = read_entry(entry, inputs)
        if done is None and task.files is not None:
            done = _carried_over(out, inputs, target, task.files)
        if stream is not None:
            matrices = stream.take(target.rows)
            if done is not None:
                deque(matrices, maxlen=0)
        if done is None:
            begin(entry)
            found: Iterator[Block]
            if stream is not None:
                found = _kept(matrices, target)
            elif task.files is not None:
                found = blocks(task.files, load_npy(Path(target.keep)))
            else:
                found = _kept_of_records(target, task.name)
            dtype = np.float16 if task.half else np.float32
            done = write_entry(entry, [out], inputs, **_write(out, found, target, dtype))
        reports.append({**done, "name": target.name})
    return reports


def _carried_over(
    out: Path, inputs: dict[str, Any], target: _Target, files: VectorFiles
) -> dict[str, Any] | None:
    """Give the entry of a shard anew where it has these vectors already, out of another file.

    A file that a pool has grown in is another file: what it says of old rows is compared with what
    was copied, and only the entry is written. Where they must be the same they are not made anew.
    """
    entry = out.with_suffix(".json")
    try:
        had = read_sealed(entry)
    except (FileNotFoundError, DamagedError):
        return None
    if {**had["inputs"], "vectors": None} != {**inputs, "vectors": None}:
        return None
    if next(damaged_files(entry, had), None) is not None:
        return None
    copied = load_npy(out)
    if copied.shape != (had["rows"], files.shape[1]):
        return None
    ids = load_npy(Path(target.keep))
    for start, block in blocks(files, ids):
        with np.errstate(over="ignore"):
            block = block.astype(copied.dtype, copy=False)
        old = copied[start : start + len(block)]
        if block.tobytes() == old.tobytes():
            continue
        if target.fixed:
            first = int(ids[start + np.flatnonzero((block != old).any(axis=1))[0]])
            raise ConfigError(
                f"{files.paths[0]}: row id {first} of the files that were read before has another "
                "vector than then: the vectors of new files follow those of old ones, whatever "
                "their names; put them last, or in a file of their own behind the old one"
            )
        return None
    return write_sealed(entry, {**had, "inputs": inputs})


def _write(
    out: Path, found: Iterator[Block], target: _Target, dtype: type[np.floating[Any]]
) -> dict[str, Any]:
    """Write blocks of the kept rows' vectors; at least one block comes, maybe an empty one."""
    ids = load_npy(Path(target.keep))
    vectors: NDArray[Any] | None = None
    zeros: list[int] = []
    zero_rows = width = 0
    with atomic_write(out) as temporary:
        for start, block in found:
            with np.errstate(over="ignore"):  # what overflows is found as an infinite value
                block = block.astype(dtype, copy=False)
            if vectors is None:
                width = block.shape[1]
                vectors = create_npy(temporary, (len(ids), width), dtype)
            block_ids = ids[start : start + len(block)]
            if block.shape[1] != width:
                raise DataError(
                    f"vectors of row ids {block_ids[0]} and following have {block.shape[1]} "
                    f"numbers, those before them {width}: make them one length"
                )
            finite, zero_vector = _look_at(block)
            bad = block_ids[~finite].tolist()
            if bad:
                raise DataError(
                    f"vectors with NaN, infinite or missing values (row ids {listed_ids(bad)}): "
                    "compute them again, or leave those rows out"
                )
            zero = block_ids[zero_vector].tolist()
            zeros += zero[: MAX_NAMED - len(zeros)]
            zero_rows += len(zero)
            vectors[start : start + len(block)] = block
        del vectors
    return {"rows": len(ids), "width": width, "zeros": zeros, "zero_rows": zero_rows}


def _look_at(block: NDArray[Any]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Tell which vectors of a block are finite, and which are zero."""
    if block.dtype != np.float16 or not block.shape[1]:
        return np.isfinite(block).all(axis=1), np.logical_not(block.any(axis=1))
    # By their bits, without the sign: NumPy widens each half before it looks at it, for a third of
    # the time that copying takes. Infinity is 0x7c00, and what is not a number is above it.
    bits = np.ascontiguousarray(block).view(np.uint16) & np.uint16(0x7FFF)
    largest = bits.max(axis=1)
    return largest < 0x7C00, largest == 0


# ---- where vectors come from ---------------------------------------------------------------------


def _kept_of_records(target: _Target, column: str) -> Iterator[Block]:
    """Vectors out of the JSON of the rows, which holds the column."""
    positions = target.positions
    with pq.ParquetFile(checked(Path(target.parquet)), pre_buffer=False) as file:
        end = 0
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=["record"])
            start, end = end, end + table.num_rows
            low, high = np.searchsorted(positions, [start, end])
            raws = table.column("record").take(positions[low:high] - start).to_pylist()
            for first in range(0, len(raws), ROWS_PER_BLOCK):
                part = raws[first : first + ROWS_PER_BLOCK]
                lists = [parse(raw).get(column) for raw in part]
                ids = target.first_row_id + positions[low + first : low + first + len(part)]
                yield int(low) + first, _matrix_of_lists(lists, column, ids)
        if not len(positions):
            yield 0, np.empty((0, 0), np.float32)


def _matrix_of_lists(
    lists: list[Any], column: str, row_ids: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Make a matrix of what JSON holds; a missing number becomes NaN."""
    first = lists[0] if lists else None
    for row_id, numbers in zip(row_ids.tolist(), lists, strict=True):
        # NumPy would take true for 1, and the text "1" for a number.
        if not isinstance(numbers, list) or not set(map(type, numbers)) <= _NUMBERS:
            what = "no list of numbers"
        elif not numbers:
            what = "an empty list"
        elif len(numbers) != len(first or ()):
            what = f"{len(numbers)} numbers, row id {row_ids[0]} {len(first or ())}"
        else:
            continue
        raise DataError(
            f"column {column!r}: row id {row_id} holds {what}: make them lists of numbers of one "
            "length"
        )
    try:
        return np.array(lists, dtype=np.float32)
    except OverflowError:  # a whole number that no float holds: as infinite as 1e999
        numbers = [[x if x is None else _float(x) for x in numbers] for numbers in lists]
        return np.array(numbers, dtype=np.float32)


_NUMBERS = {int, float, type(None)}


def _float(number: int | float) -> float:
    try:
        return float(number)
    except OverflowError:
        return float("inf")


class _Stream:
    """Consecutive rows of a stream of matrices, as many as are asked for."""

    def __init__(self, matrices: Iterator[NDArray[Any]]) -> None:
        self._matrices = matrices
        self._left: NDArray[Any] | None = None

    def take(self, rows: int) -> Iterator[NDArray[Any]]:
        """Yield matrices of `rows` rows in all."""
        while rows:
            matrix = self._left if self._left is not None else next(self._matrices)
            self._left = matrix[rows:] if len(matrix) > rows else None
            yield matrix[:rows]
            rows -= min(rows, len(matrix))


def _kept(matrices: Iterator[NDArray[Any]], target: _Target) -> Iterator[Block]:
    """Choose the rows that stay out of all rows of a shard."""
    positions = target.positions
    end = 0
    for matrix in matrices:
        start, end = end, end + len(matrix)
        low, high = np.searchsorted(positions, [start, end])
        yield int(low), matrix[positions[low:high] - start]


def _matrices_of_table(split: Split, column: str) -> Iterator[NDArray[Any]]:
    """Read the vectors of all rows of a split, straight from Arrow's buffers."""
    source = split.source
    if source.kind == "parquet":
        file = open_parquet(source.path)
        batches = file.iter_batches(
            ROWS_PER_BLOCK, row_groups=range(split.start, split.stop), columns=[column]
        )
        for batch in batches:
            yield matrix_of_lists(batch.column(0), source.path, column)
        return
    for batch in islice(open_arrow(source.path), split.start, split.stop):
        for start in range(0, batch.num_rows, ROWS_PER_BLOCK):
            part = batch.slice(start, ROWS_PER_BLOCK)
            yield matrix_of_lists(part.column(column), source.path, column)
