"""Data in memory that take the place of earlier ones in a run folder, if the run accepts them.

They must lie there before a run can be compared with what the folder holds; and a run that is
refused must leave the folder as it was. So what is replaced is kept beside it until then.
"""

from __future__ import annotations

import os
from pathlib import Path

# Before the name of a file that was replaced; the file is empty where there was none.
_KEPT, _NEW = ".before-", ".new-"


def put_in(new: Path, folder: Path, *others: str) -> Path:
    """Move a file into a folder, in the place of the one of its name and of `others`.

    Returns
    -------
    Path
        Where it is now.
    """
    path = folder / new.name
    for name in (new.name, *others):
        there, kept, absent = folder / name, folder / (_KEPT + name), folder / (_NEW + name)
        if kept.exists() or absent.exists():
            continue
        if there.exists():
            there.rename(kept)
        elif name == new.name:
            absent.touch()
    os.replace(new, path)
    return path


def accept(folder: Path) -> None:
    """Let go of what was replaced in a folder, if anything was."""
    for mark in (*folder.glob(_KEPT + "*"), *folder.glob(_NEW + "*")):
        mark.unlink()


def put_back(folder: Path) -> None:
    """Make a folder as it was before `put_in`, if it was used."""
    for absent in folder.glob(_NEW + "*"):
        (folder / absent.name.removeprefix(_NEW)).unlink(missing_ok=True)
        absent.unlink()
    for kept in folder.glob(_KEPT + "*"):
        kept.rename(folder / kept.name.removeprefix(_KEPT))
