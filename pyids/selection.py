"""The iterative refinement: draw, train, score, re-weight (Yu et al., Algorithm 1).

`Selection` is the loop turned inside out, for trainers of any kind: `ask` gives the rows selected
so far, `tell` takes the scores. `run` is the same loop with the trainer that pyids brings.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import xxhash
from numpy.typing import NDArray

from pyids._typing import Float64, Int64
from pyids.config import SCREENING_OVERSAMPLE, RunConfig, make_config
from pyids.data.export import Selected, export
from pyids.data.hub import to_dataset
from pyids.device import device
from pyids.errors import ConfigError, DataError
from pyids.models.finetune import training_options
from pyids.models.hub import resolve_model
from pyids.models.raters import rater
from pyids.pipeline.best_response import other_responses
from pyids.pipeline.identity import saved_config
from pyids.pipeline.preflight import check_model
from pyids.pipeline.prepare import facts, prepare, reopen
from pyids.pipeline.stages import row_weights
from pyids.pipeline.target import PoolTarget
from pyids.sampling import allocate, merge_samples, sample_by_cluster
from pyids.scoring.cluster_weights import update_weights
from pyids.scoring.overlap import mismatch, words_of
from pyids.scoring.statistics import between_cluster_z, cluster_moments, not_significant, paired_t
from pyids.store.files import read_json, write_json
from pyids.store.folder import Shard, Store
from pyids.store.rounds import Rounds

if TYPE_CHECKING:
    import datasets

    from pyids.chat.formats import Message
    from pyids.models.finetune import Checkpoint
    from pyids.scoring.probes import Scores


logger = logging.getLogger("pyids")


# Where answers look mismatched beyond this share, candidates are looked at; chosen, as is their
# number, on development rows (docs/log.md).
_MISMATCH = 0.03


# What that share is estimated from: at most so many rows of so many clusters.
_MISMATCH_ROWS, _MISMATCH_CLUSTERS = 64, 256


def run(config: RunConfig) -> Path:
    """Select with the trainer that pyids brings; return the path of the selected rows.

    In every round: draw from the clusters by their weights, fine-tune the base model on everything
    drawn so far, score unseen rows of every cluster with it, re-weight the clusters. The last round
    ends with its training: the checkpoint that all selected rows make.
    """
    check_model(config)
    with Selection.from_config(config) as selection:
        while selection.draw(selection.candidates()):
            checkpoint = selection.train()
            if selection.round == config.rounds - 1:
                break  # no draw would follow from more scores
            selection.tell(selection.score(checkpoint))
        return selection.finish()


class Selection:
    """The selection of one run folder, round by round.

    Parameters
    ----------
    store
        A run folder whose rows are read, embedded and clustered (`pyids.pipeline.prepare.prepare`).
    config
        The configuration that the folder was made with.
    """

    def __init__(self, store: Store, config: RunConfig) -> None:
        self.store = store
        self.config = config
        self.budget = config.budget_rows(store.kept)
        self.labels = store.labels()
        self.target = PoolTarget.of_run(store, config) if config.target is not None else None
        self.left_out = other_responses(store, config)
        if self.target is not None:
            self.left_out = np.union1d(self.left_out, self.target.copies)
        self.rounds = Rounds(store, *self._aim())

    def _aim(self) -> tuple[Int64, Float64 | None]:
        """Return what clusters hold that may be selected; with a target, where to begin."""
        sizes = self.store.cluster_sizes
        sizes = sizes - np.bincount(self.clusters_of(self.left_out), minlength=len(sizes))
        if self.budget > sizes.sum():
            raise ConfigError(
                f"budget {self.budget} is above the {sizes.sum()} rows that neither repeat the "
                "target nor have a likelier answer: lower --budget"
            )
        if self.target is None:
            return sizes, None
        return sizes, self.target.cluster_weights(sizes, self.budget, self.left_out)

    @classmethod
    def open(cls, path: str | Path, **options: Any) -> Self:
        """Start a selection in a run folder, or go on with the one that it holds.

        Parameters
        ----------
        path
            The run folder.
        **options
            Fields of `RunConfig`, `data` and `budget` among them; none to go on with the
            configuration that the folder holds, which then needs neither the data nor the vectors
            that it was made from.

        Raises
        ------
        ConfigError
            The folder holds no selection, or another one.
        """
        if not options:
            config = saved_config(Path(path))
            return cls(reopen(config), config)
        return cls.from_config(make_config(**options | {"output_dir": str(path)}))

    @classmethod
    def from_config(cls, config: RunConfig) -> Self:
        """Read, embed and cluster what `config` names, as far as not done, and open its folder."""
        return cls(prepare(config), config)

    def close(self) -> None:
        """Give the run folder back."""
        self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def round(self) -> int:
        """How many rounds have been told; the number of the present round, from 0."""
        return self.rounds.told

    def _asked_round(self) -> int:
        """Return the present round if its rows are drawn; else say what is to be done first."""
        n, rounds, folder = self.round, self.config.rounds, self.store.path
        if n == rounds:
            raise ConfigError(
                f"{folder}: all {rounds} rounds have been told: `pyids export {folder}`, or "
                "Selection.finish, writes the selection"
            )
        if self.rounds.drawn == n:
            raise ConfigError(
                f"{folder}: round {n + 1} of {rounds} has not been asked for: train on the rows of "
                f"`pyids ask {folder}`, or Selection.ask, and tell their scores"
            )
        return n

    # -- draw --

    def ask(self) -> datasets.Dataset | None:
        """Draw this round's rows, once, and give everything selected so far.

        Returns
        -------
        datasets.Dataset or None
            The original columns, `messages` and `_pyids_id`; None when all rounds have been told.
        """
        if not self.draw():
            return None
        return to_dataset(self.store.read_rows(self.rounds.selected()))

    def draw(self, candidates: int | None = None) -> bool:
        """Draw this round's rows, once; False when all rounds have been told.

        Parameters
        ----------
        candidates
            Rows looked at for each row drawn; by default what `config` says, or 1: no look, which
            takes no model.
        """
        n = self.round
        if n == self.config.rounds:
            return False
        if self.rounds.drawn == n:
            quotas = self.quotas(self.rounds.weights(n), self.rounds.left(n))
            if (candidates := candidates or self.config.oversample or 1) > 1:
                selected = self._screen(quotas, candidates)
            else:
                selected = self._sample(quotas, self.config.seed, self._log_weights)
            self.rounds.save_draw(n, quotas, selected)
            logger.info(
                "round %d: drew %d rows from %d of %d clusters",
                *(n + 1, len(selected), np.count_nonzero(quotas), len(quotas)),
            )
        return True

    def candidates(self) -> int:
        """Return how many rows to look at for each row drawn: what `config` says, or the pool asks.

        The share of mismatched answers is estimated once (`pyids.scoring.overlap.mismatch`) and
        kept in ``mismatch.json``.
        """
        if self.config.oversample is not None:
            return self.config.oversample
        path = self.store.path / "mismatch.json"
        if not path.exists():
            seed, sizes = self._seed(b"mismatch"), self.rounds.sizes
            clusters = np.random.default_rng(seed).permutation(len(sizes))[:_MISMATCH_CLUSTERS]
            quotas = np.zeros_like(sizes)
            quotas[clusters] = np.minimum(sizes[clusters], _MISMATCH_ROWS)
            row_ids = self._sample(quotas, seed, lambda shard: None)
            words = [words_of(messages) for messages in self.conversations(row_ids)]
            share = mismatch(words, self.clusters_of(row_ids))
            write_json(path, {"rows": len(row_ids), "mismatched": share})
            logger.info("%.1f%% of %d answers look mismatched", 100 * share, len(row_ids))
        return SCREENING_OVERSAMPLE if read_json(path)["mismatched"] > _MISMATCH else 1

    def _screen(self, quotas: Int64, per_row: int) -> Int64:
        """Draw several candidates for each row, then of these by how odd they look."""
        from pyids.models.load import load_model
        from pyids.scoring import screening
        from pyids.scoring.screening import OUTLIER_PENALTY, measure

        n, config = self.round, self.config
        candidates = self._sample(
            np.minimum(quotas * per_row, self.rounds.left(n)),
            config.seed,
            self._log_weights,
        )
        where = device(config)
        model, tokenizer = load_model(resolve_model(config.round_model), where, config.dtype)
        columns = measure(
            model,
            tokenizer,
            self.conversations(candidates),
            max_length=config.max_length,
            device=where,
        )
        clusters = self.clusters_of(candidates)
        outlier_score = screening.outlier_score(columns, clusters)
        table: dict[str, NDArray[Any]] = {"row_id": candidates, "cluster": clusters}
        table |= {**columns, "outlier_score": outlier_score}
        self.rounds.save_candidates(n, table)
        return sample_by_cluster(
            clusters,
            quotas,
            # The quality decides again: where a cluster is small, all of it are candidates.
            log_weights=self._log_weights_of(candidates) - OUTLIER_PENALTY * outlier_score,
            row_ids=candidates,
            seed=self._seed(b"candidates"),
            allow_fewer=True,
            n_threads=config.threads,
        )

    def _seed(self, purpose: bytes) -> int:
        """Return a seed for one purpose in this round."""
        key = b"%b of round %d" % (purpose, self.round)
        return xxhash.xxh3_64_intdigest(key, self.config.seed) >> 1

    def quotas(self, weights: Float64, left: Int64) -> Int64:
        """Share this round's part of the budget among the clusters, summing to it exactly."""
        n, rounds = self.round, self.config.rounds
        budget = self.budget * (n + 1) // rounds - self.budget * n // rounds
        shares = weights * left if self.config.allocation == "proportional" else weights
        return allocate(budget, shares, left, seed=self._seed(b"quotas"))

    def probes(self) -> Int64:
        """Draw the unseen rows to score in this round, once: some of each cluster.

        Raises
        ------
        ConfigError
            This round's rows have not been asked for, or all rounds have been told.
        """
        n = self._asked_round()
        row_ids = self.rounds.probes(n)
        if row_ids is None:
            quotas = np.minimum(self.config.probes_per_cluster, self.rounds.left(n + 1))
            row_ids = self._sample(quotas, self._seed(b"probes"), lambda shard: None)
            self.rounds.save_probes(n, row_ids)
        return row_ids

    def _log_weights(self, shard: Shard) -> Float64 | None:
        weights = row_weights(self.store, self.config, shard)
        if self.target is None:
            return weights
        near = self.target.log_weights(shard)
        return near if weights is None else near + weights

    def _log_weights_of(self, row_ids: Int64) -> Float64:
        """Log weights of rows inside their clusters; zeros where all are equal."""
        weights = np.zeros(len(row_ids))
        for shard in self.store.shards:
            if (logs := self._log_weights(shard)) is None:
                break
            kept = self.store.row_ids(shard)
            _, at, where = np.intersect1d(row_ids, kept, assume_unique=True, return_indices=True)
            weights[at] = logs[where]
        return weights

    def _sample(
        self, quotas: Int64, seed: int, weights: Callable[[Shard], Float64 | None]
    ) -> Int64:
        """Draw from the clusters, shard by shard, what has not been selected."""
        selected = np.union1d(self.rounds.selected(), self.left_out)
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

    # -- train and score --

    def train(self) -> Checkpoint:
        """Fine-tune the base model on everything selected so far, once a round.

        Raises
        ------
        ConfigError
            This round's rows have not been asked for, or all rounds have been told.
        """
        from pyids.models.finetune import finetune, read_record

        folder = self.rounds.path(self._asked_round(), "checkpoint")
        if folder.exists():
            return read_record(folder)
        checkpoint = finetune(
            resolve_model(self.config.round_model),
            self.conversations(self.rounds.selected()),
            output_dir=folder,
            **training_options(self.config),
        )
        logger.info(
            "round %d: trained on %d rows in %.0f s, loss %.3f",
            *(self.round + 1, checkpoint.rows, checkpoint.seconds, checkpoint.loss),
        )
        return checkpoint

    def score(self, checkpoint: Checkpoint) -> Scores:
        """Score this round's probe rows under the base model and the checkpoint."""
        from pyids.scoring import scorers
        from pyids.scoring.probes import Models, ScoringOptions

        row_ids = self.probes()
        models = Models(
            resolve_model(self.config.round_model),
            checkpoint.path,
            device=device(self.config),
            dtype=self.config.dtype,
        )
        return scorers.score(
            self.config.scorer,
            models,
            self.conversations(row_ids),
            self.clusters_of(row_ids),
            ScoringOptions(
                max_length=self.config.max_length,
                rater=rater(self.store, self.config),
                seed=self.config.seed,
                **(self.target.scoring_options(row_ids) if self.target is not None else {}),
            ),
        )

    def conversations(self, row_ids: Int64) -> list[list[Message]]:
        """Messages of the rows, by ascending row id."""
        return [row.messages for row in self.store.read_rows(row_ids)]

    # -- re-weight --

    def tell(self, scores: Scores | Mapping[int, float]) -> None:
        """Take this round's scores and re-weight the clusters.

        Parameters
        ----------
        scores
            What `score` returned, or a mapping from row id to score (higher: more of this). The
            scores of a cluster are averaged; clusters without a score keep their weight.

        Raises
        ------
        ConfigError
            This round's rows have not been asked for, or all rounds have been told.
        DataError
            A score is not finite, or its row is not in the pool.
        """
        # Scores told twice must not pass for those of a round that nobody has trained on.
        n = self._asked_round()
        row_ids, columns = self._columns(scores)
        clusters = self.clusters_of(row_ids)
        weights = self.rounds.weights(n)
        means, counts, variances = cluster_moments(columns["score"], clusters, len(weights))
        update = update_weights(
            weights,
            means,
            counts,
            variances=variances,
            rule=self.config.weight_update,
            temperature=self._temperature(scores),
            min_weight=self.config.min_weight,
        )
        learnt, differs = paired_t(columns), between_cluster_z(columns, clusters)
        is_noise = not_significant(learnt, differs)
        if is_noise:
            logger.warning(
                "round %d: the checkpoint's loss on the probe rows is %.1f standard errors below "
                "the base model's, and clusters differ by %.1f: the scores are noise, so the "
                "weights stay",
                *(n + 1, learnt, np.nan if differs is None else differs),
            )
        summary = {
            "scored_rows": len(row_ids),
            "scored_clusters": int(np.count_nonzero(counts)),
            "improvement_in_standard_errors": learnt,
            "distinction_in_standard_errors": differs,
            "weights_changed": not is_noise,
            "shrinkage": update.shrinkage.tolist(),
            "cluster_scores": update.shrunk_scores.tolist(),
        }
        table: dict[str, NDArray[Any]] = {"row_id": row_ids, "cluster": clusters, **columns}
        self.rounds.save_told(n, table, summary, weights if is_noise else update.weights)
        logger.info(
            "round %d: scored %d rows of %d clusters",
            *(n + 1, summary["scored_rows"], summary["scored_clusters"]),
        )

    def _temperature(self, scores: Scores | Mapping[int, float]) -> float | None:
        if self.config.temperature is not None or isinstance(scores, Mapping):
            return self.config.temperature
        return scores.temperature if self.config.weight_update in ("exponential", "ucb") else None

    def _columns(self, scores: Scores | Mapping[int, float]) -> tuple[Int64, dict[str, Float64]]:
        """Return the ids of the scored rows and what is known of each, `score` first."""
        if not isinstance(scores, Mapping):
            usable = np.isfinite(scores.values)
            columns = {"score": scores.values, **scores.columns}
            return self.probes()[usable], {name: x[usable] for name, x in columns.items()}
        row_ids = np.fromiter(scores.keys(), dtype=np.int64, count=len(scores))
        values = np.fromiter(scores.values(), dtype=np.float64, count=len(scores))
        if not np.isfinite(values).all():
            first = np.flatnonzero(~np.isfinite(values))[0]
            raise DataError(
                f"the score of row {row_ids[first]} is {values[first]}: scores are finite numbers, "
                "so leave out rows that have none"
            )
        return row_ids, {"score": values}

    def clusters_of(self, row_ids: Int64) -> NDArray[np.int32]:
        """Find the cluster of each row.

        Raises
        ------
        DataError
            A row that is not in the pool: never read, unusable, or dropped as a repeat.
        """
        clusters = np.full(len(row_ids), -1, dtype=np.int32)
        for shard, labels in zip(self.store.shards, self.labels, strict=True):
            kept = self.store.row_ids(shard)
            if len(kept):
                at = np.minimum(np.searchsorted(kept, row_ids), len(kept) - 1)
                found = kept[at] == row_ids
                clusters[found] = labels[at[found]]
        if (clusters < 0).any():
            stray = row_ids[np.flatnonzero(clusters < 0)[0]]
            raise DataError(
                f"row {stray} is not in the pool of {self.store.path}: give the _pyids_id of rows "
                "that were asked for"
            )
        return clusters

    # -- the result --

    def finish(self) -> Path:
        """Export the selection, then write the manifest."""
        path = self.export()
        target = {"target": self.target.facts()} if self.target is not None else {}
        self.store.write_manifest({**facts(self.store, self.config), **target})
        return path

    def export(self, path: str | Path | None = None, *, format: str = "jsonl") -> Path:
        """Write everything selected so far in the form that a trainer reads (`pyids.data.export`).

        The file or folder is ``selected.jsonl`` or ``selected-FORMAT`` of the run folder, unless
        `path` says otherwise.
        """
        name = "selected.jsonl" if format == "jsonl" else f"selected-{format}"
        return export(self.store, self.selected(), path or self.store.path / name, format=format)

    def export_probes(self) -> Path:
        """Write the rows to score in this round, as ``probes.jsonl`` of the run folder."""
        row_ids = self.probes()
        rows = Selected(row_ids=row_ids, clusters=self.clusters_of(row_ids))
        return export(self.store, rows, self.store.path / "probes.jsonl")

    def selected(self) -> Selected:
        """Return everything selected so far, with the reasons: cluster, weight, round, score."""
        rounds = range(self.rounds.drawn)
        drawn = [self.rounds.selected(n) for n in rounds]
        clusters = [self.clusters_of(row_ids) for row_ids in drawn]
        weights = [self.rounds.weights(n)[clusters[n]] for n in rounds]
        numbers = [np.full(len(drawn[n]), n + 1) for n in rounds]
        return Selected(
            row_ids=np.concatenate([np.empty(0, np.int64), *drawn]),
            clusters=(everyone := np.concatenate([np.empty(0, np.int32), *clusters])),
            scores=self.rounds.cluster_scores()[everyone],
            weights=np.concatenate([np.empty(0), *weights]),
            rounds=np.concatenate([np.empty(0, np.int64), *numbers]),
        )
