"""Round scorers for a target: how much each cluster's rows help on rows that show what is wanted.

Three measures that know different things. The embedding knows what a row is about, the gradient
which way it moves the model, and the loss of a target row with the row before it what the model
takes from the one for the other, in one forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pyids._typing import Float64
from pyids.chat.template import Conversation, last_response, with_turns
from pyids.errors import ConfigError
from pyids.scoring.probes import Probes, Scores
from pyids.scoring.statistics import cluster_moments, robust_spread

# A measure counts for at most so many deviations: one must not drown the others.
_LIMIT = 4.0


def target_embedding(probes: Probes) -> Scores:
    """Return each row's mean cosine to the target rows nearest to it."""
    if probes.options.target_cosines is None:
        raise ConfigError(
            "the scorer target-embedding has no vectors of pool and target: use another here"
        )
    return Scores(probes.options.target_cosines)


def target_gradient(probes: Probes) -> Scores:
    """Return the cosine of each row's gradient and the mean gradient of the target's rows.

    Under the checkpoint. Row gradients have unit length; each task counts once in the mean. Kin:
    LESS (arXiv 2402.04333).
    """
    target, tasks = _target(probes), probes.options.target_tasks
    both = probes.gradients([*target, *probes.rows]).astype(np.float64)
    wanted, gradients = both[: len(target)], both[len(target) :]
    names = {task: n for n, task in enumerate(dict.fromkeys(tasks))}
    of_task = np.array([names[task] for task in tasks])
    means = np.stack([wanted[of_task == n].mean(axis=0) for n in range(len(names))])
    mean = means.mean(axis=0)
    length = np.linalg.norm(mean)
    learnt = gradients.any(axis=1)
    cosine = gradients @ mean / max(float(length), 1e-30)
    return Scores(np.where(learnt & (length > 0), cosine, np.nan))


def target_influence(probes: Probes) -> Scores:
    """Return by how much a row, read before a target row, lowers the loss of its last answer.

    ``L(y_t | x_t) - L(y_t | x, y, x_t)`` in nats a token under the checkpoint, as a share of the
    first. Each probe row is read before one target row; they take turns inside a cluster, so that a
    cluster's mean is over several. Where both are too long together, what stands first is cut.
    Kin: For-Value (arXiv 2508.10180).
    """
    target = _target(probes)
    alone = probes.encoded_nll([last_response(row) for row in probes.encode(target)])
    turn = _places(probes.clusters) + probes.clusters.astype(np.int64)
    of = turn % len(target)
    both = [_before(row, target[t]) for row, t in zip(probes.rows, of.tolist(), strict=True)]
    told = probes.encoded_nll([last_response(row) for row in probes.encode(both)])
    return Scores((alone[of] - told) / np.maximum(alone[of], 1e-6))


def target(probes: Probes) -> Scores:
    """Return the mean of the three measures, each in deviations over the clusters.

    A measure's deviations are those of a row from the median cluster, in robust standard
    deviations of the clusters' means, at most `_LIMIT` either way; a row that has not all three
    counts by those that it has.
    """
    parts = {
        "target_embedding": target_embedding(probes).values,
        "target_gradient": target_gradient(probes).values,
        "target_influence": target_influence(probes).values,
    }
    together = np.stack([deviations(values, probes.clusters) for values in parts.values()])
    known = np.isfinite(together)
    total = np.where(known, together, 0).sum(axis=0)
    values = np.where(known.any(axis=0), total / np.maximum(known.sum(axis=0), 1), np.nan)
    return Scores(values, parts, temperature=1.0)


def deviations(values: Float64, clusters: NDArray[np.int32]) -> Float64:
    """Return rows as robust standard deviations of cluster means from the median one; NaN stays."""
    known = np.isfinite(values)
    _, cluster = np.unique(clusters, return_inverse=True)
    size = int(cluster.max(initial=-1)) + 1
    means = cluster_moments(values[known], cluster[known].astype(np.int32), size)[0]
    there = means[np.isfinite(means)]
    if not len(there):
        return np.full(len(values), np.nan)
    median = np.median(there)
    spread = robust_spread(there - median)
    scaled = (values - median) / spread if spread > 0 else np.where(known, 0.0, np.nan)
    return np.clip(scaled, -_LIMIT, _LIMIT)


def _target(probes: Probes) -> Sequence[Conversation]:
    if not probes.options.target:
        raise ConfigError("this scorer needs rows of what the model is to learn: name --target")
    return probes.options.target


def _before(row: Conversation, target: Conversation) -> Conversation:
    """Put a row's turns before the target's, behind the target's system prompt."""
    systems = [m for m in target if m["role"] in ("system", "developer")]
    turns = [m for m in (*row, *target) if m["role"] not in ("system", "developer")]
    return with_turns(target, [*systems, *turns])


def _places(clusters: NDArray[np.int32]) -> NDArray[np.int64]:
    """Return the place of each row among those of its cluster."""
    order = np.argsort(clusters, kind="stable")
    _, first, counts = np.unique(clusters[order], return_index=True, return_counts=True)
    places = np.empty(len(clusters), np.int64)
    places[order] = np.arange(len(clusters)) - np.repeat(first, counts)
    return places
