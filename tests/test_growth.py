"""A run folder that is extended by more files: what stays, what is worked on, what follows."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import orjson
import pytest
from click.testing import CliRunner

import pyids
from pyids.cli import cli
from pyids.errors import ConfigError
from pyids.store.manifest import verify

PARTS = ((0, 200), (200, 320), (320, 400))


class Weekly:
    """The rows of a pool in three files, with their vectors in three more."""

    def __init__(self, pool, folder):
        self.pool, self.folder = pool, folder
        self.vectors = np.load(pool.vectors)
        (folder / "vectors").mkdir()
        for n, (start, stop) in enumerate(PARTS):
            rows = pool.rows[start:stop]
            self.path(n).write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))

    def path(self, n):
        return self.folder / f"week-{n}.jsonl"

    def options(self, *weeks, **options):
        parts = [self.vectors[slice(*PARTS[n])] for n in weeks]
        path = self.folder / "vectors" / f"{'-'.join(map(str, weeks))}.npy"
        np.save(path, np.concatenate(parts))
        return {
            "data": [str(self.path(n)) for n in weeks],
            "embeddings_file": str(path),
            "budget": 60,
            "clusters": 6,
            **options,
        }


@pytest.fixture
def weekly(pool, tmp_path):
    return Weekly(pool, tmp_path)


def drive(folder, **options):
    with pyids.Selection.open(folder, **options) as selection:
        drawn = []
        while selection.draw():
            drawn.append(selection.rounds.selected(selection.round).tolist())
            selection.tell({int(row): float(row % 7) for row in selection.probes()})
        selection.finish()
    return drawn


def contents(folder, *kinds):
    kinds = kinds or ("rows", "keep", "embeddings", "labels", "rounds")
    files = [path for kind in kinds for path in (folder / kind).rglob("*") if path.is_file()]
    files += [folder / "centroids.safetensors", folder / "selected.jsonl"]
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in files
        # Entries of embeddings name the file of vectors that they were copied from.
        if not (path.parent.name == "embeddings" and path.suffix == ".json")
    }


def test_a_folder_grown_in_three_steps_is_one_made_at_once(weekly, tmp_path):
    """From the same start: the centers of the first week."""
    for weeks in ((0,), (0, 1), (0, 1, 2)):
        drive(tmp_path / "steps", **weekly.options(*weeks))
    drive(tmp_path / "once", **weekly.options(0))
    drive(tmp_path / "once", **weekly.options(0, 1, 2))
    steps, once = contents(tmp_path / "steps"), contents(tmp_path / "once")
    assert steps.keys() == once.keys()
    assert [name for name in steps if steps[name] != once[name]] == []
    ids = [orjson.loads(line)["_pyids_id"] for line in steps["selected.jsonl"].splitlines()]
    assert len(set(ids)) == 60
    assert max(ids) >= 320
    assert verify(tmp_path / "steps") == []
    manifest = orjson.loads((tmp_path / "steps" / "manifest.json").read_bytes())
    assert manifest["grown"]["rows"] == 200
    assert manifest["grown"]["selected before"] == [
        "grown/1/selected.jsonl", "grown/2/selected.jsonl"
    ]  # fmt: skip
    assert CliRunner().invoke(cli, ["verify", str(tmp_path / "steps"), "--replay"]).exit_code == 0


def test_what_is_there_stays(weekly, tmp_path):
    run = tmp_path / "run"
    drive(run, **weekly.options(0))
    before = contents(run)
    stamps = {path: path.stat().st_mtime_ns for path in (run / "labels").glob("*.npy")}
    stamps |= {path: path.stat().st_mtime_ns for path in (run / "rows").glob("*.parquet")}
    drive(run, **weekly.options(0, 1))
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    after = contents(run)
    for name, content in before.items():
        if name.split("/")[0] in ("labels", "embeddings", "rows", "keep") and "index" not in name:
            assert after[name] == content, name
    for name in ("rounds/1/selected.npy", "rounds/3/selected.npy", "selected.jsonl"):
        assert (run / "grown" / "1" / name).read_bytes() == before[name]


def test_new_files_stand_behind_those_that_are_known_whatever_their_names(weekly, tmp_path):
    drive(tmp_path / "run", **weekly.options(1))
    options = weekly.options(1, 0)
    drive(tmp_path / "run", **options | {"data": sorted(options["data"])})
    index = orjson.loads((tmp_path / "run" / "rows" / "index.json").read_bytes())
    names = [source["path"].rsplit("/")[-1] for source in index["sources"]]
    assert names == ["week-1.jsonl", "week-0.jsonl"]
    # The files in any order are the same folder; also where it has lost its identity.
    before = contents(tmp_path / "run")
    (tmp_path / "run" / "identity.json").unlink()
    for data in (sorted(options["data"]), options["data"]):
        pyids.Selection.open(tmp_path / "run", **options | {"data": data}).close()
        assert contents(tmp_path / "run") == before


def test_added_rows_have_the_nearest_center(weekly, tmp_path):
    from safetensors.numpy import load_file

    drive(tmp_path / "run", **weekly.options(0))
    drive(tmp_path / "run", **weekly.options(0, 2))
    centers = load_file(tmp_path / "run" / "centroids.safetensors")["centroids"].astype(float)
    added = weekly.vectors[320:400].astype(float)
    squares = np.square(added[:, None] - centers).sum(axis=2)
    found = np.concatenate(
        [np.load(path) for path in sorted((tmp_path / "run" / "labels").glob("*.npy"))]
    )
    np.testing.assert_array_equal(found[200:], squares.argmin(axis=1))
    entry = orjson.loads((tmp_path / "run" / "centroids.json").read_bytes())
    assert entry["sizes"] == np.bincount(found, minlength=6).tolist()
    assert entry["grown"]["inertia"] == pytest.approx(squares.min(axis=1).sum())
    assert entry["grown"]["drift"] == pytest.approx(
        squares.min(axis=1).mean() / (entry["inertia"] / 200)
    )


def test_centers_are_made_of_all_rows_on_request(weekly, tmp_path):
    drive(tmp_path / "run", **weekly.options(0))
    drive(tmp_path / "run", **weekly.options(0, 1))
    for stage in ("cluster", "rounds"):
        result = CliRunner().invoke(cli, ["clean", str(tmp_path / "run"), "--stage", stage])
        assert result.exit_code == 0
    drive(tmp_path / "run", **weekly.options(0, 1))
    drive(tmp_path / "new", **weekly.options(0, 1))
    assert contents(tmp_path / "run", "labels") == contents(tmp_path / "new", "labels")


# Python runs it when it starts: the process is killed (SIGKILL) at the n-th file that it puts into
# its place, before it stands there or, where n is even, after.
KILLING = """
import os, signal
left = int(os.environ["KILL_AT"])
even = left % 2 == 0
def counting(move):
    def moved(source, target, **options):
        global left
        left -= 1
        if left == 0 and even:
            move(source, target, **options)
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return move(source, target, **options)
    return moved
os.rename, os.replace = counting(os.rename), counting(os.replace)
"""


def ask_killed(folder, killing, options):
    """Ask by `pyids`, killed at the first file, later and later, until it comes to its end.

    Each time it goes on where it was stopped. Returns how often it was killed.
    """
    command = [Path(sys.executable).with_name("pyids"), "-q", "ask", folder]
    for name, value in options.items():
        for one in value if isinstance(value, list) else [value]:
            command += [f"--{name.replace('_', '-')}", one]
    path = os.pathsep.join(filter(None, [str(killing), os.environ.get("PYTHONPATH", "")]))
    number = kills = 0
    while kills < 50:
        number += 1 + number // 3
        environment = {**os.environ, "PYTHONPATH": path, "KILL_AT": str(number)}
        done = subprocess.run(
            [str(part) for part in command], env=environment, capture_output=True, text=True
        )
        if done.returncode == 0:
            return kills
        assert done.returncode == -signal.SIGKILL, done.stderr
        kills += 1
    raise AssertionError("it never came to its end")


@pytest.mark.timeout(1200)
def test_a_folder_grown_in_three_steps_killed_all_along_is_one_made_at_once(weekly, tmp_path):
    """By SIGKILL, of real processes, at many of the files that a growth writes."""
    killing = tmp_path / "killing"
    killing.mkdir()
    (killing / "sitecustomize.py").write_text(KILLING)
    drive(tmp_path / "steps", **weekly.options(0))
    kills = []
    for weeks in ((0, 1), (0, 1, 2)):
        options = weekly.options(*weeks)
        kills.append(ask_killed(tmp_path / "steps", killing, options))
        drive(tmp_path / "steps", **options)
    print(f"killed {kills} times")
    assert min(kills) >= 5
    drive(tmp_path / "once", **weekly.options(0))
    drive(tmp_path / "once", **weekly.options(0, 1, 2))
    steps, once = contents(tmp_path / "steps"), contents(tmp_path / "once")
    assert steps.keys() == once.keys()
    assert [name for name in steps if steps[name] != once[name]] == []
    for number in ("1", "2"):
        assert (tmp_path / "steps" / "grown" / number / "selected.jsonl").exists()
    assert verify(tmp_path / "steps") == []


def stamps(folder, pattern):
    return {path: path.stat().st_mtime_ns for path in folder.glob(pattern)}


@pytest.mark.parametrize("files", ["one", "several"])
def test_vectors_that_are_there_are_not_copied_again(weekly, tmp_path, files):
    """Of one file that has grown the entries name the new one; of several nothing changes."""
    run = tmp_path / "run"

    def options(*weeks):
        given = weekly.options(*weeks)
        if files == "several":
            folder = tmp_path / "parts"
            folder.mkdir(exist_ok=True)
            for n in weeks:
                path = folder / f"{n}.npy"
                if not path.exists():
                    np.save(path, weekly.vectors[slice(*PARTS[n])])
            given["embeddings_file"] = str(folder)
        return given

    drive(run, **options(0))
    before, entries = stamps(run, "embeddings/*.npy"), stamps(run, "embeddings/*.json")
    drive(run, **options(0, 1))
    assert before.items() <= stamps(run, "embeddings/*.npy").items()
    assert len(stamps(run, "embeddings/*.npy")) == len(before) + 1
    assert (entries.items() <= stamps(run, "embeddings/*.json").items()) == (files == "several")
    drive(tmp_path / "whole", **weekly.options(0))
    drive(tmp_path / "whole", **weekly.options(0, 1))
    assert contents(run) == contents(tmp_path / "whole")
    # And none is read again when the same command is given.
    now = stamps(run, "embeddings/*")
    pyids.Selection.open(run, **options(0, 1)).close()
    assert stamps(run, "embeddings/*") == now


def test_vectors_that_are_damaged_are_copied_again(weekly, tmp_path):
    drive(tmp_path / "run", **weekly.options(0))
    [path] = (tmp_path / "run" / "embeddings").glob("*.npy")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"x")
    drive(tmp_path / "run", **weekly.options(0, 1))
    assert path.read_bytes() == whole


def test_only_new_shards_are_worked_on(weekly, tmp_path, monkeypatch):
    """Of the work over shards: reading and the nearest centers."""
    from pyids.clustering import nearest
    from pyids.data import ingest

    drive(tmp_path / "run", **weekly.options(0))
    drive(tmp_path / "run", **weekly.options(0, 1))
    read, placed = [], []
    reader, centers = ingest.Reader, nearest.nearest_centers
    monkeypatch.setattr(ingest, "Reader", lambda path, *a, **k: read.append(path) or reader(
        path, *a, **k))  # fmt: skip
    monkeypatch.setattr(nearest, "nearest_centers", lambda x, *a, **k: placed.append(
        len(x[0])) or centers(x, *a, **k))  # fmt: skip
    drive(tmp_path / "run", **weekly.options(0, 1, 2))
    assert read == [str(weekly.path(2))]
    assert placed == [80]


def test_what_is_trained_on_by_now_may_be_named_when_data_is_added(weekly, tmp_path):
    first = drive(tmp_path / "run", **weekly.options(0))
    chosen = {row for rows in first for row in rows}
    before = tmp_path / "before.jsonl"
    before.write_bytes((tmp_path / "run" / "selected.jsonl").read_bytes())
    second = drive(tmp_path / "run", **weekly.options(0, 1), already=str(before))
    assert not chosen & {row for rows in second for row in rows}
    assert sum(map(len, second)) == 60


def test_a_dry_run_says_by_what_a_folder_grows(weekly, tiny, tmp_path):
    from pyids.pipeline.preflight import plan

    run = {"output_dir": str(tmp_path / "run"), "model": tiny}
    drive(tmp_path / "run", **weekly.options(0, model=tiny))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    assert "grows" not in plan(pyids.RunConfig(**weekly.options(0, **run)))
    shown = plan(pyids.RunConfig(**weekly.options(0, 2, **run)))
    assert "grows     by week-2.jsonl; the rounds begin anew on all rows" in shown
    assert "of messages (280): 280 stay" in shown
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


@pytest.mark.parametrize("change", ["content", "missing", "seed", "vectors"])
def test_another_run_is_none_that_grows(weekly, tmp_path, change):
    drive(tmp_path / "run", **weekly.options(0, 1))
    options = weekly.options(0, 1, 2)
    if change == "content":
        path = weekly.path(0)
        path.write_bytes(path.read_bytes().replace(b"question", b"Question", 1))
    elif change == "missing":
        options = weekly.options(0, 2)
    elif change == "seed":
        options["seed"] = 1
    else:
        vectors = np.load(options["embeddings_file"])
        vectors[3] += 1
        np.save(options["embeddings_file"], vectors)
    words = (
        "row id 3 .* another vector than then"
        if change == "vectors"
        else "is the folder of another"
    )
    with pytest.raises(ConfigError, match=words):
        pyids.Selection.open(tmp_path / "run", **options)
    assert (tmp_path / "run" / "rounds" / "1" / "selected.npy").exists()
    if change == "vectors":  # which can be mended
        drive(tmp_path / "run", **weekly.options(0, 1, 2))


@pytest.mark.parametrize("method", ["k-center", "km-random"])
def test_vectors_follow_the_order_in_which_files_were_read(weekly, tmp_path, method):
    """A new file whose name sorts first: its vectors come last all the same."""
    folder, more = weekly.folder / "data", {"clusters": 4} if method == "km-random" else {}
    folder.mkdir()
    weekly.path(1).rename(folder / "b.jsonl")
    first, second = (weekly.vectors[slice(*PARTS[n])] for n in (1, 2))
    file = tmp_path / "v.npy"
    np.save(file, first)
    options = {"data": str(folder), "embeddings_file": str(file), "budget": 20, **more}
    options["output_dir"] = str(tmp_path / "run")
    pyids.select(method, **options)
    shard = tmp_path / "run" / "embeddings" / "00000-0000.npy"
    before = shard.read_bytes()
    weekly.path(2).rename(folder / "a.jsonl")
    np.save(file, np.concatenate([second, first]))
    with pytest.raises(ConfigError, match="row id 0 of the files that were read before"):
        pyids.select(method, **options)
    assert shard.read_bytes() == before
    np.save(file, np.concatenate([first, second]))
    pyids.select(method, **options)
    assert shard.read_bytes() == before
    assert len(np.load(tmp_path / "run" / "embeddings" / "00001-0000.npy")) == len(second)
