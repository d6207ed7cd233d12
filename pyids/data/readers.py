"""Rows out of files: each kind of file as a stream of rows, what is broken as a `Problem`."""

from __future__ import annotations

import codecs
import csv
import json
import lzma
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, BinaryIO

import orjson
import pyarrow as pa

from pyids.chat.rawjson import array_items, compact, has_half_surrogate, parse
from pyids.data.columnar import items_of, open_arrow, open_parquet
from pyids.data.containers import BLOCK_BYTES, open_bytes, unreadable
from pyids.data.diagnose import what_line

# Rows of a table that become objects at a time: few, for a small file may hold huge rows.
_BATCH_ROWS = 64
MAX_ROW_BYTES = 64 << 20


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


# What reading a broken file raises.
UNREADABLE = (OSError, EOFError, lzma.LZMAError, zlib.error, UnicodeError, pa.ArrowInvalid)


Item = tuple[int, bytes, "dict[str, Any] | Problem"]


class _TooLong(Exception):
    """A line of a table is longer than a row may be."""


# Ends of lines of any kind; one at the end of a block may be half of another.
_ENDS = re.compile(rb"(?<=\r)(?=[^\n])|(?<=\n)(?=.)", re.DOTALL)


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
        ``jsonl``, ``json``, ``csv``, ``tsv``, ``parquet`` or ``arrow``.
    compression : str or None
        ``gzip``, ``zstd``, ``bz2`` or ``xz``, or ``utf-16`` (not for tables in binary files).
    start, stop : int
        For uncompressed jsonl the lines that begin in these bytes, for parquet row groups, for
        Arrow record batches; ``stop`` 0 is the end.
    drop : str, optional
        A column that parquet and Arrow rows are read without.
    max_row_bytes : int
        The longest row.

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
        max_row_bytes: int = MAX_ROW_BYTES,
    ) -> None:
        self.path, self.kind = path, kind
        self.compression = compression
        self.start, self.stop = start, stop
        self.drop = drop
        self.max_row_bytes = max_row_bytes
        self.lines = 0

    def __iter__(self) -> Iterator[Item]:
        """Read; a file that cannot be read to its end gives a last `Problem`."""
        rows = {
            "jsonl": self._jsonl,
            "json": self._array,
            "csv": self._csv,
            "tsv": self._csv,
            "parquet": self._parquet,
            "arrow": self._arrow,
        }[self.kind]
        try:
            yield from rows()
        except UNREADABLE as error:
            yield self._end(unreadable(error, self.path))

    def _end(self, text: str) -> Item:
        line = self.lines + 1
        return line, b"", Problem(line, text, ends_file=True)

    def _too_long(self) -> str:
        whole, rest = divmod(self.max_row_bytes, 1 << 20)
        longest = f"{self.max_row_bytes} bytes" if rest else f"{whole} MB"
        return f"a row of more than {longest}: delete it, or raise --max-row-bytes"

    # -- JSON --

    def _jsonl(self) -> Iterator[Item]:
        with open_bytes(self.path, self.compression) as file:
            left = self.stop - self.start if self.stop else -1
            if self.start:
                # A line belongs to the split in which its first byte lies: pass over the rest of
                # the line that holds the byte before this split.
                file.seek(self.start - 1)
                left -= len(file.readline()) - 1
            longest, until_stop = self.max_row_bytes, bool(self.stop)
            for line in iter(partial(file.readline, longest + 1), b""):
                if len(line) > longest:
                    yield self._end(self._too_long())
                    return
                if until_stop:
                    if left <= 0:
                        return
                    left -= len(line)
                self.lines += 1
                raw = line.strip()
                del line  # while a row is looked at, nothing else of it is held
                if raw[:1] != b"{" or raw[-1:] != b"}":
                    # Files that were written in pieces have a byte order mark between them, too.
                    raw = raw.removeprefix(codecs.BOM_UTF8).removesuffix(codecs.BOM_UTF8)
                if not raw:
                    continue
                try:
                    record = orjson.loads(raw)  # here, as nearly all rows go through: `_parse`
                except orjson.JSONDecodeError:
                    record = None
                if type(record) is not dict:
                    record = _parse(self.lines, raw)
                yield self.lines, raw, record
                del record

    def _array(self) -> Iterator[Item]:
        """Read the items of one array, or objects that follow one another over any lines."""
        decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        with open_bytes(self.path, self.compression) as file:
            text, position, block_bytes = "", 0, BLOCK_BYTES
            end, opened, ended = "", False, False
            while not ended:
                block = file.read(block_bytes)
                ended = not block
                try:
                    text = text[position:] + decode(block, final=ended)
                except UnicodeDecodeError as error:
                    yield self._end(_not_utf8(error))
                    return
                del block
                position = 0
                if not opened and (text := text.lstrip()):
                    opened = True
                    if text[0] == "[":
                        end, position = "]", 1
                before, more = position, True
                try:
                    while more:
                        more = False
                        for item, record, stop in array_items(text, position, ended=ended):
                            position = stop
                            self.lines += 1
                            if more := len(item) > BLOCK_BYTES:
                                break
                            yield self._item(item.encode(), record)
                        if more:
                            # While a huge item is looked at, the text is not held.
                            text, position, before = text[position:], 0, -1
                            raw = item.encode()
                            del item
                            found = self._item(raw, record)
                            del raw, record
                            yield found
                except (ValueError, RecursionError) as error:
                    yield self._end(f"JSON that cannot be read ({error}): mend or delete the item")
                    return
                if len(text) - position > self.max_row_bytes:
                    yield self._end(self._too_long())
                    return
                # An item longer than the block: read ever more, or the work would be quadratic.
                block_bytes = BLOCK_BYTES if position > before else 2 * block_bytes
            rest = text[position:].strip()
            if rest != end:
                what = "array breaks off or is broken" if end else "file is broken JSON from"
                yield self._end(f"the {what} here ({rest[:40]!r}): mend it, or get the file again")

    def _item(self, raw: bytes, record: Any) -> Item:
        if len(raw) > self.max_row_bytes:
            return self.lines, raw, Problem(self.lines, self._too_long())
        if b"\n" in raw:
            raw = compact(raw)
        if isinstance(record, dict):
            broken = b"\\ud" in raw or b"\\uD" in raw
            return self.lines, raw, _whole(record) if broken else record
        return self.lines, raw, _no_object(self.lines, record)

    # -- tables --

    def _csv(self) -> Iterator[Item]:
        csv.field_size_limit(1 << 30)  # the default, 128 KiB, is less than a long conversation
        with open_bytes(self.path, self.compression) as file:
            delimiter = "\t" if self.kind == "tsv" else ","
            reader = csv.reader(self._decoded(file), strict=True, delimiter=delimiter)
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
            except _TooLong as error:
                self.lines = reader.line_num
                yield self._end(str(error))
            except csv.Error as error:
                self.lines = max(0, reader.line_num - 1)
                yield self._end(f"broken CSV ({error}): mend the quotes")

    def _decoded(self, file: BinaryIO) -> Iterator[str]:
        encoding = "utf-8-sig"
        for line in self._csv_lines(file):
            if len(line) > self.max_row_bytes:
                raise _TooLong(self._too_long())
            yield line.decode(encoding)
            encoding = "utf-8"

    def _csv_lines(self, file: BinaryIO) -> Iterator[bytes]:
        r"""Split a file at its line feeds, or at carriage returns where its first line ends so."""
        read_line = partial(file.readline, self.max_row_bytes + 1)
        held = read_line()
        if b"\r" not in held.removesuffix(b"\n").removesuffix(b"\r"):
            yield from chain([held] if held else [], iter(read_line, b""))
            return
        for block in chain([b""], iter(partial(file.read, BLOCK_BYTES), b"")):
            *lines, held = _ENDS.split(held + block)
            yield from lines
            if len(held) > self.max_row_bytes:
                break
        yield held

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
                # A few bytes may hold any number of such rows.
                if batch.num_rows and all(map(pa.types.is_null, batch.schema.types)):
                    yield self._end("no column of it holds anything: leave the file out")
                    return
                if self.drop in batch.schema.names:
                    batch = batch.drop_columns([self.drop])
                yield from self._batches(
                    batch.slice(offset, _BATCH_ROWS)
                    for offset in range(0, batch.num_rows, _BATCH_ROWS)
                )

    def _batches(self, batches: Iterator[pa.RecordBatch]) -> Iterator[Item]:
        for batch in batches:
            for raw, record in items_of(batch):
                self.lines += 1
                if len(raw) > self.max_row_bytes:
                    yield self.lines, raw, Problem(self.lines, self._too_long())
                elif isinstance(record, str):
                    yield self.lines, raw, Problem(self.lines, record)
                else:
                    yield self.lines, raw, record


def is_lines(path: str, compression: str | None) -> bool:
    """Whether a file of JSON has a row in each line.

    Not where it begins with an array, and not where its first object goes on in the next line, or
    another one follows it in the same.
    """
    with open_bytes(path, compression) as file:
        head = file.read(BLOCK_BYTES).removeprefix(codecs.BOM_UTF8).lstrip()
    if head[:1] == b"[":
        return False
    first, _, rest = head.partition(b"\n")
    if head[:1] != b"{" or (not rest.strip() and not first.rstrip().endswith(b"}")):
        return True
    if _is_json(first):
        return True
    # A broken first line, or an object over several lines: the next one tells.
    several = b"}{" in b"".join(first.split())
    second = rest.lstrip().partition(b"\n")[0]
    goes_on = first.count(b"{") > first.count(b"}") and not _is_json(second)
    return not (several or goes_on)


def _is_json(raw: bytes) -> bool:
    try:
        parse(raw)
    except (ValueError, RecursionError):
        return False
    return True


class Damaged(dict[str, Any]):
    """A row with half of a surrogate pair in one of its texts."""


def _whole(record: Any) -> Any:
    """Mark a row that the strict parser would refuse for half of a surrogate pair."""
    return Damaged(record) if isinstance(record, dict) and has_half_surrogate(record) else record


def _parse(line: int, raw: bytes) -> dict[str, Any] | Problem:
    try:
        record = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return _parse_slowly(line, raw)
    if isinstance(record, dict):
        return record
    return _no_object(line, record)


def _parse_slowly(line: int, raw: bytes) -> dict[str, Any] | Problem:
    try:
        record = _whole(parse(raw))
    except json.JSONDecodeError as error:
        return Problem(
            line,
            what_line(raw)
            or f"broken JSON at column {error.colno} ({error.msg}): mend or delete the line",
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


def _twice(names: Sequence[str]) -> str:
    """Say which column's name is not its own; empty where there is none."""
    name = next((name for name, times in Counter(names).items() if times > 1), None)
    if name == "":
        numbers = [str(n) for n, name in enumerate(names, 1) if not name]
        shown = ", ".join(numbers[:5]) + (", ..." if len(numbers) > 5 else "")
        return f"columns {shown} have no name: name or delete them"
    return "" if name is None else f"the column {name!r} stands twice: rename one"
