"""How far the scores of clusters are drawn towards their mean: empirical Bayes estimates.

A cluster's score is a signal, of some variance over the clusters, and noise. Both functions take
the scores ``s`` of J clusters, the counts ``n`` of the rows that they rest on, and the variances
``v`` of these rows' values, float64 (J,), ``v`` only read where ``n >= 2``; they return the mean
that scores are drawn to, the share ``b`` of the way, float64 (J,) in [0, 1], and the variance of
the signal.
"""

from __future__ import annotations

import numpy as np

from pyids._typing import Float64

# Variances below this share of their median are raised to it, as their logarithms are looked at; no
# variance is larger than the second (squares of it are finite).
_LEAST, _LARGEST = 1e-5, 1e100


def by_pooled_noise(
    s: Float64, n: Float64, v: Float64 | None, shrinkage: float | None
) -> tuple[float, Float64, float]:
    """Shrink by one noise of all rows: ``b[j] = shrinkage / (shrinkage + n[j])``.

    `shrinkage` is noise variance over signal variance; None: by the analysis of variance.
    """
    if shrinkage is None:
        shrinkage = _estimate_shrinkage(s, n, v)
    if np.isinf(shrinkage):
        return float(np.average(s, weights=n)), np.ones(len(s)), 0.0
    # The precision of s[j] as an estimate of the mean is n (1 - b) / shrinkage up to a constant.
    mean = float(np.average(s, weights=n / (n + shrinkage)))
    signal = float(s.var() / (1 + shrinkage * (1 / n).mean()))
    return mean, shrinkage / (shrinkage + n), signal


def by_own_noise(s: Float64, n: Float64, v: Float64) -> tuple[float, Float64, float]:
    """Shrink each score by the noise of its own cluster: ``b[j] = e[j] / (e[j] + signal)``.

    ``e[j] = v'[j] / n[j]``, where ``v'`` is `moderated`: between what the cluster's rows show, and
    what is usual. The signal's variance is Paule and Mandel's: that under which the scores lie as
    far from their weighted mean as they should,
    ``sum((s - mean)^2 / (e + signal)) = J - 1``; 0 if they lie nearer.
    """
    e = moderated(v, n) / n
    if not e.any():
        return float(s.mean()), np.zeros(len(s)), float(s.var())

    def excess(signal: float) -> float:
        weights = 1 / (e + signal)
        return float(weights @ (s - np.average(s, weights=weights)) ** 2) - (len(s) - 1)

    # `excess` falls as the signal grows, and at the variance of the scores it is 0 at most.
    low, high = 0.0, float(((s - s.mean()) ** 2).sum()) / max(len(s) - 1, 1)
    if excess(low) <= 0:
        high = 0.0
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    mean = float(np.average(s, weights=1 / (e + high)))
    return mean, e / (e + high), high


def moderated(v: Float64, n: Float64) -> Float64:
    """Return variances drawn to what is usual, the more the more alike they are.

    ``(d v + d0 s0) / (d + d0)`` with ``d = n - 1``. The variance of a cluster is taken for a draw
    from a scaled inverse chi-squared distribution with d0 degrees of freedom around s0; both follow
    from mean and variance of the logarithms of v. Where clusters are equally noisy d0 is infinite.

    References
    ----------
    Smyth, "Linear models and empirical Bayes methods ...", Stat. Appl. Genet. Mol. Biol. 3, 2004.
    """
    several = n >= 2
    if not several.any() or not v[several].any():
        return np.zeros(len(n))
    d = n[several] - 1
    x = np.minimum(v[several], _LARGEST)
    x = np.maximum(x, _LEAST * (np.median(x) or x.max()))
    logs = np.log(x) - _digamma(d / 2) + np.log(d / 2)
    differ = float(logs.var(ddof=1) - _trigamma(d / 2).mean()) if len(x) > 1 else 0.0
    half = _inverse_trigamma(differ)
    result = np.zeros(len(n))
    result[several] = x
    if np.isinf(half):
        return np.full(len(n), np.exp(logs.mean()))
    usual = np.exp(logs.mean() + _digamma(np.array([half]))[0] - np.log(half))
    return np.asarray(((n - 1) * result + 2 * half * usual) / (n - 1 + 2 * half))


# The first two derivatives of the logarithm of the gamma function, for positive arguments: raised
# by recurrence, then their asymptotic series, whose next term is below 1e-11 there.
_RAISE = 16


def _digamma(x: Float64) -> Float64:
    y = x + _RAISE
    series = np.log(y) - 1 / (2 * y) - 1 / (12 * y**2) + 1 / (120 * y**4) - 1 / (252 * y**6)
    return np.asarray(series - sum(1 / (x + k) for k in range(_RAISE)))


def _trigamma(x: Float64) -> Float64:
    y = x + _RAISE
    series = 1 / y + 1 / (2 * y**2) + 1 / (6 * y**3) - 1 / (30 * y**5) + 1 / (42 * y**7)
    return np.asarray(series + sum(1 / (x + k) ** 2 for k in range(_RAISE)))


def _inverse_trigamma(value: float) -> float:
    """Return the argument of that trigamma, within [1e-4, 1e6]; infinity beyond."""
    low, high = np.log(1e-4), np.log(1e6)
    if value <= _trigamma(np.exp([high]))[0]:
        return float("inf")
    for _ in range(60):  # trigamma falls
        middle = (low + high) / 2
        low, high = (middle, high) if _trigamma(np.exp([middle]))[0] > value else (low, middle)
    return float(np.exp(high))


def _estimate_shrinkage(s: Float64, n: Float64, v: Float64 | None) -> float:
    """Noise variance over signal variance, by the analysis of variance; 1 if it tells nothing."""
    if v is None or not (n >= 2).any() or len(s) < 2:
        return 1.0
    several = n >= 2
    noise = float(np.average(v[several], weights=n[several] - 1))
    total = float(n.sum())
    mean = float(np.average(s, weights=n))
    # E sum n (s - mean)^2 = (J - 1) noise + (total - sum n^2 / total) signal
    between = float((n * (s - mean) ** 2).sum()) - (len(s) - 1) * noise
    signal = between / (total - float((n * n).sum()) / total)
    if noise == 0:
        return 0.0
    return noise / signal if signal > 0 else np.inf
