"""KMeans and its parts against the float64 definitions.

A label is defined as an argmin over float64 distances. Ours sums the squares in another order than
the reference, so the two may differ where two centers are equally far within 1e-13;
`assert_nearest` allows that and nothing else.
"""

from __future__ import annotations

import math
import subprocess
import sys
import tracemalloc
from fractions import Fraction
from functools import reduce
from pathlib import Path

import numpy as np
import pytest

import pyids
from pyids import _core, reference
from pyids.clustering import lloyd, nearest, seeding

TIE = 1e-13


def blobs(n: int, d: int, k: int, seed: int, dtype: str = "float32") -> np.ndarray:
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(k, d))
    x = centers[rng.integers(k, size=n)] + 0.5 * rng.normal(size=(n, d))
    return x.astype(dtype)


def assert_nearest(x: np.ndarray, centers: np.ndarray, labels: np.ndarray) -> None:
    distances = reference.squared_distances(x, centers)
    nearest = distances.min(axis=1)
    own = np.take_along_axis(distances, labels[:, None].astype(int), axis=1)[:, 0]
    assert (own <= nearest * (1 + TIE)).all()


def hostile(name: str, n: int, d: int, rng: np.random.Generator) -> np.ndarray:
    x = rng.normal(size=(n, d))
    if name == "duplicates":
        x = x[rng.integers(max(1, n // 3), size=n)]
    elif name == "constant column":
        x[:, d // 2] = 3.0
    elif name == "massive column":
        x[:, d // 2] *= 1e3
    elif name == "tiny":
        x *= 1e-22 if d % 2 else 1e-40
    elif name == "huge":
        x *= 1e4 if d == 33 else 1e30
    elif name == "one far row":
        x[n // 2] *= 1e4
    elif name == "grid":  # many exact ties
        x = np.round(x)
    elif name == "far from the origin":
        x = 0.01 * x + 50 * rng.normal(size=d)
    elif name == "zero rows":
        x[::3] = 0
    return x


HOSTILE = (
    "plain", "duplicates", "constant column", "massive column", "tiny", "huge", "one far row",
    "grid", "far from the origin", "zero rows",
)  # fmt: skip


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize(
    ("n", "d", "k"), [(61, 1, 9), (300, 33, 40), (513, 65, 130), (90, 771, 17)]
)
def test_every_iteration_is_a_brute_force_one(
    n: int, d: int, k: int, name: str, dtype: str
) -> None:
    rng = np.random.default_rng(n * d)
    with np.errstate(over="ignore"):
        x = hostile(name, n, d, rng).astype(dtype)
    if not np.isfinite(x).all():  # too much for float16
        plain = hostile("plain", n, d, rng)
        x = (1e3 * plain).astype(dtype)
    centers = x[rng.choice(n, k, replace=False)].astype(np.float64)
    extent = lloyd.measure(x)
    scale = extent.scale()
    work = lloyd.ShardPass(x, k, extent, n_threads=2)
    for _ in range(6):
        partial = work.assign(centers)
        assert_nearest(x, centers, work.labels)
        sums = np.zeros((k, d), dtype=np.int64)
        terms = np.rint(x.astype(np.float64) * scale.columns).astype(np.int64)
        np.add.at(sums, work.labels, terms)
        np.testing.assert_array_equal(partial.sums, sums)
        far = work.farthest(2 * k) if (partial.mass == 0).any() else []
        centers, _ = lloyd.finish_update(partial, centers, extent, far=far, dtype=dtype)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize(("n", "d", "k"), [(1, 1, 1), (7, 3, 7), (130, 17, 5), (1000, 50, 33)])
def test_what_fit_returns_belongs_together(n: int, d: int, k: int, dtype: str) -> None:
    x = blobs(n, d, k, seed=n, dtype=dtype)
    model = pyids.KMeans(k, max_iter=4, tol=0).fit(x)
    distances = reference.squared_distances(x, model.cluster_centers_)
    assert_nearest(x, model.cluster_centers_, model.labels_)
    assert model.labels_.dtype == np.int32
    assert model.cluster_centers_.dtype == (np.float64 if dtype == "float64" else np.float32)
    np.testing.assert_array_equal(model.predict(x), model.labels_)
    own = distances[np.arange(n), model.labels_]
    np.testing.assert_allclose(model.inertia_, own.sum(), rtol=1e-12, atol=1e-20)
    np.testing.assert_allclose(-model.score(x), model.inertia_, rtol=1e-12, atol=1e-20)
    np.testing.assert_allclose(model.transform(x) ** 2, distances, rtol=1e-5, atol=1e-9)


def test_centers_may_lie_anywhere() -> None:
    x = blobs(300, 40, 5, seed=14)
    for far in (1e3, 1e12, 1e30):
        centers = np.concatenate([x[:3], far * x[3:6].astype(np.float64)])
        labels, _ = lloyd.assign_partial(x, centers, lloyd.measure(x))
        assert_nearest(x, centers, labels)
        labels, _ = lloyd.assign_partial(x, centers[3:], lloyd.measure(x))
        assert_nearest(x, centers[3:], labels)


def test_ties_go_to_the_lowest_index() -> None:
    x = np.array([[0.0], [2.0], [1.0]])
    centers = np.array([[2.0], [0.0], [0.0], [2.0]])
    labels, _ = lloyd.assign_partial(x, centers, lloyd.measure(x))
    np.testing.assert_array_equal(labels, [1, 0, 0])


def test_a_fit_is_the_references() -> None:
    x = blobs(400, 40, 12, seed=15, dtype="float64")
    model = pyids.KMeans(12, init=x[:12], max_iter=7, tol=0).fit(x)
    centers, labels = reference.lloyd(x, x[:12], 7)
    np.testing.assert_array_equal(model.labels_, labels)
    np.testing.assert_allclose(model.cluster_centers_, centers, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", HOSTILE)
def test_nearest_centers_are_the_references(name: str) -> None:
    x = hostile(name, 300, 33, np.random.default_rng(16))
    indices, distances = nearest.nearest_centers(x, x[:40], 3)
    expected, squares = reference.nearest_centers(x, x[:40], 3)
    np.testing.assert_allclose(distances, squares, rtol=TIE)
    differs = indices != expected
    assert name in ("duplicates", "grid", "zero rows") or not differs.any()
    with pytest.raises(ValueError, match="count=41: expected 1 to 40"):
        nearest.nearest_centers(x, x[:40], 41)


def test_simplified_silhouette_is_its_formula() -> None:
    x = blobs(200, 20, 5, seed=17)
    distances = np.sort(np.sqrt(reference.squared_distances(x, x[:5])), axis=1)
    expected = 1 - distances[:, 0] / distances[:, 1]
    np.testing.assert_allclose(nearest.simplified_silhouette(x, x[:5]), expected, atol=1e-12)


# ---- one result, however it is computed ----------------------------------------------------------


def same(a: pyids.KMeans, b: pyids.KMeans) -> None:
    np.testing.assert_array_equal(a.labels_, b.labels_)
    np.testing.assert_array_equal(a.cluster_centers_, b.cluster_centers_)
    assert (a.inertia_, a.n_iter_) == (b.inertia_, b.n_iter_)


@pytest.mark.parametrize("n_threads", [2, 3, 7])
def test_threads_change_no_bit(n_threads: int) -> None:
    x = blobs(3000, 100, 60, seed=1)
    same(
        pyids.KMeans(60, max_iter=10, n_threads=1).fit(x),
        pyids.KMeans(60, max_iter=10, n_threads=n_threads).fit(x),
    )


def test_shards_memory_maps_and_limits_change_no_bit(tmp_path: Path) -> None:
    x = blobs(3000, 100, 60, seed=1)
    np.save(tmp_path / "x.npy", x)
    whole = pyids.KMeans(60, max_iter=10).fit(x)
    same(whole, pyids.KMeans(60, max_iter=10).fit([x[:1], x[1:1700], x[1700:]]))
    same(whole, pyids.KMeans(60, max_iter=10).fit(np.load(tmp_path / "x.npy", mmap_mode="r")))
    same(whole, pyids.KMeans(60, max_iter=10, max_memory=1000).fit(x))
    same(whole, pyids.KMeans(60, max_iter=10).fit(np.repeat(x, 2, axis=0)[::2]))


def test_partial_passes_add_up_to_the_fit() -> None:
    x = blobs(2000, 24, 20, seed=2)
    shards = [x[:700], x[700:701], x[701:]]
    centers = x[:20].astype(np.float64)
    whole = pyids.KMeans(20, init=centers, max_iter=6, tol=0).fit(x)
    extent = reduce(lloyd.Extent.merge, map(lloyd.measure, shards))
    for _ in range(whole.n_iter_):
        parts = [lloyd.assign_partial(shard, centers, extent) for shard in reversed(shards)]
        total = reduce(lloyd.Partial.__add__, [partial for _, partial in parts])
        centers, _ = lloyd.finish_update(total, centers, extent)
    np.testing.assert_array_equal(centers.astype(np.float32), whole.cluster_centers_)


FINGERPRINT = """
import hashlib, sys
import numpy as np
import pyids
x = np.load(sys.argv[1])
m = pyids.KMeans(60, max_iter=10).fit(x)
print(hashlib.sha256(m.labels_.tobytes() + m.cluster_centers_.tobytes()).hexdigest(), m.inertia_)
"""


def in_child(code: str, *arguments: str, **environment: str) -> str:
    import os

    done = subprocess.run(
        [sys.executable, "-P", "-c", code, *arguments],
        env={**os.environ, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "this processor lacks it" in done.stderr:
        pytest.skip(f"the processor lacks {environment}")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("level", ["portable", "avx2", "avx512", "amx"])
def test_instruction_sets_change_no_bit(level: str, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", blobs(2000, 100, 60, seed=4))
    path = str(tmp_path / "x.npy")
    assert in_child(FINGERPRINT, path, PYIDS_SIMD=level) == in_child(FINGERPRINT, path)


def test_an_unknown_instruction_set_is_refused() -> None:
    code = "import pyids; pyids.KMeans(1).fit([[1.0]])"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env={"PYIDS_SIMD": "sse9"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "PYIDS_SIMD=sse9: choose portable, avx2, avx512 or amx" in done.stderr


def test_neither_torch_nor_scikit_learn_is_imported() -> None:
    code = (
        "import sys, pyids; pyids.KMeans(2).fit([[1.0], [2.0], [5.0]]); "
        "print([m for m in ('torch', 'sklearn', 'pandas') if m in sys.modules])"
    )
    assert in_child(code).strip() == "[]"


def test_rows_may_lie_beyond_two_to_the_31(tmp_path: Path) -> None:
    # A sparse file of 12 GiB: rows 2 GiB apart.
    far_apart = np.memmap(tmp_path / "x", dtype=np.float32, mode="w+", shape=(6, 2**29))
    near = blobs(6, 16, 2, seed=5)
    far_apart[:, :16] = near
    same(pyids.KMeans(2).fit(far_apart[:, :16]), pyids.KMeans(2).fit(near))


def test_shards_may_be_empty() -> None:
    x = blobs(60, 4, 3, seed=20)
    none = np.lib.stride_tricks.as_strided(x, shape=(0, 4), strides=(0, 0))
    same(pyids.KMeans(3).fit(x), pyids.KMeans(3).fit([x[:20], none, x[20:]]))
    labels, _ = lloyd.assign_partial(none, x[:3].astype(np.float64), lloyd.measure(x))
    assert labels.shape == (0,)
    assert lloyd.measure(none).n_rows == 0
    rows, _ = _core.filter_near([none], np.empty(0), np.empty(0, np.int64), 0, 0.5, 1)
    assert rows.shape == (0,)


# ---- sums ----------------------------------------------------------------------------------------


def test_means_are_off_by_no_more_than_stated() -> None:
    rng = np.random.default_rng(6)
    x = rng.normal(size=(4000, 3)) * [1e-6, 1.0, 1e6]
    extent = lloyd.measure(x)
    _, partial = lloyd.assign_partial(x, np.zeros((1, 3)), extent)
    new, _ = lloyd.finish_update(partial, np.zeros((1, 3)), extent, dtype=np.float64)
    for column in range(3):
        exact = sum(map(Fraction, x[:, column].tolist())) / len(x)
        # The stated bound, and the rounding of the quotient itself.
        bound = np.abs(x[:, column]).max() * 2.0**-51 + abs(float(exact)) * 2.0**-52
        assert abs(float(Fraction(float(new[0, column])) - exact)) <= bound


def test_weights_of_one_change_no_bit_and_of_two_count_twice() -> None:
    x = blobs(500, 40, 8, seed=7)
    start = x[:8]
    plain = pyids.KMeans(8, init=start).fit(x)
    same(plain, pyids.KMeans(8, init=start).fit(x, sample_weight=np.ones(500)))
    doubled = pyids.KMeans(8, init=start, tol=0).fit(np.concatenate([x, x[:100]]))
    weights = np.r_[np.full(100, 2.0), np.ones(400)]
    weighted = pyids.KMeans(8, init=start, tol=0).fit(x, sample_weight=weights)
    np.testing.assert_array_equal(doubled.cluster_centers_, weighted.cluster_centers_)
    np.testing.assert_allclose(doubled.inertia_, weighted.inertia_, rtol=1e-14)


@pytest.mark.parametrize("exponent", [-1060, -1000, 50, 1000, 1019])
@pytest.mark.parametrize("init", ["k-means++", "random"])
def test_the_unit_of_the_weights_changes_no_bit(init: str, exponent: int) -> None:
    x = blobs(500, 6, 4, seed=21)
    start = {"n_clusters": 4, "init": init, "tol": 1e-3}
    weights = np.random.default_rng(22).integers(1, 8, size=500).astype(np.float64)
    for plain in (np.ones(500), weights):
        model = pyids.KMeans(**start).fit(x, sample_weight=plain)
        scaled = np.ldexp(plain, exponent)
        other = pyids.KMeans(**start).fit(x, sample_weight=scaled)
        np.testing.assert_array_equal(model.labels_, other.labels_)
        np.testing.assert_array_equal(model.cluster_centers_, other.cluster_centers_)
        with np.errstate(over="ignore"):
            assert other.inertia_ == np.ldexp(model.inertia_, exponent)
            assert other.score(x, sample_weight=scaled) == -other.inertia_
    x = x.astype(np.float64)
    model = pyids.KMeans(**start).fit(x)
    for constant in (1e-310, 1e-300, 3.0, 1e305, 5e306):
        other = pyids.KMeans(**start).fit(x, sample_weight=np.full(500, constant))
        np.testing.assert_array_equal(model.labels_, other.labels_)
        np.testing.assert_allclose(model.cluster_centers_, other.cluster_centers_, rtol=1e-12)


def test_shards_without_weights_count_one_beside_weighted_ones() -> None:
    x = blobs(300, 6, 4, seed=23)
    weights = np.full(100, 1e6)
    start = x[:4].astype(np.float64)
    extent = lloyd.measure(x[:200]).merge(lloyd.measure(x[200:], sample_weight=weights))
    _, partial = lloyd.assign_partial(x[:200], start, extent)
    _, again = lloyd.assign_partial(x[:200], start, extent, sample_weight=np.ones(200))
    np.testing.assert_array_equal(partial.sums, again.sums)
    np.testing.assert_array_equal(partial.mass, again.mass)
    held = extent.scale().combine(partial.sums, partial.mass)[1].sum()
    assert math.ldexp(held, extent.weight_exponent()) == pytest.approx(200, rel=1e-6)


def test_the_inertia_of_huge_rows() -> None:
    x = blobs(300, 6, 4, seed=24, dtype="float64")
    model = pyids.KMeans(4, tol=0).fit(x)
    huge = pyids.KMeans(4, tol=0).fit(np.ldexp(x, 495), sample_weight=np.full(300, 2.0**20))
    np.testing.assert_array_equal(model.labels_, huge.labels_)
    assert huge.inertia_ == math.ldexp(model.inertia_, 1010)


def test_weightless_rows_are_labeled_but_do_not_pull() -> None:
    x = blobs(300, 10, 4, seed=8)
    weights = np.r_[np.ones(200), np.zeros(100)]
    start = x[:4]
    with_them = pyids.KMeans(4, init=start, tol=0).fit(x, sample_weight=weights)
    without = pyids.KMeans(4, init=start, tol=0).fit(x[:200])
    np.testing.assert_allclose(with_them.cluster_centers_, without.cluster_centers_, rtol=1e-6)
    assert_nearest(x, with_them.cluster_centers_, with_them.labels_)


# ---- empty clusters, seeding, cosine -------------------------------------------------------------


def test_an_empty_cluster_takes_the_farthest_row() -> None:
    x = np.array([[0.0], [1.0], [2.0], [50.0], [3.0]], dtype=np.float32)
    start = np.array([[1.5], [1000.0], [2000.0]])
    model = pyids.KMeans(3, init=start, max_iter=1).fit(x)
    # 50 first; then, of what cluster 0 is left with, 0 (as far as 3, but earlier).
    np.testing.assert_array_equal(np.sort(model.cluster_centers_[:, 0]), [0.0, 2.0, 50.0])
    assert model.cluster_centers_[1, 0] == 50.0


class InShards:
    """A pass over shards that know nothing of each other."""

    def __init__(
        self, shards: list[np.ndarray], weights: list[np.ndarray], n_clusters: int
    ) -> None:
        pairs = list(zip(shards, weights, strict=True))
        measured = (lloyd.measure(x, sample_weight=w) for x, w in pairs)
        self.extent = reduce(lloyd.Extent.merge, measured)
        self.parts = [
            lloyd.ShardPass(x, n_clusters, self.extent, sample_weight=w) for x, w in pairs
        ]
        self.first = np.cumsum([0, *map(len, shards)]).tolist()

    def assign(self, centers: np.ndarray) -> lloyd.Partial:
        return reduce(lloyd.Partial.__add__, (part.assign(centers) for part in self.parts))

    def inertia(self) -> int:
        return sum(part.inertia() for part in self.parts)

    def farthest(self, count: int) -> list[lloyd.FarRow]:
        numbered = zip(self.parts, self.first, strict=False)
        return [row for part, first in numbered for row in part.farthest(count, first)]


@pytest.mark.parametrize("light", [0.0, 1e-30])
def test_an_empty_cluster_takes_no_row_without_mass_however_shards_are_cut(light: float) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(450, 2)).astype(np.float32)
    x[:50] = 5 * x[:50] + 40
    weights = np.r_[np.full(50, light), np.ones(400)]
    start = np.array([[0, 0], [500, 500], [0.5, 0.5]])
    fits = []
    for cuts in ([], [50], [200, 300]):
        work = InShards(np.split(x, cuts), np.split(weights, cuts), 3)
        fits.append(lloyd.lloyd(work, start, work.extent, max_iter=10))
        assert np.abs(fits[-1].centers).max() < 10
    assert fits[0].inertia == fits[1].inertia == fits[2].inertia
    for fit in fits:
        np.testing.assert_array_equal(fit.centers, fits[0].centers)


def test_fewer_distinct_rows_than_clusters() -> None:
    x = np.repeat(np.array([[0.0, 0.0], [1.0, 1.0]], dtype=np.float32), 5, axis=0)
    model = pyids.KMeans(4).fit(x)
    assert model.inertia_ == 0
    assert np.isfinite(model.cluster_centers_).all()


def test_seeding_is_as_good_as_scikit_learns() -> None:
    cluster = pytest.importorskip("sklearn.cluster", reason="scikit-learn")
    x = blobs(2000, 40, 60, seed=9)

    def potential(centers: np.ndarray) -> float:
        return float(reference.squared_distances(x, centers).min(axis=1).sum())

    ours = [potential(seeding.seed_centers([x], 60, seed=s)) for s in range(8)]
    theirs = [potential(cluster.kmeans_plusplus(x, 60, random_state=s)[0]) for s in range(8)]
    assert np.mean(ours) <= 1.02 * np.mean(theirs)


def test_seeding_draws_in_proportion_to_the_squared_distance() -> None:
    # Two clusters, two trials: the better of two rows drawn with p ~ weight * distance^2.
    x = np.array([[0.0], [1.0], [2.0], [3.0]])
    second = np.zeros(4)
    first_is_zero = 0
    for seed in range(3000):
        first, other = seeding.seed_centers([x], 2, seed=seed)[:, 0].astype(int)
        if first == 0:
            first_is_zero += 1
            second[other] += 1
    p = np.array([0.0, 1.0, 4.0, 9.0]) / 14
    potentials = np.array([np.inf, 5.0, 2.0, 2.0])  # of {0, row}
    expected = np.zeros(4)
    for i in range(1, 4):
        for j in range(1, 4):  # the first of equals wins
            expected[i if potentials[i] <= potentials[j] else j] += p[i] * p[j]
    sigma = np.sqrt(first_is_zero * expected * (1 - expected))
    assert (np.abs(second - first_is_zero * expected) <= 4 * sigma + 1e-9).all()


def test_large_seedings_look_at_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seeding, "SEEDING_ROWS_PER_CLUSTER", 20)
    x = blobs(3000, 20, 30, seed=10)
    centers = seeding.seed_centers([x], 30)
    again = seeding.seed_centers([x[:100], x[100:]], 30)
    np.testing.assert_array_equal(centers, again)
    assert len(np.unique(centers, axis=0)) == 30


def test_large_weighted_seedings_draw_by_weight() -> None:
    rng = np.random.default_rng(18)
    x = rng.normal(size=(20000, 2))
    for light in (0.0, 1e-9):  # of all but a few rows, far fewer than a sample has
        weights = np.full(20000, light)
        heavy = rng.choice(20000, 100, replace=False)
        weights[heavy] = rng.uniform(1, 2, size=100)
        for seed in range(20):
            centers = seeding.seed_centers([x], 2, seed=seed, sample_weight=weights)
            cut = seeding.seed_centers([x[:9], x[9:]], 2, seed=seed, sample_weight=weights)
            np.testing.assert_array_equal(centers, cut)
            assert len(np.unique(centers, axis=0)) == 2
            assert np.isin(centers[:, 0], x[heavy, 0]).all()
    equal = seeding.seed_centers([x], 2, sample_weight=np.full(20000, 3.0))
    np.testing.assert_array_equal(equal, seeding.seed_centers([x], 2))


def test_a_weighted_sample_is_drawn_in_proportion() -> None:
    weights = np.r_[np.full(300, 1.0), np.zeros(50), np.full(150, 2.0), 1000.0]
    counts = np.zeros(501)
    for seed in range(400):
        rows, drawn = seeding.spread_sample(501, 41, seed, weights)
        assert drawn is not None
        assert len(np.unique(rows)) == 41
        counts[rows] += drawn[rows]
        np.testing.assert_allclose(drawn[rows].sum(), weights.sum())
    assert counts[-1] == 400 * 1000
    np.testing.assert_allclose(counts[:300].sum() / 400, 300, rtol=0.03)
    np.testing.assert_allclose(counts[350:-1].sum() / 400, 300, rtol=0.03)
    assert not counts[300:350].any()


def test_random_starts_are_distinct_rows() -> None:
    x = np.arange(50, dtype=np.float32)[:, None]
    assert len(np.unique(seeding.seed_centers([x], 50, init="random"))) == 50


def test_cosine_is_spherical() -> None:
    x = blobs(400, 30, 6, seed=11) + 0.5
    x *= np.random.default_rng(0).uniform(0.1, 10, size=(400, 1)).astype(np.float32)
    model = pyids.KMeans(6, metric="cosine", max_iter=20, tol=0).fit(x)
    np.testing.assert_allclose(np.linalg.norm(model.cluster_centers_, axis=1), 1, rtol=1e-6)
    unit = x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    cosines = unit @ model.cluster_centers_.T.astype(np.float64)
    best = cosines.max(axis=1)
    assert (cosines[np.arange(400), model.labels_] >= best - 1e-7).all()
    np.testing.assert_array_equal(model.predict(7 * x), model.labels_)


def test_inertia_is_scikit_learns() -> None:
    cluster = pytest.importorskip("sklearn.cluster", reason="scikit-learn")
    x = blobs(3000, 48, 50, seed=12)
    start = x[:50]
    ours = pyids.KMeans(50, init=start, max_iter=8, tol=0).fit(x)
    theirs = cluster.KMeans(50, init=start, n_init=1, max_iter=8, tol=0).fit(x)
    assert math.isclose(ours.inertia_, theirs.inertia_, rel_tol=1e-4)
    assert ours.n_iter_ == theirs.n_iter_
    loose = pyids.KMeans(50, init=start, max_iter=300, tol=1e-2).fit(x)
    assert loose.n_iter_ == cluster.KMeans(50, init=start, n_init=1, tol=1e-2).fit(x).n_iter_


# ---- complaints ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_clusters": 0}, "n_clusters=0: expected an integer >= 1"),
        ({"n_clusters": True}, "n_clusters=True: expected an integer >= 1"),
        ({"tol": "small"}, "tol='small': expected a number >= 0"),
        ({"n_clusters": 21}, "n_samples=20 should be >= n_clusters=21"),
        ({"max_iter": 1.5}, "max_iter=1.5"),
        ({"tol": -1.0}, "tol=-1.0"),
        ({"metric": "manhattan"}, "metric='manhattan': expected one of"),
        ({"device": "tpu"}, "device='tpu'"),
        ({"init": "first"}, "init='first'"),
        ({"init": np.zeros((2, 2))}, r"init: shape \(2, 2\), expected"),
        ({"init": np.full((3, 4), np.nan)}, "init: row 0 contains NaN"),
        ({"n_threads": -3}, "n_threads is -3: must be at least 1"),
        ({"max_memory": -1}, "max_memory is -1: must not be negative"),
        ({"random_state": -1}, r"seed is -1: must lie in \[0, 2\*\*64\)"),
        ({"random_state": 2**64, "init": "random"}, "seed is 18446744073709551616: must lie"),
    ],
)
def test_bad_parameters_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pyids.KMeans(**{"n_clusters": 3, **change}).fit(blobs(20, 4, 3, seed=13))


def test_seeds_go_round_at_two_to_the_64() -> None:
    x = blobs(50, 4, 3, seed=25)
    assert pyids.KMeans(3, n_init=2, random_state=2**64 - 1).fit(x).inertia_ > 0


def test_one_weight_is_every_row_s() -> None:
    x = blobs(50, 4, 3, seed=26)
    same(
        pyids.KMeans(3).fit(x, sample_weight=2.0),
        pyids.KMeans(3).fit(x, sample_weight=np.full(50, 2.0)),
    )


def test_the_parts_name_what_is_bad_too() -> None:
    x = blobs(50, 4, 3, seed=27)
    with pytest.raises(ValueError, match=r"init='kmeans\|\|': expected one of"):
        seeding.seed_centers([x], 3, init="kmeans||")
    with pytest.raises(ValueError, match="seed is -1"):
        seeding.seed_centers([x], 3, seed=-1)
    with pytest.raises(ValueError, match="n_threads is -3"):
        lloyd.measure(x, n_threads=-3)
    bad = x[:3].astype(np.float64)
    bad[1, 2] = np.nan
    with pytest.raises(ValueError, match="centers: row 1 contains NaN"):
        nearest.nearest_centers(x, bad, 2)
    with pytest.raises(ValueError, match=r"centers: shape \(4,\), expected \(K, D\)"):
        nearest.nearest_centers(x, x[0])
    extent = lloyd.measure(x)
    with pytest.raises(ValueError, match="center 1, column 2 is NaN"):
        lloyd.assign_partial(x, bad, extent)
    work = lloyd.ShardPass(x, 3, extent)
    work.assign(x[:3].astype(np.float64))
    with pytest.raises(ValueError, match="center 1, column 2 is NaN"):
        work.assign(bad)


def test_bad_rows_are_named() -> None:
    x = blobs(500, 4, 3, seed=3)
    x[421, 2] = np.inf
    with pytest.raises(ValueError, match=r"row 421, column 2 is infinity"):
        pyids.KMeans(3).fit(x)
    x[77, 1] = np.nan
    for shards in (x, [x[:200], x[200:]]):
        with pytest.raises(ValueError, match=r"row 77, column 1 is NaN"):
            pyids.KMeans(3).fit(shards)
    x = np.ones((10, 4))
    x[6] = 0
    with pytest.raises(ValueError, match=r"row 6 is all zeros"):
        pyids.KMeans(3, metric="cosine").fit(x)
    with pytest.raises(ValueError, match=r"sample_weight of row 4 is -1"):
        pyids.KMeans(3).fit(x, sample_weight=[1, 1, 1, 1, -1, 1, 1, 1, 1, 1])
    with pytest.raises(ValueError, match="shards differ in width"):
        pyids.KMeans(3).fit([x, x[:, :3]])


def test_a_sample_of_a_large_pool_takes_no_memory_for_its_rows():
    tracemalloc.start()
    rows, _ = seeding.spread_sample(10**12, 1000, 0, None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(rows) == 1000
    assert rows[-1] > 0.9 * 10**12
    assert peak < 1 << 20
