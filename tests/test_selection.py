"""Every method under the one interface, each with planted structure that only it would find."""

import inspect
import subprocess
import sys

import numpy as np
import pytest

from pyids import methods
from pyids.errors import ConfigError, DataError, PyidsWarning
from pyids.methods import Pool, get_method, method_names, pool_from_arrays

N, K = 240, 6
OPTIONS = {"uniform": {"column": "source"}}


def make_pool(shuffle_seed=0, threads=2, cuts=(70, 71), row_ids=None, **other):
    """Six clusters of unequal sizes on orthogonal directions, with every fact a method may need."""
    rng = np.random.default_rng(shuffle_seed)
    labels = np.sort(rng.choice(K, N, p=[0.4, 0.25, 0.15, 0.1, 0.06, 0.04])).astype(np.int32)
    x = (np.eye(K, 16)[labels] + 0.1 * rng.normal(size=(N, 16))).astype(np.float16)
    known = {
        "embeddings": np.split(x, list(cuts)),
        "labels": labels,
        "centroids": np.stack([x[labels == c].astype(np.float64).mean(axis=0) for c in range(K)]),
        "quality": rng.normal(size=N),
        "lengths": rng.integers(1, 2000, N),
        "target": x[:5] + 0.1,
        "gradients": lambda warm, rows, **_: np.cos(rows[:, None] * np.arange(1, 6)),
        "columns": {"source": np.array(["a", "b", "c"])[rng.integers(0, 3, N)].tolist()},
    }
    return pool_from_arrays(**(known | other), row_ids=row_ids, threads=threads)


@pytest.mark.parametrize("name", method_names())
@pytest.mark.filterwarnings("ignore::pyids.errors.PyidsWarning")
def test_exactly_the_budget_of_distinct_rows(name):
    pool = make_pool(row_ids=np.arange(N) * 7 + 3)
    method = get_method(name)
    options = OPTIONS.get(name, {})
    for budget in (0, 1, 2, 37, N - 1, N, N + 5):
        rows = method(pool, budget, seed=1, **options)
        assert rows.dtype == np.int64
        assert len(rows) == min(budget, N) == len(set(rows.tolist()))
        assert np.isin(rows, pool.row_ids).all()


@pytest.mark.parametrize("name", method_names())
@pytest.mark.filterwarnings("ignore::pyids.errors.PyidsWarning")
def test_threads_and_shards_change_nothing(name):
    options = OPTIONS.get(name, {})
    results = [
        get_method(name)(make_pool(threads=threads, cuts=cuts), 50, seed=5, **options)
        for threads, cuts in ((1, ()), (3, (1, 100, 200)))
    ]
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("name", method_names())
def test_every_method_says_what_it_is(name):
    method = get_method(name)
    assert method.name == name
    assert method.source
    assert method.cost
    assert 10 < len(method.summary) < 100


@pytest.mark.parametrize(
    "name", ["random", "length-stratified", "uniform", "km-random", "kmq", "clusterclip"]
)
def test_draws_follow_the_seed_and_the_row_id(name):
    pool, options = make_pool(), OPTIONS.get(name, {})
    draw = get_method(name)
    assert draw(pool, 40, seed=1, **options).tolist() == draw(pool, 40, seed=1, **options).tolist()
    assert draw(pool, 40, seed=1, **options).tolist() != draw(pool, 40, seed=2, **options).tolist()


@pytest.mark.parametrize(
    "name",
    ["longest", "k-center", "facility-location", "qdit", "novelselect"],
)
def test_a_smaller_budget_is_a_prefix(name):
    pool = make_pool()
    options = {"alpha": 0.0} if name == "qdit" else {}  # its quality term is a mean over the budget
    more = get_method(name)(pool, 60, seed=3, **options)
    np.testing.assert_array_equal(get_method(name)(pool, 20, seed=3, **options), more[:20])


@pytest.mark.parametrize("name", ["longest", "k-center", "facility-location"])
def test_a_budget_of_all_rows_gives_them_in_ascending_order(name):
    pool = make_pool()
    assert get_method(name)(pool, N, seed=3).tolist() == list(range(N))
    assert get_method(name)(pool, N - 1, seed=3).tolist() != list(range(N - 1))


def counts(pool, rows):
    return np.bincount(pool.labels[rows], minlength=K)


def test_random_is_uniform():
    pool = pool_from_arrays(labels=np.zeros(10, np.int32))
    drawn = np.concatenate([get_method("random")(pool, 3, seed=s) for s in range(2000)])
    frequency = np.bincount(drawn, minlength=10) / 2000
    assert np.abs(frequency - 0.3).max() < 0.045  # 4.4 standard deviations


def test_longest_takes_the_longest_lower_row_first():
    pool = pool_from_arrays(lengths=[5, 9, 1, 9, 7])
    assert get_method("longest")(pool, 4).tolist() == [1, 3, 4, 0]


def test_length_strata_keep_the_distribution_or_flatten_it():
    lengths = np.r_[np.full(900, 10), np.arange(1000, 1100)]
    pool = pool_from_arrays(lengths=lengths)
    stratified = get_method("length-stratified")
    for seed in range(5):
        assert np.sum(lengths[stratified(pool, 50, seed=seed)] > 10) == 5  # never 4 or 6
        assert np.sum(lengths[stratified(pool, 50, seed=seed, strata=2, flat=True)] > 10) == 25
    with pytest.raises(ConfigError, match="strata is 0"):
        stratified(pool, 5, strata=0)


def test_uniform_gives_each_value_as_many():
    column = ["x"] * 100 + ["y"] * 30 + ["z"] * 4
    pool = pool_from_arrays(columns={"kind": column})
    rows = get_method("uniform")(pool, 24, column="kind")
    assert [sum(column[row] == v for row in rows) for v in "xyz"] == [10, 10, 4]
    with pytest.raises(ConfigError, match="no column 'kinds'"):
        get_method("uniform")(pool, 24, column="kinds")


@pytest.mark.parametrize(
    ("name", "known", "options"),
    [
        ("uniform", {"columns": {"kind": list("abcdefghijklm" * 8)}}, {"column": "kind"}),
        ("clusterclip", {"labels": np.repeat(np.arange(13, dtype=np.int32), 8)}, {}),
        ("length-stratified", {"lengths": np.arange(104)}, {"strata": 13}),
        ("length-stratified", {"lengths": np.arange(104)}, {"strata": 13, "flat": True}),
    ],
)
def test_a_budget_below_the_groups_starves_none(name, known, options):
    pool = pool_from_arrays(**known)
    drawn = [get_method(name)(pool, 4, seed=seed, **options) for seed in range(200)]
    times = np.bincount(np.concatenate(drawn), minlength=104)
    groups = np.arange(104) % 13 if name == "uniform" else np.arange(104) // 8
    if options.get("flat"):
        groups = np.digitize(np.log1p(np.arange(104)), np.linspace(0, np.log(104), 14)[1:-1])
    by_group = np.bincount(groups, times)[np.unique(groups)]
    assert by_group.min() > 0.6 * by_group.mean()  # without a seed: 200 four times, then 0


def test_clusterclip_balances_and_km_random_follows_size():
    pool = make_pool()
    sizes = pool.cluster_sizes
    balanced = counts(pool, get_method("clusterclip")(pool, 36))
    assert balanced.tolist() == np.minimum(sizes, 6).tolist() or balanced.sum() == 36
    assert balanced.max() - balanced.min() <= 1
    by_size = counts(pool, get_method("km-random")(pool, 60))
    assert np.abs(by_size - sizes / 4).max() < 1


def test_kmq_draws_by_quality_inside_clusters():
    labels = np.repeat([0, 1], 500).astype(np.int32)
    quality = np.tile([0.0, 3.0], 500)
    pool = pool_from_arrays(labels=labels, quality=quality)
    kmq = get_method("kmq")
    rows = kmq(pool, 100)
    assert counts(pool, rows)[:2].tolist() == [50, 50]
    # Standardised quality is -1 and 1: the odds of a draw are e^2.
    assert 0.78 < np.mean(quality[rows] == 3) < 0.97
    sharp = kmq(pool, 100, temperature=0.05)
    assert np.all(quality[sharp] == 3)
    assert np.all(quality[kmq(pool, 400, weighting="proportional")] == 3)
    with pytest.raises(ConfigError, match="option 'weighting' is 'cubic'"):
        kmq(pool, 10, weighting="cubic")


def test_km_closest_and_km_median_take_the_rows_at_their_distance():
    angles = np.r_[0.0:9.0, 100.0:109.0]
    x = np.c_[angles, np.zeros(18)].astype(np.float32)
    labels = np.repeat([0, 1], 9).astype(np.int32)
    pool = pool_from_arrays(embeddings=x, labels=labels, centroids=[[0.0, 0.0], [108.0, 0.0]])
    assert get_method("km-closest")(pool, 6).tolist() == [0, 1, 2, 15, 16, 17]
    assert get_method("km-median")(pool, 6).tolist() == [3, 4, 5, 12, 13, 14]


def test_distances_to_cosine_centers_are_those_of_unit_rows():
    """Directions 0 to 8 degrees off the center; the nearer the direction, the longer the row."""
    angles = np.radians(np.arange(9))
    x = np.c_[np.cos(angles), np.sin(angles)] * np.arange(10, 1, -1)[:, None]
    known = {"labels": np.zeros(9, np.int32), "centroids": [[1.0, 0.0]], "metric": "cosine"}
    for scale in (1, 100):
        pool = pool_from_arrays(embeddings=(scale * x).astype(np.float32), **known)
        assert get_method("km-closest")(pool, 3).tolist() == [0, 1, 2]
        assert get_method("km-median")(pool, 3).tolist() == [3, 4, 5]
    with pytest.raises(ValueError, match="metric is 'cosin': must be euclidean or cosine"):
        pool_from_arrays(lengths=[1], metric="cosin")


def test_k_center_finds_every_far_group():
    pool = make_pool()
    assert set(pool.labels[get_method("k-center")(pool, K, seed=4)]) == set(range(K))


def test_facility_location_represents_every_group():
    pool = make_pool()
    rows = get_method("facility-location")(pool, K)
    assert set(pool.labels[rows]) == set(range(K))
    # The first pick serves most rows: it lies in the largest group.
    assert pool.labels[rows[0]] == np.argmax(pool.cluster_sizes)


def test_qdit_trades_quality_for_diversity():
    quality = np.where(np.arange(N) < 60, 1.0, 0.0)
    pool = make_pool(quality=quality)
    qdit = get_method("qdit")
    assert np.all(quality[qdit(pool, 30, alpha=1.0)] == 1)
    np.testing.assert_array_equal(
        qdit(pool, 30, alpha=0.0), get_method("facility-location")(pool, 30)
    )
    assert 0 < quality[qdit(pool, 30, alpha=0.02)].mean() < 1
    with pytest.raises(ConfigError, match="alpha is 2"):
        qdit(pool, 30, alpha=2)


def test_deita_takes_the_best_of_each_group_of_near_rows():
    x = np.repeat(np.eye(4, dtype=np.float32), 3, axis=0)
    quality = np.arange(12.0)
    pool = pool_from_arrays(embeddings=x, quality=quality)
    deita = get_method("deita")
    assert deita(pool, 4).tolist() == [11, 8, 5, 2]
    with pytest.warns(PyidsWarning, match="only 4 of 12"):
        assert deita(pool, 6).tolist() == [11, 8, 5, 2, 10, 9]


def test_novelselect_prefers_what_is_new_in_dense_regions():
    # From a row of the first group, the other groups are equally far; what the density weight adds
    # is that of the picked rows, so the second pick from a dense group counts more.
    rng = np.random.default_rng(0)
    x = np.eye(3, 8)[np.repeat([0, 1, 2], [100, 20, 20])] + 0.02 * rng.normal(size=(140, 8))
    pool = pool_from_arrays(embeddings=x.astype(np.float32))
    novel = get_method("novelselect")
    groups = np.repeat([0, 1, 2], [100, 20, 20])[novel(pool, 12)]
    assert set(groups[:3]) == {0, 1, 2}
    assert np.bincount(groups)[0] > np.bincount(groups)[1:].max() - 4
    assert set(novel(pool, 12).tolist()) != set(novel(pool, 12, density=0.0).tolist())


# ---- the interface -------------------------------------------------------------------------------


def test_what_is_missing_is_named_with_the_remedy():
    pool = pool_from_arrays(lengths=np.arange(9))
    with pytest.raises(ConfigError, match="no embeddings: embed"):
        get_method("k-center")(pool, 3)
    with pytest.raises(ConfigError, match="no labels: cluster"):
        get_method("kmq")(pool, 3)
    with pytest.raises(ConfigError, match="has no option 'alhpa': it takes alpha"):
        get_method("qdit")(pool, 3, alhpa=1)
    with pytest.raises(ConfigError, match="needs the option 'column'"):
        get_method("uniform")(pool, 3)
    with pytest.raises(ConfigError, match="no method 'k-centre': choose one of random"):
        get_method("k-centre")
    with pytest.raises(ValueError, match="budget is -1"):
        get_method("random")(pool, -1)
    with pytest.raises(ValueError, match=r"row_ids\[2\]"):
        pool_from_arrays(row_ids=[1, 2, 2])


@pytest.mark.parametrize(
    ("quality", "message"),
    [
        ([1.0, np.nan, 2, 3], "quality of row 20 is nan"),
        ([7.0, 7, 7, 7], "quality is 7 for all 4 rows"),
    ],
)
def test_quality_that_cannot_rank_is_an_error(quality, message):
    pool = pool_from_arrays(quality=quality, labels=np.zeros(4), row_ids=[10, 20, 30, 40])
    with pytest.raises(DataError, match=message):
        get_method("kmq")(pool, 2)


@pytest.mark.parametrize(
    ("known", "message"),
    [
        ({"labels": [0, 2**32 + 1, 1, 1]}, r"labels\[1\] is 4294967297: must fit into int32"),
        ({"labels": [0, 1.5, 1, 1]}, "labels must be 1-D integers, not float64"),
        ({"labels": [0, np.nan, 1, 1]}, "labels must be 1-D integers, not float64"),
        ({"labels": [0, -1, 1, 1]}, "label of row 1 is -1"),
        ({"lengths": [5, 1.5, 1, 1]}, "lengths must be 1-D integers, not float64"),
        (
            {"lengths": np.array([5, 2**63, 1, 1], np.uint64)},
            r"lengths\[1\] is 9223372036854775808",
        ),
        ({"lengths": [5, 1, 1, 1], "row_ids": [0, 0.5, 1, 1.5]}, "row_ids must be 1-D integers"),
    ],
)
def test_columns_of_integers_are_not_cast_in_silence(known, message):
    method = get_method("clusterclip" if "labels" in known else "longest")
    with pytest.raises(ValueError, match=message):
        method(pool_from_arrays(**known), 2)


def test_narrow_integers_are_taken():
    pool = pool_from_arrays(labels=np.array([0, 200, 200], np.uint8), lengths=[3, 1, 2])
    assert pool.labels.tolist() == [0, 200, 200]
    assert pool.labels.dtype == np.int32


def test_a_wrong_method_is_caught():
    twice = methods.method()(lambda pool, budget, *, seed: [0] * budget)
    few = methods.method()(lambda pool, budget, *, seed: [0])
    pool = pool_from_arrays(lengths=np.arange(9))
    with pytest.raises(ConfigError, match="returned a position twice"):
        twice(pool, 3)
    with pytest.raises(ConfigError, match="not 3 positions"):
        few(pool, 3)


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("length-stratified", {"strata": "a"}, "option 'strata' is 'a': give a whole number"),
        ("length-stratified", {"strata": 2.5}, "option 'strata' is 2.5: give a whole number"),
        ("length-stratified", {"strata": True}, "option 'strata' is True: give a whole number"),
        ("length-stratified", {"flat": "no"}, "option 'flat' is 'no': give true or false"),
        ("uniform", {"column": [1]}, r"option 'column' is \[1\]: give text"),
        ("uniform", {"column": None}, "option 'column' is null: give text"),
        ("deita", {"threshold": "1e-3"}, "option 'threshold' is '1e-3': give a number"),
        ("deita", {"threshold": float("nan")}, "option 'threshold' is nan: give a number"),
        ("kmq", {"weighting": "x"}, "is 'x': give one of exponential, proportional"),
        ("rds", {"components": "3"}, "is '3': give a whole number or null"),
        ("mig", {"tags": {}}, "is {}: give text .* or null"),
    ],
)
def test_an_option_of_another_type_is_named(name, options, says):
    with pytest.raises(ConfigError, match=f"^method '{name}': .*{says}"):
        get_method(name).check_options(options)


def test_options_of_the_right_types_pass():
    for name in method_names():
        found = get_method(name)
        given = {n: v for n, v in found.options.items() if v is not inspect.Parameter.empty}
        found.check_options(given | ({"column": "c"} if name == "uniform" else {}))
    get_method("length-stratified").check_options({"strata": np.int64(3), "flat": np.True_})
    get_method("deita").check_options({"threshold": np.float32(0.5)})
    get_method("deita").check_options({"threshold": 1})
    get_method("rds").check_options({"components": None})

    @methods.method()
    def own(pool, budget, *, seed, names: list[str], pool_like: Pool | None = None, other=1):
        """Take anything."""

    own.check_options({"names": ["a"], "other": object(), "pool_like": None})
    with pytest.raises(ConfigError, match=r"option 'names' is \['a', 1\]: .*list\[str\]"):
        own.check_options({"names": ["a", 1]})


OUTSIDE = '''
import numpy as np
from pyids.methods import method


@method(needs=("lengths",), source="this test")
def shortest(pool, budget, *, seed, offset=0):
    """Take the rows with the shortest responses."""
    return np.argsort(pool.lengths, kind="stable")[offset : offset + budget]


not_a_method = 3
'''


def test_a_method_from_outside_the_package(tmp_path, monkeypatch):
    (tmp_path / "outside.py").write_text(OUTSIDE)
    known = tmp_path / "outside-1.0.dist-info"
    known.mkdir()
    (known / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    (known / "entry_points.txt").write_text("[pyids.methods]\nshortest = outside:shortest\n")
    monkeypatch.syspath_prepend(tmp_path)
    pool = pool_from_arrays(lengths=[5, 9, 1, 9, 7])
    for name in ("outside:shortest", "shortest"):
        assert get_method(name)(pool, 2).tolist() == [2, 0]
        assert get_method(name)(pool, 2, offset=1).tolist() == [0, 4]
    assert method_names()[-1] == "shortest"
    assert get_method("shortest").summary == "Take the rows with the shortest responses."
    with pytest.raises(ConfigError, match="not decorated"):
        get_method("outside:not_a_method")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        get_method("outside:missing")


def test_listing_the_methods_imports_nothing_heavy():
    code = (
        "import sys; from pyids.methods import *; [get_method(n) for n in method_names()];"
        "print(*({'torch', 'transformers', 'pyarrow', 'scipy', 'sklearn'} & sys.modules.keys()))"
    )
    out = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == ""
