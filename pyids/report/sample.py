"""Which rows a report looks at: enough to show, never more, however large the pool is."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyids._typing import Float64, Int64
from pyids.sampling import merge_samples, sample_by_cluster
from pyids.store.folder import Shard, Store
from pyids.store.ledger import load_npy
from pyids.store.rounds import Rounds

# Shards whose rows are looked at: about a million rows, evenly spaced over the pool.
MOST_SHARDS = 64
# Rows of the pool and of the selection that are read.
POOL_ROWS = 10_000
SELECTED_ROWS = 5_000


class Sample(NamedTuple):
    """Rows of the pool that a report looks at, some of every cluster.

    Attributes
    ----------
    row_ids : int64 (n,)
        Ascending.
    clusters : int32 (n,)
        The cluster of each; zeros where rows are not clustered.
    weights : float64 (n,)
        How many rows of the pool each stands for: they sum to the rows of the pool, and a weighted
        share of them estimates the pool's (Horvitz and Thompson).
    """

    row_ids: Int64
    clusters: NDArray[np.int32]
    weights: Float64


def has_clusters(store: Store) -> bool:
    """Whether all rows that stay have a cluster."""
    return (store.path / "centroids.json").exists()


def shards_looked_at(store: Store) -> list[Shard]:
    """Return at most `MOST_SHARDS` shards, evenly spaced over the pool."""
    shards = [shard for shard in store.shards if len(store.row_ids(shard))]
    step = max(1, -(-len(shards) // MOST_SHARDS))
    return shards[::step]


def draw_pool(store: Store, seed: int, n_rows: int = POOL_ROWS) -> Sample:
    """Draw rows of the pool, the same number of each cluster where it has so many."""
    clustered = has_clusters(store)
    sizes = store.cluster_sizes if clustered else np.array([store.kept], dtype=np.int64)
    quota = max(1, n_rows // max(1, int(np.count_nonzero(sizes))))
    quotas = np.full(len(sizes), quota, dtype=np.int64)

    def labels(shard: Shard) -> NDArray[np.int32]:
        if not clustered:
            return np.zeros(len(store.row_ids(shard)), dtype=np.int32)
        return load_npy(store.path_of_pool("labels", shard))

    parts = (
        sample_by_cluster(
            labels(shard),
            quotas,
            row_ids=store.row_ids(shard),
            seed=seed,
            allow_fewer=True,
            return_keys=True,
        )
        for shard in shards_looked_at(store)
    )
    drawn = merge_samples(parts, quotas, allow_fewer=True, return_keys=True)
    counts = np.bincount(drawn.labels, minlength=len(sizes))
    weights = sizes[drawn.labels] / counts[drawn.labels]
    return Sample(drawn.row_ids, drawn.labels, weights)


def draw_selected(store: Store, selected: Int64, seed: int, n_rows: int = SELECTED_ROWS) -> Int64:
    """Draw some of the selected rows, all alike; ids ascending."""
    looked = [
        selected[slice(*np.searchsorted(selected, [shard.row_ids.start, shard.row_ids.stop]))]
        for shard in shards_looked_at(store)
    ]
    ids = np.concatenate([np.empty(0, np.int64), *looked])
    labels = np.zeros(len(ids), dtype=np.int32)
    return sample_by_cluster(labels, [n_rows], row_ids=ids, seed=seed, allow_fewer=True)


def rounds_of(rounds: Rounds, row_ids: Int64) -> NDArray[np.int32]:
    """Return the round that drew each row, from 1; 0 for those that none did."""
    found = np.zeros(len(row_ids), dtype=np.int32)
    for n in range(rounds.drawn):
        found[np.isin(row_ids, rounds.selected(n), assume_unique=True)] = n + 1
    return found
