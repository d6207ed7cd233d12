"""Rate a few rows of each cluster, and let them speak for the others.

References
----------
arXiv 2601.22016.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pyids._typing import Float64, Int64
from pyids.sampling import sample_by_cluster
from pyids.scoring.statistics import cluster_moments

# Rows of a cluster that are rated before its interval is looked at.
FIRST = 4
_NORMAL_95 = 1.96


def rate_few(
    rate: Callable[[Int64], Float64],
    labels: NDArray[np.int32],
    row_ids: Int64,
    *,
    half_width: float,
    seed: int,
) -> Float64:
    """Rate rows until the 95% interval of each cluster's mean is narrow enough.

    Rows are drawn by the seed: of each cluster `FIRST`, then as many again as it has, as long as
    its interval is wider; a cluster's spread is taken as no less than half the typical one, for a
    few equal ratings prove little. Rows that are not rated, or that get no rating, count as their
    cluster's mean, drawn towards the mean of all by one row's worth.

    Parameters
    ----------
    rate : callable
        Maps ascending positions (n,) to ratings (n,), NaN where there is none.
    labels : int32 (N,)
    row_ids : int64 (N,)
        Ascending: what draws are keyed with.
    half_width : float
        Positive; half of the interval, in the unit of the ratings.
    seed : int

    Returns
    -------
    float64 (N,)
    """
    sizes = np.bincount(labels)
    ratings = np.full(len(labels), np.nan)
    asked = np.zeros(len(labels), np.bool_)
    wanted = np.minimum(sizes, FIRST)
    while True:
        ids = sample_by_cluster(labels, wanted, row_ids=row_ids, seed=seed)
        drawn = np.searchsorted(row_ids, ids)
        new = np.sort(drawn[~asked[drawn]])
        if not len(new):
            break
        # Draws are keyed by the row: a larger one holds the smaller.
        ratings[new] = rate(new)
        asked[new] = True
        known = np.isfinite(ratings)
        means, counts, variances = cluster_moments(ratings[known], labels[known], len(sizes))
        there = np.isfinite(variances)
        typical = float(np.sqrt(np.mean(variances[there]))) if there.any() else np.inf
        spread = np.maximum(np.sqrt(np.where(there, variances, typical**2)), typical / 2)
        with np.errstate(divide="ignore", invalid="ignore"):
            wide = ~(_NORMAL_95 * spread / np.sqrt(counts) <= half_width)
        wanted = np.where(wide, np.minimum(sizes, 2 * wanted), wanted)
    overall = float(ratings[known].mean()) if known.any() else np.nan
    pooled = (np.nan_to_num(means) * counts + overall) / (counts + 1)
    return np.where(known, ratings, pooled[labels])
