import itertools
import math
import os
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import pyids
from pyids import reference, sampling

MAX = np.finfo(np.float64).max


def pool(n, n_clusters, *, seed=0, sigma=1.0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, n_clusters, n, dtype=np.int32)
    log_weights = rng.normal(0, sigma, n)
    quotas = np.bincount(labels, minlength=n_clusters) // 3
    return labels, quotas, log_weights


def naive(labels, quotas, log_weights, *, row_ids=None, seed):
    row_ids = np.arange(len(labels)) if row_ids is None else row_ids
    return reference.sample_by_cluster(labels, quotas, log_weights, row_ids, seed)


# ---- the generator -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counter", "key", "block"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0xFFFFFFFF,) * 4,
            (0xFFFFFFFF,) * 2,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_the_generator_gives_its_authors_known_answers(counter, key, block):
    assert reference.philox(counter, key) == block


def test_keys_are_the_references():
    row_ids = np.array([0, 1, 2**32 - 1, 2**32, 2**62, 2**63 - 1, -1, -(2**63)])
    log_weights = np.array([0, 1e300, -1e300, 0.1, MAX, -MAX, 1e16, 5e-324])
    for seed in (0, 1, 2**32, 2**64 - 1):
        sample = pyids.sample_by_cluster(
            np.zeros(8, np.int32),
            [8],
            log_weights=log_weights,
            row_ids=row_ids,
            seed=seed,
            return_keys=True,
        )
        keys = dict(zip(sample.row_ids.tolist(), sample.keys, strict=True))
        for row_id, log_weight in zip(row_ids.tolist(), log_weights, strict=True):
            expected = reference.sample_key(seed, row_id, log_weight)
            high, low = keys[row_id]
            assert high == float(expected) or math.isclose(high, expected, rel_tol=1e-15)
            error = sum(map(Fraction, (high, low))) - expected
            assert abs(error) < 1e-14


# ---- the same rows as the reference --------------------------------------------------------------


@pytest.mark.parametrize(("n", "n_clusters"), [(0, 3), (1, 1), (97, 1), (1000, 7), (3000, 1500)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_are_the_references(n, n_clusters, dtype):
    labels, quotas, log_weights = pool(n, n_clusters)
    log_weights = log_weights.astype(dtype)
    row_ids = np.random.default_rng(1).permutation(10 * n)[:n]
    expected = naive(labels, quotas, log_weights, row_ids=row_ids, seed=5)
    got = pyids.sample_by_cluster(labels, quotas, log_weights=log_weights, row_ids=row_ids, seed=5)
    assert got.dtype == np.int64
    np.testing.assert_array_equal(got, expected)

    weights = np.exp(log_weights)
    expected = naive(labels, quotas, np.log(weights.astype(float)), row_ids=row_ids, seed=5)
    got = pyids.sample_by_cluster(labels, quotas, weights=weights, row_ids=row_ids, seed=5)
    np.testing.assert_array_equal(got, expected)

    expected = naive(labels, quotas, np.zeros(n), row_ids=row_ids, seed=5)
    got = pyids.sample_by_cluster(labels, quotas, row_ids=row_ids, seed=5)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("scale", [1e-300, 1.0, 1e17, 1e300, MAX])
def test_log_weights_of_any_scale(scale):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 600, dtype=np.int32)
    log_weights = rng.choice([-1.0, -0.5, 0.0, 1.0], 600) * scale
    quotas = [100, 0, 150]
    expected = naive(labels, quotas, log_weights, seed=2)
    np.testing.assert_array_equal(
        pyids.sample_by_cluster(labels, quotas, log_weights=log_weights, seed=2), expected
    )


@pytest.mark.parametrize("scale", [5e-324, 1e-300, 1.0, 1e300, MAX])
def test_only_ratios_of_weights_matter(scale):
    labels, quotas, _ = pool(2000, 5)
    expected = pyids.sample_by_cluster(labels, quotas, seed=1)
    weights = np.full(2000, scale)
    np.testing.assert_array_equal(
        pyids.sample_by_cluster(labels, quotas, weights=weights, seed=1), expected
    )


def test_a_huge_common_log_weight_still_draws_at_random():
    labels = np.zeros(1000, np.int32)
    expected = pyids.sample_by_cluster(labels, [100], seed=4)
    for log_weight in (1e300, -1e300, MAX, -MAX):
        log_weights = np.full(1000, log_weight)
        got = pyids.sample_by_cluster(labels, [100], log_weights=log_weights, seed=4)
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.8])
@pytest.mark.parametrize("kind", ["two values", "heavy tail", "mostly zero", "rising"])
def test_weights_that_fool_the_guessed_threshold(kind, share):
    rng = np.random.default_rng(7)
    n = 60_000
    labels = rng.integers(0, 6, n, dtype=np.int32)
    weights = {
        "two values": np.where(rng.random(n) < 0.05, 100.0, 1.0),
        "heavy tail": rng.random(n) ** -3.0,
        "mostly zero": np.where(rng.random(n) < 0.3, rng.lognormal(size=n), 0),
        "rising": np.exp(np.linspace(-300, 300, n)),
    }[kind]
    drawable = np.bincount(labels[weights > 0], minlength=6)
    quotas = np.ceil(share * drawable).astype(np.int64)
    # The keys of all rows (one cluster a row: all are drawn) and a sort.
    keys = pyids.sample_by_cluster(
        np.arange(n, dtype=np.int32),
        (weights > 0).astype(int),
        weights=weights,
        seed=6,
        return_keys=True,
    )
    order = np.lexsort((-keys.keys[:, 1], -keys.keys[:, 0]))
    rows = keys.row_ids[order]
    expected = np.sort(np.concatenate([rows[labels[rows] == c][: quotas[c]] for c in range(6)]))
    for kwargs in (
        {"weights": weights},
        {"log_weights": np.log(weights, where=weights > 0, out=np.full(n, -np.inf))},
    ):
        drawn = pyids.sample_by_cluster(labels, quotas, seed=6, **kwargs)
        np.testing.assert_array_equal(drawn, expected)


@given(data=st.data())
def test_fuzzed_pools_draw_the_references_rows(data):
    n = data.draw(st.integers(0, 60))
    n_clusters = data.draw(st.integers(1, 5))
    labels = data.draw(hnp.arrays(np.int32, n, elements=st.integers(0, n_clusters - 1)))
    log_weights = data.draw(
        hnp.arrays(np.float64, n, elements=st.floats(max_value=MAX, allow_nan=False))
    )
    row_ids = data.draw(
        hnp.arrays(np.int64, n, elements=st.integers(-(2**63), 2**63 - 1), unique=True)
    )
    seed = data.draw(st.integers(0, 2**64 - 1))
    drawable = np.bincount(labels[log_weights > -np.inf], minlength=n_clusters)
    quotas = np.array([data.draw(st.integers(0, int(c))) for c in drawable], np.int64)
    np.testing.assert_array_equal(
        pyids.sample_by_cluster(
            labels, quotas, log_weights=log_weights, row_ids=row_ids, seed=seed
        ),
        naive(labels, quotas, log_weights, row_ids=row_ids, seed=seed),
    )


# ---- the probabilities ---------------------------------------------------------------------------


def successive_sampling(weights, quota):
    """The probability of every set of `quota` rows, by summing over the orders of drawing."""
    probabilities = {}
    for order in itertools.permutations(range(len(weights)), quota):
        left, probability = sum(weights), 1.0
        for row in order:
            probability *= weights[row] / left
            left -= weights[row]
        chosen = tuple(sorted(order))
        probabilities[chosen] = probabilities.get(chosen, 0.0) + probability
    return probabilities


@pytest.mark.parametrize("weights", [[1, 1, 1, 1], [1, 2, 3, 4, 10], [1e-3, 1, 1, 1e3], [0.5, 2]])
@pytest.mark.parametrize("log", [False, True])
def test_sets_are_drawn_with_successive_sampling_probabilities(weights, log):
    quota, trials = min(2, len(weights) - 1), 40_000
    exact = successive_sampling(weights, quota)
    # Every cluster is one trial.
    n = len(weights)
    labels = np.repeat(np.arange(trials, dtype=np.int32), n)
    tiled = np.tile(np.array(weights, float), trials)
    kind = {"log_weights": np.log(tiled) + 1e4} if log else {"weights": tiled}
    drawn = pyids.sample_by_cluster(labels, np.full(trials, quota), seed=11, **kind)
    sets, counts = np.unique(drawn.reshape(trials, quota) % n, axis=0, return_counts=True)
    observed = dict(zip(map(tuple, sets.tolist()), counts.tolist(), strict=True))
    assert observed.keys() <= exact.keys()
    # Rare sets are put together: chi-square wants expectations of five and more.
    rare = {s for s, p in exact.items() if p * trials < 5}
    cells = [(observed.get(s, 0), p * trials) for s, p in exact.items() if s not in rare]
    if rare:
        cells.append((sum(observed.get(s, 0) for s in rare), trials * sum(exact[s] for s in rare)))
    chi_square = sum((o - e) ** 2 / e for o, e in cells)
    degrees = len(cells) - 1
    # Wilson-Hilferty: four standard deviations above the mean.
    assert chi_square < degrees * (1 - 2 / (9 * degrees) + 4 * math.sqrt(2 / (9 * degrees))) ** 3


def test_seeds_give_independent_draws():
    n, quota = 20_000, 2000
    labels = np.zeros(n, np.int32)
    draws = [set(pyids.sample_by_cluster(labels, [quota], seed=seed)) for seed in range(4)]
    expected = quota * quota / n
    for a, b in itertools.combinations(draws, 2):
        assert abs(len(a & b) - expected) < 5 * math.sqrt(expected)


# ---- invariances ---------------------------------------------------------------------------------


@pytest.mark.parametrize("n_threads", [2, 3, 8])
def test_threads_do_not_matter(n_threads):
    labels, quotas, log_weights = pool(200_000, 50)
    one, many = (
        pyids.sample_by_cluster(
            labels, quotas, log_weights=log_weights, seed=3, return_keys=True, n_threads=threads
        )
        for threads in (1, n_threads)
    )
    for a, b in zip(one, many, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("level", ["portable", "avx2", "avx512"])
def test_instruction_sets_do_not_matter(level, large, tmp_path):
    labels, quotas, log_weights = pool(30_000, 5 if large else 20)
    arrays = {"labels": labels, "quotas": quotas}
    if large:
        arrays["weights"] = np.exp(log_weights)
    else:
        arrays["log_weights"] = log_weights
    expected = pyids.sample_by_cluster(**arrays, seed=3, return_keys=True)
    np.savez(tmp_path / "pool.npz", **arrays)
    code = (
        "import numpy as np, pyids; "
        "sample = pyids.sample_by_cluster(**np.load('pool.npz'), seed=3, return_keys=True); "
        "np.savez('sample.npz', **sample._asdict())"
    )
    run = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYIDS_SIMD": level},
        capture_output=True,
        text=True,
    )
    if "this processor lacks it" in run.stderr:
        pytest.skip(f"this processor lacks {level}")
    assert run.returncode == 0, run.stderr
    forced = np.load(tmp_path / "sample.npz")
    for name, values in expected._asdict().items():
        np.testing.assert_array_equal(forced[name], values)


# ---- large clusters: guessed at from a sample of their rows, checked as they are drawn -----------

IN_SAMPLE = np.arange(50_000) % 1024 < 64


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize(
    "case", ["like others", "sample too heavy", "sample too light", "sample empty", "by label"]
)
def test_a_guess_from_a_sample_does_not_matter(case, n_threads, dtype):
    labels, quotas, log_weights = pool(50_000, 4)
    weights = np.exp(log_weights).astype(dtype)
    weights[7::11] = 0
    weights[8::11] = -0.0
    if case == "by label":
        labels = np.sort(labels)
    elif case != "like others":
        factor = {"sample too heavy": 1e6, "sample too light": 1e-6, "sample empty": 0}[case]
        weights[IN_SAMPLE] *= dtype(factor)
    quotas = quotas // 10
    shared = {"weights": weights, "seed": 5, "n_threads": n_threads}
    drawn = pyids.sample_by_cluster(labels, quotas, **shared)
    # With a mask, all rows are tallied first.
    nothing = np.zeros(len(labels), bool)
    np.testing.assert_array_equal(
        drawn, pyids.sample_by_cluster(labels, quotas, exclude=nothing, **shared)
    )
    if dtype == np.float64:
        with np.errstate(divide="ignore"):
            logs = np.log(np.abs(weights))
        np.testing.assert_array_equal(drawn, naive(labels, quotas, logs, seed=5))


@pytest.mark.parametrize("row", [0, 63, 5000, 49_999])
@pytest.mark.parametrize("bad", ["label", "minus label", "nan", "inf", "negative"])
def test_large_clusters_name_the_first_bad_row(bad, row):
    labels, quotas, log_weights = pool(50_000, 4)
    weights = np.exp(log_weights)
    for at in (row, 49_999):
        if bad.endswith("label"):
            labels[at] = 4 if bad == "label" else -1
        else:
            weights[at] = {"nan": np.nan, "inf": np.inf, "negative": -1}[bad]
    name = "labels" if bad.endswith("label") else "weights"
    with pytest.raises(ValueError, match=rf"^{name}\[{row}\] is "):
        pyids.sample_by_cluster(labels, quotas, weights=weights, seed=5, n_threads=2)


def test_large_clusters_name_a_quota_too_large():
    labels, quotas, log_weights = pool(50_000, 4)
    weights = np.exp(log_weights)
    weights[(labels == 2) & (np.arange(50_000) % 16 > 0)] = 0  # unlike the sample's share
    with pytest.raises(ValueError, match=r"^quotas\[2\] is .*, but cluster 2 has only"):
        pyids.sample_by_cluster(labels, quotas, weights=weights, seed=5)


@pytest.mark.parametrize("order", ["shuffled", "by label", "by weight", "by falling weight"])
def test_the_order_of_rows_does_not_matter(order):
    labels, quotas, log_weights = pool(100_000, 20, sigma=3)
    expected = pyids.sample_by_cluster(labels, quotas, log_weights=log_weights, seed=3)
    permutation = {
        "shuffled": np.random.default_rng(1).permutation(len(labels)),
        "by label": np.argsort(labels, kind="stable"),
        "by weight": np.argsort(log_weights),
        "by falling weight": np.argsort(-log_weights),
    }[order]
    got = pyids.sample_by_cluster(
        labels[permutation],
        quotas,
        log_weights=log_weights[permutation],
        row_ids=permutation,
        seed=3,
    )
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("n_shards", [1, 3, 40])
def test_shards_merge_into_the_whole_draw(n_shards):
    labels, quotas, log_weights = pool(50_000, 30)
    row_ids = np.arange(50_000) * 7
    whole = pyids.sample_by_cluster(
        labels, quotas, log_weights=log_weights, row_ids=row_ids, seed=9, return_keys=True
    )
    shard = np.random.default_rng(2).integers(0, n_shards, 50_000)
    parts = (
        pyids.sample_by_cluster(
            labels[shard == s],
            quotas,
            log_weights=log_weights[shard == s],
            row_ids=row_ids[shard == s],
            seed=9,
            return_keys=True,
            allow_fewer=True,
        )
        for s in range(n_shards)
    )
    merged = pyids.merge_samples(parts, quotas, return_keys=True)
    for a, b in zip(merged, whole, strict=True):
        np.testing.assert_array_equal(a, b)


def test_merging_checks_the_quotas_over_all_parts():
    labels = np.array([0, 0, 1, 1], np.int32)

    def part(rows, quotas):
        return pyids.sample_by_cluster(
            labels[rows], quotas, row_ids=rows, seed=0, return_keys=True, allow_fewer=True
        )

    quotas = [2, 3]
    parts = [part([0, 2], quotas), part([1, 3], quotas)]
    with pytest.raises(ValueError, match=r"quotas\[1\] is 3, but cluster 1 has only 2 rows"):
        pyids.merge_samples(parts, quotas)
    assert pyids.merge_samples(parts, quotas, allow_fewer=True).tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="row id 0 occurs in the parts twice"):
        pyids.merge_samples([parts[0], parts[0]], [2, 2])
    with pytest.raises(ValueError, match=r"row id 2 has the label 1 .* lie in \[0, 1\)"):
        pyids.merge_samples(parts, [1])
    with pytest.raises(ValueError, match=r"row id 0 has the label 0 and the key nan"):
        pyids.merge_samples([parts[0]._replace(keys=np.full((2, 2), np.nan))], quotas)
    with pytest.raises(ValueError, match="a part must hold n row ids"):
        pyids.merge_samples([parts[0]._replace(keys=np.zeros((2, 3)))], quotas)
    with pytest.raises(ValueError, match=r"quotas\[1\] is -1: must not be negative"):
        pyids.merge_samples(parts, [1, -1])
    assert pyids.merge_samples([], [0, 0]).tolist() == []


def test_a_draw_goes_on_where_it_stopped():
    labels, quotas, log_weights = pool(5000, 4)
    weights = {"log_weights": log_weights, "seed": 1}
    first = pyids.sample_by_cluster(labels, quotas // 2, **weights)
    second = pyids.sample_by_cluster(labels, quotas - quotas // 2, exclude=first, **weights)
    both = np.sort(np.concatenate([first, second]))
    np.testing.assert_array_equal(both, pyids.sample_by_cluster(labels, quotas, **weights))


# ---- what is never drawn -------------------------------------------------------------------------


def test_zero_weights_are_never_drawn():
    labels, _, _ = pool(1000, 4)
    heavy = np.random.default_rng(3).random(1000) < 0.3
    quotas = np.bincount(labels[heavy], minlength=4)
    weights = np.where(heavy, 5e-324, 0.0)
    for kind in ({"weights": weights}, {"log_weights": np.where(heavy, -1e300, -np.inf)}):
        drawn = pyids.sample_by_cluster(labels, quotas, seed=0, **kind)
        np.testing.assert_array_equal(drawn, np.flatnonzero(heavy))


def test_excluded_rows_are_as_if_absent():
    labels, quotas, log_weights = pool(50_000, 9)
    row_ids = np.random.default_rng(6).permutation(50_000) - 20_000
    gone = np.random.default_rng(5).random(50_000) < 0.4
    expected = pyids.sample_by_cluster(
        labels[~gone], quotas, log_weights=log_weights[~gone], row_ids=row_ids[~gone], seed=8
    )
    ids = np.sort(np.append(row_ids[gone], [-(2**60), 2**60, 2**60]))
    for exclude in (gone, ids):
        got = pyids.sample_by_cluster(
            labels, quotas, log_weights=log_weights, row_ids=row_ids, exclude=exclude, seed=8
        )
        np.testing.assert_array_equal(got, expected)
    ascending = np.arange(50_000)
    a, b = (
        pyids.sample_by_cluster(labels, quotas, exclude=exclude, seed=8)
        for exclude in (gone, ascending[gone])
    )
    np.testing.assert_array_equal(a, b)
    assert not gone[a].any()


# ---- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": [0, 3, -1, 0]}, r"labels\[1\] is 3: must lie in \[0, 3\)"),
        ({"labels": np.array([0, -1, 5, 0], np.int32)}, r"labels\[1\] is -1: must lie"),
        ({"labels": np.array([0, 2**32, 1, 0])}, r"labels\[1\] is 4294967296: must lie"),
        ({"labels": [0.0, 1, 2, 0]}, "labels must be 1-D integers, not float64"),
        ({"labels": np.zeros((2, 2), np.int32)}, "labels must be 1-D integers"),
        ({"weights": [1, np.nan, -1, 1]}, r"weights\[1\] is nan: must be finite and not"),
        ({"weights": [1, -2.0, 1, 1]}, r"weights\[1\] is -2: must be finite and not neg"),
        ({"weights": [1, 1, 1, np.inf]}, r"weights\[3\] is inf: must be finite"),
        ({"weights": [1, 1, 1]}, "weights has 3 values for 4 rows"),
        ({"weights": ["a"] * 4}, "weights must be 1-D numbers"),
        ({"log_weights": [1, np.inf, 1, 1]}, r"log_weights\[1\] is inf: must be finite or -inf"),
        ({"log_weights": [1, 1, np.nan, 1]}, r"log_weights\[2\] is nan: must be finite or"),
        ({"weights": [1] * 4, "log_weights": [1] * 4}, "exclude each other"),
        ({"row_ids": [1, 2]}, "row_ids has 2 values for 4 rows"),
        ({"exclude": [True]}, r"exclude is a mask of shape \(1,\) for 4 rows"),
        ({"exclude": [3, 1]}, r"exclude\[1\] is 1, less than the row id before"),
        ({"quotas": [1, -1, 0]}, r"quotas\[1\] is -1: must not be negative"),
        ({"quotas": [3, 1, 0]}, r"quotas\[0\] is 3, but cluster 0 has only 2 rows that can"),
        ({"quotas": [2, 1, 1], "weights": [0, 1, 1, 1]}, r"cluster 0 has only 1 rows that can"),
        ({"quotas": [2, 1, 1], "exclude": [0]}, r"cluster 0 has only 1 rows that can"),
        ({"seed": -1}, "seed is -1: must lie in"),
        ({"seed": 2**64}, "must lie in"),
        ({"n_threads": 0}, "n_threads is 0: must be at least 1"),
    ],
)
def test_errors_name_the_first_offender(change, message):
    arguments = {"labels": np.array([0, 1, 2, 0], np.int32), "quotas": [1, 1, 1], "seed": 0}
    with pytest.raises(ValueError, match=message):
        pyids.sample_by_cluster(**(arguments | change))


def test_the_first_of_many_bad_rows_is_named_for_any_number_of_threads():
    labels = np.zeros(300_000, np.int32)
    weights = np.ones(300_000)
    weights[123_456:] = np.nan
    for n_threads in (1, 2, 8):
        with pytest.raises(ValueError, match=r"weights\[123456\] is nan"):
            pyids.sample_by_cluster(labels, [1], weights=weights, seed=0, n_threads=n_threads)


# ---- allocate ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "shares", "capacity", "expected"),
    [
        (10, [5, 3, 2], [100, 100, 100], [5, 3, 2]),
        (10, [5, 3, 2], [2, 100, 100], [2, 5, 3]),
        (1, [1, 1, 1], [9, 9, 9], [1, 0, 0]),
        (2, [1, 1, 1], [0, 9, 9], [0, 1, 1]),
        (100, [1, 1], [3, 4], [3, 4]),
        (5, [0, 1, 0], [4, 3, 8], [1, 3, 1]),
        (5, [0, 0], [3, 3], [3, 2]),
        (0, [1, 2], [3, 3], [0, 0]),
        (7, [], [], []),
        (3, [1e308, 1e308, 5e-324], [9, 1, 9], [2, 1, 0]),
        (2**62, [1, 1], [2**62, 2**62], [2**61, 2**61]),
    ],
)
def test_allocate(budget, shares, capacity, expected):
    assert pyids.allocate(budget, shares, capacity).tolist() == expected


@given(
    budget=st.integers(0, 200),
    rows=st.lists(
        st.tuples(
            st.one_of(st.integers(0, 5), st.floats(0, MAX)).map(float),
            st.one_of(st.integers(0, 3), st.integers(0, 100)),
        ),
        max_size=12,
    ),
    seed=st.one_of(st.none(), st.integers(0, 2**63)),
)
def test_allocate_is_the_references(budget, rows, seed):
    shares = np.array([share for share, _ in rows])
    capacity = np.array([c for _, c in rows], np.int64)
    quotas = pyids.allocate(budget, shares, capacity, seed=seed)
    assert quotas.sum() == min(budget, capacity.sum())
    assert (quotas >= 0).all()
    assert (quotas <= capacity).all()
    if (quotas[shares == 0] > 0).any():
        assert (quotas == capacity)[shares > 0].all()
    np.testing.assert_array_equal(quotas, reference.allocate(budget, shares, capacity, seed))


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_allocate_names_a_seed_out_of_range(seed):
    with pytest.raises(ValueError, match=rf"seed is {seed}: must lie in \[0, 2\*\*64\)"):
        pyids.allocate(1, [1.0, 1.0], [1, 1], seed=seed)


def test_allocate_with_a_seed_gives_each_cluster_its_part_in_the_mean():
    """Two rows for forty clusters: by largest remainder 38 of them would never have one."""
    shares = np.linspace(1, 3, 40)
    capacity = np.full(40, 5)
    quotas = np.array([pyids.allocate(2, shares, capacity, seed=s) for s in range(4000)])
    assert (quotas.sum(1) == 2).all()
    assert quotas.max() == 1
    part = 2 * shares / shares.sum()
    error = np.sqrt(part * (1 - part) / len(quotas))
    assert (np.abs(quotas.mean(0) - part) < 4.5 * error).all()


@pytest.mark.parametrize(
    ("budget", "shares", "capacity", "message"),
    [
        (-1, [1], [1], "budget is -1: must not be negative"),
        (1, [1, np.nan], [1, 1], r"shares\[1\] is nan: must be finite and not negative"),
        (1, [-1, 1], [1, 1], r"shares\[0\] is -1.0: must be finite"),
        (1, [1, np.inf], [1, 1], r"shares\[1\] is inf: must be finite"),
        (1, [1, 1], [1, -1], r"capacity\[1\] is -1: must not be negative"),
        (1, [1], [1, 1], "shares has 1 values for 2 rows"),
        (1, [1], [0.5], "capacity must be 1-D integers"),
    ],
)
def test_allocate_names_the_first_offender(budget, shares, capacity, message):
    with pytest.raises(ValueError, match=message):
        pyids.allocate(budget, shares, capacity)


def test_importing_the_package_does_not_load_the_core():
    code = "import pyids, sys; assert 'numpy' not in sys.modules; pyids.allocate"
    subprocess.run([sys.executable, "-P", "-c", code], check=True)
    assert sampling.allocate is pyids.allocate
