"""Draws over the shards of a run folder, and the clusters of its rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from pyids._typing import Float64, Int64
from pyids.config import RunConfig
from pyids.data.export import Selected
from pyids.errors import DataError
from pyids.pipeline.stages import row_weights
from pyids.sampling import ShardedSample, sample_by_cluster
from pyids.store.folder import Store
from pyids.store.rounds import Rounds

Labels = Sequence[NDArray[np.int32]]


def draw_rows(
    store: Store,
    labels: Labels,
    quotas: Int64,
    *,
    exclude: Int64,
    seed: int,
    weighted_by: RunConfig | None = None,
    threads: int | None = None,
) -> Int64:
    """Draw rows from the clusters, shard by shard; ids ascending.

    Parameters
    ----------
    store
        A run folder with its rows clustered.
    labels
        int32, the clusters of each shard's rows.
    quotas
        int64 (K,): rows of each cluster to draw, fewer where it has not so many.
    exclude
        Ids of rows that must not be drawn, ascending.
    seed
        With a row's id it decides its key: the same rows for any shards and threads.
    weighted_by
        The configuration whose quality weights the rows of a cluster; None: all count the same.
    """
    drawn = ShardedSample(quotas)
    for shard, labels_ in zip(store.shards, labels, strict=True):
        part = sample_by_cluster(
            labels_,
            quotas,
            log_weights=None if weighted_by is None else row_weights(store, weighted_by, shard),
            row_ids=store.row_ids(shard),
            exclude=exclude,
            seed=seed,
            allow_fewer=True,
            return_keys=True,
            n_threads=threads,
            floors=drawn.floors,
        )
        drawn.add(part)
    return drawn.result().row_ids


def log_weights_of(store: Store, config: RunConfig, row_ids: Int64) -> Float64:
    """Return the log weights of rows inside their clusters; zeros where all count the same.

    Parameters
    ----------
    row_ids
        Ascending.
    """
    weights = np.zeros(len(row_ids))
    for shard in store.shards:
        if (logs := row_weights(store, config, shard)) is None:
            break
        first, last = np.searchsorted(row_ids, [shard.row_ids.start, shard.row_ids.stop])
        wanted = row_ids[first:last]
        if len(wanted):
            weights[first:last] = logs[np.searchsorted(store.row_ids(shard), wanted)]
    return weights


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
