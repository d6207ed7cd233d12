"""Shards whose rows are left out, because a task on them fails each time that it is tried.

``left_out.json`` records them, with the stage and the reason, and ``keep/index.json`` once more:
what is recorded decides whenever the rows that stay are decided, also where a folder is made again.
Their rows are listed in ``skipped.jsonl``.

Which rows repeat which is decided over all rows before anything is left out. So a row that repeats
one that is left out stays dropped: otherwise the content on which a task fails would come back
in another shard; and no shard but those that are left out changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson

from pyids.data.exact_dedup import places
from pyids.data.zero_vectors import REASON as ZERO_VECTOR
from pyids.errors import ConfigError, DamagedError
from pyids.store.files import atomic_write, read_sealed, write_npy, write_sealed
from pyids.store.folder import Shard, Store
from pyids.store.ledger import begin, checked_by, load_npy, load_sealed, write_entry


def recorded(store: Store) -> list[dict[str, Any]]:
    """Return what is recorded of the shards that are left out, in the order of their rows.

    What is recorded of other rows than those that were read does not count.
    """
    found = read_record(store)
    files = store.index["files"]
    by_name = {one["shard"]: one for one in found}
    return [
        one
        for shard in store.shards
        if (one := by_name.get(shard.name)) is not None and one["file"] == _hash(files, shard)
    ]


def read_record(store: Store) -> list[dict[str, Any]]:
    """Return all that is recorded; a record that is lost is taken from ``keep/index.json``.

    Raises
    ------
    DamagedError
        It is damaged, and so is the other.
    """
    path = store.path / "left_out.json"
    problem: Exception | None = None
    try:
        return list(read_sealed(path)["shards"])
    except (FileNotFoundError, DamagedError) as error:
        problem = error
    try:
        had = read_sealed(store.path / "keep" / "index.json")["inputs"].get("left_out", [])
    except (FileNotFoundError, DamagedError, ConfigError):
        if isinstance(problem, DamagedError):
            raise problem from None
        return []
    if had or path.exists():
        write_record(store, had)
    return list(had)


def write_record(store: Store, shards: Sequence[Mapping[str, Any]]) -> None:
    """Write what is recorded; nothing is recorded in a folder where nothing is left out."""
    path = store.path / "left_out.json"
    if shards:
        write_sealed(path, {"shards": list(shards)})
    else:
        path.unlink(missing_ok=True)


def entry_for(store: Store, shard: Shard, stage: str, reason: str) -> dict[str, Any]:
    """Return what is recorded of a shard."""
    return {
        "shard": shard.name,
        "file": _hash(store.index["files"], shard),
        "first_row_id": shard.first_row_id,
        "rows": shard.rows,
        "stage": stage,
        "reason": reason,
    }


def _hash(files: Mapping[str, Any], shard: Shard) -> str:
    return str(files[f"{shard.name}.parquet"]["xxh3"])


def leave_out(store: Store) -> None:
    """Take the rows of recorded shards out of those that stay; list them in ``skipped.jsonl``.

    Parameters
    ----------
    store : Store
        With ``keep/`` as `pyids.data.exact_dedup.drop_duplicates` leaves it, or as this has made it
        when fewer shards were recorded.
    """
    index = store.path / "keep" / "index.json"
    metadata, record = load_sealed(index), recorded(store)
    had = metadata["inputs"].get("left_out", [])
    new = {one["shard"]: one for one in record if one not in had}
    if not new:
        return
    skipped = checked_by(index, store.path / "skipped.jsonl")
    shards = [shard for shard in store.shards if shard.name in new]
    kept = [np.array(load_npy(store.artifact("keep", shard))) for shard in shards]
    begin(index)
    lines = {orjson.loads(line)["row_id"]: line for line in skipped.read_bytes().splitlines()}
    for shard, ids in zip(shards, kept, strict=True):
        # Rows that went for their vectors, which are not looked at where their shard is left out.
        zero = [
            row_id
            for row_id in shard.row_ids
            if row_id in lines and orjson.loads(lines[row_id])["reason"] == ZERO_VECTOR
        ]
        reason = reason_of(new[shard.name])
        positions = np.union1d(ids, np.array(zero, np.int64)) - shard.first_row_id
        for place in places(store, shard, positions.astype(np.intp)):
            lines[place["row_id"]] = orjson.dumps({**place, "reason": reason})
        path = store.artifact("keep", shard)
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            write_npy(file, np.empty(0, np.int64))
    with atomic_write(skipped) as temporary:
        temporary.write_bytes(b"".join(lines[row_id] + b"\n" for row_id in sorted(lines)))
    count = sum(map(len, kept))
    write_entry(
        index,
        [
            *(skipped, store.path / "duplicates.jsonl"),
            *(store.artifact("keep", shard) for shard in store.shards),
        ],
        {**metadata["inputs"], "left_out": record},
        kept=metadata["kept"] - count,
        skipped=metadata["skipped"] + count,
        duplicates=metadata["duplicates"],
    )
    store.forget()


def reason_of(entry: Mapping[str, Any]) -> str:
    """Say why the rows of a shard are left out."""
    return (
        f"left out with its shard {entry['shard']}, on which the stage {entry['stage']} fails "
        f"({entry['reason']})"
    )
