"""Parquet and Arrow files: how they are opened, and their rows as JSON."""

from __future__ import annotations

import base64
import datetime
import decimal
from collections.abc import Iterator
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from pyids.data.containers import BLOCK_BYTES, open_raw
from pyids.data.remote import is_remote


def open_parquet(path: str) -> pq.ParquetFile:
    """Open a parquet file such that a row group is streamed, not held."""
    file = open_raw(path) if is_remote(path) else path
    return pq.ParquetFile(file, buffer_size=BLOCK_BYTES, pre_buffer=False)


def open_arrow(path: str) -> Any:
    """Record batches of an Arrow file or stream, memory-mapped."""
    source = pa.PythonFile(open_raw(path), "r") if is_remote(path) else pa.memory_map(path)
    try:
        return pa.ipc.open_stream(source)
    except pa.ArrowInvalid:
        source.seek(0)
        file = pa.ipc.open_file(source)
        return _FileBatches(file)


class _FileBatches:
    """The batches of an Arrow file, iterated like those of a stream."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.schema = file.schema

    def __iter__(self) -> Iterator[Any]:
        return (self.file.get_batch(i) for i in range(self.file.num_record_batches))


# What a value that Python or JSON cannot hold raises: a year beyond 9999, text that is not UTF-8, a
# type that pyarrow has no class for.
_UNFIT = (ValueError, OverflowError, TypeError, KeyError, NotImplementedError)


def items_of(batch: pa.RecordBatch) -> list[tuple[bytes, dict[str, Any] | str]]:
    """Turn the rows of a table into JSON and objects; of one that cannot be, into what is wrong."""
    try:
        return [(orjson.dumps(row, default=to_json), row) for row in batch.to_pylist()]
    except _UNFIT:
        if len(batch) == 1:
            return [(b"", "; ".join(_unfit_columns(batch)))]
        # Which row is it?
        return [item for i in range(len(batch)) for item in items_of(batch.slice(i, 1))]


def _unfit_columns(row: pa.RecordBatch) -> Iterator[str]:
    for i, name in enumerate(row.schema.names):
        try:
            orjson.dumps(row.column(i).to_pylist(), default=to_json)
        except KeyError:
            yield f"column {name!r} is of type {row.schema.types[i]}, which is not read: drop it"
        except _UNFIT as error:
            yield f"column {name!r} cannot become JSON ({error}): mend the value, or drop it"


def to_json(value: object) -> object:
    """JSON for what a table holds and JSON does not."""
    if isinstance(value, datetime.date | datetime.time):  # a subclass, such as pandas' Timestamp
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, decimal.Decimal):
        return str(value)
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    raise TypeError(f"a value of type {type(value).__name__} cannot become JSON")
