"""Rating noise by the agreement of neighbors, and ratings that speak for their cluster."""

import numpy as np
import pytest

from pyids.scoring import propagate, rating_noise

TRANSITION = np.array([[0.8, 0.15, 0.05], [0.1, 0.8, 0.1], [0.02, 0.18, 0.8]])


def planted(n, seed=0):
    """True ratings and those given to a row and two neighbors of the same true rating."""
    rng = np.random.default_rng(seed)
    true = rng.choice(3, n, p=[0.2, 0.5, 0.3])
    given = np.stack([[rng.choice(3, p=TRANSITION[t]) for t in true] for _ in range(3)], axis=1)
    return true, given


def test_planted_noise_is_found():
    _, triples = planted(20_000)
    noise = rating_noise.estimate_noise(triples, 3)
    np.testing.assert_allclose(noise.prior, [0.2, 0.5, 0.3], atol=0.03)
    np.testing.assert_allclose(noise.transition, TRANSITION, atol=0.04)
    np.testing.assert_allclose(noise.transition.sum(axis=1), 1)


def test_correction_brings_ratings_nearer_to_the_truth():
    true, triples = planted(5_000, seed=1)
    fixed = rating_noise.correct(triples, rating_noise.estimate_noise(triples, 3))
    before, after = (triples[:, 0] != true).mean(), (fixed != true).mean()
    assert after < 0.6 * before
    agreed = (triples == triples[:, :1]).all(axis=1)
    np.testing.assert_array_equal(fixed[agreed], triples[agreed, 0])


def test_ratings_without_noise_stay():
    true = np.random.default_rng(0).integers(0, 4, 500)
    triples = np.stack([true] * 3, axis=1)
    noise = rating_noise.estimate_noise(triples, 4)
    np.testing.assert_allclose(noise.transition, np.eye(4), atol=1e-6)
    np.testing.assert_array_equal(rating_noise.correct(triples, noise), true)


def test_neighbors_are_of_the_cluster_and_not_oneself():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 5)).astype(np.float32)
    labels = np.repeat(np.arange(3, dtype=np.int32), [50, 28, 2])
    found = rating_noise.cluster_neighbors([x[:33], x[33:]], labels)
    units = x / np.linalg.norm(x, axis=1, keepdims=True)
    cosines = units @ units.T
    np.fill_diagonal(cosines, -2)
    cosines[labels[:, None] != labels] = -2
    expected = np.argsort(-cosines, axis=1, kind="stable")[:78, :2]
    np.testing.assert_array_equal(found[:78], expected)
    assert (found[78:] == -1).all()


def test_a_row_rated_unlike_its_neighbors_is_corrected():
    rng = np.random.default_rng(0)
    x = (np.eye(4)[np.repeat(np.arange(4), 50)] + 0.02 * rng.normal(size=(200, 4))).astype("f4")
    truth = np.repeat([2.0, 5.0, 5.0, 9.0], 50)
    ratings = truth.copy()
    wrong = rng.choice(200, 20, replace=False)
    ratings[wrong] = rng.choice([2.0, 9.0], 20)
    fixed = rating_noise.correct_ratings(ratings, [x], np.zeros(200, np.int32))
    assert (fixed != truth).sum() < 0.4 * (ratings != truth).sum()
    with pytest.raises(ValueError, match="200 different ratings"):
        rating_noise.correct_ratings(np.arange(200.0), [x], np.zeros(200, np.int32))


def test_a_few_ratings_speak_for_their_cluster():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3, dtype=np.int32), [400, 400, 3])
    truth = (
        np.array([3.0, 7.0, 5.0])[labels] + rng.normal(size=803) * np.array([0.3, 2.0, 1])[labels]
    )
    asked = []

    def rate(positions):
        asked.append(positions)
        return truth[positions]

    ids = np.arange(803) * 5
    values = propagate.rate_few(rate, labels, ids, half_width=0.5, seed=1)
    rated = np.concatenate(asked)
    assert len(set(rated)) == len(rated)
    counts = np.bincount(labels[rated])
    assert counts[0] <= 32 < counts[1] < 400  # the noisier cluster is asked more
    assert counts[2] == 3
    np.testing.assert_array_equal(values[rated], truth[rated])
    others = np.setdiff1d(np.arange(803), rated)
    assert len(np.unique(values[others])) == 2
    for cluster, mean in ((0, 3.0), (1, 7.0)):
        of = others[labels[others] == cluster]
        assert values[of[0]] == pytest.approx(mean, abs=0.6)
    again = propagate.rate_few(rate, labels, ids, half_width=0.5, seed=1)
    np.testing.assert_array_equal(again, values)


def test_rows_without_a_rating_count_as_their_cluster():
    labels = np.zeros(20, np.int32)
    ratings = np.where(np.arange(20) % 2, 4.0, np.nan)
    values = propagate.rate_few(
        lambda rows: ratings[rows], labels, np.arange(20), half_width=0.01, seed=0
    )
    np.testing.assert_allclose(values, 4.0)
