"""The target of a selection beside its pool: its vectors, and the rows that repeat it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from pyids._typing import Float64, Int64
from pyids.chat.digest import digest
from pyids.chat.near_copies import NearCopies
from pyids.config import RunConfig
from pyids.data.target import TargetRows, check_width, read_target
from pyids.device import device
from pyids.errors import DataError
from pyids.nearest import as_targets, unit_blocks
from pyids.pipeline.stages import find_encoder
from pyids.store.folder import Store

if TYPE_CHECKING:
    from pyids.store.folder import Row

logger = logging.getLogger("pyids")

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
            raise DataError(f"{self.rows.places[zero[0]]}: its vector is zero: it has no text")
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
        copies = np.unique(np.array(found, np.int64))
        stay = [np.isin(self.store.row_ids(s), copies).sum() for s in self.store.shards]
        if n := int(sum(stay)):
            logger.info("left out %d rows that repeat the target, or nearly", n)
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

    def facts(self) -> dict[str, Any]:
        """Return what the manifest says of the target, JSON values."""
        names: dict[str, int] = Counter(self.rows.tasks)
        return {"rows": len(self.rows), "tasks": names, "left_out": self.copies.tolist()}
