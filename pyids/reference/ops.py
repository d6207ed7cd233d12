"""Pooling and losses: slow, in float64."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]


def pool(
    hidden: NDArray[np.floating],
    attention_mask: NDArray[np.generic],
    *,
    mode: str = "mean",
    normalize: bool = True,
) -> Float64:
    """One vector a sequence out of padded hidden states (B, T, H) and their mask (B, T)."""
    rows = [
        _pool_one(states[mask.astype(bool)], mode, normalize)
        for states, mask in zip(hidden, attention_mask, strict=True)
    ]
    return np.stack(rows) if rows else np.zeros((0, hidden.shape[2]))


def _pool_one(states: NDArray[np.floating], mode: str, normalize: bool) -> Float64:
    length, width = states.shape
    if length == 0:
        return np.zeros(width)
    x = states.astype(np.float64)
    position = np.arange(1.0, length + 1)
    weights = {
        "mean": np.ones(length),
        "weighted_mean": position,
        "last_token": (position == length).astype(np.float64),
        "cls": (position == 1).astype(np.float64),
    }[mode]
    kept = weights > 0
    vector: Float64 = weights[kept] @ x[kept] / weights.sum()
    norm = np.linalg.norm(vector)
    if normalize and norm > 0:
        vector /= norm
    return vector


def token_nll(
    hidden: NDArray[np.floating],
    lm_head: NDArray[np.floating],
    targets: NDArray[np.integer],
    *,
    bias: NDArray[np.floating] | None = None,
    softcap: float | None = None,
    ignore_index: int = -100,
) -> Float64:
    """-log softmax(hidden @ lm_head.T + bias)[target] of each token; 0 where it is ignored."""
    logits = hidden.astype(np.float64) @ lm_head.astype(np.float64).T
    if bias is not None:
        logits += bias
    if softcap is not None:
        logits = softcap * np.tanh(logits / softcap)
    kept = np.flatnonzero(targets != ignore_index)
    nll = np.zeros(len(targets))
    top = logits[kept].max(axis=1, keepdims=True)
    normalizer = top[:, 0] + np.log(np.exp(logits[kept] - top).sum(axis=1))
    nll[kept] = normalizer - logits[kept, targets[kept]]
    return nll


def example_nll(
    token_nll: NDArray[np.floating],
    targets: NDArray[np.integer],
    cu_seqlens: NDArray[np.integer],
    ignore_index: int = -100,
) -> tuple[Float64, NDArray[np.int64]]:
    """Mean over each example's tokens that count, and how many there are; 0 where none does."""
    mean, count = [], []
    for lo, hi in pairwise(cu_seqlens):
        own = token_nll[lo:hi][targets[lo:hi] != ignore_index].astype(np.float64)
        mean.append(own.mean() if len(own) else 0.0)
        count.append(len(own))
    return np.array(mean), np.array(count, dtype=np.int64)


def mean_of_tokens(
    vectors: NDArray[np.floating],
    ids: list[list[int]],
    *,
    limit: int | None = None,
    unknown: int | None = None,
    normalize: bool = False,
) -> Float64:
    """Mean vector of each text's first `limit` tokens, less unknown ones; zeros without any."""
    means = np.zeros((len(ids), vectors.shape[1]))
    for mean, text in zip(means, ids, strict=True):
        if known := [token for token in text[:limit] if token != unknown]:
            mean[:] = vectors[known].astype(np.float64).mean(axis=0)
            if normalize:
                mean /= max(float(np.linalg.norm(mean)), 1e-12)
    return means


def cluster_moments(
    values: NDArray[np.floating], clusters: NDArray[np.integer], n_clusters: int
) -> tuple[NDArray[np.int64], Float64, Float64, float]:
    """Count, sum of d = v - c and sum of d^2 by cluster; c half way between least and most.

    With e such that |d| <= 2^e, d / 2^e and its square are summed as integers in two limbs,
    multiples of 2^-31 and of 2^-62: exactly, in any order.
    """
    count = np.bincount(clusters, minlength=n_clusters)
    if not len(values):
        return count, np.zeros(n_clusters), np.zeros(n_clusters), 0.0
    values = np.asarray(values, np.float64)
    center = float(values.min()) / 2 + float(values.max()) / 2
    deviations = values - center
    exponent = math.frexp(float(np.abs(deviations).max()))[1]
    scaled = np.ldexp(deviations, -exponent)
    sums = []
    for parts, scale in ((scaled, exponent), (scaled**2, 2 * exponent)):
        high = np.rint(parts * 2.0**31)
        low = np.rint((parts * 2.0**31 - high) * 2.0**31)
        limbs = np.zeros((2, n_clusters), np.int64)
        np.add.at(limbs[0], clusters, high.astype(np.int64))
        np.add.at(limbs[1], clusters, low.astype(np.int64))
        whole, rest = limbs.astype(np.float64)
        with np.errstate(over="ignore"):
            sums.append(np.ldexp((whole + rest / 2.0**31) / 2.0**31, scale))
    return count, sums[0], sums[1], center
