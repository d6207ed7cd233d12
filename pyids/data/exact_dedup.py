"""Exact duplicates over all shards, in bounded memory.

The digests are dealt to buckets by their leading bits, spilled, and each bucket is sorted by
itself. Equal digests lie in one bucket, and a stable sort keeps the order of the row ids, so that
the first of each run is the row that the others repeat. Nothing holds more than a bucket,
and one bucket is open at a time.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pyids.data.sources import Source
from pyids.progress import report
from pyids.store.files import atomic_write, create_mapped, fingerprint
from pyids.store.folder import Shard, Store
from pyids.store.ledger import begin, checked, read_entry, write_entry

# About so many rows a bucket: some 10 MB while it is sorted.
ROWS_PER_BUCKET = 1 << 17


# Rows whose digests are held before they are appended to the files of their buckets.
_ROWS_HELD = 1 << 19


_SPILLED = np.dtype([("high", ">u8"), ("low", ">u8"), ("row_id", "<i8")])


_SKIPPED = -1


def drop_duplicates(store: Store, *, keep_duplicates: bool = False) -> None:
    """Write ``keep/``, ``skipped.jsonl`` and ``duplicates.jsonl``; skip it when it is done already.

    Parameters
    ----------
    store : Store
        With its rows read.
    keep_duplicates : bool, default False
        Rows that repeat an earlier one stay; they are listed all the same.
    """
    keep = store.path / "keep"
    inputs = {
        "rows": fingerprint([store.index["files"], store.index["shards"]]),
        "keep_duplicates": keep_duplicates,
    }
    entry = keep / "index.json"
    if read_entry(entry, inputs) is not None:
        return
    begin(entry)
    shutil.rmtree(store.scratch, ignore_errors=True)
    store.scratch.mkdir()
    first = _first_occurrences(store)
    counts = {"kept": 0, "skipped": 0, "duplicates": 0}
    files = [store.path / "skipped.jsonl", store.path / "duplicates.jsonl"]
    with (
        atomic_write(store.path / "skipped.jsonl") as skipped_path,
        atomic_write(store.path / "duplicates.jsonl") as duplicates_path,
        skipped_path.open("wb") as skipped,
        duplicates_path.open("wb") as duplicates,
    ):
        for shard in store.shards:
            ids = np.arange(shard.first_row_id, shard.first_row_id + shard.rows, dtype=np.int64)
            firsts = first[shard.first_row_id : shard.first_row_id + shard.rows]
            usable = firsts != _SKIPPED
            repeated = usable & (firsts != ids)
            counts["skipped"] += _list_skipped(store, shard, ~usable, skipped)
            counts["duplicates"] += _list_duplicates(store, shard, repeated, firsts, duplicates)
            kept = ids[usable] if keep_duplicates else ids[usable & ~repeated]
            counts["kept"] += len(kept)
            path = store.artifact("keep", shard)
            path.parent.mkdir(exist_ok=True)
            with atomic_write(path) as temporary, temporary.open("wb") as file:
                np.lib.format.write_array(file, kept, allow_pickle=False)
            files.append(path)
            report("deduplicate", shard.first_row_id + shard.rows, store.rows_read)
    del first
    shutil.rmtree(store.scratch)
    for stray in set(keep.rglob("*.npy")) - set(files):
        stray.unlink()
    write_entry(entry, files, inputs, **counts)
    store.forget()


def _first_occurrences(store: Store) -> NDArray[np.int64]:
    """For each row the first row with its digest (itself, mostly), -1 where it was skipped.

    int64 (rows read,), mapped to a file: not in memory.
    """
    rows = store.rows_read
    bits = 1
    while rows >> bits > ROWS_PER_BUCKET:
        bits += 1
    spills = [store.scratch / f"{bucket:05d}.spill" for bucket in range(1 << bits)]
    for path in spills:
        path.touch()
    held: list[NDArray[Any]] = []
    for shard in store.shards:
        held.append(_digests(store, shard))
        if sum(map(len, held)) >= _ROWS_HELD:
            _append(held, spills, bits)
    _append(held, spills, bits)
    first: NDArray[np.int64] = create_mapped(store.scratch / "first.i8", (rows,), np.int64)
    for start in range(0, rows, ROWS_PER_BUCKET):
        first[start : start + ROWS_PER_BUCKET] = _SKIPPED
    for path in spills:
        spilled = np.fromfile(path, dtype=_SPILLED)
        order = np.lexsort((spilled["low"], spilled["high"]))  # stable: row ids stay ascending
        high, low, ids = (spilled[name][order] for name in ("high", "low", "row_id"))
        new = np.ones(len(ids), dtype=bool)
        new[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
        first[ids] = ids[new][np.cumsum(new) - 1]
        path.unlink()
    return first


def _append(held: list[NDArray[Any]], spills: list[Path], bits: int) -> None:
    """Append digests to the files of their buckets, in order; one file is open at a time."""
    spilled = np.concatenate([np.empty(0, _SPILLED), *held])
    held.clear()
    bucket = spilled["high"] >> np.uint64(64 - bits)
    spilled = spilled[np.argsort(bucket, kind="stable")]
    ends = np.cumsum(np.bincount(bucket.astype(np.int64), minlength=len(spills)))
    for path, start, end in zip(spills, [0, *ends[:-1]], ends, strict=True):
        if end > start:
            with path.open("ab") as file:
                file.write(spilled[start:end].tobytes())


def _digests(store: Store, shard: Shard) -> NDArray[Any]:
    """Give the digests of a shard's usable rows with their row ids, as `_SPILLED`."""
    column = _columns(store, shard, ["digest"])["digest"]
    usable = pc.is_valid(column).to_numpy(zero_copy_only=False)
    digests = np.frombuffer(b"".join(column.drop_null().to_pylist()), dtype=">u8").reshape(-1, 2)
    spilled = np.empty(len(digests), dtype=_SPILLED)
    spilled["high"], spilled["low"] = digests.T
    spilled["row_id"] = shard.first_row_id + np.flatnonzero(usable)
    return spilled


def _columns(store: Store, shard: Shard, names: list[str]) -> dict[str, Any]:
    path = checked(store.artifact("rows", shard, ".parquet"))
    with pq.ParquetFile(path, pre_buffer=False) as file:
        table = file.read(columns=names, use_threads=False)
    return {name: table.column(name).combine_chunks() for name in names}


def _list_skipped(store: Store, shard: Shard, rows: NDArray[np.bool_], file: BinaryIO) -> int:
    """Write a line for each unusable row of the shard; returns their number."""
    positions = np.flatnonzero(rows)
    if len(positions):
        columns = _columns(store, shard, ["line", "problem"])
        reasons = columns["problem"].take(positions).to_pylist()
        for place, reason in zip(places(store, shard, positions), reasons, strict=True):
            file.write(orjson.dumps({**place, "reason": reason}) + b"\n")
    return len(positions)


def _list_duplicates(
    store: Store,
    shard: Shard,
    rows: NDArray[np.bool_],
    firsts: NDArray[np.int64],
    file: BinaryIO,
) -> int:
    """Write a line for each row of the shard that repeats an earlier one; returns their number."""
    positions = np.flatnonzero(rows)
    if len(positions):
        repeated = firsts[positions].tolist()
        for place, row_id in zip(places(store, shard, positions), repeated, strict=True):
            file.write(orjson.dumps({**place, "duplicate_of": row_id}) + b"\n")
    return len(positions)


def places(store: Store, shard: Shard, positions: NDArray[np.intp]) -> Iterator[dict[str, Any]]:
    """Row id, file and line of rows of a shard, given by their positions in it."""
    source = Source(**store.source(shard))
    lines = _columns(store, shard, ["line"])["line"].take(positions).to_pylist()
    for position, line in zip(positions.tolist(), lines, strict=True):
        yield {
            "row_id": shard.first_row_id + position,
            "file": source.path,
            source.unit: shard.first_line + line,
        }
