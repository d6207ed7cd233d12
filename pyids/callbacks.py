"""What may watch a selection: progress bars, trackers, benchmarks."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pyids.models.checkpoints import Checkpoint
    from pyids.scoring.probes import Scores
    from pyids.selection import Selection

logger = logging.getLogger("pyids")


class Callback:
    """Sees the rounds of a selection as they happen; every method does nothing unless overridden.

    Rounds are counted from 0. What a method raises ends the run, which goes on when the same
    command is given again.
    """

    def on_draw(self, selection: Selection, n: int) -> None:
        """See that round `n` has drawn its rows: ``selection.rounds.selected(n)``."""

    def on_train(self, selection: Selection, n: int, checkpoint: Checkpoint) -> None:
        """See the model that was trained on everything drawn up to round `n`."""

    def on_score(self, selection: Selection, n: int, scores: Scores) -> None:
        """See the scores of the probe rows of round `n`."""

    def on_round_end(self, selection: Selection, n: int) -> None:
        """See that round `n` has ended: clusters are weighted anew, or it was the last one."""


class LogRounds(Callback):
    """Write a line to the log for each step of a round."""

    def on_draw(self, selection: Selection, n: int) -> None:
        """See `Callback`."""
        quotas = selection.rounds.quotas(n)
        logger.info(
            "round %d: drew %d rows from %d of %d clusters",
            *(n + 1, len(selection.rounds.selected(n)), np.count_nonzero(quotas), len(quotas)),
        )

    def on_train(self, selection: Selection, n: int, checkpoint: Checkpoint) -> None:
        """See `Callback`."""
        logger.info(
            "round %d: trained on %d rows in %.0f s%s",
            *(n + 1, checkpoint.rows, checkpoint.seconds),
            "" if checkpoint.loss is None else f", loss {checkpoint.loss:.3f}",
        )

    def on_round_end(self, selection: Selection, n: int) -> None:
        """See `Callback`."""
        if selection.rounds.told == n:
            return  # the last round ends with its training
        summary = selection.rounds.summary(n)
        if not summary["weights_changed"]:
            logger.warning(
                "round %d: the checkpoint's loss on the probe rows is %.1f standard errors below "
                "the base model's, and clusters differ by %.1f: the scores are noise, so the "
                "weights stay",
                *(n + 1, summary["paired_t"], summary["between_cluster_z"] or math.nan),
            )
        logger.info(
            "round %d: scored %d rows of %d clusters",
            *(n + 1, summary["scored_rows"], summary["scored_clusters"]),
        )


class Callbacks(Callback):
    """Several callbacks, called one after the other."""

    def __init__(self, callbacks: tuple[Callback, ...] = ()) -> None:
        self.callbacks = callbacks

    def on_draw(self, selection: Selection, n: int) -> None:
        """See `Callback`."""
        for callback in self.callbacks:
            callback.on_draw(selection, n)

    def on_train(self, selection: Selection, n: int, checkpoint: Checkpoint) -> None:
        """See `Callback`."""
        for callback in self.callbacks:
            callback.on_train(selection, n, checkpoint)

    def on_score(self, selection: Selection, n: int, scores: Scores) -> None:
        """See `Callback`."""
        for callback in self.callbacks:
            callback.on_score(selection, n, scores)

    def on_round_end(self, selection: Selection, n: int) -> None:
        """See `Callback`."""
        for callback in self.callbacks:
            callback.on_round_end(selection, n)
