"""Precomputed vectors in place of an encoder: a ``.npy`` file, or a column of the data.

They are copied shard by shard, the kept rows only, into ``embeddings/``: the run folder then needs
nothing outside it. Files are mapped, both ways, so that no shard is ever held whole.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pyids.chat.rawjson import parse
from pyids.data.readers import open_arrow, open_parquet
from pyids.data.sources import Source, Split, fingerprint_files, fingerprint_sources, plan_splits
from pyids.engine import Engine, LocalEngine
from pyids.errors import DataError, PyidsWarning
from pyids.store.files import atomic_write, create_npy
from pyids.store.folder import Shard, Store
from pyids.store.ledger import begin, checked, load_npy, read_entry, write_entry

_ROWS_PER_BLOCK = 1024


_MAX_NAMED = 20


Block = tuple[int, NDArray[Any]]


def open_vectors(path: Path | str, rows: int | None = None, *, limit: int | None = None) -> Any:
    """Map a ``.npy`` file of vectors, one for each row of the input.

    Parameters
    ----------
    path : path
        float16, float32 or float64 (n, D).
    rows : int, optional
        Rows of the input; without it only the form is checked.
    limit : int, optional
        When only the first rows were read, there may be more vectors than rows.

    Raises
    ------
    DataError
        No file, no ``.npy``, another shape or type, another number of rows.
    """
    try:
        vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file of vectors: check --embeddings-file") from None
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: no .npy file of numbers ({error}): save it with np.save"
        ) from None
    if vectors.ndim != 2 or vectors.dtype.kind != "f" or vectors.shape[1] == 0:
        raise DataError(
            f"{path}: {vectors.dtype} of shape {vectors.shape}: vectors are float16 or float32 "
            "(rows, dimensions)"
        )
    if rows is not None and (len(vectors) < rows or (limit is None and len(vectors) != rows)):
        raise DataError(
            f"{path}: {len(vectors)} vectors for {rows} rows of input: row i of it is the vector "
            "of row i of the data, skipped and repeated rows included"
        )
    return vectors


def take_vectors(
    store: Store,
    file: str | None,
    *,
    column: str | None = None,
    engine: Engine | None = None,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Copy precomputed vectors of the kept rows into ``embeddings/``; skip shards that are done.

    float16 and float32 stay what they are, float64 becomes float32.

    Parameters
    ----------
    store : Store
        With its rows read; for a column, from sources opened with ``vectors=`` its name.
    file : str or None
        A ``.npy`` file whose row i is the vector of row id i; None: they stand in `column`.
    column : str, optional
        A column that holds in each row a list of numbers, as many as in every other.
    engine : Engine, optional
        Where shards are copied.
    progress : callable, optional
        Called with the number of rows done, shard by shard.

    Returns
    -------
    int
        D, the length of the vectors.

    Raises
    ------
    DataError
        Shape, type or number of the vectors; rows with NaN or infinite values, the first named.

    Warns
    -----
    PyidsWarning
        Rows whose vector is zero: they have no direction, so the cosine metric cannot place them.
    """
    (store.path / "embeddings").mkdir(exist_ok=True)
    if file is not None:
        open_vectors(file, store.rows_read, limit=store.index["limit"])
        tasks, embeddings = _tasks_of_file(store, file), str(file)
    else:
        assert column is not None, "vectors are in a file or in a column"
        tasks, embeddings = _tasks_of_column(store, column), f"column {column!r}"
    widths: dict[int, str] = {}
    zeros: list[int] = []
    zero_rows = done = 0
    for report in (engine or LocalEngine()).map(_copy, tasks):
        for metadata in report:
            if metadata["rows"]:
                widths.setdefault(metadata["width"], metadata["name"])
            zeros += metadata["zeros"][: _MAX_NAMED - len(zeros)]
            zero_rows += metadata["zero_rows"]
            done += metadata["rows"]
            if progress is not None:
                progress(done)
    if len(widths) > 1:
        shown = ", ".join(f"{width} in shard {name}" for width, name in widths.items())
        raise DataError(f"{embeddings}: vectors of several lengths ({shown}): make them one")
    if zero_rows:
        warnings.warn(
            f"{embeddings}: {zero_rows} rows have a zero vector (row ids {_listed(zeros)})",
            PyidsWarning,
            stacklevel=2,
        )
    return next(iter(widths), 0)


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

    @property
    def positions(self) -> NDArray[np.int64]:
        """Positions in the shard of the rows that stay."""
        positions: NDArray[np.int64] = load_npy(Path(self.keep)) - self.first_row_id
        return positions


@dataclass(frozen=True)
class _Task:
    """One shard out of a ``.npy`` file, or the shards of one split out of a column."""

    targets: tuple[_Target, ...]
    name: str
    xxh3: str
    split: Split | None = None


def _target(store: Store, shard: Shard) -> _Target:
    return _Target(
        shard.name,
        shard.rows,
        shard.first_row_id,
        str(store.artifact("keep", shard)),
        str(store.artifact("rows", shard, ".parquet")),
        str(store.artifact("embeddings", shard)),
        store.fingerprint(shard),
    )


def _tasks_of_file(store: Store, path: str) -> Iterator[_Task]:
    [file] = fingerprint_files([path], store)
    for shard in store.shards:
        yield _Task((_target(store, shard),), path, file["xxh3"])


def _tasks_of_column(store: Store, column: str) -> Iterator[_Task]:
    sources = [Source(**source) for source in store.index["sources"]]
    files = fingerprint_sources(sources, store, limit=store.index["limit"])
    shards: dict[str, list[Shard]] = {}
    for shard in store.shards:
        shards.setdefault(shard.name.partition("-")[0], []).append(shard)
    for split in plan_splits(sources):
        targets = tuple(_target(store, shard) for shard in shards.get(f"{split.number:05d}", []))
        if targets:
            yield _Task(targets, column, files[split.source_number]["xxh3"], split)


def _copy(task: _Task) -> list[dict[str, Any]]:
    """Write the vectors of each target; idempotent."""
    stream = None
    if task.split is not None and task.split.source.kind in ("parquet", "arrow"):
        stream = _Stream(_matrices_of_table(task.split, task.name))
    reports = []
    for target in task.targets:
        inputs = {
            "vectors": task.xxh3,
            "column": None if task.split is None else task.name,
            "shard": target.fingerprint,
        }
        out = Path(target.out)
        entry = out.with_suffix(".json")
        done = read_entry(entry, inputs)
        if stream is not None:
            matrices = stream.take(target.rows)
            if done is not None:
                deque(matrices, maxlen=0)
        if done is None:
            begin(entry)
            if stream is not None:
                blocks = _kept(matrices, target)
            elif task.split is not None:
                blocks = _kept_of_records(target, task.name)
            else:
                blocks = _kept_of_file(target, task.name)
            done = write_entry(entry, [out], inputs, **_write(out, blocks, target))
        reports.append({**done, "name": target.name})
    return reports


def _write(out: Path, blocks: Iterator[Block], target: _Target) -> dict[str, Any]:
    """Write blocks of the kept rows' vectors; at least one block comes, maybe an empty one."""
    ids = load_npy(Path(target.keep))
    vectors: NDArray[Any] | None = None
    zeros: list[int] = []
    zero_rows = width = 0
    with atomic_write(out) as temporary:
        for start, block in blocks:
            dtype = np.float16 if block.dtype == np.float16 else np.float32
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
            bad = block_ids[~np.isfinite(block).all(axis=1)].tolist()
            if bad:
                raise DataError(
                    f"vectors with NaN, infinite or missing values (row ids {_listed(bad)}): "
                    "compute them again, or leave those rows out"
                )
            zero = block_ids[~block.any(axis=1)].tolist()
            zeros += zero[: _MAX_NAMED - len(zeros)]
            zero_rows += len(zero)
            vectors[start : start + len(block)] = block
        del vectors
    return {"rows": len(ids), "width": width, "zeros": zeros, "zero_rows": zero_rows}


def _listed(row_ids: list[int]) -> str:
    shown = ", ".join(map(str, row_ids[:_MAX_NAMED]))
    return f"{shown}, ..." if len(row_ids) > _MAX_NAMED else shown


# ---- where vectors come from ---------------------------------------------------------------------


def _kept_of_file(target: _Target, path: str) -> Iterator[Block]:
    vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    ids = load_npy(Path(target.keep))
    yield 0, vectors[:0]
    for start in range(0, len(ids), _ROWS_PER_BLOCK):
        yield start, vectors[ids[start : start + _ROWS_PER_BLOCK]]


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
            for first in range(0, len(raws), _ROWS_PER_BLOCK):
                part = raws[first : first + _ROWS_PER_BLOCK]
                lists = [parse(raw).get(column) for raw in part]
                row_id = target.first_row_id + int(positions[low + first])
                yield int(low) + first, _matrix_of_lists(lists, column, row_id)
        if not len(positions):
            yield 0, np.empty((0, 0), np.float32)


def _matrix_of_lists(lists: list[Any], column: str, row_id: int) -> NDArray[np.float32]:
    try:
        matrix = np.array(lists, dtype=np.float32)
    except (TypeError, ValueError):
        matrix = np.empty(0, np.float32)
    if matrix.ndim != 2:
        raise DataError(
            f"column {column!r} of the rows from row id {row_id} on: not lists of numbers of one "
            "length: make them so"
        )
    return matrix


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
            _ROWS_PER_BLOCK, row_groups=range(split.start, split.stop), columns=[column]
        )
        for batch in batches:
            yield _matrix(batch.column(0), source.path, column)
        return
    for batch in islice(open_arrow(source.path), split.start, split.stop):
        for start in range(0, batch.num_rows, _ROWS_PER_BLOCK):
            part = batch.slice(start, _ROWS_PER_BLOCK)
            yield _matrix(part.column(column), source.path, column)


def _matrix(lists: pa.Array, path: str, column: str) -> NDArray[Any]:
    """Make a matrix of a list array; a missing list becomes a row of NaN."""
    kind = lists.type
    if not (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    ):
        raise DataError(f"{path}: column {column!r} is {kind}, not a list of numbers")
    if not (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)):
        raise DataError(f"{path}: column {column!r} holds lists of {kind.value_type}, not numbers")
    widths = pc.unique(pc.list_value_length(lists).drop_null()).to_pylist()
    if len(widths) > 1 or widths == [0]:
        raise DataError(f"{path}: column {column!r} has lists of {widths} numbers: make them one")
    values = lists.flatten().to_numpy(zero_copy_only=False)
    matrix = values.reshape(-1, widths[0]) if widths else np.empty((0, 1), np.float32)
    if values.dtype.kind != "f":
        matrix = matrix.astype(np.float32)
    if lists.null_count == 0:
        return matrix
    whole = np.full((len(lists), matrix.shape[1]), np.nan, matrix.dtype)
    whole[pc.is_valid(lists).to_numpy(zero_copy_only=False)] = matrix
    return whole
