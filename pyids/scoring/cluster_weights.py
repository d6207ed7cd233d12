"""How much each cluster counts in the next round, given how its probes scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyids._typing import Float64
from pyids.config import RunConfig
from pyids.registry import WEIGHT_UPDATES
from pyids.scoring.shrinkage import by_own_noise, by_pooled_noise
from pyids.scoring.statistics import (
    between_cluster_z,
    cluster_moments,
    not_significant,
    paired_t,
    robust_spread,
)

if TYPE_CHECKING:
    pass

# With the adaptive temperature a cluster gains or loses at most e^3 against the median in a round.
_MAX_STEP = 3.0


class WeightUpdate(NamedTuple):
    """What `update_weights` returns; float64 arrays of shape (K,).

    Attributes
    ----------
    weights : sums to 1.
    shrunk_scores : the scores as they were used; unscored clusters stand at the global mean (NaN
        if nothing was scored at all).
    shrinkage : how far each score was moved towards the global mean: 0 not at all, 1 entirely.
    """

    weights: Float64
    shrunk_scores: Float64
    shrinkage: Float64


class ShrunkScores(NamedTuple):
    """What a weight update sees of the J scored clusters, all divided by the largest score.

    Attributes
    ----------
    values : float64 array of shape (J,)
        The scores, shrunk towards their mean.
    deviations : float64 array of shape (J,)
        The standard deviation that is left in each.
    counts : int64 array of shape (J,)
        How many rows each rests on.
    """

    values: Float64
    deviations: Float64
    counts: NDArray[np.int64]


LogGain: TypeAlias = Callable[[ShrunkScores, float | None], Float64 | None]


def exponential(scores: ShrunkScores, temperature: float | None) -> Float64:
    """Return ``t / temperature``: exponential weights."""
    return _exponents(scores.values, temperature)


def linear(scores: ShrunkScores, temperature: float | None) -> Float64:
    """Return the logarithm of the score, less the lowest if negative (the paper's Eq. 6)."""
    t = scores.values
    with np.errstate(divide="ignore"):
        log_gain: Float64 = np.log(t - min(0.0, float(t.min())))
    return np.zeros(len(t)) if np.isneginf(log_gain).all() else log_gain  # all alike


def ucb(scores: ShrunkScores, temperature: float | None) -> Float64:
    """Return ``(t + deviation) / temperature``: an upper confidence bound."""
    return _exponents(scores.values + scores.deviations, temperature)


def none(scores: ShrunkScores, temperature: float | None) -> None:
    """Leave the weights as they are."""
    return None


def _check_options(min_weight: float, shrinkage: float | None) -> None:
    if not 0 <= min_weight <= 1:
        raise ValueError(f"min_weight is {min_weight}: must lie in [0, 1]")
    if shrinkage is not None and not shrinkage >= 0:
        raise ValueError(f"shrinkage is {shrinkage}: must not be negative")


def update_weights(
    weights: ArrayLike,
    scores: ArrayLike,
    counts: ArrayLike,
    *,
    variances: ArrayLike | None = None,
    rule: str | LogGain = "exponential",
    temperature: float | None = None,
    min_weight: float = 0.02,
    shrinkage: float | None = None,
    pooled_noise: bool = True,
) -> WeightUpdate:
    """Re-weight the clusters by their scores: ``w'[j] ~ w[j] * gain(shrunk score of j)``.

    A score is first shrunk towards the global mean ``m``, the more the fewer rows it rests on (an
    empirical Bayes estimate): ``t[j] = m + (1 - b[j]) * (scores[j] - m)`` with
    ``b[j] = shrinkage / (shrinkage + counts[j])``. Then the gain is, by `rule`,

    - ``exponential``: ``exp(t / temperature)``, the exponential rule;
    - ``linear``: ``t``, less the lowest ``t`` if that is negative (the paper's Eq. 6, made safe);
    - ``ucb``: ``exp((t + sd) / temperature)`` with ``sd`` the standard deviation that is left in
      ``t``: an upper confidence bound, so that clusters scored on few rows are tried again;
    - ``none``: the weights stay as they are.

    Scored clusters exchange weight among themselves only: one that was not scored keeps its weight.

    Parameters
    ----------
    weights : float array of shape (K,)
        The weights so far, not negative, summing to 1.
    scores : float array of shape (K,)
        Mean score of the scored rows of each cluster, larger for clusters that should be drawn
        from more; NaN where no row was scored.
    counts : integer array of shape (K,)
        How many rows were scored.
    variances : float array of shape (K,), optional
        Sample variance (divisor ``counts - 1``) of the scores inside each cluster; read where
        ``counts >= 2``, NaN allowed elsewhere. It tells noise from signal: `shrinkage` is then
        estimated.
    rule : str or callable
        A name of `pyids.registry.WEIGHT_UPDATES`, ``module:function``, or such a function: of
        `ShrunkScores` and the temperature (None: adaptive), it returns the logarithm of the factor
        of each scored cluster's weight, float64 (J,), up to a constant, or None for no change.
    temperature : float, optional
        Positive, in units of the score; for ``exponential`` and ``ucb``. Unless given: the robust
        spread of the shrunk scores (1.4826 times the median absolute deviation from the median, or
        the standard deviation where more than half are equal), and no cluster gains or loses more
        than ``e**3`` against the median. Such an update does not depend on the scores' unit.
    min_weight : float
        In [0, 1]: no cluster gets less than ``min_weight / K``. Not applied by ``none``.
    shrinkage : float, optional
        How many scored rows the global mean is worth, at least 0 (0: none). Unless given: noise
        variance over signal variance, both estimated by the analysis of variance, where
        `variances` are given, else 1. May be infinite: all clusters score alike.
    pooled_noise : bool
        Whether the rows of all clusters are equally noisy. If not, and `shrinkage` is to be
        estimated, each score has its own noise ``e[j] = v[j] / counts[j]``, and
        ``b[j] = e[j] / (e[j] + signal variance)``. v is between `variances` and what is usual, as
        far as they differ by more than chance (Smyth); the signal's variance is Paule and
        Mandel's.

    Returns
    -------
    WeightUpdate

    Raises
    ------
    ValueError
        For arguments that do not fit; the message names the first cluster at fault.

    Notes
    -----
    All clusters' probes are observed together, so EXP3's importance weighting would change
    nothing: its update is ``exponential``. What a bandit adds here is the confidence bound.

    References
    ----------
    Yu et al., arXiv 2409.11378, Eq. 5 and 6. Bandits over clusters: arXiv 2505.07437, 2506.10288.
    Paule and Mandel, "Consensus values and weighting factors", J. Res. NBS 87, 1982; Smyth, Stat.
    Appl. Genet. Mol. Biol. 3, 2004 (variances of few rows).

    Examples
    --------
    >>> update = update_weights([0.25] * 4, [1.0, 2.0, 3.0, np.nan], [9, 9, 9, 0], shrinkage=0)
    >>> update.weights.round(2).tolist()
    [0.11, 0.22, 0.42, 0.25]
    """
    weights_, scores_, counts_, variances_ = _validate(weights, scores, counts, variances)
    log_gain_of = WEIGHT_UPDATES.find(WEIGHT_UPDATES.check(rule)) if isinstance(rule, str) else rule
    _check_options(min_weight, shrinkage)
    if temperature is not None:
        if log_gain_of in (linear, none):
            raise ValueError(f"temperature has no meaning for rule {rule!r}: leave it out")
        if not 0 < temperature < np.inf:
            raise ValueError(f"temperature is {temperature}: must be positive and finite")

    if log_gain_of is not none:
        weights_ = raise_to(weights_, min_weight / len(weights_))
    scored = counts_ > 0
    if not scored.any():
        return WeightUpdate(weights_, np.full(len(weights_), np.nan), np.ones(len(weights_)))

    # In units of the largest score the sums of squares of scores do not overflow.
    unit = float(np.abs(scores_[scored]).max()) or 1.0
    s, n = scores_[scored] / unit, counts_[scored].astype(np.float64)
    with np.errstate(over="ignore"):  # an infinite variance: all is noise
        v = None if variances_ is None else variances_[scored] / unit / unit
    if shrinkage is None and v is not None and not pooled_noise and (n >= 2).any():
        mean, b, signal = by_own_noise(s, n, v)
    else:
        mean, b, signal = by_pooled_noise(s, n, v, shrinkage)
    t = mean + (1 - b) * (s - mean)

    shrunk = np.full(len(weights_), mean * unit)
    shrunk[scored] = t * unit
    towards_mean = np.ones(len(weights_))
    towards_mean[scored] = b
    scaled = None if temperature is None else temperature / unit
    deviations = np.sqrt(signal * b)
    log_gain = log_gain_of(ShrunkScores(t, deviations, counts_[scored]), scaled)
    if log_gain is None:
        return WeightUpdate(weights_, shrunk, towards_mean)
    log_gain = np.asarray(log_gain, np.float64)
    if log_gain.shape != t.shape or np.isnan(log_gain).any():
        raise ValueError(f"the weight update {rule!r} gave no number for each scored cluster")

    mass = float(weights_[scored].sum())
    if mass > 0:
        with np.errstate(divide="ignore"):
            log_weights = np.log(weights_[scored]) + log_gain
        if np.isfinite(log_weights.max()):
            gained = np.exp(log_weights - log_weights.max())
            weights_[scored] = mass * gained / gained.sum()
            weights_[scored] = raise_to(weights_[scored], min_weight / len(weights_))
    return WeightUpdate(weights_ / weights_.sum(), shrunk, towards_mean)


def _exponents(t: Float64, temperature: float | None) -> Float64:
    """``t / temperature`` up to a constant; see `update_weights` for the adaptive temperature."""
    centered = t - np.median(t)
    if temperature is not None:
        with np.errstate(over="ignore"):
            return np.asarray((t - t.max()) / max(temperature, np.finfo(np.float64).tiny))
    spread = robust_spread(centered)
    # A spread within rounding is none.
    if spread <= 1e-12:
        return np.zeros(len(t))
    return np.clip(centered / spread, -_MAX_STEP, _MAX_STEP)


def raise_to(weights: Float64, least: float) -> Float64:
    """Lift the weights below `least` to it and scale the others so that the sum stays."""
    total = float(weights.sum())
    low = np.zeros(len(weights), bool)
    while not low.all():
        rest = total - least * int(low.sum())
        scaled = weights * (rest / float(weights[~low].sum()))
        below = ~low & (scaled < least)
        if not below.any():
            return np.where(low, least, scaled)
        low |= below
    return np.full(len(weights), total / len(weights))


def _validate(
    weights: ArrayLike, scores: ArrayLike, counts: ArrayLike, variances: ArrayLike | None
) -> tuple[Float64, Float64, NDArray[np.int64], Float64 | None]:
    weights_ = np.array(weights, np.float64)
    scores_ = np.asarray(scores, np.float64)
    counts_ = np.asarray(counts)
    if weights_.ndim != 1 or not len(weights_):
        raise ValueError(f"weights must be 1-D and not empty, not of shape {weights_.shape}")
    arrays = {"scores": scores_, "counts": counts_}
    variances_ = None if variances is None else np.asarray(variances, np.float64)
    if variances_ is not None:
        arrays["variances"] = variances_
    for name, array in arrays.items():
        if array.shape != weights_.shape:
            raise ValueError(f"{name} has shape {array.shape} for {len(weights_)} clusters")
    if counts_.dtype.kind not in "iu":
        raise ValueError(f"counts must be integers, not {counts_.dtype}")

    def check(name: str, values: NDArray[np.generic], bad: NDArray[np.bool_], must: str) -> None:
        if bad.any():
            j = int(bad.argmax())
            raise ValueError(f"{name} of cluster {j} is {values[j]}: {must}")

    check(
        "weight",
        weights_,
        ~(np.isfinite(weights_) & (weights_ >= 0)),
        "must be finite and not negative",
    )
    check("count", counts_, counts_ < 0, "must not be negative")
    scored = counts_ > 0
    check("score", scores_, scored & ~np.isfinite(scores_), "must be finite where rows were scored")
    check("score", scores_, ~scored & ~np.isnan(scores_), "must be NaN where no row was scored")
    if variances_ is not None:
        good = np.isfinite(variances_) & (variances_ >= 0)
        check(
            "variance",
            variances_,
            (counts_ >= 2) & ~good,
            "must be finite and not negative where two rows or more were scored",
        )
    total = float(weights_.sum())
    if not abs(total - 1) <= 1e-6:
        raise ValueError(f"weights sum to {total}: must sum to 1")
    return weights_ / total, scores_, counts_.astype(np.int64), variances_


class Told(NamedTuple):
    """What a round's scores came to.

    Attributes
    ----------
    weights : float64 array of shape (K,)
        Of the clusters in the next round.
    summary : dict
        JSON values, kept with the round.
    """

    weights: Float64
    summary: dict[str, Any]


def reweight(
    weights: Float64,
    columns: Mapping[str, Float64],
    clusters: NDArray[np.int32],
    config: RunConfig,
    temperature: float | None = None,
    pooled_noise: bool = True,
) -> Told:
    """Re-weight the clusters by a round's scores, unless these are noise.

    Parameters
    ----------
    weights
        float64 (K,), of this round.
    columns
        What is known of each scored row, float64 (B,): ``score``, and both losses where a scorer
        measured them (`pyids.scoring.statistics`).
    clusters
        int32 (B,).
    config
        Says how (``weight_update``, ``min_weight``, ``temperature``).
    temperature
        What the scorer wants where the configuration names none.
    pooled_noise
        See `update_weights`.
    """
    means, counts, variances = cluster_moments(columns["score"], clusters, len(weights))
    if config.temperature is not None or config.weight_update in ("linear", "none"):
        temperature = config.temperature
    update = update_weights(
        weights,
        means,
        counts,
        variances=variances,
        rule=config.weight_update,
        temperature=temperature,
        min_weight=config.min_weight,
        pooled_noise=pooled_noise,
    )
    learnt, differs = paired_t(columns), between_cluster_z(columns, clusters)
    is_noise = not_significant(learnt, differs)
    summary = {
        "scored_rows": len(clusters),
        "temperature": temperature,
        "pooled_noise": pooled_noise,
        "scored_clusters": int(np.count_nonzero(counts)),
        "paired_t": learnt,
        "between_cluster_z": differs,
        "weights_changed": not is_noise,
        "shrinkage": update.shrinkage.tolist(),
        "cluster_scores": update.shrunk_scores.tolist(),
    }
    return Told(weights if is_noise else update.weights, summary)
