"""The sampler under pytest-benchmark: `python -P -m pytest benchmarks/bench_sampling.py`."""

import numpy as np
import pytest

import pyids

N, K = 10**6, 1024


@pytest.fixture(scope="module")
def pool():
    rng = np.random.default_rng(0)
    return rng.integers(0, K, N, dtype=np.int32), rng.lognormal(size=N)


@pytest.mark.parametrize("share", [0.01, 0.1])
@pytest.mark.parametrize("kind", ["equal", "weights", "log_weights"])
def test_sample_by_cluster(benchmark, pool, kind, share):
    labels, weights = pool
    counts = np.bincount(labels, minlength=K)
    quotas = pyids.allocate(int(share * N), counts, counts)
    given = {
        "equal": {},
        "weights": {"weights": weights},
        "log_weights": {"log_weights": np.log(weights)},
    }[kind]
    drawn = benchmark(pyids.sample_by_cluster, labels, quotas, seed=0, **given)
    assert len(drawn) == int(share * N)


def test_merge_samples(benchmark, pool):
    labels, weights = pool
    quotas = np.full(K, 98)
    parts = [
        pyids.sample_by_cluster(
            labels[rows],
            quotas,
            weights=weights[rows],
            row_ids=np.arange(N)[rows],
            seed=0,
            return_keys=True,
        )
        for rows in (slice(None, N // 2), slice(N // 2, None))
    ]
    drawn = benchmark(pyids.merge_samples, parts, quotas)
    np.testing.assert_array_equal(
        drawn, pyids.sample_by_cluster(labels, quotas, weights=weights, seed=0)
    )


def test_allocate(benchmark):
    rng = np.random.default_rng(0)
    capacity = rng.integers(0, 2000, K)
    quotas = benchmark(pyids.allocate, 100_000, rng.lognormal(size=K), capacity)
    assert quotas.sum() == 100_000
