"""The Triton kernels against the float64 definitions: interpreted on a CPU, compiled on a GPU.

A GPU machine needs neither the wheel nor the C++ core, only torch, triton, numpy, pytest and
hypothesis:

    python -m pytest -c /dev/null --noconftest tests/test_kernels.py

and, once, with every access to memory checked:

    compute-sanitizer --tool memcheck python -m pytest -c /dev/null --noconftest \
        tests/test_kernels.py -k "not large"
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

HAS_GPU = torch.cuda.is_available()
if not HAS_GPU:
    os.environ.setdefault("TRITON_INTERPRET", "1")
DEVICE = torch.device("cuda" if HAS_GPU else "cpu")
ROOT = Path(__file__).parents[1]


def from_checkout(name: str, path: Path):
    folder = [str(path.parent)] if path.name == "__init__.py" else None
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=folder)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


try:
    from pyids import kernels, reference
except ModuleNotFoundError:  # not installed, as on a GPU machine: straight from the checkout
    kernels = from_checkout("pyids_kernels", ROOT / "kernels" / "__init__.py")
    reference = from_checkout("pyids_reference", ROOT / "pyids" / "reference.py")

assign, common, loss, pool, update = (
    importlib.import_module(f"{kernels.__name__}.{name}")
    for name in ("assign", "common", "loss", "pool", "update")
)

gpu = pytest.mark.gpu
needs_gpu = pytest.mark.skipif(not HAS_GPU, reason="no CUDA device")
HALVES = (torch.float32, torch.bfloat16, torch.float16)
few = settings(max_examples=6, deadline=None, derandomize=True)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def tensor(array, dtype=torch.float32) -> torch.Tensor:
    return torch.from_numpy(np.array(array)).to(dtype).to(DEVICE)


def wide(values: torch.Tensor) -> np.ndarray:
    return values.detach().cpu().double().numpy()


# ---- pooling -------------------------------------------------------------------------------------


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
def test_pool_bits_depend_on_the_tokens_alone(mode):
    lengths = [1, 7, 256, 300, 513, 0]
    rows = [tensor(rng(i).normal(size=(n, 40)), torch.bfloat16) for i, n in enumerate(lengths)]
    bounds = torch.tensor(np.cumsum([0, *lengths]), device=DEVICE)
    packed = pool.pool_packed(torch.cat(rows), bounds, mode=mode, normalize=True)
    for side in ("left", "right"):
        for width in (513, 700):
            hidden = torch.full((len(rows), width, 40), torch.nan, dtype=torch.bfloat16).to(DEVICE)
            mask = torch.zeros(len(rows), width, dtype=torch.bool, device=DEVICE)
            for i, row in enumerate(rows):
                here = slice(width - len(row), width) if side == "left" else slice(0, len(row))
                hidden[i, here], mask[i, here] = row, True
            padded = pool.pool(hidden, mask, mode=mode, normalize=True)
            assert torch.equal(padded, packed)
            alone = pool.pool(hidden[3:4], mask[3:4], mode=mode, normalize=True)
            assert torch.equal(alone, packed[3:4])


@few
@given(
    b=st.integers(1, 4),
    t=st.sampled_from([1, 2, 17, 123, 252]),
    h=st.sampled_from([1, 3, 64, 123]),
    seed=st.integers(0, 99),
)
def test_pool_any_mask(b, t, h, seed):
    hidden = tensor(rng(seed).normal(size=(b, t, h)), torch.float16)
    mask = tensor(rng(seed + 1).random((b, t)) < 0.5, torch.int32)
    for mode in ("mean", "weighted_mean", "last_token", "cls"):
        got = pool.pool(hidden, mask, mode=mode, normalize=False)
        want = reference.pool(wide(hidden), mask.cpu().numpy(), mode=mode, normalize=False)
        np.testing.assert_allclose(wide(got), want, atol=2e-6)


# ---- assignment ----------------------------------------------------------------------------------


def points(kind: str, n: int, d: int, seed: int = 0) -> np.ndarray:
    x = rng(seed).normal(size=(n, d))
    if kind == "common mean":
        x += 6
    elif kind == "massive dimension":
        x[:, d // 2] += 3000
    elif kind == "tiny":
        x *= 1e-25
    elif kind == "huge":
        x *= 1e15
    elif kind == "unit":
        x /= np.linalg.norm(x, axis=1, keepdims=True)
    elif kind == "grid":  # full of exact ties
        x = np.round(x)
    elif kind == "near ties":  # centers will be pairs of neighbors in float32
        x = np.repeat(x[: (n + 1) // 2], 2, axis=0)[:n]
        x[1::2] *= 1 + 2.0**-22
    return x.astype(np.float32)


KINDS = ["unit", "common mean", "massive dimension", "tiny", "huge", "grid", "near ties"]


def run_assign(x: torch.Tensor, c: torch.Tensor, precision: str, **options):
    """Labels, how many rows were looked at again and again, and the intermediate results."""
    prepared = assign.prepare_centers(c, assign.shift_of(c))
    bad = torch.full((), assign.NONE_BAD, dtype=torch.int64, device=x.device)
    rows = assign.prepare_rows(x, prepared, bad)
    labels = torch.full((len(x),), -7, dtype=torch.int32, device=x.device)
    scratch = assign.Scratch.of(len(x), x.device)
    assign.nearest(rows, prepared, labels, scratch, precision=precision, **options)
    return labels, scratch.counts.tolist(), prepared, rows


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "k", "d"), [(252, 123, 31), (123, 70, 130)])
def test_exact_labels_are_those_of_float64(kind, n, k, d):
    if kind == "near ties":  # a row is settled at a time, which is slow to interpret
        n, k = n // 4, k // 4
    x = points(kind, n, d)
    centers = x[:k] if kind in ("grid", "near ties") else points(kind, k, d, seed=2)
    labels, distances = assign.assign(tensor(x), tensor(centers), precision="exact")
    want, want_distances = reference.assign(x, centers)
    np.testing.assert_array_equal(labels.cpu().numpy(), want)
    np.testing.assert_allclose(wide(distances), want_distances, rtol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_exact_labels_of_other_dtypes(dtype):
    x, c = (
        tensor(points("common mean", 123, 37), dtype),
        tensor(points("common mean", 50, 37, 1), dtype),
    )
    labels, _ = assign.assign(x, c, precision="exact")
    np.testing.assert_array_equal(labels.cpu().numpy(), reference.assign(wide(x), wide(c))[0])


@few
@given(
    n=st.sampled_from([1, 2, 63, 65, 130]),
    k=st.sampled_from([1, 2, 64, 65, 123]),
    d=st.sampled_from([1, 2, 8, 33, 123]),
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 99),
)
def test_exact_labels_any_shape(n, k, d, kind, seed):
    x, centers = points(kind, n, d, seed), points(kind, k, d, seed + 1)
    labels, _ = assign.assign(tensor(x), tensor(centers), precision="exact")
    np.testing.assert_array_equal(labels.cpu().numpy(), reference.assign(x, centers)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_within_the_bound_that_certifies_them(kind):
    # The bound of docs/kernels.md, with float64's own arithmetic instead of the kernel's: what the
    # rounding to float16 loses must fit under it, and on kind data it must certify most rows.
    x, centers = tensor(points(kind, 70, 96)), tensor(points(kind, 40, 96, seed=3))
    _, again, prepared, rows = run_assign(x, centers, "exact")
    shift, unit = wide(prepared.shift), float(prepared.unit)
    true_x, true_c = wide(x) - shift, wide(centers) - shift
    scale = wide(rows.scale)[:, None]
    score = wide(prepared.half_norm)[None, :40] * scale
    score = score - wide(rows.half)[:, :96] @ wide(prepared.high)[:40, :96].T
    true = (0.5 * (true_c**2).sum(1)[None] - true_x @ true_c.T) * scale * unit
    reach, lost, tallest = (float(v) for v in prepared.limits)
    length, error = wide(rows.length)[:, None], wide(rows.error)[:, None]
    bound = error * (reach + lost) + length * lost
    bound += (96 * 2.0**-23 + 2.0**-22) * (length + error) * (reach + lost)
    bound = (bound * unit + 2.0**-22 * tallest) * scale
    assert (np.abs(score - true) <= bound).all()
    assert (np.abs(wide(rows.length) - np.linalg.norm(true_x, axis=1)) <= 1e-5 * length[:, 0]).all()
    if kind in ("unit", "common mean", "massive dimension", "huge"):
        assert again[0] <= 20
        assert again[1] == 0


def test_half_alone_would_be_wrong():
    # If it were not, the tests of "exact" would prove nothing.
    x = points("near ties", 60, 64)
    centers = tensor(x[:30])
    half, _, _, _ = run_assign(tensor(x), centers, "half")
    exact, again, _, _ = run_assign(tensor(x), centers, "exact")
    want, _ = reference.assign(x, x[:30])
    assert (half.cpu().numpy() != want).sum() > 10
    assert again[1] > 10
    np.testing.assert_array_equal(exact.cpu().numpy(), want)


def to_tf32(x: np.ndarray) -> np.ndarray:
    """Round float32 to 10 bits of fraction, as the tensor cores read it."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    return ((bits + 0x1000) & ~np.uint32(0x1FFF)).view(np.float32)


@pytest.mark.parametrize("kind", ["unit", "common mean", "massive dimension"])
@pytest.mark.parametrize("precision", ["half", "tf32"])
def test_half_and_tf32_miss_by_their_rounding_at_most(kind, precision):
    # The interpreter multiplies tf32 operands as float32; what rounding them costs is emulated.
    x, centers = points(kind, 252, 64), points(kind, 123, 64, seed=1)
    labels, _, _, _ = run_assign(tensor(x), tensor(centers), precision)
    labels = labels.cpu().numpy()
    distances = reference.squared_distances(x, centers)
    taken = np.take_along_axis(distances, labels[:, None], 1)[:, 0]
    shift = centers.mean(0)
    a, b = x - shift, centers - shift
    reach = np.linalg.norm(b, axis=1).max() * np.linalg.norm(a, axis=1)
    assert (taken - distances.min(1) <= 2 * 2 * 2.0**-10 * reach).all()
    rounded = np.abs(to_tf32(a) @ to_tf32(b).T - a @ b.T).max(1)
    assert (rounded <= 2 * 2.0**-10 * reach).all()


def test_ties_go_to_the_lowest_index():
    x = points("unit", 70, 33)
    centers = np.concatenate([x[:40], x[:40], x[:40]])
    for precision in ("exact", "half", "tf32"):
        labels, _, _, _ = run_assign(tensor(x[:40]), tensor(centers), precision)
        np.testing.assert_array_equal(labels.cpu().numpy(), np.arange(40))


@pytest.mark.parametrize("precision", ["exact", "half", "tf32"])
def test_rows_that_are_not_finite_are_named_never_labeled(precision):
    x = tensor(points("unit", 150, 20))
    x[70, 3], x[99, 19] = torch.nan, torch.inf
    centers = tensor(points("unit", 5, 20, seed=1))
    with pytest.raises(ValueError, match="row 70 has a NaN or an infinity"):
        assign.assign(x, centers, precision=precision)
    labels, _, _, _ = run_assign(x, centers, precision)
    assert (labels < 0).nonzero()[:, 0].tolist() == [70, 99]


@pytest.mark.parametrize("launch", range(len(assign.NEAREST_LAUNCHES)))
def test_every_launch_gives_the_same_labels(launch):
    x, centers = tensor(points("common mean", 300, 70)), tensor(points("common mean", 300, 70, 1))
    want, _ = reference.assign(wide(x), wide(centers))
    labels, _, _, _ = run_assign(x, centers, "exact", launch=assign.NEAREST_LAUNCHES[launch])
    np.testing.assert_array_equal(labels.cpu().numpy(), want)


def test_plain_pointers_do_what_the_copy_engine_does(monkeypatch):
    monkeypatch.setattr(assign, "has_tma", lambda device: False)
    monkeypatch.setattr(loss, "has_tma", lambda device: False)
    x, centers = points("unit", 123, 45), points("unit", 67, 45, seed=1)
    labels, _ = assign.assign(tensor(x), tensor(centers), precision="exact")
    np.testing.assert_array_equal(labels.cpu().numpy(), reference.assign(x, centers)[0])
    check_loss(torch.float16, 70, 40, 130)


def test_a_strided_view_is_read_as_it_lies():
    x = tensor(points("unit", 60, 50))
    centers = tensor(points("unit", 9, 25, seed=1))
    labels, _ = assign.assign(x[::2, :25], centers, precision="exact")
    want, _ = reference.assign(wide(x[::2, :25]), wide(centers))
    np.testing.assert_array_equal(labels.cpu().numpy(), want)


# ---- update --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "k", "d"), [(507, 123, 37), (252, 5, 130), (3, 7, 1), (0, 3, 4)])
@pytest.mark.parametrize("weighted", [False, True])
def test_update_is_the_definition(n, k, d, weighted):
    x, labels = points("common mean", n, d), rng(1).integers(0, k, n).astype(np.int32)
    weights = rng(2).random(n).astype(np.float32) if weighted else None
    for centers in (None, points("unit", k, d, seed=3)):
        got = update.update(
            tensor(x),
            tensor(labels, torch.int32),
            k,
            sample_weight=None if weights is None else tensor(weights),
            centers=None if centers is None else tensor(centers),
        )
        want = reference.update(x, labels, k, sample_weight=weights, centers=centers)
        for g, w in zip(got, want, strict=True):
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
    scratch = torch.empty(n + 1, dtype=torch.int32, device=DEVICE)
    update.move_rows(x, labels, new, weights, scale, parts, scratch)
    moved = integer_sums(x, new, weights, scale, k)
    assert int(scratch[0]) == int((labels != new).sum())
    assert torch.equal(parts.sums, moved.sums)
    assert torch.equal(parts.mass, moved.mass)


def test_sums_lose_less_than_float32_would():
    x = points("massive dimension", 500, 20) * np.float32(1.1)
    labels = np.zeros(500, np.int32)
    got, _, _ = update.update(
        tensor(x), tensor(labels, torch.int32), 1, sample_weight=None, centers=None
    )
    want = x.astype(np.float64).sum(0)
    naive = np.add.accumulate(x, axis=0, dtype=np.float32)[-1]
    assert np.abs(wide(got)[0] - want).max() <= np.abs(naive - want).max()
    np.testing.assert_allclose(wide(got)[0], want, rtol=1e-14, atol=1e-9)


# ---- loss ----------------------------------------------------------------------------------------


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
    blocked = loss.blocked_token_nll(
        hidden, lm_head, targets, **shared, block_t=max(1, t // 2), block_v=max(1, v // 2)
    )
    assert np.abs(wide(blocked) - want).max() <= allowed


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("softcap", "with_bias"), [(None, False), (5.0, True)])
def test_loss_is_the_definition(dtype, softcap, with_bias, monkeypatch):
    monkeypatch.setattr(loss, "PART", 256)  # several parts of a small vocabulary
    check_loss(dtype, 23, 33, 507, softcap=softcap, with_bias=with_bias)


@pytest.mark.parametrize("magnitude", [1e-4, 30.0])
def test_loss_of_flat_and_of_extreme_logits(magnitude):
    check_loss(torch.float32, 20, 32, 130, magnitude=magnitude)


@few
@given(t=st.sampled_from([1, 65]), h=st.sampled_from([1, 8, 123]), v=st.sampled_from([1, 64, 123]))
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
    labels = torch.tensor([3, 0, 1, 3, 1], device=DEVICE)
    for counts in (None, count):
        total, number = loss.cluster_nll(mean, labels, 5, example_count=counts)
        want = reference.cluster_nll(
            wide(mean),
            labels.cpu().numpy(),
            5,
            example_count=None if counts is None else counts.cpu().numpy(),
        )
        np.testing.assert_allclose(wide(total), want[0], atol=5 * 2.0**-33)
        np.testing.assert_array_equal(number.cpu().numpy(), want[1])


# ---- on a GPU only -------------------------------------------------------------------------------


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
    labels, distances = assign.assign(x, centers, precision="exact")
    again, _ = assign.assign(x, centers, precision="exact")
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
    labels, _ = assign.assign(x, centers, precision="exact")
    assert labels[-16:].tolist() == list(range(16))
    sums, counts, _ = update.update(x, labels, 16, sample_weight=None, centers=None)
    assert float(counts.sum()) == n
    want = torch.zeros(16, dtype=torch.float64, device=DEVICE)
    want.index_add_(0, labels.long(), x[:, -1].double())
    torch.testing.assert_close(sums[:, -1], want, rtol=1e-12, atol=1e-9)


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
    blocked = loss.blocked_token_nll(hidden, lm_head, targets, **shared)
    torch.testing.assert_close(blocked, got, rtol=1e-5, atol=2e-5)


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
