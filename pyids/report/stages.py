"""How far each stage of a run folder is, since when, and what it takes on the disk."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyids.config import load_config
from pyids.errors import ConfigError, DamagedError
from pyids.store.files import entries_of, files_inside, read_sealed
from pyids.store.ledger import load_sealed

# How the names end of what lies beside the rows of a selection without rounds.
_RECORD = [".manifest", ".json"]

# How much the clocks of this machine and of a file system may differ, and what no stage takes.
_CLOCKS_DIFFER_S, _LONGEST_S = 3600.0, 366 * 86400.0


@dataclass(frozen=True)
class Stage:
    """One stage of a run.

    Attributes
    ----------
    name
        ``read``, ``embed``, ``cluster``, ``round 1``, ..., ``export``.
    done, total
        Parts of it that are done, and how many there are; a total of None is not known yet.
    started, ended
        Times of its first and last file, in seconds since the epoch; None before there is one.
    note
        What is being done, or what it came to.
    """

    name: str
    done: int
    total: int | None
    started: float | None = None
    ended: float | None = None
    note: str = ""

    @property
    def complete(self) -> bool:
        """Whether nothing of it is left."""
        return self.total is not None and self.done >= self.total


def read_config(folder: Path) -> dict[str, Any]:
    """Read ``config.yaml`` as it is, whichever version of pyids wrote it; empty before there is."""
    path = folder / "config.yaml"
    return load_config(path) if path.is_file() else {}


def _options_of(folder: Path) -> dict[str, Any]:
    """Read what the folder was made with; before it is known, what its configuration says."""
    try:
        return read_sealed(folder / "identity.json")
    except (FileNotFoundError, DamagedError, ConfigError):
        return read_config(folder)


def stages_of(folder: Path) -> list[Stage]:
    """Return the stages of a run folder in their order, as its files tell."""
    config = _options_of(folder)
    index = folder / "rows" / "index.json"
    shards = len(load_sealed(index)["shards"]) if index.exists() else None
    entries = [path for path in entries_of(folder / "rows", "*.json") if path != index]
    read = _stage("read", entries, len(entries) if shards is not None else None, last=index)
    embedded = entries_of(folder / "embeddings", "*.json")
    stages = [read]
    if config.get("budget_unit") not in (None, "rows"):
        stages.append(_stage("count tokens", entries_of(folder / "tokens", "*.json"), shards))
    stages.append(_stage("embed", embedded, shards))
    if config.get("exclude"):
        found = entries_of(folder / "excluded", "*-*.json")
        stages.append(_stage("exclude", found, shards))
    centroids = folder / "centroids.json"
    stages.append(_stage("cluster", [centroids], 1, first=folder / "labels"))
    if (near := folder / "distinct").is_dir():
        stages.append(_stage("drop near-duplicates", [near / "index.json"], 1, first=near))
    if config.get("quality"):
        stages.append(_stage("rate", entries_of(folder / "quality", "*-*.json"), shards))
    rounds = int(config.get("rounds") or 1)
    static = not (folder / "rounds").is_dir() and any(entries_of(folder, "selected-*"))
    if not static:
        stages += [_round(folder, n, rounds) for n in range(1, rounds + 1)]
    rows = [path for path in entries_of(folder, "selected-*") if path.suffixes[-2:] != _RECORD]
    exported = rows if static else [folder / "manifest.json"]
    if static:  # a method without rounds needs no more than what there is
        stages = [stage for stage in stages if stage.started is not None]
    return [*stages, _stage("export", exported, max(1, len(exported)))]


def _stage(
    name: str,
    parts: Iterable[Path],
    total: int | None,
    *,
    first: Path | None = None,
    last: Path | None = None,
) -> Stage:
    """Make a stage of the files that stand for its parts, and of one before or after them."""
    done = [time for path in parts if (time := _time(path)) is not None]
    times = [*done, *(time for path in (first, last) if path and (time := _time(path)) is not None)]
    if not times:
        return Stage(name, 0, total)
    return Stage(name, len(done), total, min(times), max(times))


def _round(folder: Path, number: int, rounds: int) -> Stage:
    """Make the stage of one round: draw, train, score; the last one of ours ends with training."""
    path = folder / "rounds" / str(number)
    drawn, told = path / "selected.npy", path / "weights.npy"
    trained = path / "checkpoint" / "checkpoint.json"
    begun = folder / "rounds" / "1"
    # Probe rows are drawn when a trainer of one's own asks, but after ours has trained.
    own_trainer = (begun / "probes.npy").exists() and not (begun / "checkpoint").exists()
    steps = [drawn, told] if own_trainer else [drawn, trained, told]
    if not own_trainer and number == rounds:
        steps = [drawn, trained]
    stage = _stage(f"round {number}", steps, len(steps), first=path if path.is_dir() else None)
    left = [
        name
        for name, step in zip(("draw", "train", "score"), steps, strict=False)
        if not step.exists()
    ]
    if own_trainer and left:
        left = ["draw"] if not drawn.exists() else ["the scores of your trainer (`pyids tell`)"]
    note = f"next: {left[0]}" if left and stage.started is not None else ""
    return Stage(stage.name, stage.done, stage.total, stage.started, stage.ended, note)


def _time(path: Path) -> float | None:
    """Return when a file was last written; None where there is none (it may just be renamed)."""
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def seconds_of(stages: list[Stage], now: float | None = None) -> list[tuple[str, float]]:
    """Return the wall seconds of each stage that has ended or begun, as the times of its files say.

    From the end of the stage before to its own; of the first, from its first file. A pause counts,
    and files that were copied without their times tell nothing. Of a stage whose files say that
    they are yet to be written, or that it took a year, the clock was changed: it is left out.
    """
    now = time.time() if now is None else now
    found, before = [], None
    for stage in stages:
        if stage.started is None or stage.ended is None or stage.ended > now + _CLOCKS_DIFFER_S:
            continue
        start = stage.started if before is None else before
        if stage.ended - min(start, stage.started) < _LONGEST_S:
            found.append((stage.name, max(0.0, stage.ended - start)))
        before = max(stage.ended, before or 0.0)
    return found


def seconds_left(stages: list[Stage], now: float | None = None) -> float | None:
    """Estimate the seconds to the end of the run; None where too little is done to tell.

    The stage that is being done goes on at the pace that it has had; a round that has not begun
    takes as long as the mean of those that have ended. Stages before the rounds that have not begun
    are not known.
    """
    now = time.time() if now is None else now
    spent = dict(seconds_of(stages, now))
    ended = [
        spent[s.name]
        for s in stages
        if s.name.startswith("round") and s.complete and s.name in spent
    ]
    left = 0.0
    for stage in stages:
        if stage.complete or stage.name == "export":
            continue
        if stage.name.startswith("round"):
            if not ended:
                return None
            mean = sum(ended) / len(ended)
            begun = stage.started if stage.name in spent else None
            passed = 0.0 if begun is None else max(0.0, now - begun)
            left += max(0.0, mean - passed)
        elif stage.name not in spent or stage.total is None or stage.done < 2:
            return None
        else:
            assert stage.started is not None
            assert stage.ended is not None
            pace = (stage.ended - stage.started) / (stage.done - 1)
            left += pace * (stage.total - stage.done)
    return left


def disk_bytes(folder: Path) -> dict[str, int]:
    """Return the bytes of each entry of a run folder, the largest first."""
    sizes: dict[str, int] = {}
    for path in files_inside(folder):
        try:
            size = path.lstat().st_size
        except FileNotFoundError:
            continue  # a file of a stage that is being done was renamed
        top = path.relative_to(folder).parts[0]
        sizes[top] = sizes.get(top, 0) + size
    return dict(sorted(sizes.items(), key=lambda item: (-item[1], item[0])))
