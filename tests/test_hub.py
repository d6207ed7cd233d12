"""Pushing to the hub: a local server that answers as the hub does, and keeps what it is sent."""

import base64
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import pyids

pytest.importorskip("huggingface_hub", reason="the package huggingface-hub is not installed")

TOKEN = "hf_aTokenThatNobodyMaySee"
PYIDS = str(Path(sys.executable).with_name("pyids"))


class Hub(ThreadingHTTPServer):
    """The endpoints that an upload meets; `refuse` answers all with 403 and repeats the token."""

    def __init__(self, refuse=False):
        super().__init__(("127.0.0.1", 0), _Answer)
        self.refuse = refuse
        self.requests: list[tuple[str, str, str | None]] = []
        self.created: list[dict] = []
        self.cards: list[str] = []
        self.files: dict[str, bytes] = {}
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def __exit__(self, *error):
        self.shutdown()
        super().__exit__(*error)

    def answer(self, path, body):
        if path == "/api/repos/create":
            self.created.append(json.loads(body))
            return {"url": f"{self.url}/datasets/me/mine"}
        if path == "/api/validate-yaml":
            self.cards.append(json.loads(body)["content"])
            return {"errors": [], "warnings": []}
        if path == "/api/datasets/me/mine/preupload/main":
            return {
                "files": [
                    {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for file in json.loads(body)["files"]
                ]
            }
        if path == "/api/datasets/me/mine/commit/main":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            commit = "0" * 40
            return {
                "commitUrl": f"{self.url}/datasets/me/mine/commit/{commit}",
                "commitOid": commit,
            }
        return None


class _Answer(BaseHTTPRequestHandler):
    server: Hub

    def _respond(self):
        path = self.path.partition("?")[0]
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        given = self.headers.get("Authorization")
        self.server.requests.append((self.command, path, given))
        answer = None if self.server.refuse else self.server.answer(path, body)
        status = 403 if self.server.refuse else 404 if answer is None else 200
        content = json.dumps(answer or {"error": f"not for {given}"}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Type", "application/json")
        if status == 403:
            self.send_header("X-Error-Message", f"not for {given}")
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = _respond

    def log_message(self, *args):
        pass


@pytest.fixture
def push(pool, tmp_path):
    """Run `pyids export --push-to-hub` as a user with a token would."""
    with pyids.Selection.open(tmp_path / "run", **pool.options(rounds=1)) as selection:
        selection.draw()

    def run(url, *options):
        own = {"HF_ENDPOINT": url, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "home")}
        done = subprocess.run(
            [PYIDS, "export", str(tmp_path / "run"), "--push-to-hub", "me/mine", *options],
            env={**os.environ, **own, "HF_HUB_OFFLINE": "0", "HF_DEBUG": "0"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert TOKEN not in done.stdout + done.stderr
        for file in tmp_path.rglob("*"):
            assert not file.is_file() or TOKEN.encode() not in file.read_bytes(), file
        return done

    return run


@pytest.mark.parametrize("format", ["jsonl", "trl"])
def test_the_hub_gets_the_rows_byte_for_byte(push, tmp_path, format):
    with Hub() as hub:
        done = push(hub.url, "--format", format)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{hub.url}/datasets/me/mine"
    written = "selected.jsonl" if format == "jsonl" else "selected-trl/selected.jsonl"
    rows = tmp_path / "run" / written
    card = rows.with_name("README.md").read_bytes()
    assert hub.files == {"selected.jsonl": rows.read_bytes(), "README.md": card}
    assert [card.decode()] == hub.cards
    assert hub.files["selected.jsonl"].count(b"\n") == 60
    [created] = hub.created
    assert (created["organization"], created["name"], created["type"]) == ("me", "mine", "dataset")
    assert created.get("visibility") == "private" or created.get("private") is True  # hub 2, hub 1
    sent = {given for command, _, given in hub.requests if command == "POST"}
    assert sent == {f"Bearer {TOKEN}"}


def test_a_refusal_and_a_dead_address_are_one_line_each(push):
    with Hub(refuse=True) as hub:
        refused = push(hub.url)
    dead = push(hub.url)  # nobody listens there any more
    for done in (refused, dead):
        assert done.returncode == 2
        *_, line = done.stderr.splitlines()
        assert line.startswith("pyids: me/mine: the hub did not take it (")
        assert line.endswith("check the name, the network and `hf auth login`")
    assert "403" in refused.stderr
    assert "[token]" in refused.stderr  # the server repeated it
    assert hub.files == {}
