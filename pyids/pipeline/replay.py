"""The rounds of a run folder derived again: to mend a damaged file, and to check all of them.

What a round drew follows from the configuration, the clusters and the weights; its weights follow
from the weights before and the scores that were told. So every file of a round but the scores, the
candidates that a model looked at and the checkpoint can be made again, to the same bytes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from pyids._typing import Float64, Int64
from pyids.config import RunConfig
from pyids.errors import DamagedError
from pyids.pipeline.identity import check_decided, decided, saved_config
from pyids.pipeline.prepare import reopen
from pyids.pipeline.stages import row_weights
from pyids.sampling import allocate, merge_samples, sample_by_cluster
from pyids.scoring.cluster_weights import update_weights
from pyids.scoring.screening import OUTLIER_PENALTY
from pyids.scoring.statistics import cluster_moments
from pyids.store.folder import Shard, Store
from pyids.store.ledger import hash_npy
from pyids.store.remedies import remedy
from pyids.store.rounds import Rounds

logger = logging.getLogger("pyids")

Labels = Sequence[NDArray[np.int32]]


def open_rounds(store: Store, config: RunConfig, labels: Labels) -> Rounds:
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
    rounds = Rounds(store, store.cluster_sizes)
    rounds.decided = decided(config)
    replay = Replay(store, config, rounds, labels)
    drawn, told = rounds.known()
    for n in range(drawn):
        for name in ("quotas", "selected", "probes", *(("weights",) if n < told else ())):
            if not rounds.holds(n, name) and (name != "probes" or rounds.stands(n, name)):
                _mend(rounds, n, name, replay.derive)
    rounds.check()
    return rounds


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
        rounds = Rounds(store, store.cluster_sizes)
        rounds.check()
        replay = Replay(store, config, rounds, store.labels())
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

    store: Store
    config: RunConfig
    rounds: Rounds
    labels: Labels

    def derive(self, n: int, name: str) -> NDArray[Any]:
        """Derive ``quotas``, ``selected``, ``probes`` or ``weights`` of round `n`, from 0."""
        made: NDArray[Any] = getattr(self, f"_{name}")(n)
        return made

    def _quotas(self, n: int) -> Int64:
        budget, rounds = self.config.budget_rows(self.store.kept), self.config.rounds
        weights, left = self.rounds.weights(n), self.rounds.left(n)
        shares = weights * left if self.config.allocation == "proportional" else weights
        rows = budget * (n + 1) // rounds - budget * n // rounds
        return allocate(rows, shares, left, seed=self._seed(b"quotas", n))

    def _selected(self, n: int) -> Int64:
        quotas = self.rounds.quotas(n)
        if not self.rounds.stands(n, "candidates"):
            return self._draw(n, quotas, self.config.seed, self._log_weights)
        table = self.rounds.candidates(n)
        row_ids, clusters, odd = (
            table.column(name).to_numpy() for name in ("row_id", "cluster", "outlier_score")
        )
        return sample_by_cluster(
            clusters,
            quotas,
            log_weights=self._log_weights_of(row_ids) - OUTLIER_PENALTY * odd,
            row_ids=row_ids,
            seed=self._seed(b"candidates", n),
            allow_fewer=True,
            n_threads=self.config.threads,
        )

    def _probes(self, n: int) -> Int64:
        quotas = np.minimum(self.config.probes_per_cluster, self.rounds.left(n + 1))
        return self._draw(n + 1, quotas, self._seed(b"probes", n), lambda shard: None)

    def _weights(self, n: int) -> Float64:
        table, summary = self.rounds.scores(n), self.rounds.summary(n)
        weights = self.rounds.weights(n)
        if not summary["weights_changed"]:
            return weights
        scores, clusters = (table.column(name).to_numpy() for name in ("score", "cluster"))
        means, counts, variances = cluster_moments(scores, clusters, len(weights))
        return update_weights(
            weights,
            means,
            counts,
            variances=variances,
            rule=self.config.weight_update,
            temperature=summary["temperature"],
            min_weight=self.config.min_weight,
        ).weights

    def _seed(self, purpose: bytes, n: int) -> int:
        return xxhash.xxh3_64_intdigest(b"%b of round %d" % (purpose, n), self.config.seed) >> 1

    def _log_weights(self, shard: Shard) -> Float64 | None:
        return row_weights(self.store, self.config, shard)

    def _log_weights_of(self, row_ids: Int64) -> Float64:
        weights = np.zeros(len(row_ids))
        for shard in self.store.shards:
            if (logs := self._log_weights(shard)) is None:
                break
            kept = self.store.row_ids(shard)
            _, at, where = np.intersect1d(row_ids, kept, assume_unique=True, return_indices=True)
            weights[at] = logs[where]
        return weights

    def _draw(
        self, drawn: int, quotas: Int64, seed: int, weights: Callable[[Shard], Float64 | None]
    ) -> Int64:
        """Draw from the clusters what the first rounds, `drawn` of them, have not drawn."""
        before = [self.rounds.selected(n) for n in range(drawn)]
        selected = np.sort(np.concatenate([np.empty(0, np.int64), *before]))
        parts = (
            sample_by_cluster(
                labels,
                quotas,
                log_weights=weights(shard),
                row_ids=self.store.row_ids(shard),
                exclude=selected,
                seed=seed,
                allow_fewer=True,
                return_keys=True,
                n_threads=self.config.threads,
            )
            for shard, labels in zip(self.store.shards, self.labels, strict=True)
        )
        return merge_samples(parts, quotas)
