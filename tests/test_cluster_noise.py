"""The noise of cluster scores that are no means of rows: the jackknife, and what shrinks by it."""

import numpy as np
import pytest

from pyids import reference
from pyids.scoring import probes, scorers
from pyids.scoring.cluster_weights import update_weights
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
    values = scorers.score("sound-learnability", None, [[]] * len(clusters), clusters).values
    return cluster_moments(values, clusters, len(sizes))


def shrunk(moments):
    means, counts, variances = moments
    equal = np.full(len(means), 1 / len(means))
    return update_weights(equal, means, counts, variances=variances, temperature=1.0)


@pytest.mark.parametrize("noise", [0.2, 0.5, 1.0])
def test_the_default_scorer_tells_its_noise(monkeypatch, noise):
    """Two draws of probes from the same clusters differ by as much as each says of itself."""
    rng = np.random.default_rng(3)
    sizes = rng.integers(2, 9, 3000)
    truth = rng.standard_normal(len(sizes))
    first, again = (measure(monkeypatch, truth, sizes, noise, rng) for _ in range(2))
    differ = np.mean((first[0] - again[0]) ** 2) / 2
    assert np.mean(first[2] / first[1]) == pytest.approx(differ, rel=0.25)
    update = shrunk(first)
    # What is left of the scores foretells the second draw better than the scores do.
    assert np.mean((update.shrunk_scores - again[0]) ** 2) < np.mean((first[0] - again[0]) ** 2)
    few, many = (update.shrinkage[sizes == n][0] for n in (2, 8))
    assert 0.001 < many < few < 0.9
    assert few == pytest.approx(4 * many / (1 + 3 * many))


def test_the_default_scorer_moves_nothing_where_all_is_noise(monkeypatch):
    rng = np.random.default_rng(4)
    sizes = rng.integers(2, 9, 1000)
    assert shrunk(measure(monkeypatch, np.zeros(1000), sizes, 1.0, rng)).shrinkage.mean() > 0.8


def test_the_default_scorer_shrinks_nothing_where_rows_agree(monkeypatch):
    rng = np.random.default_rng(5)
    truth, sizes = rng.standard_normal(200), np.full(200, 4)

    class Silent:
        standard_normal = staticmethod(np.zeros)

    assert shrunk(measure(monkeypatch, truth, sizes, 1.0, Silent)).shrinkage.max() < 1e-9
