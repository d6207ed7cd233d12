"""The loss of tokens: the kernels against the float64 definition (kernel_cases.py says how)."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from kernel_cases import (
    DEVICE,
    HALVES,
    HAS_GPU,
    any_of,
    gpu,
    loss,
    needs_gpu,
    reference,
    rng,
    tensor,
    wide,
)


def loss_case(dtype, t, h, v, seed=0, magnitude=1.0):
    hidden = tensor(magnitude * rng(seed).normal(size=(t, h)), dtype)
    lm_head = tensor(rng(seed + 1).normal(size=(v, h)), dtype)
    targets = rng(seed + 2).integers(0, v, t)
    targets[::3] = -100
    targets[-1] = v - 1
    return hidden, lm_head, tensor(targets, torch.int64)


def check_loss(dtype, t, h, v, *, softcap=None, with_bias=False, magnitude=1.0, **options):
    hidden, lm_head, targets = loss_case(dtype, t, h, v, magnitude=magnitude)
    bias = tensor(rng(9).normal(size=v), dtype) if with_bias else None
    shared = {"bias": bias, "softcap": softcap, "ignore_index": -100}
    want = reference.token_nll(
        wide(hidden),
        wide(lm_head),
        targets.cpu().numpy(),
        bias=None if bias is None else wide(bias),
        softcap=softcap,
    )
    logits = hidden.float() @ lm_head.float().T + (0 if bias is None else bias.float())
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    naive = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    allowed = max(2e-5, 3 * np.abs(wide(naive) - want).max())
    got = loss.token_nll(hidden, lm_head, targets, **shared, **options)
    assert np.abs(wide(got) - want).max() <= allowed
    assert (got[targets == -100] == 0).all()


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("softcap", "with_bias"), [(None, False), (5.0, True)])
def test_loss_is_the_definition(dtype, softcap, with_bias, monkeypatch):
    monkeypatch.setattr(loss, "PART", 256)  # several parts of a small vocabulary
    check_loss(dtype, 23, 33, 507, softcap=softcap, with_bias=with_bias)


@pytest.mark.parametrize("magnitude", [1e-4, 30.0])
def test_loss_of_flat_and_of_extreme_logits(magnitude):
    check_loss(torch.float32, 20, 32, 130, magnitude=magnitude)


@any_of(t=[1, 65], h=[1, 8, 123], v=[1, 64, 123])
def test_loss_any_shape(t, h, v):
    check_loss(torch.bfloat16, t, h, v)


@pytest.mark.parametrize("launch", range(len(loss.LAUNCHES)))
def test_every_launch_gives_the_same_loss(launch):
    check_loss(torch.float16, 20, 72, 300, launch=loss.LAUNCHES[launch])


def test_a_token_s_loss_does_not_depend_on_the_batch():
    hidden, lm_head, targets = loss_case(torch.bfloat16, 70, 40, 200)
    shared = {"bias": None, "softcap": None, "ignore_index": -100}
    whole = loss.token_nll(hidden, lm_head, targets, **shared)
    part = loss.token_nll(hidden[30:50], lm_head, targets[30:50], **shared)
    # On the GPU the bits are the same; a CPU's matrix product may group its sums by its shape.
    tolerance = 0.0 if HAS_GPU else 2e-6
    assert (whole[30:50] - part).abs().max() <= tolerance * whole.abs().max()


def test_examples_and_clusters():
    nll = tensor(rng(0).random(700))
    targets = tensor(rng(1).integers(0, 3, 700) - 1, torch.int64)
    bounds = torch.tensor([0, 1, 1, 300, 699, 700], device=DEVICE)
    mean, count = loss.example_nll(nll, targets, bounds, ignore_index=-1)
    want_mean, want_count = reference.example_nll(
        wide(nll), targets.cpu().numpy(), bounds.cpu().numpy(), -1
    )
    np.testing.assert_allclose(wide(mean), want_mean, rtol=1e-15)
    np.testing.assert_array_equal(count.cpu().numpy(), want_count)
    alone, _ = loss.example_nll(
        nll[1:300], targets[1:300], torch.tensor([0, 299], device=DEVICE), ignore_index=-1
    )
    assert torch.equal(alone, mean[2:3])


@gpu
@needs_gpu
def test_large_loss_on_the_device():
    hidden, lm_head, targets = loss_case(torch.bfloat16, 3000, 2048, 50257)
    hidden *= 0.05
    shared = {"bias": None, "softcap": None, "ignore_index": -100}
    got = loss.token_nll(hidden, lm_head, targets, **shared)
    want = torch.nn.functional.cross_entropy(
        hidden.double() @ lm_head.double().T, targets, reduction="none"
    )
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=2e-5)
    order = torch.randperm(3000, device=DEVICE)
    assert torch.equal(loss.token_nll(hidden[order], lm_head, targets[order], **shared), got[order])
