"""`pyids plan`: what it says is what then happens, within a factor of 1.5."""

import os

import numpy as np
import orjson
import pytest

from pyids.config import make_config
from pyids.pipeline import estimate as estimate_module
from pyids.pipeline.estimate import estimate
from pyids.pipeline.prepare import prepare
from pyids.selection import Selection

ROWS = 60_000


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """60,000 rows in three files, one of parquet, and their vectors."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path_factory.mktemp("plan")
    rng = np.random.default_rng(0)
    words = np.array([f"{a}{b}" for a in ("ka", "lo", "mi") for b in range(250)])
    texts = words[rng.integers(0, len(words), (ROWS, 30))].tolist()
    rows = [
        {"prompt": f"{' '.join(text[:10])} {n}", "completion": " ".join(text[10:])}
        for n, text in enumerate(texts)
    ]
    (folder / "data").mkdir()
    (folder / "data" / "a.jsonl").write_bytes(b"\n".join(map(orjson.dumps, rows[:30_000])))
    pq.write_table(pa.Table.from_pylist(rows[30_000:50_000]), folder / "data" / "b.parquet")
    (folder / "data" / "c.jsonl").write_bytes(b"\n".join(map(orjson.dumps, rows[50_000:])))
    np.save(folder / "vectors.npy", rng.standard_normal((ROWS, 48)).astype(np.float16))
    return folder


def options(pool, name, **more):
    return make_config(
        data=[str(pool / "data")],
        embeddings_file=str(pool / "vectors.npy"),
        budget="1%",
        rounds=1,
        clusters=200,
        kmeans_max_iter=10,
        output_dir=str(pool / name),
        **more,
    )


def within(found, happened, factor=1.5):
    assert happened / factor <= found <= happened * factor, (found, happened)


def test_what_it_says_is_what_happens(pool):
    config = options(pool, "run")
    said = estimate(config)
    assert not (pool / "run").exists()
    before = sum(os.times()[:4])
    prepare(config).close()
    with Selection.open(config.output_path, config) as selection:
        selection.draw()
        selection.export()
        selection.finish()
    seconds = sum(os.times()[:4]) - before
    files = [file for file in (pool / "run").rglob("*") if file.is_file()]
    within(said.rows, ROWS, 1.02)
    within(said.disk_bytes, sum(file.stat().st_size for file in files), 1.2)
    within(said.files, len(files), 2)
    assert said.n_clusters == 200
    # A second of work on a busy machine: the bench looks at a million rows.
    within(sum(stage.cpu_seconds for stage in said.stages), seconds, 3)
    assert [stage.name for stage in said.stages] == ["read", "vectors", "cluster", "draw, export"]
    assert not said.problems
    more = [stage.on(8) for stage in said.stages]
    for stage, seconds in zip(said.stages, more, strict=True):
        assert stage.serial_seconds <= seconds <= stage.seconds


def test_what_does_not_fit_is_said_with_what_mends_it(pool, monkeypatch):
    class Usage:
        free = 10_000

    monkeypatch.setattr(estimate_module.shutil, "disk_usage", lambda path: Usage)
    monkeypatch.setattr(estimate_module, "memory_left", lambda: 1 << 20)
    text = estimate(options(pool, "other", limit=20_000)).text((1, 4))
    assert "about 20,000;" in text
    assert "does not fit:" in text
    assert "on a disk with 10 kB free: choose another --output-dir" in text
    assert "of memory where 1.05 MB are left: give fewer --clusters" in text
    assert "4 workers" in text
