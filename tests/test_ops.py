"""Every implementation of every op against the float64 definition, and what ops refuses."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from pyids import ops, reference
from pyids.errors import ConfigError

IGNORE = -100


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def padded(shape=(5, 23, 31), dtype=torch.float32, seed=0):
    """Hidden states with NaN in the padding: right, left, holes, none, and an empty sequence."""
    b, t, _ = shape
    hidden = torch.from_numpy(rng(seed).normal(size=shape)).to(dtype)
    mask = np.zeros((b, t), dtype=np.int64)
    mask[0, : t // 2] = 1
    mask[1, t // 3 :] = 1
    mask[2, ::2] = 1
    mask[3] = 1
    mask = torch.from_numpy(mask)
    hidden[mask == 0] = torch.nan
    return hidden, mask


@pytest.fixture(params=["torch", "reference"])
def backend(request, monkeypatch):
    monkeypatch.setenv("PYIDS_BACKEND", request.param)
    return request.param


@pytest.mark.parametrize("mode", ["mean", "weighted_mean", "last_token", "cls"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_pool(backend, mode, normalize, dtype):
    hidden, mask = padded(dtype=dtype)
    got = ops.pool(hidden, mask, mode=mode, normalize=normalize)
    want = reference.pool(hidden.double().numpy(), mask.numpy(), mode=mode, normalize=normalize)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.numpy(), want, atol=2e-6)
    assert (got[4] == 0).all()
    rows = [hidden[i][mask[i] > 0] for i in range(5)]
    bounds = torch.tensor([0, *np.cumsum([len(r) for r in rows])])
    packed = ops.pool_packed(torch.cat(rows), bounds, mode=mode, normalize=normalize)
    np.testing.assert_allclose(packed.numpy(), want, atol=2e-6)


@pytest.mark.parametrize(("n", "k", "d"), [(123, 17, 31), (1, 1, 1), (252, 300, 7)])
def test_assign_and_update(backend, n, k, d):
    x = rng(1).normal(size=(n, d)).astype(np.float32) + 3
    centers = rng(2).normal(size=(k, d)).astype(np.float32) + 3
    labels, distances = ops.assign(x, centers)
    want_labels, want_distances = reference.assign(x, centers)
    np.testing.assert_array_equal(labels, want_labels)
    np.testing.assert_allclose(distances, want_distances, rtol=1e-6)
    for weight in (None, rng(3).random(n).astype(np.float32)):
        for about in (None, centers):
            got = ops.update(x, labels, k, sample_weight=weight, centers=about)
            want = reference.update(x, want_labels, k, sample_weight=weight, centers=about)
            for g, w in zip(got, want, strict=True):
                np.testing.assert_allclose(g, w, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("with_bias", [False, True])
def test_loss(backend, softcap, with_bias):
    t, h, v = 123, 33, 507
    hidden = torch.from_numpy(rng(4).normal(size=(t, h))).float()
    lm_head = torch.from_numpy(rng(5).normal(size=(v, h))).float()
    bias = torch.from_numpy(rng(6).normal(size=v)).float() if with_bias else None
    targets = torch.from_numpy(rng(7).integers(0, v, t))
    targets[10:30] = IGNORE
    targets[::7] = IGNORE
    bounds = torch.tensor([0, 10, 30, 30, 100, t])
    labels = torch.tensor([2, 0, 1, 2, 0])
    got = ops.cluster_loss(hidden, lm_head, targets, bounds, labels, 4, bias=bias, softcap=softcap)
    options = {"bias": None if bias is None else bias.numpy(), "softcap": softcap}
    nll = reference.token_nll(hidden.numpy(), lm_head.numpy(), targets.numpy(), **options)
    mean, count = reference.example_nll(nll, targets.numpy(), bounds.numpy())
    total, number = reference.cluster_nll(mean, labels.numpy(), 4, example_count=count)
    np.testing.assert_allclose(got.token_nll, nll, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got.example_mean, mean, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(got.example_count, count)
    np.testing.assert_allclose(got.sum, total, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(got.count, number)


def test_unknown_backend_is_an_error(monkeypatch):
    monkeypatch.setenv("PYIDS_BACKEND", "abacus")
    with pytest.raises(ConfigError, match="abacus is no backend"):
        ops.assign(np.zeros((2, 2)), np.zeros((1, 2)))


def test_nothing_heavy_is_imported():
    code = "import sys, pyids.ops; print(*{'torch', 'triton'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == ""
    assert done.returncode == 0
