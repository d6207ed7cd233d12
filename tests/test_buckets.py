"""Buckets as outputs: a run folder in a real object store on this machine; others are refused."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

import pyids
from pyids.cli import cli
from pyids.data.destination import check_export_in_bucket
from pyids.errors import ConfigError
from pyids.store import bucket as bucket_module
from pyids.store.bucket import Bucket, Lease, Mirror, work_folder, working_in

PYIDS = str(Path(sys.executable).with_name("pyids"))
URLS = ["gs://bucket/run", "hf://datasets/a/b", "abfss://c@x/run", "s3:/b/run"]


def invoke(*arguments, code=0):
    out = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert out.exit_code == code, out.output
    return (out.stdout.strip().splitlines() or [""])[-1] if code == 0 else out.output.strip()


def refused(*arguments, words="yet: name a folder or file of this machine"):
    [line] = invoke(*arguments, code=2).splitlines()
    assert words in line
    return line


# ---- what does not work --------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to work in, which must stay empty."""
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.setenv("PYIDS_WORK_DIR", str(place))
    yield place
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("url", URLS)
def test_a_run_folder_that_cannot_be_is_refused_before_any_work(url, pool, here):
    options = ["--budget", 20, "--embeddings-file", pool.vectors]
    refused("run", pool.path, *options, "--output-dir", url)
    refused("run", pool.path, *options, "--output-dir", url, "--dry-run")
    refused("select", pool.path, "--method", "random", *options, "--output-dir", url)
    refused("ask", url, "--data", pool.path, *options)
    for given in (url, Path(url)):
        with pytest.raises(ConfigError, match="nothing can be written there"):
            pyids.select("random", data=pool.rows, budget=9, output_dir=given)


def test_an_export_that_cannot_be_is_refused_before_any_work(pool, here, tmp_path):
    run, url = tmp_path / "run", URLS[0]
    options = ["--method", "random", "--budget", 9, "--output-dir", run]
    refused("select", pool.path, *options, "--to", url)
    assert not run.exists()
    invoke("select", pool.path, *options)
    refused("select", run, "--method", "random", "--budget", 9, "--to", url)
    refused("report", run, "--to", url)
    refused("eval", "nowhere", pool.path, "--json", url)


def test_a_refusal_shows_no_secret(pool, here):
    for url in ("s3://key:secret@bucket/run?token=secret", "gs://key:secret@bucket/run?t=secret"):
        line = refused("run", pool.path, "--budget", 9, "--output-dir", url)
        assert "secret" not in line


# ---- what does -----------------------------------------------------------------------------------


@pytest.fixture
def store(object_store, monkeypatch):
    monkeypatch.setattr(bucket_module, "PUSH_S", 0.05)
    return object_store


def contents(client, prefix):
    """The objects of a run folder that do not name where it was worked in."""
    found = client.list_objects_v2(Bucket="runs-of-tests", Prefix=prefix + "/").get("Contents", ())
    names = [one["Key"].removeprefix(prefix + "/") for one in found]
    free = (".pyids", "config.yaml", "manifest.json", "README.md")
    return {
        name: client.get_object(Bucket="runs-of-tests", Key=f"{prefix}/{name}")["Body"].read()
        for name in names
        if name not in free
    }


def test_ask_and_tell_in_a_bucket_from_two_machines(store, pool, tmp_path, monkeypatch):
    url = "s3://runs-of-tests/asked"
    options = pool.options(rounds=2)
    with pyids.Selection.open(url, options) as selection:
        selection.ask()
        expected = selection.rounds.selected().tolist()
        probes = selection.probes()
    assert "rounds/1/selected.json" in contents(store, "asked")
    assert ".bucket-lock" not in contents(store, "asked")
    # Another machine: no data, no vectors, another work folder.
    monkeypatch.setenv("PYIDS_WORK_DIR", str(tmp_path / "machine 2"))
    scores = tmp_path / "scores.jsonl"
    scores.write_text("".join(f'{{"_pyids_id": {n}, "score": {n % 3}}}\n' for n in probes))
    invoke("tell", url, scores)
    with pyids.Selection.open(url) as selection:
        assert selection.round == 1
        assert selection.rounds.selected(0).tolist() == expected
        selection.ask()
        selection.tell({int(row): 1.0 for row in selection.probes()})
        selection.finish()
    invoke("verify", url)
    written = invoke(
        "export", url, "--format", "parquet", "--to", "s3://runs-of-tests/out/a.parquet"
    )
    assert written == "s3://runs-of-tests/out/a.parquet"
    assert contents(store, "out")["a.parquet"][:4] == b"PAR1"
    invoke("export", url, "--format", "trl", "--to", "s3://runs-of-tests/out/trl")
    assert {"trl/selected.jsonl", "trl/sft.yaml"} <= contents(store, "out").keys()
    # The same as on a disk.
    with pyids.Selection.open(tmp_path / "disk", options) as selection:
        selection.ask()
        selection.tell({int(row): float(row % 3) for row in selection.probes()})
        selection.ask()
        selection.tell({int(row): 1.0 for row in selection.probes()})
        ours = selection.finish().read_bytes()
    assert contents(store, "asked")["selected.jsonl"] == ours
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [p for p in files if b"a-secret-of-this-test" in p.read_bytes()]


def test_an_export_into_a_bucket_replaces_nothing_but_an_export(store, pool, tmp_path):
    select = ["select", pool.path, "--method", "random", "--budget", 9]
    select += ["--output-dir", tmp_path / "run", "--to"]
    bucket, data = Bucket("s3://runs-of-tests/theirs"), Path(pool.path).read_bytes()
    foreign = {"a.jsonl": b'{"x": 1}\n', "b.parquet": b"PAR1", "trl/sft.yaml": b"lr: 1\n"}
    # With our ids, as an earlier selection that is selected from again.
    foreign |= {"pool.jsonl": data.replace(b"{", b'{"_pyids_id": 1, ', 1)}
    for name, content in foreign.items():
        bucket.put(name, content)
    for name in ("a", "a.jsonl"):
        refused("-q", *select, f"{bucket.url}/{name}", words="holds something else, which would")
    source = f"{bucket.url}/pool.jsonl"
    for given in (source, f"{bucket.url}/*.jsonl", bucket.url):
        with pytest.raises(ConfigError, match=r"pool.jsonl: an input of this command"):
            check_export_in_bucket(source, "jsonl", [given])
    check_export_in_bucket(source, "jsonl", [f"{bucket.url}/pool", "pool.jsonl"])
    for name, form in (("b.parquet", "parquet"), ("trl", "trl")):
        with pytest.raises(ConfigError, match=rf"{name}.*: holds something else"):
            check_export_in_bucket(f"{bucket.url}/{name}", form)
    assert contents(store, "theirs") == foreign
    # An earlier export, and an empty object, are replaced.
    bucket.put("empty.jsonl", b"")
    for name in ("new.jsonl", "new.jsonl", "empty.jsonl"):
        assert invoke("-q", *select, f"{bucket.url}/{name}") == f"{bucket.url}/{name}"
    # Nothing is put among the files of a run.
    pyids.Selection.open("s3://runs-of-tests/theirs/run", pool.options()).close()
    for name in ("run/rows.jsonl", "run/rounds/selected-x.jsonl"):
        refused("-q", *select, f"{bucket.url}/{name}", words="among the files of the run in s3://")
    invoke("-q", *select, f"{bucket.url}/run/selected-x.jsonl")


def test_select_in_a_bucket(store, pool):
    options = ["--method", "km-random", "--embeddings-file", pool.vectors, "--budget", 20]
    invoke("select", pool.path, *options, "--output-dir", "s3://runs-of-tests/select")
    assert contents(store, "select")["selected-km-random.jsonl"].count(b"\n") == 20
    result = pyids.select("random", pool.options(), output_dir="s3://runs-of-tests/select2")
    assert len(result.ids) == 60


# A run of a work folder of its own that kills itself when a file appears in the bucket's listing.
KILLED = """
import os, signal, sys, threading, time
from pathlib import Path
from pyids.store import bucket
bucket.PUSH_S = 0.02
put = bucket.Bucket.put
def spy(self, name, content):
    if sys.argv[1] in name:
        if sys.argv[2] == "after":
            put(self, name, content)
        os.kill(os.getpid(), signal.SIGKILL)
    put(self, name, content)
bucket.Bucket.put = spy
import pyids
with pyids.Selection.open(sys.argv[3], eval(sys.argv[4])) as selection:
    selection.ask()
    selection.tell({int(row): float(row % 3) for row in selection.probes()})
    selection.ask()
    selection.finish()
"""


def finish(url, options):
    with pyids.Selection.open(url, options) as selection:
        if selection.round == 0:
            selection.ask()
            selection.tell({int(row): float(row % 3) for row in selection.probes()})
        selection.ask()
        selection.finish()


@pytest.mark.parametrize(
    ("name", "when"),
    [
        ("rows/", "before"),
        ("embeddings/00000-0000.json", "before"),
        ("labels/00000-0000.npy", "after"),
        ("rounds/1/weights.npy", "after"),
        ("selected.jsonl", "before"),
        ("manifest.json", "after"),
    ],
)
def test_killed_in_each_stage_and_resumed_from_another_machine(
    name, when, store, pool, tmp_path, monkeypatch
):
    url, options = "s3://runs-of-tests/killed", pool.options(rounds=2)
    out = subprocess.run(
        [sys.executable, "-P", "-c", KILLED, name, when, url, repr(options)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert out.returncode == -signal.SIGKILL, out.stderr
    monkeypatch.setenv("PYIDS_WORK_DIR", str(tmp_path / "machine 2"))
    with pytest.raises(
        ConfigError, match="another process works in this run folder, or was killed"
    ):
        finish(url, options)
    monkeypatch.setattr(bucket_module, "STALE_S", -1.0)
    finish(url, options)
    finish("s3://runs-of-tests/whole", options)
    assert contents(store, "killed") == contents(store, "whole")
    invoke("verify", url)


def test_two_writers_and_a_lock_that_was_taken_away(store, pool, monkeypatch):
    url = "s3://runs-of-tests/two"
    with pyids.Selection.open(url, pool.options()) as selection:
        selection.ask()
        for command in (["tell", url, "x"], ["verify", url], ["export", url]):
            refused(*command, words="another process works in this run folder")
    mirrors = []
    pull = Mirror.pull
    monkeypatch.setattr(Mirror, "pull", lambda self: (mirrors.append(self), pull(self))[1])

    def overtaken():
        with working_in(url) as folder, mirrors[-1]._busy:
            # This one slept too long, and another came.
            monkeypatch.setattr(bucket_module, "BEAT_S", 0.0)
            monkeypatch.setattr(bucket_module, "STALE_S", -1.0)
            other = Lease(Bucket(url))
            other.take()
            (folder / "late.npy").write_bytes(b"late")

    with pytest.raises(ConfigError, match="another process has taken this run folder"):
        overtaken()
    assert "late.npy" not in contents(store, "two")
    assert ".bucket-lock" in contents(store, "two")  # it is the other's


def test_the_mark_goes_first(store, tmp_path):
    """It is written anew after the rows; a push that breaks off must not leave a stranger's.

    Nor may one that comes while the mark is too young to be pushed.
    """
    folder = tmp_path / "work"
    (folder / "rows").mkdir(parents=True)
    bucket = Bucket("s3://runs-of-tests/mark")
    mirror = Mirror(bucket, folder, Lease(bucket))
    mirror.lease.take()
    for name in ("rows/00000.parquet", "rows/00000.json", ".pyids"):
        (folder / name).write_text("{}")
        time.sleep(0.05)
    order = []
    time.sleep(0.1)
    changes = mirror._changes()
    mirror._push(changes._replace(young={".pyids": changes.ripe.pop(".pyids")}))
    assert set(bucket.list()) == {".bucket-lock"}
    put = Bucket.put
    try:
        Bucket.put = lambda self, name, content: (put(self, name, content), order.append(name))[0]
        time.sleep(0.1)
        mirror.push()
    finally:
        Bucket.put = put
    assert [name for name in order if name != ".bucket-lock"] == [
        *(".pyids", "rows/00000.parquet", "rows/00000.json"),
    ]


def test_files_go_before_the_entries_that_speak_of_them(store, tmp_path):
    """Whatever put is the last one: no entry in the bucket speaks of other files than are there."""
    folder = tmp_path / "work"
    folder.mkdir()
    bucket = Bucket("s3://runs-of-tests/order")
    mirror = Mirror(bucket, folder, Lease(bucket))
    mirror.lease.take()

    def make(version):
        for name in ("a", "b"):
            (folder / f"{name}.npy").write_bytes(version)
            entry = {"files": {f"{name}.npy": {"is": version.decode()}}}
            (folder / f"{name}.json").write_text(json.dumps(entry))

    def check():
        found = contents(store, "order")
        for name, content in found.items():
            if name.endswith(".json"):  # the lock has another name
                for file, said in json.loads(content)["files"].items():
                    assert found[file].decode() == said["is"]
        return {name: content for name, content in found.items() if name != ".bucket-lock"}

    put, delete = Bucket.put, Bucket.delete
    try:
        Bucket.put = lambda self, name, content: (put(self, name, content), check())[0]
        Bucket.delete = lambda self, name: (delete(self, name), check())[0]
        make(b"one")
        time.sleep(0.1)
        mirror.push()
        assert len(check()) == 4
        make(b"another")
        mirror.push()  # too young: nothing new yet, and nothing that does not hold
        time.sleep(0.1)
        mirror.push()
        assert check()["b.npy"] == b"another"
        (folder / "a.json").unlink()
        (folder / "a.npy").unlink()
        mirror.push()
    finally:
        Bucket.put, Bucket.delete = put, delete
    assert check().keys() == {"b.json", "b.npy"}


def test_what_is_equal_is_not_fetched_again(store, pool, monkeypatch):
    url = "s3://runs-of-tests/again"
    finish(url, pool.options(rounds=2))
    fetched = []
    get = Bucket.get
    monkeypatch.setattr(
        Bucket, "get", lambda self, *name: (fetched.append(name[0]), get(self, *name))
    )
    with working_in(url) as folder:
        assert fetched == []
        assert (folder / "manifest.json").exists()
    # A file that was changed here is what the bucket says again.
    (work_folder(url) / "selected.jsonl").write_bytes(b"spoilt")
    with working_in(url) as folder:
        assert fetched == ["selected.jsonl"]
        assert (folder / "selected.jsonl").read_bytes() != b"spoilt"


def test_a_store_that_denies_or_is_not_there_is_one_line(store, pool, monkeypatch, here):
    options = pool.options()
    with pytest.raises(
        ConfigError, match=r"the store answers 'NoSuchBucket'.*check the bucket's name"
    ):
        pyids.Selection.open("s3://no-such-bucket/run", options)
    line = refused(
        "select", pool.path, "--method", "random", "--budget", 9, "--to", "s3://no-such-bucket/x",
        words="NoSuchBucket",
    )  # fmt: skip
    assert "a-secret" not in line
    with pytest.raises(ConfigError, match="written s3://bucket/name"):
        pyids.Selection.open("s3://runs-of-tests", options)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(
        ConfigError, match=r"EndpointConnectionError.: check the connection"
    ) as caught:
        pyids.Selection.open("s3://runs-of-tests/run", options)
    assert "\n" not in str(caught.value)


def test_a_connection_that_breaks_for_a_while_loses_nothing(store, pool, monkeypatch, caplog):
    from botocore.exceptions import EndpointConnectionError

    url = "s3://runs-of-tests/breaks"
    broken = {"now": False}
    put = Bucket.put

    def breaking(self, name, content):
        with self._one_line(f"{name} cannot be written"):
            if broken["now"]:
                raise EndpointConnectionError(endpoint_url="x")
        put(self, name, content)

    monkeypatch.setattr(Bucket, "put", breaking)
    with pyids.Selection.open(url, pool.options()) as selection:
        broken["now"] = True
        selection.ask()
        time.sleep(0.3)
        broken["now"] = False
    assert "rounds/1/selected.json" in contents(store, "breaks")
    assert caplog.text.count("the work goes on, and it will be tried again") == 1
    # Where it stays broken, the command says so in the end.
    selection = pyids.Selection.open(url)
    broken["now"] = True
    selection.probes()
    with pytest.raises(ConfigError, match=r"cannot be written .EndpointConnectionError"):
        selection.close()
    broken["now"] = False
    with pyids.Selection.open(url) as selection:
        assert len(selection.probes())


@pytest.mark.parametrize(
    ("name", "told"),
    [("rounds/1/weights.npy", False), ("rounds/state.json", True), ("manifest.json", True)],
)
def test_scores_that_did_not_all_get_there_are_told_again_or_known(
    store, pool, monkeypatch, tmp_path, name, told
):
    from botocore.exceptions import EndpointConnectionError

    with monkeypatch.context() as patch:
        patch.setattr(bucket_module, "PUSH_S", 60.0)  # all is pushed in the end
        for url in ("s3://runs-of-tests/told", "s3://runs-of-tests/whole"):
            with pyids.Selection.open(url, pool.options(rounds=1)) as selection:
                selection.ask()
                probes = selection.probes()
        scores = tmp_path / "scores.jsonl"
        scores.write_text("".join(f'{{"_pyids_id": {n}, "score": {n % 3}}}\n' for n in probes))
        invoke("tell", url, scores)
        url, put = "s3://runs-of-tests/told", Bucket.put

        def breaking(self, object_name, content):
            with self._one_line(f"{object_name} cannot be written"):
                if object_name == name:
                    raise EndpointConnectionError(endpoint_url="x")
            put(self, object_name, content)

        patch.setattr(Bucket, "put", breaking)
        line = refused("-q", "tell", url, scores, words=f"{url}: {name} cannot be written")
        assert "the same command goes on where it was" in line
    again = CliRunner().invoke(cli, ["-q", "tell", url, str(scores)])
    assert again.exit_code == 0, again.output
    known = f"round 1 was told these scores before; next: `pyids export {url}`"
    assert (known in again.output) is told
    invoke("verify", url)
    assert contents(store, "told") == contents(store, "whole")


def test_messages_name_the_bucket(store, pool):
    url = "s3://runs-of-tests/named"
    with pyids.Selection.open(url, pool.options(rounds=2)) as selection:
        with pytest.raises(ConfigError, match=f"`pyids ask {url}`") as caught:
            selection.tell({})
        assert str(work_folder(url)) not in str(caught.value)
    assert str(ConfigError(str(work_folder(url)))) == str(work_folder(url))
