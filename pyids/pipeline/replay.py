"""The rounds of a run folder derived again: to mend a damaged file, and to check all of them.

What a round drew follows from the configuration, the clusters and the weights; its weights follow
from the weights before and the scores that were told. So every file of a round but the scores, the
candidates that a model looked at and the checkpoint can be made again, to the same bytes; these
three need a model (`pyids.selection.Selection.make_again`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pyids._typing import Float64, Int64
from pyids.config import RunConfig
from pyids.engine import Engine
from pyids.errors import DamagedError
from pyids.pipeline.draw import Draws, draws_of
from pyids.pipeline.identity import check_decided, decided, saved_config
from pyids.pipeline.prepare import reopen
from pyids.scoring.cluster_weights import reweight, update_weights
from pyids.scoring.statistics import cluster_moments
from pyids.store.folder import Store
from pyids.store.ledger import hash_npy
from pyids.store.remedies import remedy
from pyids.store.restore import weights_made_from
from pyids.store.rounds import Rounds

logger = logging.getLogger("pyids")


def open_draws(store: Store, config: RunConfig, engine: Engine | None = None) -> Draws:
    """Open the rounds of a run folder; what is damaged is made again, to the same bytes.

    Raises
    ------
    ConfigError
        The rounds were drawn with other options.
    DamagedError
        A file is missing or damaged and cannot be made again; names it, before anything is
        written.
    """
    check_decided(store.path, config)
    draws = draws_of(store, config, engine)
    rounds, replay = draws.rounds, Replay(draws)
    rounds.decided = decided(config)
    drawn, told = rounds.known()
    for n in range(told):
        if not rounds.holds(n, "weights") and not rounds.holds_scores(n):
            path = rounds.path(n, "weights.npy")
            raise DamagedError(
                f"{path}: missing or damaged, and cannot be made again without the round's scores: "
                f"{remedy(path)}"
            )
    for n in range(drawn):
        if n < told and not rounds.holds_scores(n):
            _mend_summary(rounds, n, config)
        for name in ("quotas", "selected", "probes", *(("weights",) if n < told else ())):
            if not rounds.holds(n, name) and (name != "probes" or rounds.stands(n, name)):
                _mend(rounds, n, name, replay.derive)
    rounds.check()
    return draws


def _mend(rounds: Rounds, n: int, name: str, derive: Callable[[int, str], NDArray[Any]]) -> None:
    path = rounds.path(n, f"{name}.npy")
    try:
        made = derive(n, name)
    except (DamagedError, ValueError) as error:
        raise DamagedError(
            f"{path}: missing or damaged, and cannot be made again ({error}): {remedy(path)}"
        ) from None
    known = rounds.known_hashes(n, name)
    if known and hash_npy(made) not in known:
        raise DamagedError(
            f"{path}: damaged, and what is made again is something else: {remedy(path)}"
        )
    rounds.mend(n, name, made)
    logger.warning("%s was missing or damaged: made again", path)


def _mend_summary(rounds: Rounds, n: int, config: RunConfig) -> None:
    """Derive from the scores of a round, if they are whole, what they came to."""
    if (made_from := weights_made_from(rounds, n)) is None:
        return  # the scores themselves are lost, which `pyids run` makes again
    table = pq.read_table(rounds.path(n, "scores.parquet"))  # hashed just now
    columns = {name: table.column(name).to_numpy() for name in table.column_names}
    del columns["row_id"]
    told = reweight(
        rounds.weights(n),
        columns,
        columns.pop("cluster"),
        config,
        made_from["temperature"],
        made_from["pooled_noise"],
    )
    path = rounds.path(n, "scores.json")
    if hash_npy(told.weights) not in rounds.known_hashes(n, "weights"):
        raise DamagedError(
            f"{path}: missing or damaged, and what is made again is something else: {remedy(path)}"
        )
    rounds.save_summary(n, told.summary)
    logger.warning("%s was missing or damaged: made again", path)


def replay_rounds(folder: Path) -> list[str]:
    """Derive quotas, draws, probes and weights of all rounds again; give a line a difference.

    Parameters
    ----------
    folder : Path
        A run folder; nothing but what it holds is used, and nothing is written.
    """
    config = saved_config(folder)
    problems = []
    with reopen(config, finish=True) as store:
        draws = draws_of(store, config)
        rounds, replay = draws.rounds, Replay(draws)
        rounds.check()
        for n in range(rounds.drawn):
            for name in ("quotas", "selected", "probes", "weights"):
                if not rounds.stands(n, name):
                    continue  # a last round is not told
                if not np.array_equal(replay.derive(n, name), rounds.array(n, name)):
                    problems.append(
                        f"rounds/{n + 1}/{name}.npy: not what follows from what it was made from: "
                        f"{remedy(rounds.path(n, f'{name}.npy'))}"
                    )
    return problems


@dataclass(frozen=True)
class Replay:
    """Derives the arrays of rounds from what they were made from."""

    draws: Draws

    def derive(self, n: int, name: str) -> NDArray[Any]:
        """Derive ``quotas``, ``selected``, ``probes`` or ``weights`` of round `n`, from 0."""
        if name == "quotas":
            return self._quotas(n)
        if name == "probes":
            return self.draws.probes(n)
        if name == "weights":
            return self._weights(n)
        return self._selected(n, self.draws.rounds.quotas(n))

    def _quotas(self, n: int) -> Int64:
        quotas = self.draws.quotas(n)
        if not self.draws.rounds.stands(n, "candidates"):
            return quotas
        return self.draws.settled(quotas, self._selected(n, quotas))

    def _selected(self, n: int, quotas: Int64) -> Int64:
        rounds = self.draws.rounds
        if not rounds.stands(n, "candidates"):
            return self.draws.rows(n, quotas)
        table = rounds.candidates(n)
        columns = (table.column(name) for name in ("row_id", "cluster", "outlier_score"))
        return self.draws.screened(n, quotas, *(column.to_numpy() for column in columns))

    def _weights(self, n: int) -> Float64:
        rounds, config = self.draws.rounds, self.draws.config
        table, summary = rounds.scores(n), rounds.summary(n)
        weights = rounds.weights(n)
        if not summary["weights_changed"]:
            return weights
        scores, clusters = (table.column(name).to_numpy() for name in ("score", "cluster"))
        means, counts, variances = cluster_moments(scores, clusters, len(weights))
        return update_weights(
            weights,
            means,
            counts,
            variances=variances,
            rule=config.weight_update,
            temperature=summary["temperature"],
            pooled_noise=summary.get("pooled_noise", True),
            min_weight=config.min_weight,
        ).weights
