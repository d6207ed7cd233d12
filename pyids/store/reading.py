"""What the tasks of an engine share: one `Store` a process, and hashes of many files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from functools import lru_cache
from itertools import islice
from pathlib import Path

from pyids.engine import Engine, in_process
from pyids.store.files import hash_file, known_hash, remember_hash, stamp
from pyids.store.folder import Shard, Store

# Files of a task that hashes.
_FILES_A_TASK = 32


def store_of(folder: str, *, deduplicated: bool = False) -> Store:
    """Give the run folder, opened once a process for as long as its rows stay the same.

    Its index names every shard, and is not to be read again by every task. `deduplicated` says
    whether its near-duplicates are gone (`Store.deduplicate`).
    """
    entries = (Path(folder, kind, "index.json") for kind in ("rows", "keep"))
    store = _store(folder, tuple(stamp(entry) for entry in entries if entry.is_file()))
    if deduplicated:
        store = copy(store)
        store.deduplicate()
    return store


def cut_shards(shards: Sequence[Shard], rows: int) -> Iterator[tuple[Shard, ...]]:
    """Put shards that follow each other together, to about so many rows."""
    group: list[Shard] = []
    held = 0
    for shard in shards:
        group.append(shard)
        held += shard.rows
        if held >= rows:
            yield tuple(group)
            group, held = [], 0
    if group:
        yield tuple(group)


@lru_cache(maxsize=1)
def _store(folder: str, made: tuple[tuple[int, ...], ...]) -> Store:
    return Store(folder)


def hash_ahead(engine: Engine, paths: Iterable[Path]) -> None:
    """Hash files on the workers of an engine, so that this process knows their hashes.

    What has changed in between, or looks other from here, is hashed again by whoever asks.
    """
    if in_process(engine):
        return  # it would be this process, and for nothing where nobody asks
    left = iter([str(path) for path in paths if known_hash(path) is None])
    for known in engine.map(hash_some, _cut(left)):
        for name, made, xxh3 in known:
            if stamp(Path(name)) == made:
                remember_hash(Path(name), made, xxh3)


def _cut(names: Iterator[str]) -> Iterator[tuple[str, ...]]:
    while some := tuple(islice(names, _FILES_A_TASK)):
        yield some


def hash_some(names: tuple[str, ...]) -> list[tuple[str, tuple[int, ...], str]]:
    """Hash files: (name, what stat says of it, hash)."""
    return [(name, stamp(Path(name)), hash_file(Path(name))) for name in names]
