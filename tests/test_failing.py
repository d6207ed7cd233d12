"""Rows on which a task fails each time: named, and left out on request, alike on every engine."""

import os
import sys
from pathlib import Path

import numpy as np
import orjson
import pytest

from pyids.config import make_config
from pyids.engine.ray import RayEngine
from pyids.errors import DamagedError, PyidsError
from pyids.pipeline.identity import saved_config
from pyids.pipeline.prepare import prepare
from pyids.selection import Selection
from pyids.store.clean import clean
from pyids.store.folder import Store
from pyids.store.manifest import verify

# The workers import the encoder by name: the folder of the tests goes on their path and on ours.
sys.path.insert(0, str(Path(__file__).parent))
from engine_tasks import folder_bytes

FILES, ROWS = 6, 30


@pytest.fixture(scope="module", autouse=True)
def path_of_workers(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("here"))
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        yield


@pytest.fixture(scope="module")
def cluster():
    pytest.importorskip("ray", reason="the package ray is not installed")
    with RayEngine(workers=2):
        yield


def row(n, m):
    """A row of letters that no other row has in these numbers."""
    letters = np.random.default_rng([n, m]).choice(list("abcdefghijklmnopqrstuvwxyz"), 40)
    return {"prompt": "".join(letters), "completion": f"{n} {m} " * (m % 5 + 1)}


def write_pool(folder, marks=()):
    """Some files, a shard each; the row 5 of file 1 comes again in file 3, and some are marked."""
    folder.mkdir()
    for n in range(FILES):
        rows = [row(n, m) for m in range(ROWS)]
        if n == 3:
            rows[2] = row(1, 5)
        if n == 1:
            rows[9] = {"prompt": "", "completion": "nothing was asked"}
        for where, place, word in marks:
            if where == n:
                rows[place]["prompt"] += f" {word}"
        (folder / f"{n}.jsonl").write_bytes(b"".join(orjson.dumps(r) + b"\n" for r in rows))
    return folder


def options(pool, folder, **more):
    return make_config(
        **{
            "data": [str(pool / "*.jsonl")],
            "encoder": "engine_tasks:letters",
            "budget": 12,
            "rounds": 1,
            "clusters": 4,
            "quality": "engine_tasks:length",
            "semdedup_threshold": 0.9999,
            "output_dir": str(folder),
            **more,
        }
    )


def run(config):
    with Selection(prepare(config), config) as selection:
        selection.draw()
        selection.finish()
    return bytes_of(config.output_path)


def bytes_of(folder):
    assert verify(folder) == []
    found = folder_bytes(folder)  # but those that name the engine
    return {name: content for name, content in found.items() if Path(name).name != "manifest.json"}


def skipped(folder):
    return [orjson.loads(line) for line in (folder / "skipped.jsonl").read_bytes().splitlines()]


ENGINES = {
    "one process": {},
    "two processes": {"workers": 2},
    "ray": {"engine": "ray"},
}


@pytest.mark.parametrize("how", ["PICKY", "KILL"])
def test_a_shard_that_fails_is_left_out_alike_by_every_engine(cluster, tmp_path, caplog, how):
    marks = [(1, 20, how), (4, 3, how), (2, 0, "UNRATED")]
    pool = write_pool(tmp_path / "pool", marks)
    found = {}
    for number, (name, engine) in enumerate(ENGINES.items()):
        if (how, name) == ("KILL", "one process"):
            continue  # which nobody survives
        found[name] = run(options(pool, tmp_path / f"run{number}", skip_failing=True, **engine))
    folder = tmp_path / "run2"
    first = found["two processes"]
    for name, other in found.items():
        assert other == first, name
    reason = {"PICKY": "PickyError", "KILL": "its process dies"}[how]
    record = orjson.loads(first["left_out.json"])["shards"]
    assert [(one["first_row_id"], one["stage"], one["reason"]) for one in record] == [
        (ROWS, "embed", reason),
        (2 * ROWS, "quality", "ValueError"),
        (4 * ROWS, "embed", reason),
    ]
    listed = {line["row_id"]: line["reason"] for line in skipped(folder)}
    gone = [n for file in (1, 2, 4) for n in range(file * ROWS, (file + 1) * ROWS)]
    assert list(listed) == gone
    assert listed.pop(ROWS + 9).startswith("the prompt is empty"), "its own reason stays"
    assert all(text.startswith("left out with its shard") for text in listed.values())
    # What repeats a row that is left out stays dropped.
    [duplicate] = map(orjson.loads, first["duplicates.jsonl"].splitlines())
    assert (duplicate["row_id"], duplicate["duplicate_of"]) == (3 * ROWS + 2, ROWS + 5)
    store = Store(folder)
    assert (store.kept, store.skipped, store.duplicates) == (3 * ROWS - 1, 3 * ROWS, 1)
    assert f"shard {record[0]['shard']} (rows {ROWS} to {2 * ROWS - 1})" in caplog.text
    # The same command, with the option and without, has nothing to do.
    for again in (True, False):
        assert run(options(pool, folder, skip_failing=again)) == first


def test_without_the_option_the_line_names_shard_and_rows(cluster, tmp_path):
    pool = write_pool(tmp_path / "pool", [(4, 3, "KILL")])
    line = r"died .* at shard \d+-\d+ \(rows 120 to 149\): .*--skip-failing"
    for number, engine in enumerate(({"workers": 2}, {"engine": "ray"})):
        with pytest.raises(PyidsError, match=line) as raised:
            prepare(options(pool, tmp_path / f"run{number}", **engine))
        assert "\n" not in str(raised.value)
        assert not (tmp_path / f"run{number}" / "left_out.json").exists()
    pool = write_pool(tmp_path / "raising", [(4, 3, "RAISE")])
    for number, engine in enumerate(ENGINES.values(), 2):
        with pytest.raises(ValueError, match="nobody can embed") as raised:
            prepare(options(pool, tmp_path / f"run{number}", **engine))
        assert "(rows 120 to 149)" in "".join(raised.value.__notes__)


def test_a_task_that_never_ends_is_left_out(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr("pyids.engine.ray_actors.RETRIES", 1)
    pool = write_pool(tmp_path / "pool", [(4, 3, "SLEEP")])
    config = options(
        pool, tmp_path / "run", engine="ray", task_timeout=8, skip_failing=True, quality=None
    )
    run(config)
    [record] = orjson.loads((tmp_path / "run" / "left_out.json").read_bytes())["shards"]
    assert (record["first_row_id"], record["reason"]) == (120, "it does not end in time")


def test_what_is_recorded_decides_when_the_folder_is_made_again(tmp_path):
    pool = write_pool(tmp_path / "pool", [(1, 20, "RAISE")])
    folder = tmp_path / "run"
    config = options(pool, folder)
    whole = run(options(pool, folder, skip_failing=True))
    for stage in ("read", "embed", "cluster", "near-duplicates", "quality"):
        clean(folder, stage)
        assert run(config) == whole, stage
    # Damaged or lost, it is taken from the other place where it stands.
    for damage in (lambda path: path.write_text("{}"), Path.unlink):
        damage(folder / "left_out.json")
        assert run(config) == whole
    (folder / "left_out.json").write_text("{}")
    (folder / "keep" / "index.json").unlink()
    with pytest.raises(DamagedError, match=r"left_out.json.*clean .* --stage left-out"):
        prepare(config)
    # And somebody who has mended the encoder gets the rows back.
    clean(folder, "left-out")
    clean(folder, "rounds")
    with pytest.raises(ValueError, match="nobody can embed"):
        prepare(config)
    assert Store(folder).skipped == 1
    assert run(options(pool, folder, skip_failing=True)) == whole


def test_rows_that_rounds_have_drawn_from_are_not_left_out(tmp_path):
    pool = write_pool(tmp_path / "pool", [(1, 20, "RAISE")])
    folder = tmp_path / "run"
    whole = run(options(pool, folder, skip_failing=True))
    for name in ("left_out.json", "keep/index.json"):
        (folder / name).unlink()
    # Nothing tells any more that they are left out.
    with pytest.raises(PyidsError, match="cannot be left out any more, because rounds have drawn"):
        prepare(options(pool, folder, skip_failing=True))
    assert not (folder / "left_out.json").exists()
    assert whole


def test_where_most_fails_the_rows_are_not_the_reason(tmp_path):
    pool = write_pool(tmp_path / "pool", [(n, 3, "RAISE") for n in (0, 2, 3, 5)])
    folder = tmp_path / "run"
    with pytest.raises(PyidsError, match=r"embed fails on shards with more than half .*\(ValueErr"):
        prepare(options(pool, folder, skip_failing=True))
    assert not (folder / "left_out.json").exists()
    # What was left out before stays so.
    other = write_pool(
        tmp_path / "other", [(0, 3, "RAISE"), *((n, 3, "UNRATED") for n in (1, 2, 5))]
    )
    config = options(other, tmp_path / "run2", skip_failing=True, quality=None)
    prepare(config).close()
    before = (tmp_path / "run2" / "left_out.json").read_bytes()
    assert len(orjson.loads(before)["shards"]) == 1


def test_a_full_disk_is_no_fault_of_the_rows(tmp_path):
    pool = write_pool(tmp_path / "pool", [(4, 3, "FULL")])
    for workers in (1, 2):
        folder = tmp_path / f"run{workers}"
        with pytest.raises(OSError, match="No space left"):
            prepare(options(pool, folder, skip_failing=True, workers=workers))
        assert not (folder / "left_out.json").exists()


def test_a_folder_with_shards_left_out_grows(tmp_path):
    pool = write_pool(tmp_path / "pool", [(1, 20, "RAISE"), (5, 0, "RAISE")])
    late = [(pool / f"{n}.jsonl") for n in (4, 5)]
    contents = [path.read_bytes() for path in late]
    for path in late:
        path.unlink()
    folder = tmp_path / "run"
    run(options(pool, folder, skip_failing=True))
    for path, content in zip(late, contents, strict=True):
        path.write_bytes(content)
    found = run(options(pool, folder, skip_failing=True))
    record = orjson.loads(found["left_out.json"])["shards"]
    assert [one["first_row_id"] for one in record] == [ROWS, 5 * ROWS]
    assert run(options(pool, folder)) == found
    again = tmp_path / "again"
    run_in_steps = options(pool, again, skip_failing=True, workers=2)
    for path in late:
        path.unlink()
    run(run_in_steps)
    for path, content in zip(late, contents, strict=True):
        path.write_bytes(content)
    assert run(run_in_steps) == found


def test_zero_vectors_and_shards_left_out_go_together(tmp_path):
    """In whatever order they were found: a folder made again has the same lines."""
    pool = write_pool(tmp_path / "pool", [(1, 20, "UNRATED")])
    vectors = np.random.default_rng(0).normal(size=(FILES * ROWS, 5)).astype(np.float16)
    vectors[[3, ROWS + 4]] = 0
    np.save(tmp_path / "v.npy", vectors)
    more = {
        "embeddings_file": str(tmp_path / "v.npy"),
        "metric": "cosine",
        "zero_vectors": "drop",
        "skip_failing": True,
    }
    found = run(options(pool, tmp_path / "run", **more))
    reasons = {one["row_id"]: one["reason"] for one in skipped(tmp_path / "run")}
    assert reasons[3].startswith("its vector is zero")
    assert reasons[ROWS + 4].startswith("left out with its shard")
    assert Store(tmp_path / "run").skipped == len(reasons) == ROWS + 1
    clean(tmp_path / "run", "read")
    assert run(options(pool, tmp_path / "run", **more)) == found


def test_reading_that_fails_names_its_part_of_the_file(tmp_path, monkeypatch):
    pool = write_pool(tmp_path / "pool")

    def fail(task):
        raise RuntimeError("a fault of the reader")

    monkeypatch.setattr("pyids.data.ingest.read_split", fail)
    with pytest.raises(RuntimeError, match="a fault of the reader") as raised:
        prepare(options(pool, tmp_path / "run", skip_failing=True))
    note = "".join(raised.value.__notes__)
    assert f"{pool}{os.sep}0.jsonl" in note
    assert "have no numbers yet" in note


def test_the_option_is_saved_and_decides_nothing(tmp_path):
    pool = write_pool(tmp_path / "pool")
    whole = run(options(pool, tmp_path / "run"))
    assert run(options(pool, tmp_path / "run", skip_failing=True)) == whole
    assert saved_config(tmp_path / "run").skip_failing
