"""Progress for people: bars on a terminal, a line every half minute elsewhere, a table a round."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from pyids.callbacks import Callback
from pyids.progress import Progress, listening

if TYPE_CHECKING:
    from pyids.models.checkpoints import Checkpoint
    from pyids.scoring.probes import Scores
    from pyids.selection import Selection

logger = logging.getLogger("pyids")

# Where there is no terminal, a stage says how far it is once in so many seconds.
SECONDS_BETWEEN_LINES = 30.0
# Clusters shown in the table at the end of a round, up and down.
_SHOWN = 3


@contextmanager
def showing_progress() -> Iterator[None]:
    """Show the progress of all stages inside the block on standard error."""
    if logger.level > logging.INFO:  # --quiet
        yield
    elif sys.stderr.isatty():
        with _bars() as listener, listening(listener):
            yield
    else:
        with listening(Lines()):
            yield


class Lines:
    """Says in the log how far a stage is, once in `SECONDS_BETWEEN_LINES`."""

    def __init__(self) -> None:
        self._stage = ""
        self._began = self._said = time.monotonic()

    def __call__(self, progress: Progress) -> None:
        """Take a report."""
        now = time.monotonic()
        if progress.stage != self._stage:
            self._stage, self._began, self._said = progress.stage, now, now
        if now - self._said < SECONDS_BETWEEN_LINES:
            return
        self._said = now
        done, total, seconds = progress.done, progress.total, now - self._began
        rate = done / seconds
        of = left = ""
        if total:
            of = f" of {total:,}"
            left = f", {(total - done) / rate:,.0f} s left" if rate else ""
        logger.info(f"{progress.stage}: {done:,}{of} {progress.unit}, {rate:,.0f} a second{left}")


@contextmanager
def _bars() -> Iterator[Any]:
    """Give a listener that draws one bar a stage, with its rate and the time that is left."""
    from rich.console import Console
    from rich.logging import RichHandler
    from rich.progress import BarColumn, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Any) -> Text:
            speed = task.finished_speed or task.speed
            unit = task.fields.get("unit", "rows")
            done = f"{task.completed:,.0f}" + (f"/{task.total:,.0f}" if task.total else "")
            return Text(f"{done} {unit}" + (f", {speed:,.0f}/s" if speed else ""))

    console = Console(stderr=True)
    bars = Bars(
        TextColumn("{task.description:>12}"), BarColumn(), Rate(), TimeRemainingColumn(),
        console=console,
    )  # fmt: skip
    tasks: dict[str, Any] = {}

    def listen(progress: Progress) -> None:
        task = tasks.get(progress.stage)
        if task is None or bars.tasks[bars.task_ids.index(task)].finished:
            task = bars.add_task(progress.stage, total=progress.total, unit=progress.unit)
            tasks[progress.stage] = task
        bars.update(task, completed=progress.done, total=progress.total, unit=progress.unit)

    handlers = logger.handlers
    plain = RichHandler(
        console=console, show_time=False, show_level=False, show_path=False, markup=False,
        highlighter=None,
    )  # fmt: skip
    logger.handlers = [plain]  # so that lines of the log stand above the bars
    try:
        with bars:
            yield listen
    finally:
        logger.handlers = handlers


class RoundTable(Callback):
    """Writes a table to the log at the end of each round: weights, losses, time."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._loss: float | None = None
        self._scores: dict[str, Any] = {}

    def on_draw(self, selection: Selection, n: int) -> None:
        """See `Callback`."""
        self._began = time.monotonic()
        self._scores = {}

    def on_train(self, selection: Selection, n: int, checkpoint: Checkpoint) -> None:
        """See `Callback`."""
        self._loss = checkpoint.loss

    def on_score(self, selection: Selection, n: int, scores: Scores) -> None:
        """See `Callback`."""
        self._scores = {
            name: float(np.nanmean(scores.columns[name]))
            for name in ("base_nll", "checkpoint_nll")
            if name in scores.columns and np.isfinite(scores.columns[name]).any()
        }

    def on_round_end(self, selection: Selection, n: int) -> None:
        """See `Callback`."""
        seconds = time.monotonic() - self._began
        lines = [f"round {n + 1} of {selection.config.rounds}: {seconds:.0f} s"]
        if self._loss is not None:
            lines.append(f"  training loss    {self._loss:.3f}")
        if {"base_nll", "checkpoint_nll"} <= self._scores.keys():
            base, trained = self._scores["base_nll"], self._scores["checkpoint_nll"]
            lines.append(f"  loss of probes   {base:.3f} before training, {trained:.3f} after")
        if selection.rounds.told > n:
            before, after = selection.rounds.weights(n), selection.rounds.weights(n + 1)
            change = after - before
            order = np.argsort(change, kind="stable")
            for name, clusters in (("up", order[::-1]), ("down", order)):
                shown = [
                    f"{j}: {before[j]:.2%} -> {after[j]:.2%}"
                    for j in clusters[:_SHOWN]
                    if (change[j] > 0) == (name == "up") and change[j] != 0
                ]
                count = int((change > 0).sum() if name == "up" else (change < 0).sum())
                lines.append(f"  clusters {name:4}    {count} ({'; '.join(shown) or 'none'})")
        logger.info("\n".join(lines))
