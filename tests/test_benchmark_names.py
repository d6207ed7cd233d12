"""Benchmarks by their names: `datasets` itself against a local server that answers as the hub."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote

import orjson
import pytest

from pyids.data.exclude import read_held_out
from pyids.data.sources import _HUB_NAME, BENCHMARKS, open_sources
from pyids.errors import DataError

datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")

PYIDS = str(Path(sys.executable).with_name("pyids"))
COMMIT = "0" * 39 + "1"
CARD = "---\nconfigs:\n" + "".join(
    f"- config_name: {config}\n  data_files:\n"
    + "".join(f"  - split: {split}\n    path: {config}/{split}.jsonl\n" for split in splits)
    for config, splits in {"main": ("train", "test"), "socratic": ("train", "test")}.items()
)


class Hub(ThreadingHTTPServer):
    """The data sets of a folder, each a folder ``owner/name``."""

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), _Answer)
        self.folder = folder
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def __exit__(self, *error):
        self.shutdown()
        super().__exit__(*error)


class _Answer(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def _respond(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = unquote(self.path.partition("?")[0]).strip("/").split("/")
        is_api = parts[0] == "api"
        repo = self.server.folder.joinpath(*(parts[2:4] if is_api else parts[1:3]))
        if not repo.is_dir():
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif is_api:
            found = self._of_api(repo, parts[4:], body)
            self._send(200, json.dumps(found).encode(), {"Content-Type": "application/json"})
        else:
            file = repo.joinpath(*parts[5:])
            content = file.read_bytes() if file.is_file() else b""
            headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
            missing = {"X-Error-Code": "EntryNotFound"}
            self._send(*((200, content, headers) if content else (404, b"", missing)))

    def _of_api(self, repo, rest, body):
        files = {str(f.relative_to(repo)): f for f in sorted(repo.rglob("*")) if f.is_file()}

        def facts(name):
            content = files[name].read_bytes()
            oid = hashlib.sha1(content).hexdigest()
            return {"type": "file", "path": name, "size": len(content), "oid": oid}

        if rest and rest[0] == "tree":
            return [facts(name) for name in files if name.startswith("/".join(rest[2:]))]
        if rest and rest[0] == "paths-info":
            given = json.loads(body) if body.startswith(b"{") else parse_qs(body.decode())
            return [facts(name) for name in given["paths"] if name in files]
        siblings = [{"rfilename": name} for name in files]
        name = "/".join(repo.parts[-2:])
        return {"id": name, "sha": COMMIT, "private": False, "tags": [], "siblings": siblings}

    def _send(self, status, content, headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_POST = do_HEAD = _respond

    def log_message(self, *arguments):
        pass


def question(split):
    return f"Tom has {split} apples and eats two of them. How many are left?"


@pytest.fixture
def hub(tmp_path):
    """GSM8K as its folder looks on the hub; each split asks another question."""
    repo = tmp_path / "hub" / "openai" / "gsm8k"
    for config in ("main", "socratic"):
        (repo / config).mkdir(parents=True)
        for split in ("train", "test"):
            row = {"question": question(f"{config} {split}"), "answer": "#### 3"}
            (repo / config / f"{split}.jsonl").write_bytes(orjson.dumps(row) + b"\n")
    (repo / "README.md").write_text(f"{CARD}---\n")
    with Hub(tmp_path / "hub") as server:
        yield server


@pytest.fixture
def select(hub, tmp_path):
    """Run `pyids select` with ``--exclude NAME`` on a pool that asks all four questions."""
    pool = tmp_path / "pool.jsonl"
    asked = [question(f"{c} {s}") for c in ("main", "socratic") for s in ("train", "test")]
    rows = [{"prompt": text, "completion": f"{n}."} for n, text in enumerate([*asked, "Hello?"])]
    pool.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    runs = 0

    def run(name):
        nonlocal runs
        runs += 1
        folder = tmp_path / f"run-{runs}"
        command = [PYIDS, "select", str(pool), "--method", "random", "--budget", "1"]
        own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        done = subprocess.run(
            [*command, "--exclude", name, "--output-dir", str(folder)],
            env={**os.environ, **own}, capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode:
            return done.stderr
        listed = (folder / "excluded.jsonl").read_bytes().splitlines()
        return [orjson.loads(line)["row_id"] for line in listed]

    return run


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("gsm8k", [1]),  # the questions that are reported, not those to learn from
        ("GSM8K", [1]),
        ("openai/gsm8k@main", [1]),
        ("openai/gsm8k@main:train", [0]),
        ("openai/gsm8k@socratic:test", [3]),
    ],
)
def test_a_benchmark_is_read_from_the_hub(select, name, rows):
    assert select(name) == rows


def test_what_the_hub_has_not_is_answered_in_one_line(select):
    for name, words in (
        ("openai/gsm8k", "configs: ['main', 'socratic']): check the name (a configuration as"),
        ("openai/gsm8k@main:dev", "Unknown split"),
        ("mmlu", "cais/mmlu: no such file, and the hub does not give it"),
        ("gsm9k", "gsm9k: no such file or folder"),
    ):
        said = select(name)
        assert words in said
        # What `datasets` logs of its own stands before it.
        assert said.splitlines()[-1].startswith("pyids: ")


def test_names_of_benchmarks_are_names_on_the_hub(tmp_path, monkeypatch):
    for name, stands_for in BENCHMARKS.items():
        assert name == name.lower()
        assert _HUB_NAME.fullmatch(stands_for)["split"]
    # A file or folder of that name goes before.
    monkeypatch.chdir(tmp_path)
    Path("gsm8k").mkdir()
    Path("gsm8k/own.jsonl").write_text('{"question": "one two three four five"}\n')
    [row] = read_held_out(["gsm8k"])
    assert row.place == "gsm8k/own.jsonl line 1"
    with pytest.raises(DataError, match="no such file or folder"):
        open_sources(["mmlu"])  # data to learn from: no benchmark is meant


@pytest.mark.parametrize("kind", ["saved", "files"])
def test_of_a_folder_the_split_is_read_that_is_held_out(tmp_path, kind):
    folder = tmp_path / "bench"
    splits = {
        name: datasets.Dataset.from_list([{"question": question(name)}])
        for name in ("train", "validation", "test")
    }
    if kind == "saved":
        datasets.DatasetDict(splits).save_to_disk(str(folder))
    else:
        folder.mkdir()
        for name, split in splits.items():
            split.to_parquet(folder / f"{name}-00000-of-00001.parquet")
    [row] = read_held_out([str(folder)])
    assert row.texts[0].startswith(b"tom has test apples")
    [row] = read_held_out([f"{folder}:train"])
    assert row.texts[0].startswith(b"tom has train apples")
