"""The ledger: which files a stage wrote, and what they were made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyids.store.files import atomic_write, fingerprint, hash_file, read_json, write_json

# ---- the ledger ----------------------------------------------------------------------------------


def write_entry(
    entry: Path, files: Sequence[Path], inputs: Mapping[str, Any], **facts: Any
) -> dict[str, Any]:
    """Write the ledger entry of `files`, which stand in the folder of `entry`, whole.

    Parameters
    ----------
    entry : Path
        The ``.json`` beside them.
    files : sequence of Path
        The artifacts.
    inputs : mapping
        JSON values: the inputs and the options that decide the content of the files.
    **facts
        What else the stage wants to find again (``rows=...``), JSON values.
    """
    content = {
        "inputs": dict(inputs),
        "files": {
            file.name: {"bytes": file.stat().st_size, "xxh3": hash_file(file)} for file in files
        },
        **facts,
    }
    write_json(entry, content)
    return content


def read_entry(entry: Path, inputs: Mapping[str, Any]) -> dict[str, Any] | None:
    """Give the ledger entry if its files stand with their sizes and were made from `inputs`.

    None means: make it (again). The hashes are for `verify`; here the sizes are enough, because an
    entry is written after its files, and `begin` removes it before they are written anew.
    """
    try:
        content: dict[str, Any] = read_json(entry)
    except FileNotFoundError:
        return None
    if fingerprint(content["inputs"]) != fingerprint(dict(inputs)):
        return None
    for name, facts in content["files"].items():
        file = entry.with_name(name)
        if not file.is_file() or file.stat().st_size != facts["bytes"]:
            return None
    return content


def begin(entry: Path) -> None:
    """Remove an entry that no longer holds, before its files are written anew.

    Without this, a process killed between the file and its entry would leave the old entry beside
    the new file.
    """
    entry.parent.mkdir(parents=True, exist_ok=True)
    entry.unlink(missing_ok=True)


def save_npy(path: Path, array: NDArray[Any], inputs: Mapping[str, Any]) -> None:
    """Write an array as ``.npy`` with its ledger entry, both atomically."""
    entry = path.with_suffix(".json")
    begin(entry)
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.lib.format.write_array(file, np.asarray(array), allow_pickle=False)
    write_entry(entry, [path], inputs, rows=len(array))


def load_npy(path: Path) -> NDArray[Any]:
    """Map an array from ``.npy``, never a pickled one; read an empty one: none can be mapped."""
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError:
        array = np.load(path, allow_pickle=False)
        if array.size:
            raise
    return array
