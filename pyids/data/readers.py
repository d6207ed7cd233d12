"""Rows out of files: each kind of file as a stream of rows, what is broken as a `Problem`."""

from __future__ import annotations

import base64
import codecs
import csv
import datetime
import decimal
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from pyids.chat.rawjson import array_items, compact, parse

# Bytes of a file that a reader holds.
_BLOCK_BYTES = 1 << 20
_BATCH_ROWS = 1024


@dataclass(frozen=True)
class Problem:
    """What is wrong at a place of the input, with the remedy.

    Attributes
    ----------
    line : int
        Line or row, from 1, in the part that is read.
    text : str
        What is wrong, and the remedy.
    ends_file : bool
        Nothing behind it can be read.
    """

    line: int
    text: str
    ends_file: bool = False


Item = tuple[int, bytes, "dict[str, Any] | Problem"]


class Reader:
    """Iterates over (line or row, the row as JSON bytes, the row parsed or a `Problem`).

    Lines of jsonl come as they stand; rows of an array lose the line breaks between their members;
    rows of tables become JSON: a CSV's values stay texts; NaN becomes null, bytes base64, dates and
    times ISO 8601, decimals texts, durations seconds, maps lists of pairs.

    Parameters
    ----------
    path : str
        The file.
    kind : str
        ``jsonl``, ``json``, ``csv``, ``parquet`` or ``arrow``.
    compression : str or None
        ``gzip`` or ``zstd`` (not for tables in binary files).
    start, stop : int
        For uncompressed jsonl the lines that begin in these bytes, for parquet row groups, for
        Arrow record batches; ``stop`` 0 is the end.
    drop : str, optional
        A column that parquet and Arrow rows are read without.

    Attributes
    ----------
    lines : int
        Lines or rows passed so far, blank lines included.
    """

    def __init__(
        self,
        path: str,
        kind: str,
        compression: str | None,
        start: int = 0,
        stop: int = 0,
        drop: str | None = None,
    ) -> None:
        self.path = path
        self.kind = kind
        self.compression = compression
        self.start = start
        self.stop = stop
        self.drop = drop
        self.lines = 0

    def __iter__(self) -> Iterator[Item]:
        """Read; a file that cannot be read to its end gives a last `Problem`."""
        rows = {
            "jsonl": self._jsonl,
            "json": self._array,
            "csv": self._csv,
            "parquet": self._parquet,
            "arrow": self._arrow,
        }[self.kind]
        try:
            yield from rows()
        except (OSError, pa.ArrowInvalid) as error:
            yield self._end(_unreadable(error))

    def _end(self, text: str) -> Item:
        line = self.lines + 1
        return line, b"", Problem(line, text, ends_file=True)

    # -- JSON --

    def _jsonl(self) -> Iterator[Item]:
        with open_bytes(self.path, self.compression) as file:
            left = self.stop - self.start if self.stop else -1
            if self.start:
                # A line belongs to the split in which its first byte lies: pass over the rest of
                # the line that holds the byte before this split.
                file.seek(self.start - 1)
                left -= len(file.readline()) - 1
            for line in file:
                if self.stop:
                    if left <= 0:
                        return
                    left -= len(line)
                self.lines += 1
                raw = line.strip()
                if self.lines == 1 and self.start == 0:
                    raw = raw.removeprefix(codecs.BOM_UTF8)
                if raw:
                    yield self.lines, raw, _parse(self.lines, raw)

    def _array(self) -> Iterator[Item]:
        decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        with open_bytes(self.path, self.compression) as file:
            text, position, block_bytes = "", 0, _BLOCK_BYTES
            opened = ended = False
            while not ended:
                block = file.read(block_bytes)
                ended = not block
                try:
                    text = text[position:] + decode(block, final=ended)
                except UnicodeDecodeError as error:
                    yield self._end(_not_utf8(error))
                    return
                position = 0
                if not opened and (text := text.lstrip()):
                    opened, position = True, 1  # past the bracket
                try:
                    items, position = array_items(text, position)
                except (ValueError, RecursionError) as error:
                    yield self._end(f"JSON that cannot be read ({error}): mend or delete the item")
                    return
                for item, record in items:
                    self.lines += 1
                    raw = item.encode()
                    if b"\n" in raw:
                        raw = compact(raw)
                    if isinstance(record, dict):
                        yield self.lines, raw, record
                    else:
                        yield self.lines, raw, _no_object(self.lines, record)
                # An item longer than the block: read ever more, or the work would be quadratic.
                block_bytes = _BLOCK_BYTES if items else 2 * block_bytes
            rest = text[position:].strip()
            if rest != "]":
                yield self._end(
                    "the array breaks off or is broken here "
                    f"({rest[:40]!r}): mend it, or get the file again"
                )

    # -- tables --

    def _csv(self) -> Iterator[Item]:
        csv.field_size_limit(1 << 30)  # the default, 128 KiB, is less than a long conversation
        with open_bytes(self.path, self.compression) as file:
            reader = csv.reader(self._decoded(file), strict=True)
            try:
                header = next(reader, [])
                if text := _twice(header):
                    yield self._end(text)
                    return
                for fields in reader:
                    self.lines = reader.line_num
                    if not fields:
                        continue
                    if len(fields) != len(header):
                        text = (
                            f"{len(fields)} fields under a header of {len(header)}: quote the "
                            "fields that hold commas, quotes or line breaks"
                        )
                        yield self.lines, b"", Problem(self.lines, text)
                        continue
                    record = dict(zip(header, fields, strict=True))
                    yield self.lines, orjson.dumps(record), record
            except UnicodeDecodeError as error:
                self.lines = reader.line_num
                yield self._end(_not_utf8(error))
            except csv.Error as error:
                self.lines = max(0, reader.line_num - 1)
                yield self._end(f"broken CSV ({error}): mend the quotes")

    @staticmethod
    def _decoded(file: BinaryIO) -> Iterator[str]:
        encoding = "utf-8-sig"
        for line in file:
            yield line.decode(encoding)
            encoding = "utf-8"

    def _parquet(self) -> Iterator[Item]:
        file = open_parquet(self.path)
        columns = [name for name in file.schema_arrow.names if name != self.drop]
        if text := _twice(columns):
            yield self._end(text)
            return
        stop = self.stop or file.metadata.num_row_groups
        yield from self._batches(
            file.iter_batches(_BATCH_ROWS, row_groups=range(self.start, stop), columns=columns)
        )

    def _arrow(self) -> Iterator[Item]:
        for number, batch in enumerate(open_arrow(self.path)):
            if self.stop and number >= self.stop:
                return
            if number >= self.start:
                batch.validate(full=True)  # the file's offsets are not to be believed
                if text := _twice(batch.schema.names):
                    yield self._end(text)
                    return
                if self.drop in batch.schema.names:
                    batch = batch.drop_columns([self.drop])
                yield from self._batches(
                    batch.slice(offset, _BATCH_ROWS)
                    for offset in range(0, batch.num_rows, _BATCH_ROWS)
                )

    def _batches(self, batches: Iterator[pa.RecordBatch]) -> Iterator[Item]:
        for batch in batches:
            try:
                items = _to_items(batch)
            except _UNFIT:
                # Which row is it?
                items = [item for i in range(len(batch)) for item in _one(batch.slice(i, 1))]
            for raw, record in items:
                self.lines += 1
                if isinstance(record, str):
                    yield self.lines, raw, Problem(self.lines, record)
                else:
                    yield self.lines, raw, record


def open_bytes(path: str, compression: str | None) -> BinaryIO:
    """Open a file for reading its (decompressed) bytes; a truncated one raises OSError."""
    if compression is None:
        return open(path, "rb", buffering=_BLOCK_BYTES)
    stream = pa.input_stream(path, compression=compression, buffer_size=_BLOCK_BYTES)
    return io.BufferedReader(stream, _BLOCK_BYTES)


def first_byte(path: str, compression: str | None) -> bytes:
    """First byte that is neither white space nor a byte order mark."""
    with open_bytes(path, compression) as file:
        head = file.read(4096).removeprefix(codecs.BOM_UTF8)
        return head.lstrip()[:1]


def open_parquet(path: str) -> pq.ParquetFile:
    """Open a parquet file such that a row group is streamed, not held."""
    return pq.ParquetFile(path, buffer_size=_BLOCK_BYTES, pre_buffer=False)


def open_arrow(path: str) -> Any:
    """Record batches of an Arrow file or stream, memory-mapped."""
    source = pa.memory_map(path)
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


def _parse(line: int, raw: bytes) -> dict[str, Any] | Problem:
    try:
        record = parse(raw)
    except json.JSONDecodeError as error:
        return Problem(
            line,
            f"broken JSON at column {error.colno} ({error.msg}): mend or delete the line",
        )
    except UnicodeDecodeError as error:
        return Problem(line, _not_utf8(error))
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, 200,000 brackets
        return Problem(line, f"JSON that cannot be read ({error}): mend or delete the line")
    if isinstance(record, dict):
        return record
    return _no_object(line, record)


def _no_object(line: int, value: object) -> Problem:
    shown = repr(value)
    shown = shown if len(shown) <= 40 else f"{shown[:37]}..."
    return Problem(line, f"{shown} is no JSON object: give one object for each row")


def _not_utf8(error: UnicodeDecodeError) -> str:
    byte = error.object[error.start]
    return (
        f"not UTF-8 (byte 0x{byte:02X} at byte {error.start + 1}): convert the file, for "
        "example with iconv -f LATIN1 -t UTF-8"
    )


def _unreadable(error: Exception) -> str:
    if isinstance(error, PermissionError):
        return "no permission to read the file: ask its owner, or copy it"
    text = str(error).partition("\n")[0]
    if "Truncated compressed stream" in text:
        return "the compressed file breaks off here: get it again (a truncated download?)"
    return f"the file cannot be read from here on ({text}): get it again"


# What a value that Python or JSON cannot hold raises: a year beyond 9999, text that is not UTF-8.
_UNFIT = (ValueError, OverflowError, TypeError)


def _to_items(batch: pa.RecordBatch) -> list[tuple[bytes, dict[str, Any] | str]]:
    """Turn rows of a table into JSON and objects."""
    return [(orjson.dumps(row, default=_to_json), row) for row in batch.to_pylist()]


def _one(row: pa.RecordBatch) -> list[tuple[bytes, dict[str, Any] | str]]:
    """Do the same with one row; what is wrong with it, where it cannot be done."""
    try:
        return _to_items(row)
    except _UNFIT:
        return [(b"", "; ".join(_unfit_columns(row)))]


def _unfit_columns(row: pa.RecordBatch) -> Iterator[str]:
    for name, column in zip(row.schema.names, row.columns, strict=True):
        try:
            orjson.dumps(column.to_pylist(), default=_to_json)
        except _UNFIT as error:
            yield f"column {name!r} cannot become JSON ({error}): mend the value, or drop it"


def _twice(names: Sequence[str]) -> str:
    """Say which column's name is not its own; empty where there is none."""
    name = next((name for name in names if list(names).count(name) > 1), None)
    return "" if name is None else f"the column {name!r} stands twice: rename one"


def _to_json(value: object) -> object:
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
