"""Data on the web, in Google's store and on the hub: real servers on this machine, real clients."""

import gzip
import hashlib
import io
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pyids
from pyids.data import remote
from pyids.data.fingerprints import fingerprint_files
from pyids.data.ingest import ingest
from pyids.data.remote import remote_facts
from pyids.data.sources import open_sources
from pyids.errors import DataError
from pyids.store.folder import Store

pytest.importorskip("aiohttp", reason="the extra remote is not installed")

ROWS = [{"prompt": f"q{i}", "completion": f"a{i}"} for i in range(300)]
LINES = b"".join(orjson.dumps(row) + b"\n" for row in ROWS)
MATRIX = np.random.default_rng(0).standard_normal((300, 24)).astype(np.float32)


_TABLE, _NPY = io.BytesIO(), io.BytesIO()
pq.write_table(pa.Table.from_pylist(ROWS), _TABLE, row_group_size=70)
np.save(_NPY, MATRIX)
TABLE, NPY = _TABLE.getvalue(), _NPY.getvalue()


class Web(ThreadingHTTPServer):
    """Files by path; what it does wrong stands in `faults`, and what was asked for in `asked`."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.asked, self.answers = {}, [], {}
        self.etags = self.ranges = True
        self.faults = []  # taken one by one by the requests with a range: a status, or "break"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def put(self, name, content):
        self.files[f"/{name}"] = content
        return f"{self.url}/{name}"

    def handle_error(self, request, address):
        """A client that goes away is none of a test's business."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.do_GET()

    def send(self, status, content=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_GET(self):
        server, path = self.server, unquote(urlsplit(self.path).path)
        wanted = self.headers.get("Range")
        server.asked.append((self.command, self.path, wanted))
        if path in server.answers:
            self.send(200, json.dumps(server.answers[path]).encode(), Content_Type="text/json")
            return
        if path not in server.files:
            self.send(404, b'{"error": "nothing there"}', X_Error_Code="EntryNotFound")
            return
        content = server.files[path]
        headers = {"Accept_Ranges": "bytes"} if server.ranges else {}
        etag = f'"{hashlib.md5(content).hexdigest()}"'
        if server.etags:
            headers["ETag"] = etag
        fault = server.faults.pop(0) if wanted and server.faults else None
        if isinstance(fault, int):
            self.send(fault)
        elif self.headers.get("If-Match", etag) != etag:
            self.send(412)
        elif wanted and server.ranges:
            first, last = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", wanted).groups())
            part = content[first : last + 1]
            headers["Content_Range"] = f"bytes {first}-{last}/{len(content)}"
            if fault == "break":  # half of what was promised
                self.send_response(206)
                self.send_header("Content-Length", str(len(part)))
                self.end_headers()
                self.wfile.write(part[: len(part) // 2])
                self.close_connection = True
            elif fault == "short":
                self.send(206, part[: len(part) // 2], **headers)
            else:
                self.send(206, part, **headers)
        else:
            self.send(200, content, **headers)


@pytest.fixture
def web(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(remote, "_PAUSES", (0.0, 0.0))
    server = Web()
    yield server
    server.shutdown()
    server.server_close()


def rows_of(folder, *names):
    with Store.open(folder) as store:
        ingest(store, open_sources(names))
        return [row.record for shard in store.shards for row in store.iter_rows(shard)]


def one_line(error):
    assert "\n" not in str(error)
    return str(error)


# ---- the web -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [("d.jsonl", LINES), ("d.jsonl.gz", gzip.compress(LINES)), ("d.parquet", TABLE)],
)
@pytest.mark.parametrize("etags", [True, False])
def test_files_of_the_web_are_read_by_ranges(name, content, etags, web, monkeypatch, tmp_path):
    monkeypatch.setattr(remote, "_RANGE_BYTES", 1000)
    monkeypatch.setattr(remote, "_BUFFER_BYTES", 1000)
    web.etags = etags
    assert rows_of(tmp_path / "run", web.put(name, content)) == ROWS
    gets = [wanted for command, _, wanted in web.asked if command == "GET"]
    assert len(gets) > 3
    assert all(gets)  # never the whole file


def test_vectors_of_the_web_are_read_by_ranges(web, tmp_path):
    (tmp_path / "pool.jsonl").write_bytes(LINES)
    np.save(tmp_path / "v.npy", MATRIX)
    picks = []
    for number, vectors in enumerate([str(tmp_path / "v.npy"), web.put("v.npy", NPY)]):
        given = {"data": str(tmp_path / "pool.jsonl"), "budget": 20}
        given["output_dir"] = str(tmp_path / f"run {number}")
        picks.append(pyids.select("km-random", given, embeddings_file=vectors).ids.tolist())
    assert picks[0] == picks[1]


@pytest.mark.parametrize("fault", ["break", "short", 500, 503, 429])
def test_a_broken_connection_is_tried_again_and_then_one_line(fault, web, tmp_path):
    url = web.put("d.jsonl", LINES)
    web.faults = [fault, fault]
    assert rows_of(tmp_path / "run", url) == ROWS
    assert web.faults == []
    web.faults = [fault] * 99
    with pytest.raises(DataError, match="the connection breaks off: ") as caught:
        rows_of(tmp_path / "broken", url)
    assert url in one_line(caught.value)


def test_a_server_that_is_gone_is_one_line(web):
    url = web.put("d.jsonl", LINES)
    web.shutdown()
    web.server_close()
    with pytest.raises(DataError, match="the connection breaks off: ") as caught:
        open_sources([url])
    assert url in one_line(caught.value)


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_is_not_tried_again(status, web):
    url = web.put("d.jsonl", LINES)
    web.faults = [status] * 9
    with pytest.raises(DataError, match=rf"the server refuses it \(HTTP {status}\)") as caught:
        open_sources([url])
    one_line(caught.value)
    assert len(web.faults) == 8


def test_the_identity_is_the_etag_or_the_hash_of_the_content(web):
    def identity(content):
        return fingerprint_files([web.put("d.jsonl", content)])

    for web.etags in (True, False):
        first = identity(b"a" * 100)
        assert identity(b"a" * 100) == first
        assert identity(b"a" * 99 + b"b") != first
        assert identity(b"a" * 101) != first
    web.etags, web.asked[:] = True, []
    identity(LINES)
    assert {command for command, *_ in web.asked} == {"HEAD"}


def test_a_file_that_changes_while_it_is_read_is_one_line(web, monkeypatch, tmp_path):
    monkeypatch.setattr(remote, "_RANGE_BYTES", 1000)
    monkeypatch.setattr(remote, "_BUFFER_BYTES", 1000)
    url = web.put("d.jsonl", LINES)
    sources = open_sources([url])
    whole, calls = remote._range, []

    def changing(*place):
        calls.append(place)
        if len(calls) == 3:
            web.put("d.jsonl", LINES.replace(b"a", b"b"))
        return whole(*place)

    monkeypatch.setattr(remote, "_range", changing)
    with Store.open(tmp_path) as store, pytest.raises(DataError, match="has changed while") as e:
        ingest(store, sources)
    assert url in one_line(e.value)


def test_a_server_without_ranges_is_one_line(web, monkeypatch, tmp_path):
    monkeypatch.setattr(remote, "_RANGE_BYTES", 1000)
    monkeypatch.setattr(remote, "_BUFFER_BYTES", 1000)
    web.ranges = False
    with pytest.raises(DataError, match="no ranges: get the file first") as caught:
        open_sources([web.put("d.jsonl", LINES)])
    one_line(caught.value)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("none.jsonl", "no such remote file"),
        ("d-*.jsonl", "name each file"),
        ("notes.txt", "the ending says nothing"),
        ("page.jsonl", "a web page: get the file itself"),
        ("empty.jsonl", "the file is empty"),
    ],
)
def test_what_is_no_data_on_the_web_is_one_line(path, words, web):
    web.put("notes.txt", b"x")
    web.put("page.jsonl", b"<!DOCTYPE html><html>Log in</html>")
    web.put("empty.jsonl", b"")
    with pytest.raises(DataError, match=words) as caught:
        open_sources([f"{web.url}/{path}"])
    one_line(caught.value)


@pytest.mark.parametrize(
    "address",
    [
        "https://me:hunter2@example.org/d.jsonl",
        "https://example.org/d.jsonl?X-Amz-Signature=hunter2&x=1",
        "https://example.org/d.jsonl?sig=hunter2",
        "https://example.org/d.jsonl?access_token=hunter2",
        "https://example.org/d.jsonl?api_key=hunter2",
    ],
)
def test_an_address_with_a_key_is_refused_without_showing_it(address):
    with pytest.raises(DataError, match=r"https://example.org/d.jsonl: the address") as caught:
        open_sources([address])
    assert "hunter2" not in one_line(caught.value)


def test_a_query_that_names_a_file_is_no_key(web, tmp_path):
    web.put("d.jsonl", LINES)
    assert rows_of(tmp_path / "run", f"{web.url}/d.jsonl?download=true&version=2") == ROWS


def test_the_command_line_reads_data_and_target_of_the_web(web, tmp_path):
    data, target = web.put("d.jsonl", LINES), web.put("dev.jsonl", LINES[:200].rpartition(b"\n")[0])
    command = [sys.executable, "-P", "-m", "pyids", "select", data, "--method", "random"]
    command += ["--budget", "5", "--exclude", target, "--workers", "2", "--output-dir", "run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    chosen = (tmp_path / "run/selected-random.jsonl").read_text().splitlines()
    assert len(chosen) == 5
    assert not {json.loads(line)["prompt"] for line in chosen} & {"q0", "q1", "q2", "q3"}


# ---- Google's store ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def google():
    pytest.importorskip("gcp_storage_emulator", reason="gcp-storage-emulator is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = "from gcp_storage_emulator.server import create_server as c; "
    command += f"c('127.0.0.1', {port}, in_memory=True, default_bucket='pool').run()"
    # A process of its own: Arrow's client holds the interpreter while it waits.
    server = subprocess.Popen([sys.executable, "-c", command], stderr=subprocess.DEVNULL)
    for _ in range(300):
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            break
        time.sleep(0.1)
    yield f"http://127.0.0.1:{port}"
    server.terminate()
    server.wait()


@pytest.fixture
def in_google(google, monkeypatch):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", google)
    monkeypatch.setattr(remote, "_PAUSES", (0.0, 0.0))
    remote._filesystem.cache_clear()

    def put(name, content):
        with remote._google().open_output_stream(f"pool/{name}", compression=None) as out:
            out.write(content)
        return f"gs://pool/{name}"

    yield put
    remote._filesystem.cache_clear()


@pytest.mark.parametrize(
    ("name", "content"),
    [("d.jsonl", LINES), ("d.jsonl.gz", gzip.compress(LINES)), ("d.parquet", TABLE)],
)
def test_files_of_googles_store_are_read_by_ranges(name, content, in_google, monkeypatch, tmp_path):
    monkeypatch.setattr(remote, "_RANGE_BYTES", 3000)
    url = in_google(name, content)
    assert rows_of(tmp_path / "run", url) == ROWS
    assert rows_of(tmp_path / "other", url.replace("gs:", "gcs:")) == ROWS


def test_folders_vectors_and_identity_in_googles_store(in_google, tmp_path):
    in_google("parts/0.jsonl", LINES)
    in_google("parts/1.jsonl", orjson.dumps({"prompt": "x", "completion": "y"}))
    in_google("parts/notes.txt", b"no data")
    assert len(rows_of(tmp_path / "all", "gs://pool/parts")) == 301
    assert len(rows_of(tmp_path / "some", "gs://pool/parts/*.jsonl")) == 301
    first = fingerprint_files([in_google("i.jsonl", b"a" * 10)])
    assert fingerprint_files([in_google("i.jsonl", b"b" * 10)]) != first
    assert remote_facts("gs://pool/i.jsonl")[1]  # its ETag
    given = {"data": in_google("d.jsonl", LINES), "budget": 20, "output_dir": str(tmp_path / "run")}
    found = pyids.select("km-random", given, embeddings_file=in_google("v.npy", NPY))
    assert len(found.ids) == 20


def test_what_is_not_in_googles_store_is_one_line(in_google, monkeypatch):
    with pytest.raises(DataError, match="no such remote file") as caught:
        open_sources(["gs://pool/nothing.jsonl"])
    one_line(caught.value)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
    monkeypatch.setattr(remote, "_GOOGLE_TRIES", remote.timedelta(seconds=1))
    remote._filesystem.cache_clear()
    with pytest.raises(DataError, match="the connection breaks off") as caught:
        open_sources(["gs://pool/d.jsonl"])
    one_line(caught.value)


# ---- the hub -------------------------------------------------------------------------------------


@pytest.fixture
def hub(web):
    """A data set on a hub: what of its API is asked when files are listed and read."""
    files = {"README.md": b"# x", "data/a.jsonl": LINES, "data/v.npy": NPY}
    listed = [
        {
            "type": "file",
            "path": path,
            "size": len(content),
            "oid": hashlib.sha1(content).hexdigest(),
        }
        for path, content in files.items()
    ]
    api = "/api/datasets/who/what"
    for path in (api, f"{api}/revision/main"):
        web.answers[path] = {"id": "who/what", "sha": "0" * 40, "siblings": []}
    folder = {"type": "directory", "path": "data", "size": 0, "oid": "1" * 40}
    web.answers[f"{api}/tree/main"] = [folder, listed[0]]
    web.answers[f"{api}/tree/main/"] = [folder, listed[0]]
    web.answers[f"{api}/tree/main/data"] = listed[1:]
    for path, content in files.items():
        web.put(f"datasets/who/what/resolve/main/{path}", content)
    return web


def on_hub(hub, folder, *options):
    command = [sys.executable, "-P", "-m", "pyids", "select", "--method", "random"]
    command += ["--budget", "5", "--output-dir", "run", *options]
    env = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    env.update(HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="0", HF_HOME=str(folder / "home"))
    env.pop("TRANSFORMERS_OFFLINE", None)
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, env=env)


@pytest.mark.parametrize("name", ["data/a.jsonl", "data", "data/*.jsonl"])
def test_files_of_the_hub_are_read_by_ranges(name, hub, tmp_path):
    address = "hf://datasets/who/what/"
    done = on_hub(
        hub,
        tmp_path,
        address + name,
        "--method",
        "km-random",
        "--embeddings-file",
        f"{address}data/v.npy",
    )
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "run/selected-km-random.jsonl").read_text().splitlines()) == 5
    asked = [wanted for _, path, wanted in hub.asked if "/resolve/" in path]
    assert asked
    assert all(asked)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("hf://datasets/who/what/none.jsonl", "no such remote file"),
        ("hf://datasets/who/other/a.jsonl", "no such remote file"),
        ("hf://what", "an address that cannot be read"),
    ],
)
def test_what_is_not_on_the_hub_is_one_line(address, words, hub, tmp_path):
    done = on_hub(hub, tmp_path, address)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
