"""KMeans and its parts against the float64 definitions."""

from __future__ import annotations

from functools import reduce

import numpy as np
import pytest

import pyids
from pyids import clustering, reference


def blobs(n: int, d: int, k: int, seed: int, dtype: str = "float32") -> np.ndarray:
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(k, d))
    x = centers[rng.integers(k, size=n)] + 0.5 * rng.normal(size=(n, d))
    return x.astype(dtype)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize(("n", "d", "k"), [(1, 1, 1), (7, 3, 7), (130, 17, 5), (1000, 50, 33)])
def test_labels_are_those_of_the_definition(n: int, d: int, k: int, dtype: str) -> None:
    x = blobs(n, d, k, seed=n, dtype=dtype)
    model = pyids.KMeans(k, max_iter=4, tol=0).fit(x)
    labels, distances = reference.assign(x, model.cluster_centers_)
    np.testing.assert_array_equal(model.labels_, labels)
    np.testing.assert_array_equal(model.predict(x), labels)
    np.testing.assert_allclose(model.inertia_, distances.sum(), rtol=1e-12, atol=1e-20)
    np.testing.assert_allclose(model.transform(x).min(axis=1) ** 2, distances, rtol=1e-5, atol=1e-9)


def test_shards_and_threads_change_no_bit() -> None:
    x = blobs(3000, 40, 30, seed=1)
    whole = pyids.KMeans(30, max_iter=10, n_threads=1).fit(x)
    cut = pyids.KMeans(30, max_iter=10, n_threads=3).fit([x[:1], x[1:1700], x[1700:]])
    np.testing.assert_array_equal(whole.labels_, cut.labels_)
    np.testing.assert_array_equal(whole.cluster_centers_, cut.cluster_centers_)
    assert whole.inertia_ == cut.inertia_
    assert whole.n_iter_ == cut.n_iter_


def test_partial_passes_add_up_to_the_fit() -> None:
    x = blobs(2000, 24, 20, seed=2)
    shards = [x[:700], x[700:701], x[701:]]
    centers = x[:20].astype(np.float64)
    whole = pyids.KMeans(20, init=centers, max_iter=6, tol=0).fit(x)
    extent = reduce(clustering.Extent.merge, map(clustering.measure, shards))
    for _ in range(whole.n_iter_):
        parts = [clustering.assign_partial(shard, centers, extent) for shard in reversed(shards)]
        total = reduce(clustering.Partial.__add__, [partial for _, partial in parts])
        centers, _ = clustering.finish_update(total, centers, extent)
    np.testing.assert_array_equal(centers.astype(np.float32), whole.cluster_centers_)


def test_nan_names_the_first_row() -> None:
    x = blobs(500, 4, 3, seed=3)
    x[421, 2] = np.inf
    x[77, 1] = np.nan
    with pytest.raises(ValueError, match=r"row 77, column 1 is NaN"):
        pyids.KMeans(3).fit(x)
