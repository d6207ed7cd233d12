"""What the core promises without exception: labels, means, memory, threads, arrays that change."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from fractions import Fraction
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyids
import pyids.sampling
from pyids import _core, reference
from pyids.clustering import choose_k, kmeans, lloyd, nearest, seeding

LEVELS = ["portable", "avx2", "avx512", "amx"]


def in_child(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env={**os.environ, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "this processor lacks it" in done.stderr:
        pytest.skip(f"the processor lacks {environment}")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_core_has_no_streams() -> None:
    # Where the C++ library is part of the extension, its streams' locales get mixed up with those
    # of another extension's copy, and the first read crashes (seen with GCC 13 and NumPy 2.5).
    library = Path(_core.__file__).read_bytes()
    assert b"resolve_threads" in library
    assert [name for name in (b"basic_ifstream", b"stringstream") if name in library] == []


# ---- labels --------------------------------------------------------------------------------------


def test_a_row_goes_to_the_nearer_of_two_centers_almost_as_far() -> None:
    centers = np.array([[0.0], [2.000005]], np.float32)
    model = pyids.KMeans(2, init=centers, max_iter=1).fit(centers)
    own = int(np.flatnonzero(model.cluster_centers_[:, 0] == 0)[0])
    np.testing.assert_array_equal(model.predict([[1.0], [-1.0]]), [own, own])


@pytest.mark.parametrize("seed", range(12))
def test_labels_are_those_of_predict_at_ties(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, d, k = int(rng.integers(12, 300)), int(rng.integers(1, 5)), int(rng.integers(2, 9))
    x = rng.integers(-2, 3, (n, d)).astype(rng.choice(["float16", "float32", "float64"]))
    for algorithm in ("lloyd", "two-level"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            model = pyids.KMeans(k, max_iter=3, algorithm=algorithm, random_state=seed).fit(x)
        np.testing.assert_array_equal(model.labels_, model.predict(x))
        distances = reference.squared_distances(x, model.cluster_centers_)
        np.testing.assert_array_equal(model.labels_, distances.argmin(axis=1))


@pytest.mark.parametrize("level", LEVELS)
def test_levels_end_in_one_clustering_of_a_grid(level: str) -> None:
    code = (
        "import numpy as np, pyids\n"
        "x = np.random.default_rng(1).integers(-2, 3, (1500, 4)).astype('f4')\n"
        "print(repr(pyids.KMeans(64, random_state=0).fit(x).inertia_))"
    )
    assert in_child(code, PYIDS_SIMD=level) == in_child(code)


# ---- means ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("span", [0, 5, 40, 300, 620])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_weighted_means_are_right_for_any_finite_weights(span: int, offset: float) -> None:
    rng = np.random.default_rng(span)
    n, d, k = 200, 3, 6
    x = rng.normal(size=(n, d)) + offset
    weights = 10.0 ** np.clip(rng.uniform(-span / 2, span / 2, n), -320, 308)
    weights[rng.random(n) < 0.1] = 0
    extent = lloyd.measure(x, sample_weight=weights)
    centers = x[:k].copy()
    work = lloyd.ShardPass(x, k, extent, sample_weight=weights)
    partial = work.assign(centers)
    new, _ = lloyd.finish_update(partial, centers, extent, dtype=np.float64)
    exact_weights = [Fraction(w) for w in weights.tolist()]
    for j in range(k):
        rows = [i for i in range(n) if work.labels[i] == j and weights[i] > 0]
        total = sum(exact_weights[i] for i in rows)
        for t in range(d):
            mean = sum(exact_weights[i] * Fraction(float(x[i, t])) for i in rows) / total
            assert abs(float(Fraction(float(new[j, t])) - mean)) <= 1e-12 * np.ptp(x[:, t])
    parts = [
        lloyd.ShardPass(x[a:b], k, extent, sample_weight=weights[a:b]).assign(centers)
        for a, b in [(0, 50), (50, 51), (51, n)]
    ]
    summed = reduce(lloyd.Partial.__add__, parts)
    np.testing.assert_array_equal(summed.sums, partial.sums)
    np.testing.assert_array_equal(summed.mass, partial.mass)


def test_a_cluster_of_light_rows_has_its_own_mean() -> None:
    x = np.array([[1.0], [1], [5], [5], [100], [104]])
    weights = np.r_[[10**7.5] * 4, [10**-7.5] * 2]
    start = np.array([[1.0], [5], [100]])
    model = pyids.KMeans(3, init=start, tol=0).fit(x, sample_weight=weights)
    assert model.cluster_centers_.ravel().tolist() == [1, 5, 102]


# ---- threads and memory --------------------------------------------------------------------------


def test_threads_that_cannot_be_started_are_done_without() -> None:
    code = """
import resource, numpy as np, pyids
from pyids.methods import greedy
x = np.random.default_rng(0).normal(size=(20000, 32)).astype("f4")
a = pyids.KMeans(50, n_threads=2).fit(x)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20),) * 2)
b = pyids.KMeans(50, n_threads=20000).fit(x)
assert (a.labels_ == b.labels_).all()
drawn = pyids.sample_by_cluster(a.labels_, np.full(50, 9), seed=0, n_threads=10**9)
assert len(drawn) == 450
assert len(greedy.farthest_first(x, 3, threads=10**9).rows) == 3
"""
    in_child(code)


def test_memory_does_not_grow_with_clusters_times_threads() -> None:
    code = """
import resource, numpy as np, pyids
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
rng = np.random.default_rng(0)
x = rng.normal(size=(30000, 16)).astype("f4")
pyids.KMeans(4, n_threads=2).fit(x)
start = peak()
pyids.KMeans(20000, init=x[:20000], max_iter=1, n_threads=64, max_memory=0).fit(x)
print(peak() - start)
labels, weights = rng.integers(0, 100000, 10**6).astype("i4"), rng.random(10**6)
start = peak()
quotas = np.full(100000, 2)
pyids.sample_by_cluster(labels, quotas, weights=weights, seed=0, n_threads=64, allow_fewer=True)
print(peak() - start)
"""
    clustering, sampling = map(float, in_child(code).split())
    assert clustering < 120
    assert sampling < 160


@pytest.mark.parametrize(
    "call",
    [
        "pyids.KMeans(4000).fit(x)",
        "pyids.KMeans(3000, init='random', max_iter=300, tol=0).fit(x)",
        "greedy.facility_location(x[:30000], 400)",
        "[pyids.sample_by_cluster(np.zeros(10**7, 'i4'), [10**5], seed=i) for i in range(200)]",
    ],
)
def test_long_calls_end_with_ctrl_c(call: str) -> None:
    code = f"""
import os, signal, threading, time
import numpy as np, pyids
from pyids.methods import greedy
x = np.random.default_rng(0).normal(size=(150000, 64)).astype("f4")
def interrupt():
    time.sleep(0.5)
    globals()["sent"] = time.time()
    os.kill(os.getpid(), signal.SIGINT)
pyids.KMeans(2).fit(x[:99])
threading.Thread(target=interrupt).start()
try:
    {call}
except KeyboardInterrupt:
    print(time.time() - sent)
"""
    assert float(in_child(code)) < 1  # 0.05 on a machine with nothing else to do


# ---- arrays that change --------------------------------------------------------------------------


def test_arrays_that_another_thread_writes_do_no_harm() -> None:
    code = """
import threading, time
import numpy as np, pyids
n, k = 60000, 20
rng = np.random.default_rng(0)
labels, weights = rng.integers(0, k, n).astype("i4"), rng.random(n)
ids, exclude, mask = rng.permutation(n) * 3, np.arange(0, n, 7), np.zeros(n, bool)
quotas, x, done = np.full(k, 100), rng.normal(size=(3000, 24)).astype("f4"), False
def disturb():
    r = np.random.default_rng(1)
    while not done:
        i = r.integers(0, n, 3000)
        labels[i] = r.integers(-2**31, 2**31 - 1, 3000)
        labels[i] = r.integers(0, k, 3000)
        weights[i] = r.choice([np.nan, -1, np.inf, 1e300, 0.0], 3000)
        weights[i] = 1.0
        ids[i] = r.integers(-2**62, 2**62, 3000)
        exclude[i % len(exclude)] = r.integers(-2**62, 2**62, 3000)
        mask[i] ^= True
        quotas[i % k] = r.integers(-5, 3000)
        x[i % 3000] = r.choice([np.nan, np.inf, 1e30, 1.0])
thread = threading.Thread(target=disturb)
thread.start()
end, seed = time.time() + 3, 0
options = [{}, {"weights": weights}, {"log_weights": weights}, {"row_ids": ids},
           {"weights": weights, "exclude": exclude}, {"exclude": mask},
           {"weights": weights, "row_ids": ids, "exclude": exclude}]
while time.time() < end:
    seed += 1
    try:
        kwargs = options[seed % len(options)]
        pyids.sample_by_cluster(labels, quotas, seed=seed, return_keys=seed % 2 > 0,
                                allow_fewer=True, **kwargs)
    except ValueError:
        pass
    try:
        pyids.KMeans(5, max_iter=3).fit(x)
    except (ValueError, UserWarning):
        pass
done = True
"""
    in_child(code, PYTHONWARNINGS="ignore")


def test_rows_and_extents_of_different_widths_are_refused() -> None:
    x = np.zeros((5, 8), np.float32)
    extent = lloyd.measure(np.ones((5, 3), np.float32))
    with pytest.raises(ValueError, match="extent is of rows with 3 columns, these have 8"):
        lloyd.assign_partial(x, np.zeros((2, 8)), extent)
    work = lloyd.ShardPass(x, 2, lloyd.measure(x))
    with pytest.raises(RuntimeError, match="call assign first"):
        work.farthest(2)


# ---- the front -----------------------------------------------------------------------------------


def test_rows_in_another_byte_order_are_the_same_rows() -> None:
    x = np.random.default_rng(0).normal(size=(300, 5)).astype("f4")
    swapped = x.astype(">f4")
    model = pyids.KMeans(4).fit(x)
    other = pyids.KMeans(4).fit(swapped)
    np.testing.assert_array_equal(model.cluster_centers_, other.cluster_centers_)
    np.testing.assert_array_equal(model.predict(swapped), model.labels_)
    centers = seeding.seed_centers([x], 3)
    np.testing.assert_array_equal(seeding.seed_centers([swapped], 3), centers)
    np.testing.assert_array_equal(
        nearest.simplified_silhouette(x, centers), nearest.simplified_silhouette(swapped, centers)
    )
    assert choose_k.choose_k([x], seed=0).k == choose_k.choose_k([swapped], seed=0).k
    with pytest.raises(TypeError, match="byte order"):
        _core.largest_values([swapped], None, 1)


def test_columns_of_data_frames_are_remembered() -> None:
    pd = pytest.importorskip("pandas")
    x = pd.DataFrame(np.random.default_rng(0).normal(size=(50, 3)), columns=["a", "b", "c"])
    model = pyids.KMeans(2).fit(x)
    assert model.feature_names_in_.tolist() == ["a", "b", "c"]
    with pytest.raises(ValueError, match="must be in the same order as they were in fit"):
        model.predict(x[["b", "a", "c"]])
    with pytest.raises(ValueError, match="unseen at fit time:\n- d"):
        model.predict(x.rename(columns={"a": "d"}))
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        model.predict(x.to_numpy())
    frame = model.set_output(transform="pandas").transform(x)
    assert frame.columns.tolist() == ["kmeans0", "kmeans1"]
    assert model.get_feature_names_out().tolist() == ["kmeans0", "kmeans1"]
    assert not hasattr(pyids.KMeans(2).fit(x.to_numpy()), "feature_names_in_")


def test_fewer_distinct_rows_than_clusters_are_warned_of() -> None:
    with pytest.warns(UserWarning, match=r"distinct clusters \(2\) found smaller than n_clusters"):
        pyids.KMeans(4).fit(np.array([[1.0], [2.0]] * 4))


@pytest.mark.parametrize("ids", [[0, 5, 2, 5], [0, 1, 1, 2], [2**62, -(2**62), 7, 2**62]])
def test_row_ids_that_occur_twice_are_refused(ids: list[int]) -> None:
    with pytest.raises(ValueError, match=r"row_ids has \d+ twice"):
        pyids.sample_by_cluster(np.zeros(4, np.int32), [2], row_ids=ids, seed=0)


def test_a_draw_from_no_cluster_is_refused() -> None:
    for options in ({"weights": np.ones(5)}, {"log_weights": np.ones(5)}, {}):
        kwargs: dict[str, Any] = {"seed": 0, **options}
        with pytest.raises(ValueError, match="there is no cluster, as quotas is empty"):
            pyids.sample_by_cluster(np.arange(5, dtype=np.int32), [], **kwargs)


# ---- many clusters -------------------------------------------------------------------------------


def text_like(n: int, d: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(60, d))
    x: np.ndarray = centers[rng.integers(0, 60, n)] + 0.5 * rng.normal(size=(n, d))
    return x.astype(np.float32)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_two_levels_come_near_lloyd_and_depend_on_rows_and_seed_alone(metric: Any) -> None:
    x = text_like(6000, 24, 0)
    weights = np.random.default_rng(1).integers(0, 3, 6000).astype(float)
    options: dict[str, Any] = {"metric": metric, "random_state": 3}
    model = pyids.KMeans(300, algorithm="two-level", n_threads=1, **options)
    model.fit(x, sample_weight=weights)
    cut = pyids.KMeans(300, algorithm="two-level", n_threads=3, max_memory=0, **options)
    cut.fit([x[:100], x[100:4000], x[4000:]], sample_weight=weights)
    np.testing.assert_array_equal(model.labels_, cut.labels_)
    np.testing.assert_array_equal(model.cluster_centers_, cut.cluster_centers_)
    np.testing.assert_array_equal(model.labels_, model.predict(x))
    full = pyids.KMeans(300, algorithm="lloyd", **options).fit(x, sample_weight=weights)
    assert model.inertia_ < 1.05 * full.inertia_
    random = pyids.KMeans(300, init="random", max_iter=1, **options).fit(x, sample_weight=weights)
    assert model.inertia_ < random.inertia_


def test_a_fit_on_a_sample_labels_all_rows() -> None:
    x = text_like(20000, 12, 4)
    model = pyids.KMeans(20, rows_per_cluster=64, random_state=1).fit(x)
    assert len(model.labels_) == 20000
    np.testing.assert_array_equal(model.labels_, model.predict(x))
    assert model.inertia_ == -model.score(x)
    again = pyids.KMeans(20, rows_per_cluster=64, random_state=1).fit([x[:7], x[7:]])
    np.testing.assert_array_equal(model.cluster_centers_, again.cluster_centers_)
    full = pyids.KMeans(20, rows_per_cluster=None, random_state=1).fit(x)
    assert full.inertia_ <= model.inertia_ < 1.2 * full.inertia_


def test_large_fits_go_by_a_sample_and_two_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    x = text_like(5000, 8, 5)
    monkeypatch.setattr(kmeans, "_TWO_LEVEL_CLUSTERS", 16)
    monkeypatch.setattr(kmeans, "_SAMPLE_ROWS_PER_CLUSTER", 100)
    small = pyids.KMeans(16, random_state=0).fit(x)
    monkeypatch.setattr(kmeans, "_LARGE_WORK", 1e5)
    large = pyids.KMeans(16, random_state=0).fit(x)
    stated = pyids.KMeans(16, random_state=0, algorithm="two-level", rows_per_cluster=100).fit(x)
    np.testing.assert_array_equal(large.labels_, stated.labels_)
    asked = pyids.KMeans(16, random_state=0, algorithm="lloyd", rows_per_cluster=None).fit(x)
    np.testing.assert_array_equal(small.labels_, asked.labels_)
    assert not np.array_equal(small.cluster_centers_, large.cluster_centers_)


# ---- draws in shards, picks at every level -------------------------------------------------------


@pytest.mark.parametrize("kind", ["weights", "log_weights", "none"])
def test_floors_of_earlier_shards_change_no_draw(kind: str) -> None:
    rng = np.random.default_rng(0)
    n, k = 30000, 5
    labels = rng.integers(0, k, n).astype(np.int32)
    weights = rng.gamma(1, size=n)
    quotas = np.array([0, 40, 300, 1000, 7])
    given = {"weights": weights, "log_weights": np.log(weights), "none": None}[kind]
    # Fewer waiting rows before draws are merged, so that the floors rise.
    drawn = pyids.sampling.ShardedSample(quotas)
    drawn._limit = 1500
    sizes = []
    for first in range(0, n, 3000):
        here = slice(first, first + 3000)
        options: dict[str, Any] = {} if given is None else {kind: given[here]}
        part = pyids.sample_by_cluster(
            labels[here], quotas, row_ids=np.arange(first, first + 3000), seed=4,
            return_keys=True, allow_fewer=True, floors=drawn.floors, **options,
        )  # fmt: skip
        sizes.append(len(part.row_ids))
        drawn.add(part)
    options = {} if given is None else {kind: given}
    whole = pyids.sample_by_cluster(labels, quotas, seed=4, **options)
    np.testing.assert_array_equal(drawn.result().row_ids, whole)
    assert sizes[-1] < sizes[0] / 2


@pytest.mark.parametrize("level", LEVELS)
def test_levels_pick_the_same_rows(level: str) -> None:
    code = """
import numpy as np
from pyids import neighbors
from pyids.methods import greedy
x = np.random.default_rng(0).integers(-2, 3, (900, 12)).astype("f4")
x[np.all(x == 0, axis=1)] = 1
picks = greedy.facility_location(x, 60), greedy.facility_location(x, 20, epsilon=0.2, seed=1)
novel = greedy.novel_select(x, 60, weights=np.ones(900), horizon=20)
print([p.rows.tolist() + p.values.tolist() for p in (*picks, novel)])
# Cosines of small integers: many lie at the threshold, and at the last neighbor that counts.
y = np.random.default_rng(1).integers(0, 2, (900, 12)).astype("f4")
y[np.all(y == 0, axis=1)] = 1
kept = [neighbors.filter_near(y, np.arange(900), 400, threshold=t) for t in (0.5, 2 / 3, 0.75)]
print([p.rows.tolist() for p in kept])
print(neighbors.neighbor_distances(x, 5).tolist(), neighbors.neighbor_distances(y, 3).tolist())
print(neighbors.neighbor_distances(y, 3, reference=np.arange(0, 900, 2)).tolist())
"""
    assert in_child(code, PYIDS_SIMD=level) == in_child(code)


@pytest.mark.parametrize(
    ("load", "given", "policy"),
    [(0.1, "", None), (99.0, "", "passive"), (99.0, "active", "active")],
)
def test_threads_wait_politely_where_others_work(
    load: float, given: str, policy: str | None
) -> None:
    code = (
        f"import os; os.getloadavg = lambda: ({load}, 0, 0)\n"
        "import pyids; print(os.environ.get('OMP_WAIT_POLICY'))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    if given:
        environment["OMP_WAIT_POLICY"] = given
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], env=environment, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert done.stdout.strip() == str(policy)
