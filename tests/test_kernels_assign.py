"""Assignment: the kernels against the float64 definition (kernel_cases.py says how)."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from kernel_cases import (
    DEVICE,
    HAS_GPU,
    KINDS,
    any_of,
    assign,
    certify,
    gpu,
    labels_of,
    needs_gpu,
    points,
    reference,
    rng,
    sums_of,
    tensor,
    wide,
)

# as the kernels imported them: after it was settled whether they are interpreted
triton, tl = assign.triton, assign.tl


def run_assign(x: torch.Tensor, c: torch.Tensor, precision: str, **options):
    """Labels, how many rows were looked at again and again, and the intermediate results."""
    prepared = assign.prepare_centers(c, assign.shift_of(c))
    bad = torch.full((), assign.NONE_BAD, dtype=torch.int64, device=x.device)
    rows = assign.prepare_rows(x, prepared, bad)
    labels = torch.full((len(x),), -7, dtype=torch.int32, device=x.device)
    scratch = assign.Scratch.of(len(x), x.device)
    assign.nearest(rows, prepared, labels, scratch, precision=precision, **options)
    return labels, scratch.lengths(), prepared, rows


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "k", "d"), [(252, 123, 31), (123, 70, 130)])
def test_exact_labels_are_those_of_float64(kind, n, k, d):
    if kind == "near ties":  # a row is settled at a time, which is slow to interpret
        n, k = n // 4, k // 4
    x = points(kind, n, d)
    centers = x[:k] if kind in ("grid", "near ties") else points(kind, k, d, seed=2)
    labels, distances, _ = labels_of(tensor(x), tensor(centers))
    want, want_distances = reference.assign(x, centers)
    np.testing.assert_array_equal(labels.cpu().numpy(), want)
    np.testing.assert_allclose(wide(distances), want_distances, rtol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_exact_labels_of_other_dtypes(dtype):
    x, c = (
        tensor(points("common mean", 123, 37), dtype),
        tensor(points("common mean", 50, 37, 1), dtype),
    )
    labels, _, _ = labels_of(x, c)
    np.testing.assert_array_equal(labels.cpu().numpy(), reference.assign(wide(x), wide(c))[0])


@any_of(
    n=[1, 2, 63, 65, 130],
    k=[1, 2, 64, 65, 123],
    d=[1, 2, 8, 33, 123],
    kind=KINDS,
    seed=(0, 99),
)
def test_exact_labels_any_shape(n, k, d, kind, seed):
    x, centers = points(kind, n, d, seed), points(kind, k, d, seed + 1)
    labels, _, _ = labels_of(tensor(x), tensor(centers))
    np.testing.assert_array_equal(labels.cpu().numpy(), reference.assign(x, centers)[0])


def bounds_of(prepared, rows, k, d, share=1.0):
    """Scores, twice their bounds, and true scores, in float64; docs/kernels.md has the formula."""
    unit, (reach, rho, _) = float(prepared.unit), (float(v) for v in prepared.limits)
    shift = wide(prepared.shift)
    true_x, true_c = wide(rows.x) - shift, wide(prepared.c) - shift
    score = wide(rows.half)[:, :d] @ wide(prepared.high)[:k, :d].T / wide(rows.scale)[:, None]
    score = (score + wide(prepared.half_norm)[None, :k]).astype(np.float32)
    packed = ((score.view(np.int32) & -256) | (255 - np.arange(k) % 256)).astype(np.int32)
    true = (true_x @ true_c.T - 0.5 * (true_c**2).sum(1)) * unit
    length, error, pack = wide(rows.length), wide(rows.error), 2.0**-15
    far = (length + error) * (1 + rho)
    bound = error + (length + error) * rho + (rows.half.shape[1] * 2.0**-23 + 2.0**-22 + pack) * far
    bound += (2.0**-23 + pack / 2) * reach
    return packed.view(np.float32), share * bound[:, None] * unit * wide(prepared.reach)[:k], true


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_within_the_bound_that_certifies_them(kind):
    # The bound of docs/kernels.md, with float64's own arithmetic instead of the kernel's: what the
    # rounding to float16 and the packed column lose must fit under it, for every center its own.
    x, centers = tensor(points(kind, 70, 96)), tensor(points(kind, 40, 96, seed=3))
    mean = assign.shift_of(centers)  # not all of one length about it
    centers[7] = mean + (centers[7] - mean) * 0.3
    centers[8] = mean
    _, again, prepared, rows = run_assign(x, centers, "exact")
    score, bound, true = bounds_of(prepared, rows, 40, 96)
    off = np.abs(score.astype(np.float64) - true)
    assert (off <= bound + 1e-36).all()
    assert (off > bound / 100).mean() > 0.3  # a bound a hundred times as tight would be wrong
    if kind in ("unit", "common mean", "massive dimension", "huge"):
        assert sum(again[:2]) <= 12
        assert again[2:] == [0, 0]


@pytest.mark.skipif(HAS_GPU, reason="a kernel that is compiled keeps the bound it was made with")
def test_a_bound_that_is_too_tight_gives_wrong_labels(monkeypatch):
    # The certificate is what makes labels exact: with about a hundredth of it they are not.
    x = points("unit", 400, 48)
    centers = np.repeat(x[:40], 2, axis=0)
    centers[1::2] += 1e-4 * rng(5).normal(size=(40, 48)).astype(np.float32)
    want, _ = reference.assign(x, centers)
    labels, again, _, _ = run_assign(tensor(x), tensor(centers), "exact")
    np.testing.assert_array_equal(labels.cpu().numpy(), want)
    assert again[0] > 100

    @triton.jit
    def tight(error, length, limits_ptr, unit, D: tl.constexpr):
        return 1e-5 * length * unit

    monkeypatch.setattr(assign, "score_bound", tight)
    labels, _, _, _ = run_assign(tensor(x), tensor(centers), "exact")
    assert (labels.cpu().numpy() != want).any()


def test_every_stage_that_settles_a_row_is_right():
    # Groups of 2, 5 and 30 centers that float16 cannot tell apart, and one of equal ones.
    base = points("unit", 4, 64, seed=9)
    sizes, spread = (2, 5, 30, 12), (1e-5, 1e-5, 1e-5, 0.0)
    centers = np.concatenate(
        [
            b + s * rng(i).normal(size=(n, 64))
            for i, (b, n, s) in enumerate(zip(base, sizes, spread, strict=True))
        ]
    ).astype(np.float32)
    # Two neighboring columns may count as three candidates (`assign._best_three`): keep them apart.
    centers[[1, 2]] = centers[[2, 1]]
    x = np.repeat(base, 9, axis=0) + 0.01 * points("unit", 36, 64, seed=4)
    labels, again, _, _ = run_assign(tensor(x), tensor(centers), "exact")
    np.testing.assert_array_equal(labels.cpu().numpy(), reference.assign(x, centers)[0])
    assert again[0] >= 9
    assert again[1] >= 27
    assert 18 <= again[2] < again[1]
    assert 9 <= again[3] <= again[2]


def test_finite_float64_rows_that_float32_cannot_hold():
    x, centers = points("unit", 40, 9).astype(np.float64), points("unit", 6, 9, 1).astype(float)
    x[3] *= 1e60
    x[5, 2] = -1e140
    centers[4] *= 1e50
    labels, _, _ = labels_of(tensor(x, torch.float64), tensor(centers, torch.float64))
    np.testing.assert_array_equal(labels.cpu().numpy(), reference.assign(x, centers)[0])


def test_the_compiled_reduction_finds_the_best_three():
    # The interpreter takes another way, for speed; here it goes the compiled one, by element.
    @triton.jit
    def both(score_ptr, out_ptr, best_three: tl.constexpr, PLAIN: tl.constexpr):
        place = tl.arange(0, 4)[:, None] * 32 + tl.arange(0, 32)[None, :]
        first, second, third = best_three(tl.load(score_ptr + place), 4, 32, PLAIN)
        row = tl.arange(0, 4)
        tl.store(out_ptr + row, first)
        tl.store(out_ptr + 4 + row, second)
        tl.store(out_ptr + 8 + row, third)

    score = tensor(rng(3).permutation(128).reshape(4, 32))
    score[0, 8], score[0, 16], score[0, 24] = 200, 201, 202  # the best three in one register row
    found = {}
    for plain in (True, False):
        out = torch.empty(3, 4, device=DEVICE)
        both[(1,)](score, out, best_three=assign._best_three, PLAIN=plain)
        found[plain] = out
    assert torch.equal(found[True], score.topk(3).values.T)
    assert torch.equal(found[False][:2], found[True][:2])
    assert (found[False][2] >= found[True][2]).all()
    assert found[False][2, 0] == 201  # too high there, which only costs work
    assert (found[False][2, 1:] <= found[True][1, 1:]).all()


@pytest.mark.parametrize("kind", ["unit", "common mean", "massive dimension"])
def test_half_misses_by_its_rounding_at_most(kind):
    x, centers = points(kind, 252, 64), points(kind, 123, 64, seed=1)
    labels, _, _, _ = run_assign(tensor(x), tensor(centers), "half")
    labels = labels.cpu().numpy()
    distances = reference.squared_distances(x, centers)
    taken = np.take_along_axis(distances, labels[:, None], 1)[:, 0]
    shift = centers.mean(0)
    a, b = x - shift, centers - shift
    reach = np.linalg.norm(b, axis=1).max() * np.linalg.norm(a, axis=1)
    assert (taken - distances.min(1) <= 2 * 2 * 2.0**-10 * reach).all()


def test_ties_go_to_the_lowest_index():
    x = points("unit", 70, 33)
    centers = np.concatenate([x[:40], x[:40], x[:40]])
    for precision in ("exact", "half"):
        labels, _, _, _ = run_assign(tensor(x[:40]), tensor(centers), precision)
        np.testing.assert_array_equal(labels.cpu().numpy(), np.arange(40))


@pytest.mark.parametrize("precision", ["exact", "half"])
def test_rows_that_are_not_finite_are_named_never_labeled(precision):
    x = tensor(points("unit", 150, 20))
    x[70, 3], x[99, 19] = torch.nan, torch.inf
    centers = tensor(points("unit", 5, 20, seed=1))
    labels, _, bad = labels_of(x, centers, precision)
    assert bad == 70
    assert (labels < 0).nonzero()[:, 0].tolist() == [70, 99]


@pytest.mark.parametrize("launch", range(len(assign.NEAREST_LAUNCHES)))
def test_every_launch_gives_the_same_labels(launch):
    x, centers = tensor(points("common mean", 300, 70)), tensor(points("common mean", 300, 70, 1))
    want, _ = reference.assign(wide(x), wide(centers))
    labels, _, _, _ = run_assign(x, centers, "exact", launch=assign.NEAREST_LAUNCHES[launch])
    np.testing.assert_array_equal(labels.cpu().numpy(), want)


def test_plain_pointers_do_what_the_copy_engine_does(monkeypatch):
    monkeypatch.setattr(assign, "has_tma", lambda device: False)
    monkeypatch.setattr(certify, "has_tma", lambda device: False)
    x, centers = points("unit", 123, 45), points("unit", 67, 45, seed=1)
    labels, _, _ = labels_of(tensor(x), tensor(centers))
    np.testing.assert_array_equal(labels.cpu().numpy(), reference.assign(x, centers)[0])


def test_a_strided_view_is_read_as_it_lies():
    x = tensor(points("unit", 60, 50))
    centers = tensor(points("unit", 9, 25, seed=1))
    labels, _, _ = labels_of(x[::2, :25], centers)
    want, _ = reference.assign(wide(x[::2, :25]), wide(centers))
    np.testing.assert_array_equal(labels.cpu().numpy(), want)


@gpu
@needs_gpu
@pytest.mark.parametrize(
    ("n", "k", "d"), [(200_000, 4096, 768), (300_000, 1024, 384), (4099, 777, 1024)]
)
@pytest.mark.parametrize("kind", ["unit", "common mean", "massive dimension", "near ties"])
def test_large_exact_labels_on_the_device(n, k, d, kind):
    x, centers = tensor(points(kind, n, d)), tensor(points(kind, k, d, seed=1))
    if kind == "near ties":
        centers = x[:k].clone()
    labels, distances, _ = labels_of(x, centers)
    again, _, _ = labels_of(x, centers)
    assert torch.equal(labels, again)
    for start in range(0, n, 8192):
        rows = slice(start, start + 8192)
        every = torch.cdist(
            x[rows].double(), centers.double(), compute_mode="donot_use_mm_for_euclid_dist"
        ).square()
        assert (distances[rows] <= every.amin(1) * (1 + 1e-13)).all()


@gpu
@needs_gpu
def test_large_rows_beyond_2_to_the_31_elements():
    n, d = 1_100_000, 2048
    x = torch.empty(n, d, dtype=torch.float16, device=DEVICE).normal_()
    centers = x[-16:].clone()
    labels, _, _ = labels_of(x, centers)
    assert labels[-16:].tolist() == list(range(16))
    sums, counts = sums_of(x, labels, 16)
    assert float(counts.sum()) == n
    want = torch.zeros(16, dtype=torch.float64, device=DEVICE)
    want.index_add_(0, labels.long(), x[:, -1].double())
    torch.testing.assert_close(sums[:, -1], want, rtol=1e-12, atol=1e-9)
