"""Buckets on the command line: run folders that are worked in, places that are written to."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from pyids.terminal import printable


def in_folder(command: Callable[..., Any]) -> Callable[..., Any]:
    """Let a command work in its run folder here, be it in a bucket."""

    @functools.wraps(command)
    def wrapped(*arguments: Any, folder: str, **options: Any) -> Any:
        from pyids.pipeline.inputs import folder_here

        with folder_here(folder) as path:
            return command(*arguments, folder=str(path), **options)

    return wrapped


@dataclass
class Destination:
    """Where a command writes to.

    Attributes
    ----------
    path
        Here; None where the command chooses a name in the run folder.
    url
        The folder of a bucket where it will be afterwards; empty where it stays here.
    """

    path: Path | None
    url: str = ""
    _lines: list[str] = field(default_factory=list, init=False)

    def say(self, written: Path) -> None:
        """Say what was written, when it is where it was asked for."""
        self._lines.append(f"{self.url}/{written.name}" if self.url else str(written))


@contextmanager
def destination(to: str | None) -> Iterator[Destination]:
    """Check that something can be written there, before the work for it; afterwards it is."""
    from pyids.store.bucket import written_to
    from pyids.store.objects import is_bucket
    from pyids.store.place import check_outside, check_writable_place

    if to is not None and is_bucket(to):
        with written_to(to) as path:
            place = Destination(path, to.rstrip("/").rpartition("/")[0])
            yield place
    else:
        if to is not None:
            check_writable_place(to)
            check_outside(Path(to))
        place = Destination(None if to is None else Path(to))
        yield place
    for line in place._lines:
        click.echo(printable(line))
