import doctest

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pyids import reference
from pyids.scoring import cluster_weights as weights
from pyids.scoring.cluster_weights import update_weights

RULES = ["exponential", "linear", "ucb", "none"]
sane = st.floats(-1e3, 1e3).map(lambda x: round(x, 6))
hostile = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def rounds(draw, scores=sane, min_clusters=1):
    """The arguments of one update: weights, scores, counts, variances."""
    k = draw(st.integers(min_clusters, 12))
    raw = np.array(draw(st.lists(st.integers(0, 20), min_size=k, max_size=k)), float)
    assume(raw.sum() > 0)
    counts = np.array(draw(st.lists(st.integers(0, 30), min_size=k, max_size=k)))
    values = np.array(draw(st.lists(scores, min_size=k, max_size=k)))
    variances = np.array(draw(st.lists(st.floats(0, 1e3), min_size=k, max_size=k)))
    return (
        raw / raw.sum(),
        np.where(counts > 0, values, np.nan),
        counts,
        np.where(counts > 1, variances, np.nan),
    )


shrinkages = st.one_of(st.none(), st.floats(0, 100), st.just(np.inf))
floors = st.floats(0, 1)


# ---- invariants ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
@given(
    given_round=rounds(hostile),
    min_weight=floors,
    shrinkage=shrinkages,
    with_variances=st.booleans(),
    temperature=st.one_of(st.none(), st.floats(1e-300, 1e300)),
    pooled_noise=st.booleans(),
)
def test_the_result_is_a_distribution_above_the_least(
    rule, given_round, min_weight, shrinkage, with_variances, temperature, pooled_noise
):
    old, scores, counts, variances = given_round
    update = update_weights(
        old,
        scores,
        counts,
        variances=variances if with_variances else None,
        rule=rule,
        min_weight=min_weight,
        shrinkage=shrinkage,
        pooled_noise=pooled_noise,
        temperature=temperature if rule in ("exponential", "ucb") else None,
    )
    new = update.weights
    assert new.dtype == np.float64
    assert np.isfinite(new).all()
    assert abs(new.sum() - 1) < 1e-12
    if rule == "none":
        np.testing.assert_array_equal(new, old / old.sum())
    else:
        assert (new >= min_weight / len(new) * (1 - 1e-9)).all()
    assert ((update.shrinkage >= 0) & (update.shrinkage <= 1)).all()
    assert (update.shrinkage[counts == 0] == 1).all()
    if counts.any():
        scored = scores[counts > 0]
        unit = np.abs(scored).max() or 1.0
        assert (update.shrunk_scores / unit >= scored.min() / unit - 1e-9).all()
        assert (update.shrunk_scores / unit <= scored.max() / unit + 1e-9).all()


@pytest.mark.parametrize("rule", RULES)
@given(given_round=rounds(), shrinkage=shrinkages)
def test_unscored_clusters_keep_their_weight(rule, given_round, shrinkage):
    old, scores, counts, _ = given_round
    min_weight = 0.1
    assume((old >= min_weight / len(old)).all())
    new = update_weights(
        old, scores, counts, rule=rule, min_weight=min_weight, shrinkage=shrinkage
    ).weights
    np.testing.assert_allclose(new[counts == 0], old[counts == 0], rtol=1e-12)


@pytest.mark.parametrize("rule", RULES[:3])
@given(given_round=rounds(min_clusters=2), count=st.integers(1, 20), shrinkage=shrinkages)
def test_higher_scores_get_no_less(rule, given_round, count, shrinkage):
    _, scores, counts, _ = given_round
    scores = np.nan_to_num(scores)
    k = len(scores)
    uniform, counts = np.full(k, 1 / k), np.full(k, count)
    new = update_weights(uniform, scores, counts, rule=rule, shrinkage=shrinkage).weights
    order = np.argsort(scores)
    assert (np.diff(new[order]) >= -1e-12).all()


@pytest.mark.parametrize("rule", RULES[:3])
def test_higher_scores_get_more(rule):
    new = update_weights([0.25] * 4, [-1.0, 2.0, 1.0, 2.5], [8] * 4, rule=rule).weights
    assert np.argsort(new).tolist() == [0, 2, 1, 3]
    assert np.diff(np.sort(new)).min() > 0.01


@pytest.mark.parametrize("rule", ["exponential", "linear"])  # to a bandit, doubt differs
@given(given_round=rounds())
def test_equal_scores_change_nothing(rule, given_round):
    old, _, counts, variances = given_round
    for score in (0.0, 0.3, -7.0):
        scores = np.where(counts > 0, score, np.nan)
        new = update_weights(
            old, scores, counts, variances=variances, rule=rule, min_weight=0
        ).weights
        np.testing.assert_allclose(new, old, atol=1e-12)


@pytest.mark.parametrize("rule", ["exponential", "ucb"])
@pytest.mark.parametrize(("scale", "shift"), [(1e-6, 0.0), (1e6, 0.0), (3.0, 100.0)])
def test_the_unit_of_the_scores_does_not_matter(rule, scale, shift):
    rng = np.random.default_rng(0)
    scores, counts = rng.normal(size=50), rng.integers(1, 20, 50)
    old, variances = rng.dirichlet(np.ones(50)), rng.gamma(2, 1, 50)
    plain, scaled = (
        update_weights(old, a * scores + b, counts, variances=a * a * variances, rule=rule).weights
        for a, b in ((1.0, 0.0), (scale, shift))
    )
    np.testing.assert_allclose(plain, scaled, rtol=1e-6)


def test_one_outlier_does_not_take_everything():
    scores = np.append(np.random.default_rng(1).normal(size=99), 1e9)
    new = update_weights(np.full(100, 0.01), scores, np.full(100, 10), shrinkage=0).weights
    assert new[-1] < 0.25
    assert new[-1] == new.max()


# ---- shrinkage -----------------------------------------------------------------------------------


@given(given_round=rounds(), shrinkage=st.floats(0, 1e3))
def test_shrunk_scores_are_the_references(given_round, shrinkage):
    old, scores, counts, _ = given_round
    assume(counts.any())
    update = update_weights(old, scores, counts, shrinkage=shrinkage)
    expected = reference.shrink_scores(scores, counts, shrinkage)
    np.testing.assert_allclose(update.shrunk_scores, expected, rtol=1e-9, atol=1e-9)


@given(given_round=rounds())
def test_the_estimated_shrinkage_is_the_references(given_round):
    old, scores, counts, variances = given_round
    scored = counts > 0
    assume(scored.sum() >= 2 and (counts >= 2).any())
    assume(variances[counts >= 2].max() > 1e-3)
    expected = reference.estimate_shrinkage(scores, counts, variances)
    assume(expected == np.inf or expected < 1e6)  # beyond, the signal is rounding error
    update = update_weights(old, scores, counts, variances=variances)
    b = 1.0 if expected == np.inf else expected / (expected + counts[scored])
    np.testing.assert_allclose(update.shrinkage[scored], b, rtol=1e-6, atol=1e-9)


def test_the_estimate_finds_the_planted_ratio_and_lowers_the_error():
    rng = np.random.default_rng(2)
    k, noise, signal = 2000, 2.0, 0.5
    counts = rng.integers(1, 12, k)
    truth = rng.normal(3.0, signal, k)
    rows = [rng.normal(truth[j], noise, counts[j]) for j in range(k)]
    scores = np.array([row.mean() for row in rows])
    variances = np.array([row.var(ddof=1) if len(row) > 1 else np.nan for row in rows])
    update = update_weights(np.full(k, 1 / k), scores, counts, variances=variances)
    ratio = update.shrinkage * counts / (1 - update.shrinkage)
    np.testing.assert_allclose(ratio, noise**2 / signal**2, rtol=0.2)
    raw_error = np.mean((scores - truth) ** 2)
    error = np.mean((update.shrunk_scores - truth) ** 2)
    assert error < 0.3 * raw_error


def test_scores_that_are_pure_noise_move_nothing():
    counts = np.array([4, 4, 4])
    update = update_weights([0.2, 0.3, 0.5], [1.0, 1.1, 0.9], counts, variances=[9.0, 9.0, 9.0])
    np.testing.assert_allclose(update.weights, [0.2, 0.3, 0.5])
    np.testing.assert_array_equal(update.shrinkage, 1.0)


def test_a_single_row_moves_a_weight_less_than_many():
    old = np.full(4, 0.25)
    many = update_weights(old, [0.0, 0.0, 1.0, 3.0], [50, 50, 50, 50], temperature=1.0).weights
    single = update_weights(old, [0.0, 0.0, 1.0, 3.0], [50, 50, 50, 1], temperature=1.0).weights
    assert old[3] < single[3] < many[3]


def test_the_bandit_tries_the_less_certain_again():
    old, scores = np.full(4, 0.25), [0.0, 1.0, 2.0, 2.0]
    new = update_weights(old, scores, [50, 50, 50, 50], rule="ucb", shrinkage=5).weights
    np.testing.assert_allclose(new[2], new[3])
    by_rule = {
        rule: update_weights(old, scores, [50, 50, 50, 3], rule=rule, shrinkage=5, temperature=1)
        for rule in ("exponential", "ucb")
    }
    assert by_rule["ucb"].weights[3] > by_rule["exponential"].weights[3]


# ---- the rules against their formulas ------------------------------------------------------------


@given(given_round=rounds(), min_weight=floors, shrinkage=st.floats(0, 20))
def test_softmax_and_paper_are_the_references(given_round, min_weight, shrinkage):
    old, scores, counts, _ = given_round
    scored = counts > 0
    assume(scored.any() and (old >= min_weight / len(old)).all() and (old[scored] > 0).any())
    t = reference.shrink_scores(scores, counts, shrinkage)
    new = update_weights(
        old, scores, counts, min_weight=min_weight, shrinkage=shrinkage, temperature=100.0
    ).weights
    expected = reference.reweight(old, np.exp(t / 100.0), scored, min_weight)
    np.testing.assert_allclose(new, expected, rtol=1e-9, atol=1e-12)

    gains = t - min(0.0, t[scored].min())
    assume((old * gains)[scored].sum() > 1e-6)
    new = update_weights(
        old, scores, counts, min_weight=min_weight, shrinkage=shrinkage, rule="linear"
    ).weights
    expected = reference.reweight(old, gains, scored, min_weight)
    np.testing.assert_allclose(new, expected, rtol=1e-6, atol=1e-9)


def test_the_papers_rule_is_equation_6_normalized():
    old, scores = np.array([0.5, 0.3, 0.2]), np.array([1.0, 2.0, 4.0])
    new = update_weights(old, scores, [5, 5, 5], rule="linear", shrinkage=0, min_weight=0).weights
    np.testing.assert_allclose(new, old * scores / (old * scores).sum())


# ---- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": [1.0, np.nan, 2.0]}, "score of cluster 1 is nan: must be finite where rows"),
        ({"scores": [1.0, 2.0, -np.inf]}, "score of cluster 2 is -inf: must be finite"),
        ({"counts": [1, 0, 1]}, "score of cluster 1 is 2.0: must be NaN where no row was scored"),
        ({"counts": [1, 1, -1]}, "count of cluster 2 is -1: must not be negative"),
        ({"counts": [1.0, 1.0, 1.0]}, "counts must be integers, not float64"),
        ({"counts": [1, 1]}, r"counts has shape \(2,\) for 3 clusters"),
        ({"weights": [0.5, np.nan, 0.5]}, "weight of cluster 1 is nan"),
        ({"weights": [-0.5, 1.0, 0.5]}, "weight of cluster 0 is -0.5"),
        ({"weights": [0.5, 1.0, 0.5]}, "weights sum to 2.0: must sum to 1"),
        ({"weights": []}, "weights must be 1-D and not empty"),
        ({"variances": [1.0, -1.0, 1.0]}, "variance of cluster 1 is -1.0: must be finite"),
        (
            {"rule": "magic"},
            "there is no weight update 'magic': choose one of exponential, linear, ucb, none",
        ),
        ({"min_weight": 1.5}, r"min_weight is 1.5: must lie in \[0, 1\]"),
        ({"min_weight": np.nan}, "min_weight is nan"),
        ({"shrinkage": -1.0}, "shrinkage is -1.0: must not be negative"),
        ({"temperature": 0.0}, "temperature is 0.0: must be positive and finite"),
        ({"temperature": 1.0, "rule": "linear"}, "temperature has no meaning for rule 'linear'"),
    ],
)
def test_errors_name_the_cluster(change, message):
    arguments = {
        "weights": [0.2, 0.3, 0.5],
        "scores": [1.0, 2.0, 3.0],
        "counts": [3, 3, 3],
    }
    with pytest.raises(ValueError, match=message):
        update_weights(**(arguments | change))


def test_the_inputs_are_left_alone():
    old, scores = np.array([0.0, 1.0]), np.array([1.0, 2.0])
    update_weights(old, scores, [2, 2])
    assert old.tolist() == [0.0, 1.0]
    assert scores.tolist() == [1.0, 2.0]


def test_the_examples_in_the_docstrings_hold():
    assert doctest.testmod(weights).failed == 0
