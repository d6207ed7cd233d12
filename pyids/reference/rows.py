"""Methods that pick one row after the other: slow, in float64."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]


def unit_rows(x: Float64) -> Float64:
    """Rows over their lengths; all-zero rows stay."""
    lengths = np.linalg.norm(x, axis=1, keepdims=True)
    units: Float64 = np.divide(x, lengths, out=np.zeros_like(x), where=lengths > 0)
    return units


def farthest_first(x: Float64, budget: int, first: int) -> NDArray[np.int64]:
    """Pick the row whose nearest pick is farthest, lowest row on ties."""
    picks = [first]
    while len(picks) < budget:
        nearest = np.linalg.norm(x[:, None] - x[picks], axis=2).min(axis=1)
        nearest[picks] = -1
        picks.append(int(nearest.argmax()))
    return np.array(picks)


def facility_location_value(x: Float64, rows: NDArray[np.int64]) -> float:
    """Mean over all rows of the largest cosine to one of `rows`, negative ones as 0."""
    unit = unit_rows(x)
    return float(np.maximum(unit @ unit[rows].T, 0).max(axis=1).mean())


def facility_location(x: Float64, budget: int, quality: Float64, alpha: float) -> NDArray[np.int64]:
    """Plain greedy for ``(1 - alpha) * facility_location_value + alpha / budget * sum quality``."""
    unit = unit_rows(x)
    similarity = np.clip(np.rint(np.maximum(unit @ unit.T, 0) * 2**20), 0, 2**20) / 2**20
    best = np.zeros(len(x))
    picks: list[int] = []
    while len(picks) < budget:
        coverage = np.maximum(similarity - best[:, None], 0).mean(axis=0)
        gains = (1 - alpha) * coverage + alpha / budget * quality
        gains[picks] = -1
        picks.append(int(gains.argmax()))
        best = np.maximum(best, similarity[:, picks[-1]])
    return np.array(picks)


def filter_near(
    x: Float64, order: NDArray[np.int64], budget: int, threshold: float
) -> NDArray[np.int64]:
    """Keep each row of `order` unless its cosine to a kept one exceeds the threshold."""
    unit = unit_rows(x)
    kept: list[int] = []
    for row in order.tolist():
        if len(kept) < budget and not (unit[kept] @ unit[row] > threshold).any():
            kept.append(row)
    return np.array(kept, np.int64)


def near_duplicates(x: Float64, threshold: float) -> NDArray[np.int64]:
    """For each row the first kept row of cosine >= threshold before it; itself, and kept, if none.

    An all-zero row is near nothing.
    """
    unit = unit_rows(x)
    repeats: list[int] = []
    for row in range(len(x)):
        near = [i for i in range(row) if repeats[i] == i and unit[i] @ unit[row] >= threshold]
        repeats.append(near[0] if near else row)
    return np.array(repeats, np.int64)


def neighbor_distances(x: Float64, n_neighbors: int, reference: NDArray[np.int64]) -> Float64:
    """Sum of 1 - cosine to the nearest rows of `reference` other than the row itself."""
    unit = unit_rows(x)
    sums = np.empty(len(x))
    for i in range(len(x)):
        others = reference[reference != i]
        sums[i] = np.sort(1 - unit[others] @ unit[i])[:n_neighbors].sum()
    return sums


def novel_select(
    x: Float64, budget: int, first: int, weights: Float64, proximity: float
) -> NDArray[np.int64]:
    """Pick the row of largest ``sum_y weights[y] * (1 - cos(x, y)) / rank(y)^proximity``."""
    unit = unit_rows(x)
    picks = [first]
    while len(picks) < budget:
        distances = np.maximum(0, 1 - unit @ unit[picks].T)
        order = np.argsort(distances, axis=1, kind="stable")
        values = np.take_along_axis(distances * weights[picks], order, axis=1)
        novelty = values @ (1 / np.arange(1.0, len(picks) + 1) ** proximity)
        novelty[picks] = -np.inf
        picks.append(int(novelty.argmax()))
    return np.array(picks)


def round_robin(x: Float64, targets: Float64, tasks: list[str], budget: int) -> NDArray[np.int64]:
    """Tasks in turn, inside a task its target rows in turn: take the free row of largest cosine.

    Ties go to the lowest row. Cosines are sums of products, pair by pair.
    """
    unit, target = (v / np.sqrt((v * v).sum(axis=1, keepdims=True)) for v in (x, targets))
    groups = [[q for q in range(len(tasks)) if tasks[q] == t] for t in dict.fromkeys(tasks)]
    picks: list[int] = []
    for turn in range(budget):
        group = groups[turn % len(groups)]
        q = group[turn // len(groups) % len(group)]
        cosine = (unit * target[q]).sum(axis=1)
        cosine[picks] = -np.inf
        picks.append(int(cosine.argmax()))
    return np.array(picks)


def whiten(x: Float64, others: Float64, components: int) -> Float64:
    """``L^(-1/2) U^T (v - m)`` of others' unit rows, by the unit rows of x."""
    unit = unit_rows(x)
    variances, directions = np.linalg.eigh(np.cov(unit.T, bias=True))
    order = np.argsort(-variances)[:components]
    scale = directions[:, order] / np.sqrt(variances[order])
    whitened: Float64 = (unit_rows(others) - unit.mean(axis=0)) @ scale
    return whitened


def label_vectors(x: Float64, centroids: Float64, nearest: int, threshold: float) -> Float64:
    """Label vectors ``A e_x`` (N, K): soft labels of the nearest centroids, joined by cosine."""
    cosines = unit_rows(x) @ unit_rows(centroids).T
    labels = np.zeros_like(cosines)
    for row, cosine in zip(labels, cosines, strict=True):
        near = np.argsort(-cosine, kind="stable")[:nearest]
        row[near] = np.maximum(cosine[near], 0) / np.maximum(cosine[near], 0).sum()
    graph = unit_rows(centroids) @ unit_rows(centroids).T
    graph = np.where(graph >= threshold, graph, 0)
    np.fill_diagonal(graph, 1)
    joined: Float64 = labels @ (graph / graph.sum(axis=0)).T
    return joined


def information(vectors: Float64) -> float:
    """``sum_l (z_l + 1e-6)^0.8`` of the sum z of label vectors (n, K)."""
    return float(((vectors.sum(axis=0) + 1e-6) ** 0.8).sum())


def maximize_information(
    vectors: NDArray[np.int64], budget: int, had: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """Plain greedy on `information` of vectors in units of 2**-20, phi rounded to 2**-30.

    Begins with the vectors `had`.
    """

    def phi(z: NDArray[np.int64]) -> NDArray[np.int64]:
        rounded: NDArray[np.int64] = np.rint(2.0**30 * (z * 2.0**-20 + 1e-6) ** 0.8).astype(int)
        return rounded

    covered = np.zeros(vectors.shape[1], np.int64) if had is None else had.sum(axis=0)
    picks: list[int] = []
    for _ in range(budget):
        gains = (phi(covered + vectors) - phi(covered)).sum(axis=1)
        gains[picks] = -1
        picks.append(int(gains.argmax()))
        covered += vectors[picks[-1]]
    return np.array(picks)
