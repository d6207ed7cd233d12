"""The specification: every op as slow float64 NumPy.

Each implementation (C++, Triton, torch) is tested against these. They are written to be read, not
to be fast, and they check nothing: `pyids.ops` validates.
"""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import xxhash
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

# ---- pooling -------------------------------------------------------------------------------------


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


def pool_packed(
    hidden: NDArray[np.floating],
    cu_seqlens: NDArray[np.integer],
    *,
    mode: str = "mean",
    normalize: bool = True,
) -> Float64:
    """`pool` of sequences that lie end to end: rows cu_seqlens[b] to cu_seqlens[b + 1] are b's."""
    rows = [_pool_one(hidden[lo:hi], mode, normalize) for lo, hi in pairwise(cu_seqlens)]
    return np.stack(rows) if rows else np.zeros((0, hidden.shape[1]))


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


# ---- k-means: one step ---------------------------------------------------------------------------


def squared_distances(x: NDArray[np.floating], centers: NDArray[np.floating]) -> Float64:
    """|x_i - c_j|^2 for every pair, (N, K), as the sum of squared differences: no cancellation."""
    c = centers.astype(np.float64)
    rows = [((row - c) ** 2).sum(axis=1) for row in x.astype(np.float64)]
    return np.stack(rows) if rows else np.zeros((0, len(c)))


def assign(
    x: NDArray[np.floating], centers: NDArray[np.floating]
) -> tuple[NDArray[np.int32], Float64]:
    """Nearest center of each point and the squared distance to it; ties go to the lowest index."""
    distances = squared_distances(x, centers)
    labels = distances.argmin(axis=1).astype(np.int32)
    return labels, np.take_along_axis(distances, labels[:, None], axis=1)[:, 0]


def update(
    x: NDArray[np.floating],
    labels: NDArray[np.integer],
    n_clusters: int,
    *,
    sample_weight: NDArray[np.floating] | None = None,
    centers: NDArray[np.floating] | None = None,
) -> tuple[Float64, Float64, Float64]:
    """Weighted sum (K, D), weight (K,) and inertia (K,) of each cluster.

    The inertia is taken about `centers`, or about the clusters' own means.
    """
    points = x.astype(np.float64)
    weights = np.ones(len(x)) if sample_weight is None else sample_weight.astype(np.float64)
    sums = np.zeros((n_clusters, x.shape[1]))
    counts, inertia = np.zeros(n_clusters), np.zeros(n_clusters)
    for j in range(n_clusters):
        own, w = points[labels == j], weights[labels == j]
        sums[j], counts[j] = w @ own, w.sum()
        about = sums[j] / max(counts[j], 1e-300) if centers is None else centers[j]
        inertia[j] = w @ ((own - about) ** 2).sum(axis=1)
    return sums, counts, inertia


# ---- k-means: the whole fit ----------------------------------------------------------------------


def lloyd(
    x: NDArray[np.floating], centers: NDArray[np.floating], n_iter: int
) -> tuple[Float64, NDArray[np.int32]]:
    """Centers after `n_iter` iterations and the labels that belong to them.

    A cluster that loses all its points keeps its center; `pyids.clustering.kmeans` re-seeds it.
    """
    c = centers.astype(np.float64)
    for _ in range(n_iter):
        sums, counts, _ = update(x, assign(x, c)[0], len(c))
        c = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], c)
    return c, assign(x, c)[0]


def nearest_centers(
    x: NDArray[np.floating], centers: NDArray[np.floating], count: int
) -> tuple[NDArray[np.int32], Float64]:
    """Each point's nearest centers, nearest first, and the squared distances to them."""
    distances = squared_distances(x, centers)
    order = np.argsort(distances, axis=1, kind="stable")[:, :count]
    return order.astype(np.int32), np.take_along_axis(distances, order, axis=1)


# ---- loss ----------------------------------------------------------------------------------------


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


# ---- sampling ------------------------------------------------------------------------------------


def cluster_nll(
    example_mean: NDArray[np.floating],
    labels: NDArray[np.integer],
    n_clusters: int,
    *,
    example_count: NDArray[np.integer] | None = None,
) -> tuple[Float64, NDArray[np.int64]]:
    """Sum of the examples' means and their number, by cluster; empty examples are left out."""
    scored = np.ones(len(labels), dtype=bool) if example_count is None else example_count > 0
    total, count = np.zeros(n_clusters), np.zeros(n_clusters, dtype=np.int64)
    np.add.at(total, labels[scored], example_mean[scored])
    np.add.at(count, labels[scored], 1)
    return total, count


# ---- sampling ------------------------------------------------------------------------------------


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


def philox(
    counter: tuple[int, int, int, int], key: tuple[int, int], rounds: int = 10
) -> tuple[int, int, int, int]:
    """Philox-4x32-10 (Salmon et al. 2011): the block of four random 32-bit words of `counter`."""
    a, b, c, d = counter
    k, m = key
    for _ in range(rounds):
        p, q = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (q >> 32) ^ b ^ k, q % 2**32, (p >> 32) ^ d ^ m, p % 2**32
        k, m = (k + 0x9E3779B9) % 2**32, (m + 0xBB67AE85) % 2**32
    return a, b, c, d


def random_bits(seed: int, stream: int, row_id: int) -> int:
    """64 random bits: the first half of the block of (row id, stream) under the key `seed`."""
    row_id %= 2**64
    counter = (row_id % 2**32, row_id >> 32, stream % 2**32, stream >> 32)
    low, high, _, _ = philox(counter, (seed % 2**32, seed >> 32))
    return low + (high << 32)


def uniform(bits: int) -> float:
    """Uniform in (0, 1), in steps of 2**-64 near 0."""
    return min(float(bits | 1) * 2.0**-64, 1 - 2.0**-53)


def sample_key(seed: int, row_id: int, log_weight: float) -> Fraction:
    """Log weight plus standard Gumbel noise, exactly added."""
    exponential = -math.log1p(-uniform(random_bits(seed, 1 << 32, row_id)))
    return Fraction(log_weight) + Fraction(-math.log(exponential))


def sample_by_cluster(
    labels: NDArray[np.int32],
    quotas: NDArray[np.int64],
    log_weights: Float64,
    row_ids: NDArray[np.int64],
    seed: int,
) -> NDArray[np.int64]:
    """Draw the `quotas[c]` rows of each cluster with the largest keys, lower row id on ties."""
    drawn: list[int] = []
    for cluster, quota in enumerate(quotas):
        rows = [i for i in np.flatnonzero(labels == cluster) if log_weights[i] > -np.inf]
        order = sorted(
            rows,
            key=lambda i: (-sample_key(seed, int(row_ids[i]), float(log_weights[i])), row_ids[i]),
        )
        drawn += [int(row_ids[i]) for i in order[:quota]]
    return np.array(sorted(drawn), np.int64)


def allocate(
    budget: int, shares: Float64, capacity: NDArray[np.int64], seed: int | None = None
) -> NDArray[np.int64]:
    """Largest remainder, or systematic sampling of the remainders; shares of zero come last."""
    quotas = np.zeros(len(shares), np.int64)
    largest = Fraction(float(shares.max(initial=0)))
    # Shares count in steps of 2**-53 of the largest, at least one step if positive.
    steps = [max(1, round(Fraction(float(s)) / largest * 2**53)) if s > 0 else 0 for s in shares]
    for weights, group in (
        (steps, [j for j, s in enumerate(shares) if s > 0]),
        (capacity.tolist(), [j for j, s in enumerate(shares) if s == 0]),
    ):
        left = budget - int(quotas.sum())
        if left >= sum(int(capacity[j]) for j in group):
            quotas[group] = capacity[group]
            continue
        parts = {j: Fraction(0) for j in group}
        filled: set[int] = set()
        while True:  # water-filling: those above their capacity give back what they cannot take
            rest = left - sum(int(capacity[j]) for j in filled)
            total = sum(weights[j] for j in group if j not in filled)
            for j in group:
                full = j in filled or capacity[j] == 0
                parts[j] = (
                    Fraction(int(capacity[j])) if full else Fraction(rest * weights[j], total)
                )
            above = {j for j in group if j not in filled and parts[j] >= capacity[j]}
            if not above:
                break
            filled |= above
        for j in group:
            quotas[j] = math.floor(parts[j])
        if seed is not None:
            start = Fraction(_name_hash(-1, seed), 2**64)
            end = Fraction(0)
            for j in sorted(group, key=lambda j: _name_hash(j, seed)):
                begin, end = end, end + parts[j] % 1
                quotas[j] += math.ceil(end - start) - math.ceil(begin - start)
            continue
        by_remainder = sorted(group, key=lambda j: (-(parts[j] % 1), j))
        for j in by_remainder[: left - int(quotas[group].sum())]:
            quotas[j] += 1
    return quotas


def _name_hash(name: int, seed: int) -> int:
    return xxhash.xxh3_64_intdigest(name.to_bytes(8, "little", signed=True), seed)


# ---- weights -------------------------------------------------------------------------------------


def shrink_scores(scores: Float64, counts: NDArray[np.int64], shrinkage: float) -> Float64:
    """Posterior means of cluster scores that rest on `counts` rows; NaN (unscored) -> their mean.

    The prior's mean is worth `shrinkage` rows.
    """
    scored = [j for j in range(len(scores)) if counts[j] > 0]
    precision = {j: counts[j] / (counts[j] + shrinkage) for j in scored}
    mean = sum(precision[j] * scores[j] for j in scored) / sum(precision.values())
    return np.array(
        [
            mean + precision[j] * (scores[j] - mean) if j in precision else mean
            for j in range(len(scores))
        ]
    )


def estimate_shrinkage(scores: Float64, counts: NDArray[np.int64], variances: Float64) -> float:
    """Noise variance over signal variance, by the one-way analysis of variance."""
    scored = [j for j in range(len(scores)) if counts[j] > 0]
    several = [j for j in scored if counts[j] >= 2]
    n = sum(counts[j] for j in scored)
    noise = sum((counts[j] - 1) * variances[j] for j in several)
    noise /= sum(counts[j] - 1 for j in several)
    mean = sum(counts[j] * scores[j] for j in scored) / n
    between = sum(counts[j] * (scores[j] - mean) ** 2 for j in scored)
    signal = (between - (len(scored) - 1) * noise) / (n - sum(counts[j] ** 2 for j in scored) / n)
    return noise / signal if signal > 0 else math.inf


def reweight(
    weights: Float64, gains: Float64, scored: NDArray[np.bool_], min_weight: float
) -> Float64:
    """Multiply the scored clusters' weights by `gains`, keeping their sum and the min_weight.

    `weights` respect the min_weight already.
    """
    new = weights.copy()
    mass = weights[scored].sum()
    least = min_weight / len(weights)
    lifted = np.zeros(len(weights), bool)
    while True:
        free = scored & ~lifted
        scale = (mass - least * lifted.sum()) / (weights * gains)[free].sum()
        new[free] = scale * (weights * gains)[free]
        if not (new[free] < least).any():
            return new
        lifted |= free & (new < least)
        new[lifted] = least


# ---- selection -----------------------------------------------------------------------------------


def unit_rows(x: Float64) -> Float64:
    """Rows over their lengths; all-zero rows stay."""
    lengths = np.linalg.norm(x, axis=1, keepdims=True)
    units: Float64 = np.divide(x, lengths, out=np.zeros_like(x), where=lengths > 0)
    return units


def farthest_first(x: Float64, budget: int, first: int) -> NDArray[np.int64]:
    """Pick the row whose nearest pick is farthest, lowest row on ties."""
    picks = [first]
    while len(picks) < budget:
        nearest = np.linalg.norm(x[:, None] - x[picks], axis=2).min(axis=1)
        nearest[picks] = -1
        picks.append(int(nearest.argmax()))
    return np.array(picks)


def facility_location_value(x: Float64, rows: NDArray[np.int64]) -> float:
    """Mean over all rows of the largest cosine to one of `rows`, negative ones as 0."""
    unit = unit_rows(x)
    return float(np.maximum(unit @ unit[rows].T, 0).max(axis=1).mean())


def facility_location(x: Float64, budget: int, quality: Float64, alpha: float) -> NDArray[np.int64]:
    """Plain greedy for ``(1 - alpha) * facility_location_value + alpha / budget * sum quality``."""
    unit = unit_rows(x)
    similarity = np.clip(np.rint(np.maximum(unit @ unit.T, 0) * 2**20), 0, 2**20) / 2**20
    best = np.zeros(len(x))
    picks: list[int] = []
    while len(picks) < budget:
        coverage = np.maximum(similarity - best[:, None], 0).mean(axis=0)
        gains = (1 - alpha) * coverage + alpha / budget * quality
        gains[picks] = -1
        picks.append(int(gains.argmax()))
        best = np.maximum(best, similarity[:, picks[-1]])
    return np.array(picks)


def filter_near(
    x: Float64, order: NDArray[np.int64], budget: int, threshold: float
) -> NDArray[np.int64]:
    """Keep each row of `order` unless its cosine to a kept one exceeds the threshold."""
    unit = unit_rows(x)
    kept: list[int] = []
    for row in order.tolist():
        if len(kept) < budget and not (unit[kept] @ unit[row] > threshold).any():
            kept.append(row)
    return np.array(kept, np.int64)


def near_duplicates(x: Float64, threshold: float) -> NDArray[np.int64]:
    """For each row the first kept row of cosine >= threshold before it; itself, and kept, if none.

    An all-zero row is near nothing.
    """
    unit = unit_rows(x)
    repeats: list[int] = []
    for row in range(len(x)):
        near = [i for i in range(row) if repeats[i] == i and unit[i] @ unit[row] >= threshold]
        repeats.append(near[0] if near else row)
    return np.array(repeats, np.int64)


def neighbor_distances(x: Float64, n_neighbors: int, reference: NDArray[np.int64]) -> Float64:
    """Sum of 1 - cosine to the nearest rows of `reference` other than the row itself."""
    unit = unit_rows(x)
    sums = np.empty(len(x))
    for i in range(len(x)):
        others = reference[reference != i]
        sums[i] = np.sort(1 - unit[others] @ unit[i])[:n_neighbors].sum()
    return sums


def novel_select(
    x: Float64, budget: int, first: int, weights: Float64, proximity: float
) -> NDArray[np.int64]:
    """Pick the row of largest ``sum_y weights[y] * (1 - cos(x, y)) / rank(y)^proximity``."""
    unit = unit_rows(x)
    picks = [first]
    while len(picks) < budget:
        distances = np.maximum(0, 1 - unit @ unit[picks].T)
        order = np.argsort(distances, axis=1, kind="stable")
        values = np.take_along_axis(distances * weights[picks], order, axis=1)
        novelty = values @ (1 / np.arange(1.0, len(picks) + 1) ** proximity)
        novelty[picks] = -np.inf
        picks.append(int(novelty.argmax()))
    return np.array(picks)


def round_robin(x: Float64, targets: Float64, tasks: list[str], budget: int) -> NDArray[np.int64]:
    """Tasks in turn, inside a task its target rows in turn: take the free row of largest cosine.

    Ties go to the lowest row. Cosines are sums of products, pair by pair.
    """
    unit, target = (v / np.sqrt((v * v).sum(axis=1, keepdims=True)) for v in (x, targets))
    groups = [[q for q in range(len(tasks)) if tasks[q] == t] for t in dict.fromkeys(tasks)]
    picks: list[int] = []
    for turn in range(budget):
        group = groups[turn % len(groups)]
        q = group[turn // len(groups) % len(group)]
        cosine = (unit * target[q]).sum(axis=1)
        cosine[picks] = -np.inf
        picks.append(int(cosine.argmax()))
    return np.array(picks)


def whiten(x: Float64, others: Float64, components: int) -> Float64:
    """``L^(-1/2) U^T (v - m)`` of others' unit rows, by the unit rows of x."""
    unit = unit_rows(x)
    variances, directions = np.linalg.eigh(np.cov(unit.T, bias=True))
    order = np.argsort(-variances)[:components]
    scale = directions[:, order] / np.sqrt(variances[order])
    whitened: Float64 = (unit_rows(others) - unit.mean(axis=0)) @ scale
    return whitened


def label_vectors(x: Float64, centroids: Float64, nearest: int, threshold: float) -> Float64:
    """Label vectors ``A e_x`` (N, K): soft labels of the nearest centroids, joined by cosine."""
    cosines = unit_rows(x) @ unit_rows(centroids).T
    labels = np.zeros_like(cosines)
    for row, cosine in zip(labels, cosines, strict=True):
        near = np.argsort(-cosine, kind="stable")[:nearest]
        row[near] = np.maximum(cosine[near], 0) / np.maximum(cosine[near], 0).sum()
    graph = unit_rows(centroids) @ unit_rows(centroids).T
    graph = np.where(graph >= threshold, graph, 0)
    np.fill_diagonal(graph, 1)
    joined: Float64 = labels @ (graph / graph.sum(axis=0)).T
    return joined


def information(vectors: Float64) -> float:
    """``sum_l (z_l + 1e-6)^0.8`` of the sum z of label vectors (n, K)."""
    return float(((vectors.sum(axis=0) + 1e-6) ** 0.8).sum())


def maximize_information(vectors: NDArray[np.int64], budget: int) -> NDArray[np.int64]:
    """Plain greedy on `information` of vectors in units of 2**-20, phi rounded to 2**-30."""

    def phi(z: NDArray[np.int64]) -> NDArray[np.int64]:
        rounded: NDArray[np.int64] = np.rint(2.0**30 * (z * 2.0**-20 + 1e-6) ** 0.8).astype(int)
        return rounded

    covered = np.zeros(vectors.shape[1], np.int64)
    picks: list[int] = []
    for _ in range(budget):
        gains = (phi(covered + vectors) - phi(covered)).sum(axis=1)
        gains[picks] = -1
        picks.append(int(gains.argmax()))
        covered += vectors[picks[-1]]
    return np.array(picks)
