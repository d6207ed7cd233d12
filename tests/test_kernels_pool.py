"""Pooling: the kernels against the float64 definition (kernel_cases.py says how)."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from kernel_cases import DEVICE, HALVES, any_of, gpu, needs_gpu, pool, reference, rng, tensor, wide


def ragged(b: int, t: int, h: int, dtype: torch.dtype, seed: int = 0):
    """Padded right, left, with gaps, not at all, and empty; NaN wherever nobody may look."""
    hidden = tensor(rng(seed).normal(size=(b, t, h)), dtype)
    mask = torch.zeros(b, t, dtype=torch.int64)
    for row in range(b):
        kind, length = row % 5, 1 + (7 * row + t // 2) % t
        if kind == 0:
            mask[row, :length] = 1
        elif kind == 1:
            mask[row, t - length :] = 1
        elif kind == 2:
            mask[row, ::2] = 1
        elif kind == 3:
            mask[row] = 1
    mask = mask.to(DEVICE)
    hidden[mask == 0] = torch.nan
    return hidden, mask


@pytest.mark.parametrize("mode", ["mean", "weighted_mean", "last_token", "cls"])
@pytest.mark.parametrize(("b", "t", "h"), [(5, 23, 31), (6, 600, 33)])
@pytest.mark.parametrize("dtype", HALVES)
def test_pool_is_the_definition(mode, b, t, h, dtype):
    hidden, mask = ragged(b, t, h, dtype)
    for normalize in (True, False):
        got = pool.pool(hidden, mask, mode=mode, normalize=normalize)
        want = reference.pool(wide(hidden), mask.cpu().numpy(), mode=mode, normalize=normalize)
        naive = naive_pool(hidden, mask, mode, normalize)
        error = np.abs(wide(got) - want).max()
        assert error <= max(2e-7, 2 * np.abs(wide(naive) - want).max())
        assert (got[4] == 0).all()


def naive_pool(hidden, mask, mode, normalize):
    states = hidden.float().masked_fill(mask[:, :, None] == 0, 0)
    rank = mask.cumsum(1) * mask
    last = rank == rank.amax(1, keepdim=True)
    weights = {
        "mean": mask,
        "weighted_mean": rank,
        "last_token": last & (rank > 0),
        "cls": rank == 1,
    }
    weight = weights[mode].float()
    out = torch.einsum("bt,bth->bh", weight, states) / weight.sum(1, keepdim=True).clamp(min=1)
    return torch.nn.functional.normalize(out, dim=1) if normalize else out


@pytest.mark.parametrize("mode", ["mean", "weighted_mean", "last_token", "cls"])
def test_pool_bits_depend_on_the_tokens_alone(mode, monkeypatch):
    lengths = [1, 7, 256, 300, 513, 0]
    rows = [tensor(rng(i).normal(size=(n, 40)), torch.bfloat16) for i, n in enumerate(lengths)]
    found = None
    # One program a sequence, and one a chunk of it.
    for processors, width in ((1, 513), (100, 700)):
        monkeypatch.setattr(pool, "multiprocessors", lambda device, number=processors: number)
        for side in ("left", "right"):
            hidden = torch.full((len(rows), width, 40), torch.nan, dtype=torch.bfloat16).to(DEVICE)
            mask = torch.zeros(len(rows), width, dtype=torch.bool, device=DEVICE)
            for i, row in enumerate(rows):
                here = slice(width - len(row), width) if side == "left" else slice(0, len(row))
                hidden[i, here], mask[i, here] = row, True
            got = pool.pool(hidden, mask, mode=mode, normalize=True)
            found = got if found is None else found
            assert torch.equal(got, found)
            alone = pool.pool(hidden[3:4], mask[3:4], mode=mode, normalize=True)
            assert torch.equal(alone, found[3:4])


@any_of(
    b=(1, 4),
    t=[1, 2, 17, 123, 252],
    h=[1, 3, 64, 123],
    seed=(0, 99),
)
def test_pool_any_mask(b, t, h, seed):
    hidden = tensor(rng(seed).normal(size=(b, t, h)), torch.float16)
    mask = tensor(rng(seed + 1).random((b, t)) < 0.5, torch.int32)
    for mode in ("mean", "weighted_mean", "last_token", "cls"):
        got = pool.pool(hidden, mask, mode=mode, normalize=False)
        want = reference.pool(wide(hidden), mask.cpu().numpy(), mode=mode, normalize=False)
        np.testing.assert_allclose(wide(got), want, atol=2e-6)


@gpu
@needs_gpu
def test_large_pool_on_the_device():
    hidden = torch.randn(256, 512, 1024, device=DEVICE).bfloat16()
    mask = torch.arange(512, device=DEVICE)[None] < torch.randint(0, 513, (256, 1), device=DEVICE)
    hidden[~mask] = torch.nan
    for mode in ("mean", "weighted_mean", "last_token", "cls"):
        got = pool.pool(hidden, mask, mode=mode, normalize=True)
        want = naive_pool(hidden, mask.long(), mode, True)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=2e-6)
