"""The run folder: whole files or none, entries that hold, one process at a time, proof."""

import os
import subprocess
import sys

import numpy as np
import orjson
import pytest

from pyids.data.ingest import ingest
from pyids.data.sources import open_sources
from pyids.errors import ConfigError, DataError
from pyids.store import ledger as ledger_module
from pyids.store.arrays import map_npy
from pyids.store.files import atomic_write
from pyids.store.folder import Path, Store
from pyids.store.ledger import begin, load_npy, read_entry, save_npy, write_entry
from pyids.store.manifest import verify


@pytest.fixture
def run(tmp_path):
    """A run folder of 5,000 rows in three files and several row groups."""
    for name, start in (("a", 0), ("b", 2000), ("c", 4500)):
        stop = {"a": 2000, "b": 4500, "c": 5000}[name]
        (tmp_path / f"{name}.jsonl").write_bytes(
            b"\n".join(
                orjson.dumps({"prompt": f"q{i}", "completion": f"a{i}" * (i % 40), "i": i})
                for i in range(start, stop)
            )
        )
    with Store.open(tmp_path / "run") as store:
        ingest(store, open_sources([str(tmp_path / "*.jsonl")]))
        yield store


# ---- atomic writes -------------------------------------------------------------------------------


def test_a_block_that_raises_leaves_the_old_file(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")

    def fail():
        with atomic_write(path) as temporary:
            temporary.write_text("half")
            assert path.read_text() == "old"
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [file.name for file in tmp_path.iterdir()] == ["x"]
    assert path.read_text() == "old"


def test_the_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, Path.replace

    def spy_fsync(descriptor):
        calls.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def spy_replace(self, target):
        calls.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(Path, "replace", spy_replace)
    with atomic_write(tmp_path / "x") as temporary:
        temporary.write_text("new")
    assert calls == [str(temporary), "rename", str(tmp_path)]


def test_opening_removes_what_a_killed_process_left(tmp_path):
    Store.open(tmp_path / "run").close()
    (tmp_path / "run" / "rows").mkdir()
    left = [
        tmp_path / "run" / "rows" / ".00000-0000.parquet.abcd.tmp",
        tmp_path / "run" / ".scratch" / "spill",
    ]
    left[1].parent.mkdir()
    for file in left:
        file.write_text("half")
    with Store.open(tmp_path / "run"):
        assert not any(file.exists() for file in left)


def test_a_folder_of_other_files_is_refused_and_left_alone(tmp_path):
    mine = [tmp_path / "project" / name for name in ("rows/notes.txt", ".scratch/a", ".x.tmp")]
    for file in mine:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("mine")
    with pytest.raises(ConfigError, match="which no run has made: name a new or an empty folder"):
        Store.open(tmp_path / "project")
    assert all(file.read_text() == "mine" for file in mine)
    assert sorted(file for file in (tmp_path / "project").rglob("*") if file.is_file()) == sorted(
        mine
    )
    # A run that was killed at once goes on.
    (tmp_path / "empty").mkdir()
    Store.open(tmp_path / "empty").close()
    (tmp_path / "empty" / "rows").mkdir()
    Store.open(tmp_path / "empty").close()


# ---- the ledger ----------------------------------------------------------------------------------


def test_an_entry_holds_until_anything_changes(tmp_path):
    path = tmp_path / "00000.npy"
    inputs = {"encoder": "x", "rows": "abc", "tokens": 128}
    save_npy(path, np.arange(10), inputs)
    entry = path.with_suffix(".json")
    assert read_entry(entry, inputs)["rows"] == 10
    assert read_entry(entry, dict(reversed(inputs.items()))) is not None
    assert read_entry(entry, {**inputs, "tokens": 64}) is None
    path.write_bytes(path.read_bytes()[:-1])
    assert read_entry(entry, inputs) is None
    path.unlink()
    assert read_entry(entry, inputs) is None
    begin(entry)
    assert read_entry(entry, inputs) is None


def test_killed_between_file_and_entry_the_old_entry_is_gone(tmp_path, monkeypatch):
    path = tmp_path / "00000.npy"
    save_npy(path, np.zeros(4), {"seed": 0})

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ledger_module, "write_entry", killed)
        with pytest.raises(KeyboardInterrupt):
            save_npy(path, np.ones(4), {"seed": 1})
    # The file is that of seed 1, of the same size: the entry of seed 0 must not vouch for it.
    assert map_npy(path)[0] == 1
    assert read_entry(path.with_suffix(".json"), {"seed": 0}) is None


def test_arrays_are_never_pickled(tmp_path):
    with pytest.raises(ValueError, match="allow_pickle"):
        save_npy(tmp_path / "x.npy", np.array([{}], dtype=object), {})
    np.save(tmp_path / "y.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="holds objects"):
        map_npy(tmp_path / "y.npy")
    save_npy(tmp_path / "empty.npy", np.empty((0, 3), np.float32), {})
    assert load_npy(tmp_path / "empty.npy").shape == (0, 3)


# ---- lock and identity ---------------------------------------------------------------------------

HOLD = """
import sys
from pyids.store.folder import Store
with Store.open(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_refused_and_a_killed_one_is_no_obstacle(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-P", "-c", HOLD, str(tmp_path / "run")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(ConfigError, match="another process works in this run folder"):
        Store.open(tmp_path / "run")
    holder.kill()
    holder.communicate()
    Store.open(tmp_path / "run").close()


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="cannot write there"):
        Store.open(tmp_path / "file" / "run")
    with pytest.raises(ConfigError, match="cannot write there"):
        Store.open(tmp_path / "file")


def test_the_folder_of_another_run_is_refused_naming_what_differs(tmp_path):
    with Store.open(tmp_path) as store:
        store.claim({"seed": 0, "data": [{"name": "a.jsonl", "xxh3": "1"}], "budget": 5})
        store.claim({"budget": 5, "data": [{"name": "a.jsonl", "xxh3": "1"}], "seed": 0})
        with pytest.raises(ConfigError, match="seed was 0, now 1: choose another --output-dir"):
            store.claim({"seed": 1, "data": [{"name": "a.jsonl", "xxh3": "1"}], "budget": 5})
        with pytest.raises(ConfigError, match=r'budget was 5, now null; data was .*"1"'):
            store.claim({"seed": 0, "data": [{"name": "a.jsonl", "xxh3": "2"}]})


# ---- rows ----------------------------------------------------------------------------------------


def test_scattered_rows_come_back_in_order_from_few_row_groups(run, monkeypatch):
    assert run.rows_read == 5000
    assert len(run.shards) == 3
    wanted = [4999, 0, 2048, 2000, 17, 4500, 2047, 17]
    wanted = [i for i in wanted if i % 40]  # every fortieth row has an empty response
    import pyarrow.parquet as pq

    decoded = []
    original = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile,
        "read_row_group",
        lambda self, group, **kwargs: decoded.append(group) or original(self, group, **kwargs),
    )
    rows = list(run.read_rows(np.array(wanted)))
    assert [row.row_id for row in rows] == sorted(set(wanted))
    assert [row.record["i"] for row in rows] == sorted(set(wanted))
    assert decoded == [0, 0, 0] or len(decoded) <= 4
    by_file = {"a": 0, "b": 2000, "c": 4500}
    for row in rows:
        assert row.line == row.row_id - by_file[row.path[-7]] + 1
    with pytest.raises(ValueError, match="row id 5000 was never read"):
        list(run.read_rows([5000]))
    with pytest.raises(ValueError, match="row id -1 was never read"):
        list(run.read_rows([3, -1]))
    assert list(run.read_rows([])) == []


def test_kept_rows_line_up_with_their_ids(run):
    ids = np.concatenate([run.row_ids(shard) for shard in run.shards])
    assert ids.dtype == np.int64
    assert len(ids) == run.kept == 5000 - run.skipped
    assert np.all(np.diff(ids) > 0)
    messages = [turns for shard in run.shards for turns in run.iter_messages(shard)]
    assert [turns[0]["content"] for turns in messages] == [f"q{i}" for i in ids]


def test_a_folder_whose_rows_were_not_read_says_so(tmp_path):
    with Store.open(tmp_path) as store, pytest.raises(DataError, match="run `pyids run`"):
        _ = store.shards


# ---- proof ---------------------------------------------------------------------------------------


def test_verify_notices_every_kind_of_change(run):
    folder = run.path
    with pytest.raises(DataError, match=r"no manifest\.json"):
        verify(folder)
    run.write_manifest({"config": {"seed": 3}})
    manifest = orjson.loads((folder / "manifest.json").read_bytes())
    assert manifest["config"] == {"seed": 3}
    assert manifest["environment"]["packages"]["numpy"] == np.__version__
    assert "keep/index.json" in manifest["files"]
    assert verify(folder) == []
    with pytest.raises(DataError, match="not a run folder"):
        verify(folder / "duplicates.jsonl")

    (folder / "keep" / "new.npy").write_text("x")
    flipped = next((folder / "rows").glob("*.parquet"))
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)
    (folder / "duplicates.jsonl").unlink()
    (folder / "skipped.jsonl").write_text("x")
    again = f": `pyids clean {folder} --stage read`, then the command that began the run, with "
    again += "all its options"
    assert sorted(verify(folder)) == sorted(
        [
            "keep/new.npy: not in the manifest: remove it",
            f"duplicates.jsonl: missing{again}",
            f"rows/{flipped.name}: the content has changed{again}",
            f"skipped.jsonl: 1 bytes, was {manifest['files']['skipped.jsonl']['bytes']}{again}",
        ]
    )


def test_entries_name_their_files_with_size_and_hash(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"abc")
    entry = write_entry(tmp_path / "a.json", [tmp_path / "a.bin"], {"x": 1}, rows=3)
    assert entry["files"]["a.bin"]["bytes"] == 3
    assert len(entry["files"]["a.bin"]["xxh3"]) == 32
    assert read_entry(tmp_path / "a.json", {"x": 1}) == entry
