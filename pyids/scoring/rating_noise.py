"""Ratings are noisy: how noisy, and which ones, by the agreement of neighbors (DS2).

Rows whose vectors are alike deserve like ratings. From how often a row and its two nearest
neighbors are rated alike follows, without any true rating, how often each true rating is misread;
and from that and the neighbors' ratings, which ratings are improbable.

References
----------
Pang et al., "Improving Data Efficiency via Curating LLM-Driven Rating Systems" (DS2), arXiv
2410.10877; Zhu et al., "Clusterability as an Alternative to Anchor Points", arXiv 2102.05291.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyids._typing import Float64, Int64
from pyids.nearest import nearest, unit_rows
from pyids.neighbors import take_rows

_STEPS, _SETTLED = 500, 1e-9
# Queries that are compared with their cluster at a time.
_QUERIES = 256


class Noise(NamedTuple):
    """How ratings come about.

    Attributes
    ----------
    prior : float64 (C,)
        Share of each true rating.
    transition : float64 (C, C)
        ``transition[a, b] = P(rated b | true a)``; rows sum to 1.
    """

    prior: Float64
    transition: Float64


def estimate_noise(triples: Int64, n_ratings: int) -> Noise:
    """Estimate noise from rows and their neighbors, all three of one true rating.

    The most likely prior and transition under ``P(a, b, c) = sum_t prior[t] T[t, a] T[t, b] T[t,
    c]``, by expectation maximization from a transition that is right four times in five. A rating
    is more often right than read as any one other, or the true ratings could not be told apart.

    Parameters
    ----------
    triples : int64 (n, 3)
        Ratings in [0, C) of a row and of its two nearest neighbors.
    n_ratings : int
        C.
    """
    places = np.ravel_multi_index(tuple(triples.T), (n_ratings,) * 3)
    counts = np.bincount(places, minlength=n_ratings**3).astype(np.float64)
    seen = np.flatnonzero(counts)
    a, b, c = np.unravel_index(seen, (n_ratings,) * 3)
    counts = counts[seen] / counts.sum()
    prior = np.full(n_ratings, 1 / n_ratings)
    transition = np.full((n_ratings, n_ratings), 0.2 / max(1, n_ratings - 1))
    np.fill_diagonal(transition, 0.8)
    for _ in range(_STEPS):
        joint = prior[:, None] * transition[:, a] * transition[:, b] * transition[:, c]
        share = counts * joint / np.maximum(joint.sum(axis=0), 1e-300)
        before = transition
        prior = share.sum(axis=1)
        transition = np.zeros_like(before)
        for view in (a, b, c):
            np.add.at(transition.T, view, share.T)
        sums = transition.sum(axis=1, keepdims=True)
        transition = np.divide(transition, sums, out=before.copy(), where=sums > 1e-12)
        if np.abs(transition - before).max() < _SETTLED:
            break
    return Noise(prior, transition)


def correct(triples: Int64, noise: Noise, confidence: float = 0.5) -> Int64:
    """Replace ratings that are improbable beside their neighbors'.

    Parameters
    ----------
    triples : int64 (n, 3)
        As for `estimate_noise`.
    noise : Noise
    confidence : float
        A rating is replaced by the most probable true one where that has a probability above this
        and is another.

    Returns
    -------
    int64 (n,)
        Ratings of the rows.
    """
    with np.errstate(divide="ignore"):
        logs, prior = np.log(noise.transition), np.log(noise.prior)
    scores = prior[None] + logs[:, triples].sum(axis=2).T  # (n, C)
    best = scores.max(axis=1, keepdims=True)
    known = np.isfinite(best[:, 0])
    odds = np.exp(np.where(np.isfinite(best), scores - best, 0))
    probable = odds.max(axis=1) / odds.sum(axis=1)
    replaced = known & (probable > confidence)
    return np.where(replaced, scores.argmax(axis=1), triples[:, 0])


def correct_ratings(
    ratings: Float64, shards: Sequence[NDArray[Any]], labels: NDArray[np.int32]
) -> Float64:
    """Correct ratings by the two nearest neighbors of each row in its cluster.

    Parameters
    ----------
    ratings : float64 (N,)
        Rounded to whole ones; at most 32 different.
    shards : (N, D) in shards
    labels : int32 (N,)

    Returns
    -------
    float64 (N,)
        Whole where they were replaced; rows of clusters of fewer than three keep theirs.

    Raises
    ------
    ValueError
        There are more than 32 ratings: a quality on a fine scale has no noise of this kind.
    """
    values, level = np.unique(np.rint(ratings), return_inverse=True)
    if len(values) > 32:
        raise ValueError(f"{len(values)} different ratings: at most 32 can be corrected")
    neighbors = cluster_neighbors(shards, labels)
    rows = np.flatnonzero(neighbors[:, 1] >= 0)
    if not len(rows) or len(values) < 2:
        return ratings
    triples = np.column_stack([level[rows], level[neighbors[rows]]])
    fixed = correct(triples, estimate_noise(triples, len(values)))
    out = ratings.copy()
    changed = fixed != level[rows]
    out[rows[changed]] = values[fixed[changed]]
    return out


def cluster_neighbors(shards: Sequence[NDArray[Any]], labels: NDArray[np.int32]) -> Int64:
    """Find the two nearest rows of each row in its cluster, int64 (N, 2); -1 where it has fewer."""
    found = np.full((len(labels), 2), -1, np.int64)
    order = np.argsort(labels, kind="stable")
    ends = np.cumsum(np.bincount(labels))
    for members in np.split(order, ends[:-1]):
        if len(members) < 3:
            continue
        vectors = take_rows(shards, members)
        units = unit_rows(vectors.astype(np.float64))
        for at in range(0, len(members), _QUERIES):
            lists, _ = nearest([vectors], units[at : at + _QUERIES], 3)
            for place, near in enumerate(lists, at):
                found[members[place]] = members[near[near != place][:2]]
    return found
