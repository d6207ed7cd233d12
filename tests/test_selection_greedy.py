"""The greedy core against its float64 definitions and against brute force over all subsets."""

from itertools import combinations

import numpy as np
import pytest

from pyids import neighbors, reference
from pyids.methods import greedy


def rows(n, d, seed=0, dtype=np.float32):
    """Integers, so that float32 products of unnormalized rows would be exact; none is zero."""
    rng = np.random.default_rng(seed)
    x = rng.integers(-8, 9, (n, d)).astype(dtype)
    x[np.all(x == 0, axis=1)] = 1
    return x


def shards(x, cuts):
    return [part for part in np.split(x, cuts) if len(part)]


def radius(x, picks):
    return np.linalg.norm(x[:, None] - x[picks], axis=2).min(axis=1).max()


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize(("n", "d"), [(1, 1), (17, 3), (300, 31), (523, 16)])
def test_farthest_first_is_the_definition(n, d, dtype):
    x = rows(n, d, dtype=dtype)
    for budget in {1, n // 2 or 1, n}:
        picks = greedy.farthest_first(x, budget, first=n // 3)
        expected = reference.farthest_first(x.astype(float), budget, n // 3)
        np.testing.assert_array_equal(picks.rows, expected)
        assert picks.values[-1] == pytest.approx(radius(x.astype(float), expected), abs=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_farthest_first_is_within_twice_the_best_radius(seed):
    x = np.random.default_rng(seed).normal(size=(12, 2)).astype(np.float32)
    for budget in (1, 2, 3, 4):
        best = min(radius(x, list(subset)) for subset in combinations(range(12), budget))
        picks = greedy.farthest_first(x, budget, first=seed)
        assert best <= picks.values[-1] + 1e-6
        assert picks.values[-1] <= 2 * best + 1e-6


def test_farthest_first_takes_repeats_last_and_each_row_once():
    x = np.repeat(np.eye(3, dtype=np.float32), [5, 1, 4], axis=0)
    picks = greedy.farthest_first(x, 10, first=2).rows
    assert set(picks[:3].tolist()) == {2, 5, 6}
    assert sorted(picks.tolist()) == list(range(10))


@pytest.mark.parametrize("list_bytes", [0, 1 << 29])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("n", "d"), [(5, 2), (90, 12), (300, 40), (700, 24)])
def test_facility_location_picks_what_the_plain_greedy_picks(n, d, alpha, list_bytes):
    x = np.random.default_rng(n).normal(size=(n, d)).astype(np.float32)
    quality = np.random.default_rng(1).random(n)
    budget = max(2, n // 6)
    picks = greedy.facility_location(
        x, budget, quality=quality, alpha=alpha, list_bytes=list_bytes, threads=2
    )
    expected = reference.facility_location(x.astype(float), budget, quality, alpha)
    np.testing.assert_array_equal(picks.rows, expected)
    value = reference.facility_location_value(x.astype(float), expected)
    value = (1 - alpha) * value + alpha * quality[expected].sum() / budget
    assert picks.values.sum() == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_facility_location_reaches_its_guarantee(seed):
    x = np.abs(np.random.default_rng(seed).normal(size=(13, 3))).astype(np.float32)
    best = max(
        reference.facility_location_value(x.astype(float), np.array(s))
        for s in combinations(range(13), 4)
    )
    picks = greedy.facility_location(x, 4)
    assert picks.values.sum() >= (1 - 1 / np.e) * best - 1e-5
    values = [greedy.facility_location(x, 4, epsilon=0.1, seed=s).values.sum() for s in range(40)]
    assert np.mean(values) >= (1 - 1 / np.e - 0.1) * best - 1e-5
    assert (
        len({tuple(greedy.facility_location(x, 4, epsilon=0.5, seed=s).rows) for s in range(9)}) > 1
    )


def test_facility_location_serves_a_sample():
    rng = np.random.default_rng(0)
    centers = np.eye(6, 20)
    x = np.repeat(centers, 50, axis=0) + 0.05 * rng.normal(size=(300, 20))
    picks = greedy.facility_location(x.astype(np.float32), 6, served=60)
    assert {int(row) // 50 for row in picks.rows} == set(range(6))


def test_facility_location_takes_distinct_rows_when_nothing_is_gained():
    x = np.ones((20, 4), np.float32)
    x[3] = 0
    picks = greedy.facility_location(x, 20).rows
    assert sorted(picks.tolist()) == list(range(20))
    assert picks[0] == 0


@pytest.mark.parametrize(("n", "d"), [(40, 3), (600, 5), (1000, 8)])
@pytest.mark.parametrize("threshold", [0.5, 0.9, 2.0])
def test_filter_near_is_the_definition(n, d, threshold):
    x = np.random.default_rng(n).normal(size=(n, d)).astype(np.float32)
    order = np.random.default_rng(1).permutation(n)
    for budget in (0, 7, n):
        picks = neighbors.filter_near(x, order, budget, threshold=threshold, threads=2)
        expected = reference.filter_near(x.astype(float), order, budget, threshold)
        np.testing.assert_array_equal(picks.rows, expected)


def test_filter_near_tells_thresholds_apart_that_float32_does_not():
    """Rows of three ones in twelve columns: two that share two have a cosine of exactly 2 u u."""
    x = np.zeros((220, 12), np.float32)
    for row, ones in zip(x, combinations(range(12), 3), strict=True):
        row[list(ones)] = 1
    unit = neighbors.inverse_lengths([x], 1)[0]
    shared = 2 * (unit * unit)
    every = neighbors.filter_near(x, np.arange(220), 220, threshold=shared)
    assert every.rows.tolist() == list(range(220))
    apart = []
    for row in range(220):
        if not (x[apart] @ x[row] >= 2).any():
            apart.append(row)
    some = neighbors.filter_near(x, np.arange(220), 220, threshold=np.nextafter(shared, 0))
    assert some.rows.tolist() == apart


def test_neighbor_distances_are_those_of_float64_where_neighbors_are_many():
    """More repeats than the list has room for; neighbors that float32 cannot tell apart."""
    x = np.random.default_rng(2).normal(size=(90, 24))
    x = np.repeat(x, 9, axis=0) * (1 + 1e-6 * np.random.default_rng(3).normal(size=(810, 24)))
    x = x.astype(np.float32)
    got = neighbors.neighbor_distances(x, 4, threads=2)
    unit = x.astype(float) * neighbors.inverse_lengths([x], 1)[:, None]
    products = unit @ unit.T
    np.fill_diagonal(products, -np.inf)
    want = np.maximum(0, 1 - np.sort(products, axis=1)[:, :-5:-1]).sum(1)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-14)


@pytest.mark.parametrize("n_neighbors", [1, 10])
def test_neighbor_distances_are_the_definition(n_neighbors):
    x = np.random.default_rng(0).normal(size=(700, 20)).astype(np.float32)
    x[5] = x[600]
    for some in (np.arange(700), np.arange(0, 700, 3)):
        got = neighbors.neighbor_distances(x, n_neighbors, reference=some, threads=2)
        expected = reference.neighbor_distances(x.astype(float), n_neighbors, some)
        np.testing.assert_allclose(got, expected, atol=1e-5 * n_neighbors)
    np.testing.assert_array_equal(
        neighbors.neighbor_distances(x, n_neighbors),
        neighbors.neighbor_distances(x, n_neighbors, reference=np.arange(700)),
    )


@pytest.mark.parametrize("proximity", [0.0, 1.0, 2.0])
def test_novel_select_is_the_definition(proximity):
    x = np.random.default_rng(3).normal(size=(400, 12)).astype(np.float32)
    weights = np.random.default_rng(4).random(400) + 0.5
    picks = greedy.novel_select(x, 40, first=9, weights=weights, proximity=proximity, threads=2)
    expected = reference.novel_select(x.astype(float), 40, 9, weights, proximity)
    np.testing.assert_array_equal(picks.rows, expected)


def test_novel_select_beyond_the_horizon_stays_near_the_definition():
    x = np.random.default_rng(3).normal(size=(200, 12)).astype(np.float32)
    weights = np.ones(200)
    exact = greedy.novel_select(x, 60, weights=weights, horizon=60)
    short = greedy.novel_select(x, 60, weights=weights, horizon=20)
    np.testing.assert_array_equal(exact.rows[:21], short.rows[:21])
    np.testing.assert_allclose(exact.values[21], short.values[21], rtol=1e-5)
    np.testing.assert_allclose(exact.values, short.values, rtol=0.05)


def test_threads_and_shards_change_nothing():
    x = np.random.default_rng(7).normal(size=(900, 33)).astype(np.float16)
    cut = shards(x, [1, 400, 401])
    quality = np.random.default_rng(1).random(900)
    order = np.random.default_rng(2).permutation(900)

    def run(data, threads):
        return [
            greedy.farthest_first(data, 50, threads=threads),
            greedy.facility_location(data, 50, quality=quality, alpha=0.2, threads=threads),
            greedy.facility_location(data, 20, epsilon=0.2, seed=3, served=500, threads=threads),
            neighbors.filter_near(data, order, 100, threshold=0.3, threads=threads),
            greedy.novel_select(data, 50, weights=quality, horizon=17, threads=threads),
        ]

    for a, b in zip(run(x, 1), run(cut, 3), strict=True):
        np.testing.assert_array_equal(a.rows, b.rows)
        np.testing.assert_array_equal(a.values, b.values)
    np.testing.assert_array_equal(
        neighbors.neighbor_distances(x, 5, threads=1),
        neighbors.neighbor_distances(cut, 5, threads=3),
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: greedy.farthest_first(x, 0), "budget is 0"),
        (lambda x: greedy.farthest_first(x, 4, first=9), "first is 9"),
        (lambda x: greedy.farthest_first([], 1), "no shard"),
        (lambda x: greedy.farthest_first(np.r_[x, [[np.nan, 0]]].astype("f4"), 1), "row 5"),
        (lambda x: greedy.facility_location(x, 2, quality=[-1, 0, 0, 0, 0]), r"quality\[0\]"),
        (lambda x: greedy.facility_location(x, 2, epsilon=1), "epsilon is 1"),
        (lambda x: greedy.facility_location(x, 2, alpha=2), "alpha is 2"),
        (lambda x: greedy.facility_location(x, 2, seed=-1), "seed is -1"),
        (lambda x: greedy.facility_location(x, 2, list_bytes=-1), "list_bytes is -1"),
        (lambda x: greedy.facility_location(x, 2, row_ids=[0, 1, 3, 2, 4]), r"row_ids\[3\]"),
        (lambda x: greedy.facility_location(x, 2, row_ids=[0, 1]), "2 values for 5 rows"),
        (lambda x: neighbors.filter_near(x, [7], 1, threshold=0), "row 7 is outside 0 to 4"),
        (lambda x: neighbors.filter_near(x, [0.5], 1, threshold=0), "order must be 1-D integers"),
        (lambda x: neighbors.filter_near(x, [0], 1, threshold=np.nan), "threshold is nan"),
        (
            lambda x: neighbors.near_duplicates(x, [0, 99, -3], threshold=0.9),
            "row 99 is outside 0 to 4",
        ),
        (
            lambda x: neighbors.near_duplicates(x, [0, -3], threshold=0.9),
            "row -3 is outside 0 to 4",
        ),
        (lambda x: neighbors.near_duplicates(x, [0.5], threshold=0.9), "rows must be 1-D integers"),
        (
            lambda x: neighbors.neighbor_distances(x, 1, reference=[0, 5]),
            "row 5 is outside 0 to 4",
        ),
        (lambda x: neighbors.neighbor_distances(x, 5), "n_neighbors is 5"),
        (lambda x: greedy.novel_select(x, 2, weights=[1]), "weights has shape"),
        (
            lambda x: greedy.novel_select(x, 2, weights=x[:, 0], proximity=np.nan),
            "proximity is nan",
        ),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.ones((5, 2), np.float32))


@pytest.mark.parametrize("threads", [0, -1])
@pytest.mark.parametrize(
    "call",
    [
        lambda x, threads: greedy.farthest_first(x, 1, threads=threads),
        lambda x, threads: greedy.facility_location(x, 1, threads=threads),
        lambda x, threads: neighbors.filter_near(x, [0], 1, threshold=0, threads=threads),
        lambda x, threads: neighbors.neighbor_distances(x, 1, threads=threads),
        lambda x, threads: greedy.novel_select(x, 1, weights=x[:, 0], threads=threads),
    ],
)
def test_no_threads_are_refused(call, threads):
    with pytest.raises(ValueError, match=f"threads is {threads}: must be at least 1"):
        call(np.ones((5, 2), np.float32), threads)


def test_other_types_are_refused():
    with pytest.raises(TypeError, match="float64"):
        greedy.farthest_first(np.ones((5, 2)), 1)


@pytest.mark.parametrize(("n", "d"), [(1, 4), (40, 3), (300, 5)])
@pytest.mark.parametrize("threshold", [0.3, 0.95, 0.999])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_near_repeats_are_the_definition(n, d, threshold, dtype):
    rng = np.random.default_rng(n)
    x = rng.normal(size=(n, d)).astype(dtype)
    x[n // 2 :] = x[: n - n // 2] + 0.05 * rng.normal(size=(n - n // 2, d))
    x[n // 3] = 0
    expected = reference.near_duplicates(x.astype(float), threshold)
    for block_rows in (1, 7, 64, 4096):
        got = neighbors.near_duplicates(x, np.arange(n), threshold=threshold, block_rows=block_rows)
        np.testing.assert_array_equal(got, expected)
    cut = [x[: n // 4], x[n // 4 :]]
    some = np.arange(n)[::3]
    np.testing.assert_array_equal(
        neighbors.near_duplicates(cut, some, threshold=threshold, block_rows=5),
        reference.near_duplicates(x[some].astype(float), threshold),
    )


def test_near_repeats_of_chains_copies_and_nothing():
    degrees = np.radians([0, 10, 20, 30, 10, 190])
    x = np.stack([np.cos(degrees), np.sin(degrees)], axis=1).astype(np.float32)
    # 20 is near 10, which went for 0; so it stays, and 30 goes for it. 190 is far from all.
    limit = np.cos(np.radians(11))
    got = neighbors.near_duplicates(x, np.arange(6), threshold=limit)
    np.testing.assert_array_equal(got, [0, 0, 2, 2, 0, 5])
    zeros = np.zeros((3, 4), np.float32)
    np.testing.assert_array_equal(
        neighbors.near_duplicates(zeros, np.arange(3), threshold=1e-9), np.arange(3)
    )
    same = np.full((500, 384), 3e-4, np.float16)  # its float32 products miss 1 by some 1e-6
    for threshold in (0.5, 1 - 1e-12):
        got = neighbors.near_duplicates(same, np.arange(500), threshold=threshold, block_rows=128)
        assert not got.any()
    with pytest.raises(ValueError, match=r"threshold is 1\.0"):
        neighbors.near_duplicates(x, np.arange(6), threshold=1.0)
    x[2, 0] = np.nan
    with pytest.raises(ValueError, match="row 2 of the embeddings has a NaN"):
        neighbors.near_duplicates(x, np.arange(6), threshold=0.5)


def test_products_at_the_threshold_are_settled_in_float64():
    """Pairs closer to the threshold than float32 can tell, on both of its sides."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=(200, 384))
    x = np.concatenate([a, a + 0.3 * rng.normal(size=a.shape)]).astype(np.float32)
    unit = reference.unit_rows(x.astype(float))
    for row in range(5):
        cosine = float(unit[row] @ unit[200 + row])
        for threshold, repeats in ((cosine - 1e-12, row), (cosine + 1e-12, 200 + row)):
            got = neighbors.near_duplicates(x, np.arange(400), threshold=threshold)
            assert got[200 + row] == repeats
