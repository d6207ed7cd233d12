"""The ledger: which files a stage wrote, and what they were made from.

Beside the files of a stage stands an entry: a sealed JSON object (`pyids.store.files`) with their
sizes and hashes, and `inputs`. The entry of ``X.npy`` is ``X.json``, or else ``index.json`` in its
folder or up to two above. Every file is checked once a process, when it is first read: a run never
works on a file that is not what its stage wrote.
"""

from __future__ import annotations

import io
import os
import stat
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import xxhash
from numpy.typing import NDArray

from pyids.errors import DamagedError
from pyids.store.arrays import map_npy
from pyids.store.files import (
    atomic_write,
    fingerprint,
    hash_once,
    read_sealed,
    stamp,
    write_npy,
    write_sealed,
)
from pyids.store.remedies import remedy

# What this process has found to be as its entry says: path -> what stat said of it and of its
# entry.
_checked: dict[str, tuple[int, ...]] = {}

# The entries read last, by what stat says of them. The index of a folder names the files of all its
# shards, and each of them asks it.
_entries: OrderedDict[tuple[str, tuple[int, ...]], dict[str, Any]] = OrderedDict()
_ENTRIES_HELD = 4


def write_entry(
    entry: Path, files: Sequence[Path], inputs: Mapping[str, Any], **metadata: Any
) -> dict[str, Any]:
    """Write the ledger entry of `files`, which stand in the folder of `entry` or below, whole.

    Parameters
    ----------
    entry : Path
        The ``.json`` beside them.
    files : sequence of Path
        The artifacts.
    inputs : mapping
        JSON values: the inputs and the options that decide the content of the files.
    **metadata
        What else the stage wants to find again (``rows=...``), JSON values.
    """
    return write_sealed(
        entry,
        {
            "inputs": dict(inputs),
            "files": {os.path.relpath(file, entry.parent): facts_of(file) for file in files},
            **metadata,
        },
    )


def facts_of(file: Path) -> dict[str, Any]:
    """Give size and hash of a file, as an entry holds them."""
    return {"bytes": file.stat().st_size, "xxh3": hash_once(file)}


def read_entry(entry: Path, inputs: Mapping[str, Any]) -> dict[str, Any] | None:
    """Give the ledger entry if its files are what it says and were made from `inputs`.

    None means: make it (again). An entry is written after its files, and `begin` removes it before
    they are written anew.
    """
    try:
        content = read_sealed(entry)
    except (FileNotFoundError, DamagedError):
        return None
    if fingerprint(content.get("inputs")) != fingerprint(dict(inputs)):
        return None
    return content if next(damaged_files(entry, content), None) is None else None


def damaged_files(entry: Path, content: Mapping[str, Any]) -> Iterator[tuple[Path, str]]:
    """Yield each file of an entry that is missing or not what it says, and what is wrong."""
    for name, metadata in content["files"].items():
        file = Path(os.path.normpath(entry.parent / name))
        if (problem := difference(file, metadata)) is not None:
            yield file, problem


def difference(file: Path, metadata: Mapping[str, Any]) -> str | None:
    """Say how a file differs from what was noted of it, if it does."""
    try:
        if not stat.S_ISREG((found := file.stat()).st_mode):
            return "missing"  # a folder or a pipe in its place
        if found.st_size != metadata["bytes"]:
            return f"{found.st_size} bytes, was {metadata['bytes']}"
        if hash_once(file) != metadata["xxh3"]:
            return "the content has changed"
    except (FileNotFoundError, NotADirectoryError):  # be it only now
        return "missing"
    return None


def begin(entry: Path) -> None:
    """Remove an entry that no longer holds, before its files are written anew.

    Without this, a process killed between the file and its entry would leave the old entry beside
    the new file.
    """
    entry.parent.mkdir(parents=True, exist_ok=True)
    entry.unlink(missing_ok=True)


# ---- reading -------------------------------------------------------------------------------------


def entry_of(path: Path) -> Path:
    """Find the ledger entry that vouches for a file.

    Raises
    ------
    DamagedError
        There is none.
    """
    above = [folder / "index.json" for folder in path.parents[:3]]
    for entry in (path.with_suffix(".json"), *above):
        if entry.is_file() and entry != path:
            return entry
    raise DamagedError(f"{path}: no ledger entry vouches for it: {remedy(path)}")


def checked(path: Path) -> Path:
    """Give `path` back when the file is what its ledger entry says; checked once a process.

    Raises
    ------
    DamagedError
        It is missing, or something else; names the file and the remedy.
    """
    entry = entry_of(path)
    now = (*stamp(entry), *(stamp(path) if path.is_file() else ()))
    if _checked.get(str(path)) == now:
        return path
    metadata = load_held(entry)["files"].get(os.path.relpath(path, entry.parent))
    problem = "no ledger entry vouches for it" if metadata is None else difference(path, metadata)
    if problem is not None:
        raise DamagedError(f"{path}: damaged ({problem}): {remedy(path)}")
    _checked[str(path)] = now
    return path


def checked_by(entry: Path, path: Path) -> Path:
    """Give `path` back when it is what an entry elsewhere says that it is; see `checked`."""
    metadata = load_held(entry)["files"].get(os.path.relpath(path, entry.parent))
    problem = "no ledger entry vouches for it" if metadata is None else difference(path, metadata)
    if problem is not None:
        raise DamagedError(f"{path}: damaged ({problem}): {remedy(path)}")
    return path


def load_held(path: Path) -> dict[str, Any]:
    """Give `load_sealed` of a file, parsed once as long as it stays the same; not to be changed."""
    if not path.is_file():
        return load_sealed(path)
    key = (str(path), stamp(path))
    if key not in _entries:
        _entries[key] = load_sealed(path)
        if len(_entries) > _ENTRIES_HELD:
            _entries.popitem(last=False)
    _entries.move_to_end(key)
    return _entries[key]


def load_sealed(path: Path) -> dict[str, Any]:
    """Read a sealed JSON object that must be there.

    Raises
    ------
    DamagedError
        It is missing or not what was written; names the remedy.
    """
    try:
        return read_sealed(path)
    except FileNotFoundError:
        raise DamagedError(f"{path}: missing: {remedy(path)}") from None


def save_npy(path: Path, array: NDArray[Any], inputs: Mapping[str, Any]) -> None:
    """Write an array as ``.npy`` with its ledger entry, both atomically."""
    entry = path.with_suffix(".json")
    begin(entry)
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        write_npy(file, array)
    write_entry(entry, [path], inputs, rows=len(array))


def npy_bytes(array: NDArray[Any]) -> bytes:
    """Give the ``.npy`` file that `save_npy` writes of an array."""
    file = io.BytesIO()
    write_npy(file, array)
    return file.getvalue()


def hash_npy(array: NDArray[Any]) -> str:
    """Give the hash of the ``.npy`` file that `save_npy` writes of an array."""
    return xxhash.xxh3_128_hexdigest(npy_bytes(array))


def load_npy(path: Path) -> NDArray[Any]:
    """Map an array that a stage has written, checked by its ledger entry (`checked`)."""
    return map_npy(checked(path))
