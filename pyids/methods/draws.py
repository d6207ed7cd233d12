"""Draws that several methods share; all are keyed by (seed, row id)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyids._typing import Float64, Int64
from pyids.methods.pool import Pool
from pyids.quotas import level
from pyids.sampling import ShardedSample, allocate, sample_by_cluster
from pyids.scoring.row_weights import BLOCK_ROWS


def positions_of(pool: Pool, row_ids: Int64) -> Int64:
    """Return where in the pool these rows stand."""
    return np.searchsorted(pool.row_ids, row_ids).astype(np.int64)


def draw(
    pool: Pool,
    groups: NDArray[np.int32],
    quotas: ArrayLike,
    seed: int,
    quality: Float64 | None = None,
    weigh: Callable[[Float64], Float64] = lambda quality: quality,
) -> Int64:
    """Draw ``quotas[g]`` rows of each group without replacement; positions, ascending.

    Rows are drawn with log weights ``weigh(quality)``, all alike unless there is a quality. They
    are gone through block by block: labels, ids and quality may be mapped.
    """
    drawn = ShardedSample(quotas)
    for start in range(0, len(pool), BLOCK_ROWS):
        some = slice(start, start + BLOCK_ROWS)
        drawn.add(
            sample_by_cluster(
                groups[some],
                quotas,
                log_weights=None if quality is None else weigh(quality[some]),
                row_ids=pool.row_ids[some],
                seed=seed,
                allow_fewer=True,
                return_keys=True,
                n_threads=pool.threads,
                floors=drawn.floors,
            )
        )
    return positions_of(pool, drawn.result().row_ids)


def draw_one(pool: Pool, seed: int) -> int:
    """Draw the row that a greedy method begins with; a position."""
    return int(draw(pool, np.zeros(len(pool), np.int32), [1], seed)[0])


def draw_evenly(
    pool: Pool, groups: NDArray[np.int32], budget: int, seed: int, charge: Int64 | None = None
) -> Int64:
    """Draw as equally many rows of each group as their sizes allow, uniformly inside.

    Which groups give one more, where the budget does not divide, follows the seed. What is trained
    on already, int64 (G,) rows of each group, counts as drawn.
    """
    sizes = np.bincount(groups, minlength=0 if charge is None else len(charge))
    charge = np.zeros(len(sizes), np.int64) if charge is None else charge
    quotas = charged_quotas(budget, np.ones(len(sizes)), charge, sizes, seed=seed)
    return draw(pool, groups, quotas, seed)


def size_quotas(pool: Pool, budget: int) -> Int64:
    """Share the budget among the clusters in proportion to their sizes, exactly.

    Rows left over go to the largest remainders, as in the paper; of equal ones to the lowest
    cluster. What is trained on already counts as part of its cluster, and as drawn.
    """
    charge = pool.charge
    return charged_quotas(budget, pool.cluster_sizes + charge, charge, pool.cluster_sizes)


def charged_quotas(
    budget: int, shares: Float64 | Int64, charge: Int64, capacity: Int64, *, seed: int | None = None
) -> Int64:
    """Share `budget` so that it and what clusters have had already are in proportion to `shares`.

    The parts are ``min(max(0, t * shares[c] - charge[c]), capacity[c])`` for the one `t` with which
    they come to the budget, rounded by `pyids.sampling.allocate`: a cluster that has had more than
    its part gets nothing, and what it has too many is borne by all others.

    Parameters
    ----------
    budget
        Rows to hand out, at least 0.
    shares
        float64 or int64 (K,), finite and not negative.
    charge
        int64 (K,), rows that each cluster has had.
    capacity
        int64 (K,), rows that it has left.
    seed
        See `allocate`.

    Returns
    -------
    int64 array of shape (K,)
        Its sum is ``min(budget, capacity.sum())``.

    Examples
    --------
    >>> charged_quotas(6, np.ones(3), np.array([4, 0, 1]), np.full(3, 9)).tolist()
    [0, 3, 3]
    """
    if not charge.any():
        return allocate(budget, shares, capacity, seed=seed)
    shares, had = np.asarray(shares, np.float64), charge.astype(np.float64)
    parts, rest = np.zeros(len(shares)), min(budget, int(capacity.sum()))
    free = (shares > 0) & (capacity > 0)
    while free.any():
        t = level(shares[free], had[free], rest)
        part = np.where(free, np.maximum(0, t * shares - had), 0.0)
        full = free & (part >= capacity)
        if not full.any():
            parts[free] = part[free]
            break
        # The level only rises when others are full: these stay so.
        parts[full] = capacity[full]
        rest -= int(capacity[full].sum())
        free &= ~full
    return allocate(budget, parts, capacity, seed=seed)


def first_of_each_cluster(pool: Pool, keys: Float64, quotas: Int64) -> Int64:
    """Take the rows with the smallest keys of each cluster, lower row on ties; ascending."""
    order = np.lexsort((keys, pool.labels))  # stable: equal keys stay in row order
    starts = np.concatenate([[0], np.cumsum(pool.cluster_sizes)])
    taken = [order[s : s + q] for s, q in zip(starts, quotas.tolist(), strict=False)]
    return np.sort(np.concatenate(taken)).astype(np.int64)


def distances_to_centroids(pool: Pool) -> Float64:
    """Return each row's distance to the center of its cluster: Euclidean, in the pool's metric.

    For the cosine that of the row at unit length, which orders rows as k-means measured them.
    """
    block_rows = 4096
    centroids = pool.centroids.astype(np.float64)
    out = np.empty(len(pool))
    at = 0
    for shard in pool.embeddings:
        for start in range(0, len(shard), block_rows):
            block: NDArray[Any] = shard[start : start + block_rows].astype(np.float64)
            if pool.metric == "cosine":
                lengths = np.sqrt(np.square(block).sum(axis=1, keepdims=True))
                np.divide(block, lengths, out=block, where=lengths > 0)
            stop = at + len(block)
            out[at:stop] = np.sqrt(np.square(block - centroids[pool.labels[at:stop]]).sum(axis=1))
            at = stop
    return out
