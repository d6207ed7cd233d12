"""The counter-based generator, draws by cluster, and shares of a budget."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import xxhash
from numpy.typing import NDArray

Float64 = NDArray[np.float64]


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
