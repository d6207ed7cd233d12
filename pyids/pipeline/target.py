"""The target of a selection beside its pool: what a run folder knows of it, and draws by."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from pyids._typing import Float64, Int64
from pyids.config import RunConfig
from pyids.data.target import TargetRows, check_width, read_target
from pyids.device import device
from pyids.engine import Engine, LocalEngine
from pyids.errors import DataError
from pyids.models.hf import torch_threads
from pyids.nearest import as_targets, take_in_turn
from pyids.pipeline.stages import find_encoder
from pyids.pipeline.target_search import (
    TargetSearch,
    conversations_as_json,
    conversations_from_json,
    mean_cosines,
)
from pyids.resources import processors
from pyids.scoring.cluster_weights import raise_to
from pyids.scoring.row_weights import moments
from pyids.store.files import fingerprint, read_sealed, write_sealed
from pyids.store.folder import Store
from pyids.store.ledger import load_npy, read_entry, save_npy

logger = logging.getLogger("pyids")

# The round-robin goes on to so many times the budget: quotas move between clusters from round to
# round, and its order has to tell rows of a cluster apart then, too.
_DEPTH = 4
# A row that the round-robin takes at twice the place is 2**4 times less likely inside its cluster.
_STEEPNESS = 4.0
# Of rows that it does not come to, in standard deviations of their cosines over the pool: one more
# makes a row e**5 times as likely.
_TEMPERATURE = 0.2


@dataclass(frozen=True)
class PoolTarget:
    """The target's rows, and what they are to the pool of a run folder.

    Attributes
    ----------
    store, config
        The folder and what names the target.
    rows
        The target.
    engine
        Where the pool is compared with it.
    """

    store: Store
    config: RunConfig
    rows: TargetRows
    engine: Engine = field(default_factory=LocalEngine)

    @classmethod
    def read(cls, store: Store, config: RunConfig, engine: Engine | None = None) -> PoolTarget:
        """Read the target; see `pyids.data.target.read_target`."""
        return cls(store, config, read_target(config), engine or LocalEngine())

    @classmethod
    def of_run(cls, store: Store, config: RunConfig, engine: Engine | None = None) -> PoolTarget:
        """Read the target once for all rounds: ``target/`` then holds all that is to be known.

        A run folder needs nothing outside it: rows, vectors, and ids of the rows that repeat them.
        """
        folder = store.path / "target"
        entry, vectors = folder / "index.json", folder / "vectors.npy"
        if not entry.exists():
            made = cls.read(store, config, engine)
            folder.mkdir(exist_ok=True)
            save_npy(vectors, made.vectors, {"target": config.target})
            write_sealed(folder / "rows.json", _as_json(made.rows))
            write_sealed(entry, made.metadata())  # the last of the files
        rows = _from_json(read_sealed(folder / "rows.json"))
        found = cls(store, config, rows, engine or LocalEngine())
        # What is known already is not made again.
        found.__dict__["vectors"] = np.array(load_npy(vectors))
        found.__dict__["copies"] = np.array(read_sealed(entry)["left_out"], np.int64)
        return found

    @property
    def _embedded(self) -> bool:
        return all(self.store.artifact("embeddings", s).exists() for s in self.store.shards)

    @cached_property
    def vectors(self) -> Float64:
        """Vectors of the target's rows, float64 (Q, D) of unit length, made as the pool's were.

        Raises
        ------
        DataError
            They are not as long as the pool's, or one is zero.
        """
        config, vectors = self.config, self.rows.vectors
        if vectors is None:
            from pyids.chat.template import text_of

            encoder = find_encoder(
                config.encoder,
                config.encoder_max_length,
                config.long_text,
                device(config),
                config.dtype,
            )
            texts = [text_of(messages) for messages in self.rows.conversations]
            with torch_threads(config.threads):
                vectors = encoder.encode(texts).astype(np.float16).astype(np.float64)
        dim = self.store.embeddings()[0].shape[1]
        check_width(vectors, dim, self.rows.places[0].partition(" line ")[0])
        if len(zero := np.flatnonzero(~vectors.any(axis=1))):
            raise DataError(
                f"{self.rows.places[zero[0]]}: its vector is zero, it has no text: remove it"
            )
        return as_targets(vectors, dim)

    @cached_property
    def copies(self) -> Int64:
        """Ids of the pool's rows that repeat the target, or nearly: never to be selected.

        Where the pool has no vectors, the words of all rows are compared with the target's.
        """
        copies = self._search.copies(self.vectors if self._embedded else None)
        if len(copies):
            logger.info("left out %d rows that repeat the target, or nearly", len(copies))
        return copies

    @property
    def _search(self) -> TargetSearch:
        return TargetSearch(self.store, self.engine, self.rows.conversations, self.config.threads)

    def order(self, budget: int, left_out: Int64) -> Int64:
        """Return rows in the order in which the target's rows take them in turn.

        Made once: ``target/order.npy``.

        Parameters
        ----------
        budget : int
            Rows of the whole selection; the order goes on to `_DEPTH` times as many.
        left_out : int64 array
            Ids of rows that may not be selected.

        Returns
        -------
        int64 (n,)
            Positions in the pool.
        """
        path = self.store.path / "target" / "order.npy"
        inputs = {
            "target": fingerprint([str(self.vectors.tolist()), str(self.rows.tasks)]),
            "budget": budget,
            "left_out": fingerprint([str(left_out.tolist())]),
        }
        if read_entry(path.with_suffix(".json"), inputs) is None:
            taken = self._marked(left_out)
            depth = min(_DEPTH * budget, int(np.count_nonzero(~taken)))
            search, n = self._search, len(self.rows)
            picks = take_in_turn(
                lambda length, taken: search.nearest_rows(self.vectors, length, taken),
                *(n, depth, taken),
                tasks=self.rows.tasks,
            )
            save_npy(path, picks.rows, inputs)
        rows: Int64 = load_npy(path)
        return rows

    def save_log_weights(self, order: Int64) -> None:
        """Write the log weights of rows inside their clusters: ``target/SHARD.npy``, float64 (n,).

        The earlier a row comes in `order`, the more; then the nearer to the target, the more. Made
        once for all shards.
        """
        inputs = {"order": xxhash.xxh3_128_hexdigest(order.tobytes())}
        paths = [self.store.artifact("target", shard) for shard in self.store.shards]
        entries = [read_entry(path.with_suffix(".json"), inputs) for path in paths]
        if all(entry is not None for entry in entries):
            return
        cosines = self._search.cosines(self.vectors)
        _, deviation = moments(cosines)
        steps, last = _TEMPERATURE * (deviation or 1.0), _STEEPNESS * np.log(len(order) + 1)
        by_row = np.argsort(order, kind="stable")
        rows, highest, stop = order[by_row], cosines.max(), 0
        for shard, path in zip(self.store.shards, paths, strict=True):
            start, stop = stop, stop + len(self.store.row_ids(shard))
            logs = (cosines[start:stop] - highest) / steps - last
            first, end = np.searchsorted(rows, [start, stop])
            logs[rows[first:end] - start] = -_STEEPNESS * np.log(by_row[first:end] + 1)
            save_npy(path, logs, inputs)

    def _marked(self, ids: Int64) -> NDArray[np.bool_]:
        """Mark the rows with these ids, bool (N,)."""
        marked, start = np.zeros(self.store.kept, np.bool_), 0
        for shard in self.store.shards:
            kept = self.store.row_ids(shard)
            first, end = np.searchsorted(ids, [shard.row_ids.start, shard.row_ids.stop])
            marked[start : start + len(kept)] = np.isin(kept, ids[first:end])
            start += len(kept)
        return marked

    def cluster_weights(self, left: Int64, first: Int64) -> Float64:
        """Weights with which the first round draws from clusters what a round-robin would.

        Parameters
        ----------
        left : int64 (K,)
            Rows of each cluster that can be drawn.
        first : int64 array
            Positions of the rows that the round-robin selects.

        Returns
        -------
        float64 (K,)
            Summing to 1, none below ``min_weight / K``.
        """
        counts, rows, start = np.zeros(len(left), np.int64), np.sort(first), 0
        for labels in self.store.labels():
            begin, end = np.searchsorted(rows, [start, start + len(labels)])
            counts += np.bincount(labels[rows[begin:end] - start], minlength=len(left))
            start += len(labels)
        weights = counts / np.maximum(left, 1)
        return raise_to(weights / weights.sum(), self.config.min_weight / len(left))

    def scoring_options(self, row_ids: Int64) -> dict[str, Any]:
        """Return what the scorers of a target need to know; see `ScoringOptions`."""
        vectors = np.stack([self.store.embedding(row_id) for row_id in row_ids.tolist()])
        threads = self.config.threads or processors()
        return {
            "target": self.rows.conversations,
            "target_tasks": self.rows.tasks,
            "target_cosines": mean_cosines(vectors, self.vectors, threads),
        }

    def metadata(self) -> dict[str, Any]:
        """Return what the manifest says of the target, JSON values."""
        names: dict[str, int] = Counter(self.rows.tasks)
        return {"rows": len(self.rows), "tasks": names, "left_out": self.copies.tolist()}


def _as_json(rows: TargetRows) -> dict[str, Any]:
    turns = conversations_as_json(rows.conversations)
    return {"conversations": turns, "tasks": rows.tasks, "places": rows.places}


def _from_json(content: dict[str, Any]) -> TargetRows:
    rows = conversations_from_json(content["conversations"])
    return TargetRows(rows, tuple(content["tasks"]), tuple(content["places"]))
