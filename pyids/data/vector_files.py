"""Files of vectors as one matrix: ``.npy``, columns of parquet, Lance tables; one or many."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pyids.data.remote import is_remote, open_remote, remote_facts, remote_files
from pyids.data.remote_vectors import RemoteArray
from pyids.errors import DataError
from pyids.store.arrays import map_npy

ROWS_PER_BLOCK = 1024


_ENDINGS = (".npy", ".parquet", ".lance")


def vector_paths(name: str) -> tuple[list[str], str | None]:
    """Find the files that a name of vectors stands for.

    Parameters
    ----------
    name : str
        A file, a folder, a glob, or one of these with ``:COLUMN``.

    Returns
    -------
    list of str
        The files, sorted by path, in the order of their rows.
    str or None
        The column of those that are tables.

    Raises
    ------
    DataError
        There are none.
    """
    column = None
    if is_remote(name):
        return _remote_paths(name)
    if not Path(name).exists() and not glob.glob(name) and ":" in name:
        name, _, column = name.rpartition(":")
    path = Path(name)
    if path.suffix == ".lance" or path.is_file():
        found = [path]
    elif path.is_dir():
        found = sorted(file for file in path.iterdir() if file.suffix in _ENDINGS)
    else:
        found = [Path(file) for file in sorted(glob.glob(name, recursive=True))]
    if not found or not all(file.exists() for file in found):
        raise DataError(
            f"{name}: no such file of vectors: check --embeddings-file (a file, folder or glob of "
            f"{', '.join(_ENDINGS)})"
        )
    for file in found:
        if not file.is_file() and not file.is_dir():
            raise DataError(f"{file}: a pipe or device: give a file that can be read again")
        try:
            str(file).encode()
        except UnicodeEncodeError:
            raise DataError(f"{file}: a file name that is no UTF-8: rename the file") from None
    return [str(file) for file in found], column


def _remote_paths(name: str) -> tuple[list[str], str | None]:
    """Find the files of a bucket that a name of vectors stands for, and the column."""
    before, _, last = name.rpartition("/")
    file, colon, column = last.partition(":")
    address = f"{before}/{file}"
    found = remote_files(address)
    # Of a folder those that hold vectors, as on a disk.
    chosen = found if found == [address] else [f for f in found if f.endswith((".npy", ".parquet"))]
    if not chosen or not all(f.endswith((".npy", ".parquet")) for f in chosen):
        raise DataError(
            f"{address}: no file of vectors there that can be read by ranges: name a file, a "
            "folder or a pattern of .npy or .parquet"
        )
    return chosen, column if colon else None


@dataclass(frozen=True)
class VectorFiles:
    """Vectors of one or many files: row i of them all is the vector of row i of the data."""

    paths: tuple[str, ...]
    column: str | None = None

    @cached_property
    def _parts(self) -> list[_Part]:
        return [_open(path, self.column, _changed(path)) for path in self.paths]

    @cached_property
    def shape(self) -> tuple[int, int]:
        """(n, D)."""
        widths = {part.width: part.path for part in self._parts}
        if len(widths) > 1:
            shown = ", ".join(f"{width} in {path}" for width, path in widths.items())
            raise DataError(f"vectors of several lengths ({shown}): make them one")
        return sum(part.rows for part in self._parts), next(iter(widths))

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """float16 where all of them are, else float32: one pool has one precision."""
        half = all(part.dtype == np.float16 for part in self._parts)
        return np.dtype(np.float16 if half else np.float32)

    def __len__(self) -> int:
        return self.shape[0]

    def files_of(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Give the files that hold rows of a range: which one, and where in it the range begins."""
        ends = np.cumsum([part.rows for part in self._parts]).tolist()
        starts = [0, *ends[:-1]]
        return [
            (n, max(0, start - first))
            for n, (first, end) in enumerate(zip(starts, ends, strict=True))
            if first < stop and end > start
        ]

    def take(self, ids: NDArray[np.int64]) -> NDArray[Any]:
        """Give the vectors of ascending row ids, in any float type, (len(ids), D)."""
        ends = np.cumsum([part.rows for part in self._parts])
        cuts = np.searchsorted(ids, ends)
        taken, start = [], 0
        for part, end, cut in zip(self._parts, ends, cuts, strict=True):
            if cut > start:
                taken.append(part.take(ids[start:cut] - (end - part.rows)))
                start = cut
        return taken[0] if len(taken) == 1 else np.concatenate(taken)


def open_vectors(
    path: Path | str, rows: int | None = None, *, limit: int | None = None
) -> VectorFiles:
    """Map files of vectors, one for each row of the input.

    Parameters
    ----------
    path : path
        float16, float32 or float64 (n, D): a ``.npy`` file, a parquet file or Lance table with a
        list column (``FILE:COLUMN`` where it has several), a folder or a glob of them.
    rows : int, optional
        Rows of the input; without it only the form is checked.
    limit : int, optional
        When only the first rows were read, there may be more vectors than rows.

    Returns
    -------
    VectorFiles

    Raises
    ------
    DataError
        No file, no vectors, another shape or type, another number of rows.
    """
    paths, column = vector_paths(str(path))
    vectors = VectorFiles(tuple(paths), column)
    if rows is not None and (len(vectors) < rows or (limit is None and len(vectors) != rows)):
        raise DataError(
            f"{path}: {len(vectors)} vectors for {rows} rows of input: give one a row, in "
            "their order, skipped and repeated rows included"
        )
    _ = vectors.shape, vectors.dtype
    return vectors


@dataclass
class _Part:
    """One file."""

    path: str
    rows: int
    width: int
    dtype: np.dtype[Any]
    array: Any = None
    column: str = ""

    def take(self, positions: NDArray[np.int64]) -> NDArray[Any]:
        if self.array is not None:
            first, last = positions[0], positions[-1] + 1
            if isinstance(self.array, np.ndarray) and last - first == len(positions):
                return self.array[first:last]  # without a copy
            return np.asarray(self.array[positions])
        if self.path.endswith(".lance"):
            table = _lance(self.path).take(positions.tolist(), columns=[self.column])
            lists = table.column(self.column).combine_chunks()
            return matrix_of_lists(lists, self.path, self.column)
        blocks, end = [], 0
        with pq.ParquetFile(_readable(self.path), pre_buffer=False) as file:
            for group in range(file.num_row_groups):
                start, end = end, end + file.metadata.row_group(group).num_rows
                low, high = np.searchsorted(positions, [start, end])
                if high > low:
                    blocks.append(self._of_group(file, group, positions[low:high] - start))
        return np.concatenate(blocks)

    def _of_group(self, file: Any, group: int, wanted: NDArray[np.int64]) -> NDArray[Any]:
        blocks, end = [], 0
        for batch in file.iter_batches(ROWS_PER_BLOCK, row_groups=[group], columns=[self.column]):
            start, end = end, end + len(batch)
            low, high = np.searchsorted(wanted, [start, end])
            if high > low:
                whole = matrix_of_lists(batch.column(0), self.path, self.column)
                blocks.append(whole[wanted[low:high] - start])
        return np.concatenate(blocks)


def _changed(path: str) -> int | str:
    """Return what changes when a file does."""
    return remote_facts(path)[1] if is_remote(path) else os.stat(path).st_mtime_ns


def _readable(path: str) -> Any:
    """Give parquet's reader a file on a disk, or one of a bucket that is read by ranges."""
    return open_remote(path) if is_remote(path) else path


@lru_cache(maxsize=4096)
def _open(path: str, column: str | None, changed: int | str) -> _Part:
    """Open a file, once in a process for as long as it does not change."""
    if path.endswith(".lance"):
        dataset = _lance(path)
        return _of_table(path, dataset.schema, dataset.count_rows(), column)
    if path.endswith(".parquet"):
        try:
            with pq.ParquetFile(_readable(path), pre_buffer=False) as file:
                return _of_table(path, file.schema_arrow, file.metadata.num_rows, column)
        except (OSError, pa.ArrowInvalid) as error:
            reason = str(error).partition("\n")[0]
            raise DataError(f"{path}: no parquet file ({reason}): get it again") from None
    return _of_npy(path)


def _of_npy(path: str) -> _Part:
    try:
        with np.errstate(over="ignore"):  # a shape that no file has is refused below
            vectors: Any = (
                RemoteArray.open(path)
                if is_remote(path)
                else np.load(path, mmap_mode="r", allow_pickle=False)
            )
    except (OSError, ValueError, EOFError, OverflowError) as error:
        raise DataError(
            f"{path}: no .npy file of numbers ({error}): save it with np.save"
        ) from None
    if isinstance(vectors, np.lib.npyio.NpzFile):
        names = ", ".join(vectors.files[:5])
        vectors.close()
        raise DataError(f"{path}: an .npz archive (of {names}): save its array with np.save")
    if vectors.ndim != 2 or vectors.dtype.kind != "f" or vectors.shape[1] == 0:
        raise DataError(
            f"{path}: {vectors.dtype} of shape {vectors.shape}: vectors are float16 or float32 "
            "(rows, dimensions): save them so"
        )
    if isinstance(vectors, np.memmap):
        vectors = map_npy(Path(path))  # which keeps no descriptor: there may be thousands of files
    rows, width = vectors.shape
    return _Part(path, rows, width, vectors.dtype.newbyteorder("="), vectors)


def _of_table(path: str, schema: pa.Schema, rows: int, column: str | None) -> _Part:
    lists = [field.name for field in schema if _is_numbers(field.type)]
    if column is None and len(lists) != 1:
        raise DataError(
            f"{path}: the columns with lists of numbers are {', '.join(lists) or 'none'}: name one "
            "as FILE:COLUMN"
        )
    column = column or lists[0]
    if column not in lists:
        raise DataError(
            f"{path}: there is no column {column!r} of lists of numbers: name one of "
            f"those it has ({', '.join(lists) or 'none'})"
        )
    kind = schema.field(column).type
    half = kind.value_type == pa.float16()
    width = kind.list_size if pa.types.is_fixed_size_list(kind) else _first_width(path, column)
    return _Part(path, rows, width, np.dtype("f2" if half else "f4"), column=column)


def _first_width(path: str, column: str) -> int:
    if path.endswith(".lance"):
        first = _lance(path).take([0], columns=[column]).column(0).combine_chunks()
        return int(matrix_of_lists(first, path, column).shape[1])
    with pq.ParquetFile(_readable(path), pre_buffer=False) as file:
        for batch in file.iter_batches(1, columns=[column]):
            return int(matrix_of_lists(batch.column(0), path, column).shape[1])
    raise DataError(f"{path}: the file holds no rows: leave it out, or get it again")


def _lance(path: str) -> Any:
    try:
        import lance
    except ImportError:
        raise DataError(
            f"{path}: a Lance table needs the package pylance: pip install pylance"
        ) from None
    return lance.dataset(path)


def _is_list(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def _is_numbers(kind: pa.DataType) -> bool:
    return _is_list(kind) and bool(
        pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)
    )


def matrix_of_lists(lists: pa.Array, path: str, column: str) -> NDArray[Any]:
    """Make a matrix of a list array; a missing list becomes a row of NaN."""
    kind = lists.type
    if not _is_list(kind):
        raise DataError(f"{path}: column {column!r} is {kind}, not a list of numbers: name another")
    if not _is_numbers(kind):
        raise DataError(
            f"{path}: column {column!r} holds lists of {kind.value_type}, no numbers: name another"
        )
    widths = pc.unique(pc.list_value_length(lists).drop_null()).to_pylist()
    if widths == [0]:
        raise DataError(f"{path}: column {column!r} holds empty lists: make them vectors")
    if len(widths) > 1:
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


def blocks(files: VectorFiles, ids: Sequence[int] | NDArray[np.int64]) -> Iterator[tuple[int, Any]]:
    """Yield (position of the first, vectors) of ascending row ids, block by block."""
    wanted = np.asarray(ids, np.int64)
    yield 0, np.empty((0, files.shape[1]), files.dtype)
    for start in range(0, len(wanted), ROWS_PER_BLOCK):
        yield start, files.take(wanted[start : start + ROWS_PER_BLOCK])
