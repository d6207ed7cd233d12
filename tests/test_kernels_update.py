"""The update of the centers: kernels against the float64 definition (see kernel_cases.py)."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from kernel_cases import DEVICE, points, reference, rng, sums_of, tensor, update, wide


@pytest.mark.parametrize(("n", "k", "d"), [(507, 123, 37), (252, 5, 130), (3, 7, 1), (0, 3, 4)])
@pytest.mark.parametrize("weighted", [False, True])
def test_update_is_the_definition(n, k, d, weighted):
    x, labels = points("common mean", n, d), rng(1).integers(0, k, n).astype(np.int32)
    weights = rng(2).random(n).astype(np.float32) if weighted else None
    held = None if weights is None else tensor(weights)
    got = sums_of(tensor(x), tensor(labels, torch.int32), k, held)
    want = reference.update(x, labels, k, sample_weight=weights)
    for g, w in zip(got, want[:2], strict=True):
        np.testing.assert_allclose(wide(g), w, rtol=1e-12, atol=1e-12)


def integer_sums(x, labels, weights, scale, k):
    total = update.Sums.zeros(k, x.shape[1], x.device)
    update.add_rows(x, labels, weights, scale, total)
    return total


@pytest.mark.parametrize("weighted", [False, True])
def test_update_gives_the_same_bits_in_any_order_and_grouping(weighted):
    n, k, d = 400, 9, 45
    x = tensor(points("massive dimension", n, d))
    labels = tensor(rng(1).integers(0, k, n), torch.int32)
    weights = tensor(rng(2).random(n), torch.float64) if weighted else None
    scale = update.FixedScale.of(update.largest_values(x), 1.0, n)
    whole = integer_sums(x, labels, weights, scale, k)
    order = torch.from_numpy(rng(3).permutation(n)).to(DEVICE)

    def pick(rows):
        return None if weights is None else weights[rows]

    shuffled = integer_sums(x[order], labels[order], pick(order), scale, k)
    assert torch.equal(whole.sums, shuffled.sums)
    assert torch.equal(whole.mass, shuffled.mass)
    parts = update.Sums.zeros(k, d, DEVICE)
    for rows in (slice(0, 123), slice(123, 124), slice(124, n)):
        update.add_rows(x[rows], labels[rows], pick(rows), scale, parts)
    assert torch.equal(whole.sums, parts.sums)
    # Only the rows that moved, taken out of one sum and put into another.
    new = torch.where(tensor(rng(4).random(n)) < 0.2, (labels + 1) % k, labels)
    scratch = torch.empty(n + 4, dtype=torch.int32, device=DEVICE)
    update.move_rows(x, labels, new, weights, scale, parts, scratch)
    moved = integer_sums(x, new, weights, scale, k)
    assert int(scratch[0]) == int((labels != new).sum())
    assert torch.equal(parts.sums, moved.sums)
    assert torch.equal(parts.mass, moved.mass)


def test_sums_lose_less_than_float32_would():
    x = points("massive dimension", 500, 20) * np.float32(1.1)
    labels = np.zeros(500, np.int32)
    got, _ = sums_of(tensor(x), tensor(labels, torch.int32), 1)
    want = x.astype(np.float64).sum(0)
    naive = np.add.accumulate(x, axis=0, dtype=np.float32)[-1]
    assert np.abs(wide(got)[0] - want).max() <= np.abs(naive - want).max()
    np.testing.assert_allclose(wide(got)[0], want, rtol=1e-14, atol=1e-9)
