"""The target of a selection beside its pool: its vectors, and the rows that repeat it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from pyids import _core
from pyids._typing import Float64, Int64
from pyids.chat.digest import digest
from pyids.chat.formats import Turns, tools_of
from pyids.chat.near_copies import NearCopies
from pyids.config import RunConfig
from pyids.data.target import TargetRows, check_width, read_target
from pyids.device import device
from pyids.errors import DataError
from pyids.nearest import as_targets, round_robin, unit_blocks
from pyids.neighbors import inverse_lengths
from pyids.pipeline.stages import find_encoder
from pyids.scoring.cluster_weights import raise_to
from pyids.store.files import fingerprint, read_sealed, write_sealed
from pyids.store.folder import Store
from pyids.store.ledger import load_npy, read_entry, save_npy

if TYPE_CHECKING:
    from pyids.store.folder import Row

logger = logging.getLogger("pyids")

# Rows of the target whose mean cosine says how near a row is.
_NEAREST = 3
# The round-robin goes on to so many times the budget: quotas move between clusters from round to
# round, and its order has to tell rows of a cluster apart then, too.
_DEPTH = 4
# A row that the round-robin takes at twice the place is 2**4 times less likely inside its cluster.
_STEEPNESS = 4.0
# Of rows that it does not come to, in standard deviations of their cosines over the pool: one more
# makes a row e**5 times as likely.
_TEMPERATURE = 0.2
_BLOCK_ROWS = 4096
# Rows nearer than this to a target row have their words compared with it: a copy with some words
# changed lies above it, with any encoder of sentences.
_LOOK = 0.8


@dataclass(frozen=True)
class PoolTarget:
    """The target's rows, and what they are to the pool of a run folder.

    Attributes
    ----------
    store, config
        The folder and what names the target.
    rows
        The target.
    """

    store: Store
    config: RunConfig
    rows: TargetRows

    @classmethod
    def read(cls, store: Store, config: RunConfig) -> PoolTarget:
        """Read the target; see `pyids.data.target.read_target`."""
        return cls(store, config, read_target(config))

    @classmethod
    def of_run(cls, store: Store, config: RunConfig) -> PoolTarget:
        """Read the target once for all rounds: ``target/`` then holds all that is to be known.

        A run folder needs nothing outside it: rows, vectors, and ids of the rows that repeat them.
        """
        folder = store.path / "target"
        entry, vectors = folder / "index.json", folder / "vectors.npy"
        if not entry.exists():
            made = cls.read(store, config)
            folder.mkdir(exist_ok=True)
            save_npy(vectors, made.vectors, {"target": config.target})
            write_sealed(folder / "rows.json", _as_json(made.rows))
            write_sealed(entry, made.metadata())  # the last of the files
        found = cls(store, config, _from_json(read_sealed(folder / "rows.json")))
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

        Exact repeats are told by their digest. Where there are vectors, the words of the rows near
        a target row are compared with the target's (`pyids.chat.near_copies.NearCopies`); where
        there are none, those of all rows.
        """
        known = NearCopies(self.rows.conversations)
        found = [*self._exact()]
        found += [row.row_id for row in self._candidates() if row.messages in known]
        kept = [np.intersect1d(self.store.row_ids(s), found) for s in self.store.shards]
        copies = np.concatenate([np.empty(0, np.int64), *kept]).astype(np.int64)
        if len(copies):
            logger.info("left out %d rows that repeat the target, or nearly", len(copies))
        return copies

    def _exact(self) -> Iterator[int]:
        import pyarrow.parquet as pq

        digests = {digest(messages) for messages in self.rows.conversations}
        for shard in self.store.shards:
            path = self.store.artifact("rows", shard, ".parquet")
            column = pq.read_table(path, columns=["digest"])["digest"].to_pylist()
            yield from (shard.first_row_id + n for n, key in enumerate(column) if key in digests)

    def _candidates(self) -> Iterator[Row]:
        if not self._embedded:
            for shard in self.store.shards:
                yield from self.store.iter_rows(shard)
            return
        small = self.vectors.astype(np.float32)
        near = [np.empty(0, np.int64)]
        for start, units in unit_blocks(self.store.embeddings()):
            products = units.astype(np.float32) @ small.T
            near.append(start + np.flatnonzero((products >= _LOOK).any(axis=1)))
        ids = np.concatenate([np.empty(0, np.int64), *map(self.store.row_ids, self.store.shards)])
        yield from self.store.read_rows(ids[np.concatenate(near)])

    def cosines(self, vectors: NDArray[Any]) -> Float64:
        """How near rows are to the target: the mean cosine to the target rows nearest to each.

        Parameters
        ----------
        vectors : float16 or float32 array (n, D)

        Returns
        -------
        float64 array (n,)
        """
        threads = _core.resolve_threads(self.config.threads or 0)
        m = min(_NEAREST, len(self.rows))
        out = np.empty(len(vectors))
        for at in range(0, len(vectors), _BLOCK_ROWS):
            block = np.ascontiguousarray(vectors[at : at + _BLOCK_ROWS])
            factors = inverse_lengths([block], threads)
            squares = _core.squared_distances([block], factors, self.vectors, threads)
            out[at : at + len(block)] = 1 - np.sort(squares, axis=1)[:, :m].mean(axis=1) / 2
        return out

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
            ids = np.concatenate([self.store.row_ids(s) for s in self.store.shards])
            stays = ~np.isin(ids, left_out)
            vectors = self.store.embeddings().all(self.store.scratch)
            depth = min(_DEPTH * budget, int(np.count_nonzero(stays)))
            taken = round_robin(vectors, self.vectors, depth, tasks=self.rows.tasks, free=stays)
            save_npy(path, taken.rows, inputs)
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
        near = [self.cosines(vectors) for vectors in self.store.embeddings()]
        logs = np.concatenate(near)
        logs = (logs - logs.max()) / (_TEMPERATURE * (float(logs.std()) or 1.0))
        places = np.log(np.arange(1, len(order) + 2))
        logs -= _STEEPNESS * places[-1]
        logs[order] = -_STEEPNESS * places[:-1]
        ends = np.cumsum([len(values) for values in near])
        for path, values in zip(paths, np.split(logs, ends[:-1]), strict=True):
            save_npy(path, values, inputs)

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
        labels = np.concatenate(self.store.labels())
        counts = np.bincount(labels[first], minlength=len(left))
        weights = counts / np.maximum(left, 1)
        return raise_to(weights / weights.sum(), self.config.min_weight / len(left))

    def scoring_options(self, row_ids: Int64) -> dict[str, Any]:
        """Return what the scorers of a target need to know; see `ScoringOptions`."""
        vectors = np.stack([self.store.embedding(row_id) for row_id in row_ids.tolist()])
        return {
            "target": self.rows.conversations,
            "target_tasks": self.rows.tasks,
            "target_cosines": self.cosines(vectors),
        }

    def metadata(self) -> dict[str, Any]:
        """Return what the manifest says of the target, JSON values."""
        names: dict[str, int] = Counter(self.rows.tasks)
        return {"rows": len(self.rows), "tasks": names, "left_out": self.copies.tolist()}


def _as_json(rows: TargetRows) -> dict[str, Any]:
    turns = [{"turns": list(row), "tools": tools_of(row)} for row in rows.conversations]
    return {"conversations": turns, "tasks": rows.tasks, "places": rows.places}


def _from_json(content: dict[str, Any]) -> TargetRows:
    rows = [Turns(row["turns"], row["tools"]) for row in content["conversations"]]
    return TargetRows(list(rows), tuple(content["tasks"]), tuple(content["places"]))
