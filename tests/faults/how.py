"""How faults are made: damaged bytes, failing calls, signals, a small disk."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path


def damaged(good: bytes, how: str, rng: random.Random) -> bytes:
    content = bytearray(good)
    if how == "empty" or not content:
        return b"" if content else b"x"
    place = rng.randrange(len(content))
    if how == "flip":
        content[place] ^= 1 << rng.randrange(8)
    elif how == "truncate":
        del content[place:]
    else:
        end = min(len(content), place + rng.randrange(1, 2048))
        content[place:end] = bytes(end - place)
    return bytes(content)


def names_file(message: str, file: Path, folder: Path) -> bool:
    """Whether a message names a file, or its entry, or the file that its entry vouches for."""
    name = str(file.relative_to(folder).with_suffix(""))
    parent = str(file.relative_to(folder).parent)
    by_index = file.name in ("index.json", "state.json") and f"/{parent}/" in message
    return name in message or by_index


def after(wait_s: float, number: int) -> Callable[[int], None]:
    def send(child: int) -> None:
        time.sleep(wait_s)
        os.kill(child, number)

    return send


# Commands that only look at a folder; what is damaged there is one line to them, too.
LOOKS = (None, ("status",), ("report",), ("verify",), ("verify", "--replay"))

# What may fail; `fail` says how each is called.
CALLS = ("open", "fsync", "replace", "write", "mkdir", "unlink", "posix_fallocate", "stat")


def fail(name: str, nth: int, number: int) -> None:
    """Let the nth call of a kind fail, and those after it for a while, as on a full disk."""
    calls = Counter[str]()

    def failing(original: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            calls[name] += 1
            if nth <= calls[name] < nth + 3:
                raise OSError(number, os.strerror(number))
            return original(*arguments, **options)

        return call

    if name == "open":
        Path.open = failing(Path.open)
    elif name == "write":
        Path.write_bytes = failing(Path.write_bytes)
    elif name in ("replace", "mkdir", "unlink", "stat"):
        setattr(Path, name, failing(getattr(Path, name)))
    else:
        setattr(os, name, failing(getattr(os, name)))


class Disk:
    """A disk of its own and little room, where this process may mount one."""

    def __init__(self, place: Path, size: int) -> None:
        self.place = place
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
        try:
            self.mounted = subprocess.run(command, capture_output=True).returncode == 0
        except FileNotFoundError:
            self.mounted = False

    def enlarge(self) -> None:
        command = ["mount", "-o", "remount,size=64m", str(self.place)]
        subprocess.run(command, check=True, capture_output=True)

    def unmount(self) -> None:
        subprocess.run(["umount", "-l", str(self.place)], capture_output=True)
