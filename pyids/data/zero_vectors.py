"""Rows whose vector is zero: no cosine places them, so they go, or are named before the work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import orjson
from numpy.typing import NDArray

from pyids.data.exact_dedup import places
from pyids.data.vector_files import blocks, open_vectors
from pyids.errors import DataError
from pyids.store.arrays import map_npy
from pyids.store.files import atomic_write, write_npy
from pyids.store.folder import Store
from pyids.store.ledger import begin, checked_by, load_npy, load_sealed, write_entry

_ROWS_PER_BLOCK = 1024


# Row ids that a message names.
MAX_NAMED = 20


# Why such a row is skipped.
REASON = "its vector is zero (--zero-vectors drop)"


def drop_zero_rows(store: Store) -> None:
    """Take rows with a zero vector out of those that stay; list them in ``skipped.jsonl``.

    Parameters
    ----------
    store : Store
        With its vectors copied; those of the shards that lose rows are to be copied again.
    """
    index = store.path / "keep" / "index.json"
    metadata = load_sealed(index)
    checked_by(index, store.path / "skipped.jsonl")
    dropped = {
        shard.name: _zero_ids(store.artifact("embeddings", shard), store.artifact("keep", shard))
        for shard in store.shards
    }
    begin(index)
    listed = (store.path / "skipped.jsonl").read_bytes()
    lines = [(orjson.loads(line)["row_id"], line) for line in listed.splitlines()]
    for shard in store.shards:
        if not len(ids := dropped[shard.name]):
            continue
        path = store.artifact("keep", shard)
        kept = np.setdiff1d(map_npy(path), ids)  # checked above; its entry is gone
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            write_npy(file, kept)
        for place in places(store, shard, ids - shard.first_row_id):
            lines.append((place["row_id"], orjson.dumps({**place, "reason": REASON})))
    with atomic_write(store.path / "skipped.jsonl") as temporary:
        temporary.write_bytes(b"".join(line + b"\n" for _, line in sorted(lines)))
    count = sum(map(len, dropped.values()))
    write_entry(
        index,
        [
            *(store.path / name for name in ("skipped.jsonl", "duplicates.jsonl")),
            *(store.artifact("keep", shard) for shard in store.shards),
        ],
        metadata["inputs"],
        kept=metadata["kept"] - count,
        skipped=metadata["skipped"] + count,
        duplicates=metadata["duplicates"],
    )
    store.forget()


def check_zero_vectors(store: Store, file: str, metric: str) -> None:
    """Look for kept rows with a zero vector in files of vectors, as `take_vectors` will.

    Raises
    ------
    DataError
        There are some, and the metric is the cosine.
    """
    if metric != "cosine":
        return
    vectors = open_vectors(file, store.rows_read, limit=store.index["limit"])
    zeros: list[int] = []
    for shard in store.shards:
        ids = store.row_ids(shard)
        for start, block in blocks(vectors, ids):
            zeros += ids[start : start + len(block)][~block.any(axis=1)].tolist()
    if zeros:
        raise DataError(no_direction(str(file), len(zeros), zeros))


def no_direction(name: str, count: int, zeros: list[int]) -> str:
    """Say which rows have a zero vector, and what to do under the cosine."""
    return (
        f"{zero_rows(name, count, zeros)}, which has no direction, so that --metric cosine cannot "
        "place it: compute them again, or leave those rows out with --zero-vectors drop"
    )


def zero_rows(name: str, count: int, zeros: list[int]) -> str:
    """Say which rows have a zero vector, the first of `count` by their ids."""
    rows = "1 row has" if count == 1 else f"{count} rows have"
    return f"{name}: {rows} a zero vector (row ids {listed_ids(zeros)})"


def listed_ids(row_ids: list[int]) -> str:
    """Name the first row ids."""
    shown = ", ".join(map(str, row_ids[:MAX_NAMED]))
    return f"{shown}, ..." if len(row_ids) > MAX_NAMED else shown


def _zero_ids(embeddings: Path, keep: Path) -> NDArray[np.int64]:
    vectors, ids = load_npy(embeddings), load_npy(keep)
    zero = [
        ids[start : start + _ROWS_PER_BLOCK][~vectors[start : start + _ROWS_PER_BLOCK].any(axis=1)]
        for start in range(0, len(ids), _ROWS_PER_BLOCK)
    ]
    return np.concatenate([*zero, np.empty(0, np.int64)])
