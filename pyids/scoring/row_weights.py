"""Quality scores as log weights of rows inside their clusters."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pyids._typing import Float64
from pyids.errors import ConfigError, DataError

# Rows that are looked at together.
BLOCK_ROWS = 1 << 20

# ---- what is made of quality ---------------------------------------------------------------------


def check_quality(quality: Float64, row_ids: NDArray[np.int64] | None = None) -> None:
    """Refuse a quality that cannot tell rows apart.

    Raises
    ------
    DataError
        A value is NaN or infinite (the message names the first row), or all are equal.
    """
    n_bad, first = 0, -1
    for start in range(0, len(quality), BLOCK_ROWS):
        bad = np.flatnonzero(~np.isfinite(quality[start : start + BLOCK_ROWS]))
        if len(bad) and not n_bad:
            first = start + int(bad[0])
        n_bad += len(bad)
    if n_bad:
        row = first if row_ids is None else row_ids[first]
        raise DataError(
            f"the quality of row {row} is {quality[first]} ({n_bad} such rows of "
            f"{len(quality)}): give every row a number, or choose another signal"
        )
    if len(quality) > 1 and quality.min() == quality.max():
        raise DataError(
            f"the quality is {quality[0]:g} for all {len(quality)} rows: a constant cannot rank "
            "rows; choose another signal, or leave quality out"
        )


def log_weights(
    quality: Float64,
    weighting: Literal["exponential", "proportional"] = "exponential",
    temperature: float = 1.0,
) -> Float64:
    """Turn quality into log weights of a draw, as `log_weight_of` does for some rows at a time."""
    return log_weight_of(quality, weighting, temperature)(quality)


def log_weight_of(
    quality: Float64,
    weighting: Literal["exponential", "proportional"] = "exponential",
    temperature: float = 1.0,
) -> Callable[[Float64], Float64]:
    """Return what turns the quality of some of these rows into log weights of a draw.

    ``exponential``: standardised quality / temperature, so that one standard deviation multiplies
    the weight by ``exp(1 / temperature)`` whatever the signal's scale. ``proportional``: the weight
    is the quality itself, which must not be negative.

    Raises
    ------
    ConfigError
        Another weighting, or a temperature that is not positive.
    DataError
        ``proportional`` with a negative quality.
    """
    if weighting == "exponential":
        if not temperature > 0:
            raise ConfigError(f"temperature is {temperature}: give a positive one")
        mean, deviation = moments(quality)

        def standardised(some: Float64) -> Float64:
            logs: Float64 = (some - mean) / (deviation * temperature)
            return logs

        return standardised
    if weighting == "proportional":
        if quality.min() < 0:
            raise DataError(
                f"the quality of a row is {quality.min():g}, below 0: use the softmax weighting"
            )

        def logarithm(some: Float64) -> Float64:
            with np.errstate(divide="ignore"):
                return np.log(some)

        return logarithm
    raise ConfigError(f"weighting {weighting!r} is neither softmax nor proportional: choose one")


def moments(values: Float64) -> tuple[float, float]:
    """Give mean and standard deviation, block by block: the values may be mapped, and many."""
    if not len(values):
        return math.nan, math.nan
    blocks = range(0, len(values), BLOCK_ROWS)
    mean = math.fsum(values[b : b + BLOCK_ROWS].sum() for b in blocks) / len(values)
    squares = math.fsum(np.square(values[b : b + BLOCK_ROWS] - mean).sum() for b in blocks)
    return mean, math.sqrt(squares / len(values))


def rescale(quality: Float64) -> Float64:
    """Bring quality to [0, 1] linearly: the worst row to 0, the best to 1."""
    low, high = quality.min(), quality.max()
    scaled: Float64 = (quality - low) / (high - low)
    return scaled


def histogram(quality: Float64, bins: int = 32) -> dict[str, Any]:
    """Summarize quality for the report, as a JSON value.

    Returns
    -------
    dict
        ``rows``, ``mean``, ``deviation``, ``quantiles`` (0, 5, 25, 50, 75, 95 and 100 %), and the
        ``edges`` and ``counts`` of `bins` equal bins.
    """
    counts, edges = np.histogram(quality, bins)
    return {
        "rows": len(quality),
        "mean": float(quality.mean()),
        "deviation": float(quality.std()),
        "quantiles": np.quantile(quality, [0, 0.05, 0.25, 0.5, 0.75, 0.95, 1]).tolist(),
        "edges": edges.tolist(),
        "counts": counts.tolist(),
    }
