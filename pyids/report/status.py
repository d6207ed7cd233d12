"""How far a run is: what is done, what is next, since when, when it may end, what it takes."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from pyids.errors import DataError
from pyids.report.stages import Stage, disk_bytes, seconds_left, seconds_of, stages_of
from pyids.store.glance import glance
from pyids.store.objects import is_bucket
from pyids.store.place import is_run_folder, soft_lock

_SHOWN_ENTRIES = 6


@dataclass(frozen=True)
class Status:
    """How far the run in a folder is.

    Attributes
    ----------
    folder
        The run folder, or its address in a bucket.
    stages
        In their order.
    working
        Whether a process works in it now; None where the system does not tell.
    left_s
        Estimated seconds to its end; None where too little is done to tell, 0 after its end.
    bytes
        What each entry of the folder takes on the disk, the largest first.
    now
        When this was found, in seconds since the epoch.
    """

    folder: Path | str
    stages: list[Stage]
    working: bool | None
    left_s: float | None
    bytes: dict[str, int]
    now: float

    @property
    def next_stage(self) -> Stage | None:
        """The first stage that is not complete."""
        return next((stage for stage in self.stages if not stage.complete), None)

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        fields = ("name", "done", "total", "started", "ended", "note", "complete")
        following = self.next_stage
        return {
            "folder": str(self.folder),
            "stages": [{name: getattr(one, name) for name in fields} for one in self.stages],
            "next": following and following.name,
            "working": self.working,
            "left_s": self.left_s,
            "bytes": self.bytes,
        }

    def to_json(self) -> str:
        """Return `as_json` as text."""
        return orjson.dumps(self.as_json(), option=orjson.OPT_INDENT_2).decode()

    def __str__(self) -> str:
        spent = dict(seconds_of(self.stages, self.now))
        lines = []
        for stage in self.stages:
            mark = "done" if stage.complete else "-" if stage.started is None else "begun"
            parts = f"{stage.done}/{'?' if stage.total is None else stage.total}"
            took = duration(spent[stage.name]) if stage.name in spent else ""
            since = (
                "" if stage.ended is None else time.strftime("%F %T", time.localtime(stage.ended))
            )
            line = f"  {stage.name:20} {mark:6} {parts:>11}  {took:>9}  {since}  {stage.note}"
            lines.append(line.rstrip())
        following = self.next_stage
        return "\n".join(
            [
                f"{self.folder}: {self._state()}",
                *lines,
                f"  next: {following.name if following else 'nothing, the run has ended'}",
                f"  left: {self._left()}",
                f"  disk: {self._disk()}",
            ]
        )

    def _state(self) -> str:
        if self.next_stage is None:
            return "the run has ended"
        if self.working is None:
            return "the run has not ended"
        if self.working:
            return "a process works in it"
        if "`pyids tell`" in self.next_stage.note:
            return "waits for the scores of your trainer (`pyids tell`)"
        return "stopped: give the same command again, and it goes on"

    def _left(self) -> str:
        if self.next_stage is None:
            return "nothing"
        return "not known yet" if self.left_s is None else f"about {duration(self.left_s)}"

    def _disk(self) -> str:
        shown = [f"{name} {size(n)}" for name, n in [*self.bytes.items()][:_SHOWN_ENTRIES]]
        return f"{size(sum(self.bytes.values()))} ({', '.join(shown)})"


def status_of(folder: Path | str) -> Status:
    """Find out how far the run in a folder is; its files are not read but for small ones.

    Parameters
    ----------
    folder
        On this machine, or the address of one in a bucket, whose lock is not taken.

    Raises
    ------
    DataError
        It is not a run folder.
    ConfigError
        The bucket cannot be read.
    """
    if is_bucket(folder):
        with glance(str(folder)) as (path, working):
            return _status_of(path, str(folder), working)
    folder = Path(folder)
    return _status_of(folder, folder, is_locked(folder / ".lock"))


def _status_of(folder: Path, name: Path | str, working: bool | None) -> Status:
    if working and not is_run_folder(folder):  # in a bucket: the first files are on their way
        raise DataError(
            f"{name}: a process has just begun to work in it: wait a minute, and try again"
        )
    if not folder.is_dir() or not is_run_folder(folder):
        raise DataError(f"{name} is not a run folder: name one that `pyids run` has made")
    now = time.time()
    stages = stages_of(folder)
    return Status(name, stages, working, seconds_left(stages, now), disk_bytes(folder), now)


def is_locked(path: Path) -> bool | None:
    """Whether a process holds the lock of a run folder; None where the system does not tell.

    The lock is looked up, not taken: a run that begins at this moment must not find it taken.
    """
    if soft_lock(path.parent).exists():  # of a process that may be one of another machine
        return None
    try:
        held = Path("/proc/locks").read_text(encoding="ascii")
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
        stat = path.stat()
    except FileNotFoundError:
        return False if Path("/proc/locks").exists() else None
    except OSError:
        return None
    # "1: FLOCK ADVISORY WRITE pid major:minor:inode start end", the device in hexadecimal
    found = [line.split()[5] for line in held.splitlines() if len(line.split()) > 5]
    major, minor = os.major(stat.st_dev), os.minor(stat.st_dev)
    if f"{major:02x}:{minor:02x}:{stat.st_ino}" in found:
        return True
    if not any(place.endswith(f":{stat.st_ino}") for place in found):
        return False
    # A file of that number, on another device; unless this file system (Btrfs) tells programs of
    # another device than it tells the kernel.
    devices = {line.split()[2] for line in mounts.splitlines() if len(line.split()) > 2}
    return False if f"{major}:{minor}" in devices else None


def duration(seconds: float) -> str:
    """Return a time in the unit that fits it.

    Examples
    --------
    >>> duration(200)
    '3.3 min'
    """
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def size(n_bytes: float) -> str:
    """Return bytes in the unit that fits them.

    Examples
    --------
    >>> size(2048)
    '2.0 KiB'
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n_bytes < 1024:
            return f"{n_bytes:.0f} B" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.1f} TiB"
