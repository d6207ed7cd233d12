"""Algorithm 1 of Yu et al. (arXiv 2409.11378): draw, train, score, re-weight.

`run` is the loop with the trainer that pyids brings. `Selection` is the same loop turned inside
out, for trainers of any kind: `ask` gives the rows selected so far, `tell` takes the scores.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from pyids._typing import Int64
from pyids.callbacks import Callback, Callbacks, LogRounds
from pyids.config import DEFAULT_MODEL, RunConfig
from pyids.data.destination import own_place, place_of
from pyids.data.export import export
from pyids.data.exported_rows import Selected
from pyids.data.hub import to_dataset
from pyids.data.sources import open_sources
from pyids.engine import Engine, LocalEngine, on_cluster
from pyids.errors import ConfigError, DamagedError
from pyids.models.hub import files_of, round_model
from pyids.pipeline.budget import budget_of
from pyids.pipeline.conversations import check_conversations
from pyids.pipeline.draw import clusters_of, selected_rows
from pyids.pipeline.grow import carried_over
from pyids.pipeline.identity import model_content, named, saved_config
from pyids.pipeline.inputs import config_of
from pyids.pipeline.preflight import check_model
from pyids.pipeline.prepare import metadata, prepare, reopen
from pyids.pipeline.replay import open_draws
from pyids.pipeline.stages import engine_of
from pyids.progress import reporter
from pyids.result import Result
from pyids.scoring.cluster_weights import Told, reweight
from pyids.scoring.told import check_told, columns_of
from pyids.store import restore
from pyids.store.bucket import working_in
from pyids.store.folder import Store
from pyids.store.objects import is_bucket
from pyids.store.place import is_ours
from pyids.store.remedies import remedy

if TYPE_CHECKING:
    import datasets

    from pyids.chat.formats import Message
    from pyids.models.checkpoints import Checkpoint
    from pyids.scoring.probes import Scores

logger = logging.getLogger("pyids")


def run(config: RunConfig, callbacks: Sequence[Callback] = ()) -> Path:
    """Select with the trainer that pyids brings; return the path of the selected rows.

    In every round: draw from the clusters by their weights, fine-tune the base model on everything
    drawn so far, score unseen rows of every cluster with it, re-weight the clusters. The last round
    ends with its training: the checkpoint that all selected rows make.
    """
    check_model(config)
    if not (config.output_path / "rounds").exists():
        check_conversations(config, open_sources(config.data, format=config.format))
    with Selection._prepared(config, callbacks) as selection:
        selection.run_rounds()
        return selection.finish()


class Selection:
    """The selection of one run folder, round by round.

    Parameters
    ----------
    store
        A run folder whose rows are read, embedded and clustered (`pyids.pipeline.prepare.prepare`).
    config
        The configuration that the folder was made with.
    callbacks
        What sees the rounds as they happen.
    engine
        Where rows are drawn and exported; by default in this process. It is closed with the
        selection.

    Examples
    --------
    >>> import pyids
    >>> fields = {"data": "pool.jsonl", "embeddings_file": "vectors.npy", "budget": 30}
    >>> selection = pyids.Selection.open("run", fields, rounds=3)
    >>> len(selection.ask())
    10
    >>> selection.tell({int(row): 1.0 for row in selection.probes()})
    >>> selection.round
    1
    >>> selection.close()
    """

    def __init__(
        self,
        store: Store,
        config: RunConfig,
        callbacks: Sequence[Callback] = (),
        engine: Engine | None = None,
    ) -> None:
        self.store = store
        self.config = config
        self.callbacks = Callbacks((LogRounds(), *callbacks))
        self.budget = budget_of(store, config).rows
        self.engine = engine or LocalEngine()
        self.draws = open_draws(store, config, self.engine)
        self.labels, self.rounds = self.draws.labels, self.draws.rounds
        self._place = ExitStack()  # what keeps its folder in a bucket
        self._named = True  # whether this user has named what the configuration names

    @classmethod
    def open(
        cls,
        path: str | Path,
        config: RunConfig | Mapping[str, Any] | str | Path | None = None,
        *,
        callbacks: Sequence[Callback] = (),
        **fields: Any,
    ) -> Self:
        """Start a selection in a run folder, or go on with the one that it holds.

        Parameters
        ----------
        path
            The run folder.
        config
            A configuration, a mapping of its fields, or the path of a YAML file.
        callbacks
            What sees the rounds as they happen.
        **fields
            Fields of `RunConfig`, which win over those of `config`: ``data`` and ``budget`` among
            them. ``data`` may be paths, a ``datasets.Dataset``, a pandas, polars or Arrow table or
            an iterable of dicts, and ``embeddings_file`` an array or a tensor. Neither `config` nor
            fields: go on with the configuration that the folder holds, which then needs neither the
            data nor the vectors that it was made from.

        Raises
        ------
        ConfigError
            The folder holds no selection, or another one.
        """
        if is_bucket(path):
            with ExitStack() as place:
                folder = place.enter_context(working_in(str(path)))
                selection = cls.open(folder, config, callbacks=callbacks, **fields)
                selection._place = place.pop_all()
                return selection
        if config is None and not fields:
            saved = saved_config(Path(path))
            ours = is_ours(Path(path), named(saved))
            if not ours:  # a cluster that the folder alone names is not joined
                saved = saved.model_copy(update={"engine": "local", "address": None})
            selection = cls(reopen(saved), saved, callbacks)
            selection._named = ours
            return selection
        made = config_of(config, {**fields, "output_dir": str(path)})
        return cls._prepared(made, callbacks)

    @classmethod
    def _prepared(cls, config: RunConfig, callbacks: Sequence[Callback]) -> Self:
        """Do the stages that are not done; a cluster that they run on is kept for draws."""
        if config.engine == "local":  # threads are enough for these
            return cls(prepare(config), config, callbacks)
        with ExitStack() as on_error:
            engine = on_error.enter_context(engine_of(config))
            selection = cls(prepare(config, engine=engine), config, callbacks, engine)
            on_error.pop_all()
            return selection

    def close(self) -> None:
        """Give the run folder back."""
        self.engine.close()
        self.store.close()
        self._place.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if self.store.superseded:
            raise ConfigError(
                f"{self.store.path}: was opened again in this process: use the newer Selection"
            )
        if self.store.closed:
            raise ConfigError(
                f"{self.store.path}: this Selection was closed, and others may work in its folder "
                "now: open it again"
            )

    @property
    def round(self) -> int:
        """How many rounds have been told; the number of the present round, from 0."""
        return self.rounds.told

    def run_rounds(self) -> None:
        """Do the rounds that are left with the trainer that pyids brings; see `run`."""
        self.make_again()
        config = self.config
        if on_cluster(self.engine) and config.serve_url is None and config.rounds > 1:
            self.engine.check(self.store.path, files_of(round_model(config)), device=config.device)
        while self.draw():
            checkpoint = self.train()
            if self.round == self.config.rounds - 1:
                self.callbacks.on_round_end(self, self.round)
                break  # no draw would follow from more scores
            self.tell(self.score(checkpoint))

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

    def draw(self) -> bool:
        """Draw this round's rows, once; False when all rounds have been told."""
        self._check_open()
        n, config = self.round, self.config
        if n == config.rounds:
            return False
        self._screen_again()
        restore.check_scores(self.rounds)
        if self.rounds.drawn == n:
            quotas = self.draws.quotas(n)
            if config.oversample > 1:
                selected = self._screen(n, quotas, config.oversample)
            else:
                selected = self.draws.rows(n, quotas)
            self.rounds.save_draw(n, self.draws.settled(quotas, selected), selected)
            self.callbacks.on_draw(self, n)
        return True

    def _screen(self, n: int, quotas: Int64, per_row: int) -> Int64:
        """Draw several candidates for each row, then of these, outliers of a cluster less often."""
        from pyids.scoring.screening import screen

        self._check_model()
        candidates = self.draws.candidates(n, quotas, per_row)
        clusters = self.clusters_of(candidates)
        screened = screen(
            self.conversations(candidates),
            clusters,
            self.config,
            scratch=self.store.scratch,
            engine=self.engine,
        )
        self.rounds.save_candidates(n, {"row_id": candidates, "cluster": clusters, **screened})
        return self.draws.screened(n, quotas, candidates, clusters, screened["outlier_score"])

    def probes(self) -> Int64:
        """Draw the unseen rows to score in this round, once: some of each cluster.

        Raises
        ------
        ConfigError
            This round's rows have not been asked for, or all rounds have been told.
        """
        self._check_open()
        n = self.rounds.asked(self.config.rounds)
        row_ids = self.rounds.probes(n)
        if row_ids is None:
            row_ids = self.draws.probes(n)
            self.rounds.save_probes(n, row_ids)
        return row_ids

    # -- train and score --

    def train(self) -> Checkpoint:
        """Fine-tune the base model on everything selected so far, once a round.

        Raises
        ------
        ConfigError
            This round's rows have not been asked for, or all rounds have been told.
        """
        self._check_open()
        n = self.rounds.asked(self.config.rounds)
        checkpoint = self._trained(n)
        self.callbacks.on_train(self, n, checkpoint)
        return checkpoint

    def _trained(self, n: int) -> Checkpoint:
        """Give the checkpoint of round `n`, trained if need be; where it was lost, to the same."""
        self._check_model()
        from pyids.models.checkpoints import read_record

        if self.rounds.has_checkpoint(n):
            return read_record(self.rounds.path(n, "checkpoint"))
        if known := restore.known_checkpoint(self.rounds, n):
            logger.warning("the checkpoint of round %d is damaged: training it again", n + 1)
            # The old entry stays until the end: it knows what must come of this.
            checkpoint = self._train(n, self.rounds.path(n, "checkpoint"))
            restore.restore_checkpoint(self.rounds, n, known)
            return checkpoint
        checkpoint = self._train(n, self.rounds.begin_checkpoint(n))
        self.rounds.save_checkpoint(n)
        return checkpoint

    def _train(self, n: int, output_dir: Path) -> Checkpoint:
        from pyids.models.finetune import finetune, training_options
        from pyids.models.own_trainer import train_outside

        self.engine.release()  # what trains may need the place
        model = round_model(self.config)
        rows = self.conversations(self.rounds.selected_before(n + 1))
        if self.config.has_own_trainer:
            self._check_named("trainer")

            def write(path: Path, form: str) -> Path:
                return export(self.store, self.selected(), path, form, own=True, engine=self.engine)

            return train_outside(
                self.config, model, rows, write, output_dir=output_dir, number=n + 1
            )
        return finetune(
            model,
            rows,
            output_dir=output_dir,
            progress=reporter("train"),
            **training_options(self.config),
        )

    def _check_model(self) -> None:
        """Check, once, that the base model is what earlier rounds used, and named by this user."""
        if self.config.has_own_trainer:
            self._check_named("trainer")
        if self.config.serve_url is not None:
            self._check_named("server")
        if self.config.round_model != DEFAULT_MODEL:
            self._check_named("model")
        if not self.rounds.model:
            self.rounds.model = model_content(self.config, self.store)
            restore.check_model(self.rounds, self.config.round_model)

    def _check_named(self, what: str) -> None:
        """Refuse to start or to ask what only a folder's configuration names."""
        if not self._named:
            raise ConfigError(
                f"{self.store.path}: its config.yaml names a {what}, and what a folder's "
                "config.yaml names is not used unless you have named it: repeat the command that "
                "began the run, with all its options"
            )

    def score(self, checkpoint: Checkpoint) -> Scores:
        """Score this round's probe rows under the base model and the checkpoint."""
        scores = self._score(checkpoint, self.probes())
        self.callbacks.on_score(self, self.round, scores)
        return scores

    def _score(self, checkpoint: Checkpoint, row_ids: Int64) -> Scores:
        from pyids.scoring.probes import score_probes

        if self.config.serve_url is not None:
            self._check_named("server")
        judged = (self.config.judge_url, self.config.reward_model)
        if judged != (None, None) or ":" in self.config.scorer:
            self._check_named("scorer")
        return score_probes(
            self.config,
            checkpoint.path,
            self.conversations(row_ids),
            self.clusters_of(row_ids),
            cache=self.store.path,
            target={} if self.draws.target is None else self.draws.target.scoring_options(row_ids),
            engine=self.engine,
        )

    def conversations(self, row_ids: Int64) -> list[list[Message]]:
        """Messages of the rows, by ascending row id."""
        return [row.messages for row in self.store.read_rows(row_ids)]

    def clusters_of(self, row_ids: Int64) -> NDArray[np.int32]:
        """Find the cluster of each row, int32; see `pyids.pipeline.draw.clusters_of`."""
        return clusters_of(self.store, self.labels, row_ids)

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
        self._check_open()
        # Scores told twice must not pass for those of a round that nobody has trained on.
        n = self.rounds.asked(self.config.rounds, scores)
        restore.check_scores(self.rounds)
        table, told = self._told(n, scores)
        # A `run` may have ended here, whose last round scores nothing: now the selection goes on.
        (self.store.path / "manifest.json").unlink(missing_ok=True)
        self.rounds.save_told(n, table, told.summary, told.weights)
        self.callbacks.on_round_end(self, n)

    def _told(
        self, n: int, scores: Scores | Mapping[int, float]
    ) -> tuple[dict[str, NDArray[Any]], Told]:
        """Give what is kept of the scores of round `n`, and what they come to."""
        row_ids, columns, clusters = check_told(
            self.rounds, n, scores, *columns_of(scores, self.rounds.probes(n)), self.clusters_of
        )
        terms: dict[str, Any] = {}
        if not isinstance(scores, Mapping):
            terms = {"temperature": scores.temperature, "pooled_noise": scores.pooled_noise}
        told = reweight(self.rounds.weights(n), columns, clusters, self.config, **terms)
        return {"row_id": row_ids, "cluster": clusters, **columns}, told

    # -- damage --

    def make_again(self) -> None:
        """Screen, train and score again what earlier rounds have lost, to the same bytes."""
        self._screen_again()
        for n in range(self.round):
            lost = restore.lost_checkpoint(self.rounds, n)
            if lost is not None and self.config.has_own_trainer:
                raise DamagedError(f"{lost}: missing or damaged: {remedy(lost)}")
            if lost is not None:
                self._trained(n)
            probes = self.rounds.probes(n)
            if probes is not None and not self.rounds.holds_scores(n):
                logger.warning("the scores of round %d are damaged: scoring again", n + 1)
                table, told = self._told(n, self._score(self._trained(n), probes))
                restore.restore_scores(self.rounds, n, table, told.summary)

    def _screen_again(self) -> None:
        for n in range(self.rounds.drawn if self.config.oversample > 1 else 0):
            if not self.rounds.holds_candidates(n):
                logger.warning("the candidates of round %d are damaged: screening again", n + 1)
                selected = self._screen(n, self.draws.quotas(n), self.config.oversample)
                restore.check_drawn(self.rounds, n, selected)

    # -- the result --

    def finish(self) -> Path:
        """Export the selection, then write the manifest.

        Raises
        ------
        ConfigError
            No round has drawn rows.
        """
        self._check_open()
        if not self.rounds.drawn:
            raise ConfigError(
                f"{self.store.path}: no round has drawn rows, so there is no selection to finish: "
                "ask first"
            )
        path = self.export()
        self.rounds.settle()
        facts = {**self.draws.metadata(), **carried_over(self.store)}
        described = {**metadata(self.store, self.config), **facts}
        self.store.write_manifest(described, self.engine)
        return path

    def result(self, path: str | Path) -> Result:
        """Return everything selected so far, which was exported to `path`."""
        rows = self.selected().sorted()
        weights = np.array([self.rounds.weights(n) for n in range(self.rounds.drawn)])
        return Result(
            Path(path), self.store.path, rows.row_ids, rows.clusters, rows.rounds, weights
        )

    def export(self, path: str | Path | None = None, *, format: str = "jsonl") -> Path:
        """Write everything selected so far in the form that a trainer reads (`pyids.data.export`).

        The file or folder is ``selected.jsonl`` or ``selected-FORMAT`` of the run folder, unless
        `path` says otherwise. Nothing else of the run folder is replaced, and nothing that the
        run was made of.
        """
        ours = own_place(self.store.path, format)
        own = path is None or os.path.abspath(place_of(path, format)) == os.path.abspath(ours)
        place = ours if path is None or own else path
        return export(self.store, self.selected(), place, format, own=own, engine=self.engine)

    def export_probes(self) -> Path:
        """Write the rows to score in this round, as ``probes.jsonl`` of the run folder."""
        row_ids = self.probes()
        rows = Selected(row_ids=row_ids, clusters=self.clusters_of(row_ids))
        place = self.store.path / "probes.jsonl"
        return export(self.store, rows, place, own=True, engine=self.engine)

    def selected(self) -> Selected:
        """Return everything selected so far, with the reasons: cluster, weight, round, score."""
        return selected_rows(self.rounds, self.clusters_of)
