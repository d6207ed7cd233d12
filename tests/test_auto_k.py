"""The number of clusters: planted ones are found, and the evidence is what it says."""

import json

import numpy as np
import pytest

from pyids.clustering.choose_k import choose_k, default_grid, elbow
from pyids.clustering.nearest import simplified_silhouette
from pyids.errors import ConfigError


def blobs(k, rows=40, spread=0.05, seed=0):
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(k, 12))
    return np.repeat(centers, rows, axis=0) + spread * rng.normal(size=(k * rows, 12))


@pytest.mark.parametrize("criterion", ["silhouette", "elbow"])
@pytest.mark.parametrize("k", [4, 16])
def test_planted_clusters_are_found(k, criterion):
    x = blobs(k).astype(np.float32)
    choice = choose_k([x], criterion=criterion, grid=[2, 4, 8, 16, 32])
    assert choice.k == k
    assert choice.evidence["silhouette_k"] == k
    assert [p["k"] for p in choice.evidence["grid"]] == [2, 4, 8, 16, 32]
    assert json.loads(json.dumps(choice.evidence)) == choice.evidence


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_the_simplified_silhouette_is_its_formula(metric):
    rng = np.random.default_rng(0)
    x, centers = rng.normal(size=(3000, 5)).astype(np.float32), rng.normal(size=(4, 5))
    seen = x.astype(float)
    if metric == "cosine":
        seen /= np.linalg.norm(seen, axis=1, keepdims=True)
    distances = np.linalg.norm(seen[:, None] - centers, axis=2)
    a, b = np.sort(distances, axis=1)[:, :2].T
    got = simplified_silhouette(x, centers, metric=metric, n_threads=2)
    np.testing.assert_allclose(got, (b - a) / np.maximum(a, b), atol=1e-12)


def test_shards_and_threads_change_nothing_and_the_seed_draws_the_sample():
    x = blobs(8, spread=0.5).astype(np.float16)
    options = {"sample_rows": 200, "grid": [2, 4, 8]}
    one = choose_k([x], threads=1, **options)
    assert one == choose_k([x[:7], x[7:7], x[7:]], threads=3, **options)
    assert one.evidence["rows"] == 200
    assert one != choose_k([x], seed=1, **options)


def test_grids():
    assert default_grid(4) == [2]
    assert default_grid(1000) == [2, 4, 8, 16, 32]
    assert elbow([2, 4, 8, 16], [10, 4, 3.5, 3]) == 1
    assert elbow([2, 4], [1, 0]) == 0
    assert choose_k([np.ones((50, 3), np.float32)]).k == 2


@pytest.mark.parametrize("grid", [[], [1, 2], [4, 2], [2, 1000]])
def test_mistakes_are_named(grid):
    with pytest.raises(ConfigError, match="must be ascending"):
        choose_k([np.ones((50, 3), np.float32)], grid=grid)
    with pytest.raises(ConfigError, match="too few"):
        choose_k([np.ones((3, 3), np.float32)])


def test_a_criterion_that_is_none_is_refused_before_the_work():
    done = []
    with pytest.raises(ConfigError, match="'elbows' is neither"):
        choose_k(
            [np.ones((50, 3), np.float32)],
            criterion="elbows",
            progress=lambda *point: done.append(point),
        )
    assert not done
