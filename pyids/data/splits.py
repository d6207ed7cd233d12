"""How sources are split for reading: each split is one task, and a run of shards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pyids.data.columnar import open_arrow, open_parquet
from pyids.data.containers import size_of
from pyids.data.sources import Source
from pyids.errors import DataError

# The size of a split is a function of the data alone: never of the workers, so that shards, and
# with them every later file, are the same on any machine.
SPLIT_BYTES = 32 << 20


@dataclass(frozen=True)
class Split:
    """A part of a source that one task reads: bytes, row groups, record batches, or all of it."""

    number: int
    source: Source
    source_number: int
    start: int
    stop: int
    bytes: int


def plan_splits(sources: Sequence[Source]) -> list[Split]:
    """Cut the sources into splits of about `SPLIT_BYTES`, by the data alone.

    Lines of uncompressed jsonl are split by bytes, parquet by row groups, Arrow by record batches;
    everything else is one split a file.
    """
    splits: list[Split] = []
    for source_number, source in enumerate(sources):
        for start, stop, size in _ranges(source):
            splits.append(Split(len(splits), source, source_number, start, stop, size))
    return splits


def _ranges(source: Source) -> Iterator[tuple[int, int, int]]:
    """(start, stop, bytes of the input) of each split of a source."""
    size = size_of(source.path)
    if source.kind == "jsonl" and source.compression is None:
        for start in range(0, size, SPLIT_BYTES):
            stop = min(start + SPLIT_BYTES, size)
            yield start, stop, stop - start
        return
    try:
        if source.kind == "parquet":
            metadata = open_parquet(source.path).metadata
            sizes = [metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)]
        elif source.kind == "arrow":
            sizes = [batch.nbytes for batch in open_arrow(source.path)]
        else:
            yield 0, 0, size
            return
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(
            f"{source.path}: the file cannot be read to its end ({reason}): get it again"
        ) from None
    start = collected = 0
    for unit, unit_bytes in enumerate(sizes):
        collected += unit_bytes
        if collected >= SPLIT_BYTES or unit == len(sizes) - 1:
            yield start, unit + 1, round(size * collected / max(1, sum(sizes)))
            start, collected = unit + 1, 0
