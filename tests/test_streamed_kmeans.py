"""K-means in bounded memory and on engines: bitwise that of `KMeans` over all rows at once."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pyids.clustering.kmeans import KMeans
from pyids.clustering.lloyd import ShardPass
from pyids.config import make_config
from pyids.engine import LocalEngine
from pyids.errors import ConfigError, DataError
from pyids.pipeline import streamed
from pyids.pipeline.kmeans_plan import describe, kmeans_plan
from pyids.resources import default_max_memory, memory_left
from pyids.store import arrays
from pyids.store.arrays import ShardArrays
from pyids.store.ledger import load_npy, save_npy

PLAN = streamed.Plan(12, 9, 3, "euclidean", "k-means++", None)


def make_shards(folder, lengths, dtype=np.float16, seed=0):
    rng = np.random.default_rng(seed)
    paths = [folder / f"{i:03d}.npy" for i in range(len(lengths))]
    centers = rng.standard_normal((20, 6))
    for path, length in zip(paths, lengths, strict=True):
        rows = centers[rng.integers(0, 20, length)] + 0.3 * rng.standard_normal((length, 6))
        save_npy(path, rows.astype(dtype), {})
    return paths


def fit(paths, plan, folder, *, max_memory, workers=1, threads=1):
    vectors = ShardArrays(lambda i: load_npy(paths[i]), len(paths))
    lengths = [len(load_npy(path)) for path in paths]
    with LocalEngine(workers) as engine:
        found = streamed.fit(
            *(vectors, paths, lengths, plan),
            engine=engine,
            threads=threads,
            scratch=folder,
            max_memory=max_memory,
        )
        labels = [np.array(part) for part in found.labels]
    assert [len(part) for part in labels] == lengths
    return np.concatenate(labels), found


LENGTHS = [700, 0, 1300, 0, 0, 901, 1, 2000, 0]


@pytest.mark.parametrize(
    "plan",
    [
        PLAN,
        replace(PLAN, metric="cosine"),
        replace(PLAN, init="random"),
        replace(PLAN, init="two-level"),
        replace(PLAN, sample_rows=1200),
        replace(PLAN, init="two-level", sample_rows=1200),
        # More clusters than the data has blobs, from random rows: some of them run empty.
        replace(PLAN, n_clusters=600, init="random", max_iter=4),
    ],
    ids=lambda plan: f"{plan.init} {plan.metric} {plan.n_clusters} {plan.sample_rows}",
)
def test_it_is_kmeans_over_all_rows(plan, tmp_path, monkeypatch):
    paths = make_shards(tmp_path, LENGTHS)
    whole = KMeans(
        plan.n_clusters,
        init="k-means++" if plan.init == "two-level" else plan.init,
        algorithm="two-level" if plan.init == "two-level" else "lloyd",
        rows_per_cluster=plan.sample_rows and plan.sample_rows // plan.n_clusters,
        max_iter=plan.max_iter,
        metric=plan.metric,
        random_state=plan.seed,
        device="cpu",
    ).fit([rows for path in paths if len(rows := load_npy(path))])
    for group_rows, memory in ((1 << 18, 1 << 40), (1000, 0), (1000, 1 << 40), (1, 33_900_000)):
        monkeypatch.setattr(streamed, "_GROUP_ROWS", group_rows)
        labels, found = fit(paths, plan, tmp_path / "scratch", max_memory=memory)
        assert np.array_equal(labels, whole.labels_)
        assert np.array_equal(found.centers, whole.cluster_centers_)
        assert (found.inertia, found.n_iter) == (whole.inertia_, whole.n_iter_)


def test_little_memory_holds_some_rows(tmp_path, monkeypatch):
    """The first rows are held, the others are not: all three ways through `StreamedPass`."""
    monkeypatch.setattr(streamed, "_GROUP_ROWS", 1000)
    monkeypatch.setattr(streamed, "_THREAD_BYTES", 0)
    paths = make_shards(tmp_path, LENGTHS)
    vectors = ShardArrays(lambda i: load_npy(paths[i]), len(paths))
    extent = streamed.measure(np.concatenate(list(vectors)))
    fixed = 1000 * 60 + 2 * 50 * 12 * 6
    seen = []
    for memory in (0, fixed + 60 * 2000, fixed + 60 * 10_000):
        with LocalEngine() as engine:
            (tmp_path / "scratch").mkdir(exist_ok=True)
            work = streamed.StreamedPass(
                *(vectors, paths, LENGTHS, PLAN, extent),
                engine=engine,
                threads=1,
                scratch=tmp_path / "scratch",
                max_memory=memory,
            )
            centers = np.array(vectors[2][:12], np.float64)
            for _ in range(2):
                partial = work.assign(centers)
                centers, _ = streamed_update(partial, centers, extent)
            far = [row[:3] for row in work.farthest(5)]
            labels = np.concatenate(list(work.labels()))
            seen.append((work._n_held, labels.tobytes(), partial.sums.tobytes(), str(far)))
            assert work.inertia() > 0
    assert [held for held, *_ in seen] == [0, 5, 9]
    assert len({tuple(rest) for _, *rest in seen}) == 1


def streamed_update(partial, centers, extent):
    from pyids.clustering.lloyd import finish_update

    return finish_update(partial, centers, extent)


def test_workers_change_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(streamed, "_GROUP_ROWS", 1000)
    paths = make_shards(tmp_path, LENGTHS)
    one = fit(paths, PLAN, tmp_path / "one", max_memory=1 << 40)
    two = fit(paths, PLAN, tmp_path / "two", max_memory=1 << 40, workers=2, threads=None)
    assert np.array_equal(one[0], two[0])
    assert np.array_equal(one[1].centers, two[1].centers)
    assert one[1].inertia == two[1].inertia


def test_a_row_that_cannot_be_clustered_is_named(tmp_path):
    paths = make_shards(tmp_path, [50, 50])
    bad = np.array(load_npy(paths[1]))
    bad[7] = 0
    save_npy(paths[1], bad, {})
    with pytest.raises(DataError, match=r"001.npy: row 7 .*zero"):
        fit(paths, replace(PLAN, metric="cosine"), tmp_path / "scratch", max_memory=0)
    bad[7, 2] = np.nan
    save_npy(paths[1], bad, {})
    with pytest.raises(DataError, match=r"001.npy: .*row 7"):
        fit(paths, PLAN, tmp_path / "scratch", max_memory=0)


def config(**options):
    return make_config(data=["x.jsonl"], budget=10, rounds=1, **options)


def test_the_work_decides_how_and_a_line_says_it():
    small = kmeans_plan(config(), 1_000_000, 256, 700)
    assert (small.init, small.sample_rows) == ("k-means++", None)
    assert describe(small, 1_000_000) == (
        "clustering 1,000,000 rows into 700 clusters: begun by k-means++, fitted to all rows"
    )
    large = kmeans_plan(config(), 10_000_000, 256, 1024)
    assert (large.init, large.sample_rows) == ("two-level", 256 * 1024)
    said = describe(large, 10_000_000)
    assert "two levels of k-means, fitted to a sample of 262,144, then one exact pass" in said
    assert "3%" in said
    asked = config(kmeans_init="random", kmeans_sample="all")
    plan = kmeans_plan(asked, 10_000_000, 256, 1024)
    assert (plan.init, plan.sample_rows) == ("random", None)
    assert kmeans_plan(config(kmeans_sample="5000"), 10**6, 8, 12).sample_rows == 4992
    for bad in ("none", 0, "-3"):
        with pytest.raises(ConfigError, match="neither a positive number of rows nor all"):
            config(kmeans_sample=bad)


def test_sizes_as_they_are_written():
    for text, size in (("4GB", 4 * 10**9), ("512MiB", 512 << 20), ("1.5k", 1500), (7, 7)):
        assert config(max_memory=text).max_memory == size
    for bad in ("much", "0", -1, "4XB"):
        with pytest.raises(ConfigError, match="write it as 4GB"):
            config(max_memory=bad)
    assert 0 < default_max_memory() <= memory_left() // 4 + (1 << 30)


@pytest.mark.parametrize(
    ("workers", "rows", "groups"),
    [(1, 1 << 18, 1), (2, 1 << 18, 8), (2, 1 << 15, 2), (4, 1 << 24, 64)],
)
def test_workers_have_some_groups_each(workers, rows, groups):
    """None waits long for the last one; few rows are not worth the sums that a group sends back."""
    shards = [4096] * (rows >> 12)
    paths = [Path(f"{n}.npy") for n in range(len(shards))]
    found = list(streamed._groups(paths, shards, 0, LocalEngine(workers)))
    assert len(found) == groups
    assert sum(group.rows for group in found) == rows
    assert [path for group in found for path in group.paths] == list(map(str, paths))
    assert max(group.rows for group in found) <= 2 * min(group.rows for group in found)


def test_few_of_very_many_shards_are_mapped_at_once(tmp_path, monkeypatch):
    """Linux maps some 65,000 files a process: a pool may have more, of a row each."""
    paths = make_shards(tmp_path, [1] * 300)
    whole, _ = fit(paths, PLAN, tmp_path / "scratch", max_memory=1 << 40)
    for module in (streamed, arrays):
        monkeypatch.setattr(module, "MOST_MAPPED", 30)
    monkeypatch.setattr(streamed, "_GROUP_SHARDS", 20)
    mapped = []

    def shard_pass(shards, *args, **options):
        mapped.append(len(shards))
        return ShardPass(shards, *args, **options)

    monkeypatch.setattr(streamed, "ShardPass", shard_pass)
    labels, _ = fit(paths, PLAN, tmp_path / "scratch", max_memory=1 << 40)
    assert np.array_equal(labels, whole)
    assert mapped == [1]  # all of them, in one file
    fixed = streamed._CENTER_BYTES * 12 * 6 + streamed._THREAD_BYTES
    room = 100 * streamed._ROW_BYTES
    memory = 2 * fixed + streamed._GROUP_ROWS * streamed._ROW_BYTES + room
    mapped.clear()
    labels, _ = fit(paths, PLAN, tmp_path / "scratch", max_memory=memory)
    assert np.array_equal(labels, whole)
    assert max(mapped) == 30
    assert mapped.count(20) >= 13
