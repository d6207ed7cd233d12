"""What this process may use of its machine: memory, processors."""

from __future__ import annotations

import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
# Of the memory that is left, what a stage may take unless told otherwise.
_SHARE = 4


def memory_left() -> int:
    """Return the bytes that this process may still take: what the machine and its cgroup leave."""
    left = [_available()]
    for folder in _cgroup_folders():
        # Version 2, version 1. What the group's files take in the page cache is given back.
        for limit, used in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            most, now = _number(folder / limit), _number(folder / used)
            if most is not None and now is not None:
                left.append(most - max(0, now - _cached(folder)))
    return max(0, min(left))


def default_max_memory() -> int:
    """Return the bytes that a stage may take unless told: a quarter of what is left."""
    return memory_left() // _SHARE


def processors() -> int:
    """Return how many processors this process may run on."""
    return len(os.sched_getaffinity(0))


def _available() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _cgroup_folders() -> list[Path]:
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    folders = []
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers in ("", "memory"):
            root = _CGROUP / controllers
            # A container sees its own group as the root of the tree.
            folders += [root / name.lstrip("/"), root]
    return folders


def _cached(folder: Path) -> int:
    try:
        lines = (folder / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.split()[0] == "file")


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # "max" where there is no limit
        return None
