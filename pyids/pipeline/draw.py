"""What the rounds draw: each draw follows from the configuration, the clusters and the weights.

So a draw can be made again, to the same bytes: `pyids.selection` makes them, and
`pyids.pipeline.replay` derives them again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from pyids._typing import Float64, Int64
from pyids.config import RunConfig
from pyids.data.exported_rows import Selected
from pyids.engine import Engine, LocalEngine
from pyids.errors import DataError
from pyids.pipeline.best_response import other_responses
from pyids.pipeline.budget import budget_of
from pyids.pipeline.exclude import NOTHING, Excluded, excluded, too_few
from pyids.pipeline.shard_draw import DrawnFrom, draw_rows, log_weights
from pyids.pipeline.target import PoolTarget
from pyids.sampling import allocate, sample_by_cluster
from pyids.store.folder import Store
from pyids.store.rounds import Rounds

Labels = Sequence[NDArray[np.int32]]

# A candidate is drawn with its weight times exp(-OUTLIER_PENALTY * its outlier score).
OUTLIER_PENALTY = 3.0


@dataclass(frozen=True)
class Draws:
    """The draws of one run folder, round by round; rounds count from 0.

    Attributes
    ----------
    store, config, rounds
        The run folder, the configuration that it was made with, what its rounds have left.
    labels
        int32, the clusters of each shard's rows.
    target
        What is selected for, if anything.
    left_out
        int64, ascending: ids of rows that are never drawn, because they repeat the target or have
        a likelier answer beside them, are excluded or trained on already.
    excluded
        Which of them are because of the last two.
    order
        int64: positions in the pool as the target's rows take them in turn.
    engine
        Where shards are drawn from.
    """

    store: Store
    config: RunConfig
    rounds: Rounds
    labels: Labels
    target: PoolTarget | None = None
    left_out: Int64 = field(default_factory=lambda: np.empty(0, np.int64))
    excluded: Excluded = NOTHING
    order: Int64 = field(default_factory=lambda: np.empty(0, np.int64))
    engine: Engine = field(default_factory=LocalEngine)

    def seed(self, purpose: bytes, n: int) -> int:
        """Return a seed for one purpose in round `n`."""
        return xxhash.xxh3_64_intdigest(b"%b of round %d" % (purpose, n), self.config.seed) >> 1

    def metadata(self) -> dict[str, Any]:
        """Return what the manifest says of the draws, JSON values."""
        target = {} if self.target is None else {"target": self.target.metadata()}
        total, drawn = budget_of(self.store, self.config).total, len(self.rounds.selected())
        budget = {"unit": "rows", "total": total, "drawn": drawn}
        return {**target, **self.excluded.facts, "budget": budget}

    def quotas(self, n: int) -> Int64:
        """Share the budget of round `n` among the clusters, summing to it exactly; int64 (K,)."""
        budget, rounds = self.config.budget_rows(self.store.kept), self.config.rounds
        weights, left = self.rounds.weights(n), self.rounds.left(n)
        shares = weights * left if self.config.allocation == "proportional" else weights
        rows = budget * (n + 1) // rounds - budget * n // rounds
        return allocate(rows, shares, left, seed=self.seed(b"quotas", n))

    def rows(self, n: int, quotas: Int64) -> Int64:
        """Draw rows that no round before `n` drew, by the quotas; ids, ascending."""
        return draw_rows(self.drawn_from(n, self.weights), quotas, seed=self.config.seed)

    def candidates(self, n: int, quotas: Int64, per_row: int) -> Int64:
        """Draw several candidates for each row of the quotas; ids, ascending."""
        return self.rows(n, np.minimum(quotas * per_row, self.rounds.left(n)))

    def screened(
        self,
        n: int,
        quotas: Int64,
        candidates: Int64,
        clusters: NDArray[np.int32],
        outlier_scores: Float64,
    ) -> Int64:
        """Draw among candidates, the less likely the more of an outlier one is; ids, ascending.

        Parameters
        ----------
        quotas
            int64 (K,).
        candidates, clusters, outlier_scores
            int64, int32, float64 (B,): ids ascending, see `pyids.scoring.screening`.
        """
        # The quality decides again: where a cluster is small, all of it are candidates.
        weights = self.log_weights_of(candidates) - OUTLIER_PENALTY * outlier_scores
        return sample_by_cluster(
            clusters,
            quotas,
            log_weights=weights,
            row_ids=candidates,
            seed=self.seed(b"candidates", n),
            allow_fewer=True,
            n_threads=self.config.threads,
        )

    def settled(self, quotas: Int64, selected: Int64) -> Int64:
        """Give the rows of each cluster, int64 (K,), that were drawn by these quotas."""
        return quotas

    def probes(self, n: int) -> Int64:
        """Draw the unseen rows to score in round `n`, some of each cluster; ids, ascending."""
        quotas = np.minimum(self.config.probes_per_cluster, self.rounds.left(n + 1))
        # Not of cells: every cluster has its probes, whatever the budget counts.
        drawn_from = replace(self.drawn_from(n + 1, ()), labels=self.labels)
        return draw_rows(drawn_from, quotas, seed=self.seed(b"probes", n))

    @cached_property
    def weights(self) -> tuple[str, ...]:
        """What the log weights of rows inside their clusters are the sum of (`log_weights`)."""
        kinds = ["quality"] if self.config.quality is not None else []
        if self.target is not None:
            self.target.save_log_weights(self.order)
            kinds.insert(0, "target")
        return tuple(kinds)

    def drawn_from(self, n: int, weights: tuple[str, ...]) -> DrawnFrom:
        """Return what is drawn from: rows that no round before `n` drew, and that may be drawn."""
        return DrawnFrom(
            self.store,
            self._labels(),
            weights,
            np.union1d(self.rounds.selected_before(n), self.left_out),
            self.config.threads,
            self.engine,
        )

    def _labels(self) -> Labels:
        return self.labels

    def log_weights_of(self, row_ids: Int64) -> Float64:
        """Log weights of rows inside their clusters, ids ascending; zeros where all are equal."""
        weights = np.zeros(len(row_ids))
        for shard in self.store.shards:
            first, last = np.searchsorted(row_ids, [shard.row_ids.start, shard.row_ids.stop])
            if first == last:
                continue
            if (logs := log_weights(self.store, shard, self.weights)) is None:
                break
            at = np.searchsorted(self.store.row_ids(shard), row_ids[first:last])
            weights[first:last] = logs[at]
        return weights


def draws_of(store: Store, config: RunConfig, engine: Engine | None = None) -> Draws:
    """Return the draws of a run folder: with a target where it lies, and of the best answers alone.

    Raises
    ------
    ConfigError
        The budget is above what may be drawn, or its groups have no quotas within their bounds.
    """
    labels, budget = store.labels(), budget_of(store, config)
    target = PoolTarget.of_run(store, config, engine) if config.target is not None else None
    without = excluded(store, config)
    left_out = np.union1d(other_responses(store, config, engine), without.ids)
    if target is not None:
        left_out = np.union1d(left_out, target.copies)
    sizes = store.cluster_sizes
    sizes = sizes - np.bincount(clusters_of(store, labels, left_out), minlength=len(sizes))
    counted = config.unit != "rows" or config.group_by is not None or len(without.already) > 0
    if not counted and budget.rows > sizes.sum():
        raise too_few(config, budget.rows, int(sizes.sum()), "rows")
    first, order = None, np.empty(0, np.int64)
    if target is not None:
        order = target.order(budget.rows, left_out)
        first = target.cluster_weights(sizes, order[: budget.rows])
    rounds = Rounds(store, sizes, first)
    plain = Draws(
        *(store, config, rounds, labels, target, left_out, without, order),
        engine=engine or LocalEngine(),
    )
    if not counted:
        return plain
    from pyids.pipeline.budgeted import BudgetedDraws

    draws = BudgetedDraws.of(plain, budget, without.already)
    draws.check()
    return draws


def clusters_of(store: Store, labels: Labels, row_ids: Int64) -> NDArray[np.int32]:
    """Find the cluster of each row; the rows are cut by shard once, in any order.

    Raises
    ------
    DataError
        A row that is not in the pool: never read, unusable, or dropped as a duplicate.
    """
    clusters = np.full(len(row_ids), -1, dtype=np.int32)
    order = np.argsort(row_ids, kind="stable")
    ascending = row_ids[order]
    for shard, labels_ in zip(store.shards, labels, strict=True):
        first, last = np.searchsorted(ascending, [shard.row_ids.start, shard.row_ids.stop])
        if first == last:
            continue
        kept, wanted = store.row_ids(shard), ascending[first:last]
        if len(kept):
            at = np.minimum(np.searchsorted(kept, wanted), len(kept) - 1)
            found = kept[at] == wanted
            clusters[order[first:last][found]] = labels_[at[found]]
    if (clusters < 0).any():
        stray = row_ids[np.flatnonzero(clusters < 0)[0]]
        raise DataError(
            f"row {stray} is not in the pool of {store.path}: give the _pyids_id of rows that were "
            "asked for"
        )
    return clusters


def selected_rows(rounds: Rounds, find_clusters: Callable[[Int64], NDArray[np.int32]]) -> Selected:
    """Return everything that the rounds drew, with the reasons: cluster, weight, round, score."""
    drawn = [rounds.selected(n) for n in range(rounds.drawn)]
    row_ids = np.concatenate([np.empty(0, np.int64), *drawn])
    numbers = np.repeat(np.arange(len(drawn)), [len(ids) for ids in drawn])
    clusters = find_clusters(row_ids)
    weights = np.zeros(len(row_ids))
    for n in range(len(drawn)):
        weights[numbers == n] = rounds.weights(n)[clusters[numbers == n]]
    return Selected(
        row_ids=row_ids,
        clusters=clusters,
        scores=rounds.cluster_scores()[clusters],
        weights=weights,
        rounds=numbers + 1,
    )
