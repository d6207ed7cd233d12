"""Shrinkage and re-weighting of clusters."""

from __future__ import annotations

import math

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
