"""What a round's scores say: of each cluster, and whether they are more than noise."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import orjson
from numpy.typing import NDArray

from pyids.errors import DataError

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

# The mean loss must have fallen by this many standard errors for the scores to count.
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
    counts = np.bincount(clusters, minlength=n_clusters)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.bincount(clusters, weights=scores, minlength=n_clusters) / counts
        squares = np.bincount(clusters, (scores - means[clusters]) ** 2, minlength=n_clusters)
        variances = np.where(counts > 1, squares / (counts - 1), np.nan)
    return means, counts.astype(np.int64), variances


def robust_spread(centred: Float64) -> float:
    """Return 1.4826 times the median absolute value, or the standard deviation where that is 0.

    For normal values around 0 both estimate their standard deviation.
    """
    return 1.4826 * float(np.median(np.abs(centred))) or float(centred.std())


def improvement(columns: Mapping[str, Float64]) -> float | None:
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
    if not {"base_nll", "checkpoint_nll"} <= columns.keys() or len(columns["base_nll"]) < 2:
        return None
    drop = columns["base_nll"] - columns["checkpoint_nll"]
    error = np.std(drop, ddof=1) / np.sqrt(len(drop))
    return float(np.mean(drop) / error) if error > 0 else float(np.sign(np.mean(drop)) * np.inf)


def read_scores(path: Path) -> dict[int, float]:
    """Read a trainer's scores: a JSON object ``{"_pyids_id": 7, "score": 0.5}`` a line.

    Other columns are ignored; a score of null leaves its row out.

    Raises
    ------
    DataError
        The file cannot be read, or a line is not such an object; names the line.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    scores: dict[int, float] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = orjson.loads(line)
            row_id, score = row["_pyids_id"], row["score"]
            if score is not None:
                scores[int(row_id)] = float(score)
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
            raise DataError(
                f'{path} line {number}: not an object like {{"_pyids_id": 7, "score": 0.5}}: write '
                "one a scored row"
            ) from None
    if not scores:
        raise DataError(f"{path} holds no score: write one line a scored row")
    return scores
