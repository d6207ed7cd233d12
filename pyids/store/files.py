"""Files written whole or not at all, and their hashes."""

from __future__ import annotations

import os
import secrets
import shutil
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import xxhash

if TYPE_CHECKING:
    pass


def rename_folder(temporary: Path, folder: Path) -> None:
    """Make a finished folder appear under its name, or not at all; its files are on disk first."""
    for file in temporary.iterdir():
        fsync(file)
    fsync(temporary)
    if folder.exists():
        old = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
        folder.rename(old)
        temporary.rename(folder)
        shutil.rmtree(old)
    else:
        temporary.rename(folder)
    fsync(folder.parent)


def fsync(path: Path) -> None:
    """Wait until a file or folder is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---- files ---------------------------------------------------------------------------------------


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give the path of a new file to write; afterwards it is `path`, whole and on the disk.

    The file lies in the folder of `path` until the block ends without an exception; then it is
    fsynced, renamed, and the folder is fsynced. When the block raises, it is removed; when the
    process dies, `Store.open` removes it.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        _fsync(temporary)
        temporary.replace(path)
        _fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def hash_file(path: Path, limit_bytes: int | None = None) -> str:
    """xxh3-128 of a file's bytes (of its first `limit_bytes`), in hex."""
    digest = xxhash.xxh3_128()
    left = limit_bytes if limit_bytes is not None else sys.maxsize
    with path.open("rb", buffering=0) as file:
        while left > 0 and (block := file.read(min(left, 1 << 22))):
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()


def fingerprint(value: object) -> str:
    """xxh3-128 of a JSON value, keys sorted, in hex."""
    return xxhash.xxh3_128_hexdigest(orjson.dumps(value, option=orjson.OPT_SORT_KEYS))


def write_json(path: Path, value: object) -> None:
    """Write a JSON value, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(orjson.dumps(value, option=orjson.OPT_INDENT_2) + b"\n")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return orjson.loads(path.read_bytes())
