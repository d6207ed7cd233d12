"""Runs in a bucket: killed while they train and score, over a bad connection, looked at."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest
from click.testing import CliRunner

import pyids
from pyids.cli import cli
from pyids.errors import ConfigError
from pyids.store import bucket as bucket_module
from pyids.store import objects

BUCKET = "runs-of-tests"


def contents(client, prefix):
    """What two runs must have in common: all but where they were worked in and how long it took."""
    found = client.list_objects_v2(Bucket=BUCKET, Prefix=prefix + "/").get("Contents", ())
    names = [one["Key"].removeprefix(prefix + "/") for one in found]
    free = (".pyids", "config.yaml", "manifest.json", "README.md", "checkpoint.json")
    return {
        name: client.get_object(Bucket=BUCKET, Key=f"{prefix}/{name}")["Body"].read()
        for name in names
        if name.rpartition("/")[2] not in free and not name.endswith(".manifest.json")
    }


# ---- killed while it trains and scores -----------------------------------------------------------

KILLED = """
import os, signal, sys
from pyids.store import bucket
bucket.PUSH_S = 0.02
import pyids
from pyids.models import trainer
from pyids.scoring import probes
where, calls = sys.argv[1], []
def dying(function, at):
    def wrapped(*given, **more):
        calls.append(0)
        if len(calls) == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*given, **more)
    return wrapped
if where == "train":  # in the second step of the second round
    trainer.ResponseTrainer.training_step = dying(trainer.ResponseTrainer.training_step, 4)
else:  # when the base model is to score
    probes.response_nll = dying(probes.response_nll, 2)
pyids.run(eval(sys.argv[3]), output_dir=sys.argv[2])
"""


@pytest.mark.parametrize("where", ["train", "score"])
def test_a_run_that_is_killed_goes_on_elsewhere_to_the_same_bytes(
    where, small, object_store, tmp_path, monkeypatch
):
    pytest.importorskip("peft", reason="needs the train extra")
    url = f"s3://{BUCKET}/killed"
    options = {
        "data": str(small / "pool.jsonl"),
        "embeddings_file": str(small / "vectors.npy"),
        "model": str(small / "model"),
        "budget": 32,
        "rounds": 2,
        "clusters": 4,
        "probes_per_cluster": 2,
        "max_length": 64,
        "lora_rank": 2,
        "threads": 1,
        "device": "cpu",
    }
    out = subprocess.run(
        [sys.executable, "-P", "-c", KILLED, where, url, repr(options)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert out.returncode == -signal.SIGKILL, out.stderr
    there = contents(object_store, "killed")
    # How much had got there is a matter of moments: not its end, at least.
    assert ".bucket-lock" in there
    assert "selected.jsonl" not in there
    assert "rounds/2/checkpoint/adapter_model.safetensors" not in there
    # Another machine, another working directory.
    monkeypatch.setenv("PYIDS_WORK_DIR", str(tmp_path / "machine 2"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bucket_module, "STALE_S", -1.0)
    pyids.run(options, output_dir=url)
    pyids.run(options, output_dir=f"s3://{BUCKET}/whole")
    ours, theirs = (contents(object_store, name) for name in ("killed", "whole"))
    assert ours.keys() == theirs.keys()
    # The record of a training holds its seconds, and its ledger entry the hash of that.
    different = {name for name in ours if ours[name] != theirs[name]}
    assert different <= {"rounds/1/checkpoint.ledger.json", "rounds/2/checkpoint.ledger.json"}
    assert "rounds/2/checkpoint/adapter_model.safetensors" in ours


# ---- a bad connection ----------------------------------------------------------------------------


class Proxy:
    """Stands between us and the store; `fault` is what it does to a request."""

    def __init__(self, url):
        self.fault, self.requests = None, 0
        target, outer = urlsplit(url), self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do(self):
                outer.requests += 1
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                answer = outer.fault(self) if outer.fault else None
                if answer is None:
                    ask = HTTPConnection(target.hostname, target.port, timeout=60)
                    ask.request(self.command, self.path, body, dict(self.headers))
                    found = ask.getresponse()
                    answer = found.status, found.read(), dict(found.getheaders())
                status, data, headers = answer
                self.send_response_only(status)
                for name, value in headers.items():
                    if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                        self.send_header(name, value)
                length = headers.get("Content-Length") if self.command == "HEAD" else len(data)
                self.send_header("Content-Length", str(length or 0))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = do

            def log_message(self, *args):
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *args):
                pass  # connections that break are the point

        self.server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def proxy(object_store, object_store_url, monkeypatch):
    made = Proxy(object_store_url)
    monkeypatch.setenv("AWS_ENDPOINT_URL", made.url)
    monkeypatch.setattr(bucket_module, "PUSH_S", 0.05)
    monkeypatch.setattr(objects, "ATTEMPTS", 2)
    monkeypatch.setattr(objects, "READ_S", 2)
    yield made
    made.fault = None
    made.server.shutdown()
    made.server.server_close()


def denied(request):
    error = b"<Error><Code>AccessDenied</Code><Message>a-secret-of-the-store\n</Message></Error>"
    return 403, error, {"Content-Type": "application/xml"}


def overloaded(request):
    return 503, b"<Error><Code>SlowDown</Code></Error>", {"Content-Type": "application/xml"}


def broken(request):
    request.connection.shutdown(2)
    raise ConnectionResetError


def silent(request):
    time.sleep(5)
    raise ConnectionResetError


def nonsense(request):
    return 200, b"<html>a captive portal</html>", {"Content-Type": "text/html"}


FAULTS = {
    "denied": (denied, "the store answers"),
    "overloaded": (overloaded, "the store answers"),
    "broken": (broken, "check the connection"),
    "silent": (silent, "check the connection"),
    "nonsense": (nonsense, "check the "),
}


def select(pool, url):
    return pyids.select("km-random", pool.options(), output_dir=url)


@pytest.mark.parametrize("name", FAULTS)
def test_a_store_that_fails_is_one_line(name, proxy, pool, monkeypatch):
    fault, words = FAULTS[name]
    url = f"s3://{BUCKET}/{name}"
    proxy.fault = fault
    for act in (lambda: select(pool, url), lambda: pyids.Selection.open(url)):
        with pytest.raises(ConfigError) as caught:
            act()
        assert "\n" not in str(caught.value)
        assert str(caught.value).startswith(f"{url}: ")
        assert words in str(caught.value)
        assert "secret" not in str(caught.value)
    shown = CliRunner().invoke(cli, ["status", url])
    assert shown.exit_code == 2
    assert shown.output.count("\n") == 1
    # And in the middle of the work: the same command goes on, to the same rows.
    proxy.fault = None
    fail = threading.Event()
    proxy.fault = lambda request: fault(request) if fail.is_set() else None
    selection = pyids.Selection.open(url, pool.options(rounds=2))
    selection.ask()
    drawn = selection.rounds.selected().tolist()
    fail.set()
    with pytest.raises(ConfigError) as caught:
        selection.close()
    assert "\n" not in str(caught.value)
    fail.clear()
    # The lock could not be given back: it counts for a minute.
    with pytest.raises(ConfigError, match="or was killed less than 60 s ago"):
        pyids.Selection.open(url, pool.options(rounds=2))
    monkeypatch.setattr(bucket_module, "STALE_S", -1.0)
    with pyids.Selection.open(url, pool.options(rounds=2)) as selection:
        selection.ask()
        assert selection.rounds.selected().tolist() == drawn


def test_a_slow_store_is_only_slow(proxy, pool, object_store):
    def slow(request):
        time.sleep(0.05 + 0.5 * (proxy.requests % 20 == 0))

    proxy.fault = slow
    select(pool, f"s3://{BUCKET}/slow")
    proxy.fault = None
    select(pool, f"s3://{BUCKET}/fast")
    assert contents(object_store, "slow") == contents(object_store, "fast")


def test_a_connection_that_breaks_now_and_then_changes_nothing(proxy, pool, object_store):
    proxy.fault = lambda request: broken(request) if proxy.requests % 7 == 0 else None
    select(pool, f"s3://{BUCKET}/shaky")
    proxy.fault = None
    select(pool, f"s3://{BUCKET}/steady")
    assert contents(object_store, "shaky") == contents(object_store, "steady")


# ---- a look at it --------------------------------------------------------------------------------


def test_status_of_a_run_in_a_bucket(object_store, pool, tmp_path, monkeypatch):
    url = f"s3://{BUCKET}/looked-at"
    monkeypatch.setattr(bucket_module, "PUSH_S", 0.05)

    def status(*more):
        out = CliRunner().invoke(cli, ["status", url, *more])
        assert out.exit_code == 0, out.output
        return out.output

    out = CliRunner().invoke(cli, ["status", f"s3://{BUCKET}/nothing"])
    assert out.exit_code == 2
    assert f"s3://{BUCKET}/nothing is not a run folder" in out.output
    with pyids.Selection.open(url, pool.options(rounds=2)) as selection:
        selection.ask()
        deadline = time.monotonic() + 60
        # Until it is there.
        while "next: round 1" not in (out := CliRunner().invoke(cli, ["status", url])).output:
            assert out.exit_code == 0 or f"{url}: a process has just begun" in out.output
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert f"{url}: a process works in it" in status()
        assert json.loads(status("--json"))["working"] is True
    shown = status()
    assert "stopped: give the same command again" in shown
    # As of the folder itself.
    here = CliRunner().invoke(cli, ["status", str(bucket_module.work_folder(url)), "--json"])
    theirs, ours = json.loads(status("--json")), json.loads(here.output)
    for found in (ours, theirs):
        found["stages"] = [(one["name"], one["done"], one["total"]) for one in found["stages"]]
        found["bytes"] = {k: v for k, v in found["bytes"].items() if k != ".lock"}
        found.pop("folder")
    assert ours == theirs
    assert not [name for name in os.listdir(tmp_path) if name.startswith("pyids-")]


@pytest.mark.parametrize(
    ("said", "age"),
    [
        ("Thu, 26 Nov 2026 05:00:10 GMT", 10),
        ("Thu, 26 Nov 2026 05:00:10 -0000", 10),
        ("Thu, 26 Nov 2026 06:00:10 +0100", 10),
        ("Thu, 26 Nov 2026 05:00:10 GMT, Thu, 26 Nov 2026 05:00:10 GMT", 10),
        ("soon", None),
        ("", None),
    ],
)
def test_the_age_of_a_lock_by_what_a_store_says_of_the_time(said, age):
    written = datetime(2026, 11, 26, 5, tzinfo=UTC)
    there = objects._time_there(said)
    expected = datetime.now(UTC) if age is None else written + timedelta(seconds=age)
    assert abs((there - expected).total_seconds()) < 5
