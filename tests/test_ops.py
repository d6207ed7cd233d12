"""Every implementation of every op against the float64 definition, and what ops refuses."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from pyids import ops, reference
from pyids.errors import ConfigError
from pyids.ops import dispatch

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


@pytest.fixture(params=["torch", "reference", "triton"])
def backend(request, monkeypatch):
    monkeypatch.setenv("PYIDS_BACKEND", request.param)
    return request.param


@pytest.mark.parametrize("mode", ["mean", "weighted_mean", "last_token", "cls"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pool(backend, mode, normalize, dtype):
    hidden, mask = padded(dtype=dtype)
    got = ops.pool(hidden, mask, mode=mode, normalize=normalize)
    want = reference.pool(hidden.double().numpy(), mask.numpy(), mode=mode, normalize=normalize)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.numpy(), want, atol=2e-6)
    assert (got[4] == 0).all()


@pytest.mark.parametrize("mode", ["mean", "cls"])
def test_no_sequences_pool_to_no_vectors(backend, mode):
    none = ops.pool(torch.ones(0, 5, 31), torch.ones(0, 5), mode=mode)
    assert none.shape == (0, 31)
    assert none.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.uint16])
def test_narrow_integers_count_as_wide_ones(backend, dtype):
    hidden = torch.from_numpy(rng(4).normal(size=(9, 4))).float()
    head = torch.from_numpy(rng(5).normal(size=(300, 4))).float()
    # As uint8, 156 is -100.
    targets = torch.tensor([100 if dtype == torch.int8 else 156, 5, 7, 0, 1, 2, 3, 4, 6])
    bounds = torch.tensor([0, 4, 4, 9])
    want = ops.token_nll(hidden, head, targets)
    np.testing.assert_array_equal(ops.token_nll(hidden, head, targets.to(dtype)), want)
    for g, w in zip(
        ops.example_nll(want, targets.to(dtype), bounds.to(dtype)),
        ops.example_nll(want, targets, bounds),
        strict=True,
    ):
        np.testing.assert_array_equal(g, w)


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
    got = ops.token_nll(hidden, lm_head, targets, bias=bias, softcap=softcap)
    got_mean, got_count = ops.example_nll(got, targets, bounds)
    options = {"bias": None if bias is None else bias.numpy(), "softcap": softcap}
    nll = reference.token_nll(hidden.numpy(), lm_head.numpy(), targets.numpy(), **options)
    mean, count = reference.example_nll(nll, targets.numpy(), bounds.numpy())
    np.testing.assert_allclose(got, nll, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got_mean, mean, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(got_count, count)


SCORES = {
    "ordinary": rng(8).normal(size=500),
    "far from zero": 1e6 + rng(8).normal(size=500),
    "huge": rng(8).normal(size=500) * 1e200,
    "tiny": rng(8).normal(size=500) * 1e-300,
    "skewed": np.exp(8 * rng(8).normal(size=500)),
    "equal": np.full(500, 0.1),
    "none": np.empty(0),
}


@pytest.mark.parametrize("scores", SCORES.values(), ids=SCORES.keys())
def test_moments_of_clusters_are_exact_sums_in_any_order(scores, monkeypatch):
    clusters = rng(9).integers(0, 7, len(scores)).astype(np.int32)
    got = {}
    for backend in ("torch", "reference"):
        monkeypatch.setenv("PYIDS_BACKEND", backend)
        got[backend] = ops.cluster_moments(scores, clusters, 8)
        order = rng(10).permutation(len(scores))
        again = ops.cluster_moments(scores[order], clusters[order], 8)
        for a, b in zip(got[backend], again, strict=True):
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    for a, b in zip(*got.values(), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    moments = got["reference"]
    scale = max(1e-300, np.abs(scores - moments.center).max(initial=0))
    for j in range(8):
        mine = scores[clusters == j] - moments.center
        assert moments.count[j] == len(mine)
        assert abs(moments.total[j] - math.fsum(mine)) <= 1e-15 * scale * max(1, len(mine))
        if 1e-150 < scale < 1e150:  # else squares leave the range of float64
            squares = math.fsum((mine / scale) ** 2)
            assert abs(moments.squares[j] / scale / scale - squares) <= 1e-14 * max(1, len(mine))


def test_the_table_says_who_runs():
    ops_listed = {row.op for row in dispatch.implementations()}
    assert ops_listed == {"pool", "token_nll", "example_nll", "cluster_moments"}
    for row in dispatch.implementations():
        assert row.available(), f"{row.op} by {row.backend} lacks {row.needs}"
        assert callable(row.load())
    assert dispatch.choose("pool", "cuda", "bfloat16", (8, 128, 768)).backend == "triton"
    assert dispatch.choose("pool", "cuda", "bfloat16", (8, 128, 65536)).backend == "torch"
    assert dispatch.choose("pool", "cpu", "float32", (8, 128, 768)).backend == "torch"


def test_a_forced_backend_that_lacks_an_op_is_an_error(monkeypatch):
    monkeypatch.setenv("PYIDS_BACKEND", "triton")
    with pytest.raises(ConfigError, match="no triton implementation of pool for float64"):
        ops.pool(np.ones((1, 2, 3)), np.ones((1, 2), int))


def test_a_run_by_the_kernels_takes_what_has_none_elsewhere(monkeypatch):
    monkeypatch.setenv("PYIDS_BACKEND", "triton")
    moments = ops.cluster_moments(np.ones(2), np.zeros(2, int), 1)
    assert moments.count[0] == 2


def test_a_failing_kernel_raises(monkeypatch):
    def broken(*arguments, **options):
        raise RuntimeError("the kernel failed")

    monkeypatch.setattr("pyids.ops.torch_backend.pool", broken)
    with pytest.raises(RuntimeError, match="the kernel failed"):
        ops.pool(*padded())


def test_the_interpreter_must_be_asked_for_before_triton_is_imported():
    code = """
import numpy as np, os, torch, triton
os.environ["PYIDS_BACKEND"] = "triton"
from pyids import ops
from pyids.errors import ConfigError
try:
    ops.pool(torch.ones(1, 2, 3), torch.ones(1, 2))
except ConfigError as error:
    print(error)
"""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, env=environment
    )
    assert "set TRITON_INTERPRET=1 in the environment" in done.stdout, done.stderr


HIDDEN, HEAD = np.ones((3, 4), np.float32), np.ones((7, 4), np.float32)
BAD_CALLS = {
    "targets[2] = 7 is outside [0, 7)": lambda: ops.token_nll(HIDDEN, HEAD, np.array([0, -100, 7])),
    "targets[0] = -1 is outside": lambda: ops.token_nll(HIDDEN, HEAD, np.array([-1, 0, 0])),
    "softcap=-1.0 must be above 0": lambda: ops.token_nll(
        HIDDEN, HEAD, np.array([0, 0, 0]), softcap=-1.0
    ),
    "lm_head has shape (7, 3)": lambda: ops.token_nll(HIDDEN, HEAD[:, :3], np.array([0, 0, 0])),
    "mode='max' is none of": lambda: ops.pool(HIDDEN[None], np.ones((1, 3)), mode="max"),
    "attention_mask has shape": lambda: ops.pool(HIDDEN[None], np.ones((1, 4))),
    "cu_seqlens falls after position 1": lambda: ops.example_nll(
        HIDDEN[:, 0], np.zeros(3, int), np.array([0, 2, 1, 3])
    ),
    "must start at 0 and end at 3": lambda: ops.example_nll(
        HIDDEN[:, 0], np.zeros(3, int), np.array([0, 2])
    ),
    "clusters[1] = 9 is outside [0, 3)": lambda: ops.cluster_moments(
        np.ones(3), np.array([0, 9, 1]), 3
    ),
    "values: row 1 has a NaN": lambda: ops.cluster_moments(
        np.array([1.0, np.nan]), np.array([0, 0]), 1
    ),
}


@pytest.mark.parametrize("message", BAD_CALLS)
def test_what_ops_refuses(message):
    with pytest.raises(ValueError, match=re.escape(message)):
        BAD_CALLS[message]()


def test_a_token_s_loss_differs_little_with_its_batch():
    hidden, head = rng(0).normal(size=(600, 64)), rng(1).normal(size=(9000, 64))
    targets = torch.from_numpy(rng(2).integers(0, 9000, 600))
    hidden, head = torch.from_numpy(hidden).float(), torch.from_numpy(head).float()
    whole = ops.token_nll(hidden, head, targets)
    alone = torch.cat(
        [ops.token_nll(hidden[i : i + 1], head, targets[i : i + 1]) for i in (0, 599)]
    )
    assert ((whole[[0, 599]] - alone).abs() <= 1e-5 * (1 + alone)).all()


def test_unknown_backend_is_an_error(monkeypatch):
    monkeypatch.setenv("PYIDS_BACKEND", "abacus")
    with pytest.raises(ConfigError, match="abacus is no backend"):
        ops.pool(*padded())


def test_nothing_heavy_is_imported():
    code = "import sys, pyids.ops; print(*{'torch', 'triton'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == ""
    assert done.returncode == 0
