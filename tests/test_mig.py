"""MIG against its definition, and what it picks where the answer is known."""

from itertools import combinations

import numpy as np
import pytest

from pyids import reference
from pyids.errors import ConfigError
from pyids.methods import get_method, information, mig, pool_from_arrays


def make_labels(n, n_labels, m, degree, seed=0, quality=None):
    rng = np.random.default_rng(seed)
    graph = np.stack([rng.permutation(n_labels)[:degree] for _ in range(n_labels)])
    return information.Labels(
        rng.integers(0, n_labels, (n, m)).astype(np.int32),  # a label may stand twice
        rng.integers(0, 5, (n, m)) * 256,
        rng.random(n) if quality is None else quality,
        graph,
        rng.integers(0, 1025, (n_labels, degree)),
    )


def dense(labels):
    out = np.zeros((len(labels.labels), len(labels.graph)), np.int64)
    np.add.at(out, labels.entries(np.arange(len(out)))[:2], labels.entries(np.arange(len(out)))[2])
    return out


@pytest.mark.parametrize("heap", [4, 1 << 14])
@pytest.mark.parametrize(
    ("n", "n_labels", "m", "degree"), [(1, 1, 1, 1), (90, 7, 2, 3), (400, 30, 3, 2)]
)
def test_picks_are_the_plain_greedys(n, n_labels, m, degree, heap, monkeypatch):
    monkeypatch.setattr(information, "_HEAP", heap)
    for quality in (None, np.ones(n)):
        labels = make_labels(n, n_labels, m, degree, quality=quality)
        for budget in {1, n // 3 or 1, n}:
            picks = information.maximize(labels, budget)
            expected = reference.maximize_information(dense(labels), budget)
            np.testing.assert_array_equal(picks.rows, expected)


def test_bounds_allow_for_the_rounding_of_phi():
    """Much is covered and rows add little: gains that should fall rise by a unit of rounding."""
    for seed in range(4):
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, 12, (120, 2)).astype(np.int32)
        weights = rng.integers(1, 4, (120, 2)).astype(np.int64)
        labels[:12], weights[:12] = np.arange(12)[:, None], [1 << 20, 0]
        found = information.Labels(
            labels, weights, np.ones(120), np.arange(12)[:, None], np.ones((12, 1), np.int64)
        )
        picks = information.maximize(found, 100)
        expected = reference.maximize_information(dense(found), 100)
        np.testing.assert_array_equal(picks.rows, expected)


@pytest.mark.parametrize("seed", range(3))
def test_the_guarantee_is_kept(seed):
    labels = make_labels(12, 5, 2, 2, seed)
    vectors = dense(labels) * 2.0**-20
    nothing = reference.information(vectors[:0])
    best = max(reference.information(vectors[list(s)]) for s in combinations(range(12), 4))
    picks = information.maximize(labels, 4)
    value = reference.information(vectors[picks.rows])
    assert value - nothing >= (1 - 1 / np.e) * (best - nothing)
    assert picks.values.sum() == pytest.approx(value - nothing, abs=1e-6)


def test_label_vectors_are_the_definition():
    rng = np.random.default_rng(0)
    x, centroids = rng.normal(size=(200, 6)), rng.normal(size=(9, 6))
    cosines = reference.unit_rows(x) @ reference.unit_rows(centroids).T
    units = reference.unit_rows(centroids)
    labels, weights = mig.soft_labels(cosines, 3)
    graph, shares = mig.label_graph(units @ units.T, 0.3)
    found = dense(information.Labels(labels.astype(np.int32), weights, np.ones(200), graph, shares))
    expected = reference.label_vectors(x, centroids, 3, 0.3)
    np.testing.assert_allclose(found * 2.0**-20, expected, atol=3e-3)


def make_pool(**known):
    """Forty rows around each of five directions, many more around the first."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(5), [400, 40, 40, 40, 40]).astype(np.int32)
    x = (np.eye(5, 8)[labels] + 0.05 * rng.normal(size=(560, 8))).astype(np.float32)
    return labels, pool_from_arrays(
        embeddings=np.split(x, [100, 431]), labels=labels, centroids=np.eye(5, 8), **known
    )


def test_labels_share_the_budget():
    labels, pool = make_pool()
    rows = get_method("mig")(pool, 50)
    counts = np.bincount(labels[rows], minlength=5)
    assert counts.max() - counts.min() <= 2


def test_good_rows_go_first():
    quality = np.random.default_rng(1).random(560)
    _, pool = make_pool(quality=quality)
    rows = get_method("mig")(pool, 50)
    assert quality[rows].mean() > 0.8
    _, pool = make_pool(quality=1e3 * quality - 500)  # as ranks
    assert quality[get_method("mig")(pool, 50)].mean() > 0.8


def test_tags_are_labels():
    tags = [["a"], ["a", "b"], ["a", "c", "d"], ["b"], "e", []]
    pool = pool_from_arrays(
        embeddings=np.ones((6, 2), np.float32), centroids=np.ones((1, 2)), columns={"tags": tags}
    )
    assert get_method("mig")(pool, 3, tags="tags").tolist() == [2, 1, 4]
    pool = pool_from_arrays(
        embeddings=np.ones((2, 2), np.float32), centroids=np.ones((1, 2)), columns={"tags": [1, []]}
    )
    with pytest.raises(ConfigError, match="row 0 holds no list of texts in column 'tags'"):
        get_method("mig")(pool, 1, tags="tags")
