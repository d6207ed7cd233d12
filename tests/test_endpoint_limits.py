"""Servers that answer without end, redirect, ask to wait for an hour, or repeat the key."""

import socket
import threading
import time

import pytest

from pyids.errors import ModelError
from pyids.models import endpoint as endpoint_module
from pyids.models.endpoint import Endpoint

KEY = "sk-a-secret/of+this test"
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


class RawServer:
    """Sends what `talk(connection)` sends to whoever connects, after it has read the request."""

    def __init__(self, talk):
        self.connections = 0
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}/v1"

        def serve():
            while True:
                try:
                    connection, _ = self.socket.accept()
                except OSError:
                    return
                self.connections += 1
                threading.Thread(target=answer, args=(connection,), daemon=True).start()

        def answer(connection):
            with connection:
                try:
                    read_request(connection)
                    talk(connection)
                except OSError:
                    pass  # the client has given up, as it should

        threading.Thread(target=serve, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.socket.close()


def read_request(connection):
    """Read it whole: a server that leaves some of it unread resets the connection."""
    content = b""
    while b"\r\n\r\n" not in content:
        content += connection.recv(1 << 16)
    head, _, body = content.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
    while len(body) < length:
        body += connection.recv(1 << 16)


def whole(status, body, *headers):
    lines = [f"HTTP/1.1 {status} X".encode(), b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join([*lines, b"", body])


def endpoint(server, **options):
    given = {"key_variable": "A_TEST_KEY", "pause_s": 0.01, "retries": 1, **options}
    return Endpoint(server.url, "a-model", **given)


def endless(connection):
    connection.sendall(OK + b"\r\n")
    while True:
        connection.sendall(b" " * (1 << 16))


def dripping_body(connection):
    connection.sendall(OK + b"Content-Length: 100000\r\n\r\n")
    while True:
        connection.sendall(b" ")
        time.sleep(0.05)


def dripping_head(connection):
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    while True:
        connection.sendall(b"a: b\r\n")
        time.sleep(0.05)


def test_an_answer_without_end_is_not_read_to_its_end(monkeypatch):
    monkeypatch.setattr(endpoint_module, "_MAX_BYTES", 1 << 20)
    with RawServer(endless) as server:
        start = time.monotonic()
        with pytest.raises(ModelError, match="an answer of more than 1048576 bytes: ask another"):
            endpoint(server).chat([])
        assert time.monotonic() - start < 20
        assert server.connections == 1


@pytest.mark.parametrize("talk", [dripping_body, dripping_head])
def test_a_server_that_sends_a_byte_now_and_then_is_left(talk):
    with RawServer(talk) as server:
        start = time.monotonic()
        with pytest.raises(ModelError, match=r"no whole answer in 0\.5 s"):
            endpoint(server, answer_s=0.5).chat([])
        assert time.monotonic() - start < 10


@pytest.mark.parametrize("asked", ["3600", "Wed, 21 Oct 2093 07:28:00 GMT", "99999999999999999999"])
def test_a_pause_of_an_hour_is_not_kept(asked):
    answer = whole(429, b"{}", b"Retry-After: " + asked.encode())
    with RawServer(lambda connection: connection.sendall(answer)) as server:
        start = time.monotonic()
        with pytest.raises(ModelError, match=r"asks to wait \d+ s \(status 429\): run again then"):
            endpoint(server).chat([])
        assert time.monotonic() - start < 10
        assert server.connections == 1


@pytest.mark.parametrize("asked", ["0", "soon", "-5", "", "1e9", "Wed, 21 Oct 2015 07:28:00 GMT"])
def test_a_pause_that_is_none_is_a_short_one(asked):
    answer = whole(503, b"{}", b"Retry-After: " + asked.encode())
    with RawServer(lambda connection: connection.sendall(answer)) as server:
        with pytest.raises(ModelError, match="status 503 after 2 requests"):
            endpoint(server).chat([])
        assert server.connections == 2


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_said_and_not_followed(status):
    with RawServer(lambda connection: connection.sendall(whole(200, b"{}"))) as elsewhere:
        answer = whole(status, b"", b"Location: " + elsewhere.url.encode())
        with (
            RawServer(lambda connection: connection.sendall(answer)) as server,
            pytest.raises(ModelError, match=f"status {status}, a redirect to .*none is followed"),
        ):
            endpoint(server).chat([])
        assert elsewhere.connections == 0


@pytest.mark.parametrize(
    "body",
    [
        KEY.encode(),
        b'{"error": "wrong key: Bearer ' + KEY.encode() + b'"}',
        b"sk-a-secret%2Fof%2Bthis%20test",
        b"\x1b]0;title\x07 \x9b31m",
    ],
)
@pytest.mark.parametrize("status", [400, 200])
def test_what_a_server_says_is_shown_without_key_and_escapes(monkeypatch, body, status):
    monkeypatch.setenv("A_TEST_KEY", KEY)
    answer = whole(status, body, b"Location: " + KEY.encode())
    with RawServer(lambda connection: connection.sendall(answer)) as server:
        with pytest.raises(ModelError) as caught:
            endpoint(server).chat([])
        shown = str(caught.value)
        assert "secret" not in shown
        assert shown.isprintable()


@pytest.mark.parametrize(
    "usage",
    ["{}", "7", "[]", '"many"', '{"total_tokens": -5}', '{"total_tokens": "7"}', "null"],
)
def test_usage_that_says_nothing_counts_nothing(usage):
    body = b'{"choices": [{"message": {"content": "yes"}}], "usage": %b}' % usage.encode()
    with RawServer(lambda connection: connection.sendall(whole(200, body))) as server:
        asked = endpoint(server)
        assert asked.chat([]) == "yes"
        assert asked.tokens_used == 0


@pytest.mark.parametrize(
    "data",
    ['[{"index": 0, "embedding": []}]', '[{"index": 0, "embedding": [1e99]}]', "7", '{"a": 1}'],
)
def test_vectors_that_are_none_are_refused(data):
    body = b'{"data": %b}' % data.encode()
    with (
        RawServer(lambda connection: connection.sendall(whole(200, body))) as server,
        pytest.raises(ModelError, match="vectors"),
    ):
        endpoint(server).embed(["a"])
