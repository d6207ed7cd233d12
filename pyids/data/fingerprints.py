"""What an input is known by: the names, sizes and hashes of its files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyids.data.remote import is_remote, remote_facts, remote_hash
from pyids.data.sources import Source
from pyids.engine import Engine
from pyids.store.files import fingerprint, hash_file, hash_once, remembered, write_sealed
from pyids.store.folder import Store
from pyids.store.reading import hash_ahead

# With a limit only the beginning of the data matters, and of a huge file only this much is hashed.
LIMITED_HASH_BYTES = 256 << 20


def fingerprint_sources(
    sources: Sequence[Source],
    store: Store | None = None,
    *,
    limit: int | None = None,
    engine: Engine | None = None,
) -> list[dict[str, Any]]:
    """Give the data set's identity: what `fingerprint_files` says of each source."""
    paths = [source.path for source in sources]
    return fingerprint_files(paths, store, limit=limit, engine=engine)


def fingerprint_files(
    paths: Sequence[str],
    store: Store | None = None,
    *,
    limit: int | None = None,
    engine: Engine | None = None,
) -> list[dict[str, Any]]:
    """Give name, size and content hash of input files.

    The files are read once; a file whose path, size and time of change are those that the run
    folder remembers is not read again.

    Parameters
    ----------
    paths : sequence of str
        The files.
    store : Store, optional
        The run folder that remembers.
    limit : int, optional
        Rows that will be read. With a limit, of each file only the first `LIMITED_HASH_BYTES` are
        hashed.
    engine : Engine, optional
        Where files are hashed that the folder does not remember.

    Returns
    -------
    list of dict
        ``name`` (without its folder: data may move), ``bytes``, ``xxh3``.
    """
    limit_bytes = None if limit is None else LIMITED_HASH_BYTES
    memory = store.path / ".inputs.json" if store is not None else None
    known = remembered(memory, dict) if memory is not None else {}
    if engine is not None and limit is None:
        new = (Path(name).resolve() for name in paths if not is_remote(name))
        hash_ahead(engine, [path for path in new if path.is_file() and str(path) not in known])
    found = []
    for name in paths:
        if is_remote(name):
            size = remote_facts(name)[0]
            xxh3 = fingerprint([size, remote_hash(name, limit_bytes)])
            found.append({"name": Path(name).name, "bytes": size, "xxh3": xxh3})
            continue
        path = Path(name).resolve()
        # A table of Lance is a folder: all of its files are it.
        parts = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else []
        stats = [part.stat() for part in parts or [path]]
        size = sum(stat.st_size for stat in stats)
        stamp = [size, max(stat.st_mtime_ns for stat in stats), limit_bytes]
        if known.get(str(path), {}).get("stamp") != stamp:
            hashes = [
                hash_file(part, limit_bytes) if limit_bytes else hash_once(part)
                for part in parts or [path]
            ]
            whole = fingerprint(hashes) if parts else hashes[0]
            known[str(path)] = {"stamp": stamp, "xxh3": whole}
        found.append({"name": path.name, "bytes": size, "xxh3": known[str(path)]["xxh3"]})
    if memory is not None:
        write_sealed(memory, known)
    return found
