"""Near-duplicates as an option of a run: what goes, and that nothing later sees it."""

import shutil

import numpy as np
import orjson
import pytest
from click.testing import CliRunner

import pyids
from pyids import reference
from pyids.cli import cli
from pyids.data import ingest
from pyids.errors import ConfigError, DataError
from pyids.methods import pool_from_store
from pyids.methods.select import select, select_from_folder
from pyids.store.folder import Store
from pyids.store.manifest import verify


@pytest.fixture
def doubled(pool):
    """The pool with the vectors of rows 300 to 399 those of rows 0 to 99, hardly moved."""
    vectors = np.load(pool.vectors)
    vectors[300:] = vectors[:100] * np.linspace(0.5, 2, 100)[:, None] + 1e-3
    np.save(pool.vectors, vectors)
    return pool


def listed(folder):
    return [
        orjson.loads(line) for line in (folder / "near_duplicates.jsonl").read_text().splitlines()
    ]


def run(pool, path, **options):
    with pyids.Selection.open(
        path, **pool.options(semdedup_threshold=0.99, **options)
    ) as selection:
        seen = []
        while selection.draw():
            seen += [selection.rounds.selected(), selection.probes()]
            selection.tell({int(row): 1.0 for row in selection.probes()})
        return selection.finish().read_bytes(), np.concatenate([np.empty(0, np.int64), *seen])


def test_what_goes_is_the_definition_cluster_by_cluster(doubled, tmp_path):
    folder = tmp_path / "run"
    _, seen = run(doubled, folder)
    vectors = np.load(doubled.vectors).astype(float)
    labels = np.concatenate(Store(folder).labels())  # not deduplicated: all 400 rows
    expected = {}
    for cluster in range(4):
        members = np.flatnonzero(labels == cluster)
        repeats = members[reference.near_duplicates(vectors[members], 0.99)]
        expected |= {int(r): int(o) for r, o in zip(members, repeats, strict=True) if r != o}
    assert len(expected) >= 95
    found = listed(folder)
    assert {place["row_id"]: place["duplicate_of"] for place in found} == expected
    assert [place["row_id"] for place in found] == sorted(expected)
    assert found[0]["line"] == found[0]["row_id"] + 1
    assert not set(seen.tolist()) & expected.keys()
    manifest = orjson.loads((folder / "manifest.json").read_bytes())
    assert manifest["rows"]["near_duplicates"] == len(expected)
    assert manifest["rows"]["kept"] == 400 - len(expected)
    assert verify(folder) == []


def test_shards_and_a_second_start_change_nothing(doubled, tmp_path, monkeypatch):
    whole, _ = run(doubled, tmp_path / "whole")
    monkeypatch.setattr("pyids.data.shard_writer.ROWS_PER_GROUP", 16)
    monkeypatch.setattr(ingest, "GROUPS_PER_SHARD", 2)
    folder = tmp_path / "cut"
    assert run(doubled, folder)[0] == whole
    assert len(Store(folder).shards) == 13
    assert listed(folder) == listed(tmp_path / "whole")
    # A shard of the second half may have lost all its rows; a killed process starts again.
    (folder / "distinct" / "index.json").unlink()
    shutil.rmtree(folder / "rounds")
    assert run(doubled, folder)[0] == whole
    assert run(doubled, folder)[0] == whole


def test_every_later_stage_sees_the_rows_that_stay(doubled, tmp_path, monkeypatch):
    monkeypatch.setattr("pyids.data.shard_writer.ROWS_PER_GROUP", 16)
    monkeypatch.setattr(ingest, "GROUPS_PER_SHARD", 2)
    options = doubled.options(semdedup_threshold=0.99, quality="length")
    with pyids.Selection.open(tmp_path / "run", **options) as selection:
        store = selection.store
        gone = {place["row_id"] for place in listed(tmp_path / "run")}
        stay = sorted(set(range(400)) - gone)
        assert selection.store.kept == selection.rounds.sizes.sum() == len(stay)
        pool = pool_from_store(store)
        assert pool.row_ids.tolist() == stay
        np.testing.assert_array_equal(np.bincount(pool.labels, minlength=4), store.cluster_sizes)
        vectors = np.load(doubled.vectors)
        np.testing.assert_array_equal(np.concatenate(list(pool.embeddings)), vectors[stay])
        np.testing.assert_array_equal(store.embedding(stay[-1]), vectors[stay[-1]])
        assert len(pool.lengths) == len(stay)
        selection.draw()
        with pytest.raises(DataError, match=f"row {min(gone)} is not in the pool"):
            selection.tell({min(gone): 1.0})
    for method in ("random", "k-center"):
        path = select_from_folder(tmp_path / "run", method, budget=50)
        rows = [orjson.loads(line) for line in path.read_text().splitlines()]
        assert len(rows) == 50
        assert not {row["_pyids_id"] for row in rows} & gone


def test_a_static_method_without_vectors_waits_for_them(doubled, tmp_path):
    config = pyids.RunConfig(
        **doubled.options(
            semdedup_threshold=0.99, output_dir=str(tmp_path / "run"), rounds=1, budget="100%"
        )
    )
    rows = select(config, "random").read_text().splitlines()
    assert len(rows) == 400 - len(listed(tmp_path / "run"))


def test_a_budget_above_what_stays_is_answered(doubled, tmp_path):
    with pytest.raises(ConfigError, match=r"budget 390 is above the \d+ usable rows"):
        run(doubled, tmp_path / "run", budget=390)


def test_the_option_and_what_it_would_do(doubled, tmp_path):
    arguments = [
        "run",
        str(doubled.path),
        "--embeddings-file",
        str(doubled.vectors),
        "--budget",
        "30",
    ]
    arguments += ["--output-dir", str(tmp_path / "run"), "--dry-run", "--semdedup-threshold"]
    result = CliRunner().invoke(cli, [*arguments, "0.95"])
    assert result.exit_code == 0, result.output
    assert "rows of cosine 0.95" in result.output
    bad = CliRunner().invoke(cli, [*arguments, "1.0"])
    assert bad.exit_code == 2
    assert "semdedup_threshold" in bad.output
