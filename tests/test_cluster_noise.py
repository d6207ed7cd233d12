"""The noise of cluster scores that are no means of rows: the jackknife, and what shrinks by it."""

import numpy as np
import pytest

from pyids import reference
from pyids.scoring import probes, scorers
from pyids.scoring.cluster_weights import update_weights
from pyids.scoring.shrinkage import by_own_noise, moderated
from pyids.scoring.statistics import cluster_moments, pseudovalues


def ratio(means):
    return means[0] / means[1]


def clusters_of(sizes):
    return np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)


def test_the_pseudovalues_of_a_mean_are_the_rows():
    rng = np.random.default_rng(0)
    clusters = rng.permutation(clusters_of([1, 2, 3, 40]))
    x = 1e6 + rng.standard_normal(len(clusters))
    np.testing.assert_allclose(pseudovalues(lambda m: m[0], x[None], clusters), x, rtol=1e-13)


def test_pseudovalues_have_the_score_as_mean_and_the_jackknifes_variance():
    rng = np.random.default_rng(1)
    clusters = rng.permutation(clusters_of([1, 2, 3, 7, 20]))
    values = rng.gamma(4.0, size=(2, len(clusters)))
    rows = pseudovalues(ratio, values, clusters)
    scores, variances = reference.jackknife(ratio, values, clusters)
    means, counts, sampled = cluster_moments(rows, clusters, 5)
    np.testing.assert_allclose(means, scores, rtol=1e-12)
    np.testing.assert_allclose(sampled / counts, variances, rtol=1e-9)


def test_rows_without_all_measurements_are_left_out():
    clusters = clusters_of([3, 2, 1])
    values = np.array([[1.0, 2.0, 9.0, 4.0, 5.0, np.inf], [2.0, 2.0, np.nan, 1.0, 1.0, 1.0]])
    rows = pseudovalues(ratio, values, clusters)
    assert np.isnan(rows).tolist() == [False, False, True, False, False, True]
    np.testing.assert_allclose(
        rows[[0, 1, 3, 4]], pseudovalues(ratio, values[:, [0, 1, 3, 4]], clusters[[0, 1, 3, 4]])
    )
    assert np.isnan(pseudovalues(ratio, np.full((2, 6), np.nan), clusters)).all()


def test_the_noise_of_a_ratio_is_the_planted_one():
    rng = np.random.default_rng(2)
    clusters = clusters_of(np.full(4000, 12))
    values = np.stack([rng.normal(3, 1, len(clusters)), rng.normal(6, 1, len(clusters))])
    means, counts, variances = cluster_moments(
        pseudovalues(ratio, values, clusters), clusters, 4000
    )
    # By the delta method (1 + (3 / 6)^2) / 6^2 a row.
    planted = 1.25 / 36 / 12
    assert means.var() == pytest.approx(planted, rel=0.1)
    assert (variances / counts).mean() == pytest.approx(planted, rel=0.1)


# ---- clusters of unequal noise -------------------------------------------------------------------


def unequal(rng, k, signal):
    """Return scores of clusters of known, unequal noise, and what each would be without."""
    sizes, noise = rng.integers(2, 16, k), rng.choice([0.1, 1.0, 6.0], k)
    truth = rng.normal(2.0, signal, k)
    rows = rng.normal(truth[clusters_of(sizes)], noise[clusters_of(sizes)])
    return truth, noise**2 / sizes, cluster_moments(rows, clusters_of(sizes), k)


def test_unequal_noise_is_told_apart():
    truth, variances, (means, counts, rows) = unequal(np.random.default_rng(6), 4000, 0.7)
    args = np.full(4000, 1 / 4000), means, counts
    own = update_weights(*args, variances=rows, pooled_noise=False)
    pooled = update_weights(*args, variances=rows)
    ideal = variances / (variances + 0.49)
    # With the noise known: the best that can be done.
    best = np.mean((2 + (1 - ideal) * (means - 2) - truth) ** 2)
    assert best < np.mean((own.shrunk_scores - truth) ** 2) < 1.7 * best
    assert np.mean((own.shrunk_scores - truth) ** 2) < 0.8 * np.mean(
        (pooled.shrunk_scores - truth) ** 2
    )
    # Quiet clusters stay where they are, loud ones go nearly all the way.
    assert own.shrinkage[ideal < 0.05].mean() < 0.1
    assert own.shrinkage[ideal > 0.9].mean() > 0.75


def test_own_noise_is_as_published():
    """Smyth's variances and Paule and Mandel's signal, by scipy."""
    special = pytest.importorskip("scipy.special")
    optimize = pytest.importorskip("scipy.optimize")
    rng = np.random.default_rng(7)
    for signal in (0.0, 0.5, 2.0):
        _, _, (s, counts, v) = unequal(rng, 60, signal)
        n, d = counts.astype(float), counts - 1.0
        logs = np.log(v) - special.digamma(d / 2) + np.log(d / 2)
        differ = logs.var(ddof=1) - special.polygamma(1, d / 2).mean()
        half = optimize.brentq(lambda h, c=differ: special.polygamma(1, h) - c, 1e-3, 1e3)
        usual = np.exp(logs.mean() + special.digamma(half) - np.log(half))
        expected = (d * v + 2 * half * usual) / (d + 2 * half)
        np.testing.assert_allclose(moderated(v, n), expected, rtol=1e-8)
        mean, b, found = by_own_noise(s, n, v)
        e = expected / n
        np.testing.assert_allclose(b, e / (e + found), rtol=1e-7)
        q = sum((s - mean) ** 2 / (e + found))
        assert q == pytest.approx(59) if found else q <= 59


def test_variances_that_differ_by_chance_are_one():
    rng = np.random.default_rng(8)
    sizes = rng.integers(2, 9, 2000)
    _, counts, v = cluster_moments(3 * rng.standard_normal(sizes.sum()), clusters_of(sizes), 2000)
    np.testing.assert_allclose(moderated(v, counts.astype(float)), 9, rtol=0.3)
    ours = moderated(v, counts.astype(float))
    assert ours.std() < 0.1 * v.std()


def test_own_noise_of_few_rows_or_none():
    own = {"pooled_noise": False, "temperature": 1.0}
    args = [0.25] * 4, [1.0, 2.0, 3.0, 9.0]
    # One row is as noisy as is usual.
    v = moderated(np.array([0.2, 0.2, 0.2, np.nan]), np.array([2.0, 2.0, 2.0, 1.0]))
    np.testing.assert_allclose(v, v[0])
    found = update_weights(*args, [2, 2, 2, 1], variances=[0.2, 0.2, 0.2, np.nan], **own)
    assert 0 < found.shrinkage[0] < found.shrinkage[3] < 2 * found.shrinkage[0]
    # None at all, or rows that agree.
    alone = update_weights(*args, [1, 1, 1, 1], variances=[np.nan] * 4, **own)
    np.testing.assert_array_equal(alone.shrinkage, 0.5)
    agree = update_weights(*args, [2, 2, 2, 2], variances=[0.0] * 4, **own)
    np.testing.assert_array_equal(agree.shrinkage, 0)
    # A cluster that knows nothing says nothing; the others keep what they say.
    largest = np.finfo(float).max
    wild = update_weights(*args, [9] * 4, variances=[1e-6, 1e-6, 1e-6, largest], **own)
    assert wild.shrinkage[3] > 0.99
    assert wild.shrinkage[:3].max() < 0.01
    same = update_weights([0.25] * 4, [1.0] * 4, [2] * 4, variances=[1.0, 0.0, 2.0, 0.0], **own)
    np.testing.assert_array_equal(same.shrinkage, 1)
    np.testing.assert_allclose(same.weights, 0.25)


# ---- the default scorer --------------------------------------------------------------------------


def measure(monkeypatch, truth, sizes, noise, rng):
    """Let the default scorer see `sizes` rows of clusters whose loss falls by `truth`."""
    clusters = clusters_of(sizes)
    drop = truth[clusters] + noise * rng.standard_normal(len(clusters))
    left = 5 + np.sin(clusters) + 0.1 * rng.standard_normal(len(clusters))
    monkeypatch.setattr(probes.Probes, "response_tokens", np.full(len(clusters), 20.0))
    monkeypatch.setattr(probes.Probes, "base_nll", left + drop)
    monkeypatch.setattr(probes.Probes, "checkpoint_nll", left)
    monkeypatch.setattr(probes.Probes, "response_alone_nll", left / 0.4)
    scores = scorers.score("sound-learnability", None, [[]] * len(clusters), clusters)
    assert not scores.pooled_noise
    return cluster_moments(scores.values, clusters, len(sizes))


def shrunk(moments):
    means, counts, variances = moments
    equal = np.full(len(means), 1 / len(means))
    return update_weights(
        equal, means, counts, variances=variances, temperature=1.0, pooled_noise=False
    )


@pytest.mark.parametrize(("noise", "of_raw"), [(0.2, 1.01), (0.5, 1.0), (1.0, 0.97)])
def test_the_default_scorer_tells_its_noise(monkeypatch, noise, of_raw):
    """Two draws of probes from the same clusters differ by as much as each says of itself."""
    rng = np.random.default_rng(3)
    sizes = rng.integers(2, 9, 3000)
    truth = rng.standard_normal(len(sizes))
    first, again = (measure(monkeypatch, truth, sizes, noise, rng) for _ in range(2))
    differ = np.mean((first[0] - again[0]) ** 2) / 2
    assert np.mean(first[2] / first[1]) == pytest.approx(differ, rel=0.25)
    update = shrunk(first)
    # What is left of the scores foretells the second draw better than the scores do.
    raw = np.mean((first[0] - again[0]) ** 2)
    assert np.mean((update.shrunk_scores - again[0]) ** 2) < of_raw * raw
    few, many = (update.shrinkage[sizes == n].mean() for n in (2, 8))
    assert 0.001 < many < few < 0.9


def test_the_default_scorer_moves_less_where_all_is_noise(monkeypatch):
    """Half way: drops that are cut at a deviation below the median look as if they were sure."""
    rng = np.random.default_rng(4)
    sizes = rng.integers(2, 9, 1000)
    moments = measure(monkeypatch, np.zeros(1000), sizes, 1.0, rng)
    update = shrunk(moments)
    assert update.shrinkage.mean() > 0.4
    assert update.shrunk_scores.std() < 0.65 * moments[0].std()


def test_the_default_scorer_shrinks_nothing_where_rows_agree(monkeypatch):
    rng = np.random.default_rng(5)
    truth, sizes = rng.standard_normal(200), np.full(200, 4)

    class Silent:
        standard_normal = staticmethod(np.zeros)

    assert shrunk(measure(monkeypatch, truth, sizes, 1.0, Silent)).shrinkage.max() < 1e-9
