"""Near-duplicates: rows whose vectors all but repeat that of an earlier row of their cluster.

SemDeDup (Abbas et al., arXiv 2303.09540) looks for them inside clusters, so that no pair across
clusters is ever compared. Our rule: in the order of the row ids, a row goes if its cosine to a row
of the same cluster that stays is at least the threshold. (SemDeDup orders a cluster by the distance
to its center and lets rows that went remove others, too; so chains of rows, each near the next,
shrink to one there. Here every row that goes is near the row that it is said to repeat.)

What stays is written to ``distinct/``: row ids, labels and cluster sizes, as `Store.deduplicate`
reads them. What went is listed in ``near_duplicates.jsonl``.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from pyids._typing import Int64
from pyids.data.exact_dedup import places
from pyids.engine import Engine, LocalEngine
from pyids.neighbors import near_duplicates
from pyids.progress import report
from pyids.store.arrays import ShardArrays, join
from pyids.store.files import atomic_write, create_mapped, fingerprint, write_npy
from pyids.store.folder import Store
from pyids.store.ledger import begin, load_sealed, read_entry, write_entry
from pyids.store.reading import store_of

# Vectors that a task looks through, unless one cluster has more; and rows copied at a time.
_TASK_BYTES = 64 << 20
_BLOCK_ROWS = 4096


def drop_near_duplicates(store: Store, threshold: float, engine: Engine | None = None) -> int:
    """Write ``distinct/`` and ``near_duplicates.jsonl``, once; return how many rows went.

    Memory holds a block of a cluster at a time; what is known of every row is mapped to files.

    Parameters
    ----------
    store : Store
        Embedded and clustered, not deduplicated.
    threshold : float
        A cosine in (0, 1).
    engine : Engine, optional
        Where clusters are looked through, some of them a task.
    """
    # Entries hold the hashes of their files.
    entries = [
        store.artifact(kind, shard, ".json")
        for kind in ("embeddings", "labels")
        for shard in store.shards
    ]
    inputs = {
        "threshold": threshold,
        "rows": [store.fingerprint(shard) for shard in store.shards],
        "vectors and labels": fingerprint([load_sealed(entry)["files"] for entry in entries]),
    }
    folder = store.path / "distinct"
    entry = folder / "index.json"
    if (done := read_entry(entry, inputs)) is not None:
        return int(done["near_duplicates"])
    begin(entry)
    store.scratch.mkdir(exist_ok=True)
    originals, n_clusters = _originals(store, threshold, engine or LocalEngine())
    sizes = np.zeros(n_clusters, dtype=np.int64)
    ids = _mapped(store, "ids.i8")
    first = 0
    for shard in store.shards:
        kept = store.row_ids(shard)
        ids[first : first + len(kept)] = kept
        first += len(kept)
    files = [store.path / "near_duplicates.jsonl"]
    first = gone = 0
    with (
        atomic_write(store.path / "near_duplicates.jsonl") as temporary,
        temporary.open("wb") as listing,
    ):
        for shard, labels in zip(store.shards, store.labels(), strict=True):
            positions = np.arange(first, first + len(labels))
            repeated = np.array(originals[positions])
            stays = repeated == positions
            for name, values in (("keep", ids[positions[stays]]), ("labels", labels[stays])):
                path = folder / name / f"{shard.name}.npy"
                path.parent.mkdir(parents=True, exist_ok=True)
                with atomic_write(path) as whole, whole.open("wb") as file:
                    write_npy(file, np.asarray(values))
                files.append(path)
            sizes += np.bincount(labels[stays], minlength=len(sizes))
            went = ids[positions[~stays]] - shard.first_row_id
            of = ids[repeated[~stays]].tolist()
            for place, row_id in zip(places(store, shard, went), of, strict=True):
                listing.write(orjson.dumps({**place, "duplicate_of": row_id}) + b"\n")
            gone += len(went)
            first += len(labels)
    del originals, ids
    shutil.rmtree(store.scratch)
    write_entry(
        entry, files, inputs, kept=int(sizes.sum()), near_duplicates=gone, sizes=sizes.tolist()
    )
    return gone


def _originals(store: Store, threshold: float, engine: Engine) -> tuple[Int64, int]:
    """Return for each position the one that it repeats, or itself, and how many clusters there are.

    int64 (rows,), mapped to a file: not in memory.
    """
    members, ends = _by_cluster(store)
    originals = _mapped(store, "duplicates.i8")
    tasks = list(_tasks(store, ends, threshold))
    for task, repeats in zip(tasks, engine.map(find_repeats, tasks), strict=True):
        rows = np.array(members[task.ends[0] : task.ends[-1]])
        originals[rows] = rows[np.frombuffer(repeats, np.int64)]
        report("near-duplicates", task.ends[-1], ends[-1])
    return originals, len(ends)


@dataclass(frozen=True)
class _Task:
    """Some clusters one after the other: where each begins among the members, and the last ends."""

    folder: str
    ends: tuple[int, ...]
    threshold: float


def _tasks(store: Store, ends: list[int], threshold: float) -> Iterator[_Task]:
    """Cut the clusters into tasks of about `_TASK_BYTES` of vectors; no result depends on where."""
    row_bytes = next((v.shape[1] * v.itemsize for v in store.embeddings() if len(v)), 1)
    cuts = [0]
    for end in ends:
        cuts.append(end)
        if (cuts[-1] - cuts[0]) * row_bytes >= _TASK_BYTES:
            yield _Task(str(store.path), tuple(cuts), threshold)
            cuts = [end]
    if len(cuts) > 1:
        yield _Task(str(store.path), tuple(cuts), threshold)


def find_repeats(task: _Task) -> bytes:
    """Find the near-duplicates in some clusters: for each member which one it repeats, int64."""
    store = store_of(task.folder)
    start, stop = task.ends[0], task.ends[-1]
    file = store.scratch / "members.i8"
    members = np.fromfile(file, np.int64, stop - start, offset=8 * start)
    ascending = np.sort(members)
    vectors = _gather(store.embeddings(), ascending, store.scratch)
    repeats = np.empty(len(members), np.int64)
    for a, b in itertools.pairwise(task.ends):
        inside = slice(a - start, b - start)
        places = np.searchsorted(ascending, members[inside])
        if b > a:
            repeats[inside] = a - start + near_duplicates(vectors, places, threshold=task.threshold)
    return repeats.tobytes()


def _gather(vectors: ShardArrays, rows: Int64, scratch: Path) -> NDArray[Any]:
    """Copy ascending rows to a file, shard by shard, and map it."""

    def parts() -> Iterator[NDArray[Any]]:
        start = first = 0
        for shard in vectors:
            stop = int(np.searchsorted(rows, first + len(shard)))
            for at in range(start, stop, _BLOCK_ROWS):
                yield shard[rows[at : min(at + _BLOCK_ROWS, stop)] - first]
            start, first = stop, first + len(shard)

    return join(parts(), scratch, len(rows), next(v.dtype for v in vectors))


def _mapped(store: Store, name: str) -> Int64:
    """Make an int64 array, one entry a kept row, that lies in a file."""
    return create_mapped(store.scratch / name, (store.kept,), np.int64)


def _by_cluster(store: Store) -> tuple[Int64, list[int]]:
    """Sort the positions of the kept rows by cluster, ascending inside one; and where each ends."""
    labels = store.labels()
    sizes = store.cluster_sizes
    ends = np.cumsum(sizes)
    free = ends - sizes  # where the next row of each cluster goes
    members = _mapped(store, "members.i8")
    first = 0
    for part in labels:
        order = np.argsort(part, kind="stable")
        counts = np.bincount(part, minlength=len(sizes))
        # The rank of each row among those of its cluster in this shard.
        ranks = np.arange(len(part)) - np.repeat(np.cumsum(counts) - counts, counts)
        members[free[part[order]] + ranks] = first + order
        free += counts
        first += len(part)
    if isinstance(members, np.memmap):
        members.flush()  # for the tasks, which may run on other machines
    return members, ends.tolist()
