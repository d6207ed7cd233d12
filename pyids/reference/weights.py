"""Shrinkage and re-weighting of clusters."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]


def shrink_scores(scores: Float64, counts: NDArray[np.int64], shrinkage: float) -> Float64:
    """Posterior means of cluster scores that rest on `counts` rows; NaN (unscored) -> their mean.

    The prior's mean is worth `shrinkage` rows.
    """
    scored = [j for j in range(len(scores)) if counts[j] > 0]
    precision = {j: counts[j] / (counts[j] + shrinkage) for j in scored}
    mean = sum(precision[j] * scores[j] for j in scored) / sum(precision.values())
    return np.array(
        [
            mean + precision[j] * (scores[j] - mean) if j in precision else mean
            for j in range(len(scores))
        ]
    )


def estimate_shrinkage(scores: Float64, counts: NDArray[np.int64], variances: Float64) -> float:
    """Noise variance over signal variance, by the one-way analysis of variance."""
    scored = [j for j in range(len(scores)) if counts[j] > 0]
    several = [j for j in scored if counts[j] >= 2]
    n = sum(counts[j] for j in scored)
    noise = sum((counts[j] - 1) * variances[j] for j in several)
    noise /= sum(counts[j] - 1 for j in several)
    mean = sum(counts[j] * scores[j] for j in scored) / n
    between = sum(counts[j] * (scores[j] - mean) ** 2 for j in scored)
    signal = (between - (len(scored) - 1) * noise) / (n - sum(counts[j] ** 2 for j in scored) / n)
    return noise / signal if signal > 0 else math.inf


def reweight(
    weights: Float64, gains: Float64, scored: NDArray[np.bool_], min_weight: float
) -> Float64:
    """Multiply the scored clusters' weights by `gains`, keeping their sum and the min_weight.

    `weights` respect the min_weight already.
    """
    new = weights.copy()
    mass = weights[scored].sum()
    least = min_weight / len(weights)
    lifted = np.zeros(len(weights), bool)
    while True:
        free = scored & ~lifted
        scale = (mass - least * lifted.sum()) / (weights * gains)[free].sum()
        new[free] = scale * (weights * gains)[free]
        if not (new[free] < least).any():
            return new
        lifted |= free & (new < least)
        new[lifted] = least


def jackknife(
    statistic: Callable[[Float64], float], values: Float64, clusters: NDArray[np.int64]
) -> tuple[Float64, Float64]:
    """Score of each cluster 0..K-1 from the means of its rows, and the jackknife's variance of it.

    `values` is (M, B); the variance of a cluster of one row is NaN.
    """
    scores, variances = [], []
    for j in range(int(clusters.max()) + 1):
        rows = values[:, clusters == j]
        n = rows.shape[1]
        scores.append(statistic(rows.mean(axis=1)))
        without = [statistic(np.delete(rows, i, axis=1).mean(axis=1)) for i in range(n) if n > 1]
        mean = math.fsum(without) / n
        squares = math.fsum((x - mean) ** 2 for x in without)
        variances.append((n - 1) / n * squares if n > 1 else math.nan)
    return np.array(scores), np.array(variances)
