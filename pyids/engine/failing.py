"""Tasks that fail: what they worked on, and how they failed, in words that are the same everywhere.

A task fails where it raises what nobody expected (no `PyidsError`, which says itself what is wrong,
and nothing that the machine is to blame for, such as a full disk), where the process dies that it
runs in, and where it is not done in time.
"""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pyids.errors import PyidsError
from pyids.terminal import explain, printable

T = TypeVar("T")
R = TypeVar("R")

# Why a task failed, where no exception says so.
DIED = "its process dies"
TOO_LONG = "it does not end in time"


@dataclass(frozen=True)
class Failed:
    """A task that failed each time it was tried.

    Attributes
    ----------
    item
        What it worked on.
    error
        What to raise.
    reason
        Why, the same on every engine: the name of the exception's type, `DIED` or `TOO_LONG`.
    """

    item: Any
    error: Exception
    reason: str

    @property
    def shards(self) -> Sequence[Any]:
        """The shards that can be left out, with ``name``, ``first_row_id`` and ``rows``."""
        return own_shards(self.item)


@dataclass(frozen=True)
class Raised:
    """What a task raised in another process."""

    content: bytes
    kind: str
    text: str
    trace: str

    def error(self) -> Exception:
        """Return the exception as it was; in other words where it is not known here."""
        found: Any = None
        # From a process of ours, as its results are; and the code of an exception may raise.
        with suppress(Exception):
            found = pickle.loads(self.content)  # noqa: S301
        if not isinstance(found, Exception) or type(found).__name__ != self.kind:
            found = RuntimeError(f"{self.kind}: {self.text}")
        error: Exception = found
        if not isinstance(error, PyidsError):
            error.add_note(f"in a worker:\n{self.trace}")
        return error


def attempt(task: Callable[[T], R], item: T) -> R | Raised:
    """Do a task in a worker; what it raises is returned, so that it arrives whatever it is."""
    try:
        return task(item)
    except Exception as error:  # noqa: BLE001  it is raised where the task was given
        content = b""
        with suppress(Exception):
            content = pickle.dumps(error)
        return Raised(content, type(error).__name__, str(error), traceback.format_exc())


def judged(error: Exception, item: object, kind: str | None = None) -> Failed:
    """Return what the exception of a task means, with a note of what it worked on.

    `kind` is the name of its type where it stands for one that is not known here.

    Raises
    ------
    Exception
        `error`, where the task is not to blame.
    """
    if isinstance(error, PyidsError):
        raise error
    error.add_note(f"in the task of {name_of(item)}: {_advice(item)}")
    if explain(error) is not None:
        raise error
    return Failed(item, error, kind or type(error).__name__)


def outcome(told: R | Raised, item: object) -> R | Failed:
    """Return the result of a task, or how it failed; see `judged`."""
    return judged(told.error(), item, told.kind) if isinstance(told, Raised) else told


def died(item: object, what: str) -> Failed:
    """Return how a task failed whose process died; `what` says where and how often."""
    error = PyidsError(
        f"{what} at {name_of(item)}: repeat the command, which goes on where it stopped; if it "
        f"dies there again, {_advice(item)}"
    )
    return Failed(item, error, DIED)


def too_long(item: object, seconds: float, times: int) -> Failed:
    """Return how a task failed that did not end in time."""
    error = PyidsError(
        f"{name_of(item)}: not done after {seconds:g} s (--task-timeout), {times} times: give it "
        f"more time, or {_advice(item)}; the same command goes on where it stopped"
    )
    return Failed(item, error, TOO_LONG)


def _advice(item: object) -> str:
    """Say what to do about a task that fails."""
    if own_shards(item):
        return "look at these rows and the memory they take, or leave them out (--skip-failing)"
    if shards_of(item):
        return "look at these rows and the memory they take"
    if getattr(item, "split", None) is not None:
        return (
            "mend this part of the file, or take it out (its rows have no numbers yet, by which "
            "--skip-failing could leave them out)"
        )
    return "give fewer --workers if memory was short"


def own_shards(item: object) -> Sequence[Any]:
    """Return the shards that a task makes files of, one each: without these it is not needed."""
    if (shard := getattr(item, "shard", None)) is not None:
        return (shard,)
    return tuple(getattr(item, "targets", ()))


def shards_of(item: object) -> Sequence[Any]:
    """Return the shards that a task works on, where it works on shards by name."""
    return own_shards(item) or tuple(getattr(item, "shards", ()))


def name_of(item: object) -> str:
    """Name what a task works on: its shards and rows, its file; else the item as it is."""
    if shards := shards_of(item):
        first, last = shards[0], shards[-1]
        names = first.name if len(shards) == 1 else f"{first.name} to {last.name}"
        rows = f"rows {first.first_row_id} to {last.first_row_id + last.rows - 1}"
        return f"shard {names} ({rows})"
    if (split := getattr(item, "split", None)) is not None:
        end = f"byte or row group {split.start} to {split.stop}" if split.stop else "the whole file"
        return f"{split.source.path} ({end})"
    if (label := getattr(item, "label", None)) is not None:
        return str(label)
    if (group := getattr(item, "group", None)) is not None:
        names = [Path(path).stem for path in (group.paths[0], group.paths[-1])]
        return f"shards {names[0]} to {names[1]} ({group.rows} rows)"
    return printable(f"{item!r:.200}", one_line=True)
