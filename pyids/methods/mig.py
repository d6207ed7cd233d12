"""MIG: rows that together say most about a graph of labels."""

from __future__ import annotations

import numpy as np

from pyids import _core
from pyids._typing import Float64, Int64
from pyids.checks import threads as checked_threads
from pyids.errors import ConfigError
from pyids.methods.information import UNIT, Labels, maximize
from pyids.methods.method import method
from pyids.methods.pool import Pool
from pyids.nearest import unit_rows
from pyids.neighbors import inverse_lengths

_BLOCK_ROWS = 4096


@method(
    needs=("embeddings", "centroids"),
    uses=("quality", "already"),
    source="Chen et al. (MIG), arXiv 2504.13835",
    cost="O(N K D) time for the labels, then about b rows a pick; 40 N bytes",
    guarantee="the plain greedy's picks, so at least 1 - 1/e of the most information",
)
def select(
    pool: Pool,
    budget: int,
    *,
    seed: int,
    nearest: int = 3,
    threshold: float = 0.9,
    tags: str | None = None,
) -> Int64:
    """Take the rows that add most information to those taken, on a graph of labels.

    The information of rows S is ``sum_l (z_l + 1e-6)^0.8`` with ``z = A sum_{x in S} q_x e_x``.
    Labels are the clusters: e_x holds the cosines of x to its nearest centroids, scaled to sum to
    1. A joins labels whose centroids have a cosine of `threshold` or more, each label's column
    scaled to sum to 1. q is 1, or `--quality` over its mean; a quality that is negative somewhere
    counts by its rank, the share of rows that are no better. S begins with what is trained on
    already. Nothing is drawn; in the order of picking.

    Parameters
    ----------
    nearest
        Clusters that a row counts for.
    threshold
        Cosine from which two clusters speak for each other.
    tags
        A column of tags (a list of texts a row) to take as labels instead, each of weight 1 and
        joined with no other.
    """
    trained = pool.only([]) if pool.already is None else pool.already
    quality = _quality(pool, trained)
    if tags is not None:
        labels, had = _from_tags([pool, trained], tags, quality)
    else:
        labels, had = _from_clusters([pool, trained], quality, nearest, threshold)
    return maximize(labels, budget, had=had).rows


def _quality(pool: Pool, trained: Pool) -> list[Float64]:
    """Return q of the pool's rows and of those that are trained on already."""
    if not pool.knows("quality"):
        return [np.ones(len(pool)), np.ones(len(trained))]
    quality, had = pool.quality, trained.loaders["quality"]() if len(trained) else np.empty(0)
    if quality.min() < 0:
        ordered = np.sort(quality)
        quality, had = (
            np.searchsorted(ordered, values, side="right") / len(ordered)
            for values in (quality, had)
        )
    # One that is negative where the pool has none says no more than that the row is bad.
    return [values / quality.mean() for values in (quality, np.maximum(had, 0))]


def _from_clusters(
    pools: list[Pool], quality: list[Float64], nearest: int, threshold: float
) -> list[Labels]:
    pool = pools[0]
    centroids = unit_rows(np.asarray(pool.centroids, np.float64))
    m = min(nearest, len(centroids))
    if m < 1:
        raise ConfigError(f"nearest is {nearest}: give at least 1")
    graph, shares = label_graph(centroids @ centroids.T, threshold)
    n_threads = _core.resolve_threads(checked_threads(pool.threads, "threads"))
    found = []
    for some, q in zip(pools, quality, strict=True):
        labels, weights = np.empty((len(some), m), np.int32), np.empty((len(some), m), np.int64)
        at = 0
        for shard in some.embeddings:
            for begin in range(0, len(shard), _BLOCK_ROWS):
                block = np.ascontiguousarray(shard[begin : begin + _BLOCK_ROWS])
                factors = inverse_lengths([block], n_threads)
                squares = _core.squared_distances([block], factors, centroids, n_threads)
                part = slice(at, at + len(block))
                labels[part], weights[part] = soft_labels(1 - squares / 2, m)
                at += len(block)
        found.append(Labels(labels, weights, q, graph, shares))
    return found


def soft_labels(cosines: Float64, m: int) -> tuple[Int64, Int64]:
    """Return the m nearest labels of each row, and their cosines scaled to sum to 1 (2**-10).

    A row that is near none belongs to the nearest.
    """
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :m]
    near = np.maximum(np.take_along_axis(cosines, order, axis=1), 0)
    near[near[:, 0] == 0, 0] = 1
    return order, np.rint(near * (UNIT / near.sum(axis=1, keepdims=True))).astype(np.int64)


def label_graph(cosines: Float64, threshold: float) -> tuple[Int64, Int64]:
    """Return for each of K labels those that it speaks for, and how strongly: (K, d) each."""
    joined = np.where(cosines >= threshold, cosines, 0.0)
    np.fill_diagonal(joined, 1.0)
    joined = np.maximum(joined, 0)
    whole = np.rint(joined * (UNIT / joined.sum(axis=0))).astype(np.int64).T  # a row a column of A
    degree = int((whole > 0).sum(axis=1).max())
    order = np.argsort(-whole, axis=1, kind="stable")[:, :degree]
    return order, np.take_along_axis(whole, order, axis=1)


def _from_tags(pools: list[Pool], name: str, quality: list[Float64]) -> list[Labels]:
    numbers: dict[str, int] = {}
    bearing = [_tags(pool, name, numbers) for pool in pools]
    if not numbers:
        raise ConfigError(f"column {name!r} holds no tag in any row: name another")
    graph = np.arange(len(numbers))[:, None]
    found = []
    for rows, q in zip(bearing, quality, strict=True):
        m = max(map(len, rows), default=0)
        labels, weights = np.zeros((len(rows), m), np.int32), np.zeros((len(rows), m), np.int64)
        for i, row in enumerate(rows):
            labels[i, : len(row)], weights[i, : len(row)] = row, UNIT
        found.append(Labels(labels, weights, q, graph, np.full_like(graph, UNIT)))
    return found


def _tags(pool: Pool, name: str, numbers: dict[str, int]) -> list[list[int]]:
    """Return the numbers of each row's tags; new tags get the next ones."""
    rows = []
    for row_id, value in zip(pool.row_ids.tolist(), pool.column(name), strict=True):
        tags = [value] if isinstance(value, str) else value
        if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
            raise ConfigError(
                f"row {row_id} holds no list of texts in column {name!r}: name a column of tags"
            )
        rows.append([numbers.setdefault(tag, len(numbers)) for tag in dict.fromkeys(tags)])
    return rows
