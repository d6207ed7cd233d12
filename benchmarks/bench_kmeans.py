"""Parts of k-means under pytest-benchmark: python -m pytest benchmarks/bench_kmeans.py."""

from __future__ import annotations

import numpy as np
import pytest

from pyids.clustering import lloyd, nearest, seeding

N, D, K = 20_000, 384, 512


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((K, D), dtype=np.float32)[rng.integers(K, size=N)]
    x += 0.7 * rng.standard_normal((N, D), dtype=np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_measure(benchmark, rows) -> None:
    assert benchmark(lloyd.measure, rows).n_rows == N


def test_first_assignment(benchmark, rows) -> None:
    extent, centers = lloyd.measure(rows), rows[:K].astype(np.float64)
    labels, _ = benchmark(lloyd.assign_partial, rows, centers, extent)
    assert len(labels) == N


def test_seeding(benchmark, rows) -> None:
    centers = benchmark.pedantic(seeding.seed_centers, ([rows], K), rounds=3)
    assert centers.shape == (K, D)


def test_ten_iterations(benchmark, rows) -> None:
    extent, centers = lloyd.measure(rows), rows[:K].astype(np.float64)

    def fit() -> float:
        work = lloyd.ShardPass(rows, K, extent)
        return lloyd.lloyd(work, centers, extent, max_iter=10, tol=0).inertia

    assert benchmark.pedantic(fit, rounds=3) > 0


def test_nearest_two(benchmark, rows) -> None:
    indices, _ = benchmark.pedantic(nearest.nearest_centers, (rows, rows[:K], 2), rounds=3)
    assert indices.shape == (N, 2)
