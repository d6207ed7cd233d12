"""The whole fit on the device against the C++ core: the same labels and centers, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

clustering = pytest.importorskip(
    "pyids.clustering.lloyd", reason="the C++ core is not built", exc_type=ImportError
)
from pyids.kernels import lloyd  # noqa: E402

from pyids.clustering.kmeans import KMeans  # noqa: E402  only where the core is built

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MAX_ITER = 4


def mixture(n, k, d, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(n, d)) + 3 * rng.integers(0, 4, n)[:, None]).astype(dtype)
    return x, x[rng.choice(n, k, replace=False)].copy()


def on_the_core(shards, centers, *, sample_weight=None, tol=1e-4, max_iter=MAX_ITER):
    wide = shards[0].dtype == np.float64
    extent = clustering.measure(shards, sample_weight=sample_weight)
    work = clustering.ShardPass(shards, len(centers), extent, sample_weight=sample_weight)
    fit = clustering.lloyd(
        work,
        centers.astype(np.float64),
        extent,
        max_iter=max_iter,
        tol=tol,
        dtype=np.float64 if wide else np.float32,
    )
    return work.labels, fit.centers, fit.inertia, fit.n_iter


def check(shards, centers, *, sample_weight=None, tol=1e-4, max_iter=MAX_ITER, **options):
    options.setdefault("devices", [DEVICE])
    got = lloyd.fit(
        shards, centers, max_iter=max_iter, tol=tol, sample_weight=sample_weight, **options
    )
    want = on_the_core(shards, centers, sample_weight=sample_weight, tol=tol, max_iter=max_iter)
    np.testing.assert_array_equal(got[0], want[0])
    np.testing.assert_array_equal(got[1], want[1])
    assert got[2] == pytest.approx(want[2], rel=1e-13)
    assert got[3] == want[3]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_fit_is_the_core_s(dtype):
    x, centers = mixture(123, 5, 9, dtype)
    check([x[:40], x[40:41], x[41:]], centers)


@pytest.mark.parametrize(
    "options",
    [
        {"devices": [DEVICE, DEVICE]},
        {"memory_bytes": 8000},
        {"devices": [DEVICE] * 2, "memory_bytes": 2400},
    ],
    ids=["two devices", "streamed", "two devices, streamed"],
)
def test_devices_and_blocks_leave_no_trace(options):
    x, centers = mixture(123, 5, 9, seed=1)
    check([x[:40], x[40:]], centers, **options)


def test_weights_and_a_tolerance_of_zero():
    x, centers = mixture(90, 4, 5, seed=2)
    weights = np.random.default_rng(3).random(90)
    weights[::9] = 0
    check([x], centers, sample_weight=weights, tol=0.0)


@pytest.mark.parametrize("options", [{}, {"memory_bytes": 3000}], ids=["resident", "streamed"])
def test_empty_clusters_take_the_farthest_rows(options):
    x, centers = mixture(80, 7, 3, seed=4)
    centers[3], centers[5], centers[6] = 100, -100, centers[0]
    check([x], centers, **options)


def test_rows_without_mass_fill_no_empty_cluster():
    x, centers = mixture(80, 3, 2, seed=9)
    x[:20] += 40
    weights = np.r_[np.zeros(10), np.full(10, 1e-30), np.ones(60)]
    centers[1] = 500
    check([x], centers, sample_weight=weights)
    check([x], centers, sample_weight=weights, devices=[DEVICE] * 2)


@pytest.mark.parametrize("max_iter", [0, 1, 2])
def test_stopped_early_the_labels_are_those_of_the_centers(max_iter):
    x, centers = mixture(60, 4, 3, seed=5)
    check([x], centers, max_iter=max_iter)


def test_memory_maps_and_tensors_are_read_alike(tmp_path):
    x, centers = mixture(60, 4, 3, seed=6)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    shared = {"max_iter": 3, "tol": 0.0, "devices": [DEVICE]}
    want = lloyd.fit([x], centers, **shared)
    for chunks in ([mapped[:20], mapped[20:]], torch.from_numpy(x).to(DEVICE), mapped):
        got = lloyd.fit(chunks, centers, **shared)
        np.testing.assert_array_equal(got[0], want[0])
        np.testing.assert_array_equal(got[1], want[1])


def test_a_row_that_is_not_finite_is_named():
    x, centers = mixture(60, 4, 3, seed=7)
    x[41, 1] = np.nan
    with pytest.raises(ValueError, match="row 41 has a NaN"):
        lloyd.fit([x[:30], x[30:]], centers, max_iter=3, tol=0.0, devices=[DEVICE])
    with pytest.raises(ValueError, match="row 41 has a NaN"):
        lloyd.fit([x], centers, max_iter=3, tol=0.0, devices=[DEVICE], memory_bytes=800)


def test_the_estimator_runs_on_it(monkeypatch):
    x, centers = mixture(90, 4, 5, seed=8)
    if DEVICE == "cpu" and not lloyd.INTERPRETED:
        pytest.skip("triton was imported without TRITON_INTERPRET=1, and there is no CUDA device")
    there = KMeans(4, init=centers, n_init=1, device="cuda", max_iter=5).fit(x)
    here = KMeans(4, init=centers, n_init=1, device="cpu", max_iter=5).fit(x)
    np.testing.assert_array_equal(there.labels_, here.labels_)
    np.testing.assert_array_equal(there.cluster_centers_, here.cluster_centers_)
    model = KMeans(4, init=centers, n_init=1, device="cuda", max_iter=5)
    weighted = model.fit(x, sample_weight=np.full(90, 2.0**1010))
    np.testing.assert_array_equal(weighted.cluster_centers_, here.cluster_centers_)
    assert weighted.inertia_ == pytest.approx(here.inertia_ * 2.0**1010, rel=1e-13)
    monkeypatch.setattr(lloyd, "fit", lambda *data, **options: pytest.fail("not asked for"))
    KMeans(4, init=centers, n_init=1, max_iter=1).fit(x)
    monkeypatch.setenv("PYIDS_BACKEND", "triton")
    KMeans(4, init=centers, n_init=1, max_iter=1, metric="cosine").fit(x)
    with pytest.raises(pytest.fail.Exception, match="not asked for"):
        KMeans(4, init=centers, n_init=1, max_iter=1).fit(x)
