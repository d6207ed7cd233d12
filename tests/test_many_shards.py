"""Thousands of shards: few open files, no folder of too many, bounded maps, linear look-ups."""

import os
import resource
import subprocess
import sys

import numpy as np
import orjson
import pytest

import pyids
from pyids.neighbors import take_rows
from pyids.store.arrays import MAPPED_SHARDS, ShardArrays, map_npy
from pyids.store.manifest import verify

# A pool of so many files has as many shards.
N_FILES = 290

SELECT = """
import sys
from pyids.__main__ import main
sys.argv = ["pyids", *sys.argv[1:]]
main()
"""


def pool_of_files(folder, n_files=N_FILES):
    """Two rows a file, the vectors beside them."""
    folder.mkdir()
    for n in range(n_files):
        rows = [
            {"prompt": f"question {n} {i}", "completion": f"answer {n} {i}", "score": n + i}
            for i in range(2)
        ]
        (folder / f"{n:06d}.jsonl").write_bytes(b"\n".join(map(orjson.dumps, rows)))
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((2 * n_files, 8)).astype(np.float16)
    np.save(folder.parent / "vectors.npy", vectors)


def run(tmp_path, *arguments, files=256):
    """Run pyids with at most so many open files."""
    return subprocess.run(
        [sys.executable, "-P", "-c", SELECT, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (files, files)),
    )


def test_more_shards_than_open_files(tmp_path):
    pool_of_files(tmp_path / "pool")
    options = ["--data", "pool", "--embeddings-file", "vectors.npy", "--budget", "60"]
    asked = run(tmp_path, "ask", "run", *options, "--rounds", "2", "--clusters", "5")
    assert asked.returncode == 0, asked.stderr
    probes = (tmp_path / "run" / "probes.jsonl").read_bytes().splitlines()
    with (tmp_path / "scores.jsonl").open("wb") as file:
        for line in probes:
            row = orjson.loads(line)
            file.write(orjson.dumps({"_pyids_id": row["_pyids_id"], "score": 1.0}) + b"\n")
    for command in (["tell", "run", "scores.jsonl"], ["ask", "run"]):
        done = run(tmp_path, *command)
        assert done.returncode == 0, done.stderr
    for method in ("kmq", "k-center", "km-closest"):
        quality = ["--quality", "score"] if method == "kmq" else []
        done = run(tmp_path, "select", "run", "--method", method, "--budget", "20", *quality)
        assert done.returncode == 0, done.stderr
    folders = [os.listdir(folder) for folder, _, _ in os.walk(tmp_path / "run")]
    assert max(map(len, folders)) <= 200  # 64 splits of one shard, three files each at most
    few = run(tmp_path, "ask", "other", *options, files=40)
    assert few.returncode == 2
    assert "only 40 files may be open at a time: raise the limit" in few.stderr
    assert len(few.stderr.strip().splitlines()) == 1


def test_a_map_keeps_no_descriptor(tmp_path):
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.save(tmp_path / "c.npy", array)
    np.save(tmp_path / "f.npy", np.asfortranarray(array))
    np.save(tmp_path / "empty.npy", array[:0])
    before = len(os.listdir("/proc/self/fd"))
    maps = [map_npy(tmp_path / name) for name in ("c.npy", "f.npy", "empty.npy")]
    assert len(os.listdir("/proc/self/fd")) == before
    for mapped in maps[:2]:
        assert np.array_equal(mapped, array)
        assert not mapped.flags.writeable
    assert maps[2].shape == (0, 4)
    (tmp_path / "short.npy").write_bytes((tmp_path / "c.npy").read_bytes()[:-8])
    with pytest.raises(ValueError, match="buffer"):
        map_npy(tmp_path / "short.npy")


def test_few_shards_are_mapped_at_a_time():
    opened = []

    def open_shard(i):
        opened.append(i)
        return np.full((2, 3), i)

    shards = ShardArrays(open_shard, 1000)
    assert [int(shard[0, 0]) for shard in shards] == list(range(1000))
    assert len(shards._mapped) == MAPPED_SHARDS
    assert opened == list(range(1000))
    assert shards[-1][0, 0] == 999
    assert opened == list(range(1000))  # it was held
    with pytest.raises(IndexError):
        shards[1000]


def test_very_many_are_copied_to_one_file(tmp_path, monkeypatch):
    monkeypatch.setattr("pyids.store.arrays.MOST_MAPPED", 3)
    parts = [np.full((n, 2), n, np.float16) for n in (1, 0, 3, 2)]
    shards = ShardArrays(parts.__getitem__, len(parts))
    [whole] = shards.all(tmp_path / "scratch")
    assert np.array_equal(whole, np.concatenate(parts))


def test_rows_are_taken_in_any_order():
    rng = np.random.default_rng(0)
    shards = [rng.random((n, 3), np.float32) for n in (4, 0, 1, 5)]
    whole = np.concatenate(shards)
    for rows in ([9, 0, 4, 4, 3], [0, 1, 9], [], [5]):
        assert np.array_equal(take_rows(shards, np.array(rows, np.int64)), whole[rows])
    with pytest.raises(ValueError, match="row 10"):
        take_rows(shards, np.array([10]))


def test_a_run_over_many_small_files_is_that_of_one_file(tmp_path):
    pool_of_files(tmp_path / "pool", 130)
    one = b"\n".join(file.read_bytes() for file in sorted((tmp_path / "pool").iterdir()))
    (tmp_path / "one.jsonl").write_bytes(one)
    options = {
        "embeddings_file": str(tmp_path / "vectors.npy"),
        "budget": 20,
        "clusters": 4,
        "rounds": 1,
    }
    drawn = []
    for name, data in (("many", tmp_path / "pool"), ("one", tmp_path / "one.jsonl")):
        with pyids.Selection.open(tmp_path / name, data=str(data), **options) as selection:
            selection.draw()
            drawn.append(selection.rounds.selected())
            selection.finish()
    assert np.array_equal(*drawn)
    assert (tmp_path / "many" / "keep" / "00002" / "00129-0000.npy").exists()
    assert verify(tmp_path / "many") == []
