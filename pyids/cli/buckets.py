"""Buckets on the command line: run folders that are worked in, places that are written to."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from pyids.errors import ConfigError
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
        Here, as it was given; None where the command chooses a name in the run folder.
    url
        The folder of a bucket where it will be afterwards; empty where it stays here.
    """

    path: str | Path | None
    url: str = ""
    _lines: list[str] = field(default_factory=list, init=False)

    def say(self, written: Path) -> None:
        """Say what was written, when it is where it was asked for."""
        self._lines.append(f"{self.url}/{written.name}" if self.url else str(written))


@contextmanager
def destination(
    to: str | None,
    format: str = "jsonl",
    inputs: Iterable[str] = (),
    own: Path | None = None,
) -> Iterator[Destination]:
    """Check that an export can be written there, before the work for it; afterwards it is.

    It is none of `inputs`, nor is anything else lost by it (`pyids.data.destination`).
    """
    from pyids.data.destination import check_export, check_export_in_bucket, place_of
    from pyids.store.bucket import written_to
    from pyids.store.objects import is_bucket

    if to is not None and is_bucket(to):
        check_export_in_bucket(to, format, inputs)
        with written_to(to) as path:
            place = Destination(path, to.rstrip("/").rpartition("/")[0])
            yield place
    else:
        if to is not None:
            check_export(place_of(to, format), format, inputs, own=own)
        place = Destination(to)
        yield place
    for line in place._lines:
        click.echo(printable(line))


def check_results(
    inputs: Iterable[str | None], json_path: str | None, html_path: str | None, keys: set[str]
) -> None:
    """Check that nothing else is lost by the files that a result is written to.

    Parameters
    ----------
    inputs
        What the command reads.
    json_path, html_path
        Where to.
    keys
        What an earlier result holds as JSON: such a file is replaced.
    """
    from pyids.report.page import is_page
    from pyids.store.files import read_json
    from pyids.store.place import check_destination

    def is_result(path: Path) -> bool:
        try:
            content = read_json(path)
        except ValueError:
            return False
        return isinstance(content, dict) and keys <= content.keys()

    read = [name for name in inputs if name is not None]
    if json_path is not None:
        check_destination(json_path, read, same_kind=is_result)
    if html_path is not None:
        check_destination(html_path, read, same_kind=is_page)
        if json_path is not None and Path(html_path).resolve() == Path(json_path).resolve():
            raise ConfigError(f"{html_path}: named for JSON and for the page: name two files")
