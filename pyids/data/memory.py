"""Rows that stand in memory, written once to a file that is read like any other."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from pyids.data.columnar import to_json
from pyids.errors import DataError
from pyids.store.files import atomic_write

# Rows of a record batch: the file's bytes must not follow from how the rows were chunked.
_BATCH_ROWS = 16_384


_TAKEN = (
    "give a datasets.Dataset or IterableDataset, a pandas or polars data frame, an Arrow table, or "
    "an iterable of dicts"
)


_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE


# What rows in memory are written to.
FILES = ("data.arrow", "data.jsonl")


def materialize(data: object, folder: Path | str) -> Path:
    """Write rows to ``data.arrow`` or ``data.jsonl`` in a folder.

    Parameters
    ----------
    data : object
        A `datasets.Dataset` or `IterableDataset`; a pandas or polars data frame; an Arrow table,
        batch, reader or anything else that offers an Arrow stream; an iterable of mappings, which
        is gone through once.
    folder : path
        Made if need be.

    Returns
    -------
    Path
        The file; row i of it is row i of the data, and the same rows are the same bytes.

    Raises
    ------
    DataError
        Another type, no rows, a row that is no mapping, or a value that JSON cannot hold.
    """
    folder = Path(folder)
    batches = _arrow_batches(data)
    folder.mkdir(parents=True, exist_ok=True)
    if batches is not None:
        path = folder / FILES[0]
        rows = _write_arrow(path, batches)
    else:
        path = folder / FILES[1]
        rows = _write_lines(path, _records(data))
    if not rows:
        path.unlink()
        raise DataError(f"{_named(data)} holds no rows: check how it was made")
    return path


def _named(data: object) -> str:
    kind = type(data)
    return f"data of type {kind.__module__.partition('.')[0]}.{kind.__qualname__}".replace(
        "builtins.", ""
    )


def _is(data: object, module: str, name: str) -> bool:
    """Whether data is of a class of a package that need not be installed."""
    return any(
        base.__module__.partition(".")[0] == module and base.__name__ == name
        for base in type(data).__mro__
    )


def _arrow_batches(data: Any) -> Iterator[pa.RecordBatch] | None:
    """Give tables of any make as record batches; None for rows that come one by one."""
    if _is(data, "datasets", "Dataset"):
        tables = data.with_format("arrow").iter(batch_size=_BATCH_ROWS)
        return (batch for table in tables for batch in table.to_batches())
    if _is(data, "pandas", "DataFrame"):
        if not all(isinstance(name, str) for name in data.columns):
            raise DataError("the data frame has column names that are no texts: rename them")
        if not data.columns.is_unique:
            name = data.columns[data.columns.duplicated()][0]
            raise DataError(f"the data frame has the column {name!r} twice: rename one")
        try:
            table = pa.Table.from_pandas(data, preserve_index=False)
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError):
            return None  # values of several types in a column: row by row
        batches: Iterator[pa.RecordBatch] = iter(table.to_batches())
        return batches
    if isinstance(data, pa.RecordBatch):
        return iter([data])
    if hasattr(data, "__arrow_c_stream__"):
        try:
            stream: Iterator[pa.RecordBatch] = iter(pa.RecordBatchReader.from_stream(data))
            return stream
        except (pa.ArrowInvalid, TypeError) as error:
            reason = str(error).partition("\n")[0]
            raise DataError(f"{_named(data)} is no table ({reason}): {_TAKEN}") from None
    return None


def _write_arrow(path: Path, batches: Iterator[pa.RecordBatch]) -> int:
    rows = waiting = 0
    held: list[pa.RecordBatch] = []
    writer: Any = None

    def write(count: int) -> None:
        """Write the first rows of what is held as batches of one size."""
        nonlocal held, waiting
        table = pa.Table.from_batches(held)
        for start in range(0, count, _BATCH_ROWS):
            stop = min(start + _BATCH_ROWS, count)
            try:
                # Taken, not sliced: a slice may bring a bitmap that says that nothing is null.
                part = table.take(np.arange(start, stop))
            except pa.ArrowNotImplementedError:  # views of texts, as polars has them
                part = table.slice(start, stop - start)
            for batch in part.combine_chunks().to_batches():
                writer.write_batch(batch)
        held, waiting = table.slice(count).to_batches(), len(table) - count

    with atomic_write(path) as temporary:
        sink = pa.OSFile(str(temporary), "wb")
        try:
            for batch in batches:
                if writer is None:
                    writer = pa.ipc.new_stream(sink, batch.schema)
                if len(batch):
                    held.append(batch)
                rows += len(batch)
                waiting += len(batch)
                if waiting >= _BATCH_ROWS:
                    write(waiting - waiting % _BATCH_ROWS)
            if held:
                write(waiting)
            if writer is not None:
                writer.close()
        finally:
            sink.close()
    return rows


def _records(data: Any) -> Iterator[tuple[int, Any]]:
    if _is(data, "pandas", "DataFrame"):
        names = list(data.columns)
        yield from enumerate(
            {
                name: None if value != value else value
                for name, value in zip(names, row, strict=True)
            }
            if all(not hasattr(value, "__len__") or isinstance(value, str) for value in row)
            else dict(zip(names, row, strict=True))
            for row in data.itertuples(index=False, name=None)
        )
        return
    if _is(data, "datasets", "DatasetDict") or _is(data, "datasets", "IterableDatasetDict"):
        raise DataError(
            f"a dict of the splits {', '.join(map(str, data))}: give one, such as data['train']"
        )
    if _is(data, "polars", "LazyFrame"):
        raise DataError("a polars LazyFrame holds no rows yet: give data.collect()")
    if isinstance(data, str | bytes | Mapping | pa.Array | pa.ChunkedArray) or not isinstance(
        data, Iterable
    ):
        raise DataError(f"{_named(data)} is no set of rows: {_TAKEN}")
    yield from enumerate(data)


def _write_lines(path: Path, records: Iterator[tuple[int, Any]]) -> int:
    rows = 0
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        for number, record in records:
            if not isinstance(record, Mapping) or not all(isinstance(key, str) for key in record):
                raise DataError(
                    f"row {number} of the data is of type {type(record).__name__}, not a dict with "
                    "texts as keys: give one dict for each row"
                )
            file.write(_line(number, record))
            rows += 1
    return rows


def _line(number: int, record: Mapping[str, Any]) -> bytes:
    try:
        return orjson.dumps(dict(record), default=to_json, option=_OPTIONS)
    except (TypeError, ValueError):
        pass
    try:
        # Integers beyond 64 bits, and half surrogate pairs, which the reading will name.
        return json.dumps(dict(record), default=to_json).encode() + b"\n"
    except (TypeError, ValueError, RecursionError):
        for name, value in record.items():
            try:
                json.dumps(value, default=to_json)
            except (TypeError, ValueError, RecursionError) as error:
                reason = " ".join(str(error).split())[:100]
                raise DataError(
                    f"row {number} of the data: column {name!r} cannot become JSON ({reason}): "
                    "change the value, or drop the column"
                ) from None
        raise
