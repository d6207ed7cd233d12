"""What a round's scores say: of each cluster, and whether they are more than noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from pyids import ops
from pyids._typing import Float64, Int64

# By so many standard errors the mean loss must have fallen, or clusters must differ in how far it
# fell, for the scores to count.
SIGNIFICANT = 2.0


def cluster_moments(
    scores: Float64, clusters: NDArray[np.int32], n_clusters: int
) -> tuple[Float64, Int64, Float64]:
    """Reduce scores by cluster.

    Parameters
    ----------
    scores
        float64 (B,), finite.
    clusters
        int32 (B,) in [0, K).

    Returns
    -------
    means : float64 (K,)
        NaN for clusters without a score.
    counts : int64 (K,)
    variances : float64 (K,)
        Unbiased variance of the scores; NaN for clusters with fewer than two.
    """
    counts, totals, squares, center = ops.cluster_moments(scores, clusters, n_clusters)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        means = center + totals / counts
        within = np.maximum(squares - totals * (totals / counts), 0.0)
        variances = np.where(counts > 1, within / (counts - 1), np.nan)
    return means, np.asarray(counts, np.int64), variances


def cluster_means(values: Float64, clusters: NDArray[np.int32]) -> Float64:
    """Return the means of each cluster over the rows that have all values.

    Parameters
    ----------
    values
        float64 (M, B): M measurements of each of B rows. A row with one that is not finite is left
        out.
    clusters
        int32 (B,).

    Returns
    -------
    float64 (M, J)
        Of the J clusters that have such rows, ascending.
    """
    known = np.isfinite(values).all(axis=0)
    _, cluster = np.unique(clusters[known], return_inverse=True)
    counts = np.bincount(cluster)
    return np.stack([np.bincount(cluster, x[known], len(counts)) / counts for x in values])


def pseudovalues(
    statistic: Callable[[Float64], Float64], values: Float64, clusters: NDArray[np.int32]
) -> Float64:
    """Return rows' values whose mean is their cluster's score and whose variance is its noise.

    For a score that is no mean over rows but a function of such means. With t(j) the score of
    cluster j, t(j without i) that of its n rows but row i, and a(j) the mean of the latter over
    its rows, row i has ``t(j) + (n - 1) (a(j) - t(j without i))``, Tukey's pseudovalue less the
    jackknife's correction of the bias. So the mean over the rows is t(j), and their sample variance
    over n is the jackknife's estimate of the variance of t(j). Where the score is the mean of one
    measurement, a row has that measurement. The row of a cluster of one has t(j).

    Parameters
    ----------
    statistic
        Takes the means of several clusters, float64 (M, any), and returns their scores, (any,).
        What is the same for all of them (a median over the clusters, say) it holds fixed.
    values, clusters
        See `cluster_means`.

    Returns
    -------
    float64 (B,)
        NaN for rows that were left out.

    References
    ----------
    Tukey 1958; Efron and Stein, "The jackknife estimate of variance", Annals of Statistics 9, 1981.
    """
    known = np.isfinite(values).all(axis=0)
    result = np.full(len(clusters), np.nan)
    _, cluster = np.unique(clusters[known], return_inverse=True)
    means, n = cluster_means(values, clusters), np.bincount(cluster)[cluster]
    rows, several = values[:, known], n > 1
    of_row = statistic(means)[cluster]
    # The mean without row i, from the difference to it: what is alike stays so to the last bit.
    others = means[:, cluster] - (rows - means[:, cluster]) / np.maximum(n - 1, 1)
    without = np.where(several, 0.0, of_row)
    without[several] = statistic(others[:, several])
    average = (np.bincount(cluster, without) / np.bincount(cluster))[cluster]
    result[known] = of_row + (n - 1) * (average - without)
    return result


def robust_spread(centered: Float64) -> float:
    """Return 1.4826 times the median absolute value, or the standard deviation where that is 0.

    For normal values around 0 both estimate their standard deviation.
    """
    return 1.4826 * float(np.median(np.abs(centered))) or float(centered.std())


def paired_t(columns: Mapping[str, Float64]) -> float | None:
    """Return by how many standard errors the checkpoint's loss lies below the base model's.

    Over paired probe rows: the mean of ``base_nll - checkpoint_nll`` over its standard error.

    Parameters
    ----------
    columns
        What a scorer measured of each row, float64 (B,).

    Returns
    -------
    float or None
        None when the scorer did not measure both losses, or on fewer than two rows.
    """
    drop = _drop(columns)
    if drop is None or len(drop) < 2:
        return None
    error = np.std(drop, ddof=1) / np.sqrt(len(drop))
    mean = float(np.mean(drop))
    if error == 0:
        return math.copysign(np.inf, mean) if mean else 0.0
    return mean / float(error)


def between_cluster_z(columns: Mapping[str, Float64], clusters: NDArray[np.int32]) -> float | None:
    """Return how clearly clusters differ in the fall of their loss, in standard errors.

    The F statistic of one-way analysis of variance, less 1, over its standard deviation where
    clusters do not differ, ``sqrt(2 / (K - 1) + 2 / (B - K))``.

    Parameters
    ----------
    columns
        What a scorer measured of each row, float64 (B,).
    clusters
        int32 (B,), of K distinct values.

    Returns
    -------
    float or None
        None when the scorer did not measure both losses, on one cluster, or where no cluster has
        two rows.
    """
    drop = _drop(columns)
    if drop is None:
        return None
    _, cluster = np.unique(clusters, return_inverse=True)
    n_clusters = int(cluster.max(initial=-1)) + 1
    between, within = n_clusters - 1, len(drop) - n_clusters
    if between < 1 or within < 1:
        return None
    means, counts, _ = cluster_moments(drop, cluster.astype(np.int32), n_clusters)
    explained = float(counts @ (means - drop.mean()) ** 2) / between
    left = float(((drop - means[cluster]) ** 2).sum()) / within
    if left == 0:
        return np.inf if explained > 0 else 0.0
    return (explained / left - 1) / float(np.sqrt(2 / between + 2 / within))


def not_significant(improved: float | None, differs: float | None) -> bool:
    """Say whether scores of a checkpoint with this `paired_t` and `between_cluster_z` are noise.

    So they are when the checkpoint is worse than the base model, or neither known to be better than
    it nor to be better on some clusters than on others. Where both are unknown they are not.
    """
    if improved is None or improved >= SIGNIFICANT:
        return False
    return improved <= -SIGNIFICANT or differs is None or differs < SIGNIFICANT


def _drop(columns: Mapping[str, Float64]) -> Float64 | None:
    if not {"base_nll", "checkpoint_nll"} <= columns.keys():
        return None
    return columns["base_nll"] - columns["checkpoint_nll"]


def edges_of_few(values: Float64, most: int) -> Float64 | None:
    """Return the edges of a bin for each distinct value, where there are at most so many.

    Parameters
    ----------
    values : float64 (n,)
        Finite.
    most : int
        Distinct values from which on there is no bin for each: None is returned.
    """
    distinct = np.unique(values)
    if not 0 < len(distinct) <= most:
        return None
    between = (distinct[1:] + distinct[:-1]) / 2
    ends = (
        (between[:1] - distinct[:1], distinct[-1:] - between[-1:]) if len(between) else (0.5, 0.5)
    )
    return np.concatenate([distinct[:1] - ends[0], between, distinct[-1:] + ends[1]])
