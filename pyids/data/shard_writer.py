"""Rows written to shards, a row group at a time."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pyids.store.files import atomic_write

# A row group is what is decoded to get at one row, a shard what a slow stage loses when it is
# killed. A group ends at the first of the two.
ROWS_PER_GROUP = 2048
BYTES_PER_GROUP = 4 << 20

_MOST_JOINED = (1 << 31) - 1

# Splits whose files share a folder: of short rows a split has some hundred files, and no folder is
# to hold much more than 10,000.
_SPLITS_PER_FOLDER = 64


def split_name(number: int) -> str:
    """Name the files of a split: the first splits lie in the folder itself, others below it.

    Examples
    --------
    >>> split_name(63), split_name(64)
    ('00063', '00001/00064')
    """
    folder = number // _SPLITS_PER_FOLDER
    return f"{folder:05d}/{number:05d}" if folder else f"{number:05d}"


_SCHEMA = pa.schema(
    [
        ("record", pa.binary()),
        ("line", pa.int64()),
        ("digest", pa.binary(16)),
        ("problem", pa.string()),
    ]
)


class ShardWriter:
    """Writes rows into ``NAME-0000.parquet``, ``NAME-0001.parquet``, ...; holds one row group."""

    def __init__(self, folder: Path, name: str, groups_per_shard: int, records: bool) -> None:
        self.folder = folder
        self.name = name
        self.groups_per_shard = groups_per_shard
        self.records = records
        self.rows = 0
        self.shards: list[tuple[Path, int]] = []
        self._columns: tuple[list[Any], ...] = ([], [], [], [])
        self._bytes = 0
        self._groups = 0
        self._shard = ExitStack()
        self._parquet: pq.ParquetWriter | None = None

    def add(self, raw: bytes, line: int, key: bytes | None, problem: str | None) -> None:
        """Add a row."""
        record, lines, digests, problems = self._columns
        record.append(raw if self.records else b"")
        lines.append(line)
        digests.append(key)
        problems.append(problem)
        self.rows += 1
        self._bytes += len(raw)
        if len(record) == ROWS_PER_GROUP or self._bytes >= BYTES_PER_GROUP:
            self._write_group()

    def _write_group(self) -> None:
        if self._parquet is None:
            path = self.folder / f"{self.name}-{len(self.shards):04d}.parquet"
            temporary = self._shard.enter_context(atomic_write(path))
            self._parquet = self._shard.enter_context(
                pq.ParquetWriter(
                    temporary,
                    _SCHEMA,
                    compression="zstd",
                    compression_level=1,
                    use_dictionary=["problem"],
                    write_statistics=False,
                )
            )
            self.shards.append((path, 0))
        group = pa.table(self._arrays(), schema=_SCHEMA)
        self._parquet.write_table(group)
        path, rows = self.shards[-1]
        self.shards[-1] = (path, rows + group.num_rows)
        self._groups += 1
        for column in self._columns:
            column.clear()
        self._bytes = 0
        if self._groups == self.groups_per_shard:
            self._end_shard()

    def _arrays(self) -> list[Any]:
        """Join the columns by hand where they are plain: Arrow looks at each value by itself."""
        record, lines, digests, problems = self._columns
        if self._bytes > _MOST_JOINED:  # beyond what 32-bit offsets reach
            return list(self._columns)
        ends = np.zeros(len(record) + 1, np.int32)
        np.cumsum(np.fromiter(map(len, record), np.int32, len(record)), out=ends[1:])
        joined = [None, pa.py_buffer(ends), pa.py_buffer(b"".join(record))]
        arrays = [
            pa.Array.from_buffers(pa.binary(), len(record), joined),
            pa.array(np.array(lines, np.int64)),
        ]
        if None in digests:
            return [*arrays, pa.array(digests, pa.binary(16)), pa.array(problems, pa.string())]
        content = [None, pa.py_buffer(b"".join(digests))]
        keys = pa.Array.from_buffers(pa.binary(16), len(digests), content)
        return [*arrays, keys, pa.nulls(len(digests), pa.string())]

    def _end_shard(self) -> None:
        self._shard.close()
        self._parquet = None
        self._groups = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        if kind is None:
            if self._columns[0]:
                self._write_group()
            self._end_shard()
        else:
            self._shard.__exit__(kind, *error)
