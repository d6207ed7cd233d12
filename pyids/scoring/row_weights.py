"""Quality scores as log weights of rows inside their clusters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from pyids._typing import Float64
from pyids.errors import ConfigError, DataError

if TYPE_CHECKING:
    pass


# ---- what is made of quality ---------------------------------------------------------------------


def check_quality(quality: Float64, row_ids: NDArray[np.int64] | None = None) -> None:
    """Refuse a quality that cannot tell rows apart.

    Raises
    ------
    DataError
        A value is NaN or infinite (the message names the first row), or all are equal.
    """
    bad = np.flatnonzero(~np.isfinite(quality))
    if len(bad):
        row = bad[0] if row_ids is None else row_ids[bad[0]]
        raise DataError(
            f"the quality of row {row} is {quality[bad[0]]} ({len(bad)} such rows of "
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
    """Turn quality into log weights of a draw.

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
        logs: Float64 = (quality - quality.mean()) / (quality.std() * temperature)
        return logs
    if weighting == "proportional":
        if quality.min() < 0:
            raise DataError(
                f"the quality of a row is {quality.min():g}, below 0: use the softmax weighting"
            )
        with np.errstate(divide="ignore"):
            return np.log(quality)
    raise ConfigError(f"weighting {weighting!r} is neither softmax nor proportional")


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
