"""Exact duplicates over all shards, in bounded memory, on any engine.

The digests are dealt to buckets by their leading bits, some shards at a time; then each bucket is
gathered from all of them and sorted by itself. Equal digests lie in one bucket, and a stable sort
keeps the order of the row ids, so that the first of each run is the row that the others repeat.
What is kept of a bucket is the rows that repeat one. No process holds more than a few shards or
one bucket.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pyids.data.sources import Source
from pyids.engine import Engine, LocalEngine
from pyids.progress import report
from pyids.store.files import atomic_write, fingerprint, write_npy
from pyids.store.folder import Shard, Store
from pyids.store.ledger import begin, checked, read_entry, write_entry
from pyids.store.reading import cut_shards, store_of

# About so many rows a bucket: some 10 MB while it is sorted.
ROWS_PER_BUCKET = 1 << 17
# Buckets that one task sorts, one after the other.
_BUCKETS_A_TASK = 8

# About so many rows are dealt at a time.
_ROWS_DEALT = 1 << 19


_DEALT = np.dtype([("high", ">u8"), ("low", ">u8"), ("row_id", "<i8")])
# A row, and the one that it repeats.
_REPEAT = np.dtype([("row_id", "<i8"), ("first", "<i8")])


def drop_duplicates(
    store: Store,
    *,
    keep_duplicates: bool = False,
    engine: Engine | None = None,
    left_out: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write ``keep/``, ``skipped.jsonl`` and ``duplicates.jsonl``; skip it when it is done already.

    Parameters
    ----------
    store : Store
        With its rows read.
    keep_duplicates : bool, default False
        Rows that repeat an earlier one stay; they are listed all the same.
    engine : Engine, optional
        Where digests are dealt and sorted; by default this process.
    left_out : sequence of mappings, optional
        What is recorded of shards that are left out (`pyids.data.left_out`): where ``keep/`` is
        without them, it is done. They are not left out here.
    """
    keep = store.path / "keep"
    inputs = {
        "rows": fingerprint([store.index["files"], store.index["shards"]]),
        "keep_duplicates": keep_duplicates,
    }
    entry = keep / "index.json"
    finished = {**inputs, "left_out": list(left_out)} if left_out else inputs
    if read_entry(entry, finished) is not None:
        return
    begin(entry)
    shutil.rmtree(store.scratch, ignore_errors=True)
    store.scratch.mkdir()
    unusable, repeats = _compare(store, engine or LocalEngine())
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
            usable, firsts = np.ones(shard.rows, bool), ids.copy()
            for some in unusable:
                usable[_within(some, some, shard) - shard.first_row_id] = False
            for pairs in repeats:
                at = _within(pairs["row_id"], pairs, shard)
                firsts[at["row_id"] - shard.first_row_id] = at["first"]
            repeated = firsts != ids
            counts["skipped"] += _list_skipped(store, shard, ~usable, skipped)
            counts["duplicates"] += _list_duplicates(store, shard, repeated, firsts, duplicates)
            kept = ids[usable] if keep_duplicates else ids[usable & ~repeated]
            counts["kept"] += len(kept)
            path = store.artifact("keep", shard)
            path.parent.mkdir(exist_ok=True)
            with atomic_write(path) as temporary, temporary.open("wb") as file:
                write_npy(file, kept)
            files.append(path)
            report("deduplicate", shard.first_row_id + shard.rows, store.rows_read)
    del unusable, repeats
    shutil.rmtree(store.scratch)
    for stray in set(keep.rglob("*.npy")) - set(files):
        stray.unlink()
    write_entry(entry, files, inputs, **counts)
    store.forget()


def _within(row_ids: NDArray[np.int64], values: NDArray[Any], shard: Shard) -> NDArray[Any]:
    """Cut out of values by ascending row id those of a shard."""
    start, stop = np.searchsorted(row_ids, [shard.first_row_id, shard.first_row_id + shard.rows])
    return values[start:stop]


def _compare(store: Store, engine: Engine) -> tuple[list[NDArray[np.int64]], list[NDArray[Any]]]:
    """Find the ids of the unusable rows, and which rows repeat which.

    Returns
    -------
    tuple of lists of arrays
        Mapped to files, each ascending by row id: int64 ids, and `_REPEAT`.
    """
    bits = 1
    while store.rows_read >> bits > ROWS_PER_BUCKET:
        bits += 1
    deals = [
        _Deal(str(store.path), str(store.scratch), number, shards, bits)
        for number, shards in enumerate(cut_shards(store.shards, _ROWS_DEALT))
    ]
    if not deals:
        return [], []
    ends = np.array(list(engine.map(_deal, deals)))
    finds = []
    for first in range(0, 1 << bits, _BUCKETS_A_TASK):
        last = min(first + _BUCKETS_A_TASK, 1 << bits)
        cuts = tuple(map(tuple, ends[:, first : last + 1].tolist()))
        finds.append(_Find(str(store.scratch), first, cuts))
    for _ in engine.map(_find, finds):
        pass
    unusable = [_load(store.scratch / f"{deal.number:06d}.unusable.npy") for deal in deals]
    repeats = [_load(store.scratch / f"{find.first:06d}.repeats.npy") for find in finds]
    return unusable, repeats


@dataclass(frozen=True)
class _Deal:
    """What `_deal` needs: paths and numbers."""

    folder: str
    scratch: str
    number: int
    shards: tuple[Shard, ...]
    bits: int


def _deal(task: _Deal) -> list[int]:
    """Write the digests of some shards bucket by bucket; return where each bucket starts."""
    store, scratch = store_of(task.folder), Path(task.scratch)
    digests, unusable = [np.empty(0, _DEALT)], [np.empty(0, np.int64)]
    for shard in task.shards:
        found = _digests(store, shard)
        digests.append(found)
        missing = np.ones(shard.rows, bool)
        missing[found["row_id"] - shard.first_row_id] = False
        unusable.append(shard.first_row_id + np.flatnonzero(missing))
    dealt = np.concatenate(digests)
    # Two bytes are sorted by their values, wider numbers by comparing them.
    narrow = np.uint16 if task.bits <= 16 else np.int64
    bucket = (dealt["high"] >> np.uint64(64 - task.bits)).astype(narrow)
    _save(scratch / f"{task.number:06d}.dealt.npy", dealt[np.argsort(bucket, kind="stable")])
    _save(scratch / f"{task.number:06d}.unusable.npy", np.concatenate(unusable))
    return [0, *np.cumsum(np.bincount(bucket, minlength=1 << task.bits)).tolist()]


@dataclass(frozen=True)
class _Find:
    """What `_find` needs: the buckets from `first` on, and where they lie in each deal's file."""

    scratch: str
    first: int
    cuts: tuple[tuple[int, ...], ...]


def _find(task: _Find) -> int:
    """Write which rows of some buckets repeat which, ascending; return their number."""
    scratch = Path(task.scratch)
    dealt = [_load(scratch / f"{number:06d}.dealt.npy") for number in range(len(task.cuts))]
    found = [np.empty(0, _REPEAT)]
    for bucket in range(len(task.cuts[0]) - 1):
        parts = [
            part[cut[bucket] : cut[bucket + 1]] for part, cut in zip(dealt, task.cuts, strict=True)
        ]
        some = np.concatenate(parts)
        order = _order(some)
        high, low, ids = (some[name][order] for name in ("high", "low", "row_id"))
        new = np.ones(len(ids), dtype=bool)
        new[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
        repeats = np.empty(np.count_nonzero(~new), _REPEAT)
        repeats["row_id"] = ids[~new]
        repeats["first"] = ids[new][np.cumsum(new) - 1][~new]
        found.append(repeats)
    repeats = np.concatenate(found)
    _save(scratch / f"{task.first:06d}.repeats.npy", repeats[np.argsort(repeats["row_id"])])
    return len(repeats)


def _order(dealt: NDArray[Any]) -> NDArray[np.intp]:
    """Return the order by digest, rows of one digest as they stand: ascending by row id.

    As ``np.lexsort((low, high))``, which looks at all rows twice: few share half of a digest.
    """
    high = dealt["high"].astype(np.uint64)
    order = np.argsort(high)  # of equal ones in any order
    equal = np.diff(high[order]) == 0
    shared = np.zeros(len(order), bool)
    shared[1:] |= equal
    shared[:-1] |= equal
    places = np.flatnonzero(shared)
    rows = order[places]
    order[places] = rows[np.lexsort((rows, dealt["low"][rows], high[rows]))]
    return order


def _save(path: Path, values: NDArray[Any]) -> None:
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        write_npy(file, values)


def _load(path: Path) -> NDArray[Any]:
    values: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return values


def _digests(store: Store, shard: Shard) -> NDArray[Any]:
    """Give the digests of a shard's usable rows with their row ids, as `_DEALT`."""
    column = _columns(store, shard, ["digest"])["digest"]
    usable = pc.is_valid(column).to_numpy(zero_copy_only=False)
    # Straight from memory: as Python objects they take as long as all else that is done with them.
    values = column.drop_null()
    content = values.buffers()[1] or b""
    digests = np.frombuffer(content, dtype=">u8").reshape(-1, 2)[values.offset :][: len(values)]
    dealt = np.empty(len(digests), dtype=_DEALT)
    dealt["high"], dealt["low"] = digests.T
    dealt["row_id"] = shard.first_row_id + np.flatnonzero(usable)
    return dealt


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
