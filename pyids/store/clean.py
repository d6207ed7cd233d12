"""Remove what one stage has written, so that the next command makes it again."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from pyids.errors import ConfigError
from pyids.store.files import entries_of, files_inside, write_sealed
from pyids.store.folder import Store
from pyids.store.place import is_run_folder
from pyids.store.remedies import STAGES
from pyids.store.rounds import known_rounds

# Files of other stages that hold what a stage has made, and go with it.
_NAMED_IN = {"left-out": ("keep", "skipped.jsonl", "duplicates.jsonl")}


def found(path: Path, stages: Iterable[str] = STAGES) -> dict[str, tuple[int, list[str]]]:
    """Return what each stage has left in a run folder: its bytes, and its files and folders.

    Stages that have left nothing are not named.

    Raises
    ------
    ConfigError
        It is no run folder.
    """
    if not is_run_folder(path):
        raise ConfigError(f"{path} is not a run folder: name the --output-dir of a run")
    held = {}
    for stage in stages:
        if names := [name for name in STAGES[stage] if (path / name).exists()]:
            held[stage] = (sum(_bytes(path / name) for name in names), names)
    return held


def _bytes(path: Path) -> int:
    total = 0
    for file in files_inside(path) if path.is_dir() else [path]:
        with suppress(FileNotFoundError):  # a run that works there has renamed it
            total += file.lstat().st_size
    return total


def clean(path: Path, stage: str, *, from_round: int = 1) -> list[str]:
    """Remove the files of a stage from a run folder, and the manifest, which names them.

    What later stages have made of them stays: it is used again if the stage makes the same bytes.

    Parameters
    ----------
    path : Path
        The run folder.
    stage : str
        One of `STAGES`.
    from_round : int, default 1
        With ``rounds``: the first round that goes, from 1.

    Returns
    -------
    list of str
        What was removed, relative to the folder.

    Raises
    ------
    ConfigError
        It is no run folder, or another process works there.
    """
    if stage not in STAGES:
        raise ConfigError(f"there is no stage {stage!r}: choose one of {', '.join(STAGES)}")
    if not is_run_folder(path):
        raise ConfigError(f"{path} is not a run folder: name the --output-dir of a run")
    with Store.open(path):
        names = [*STAGES[stage], *_NAMED_IN.get(stage, ()), "manifest.json"]
        if stage == "rounds" and from_round > 1:
            rounds = path / "rounds"
            drawn, told = known_rounds(rounds)
            if max(drawn, told) < from_round:
                return []
            names = [
                *(f"rounds/{n.name}" for n in _numbered(rounds) if int(n.name) >= from_round),
                "manifest.json",
            ]
            left = {"drawn": min(drawn, from_round - 1), "told": min(told, from_round - 1)}
            write_sealed(rounds / "state.json", left)
        removed = []
        for name in dict.fromkeys(names):
            target = path / name
            if target.is_dir():
                shutil.rmtree(target)
            elif target.exists():
                target.unlink()
            else:
                continue
            removed.append(name)
    return removed


def _numbered(rounds: Path) -> list[Path]:
    return [path for path in entries_of(rounds) if path.name.isdecimal()]
