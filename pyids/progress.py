"""How far the work is: stages report, and whoever listens is told.

Stages call `report`, which costs next to nothing where nobody listens: in worker processes, and
unless `listening` was entered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple


class Progress(NamedTuple):
    """How far a stage is.

    Attributes
    ----------
    stage
        Its name, such as ``embed``.
    done
        How much is done, in `unit`.
    total
        How much there is; None where that is not known.
    unit
        ``rows``, ``tokens``, ``iterations``, ...
    """

    stage: str
    done: int
    total: int | None
    unit: str = "rows"


Listener = Callable[[Progress], None]

_listener: ContextVar[Listener | None] = ContextVar("pyids_progress", default=None)


@contextmanager
def listening(listener: Listener | None) -> Iterator[None]:
    """Tell `listener` of all progress inside the block, from this thread; None: nobody."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def report(stage: str, done: int, total: int | None = None, unit: str = "rows") -> None:
    """Say how far a stage is; the last report of a stage has ``done == total``."""
    if (listener := _listener.get()) is not None:
        listener(Progress(stage, done, total, unit))


def reporter(stage: str, unit: str = "tokens") -> Callable[[int, int], None]:
    """Return a callable of (done, total) that reports for one stage."""
    return lambda done, total: report(stage, done, total, unit)
