"""What the rows of a budget are counted by: a group's part of a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from pyids._typing import Int64
from pyids.config import RunConfig
from pyids.errors import ConfigError
from pyids.pipeline.budget import names_of
from pyids.pipeline.counts import groups_of, tokens_of
from pyids.store.folder import Store


class CellKind(NamedTuple):
    """What tells rows apart: so many clusters, the names of groups, tokens or rows."""

    n_clusters: int
    names: tuple[str, ...]
    by_group: bool
    by_tokens: bool


class Cells(Sequence[NDArray[np.int32]]):
    """The cell of each row that stays, int32 (n,) a shard, computed when it is asked for.

    Parameters
    ----------
    store
        A run folder, its rows clustered, counted and grouped as far as `kind` asks.
    labels
        int32, the clusters of each shard's rows.
    kind
        What they are told apart by beside that.
    """

    def __init__(self, store: Store, labels: Sequence[NDArray[np.int32]], kind: CellKind) -> None:
        self._store, self._labels = store, labels
        self.kind = kind
        self.n_clusters, self.names, self.by_group, self.by_tokens = kind

    @classmethod
    def of(
        cls, store: Store, config: RunConfig, labels: Sequence[NDArray[np.int32]], n_clusters: int
    ) -> Self:
        """Make those that a configuration asks for.

        Raises
        ------
        ConfigError
            There are too many.
        """
        names = names_of(store, config)
        if len(names) * n_clusters >= 2**31:
            raise ConfigError(
                f"{len(names)} groups of {n_clusters} clusters are too many: group by a "
                "column with fewer values, or lower --clusters"
            )
        kind = CellKind(n_clusters, names, config.group_by is not None, config.unit != "rows")
        return cls(store, labels, kind)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: Any) -> Any:
        labels = self._labels[index]
        if not self.by_group:
            return labels
        groups = groups_of(self._store, self._store.shards[index], self.names)
        return groups * np.int32(self.n_clusters) + labels

    @property
    def n_cells(self) -> int:
        """How many cells there are."""
        return len(self.names) * self.n_clusters

    @property
    def group_of(self) -> Int64:
        """The group of each cell, int64 (C,)."""
        return np.repeat(np.arange(len(self.names), dtype=np.int64), self.n_clusters)

    def units(self, index: int) -> Int64:
        """Units of the budget of each row of a shard, int64 (n,): its tokens, or 1."""
        if self.by_tokens:
            return tokens_of(self._store, self._store.shards[index])
        return np.ones(len(self._labels[index]), np.int64)

    def of_rows(self, row_ids: Int64) -> tuple[NDArray[np.int32], Int64]:
        """Cells and units of rows, ids ascending; all of them stay in the pool."""
        cells, units = np.empty(len(row_ids), np.int32), np.empty(len(row_ids), np.int64)
        for index, shard in enumerate(self._store.shards):
            first, last = np.searchsorted(row_ids, [shard.row_ids.start, shard.row_ids.stop])
            if first < last:
                at = np.searchsorted(self._store.row_ids(shard), row_ids[first:last])
                cells[first:last], units[first:last] = self[index][at], self.units(index)[at]
        return cells, units

    def total(self, row_ids: Int64 | None = None) -> tuple[Int64, Int64]:
        """Rows and units of each cell, int64 (C,): of all rows that stay, or of these alone."""
        rows, units = np.zeros(self.n_cells, np.int64), np.zeros(self.n_cells, np.int64)
        if row_ids is not None:
            cells, counts = self.of_rows(row_ids)
            np.add.at(rows, cells, 1)
            np.add.at(units, cells, counts)
            return rows, units
        for index in range(len(self)):
            cells = self[index]
            rows += np.bincount(cells, minlength=self.n_cells)
            np.add.at(units, cells, self.units(index))
        return rows, units
