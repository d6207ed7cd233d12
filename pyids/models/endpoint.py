"""A client for servers that speak OpenAI's HTTP interface: chat completions and embeddings.

Requests that fail for a passing reason (429, 5xx, time-outs, broken connections) are sent again
after a growing pause, or the one that the server asks for. A cap on requests and tokens bounds what
a run can cost. The key is read from an environment variable, sent in one header, and appears in no
message, file or log.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

import numpy as np
import orjson

from pyids._typing import Float32
from pyids.errors import ConfigError, ModelError
from pyids.parsing import check_url
from pyids.terminal import printable

if TYPE_CHECKING:
    import urllib3

# What a server answers that may answer otherwise a moment later; 0 is a broken connection.
_PASSING = {0, 408, 409, 425, 429, 500, 502, 503, 504}

_MAX_BACKOFF_S = 60.0

# The longest answer that is read: 64 vectors of 16,384 numbers are some 20 MB of JSON.
_MAX_BYTES = 64 << 20


class _Answer(NamedTuple):
    """A status, or 0 for a broken connection and -1 for an answer that is not waited for."""

    status: int
    body: bytes
    headers: Mapping[str, str]
    problem: str


@dataclass
class Endpoint:
    """A server, a model on it, and what may be spent there.

    Attributes
    ----------
    url
        With the version: ``https://host/v1``; no user, query or fragment.
    model
        As the server calls it.
    key_variable
        The environment variable that holds the key; none is sent where it is not set.
    max_requests, max_tokens
        The caps: requests sent, the repeated ones too, and tokens as the server counts them. A
        request that would come after a cap was reached is not sent. None: no cap.
    retries
        How often a request is sent again.
    timeout_s
        Longest wait for a connection or for the next bytes, in seconds.
    answer_s
        Longest wait for a whole answer, in seconds.
    pause_s
        First pause before sending again, in seconds; doubles each time, at most 60.
    max_pause_s
        Longest pause that a server may ask for, in seconds.
    workers
        Requests under way at once.
    """

    url: str
    model: str
    key_variable: str = "OPENAI_API_KEY"
    max_requests: int | None = None
    max_tokens: int | None = None
    retries: int = 5
    timeout_s: float = 120.0
    answer_s: float = 600.0
    pause_s: float = 1.0
    max_pause_s: float = 120.0
    workers: int = 4
    requests_sent: int = field(default=0, init=False)
    tokens_used: int = field(default=0, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def __post_init__(self) -> None:
        try:
            check_url(self.url, key_variable=self.key_variable)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        if not self.model:
            raise ConfigError(f"endpoint {self.url}: name a model on it")

    @cached_property
    def _pool(self) -> urllib3.PoolManager:
        try:
            import urllib3
        except ImportError as error:
            raise ConfigError(
                "endpoints need urllib3: pip install 'pyids-select[endpoint]'"
            ) from error
        return urllib3.PoolManager(
            maxsize=self.workers,
            retries=False,  # we send again ourselves; a redirect could take the key elsewhere
            timeout=urllib3.Timeout(total=None, connect=self.timeout_s, read=self.timeout_s),
        )

    def post(self, path: str, content: Mapping[str, Any]) -> dict[str, Any]:
        """Send a JSON value, with the model's name, and return the answer's.

        Raises
        ------
        ConfigError
            A cap was reached, or the server refuses the key.
        ModelError
            The server cannot be reached, refuses the request, asks for a longer pause than
            `max_pause_s`, sends more than `_MAX_BYTES` or for longer than `answer_s`, or does not
            answer in JSON.
        """
        return self._read(*self._ask(path, {"model": self.model, **content}))

    def tell(self, path: str, content: Mapping[str, Any]) -> None:
        """Send a JSON value to a path or a URL of the server; what it answers is not looked at.

        Raises
        ------
        ConfigError, ModelError
            As for `post`; the status is not 200.
        """
        answer, where, sent = self._ask(path, content)
        if answer.status != 200:
            self._read(answer, where, sent)

    def _ask(self, path: str, content: Mapping[str, Any]) -> tuple[_Answer, str, int]:
        """Send until there is an answer that will not pass; return it, from where, which try."""
        body = orjson.dumps(dict(content))
        where = path if path.startswith("http") else f"{self.url}{path}"
        for sent in range(1, self.retries + 2):
            with self._lock:
                self._check_caps()
                self.requests_sent += 1
            answer = self._send(where, body)
            if answer.status not in _PASSING or sent > self.retries:
                break
            time.sleep(self._pause(answer, sent, where))
        return answer, where, sent

    def _send(self, where: str, body: bytes) -> _Answer:
        """Send a request once; what a broken connection did is an answer of status 0.

        In a thread of its own, because no time-out of a socket ends a server that sends a byte now
        and then.
        """
        result: list[_Answer] = []
        thread = threading.Thread(
            target=lambda: result.append(self._exchange(where, body)),
            name="endpoint",
            daemon=True,
        )
        thread.start()
        thread.join(self.answer_s)
        if not result:
            return _Answer(-1, b"", {}, f"no whole answer in {self.answer_s:g} s")
        return result[0]

    def _exchange(self, where: str, body: bytes) -> _Answer:
        import urllib3

        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self.key_variable):
            headers["Authorization"] = f"Bearer {key}"
        received = bytearray()
        try:
            response = self._pool.request(
                "POST", where, body=body, headers=headers, redirect=False, preload_content=False
            )
            try:
                for block in response.stream(1 << 16):
                    received += block
                    if len(received) > _MAX_BYTES:
                        response.close()
                        return _Answer(-1, b"", {}, f"an answer of more than {_MAX_BYTES} bytes")
            finally:
                response.release_conn()
        except (urllib3.exceptions.HTTPError, ValueError, UnicodeError) as error:
            reason = getattr(error, "reason", None)
            name = type(reason if isinstance(reason, Exception) else error).__name__
            return _Answer(0, b"", {}, name)
        return _Answer(response.status, bytes(received), dict(response.headers), "")

    def _pause(self, answer: _Answer, sent: int, where: str) -> float:
        """Return how long to wait before the next request, in seconds."""
        pause: float = min(_MAX_BACKOFF_S, self.pause_s * 2 ** (sent - 1))
        asked = {name.lower(): value for name, value in answer.headers.items()}.get("retry-after")
        if asked is None:
            # So that those who were refused together do not come back together.
            return pause * (1 + random.random() / 4)
        if asked.strip().isdecimal():
            wanted = float(asked)
        else:
            try:
                when = parsedate_to_datetime(asked)
                wanted = (when - datetime.now(when.tzinfo or UTC)).total_seconds()
            except (TypeError, ValueError):
                wanted = pause
        if wanted > self.max_pause_s:
            raise ModelError(
                f"{where}: the server asks to wait {wanted:.0f} s (status {answer.status}): run "
                "again then, answers so far are kept"
            )
        return max(0.0, wanted)

    def _read(self, answer: _Answer, where: str, sent: int) -> dict[str, Any]:
        if answer.status in (401, 403):
            raise ConfigError(
                f"{where}: the server refuses the key (status {answer.status}): set "
                f"{self.key_variable}"
            )
        if answer.status == 0:
            raise ModelError(
                f"{where}: no answer after {sent} requests ({answer.problem}): check that the "
                "server runs, or raise the time-out"
            )
        if answer.status == -1:
            raise ModelError(f"{where}: {answer.problem}: ask another server, or a smaller model")
        if 300 <= answer.status < 400:
            to = {name.lower(): value for name, value in answer.headers.items()}.get("location", "")
            raise ModelError(
                f"{where}: status {answer.status}, a redirect to {self._shown(to)!r}: none is "
                "followed, for it could take the key elsewhere: if you trust that URL, give it"
            )
        try:
            value = orjson.loads(answer.body)
        except orjson.JSONDecodeError:
            value = None
        if isinstance(value, dict):
            usage = value.get("usage")
            tokens = usage.get("total_tokens") if isinstance(usage, dict) else None
            if type(tokens) is int and tokens > 0:
                with self._lock:
                    self.tokens_used += tokens
        if answer.status != 200 or not isinstance(value, dict):
            raise ModelError(
                f"{where}: status {answer.status} after {sent} requests "
                f"({self._shown(answer.body)}): see the log of the server"
            )
        return value

    def _shown(self, said: object) -> str:
        """Shorten what a server said to one line for a message, without the key."""
        text = said.decode(errors="replace") if isinstance(said, bytes) else str(said)
        if key := os.environ.get(self.key_variable):
            for form in (key, quote(key, safe=""), orjson.dumps(key).decode()[1:-1]):
                text = text.replace(form, f"[{self.key_variable}]")
        return printable(" ".join(text.split())[:200], one_line=True)

    def _check_caps(self) -> None:
        if self.max_requests is not None and self.requests_sent >= self.max_requests:
            raise ConfigError(
                f"{self.url}: the cap of {self.max_requests} requests is reached: raise it and run "
                "again, answers so far are kept"
            )
        if self.max_tokens is not None and self.tokens_used >= self.max_tokens:
            raise ConfigError(
                f"{self.url}: the cap of {self.max_tokens} tokens is reached: raise it and run "
                "again, answers so far are kept"
            )

    def chat(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
        """Return what the model answers to a conversation."""
        answer = self.post("/chat/completions", {"messages": list(messages), **options})
        try:
            return str(answer["choices"][0]["message"]["content"] or "")
        except (KeyError, IndexError, TypeError) as error:
            raise ModelError(
                f"{self.url}: the answer holds no message ({self._shown(answer)}): check the URL"
            ) from error

    def embed(self, texts: Sequence[str]) -> Float32:
        """Return the vectors of N texts: float32 (N, D)."""
        answer = self.post("/embeddings", {"input": list(texts), "encoding_format": "float"})
        try:
            items = sorted(answer["data"], key=lambda item: item["index"])
            with np.errstate(over="ignore"):  # what overflows is refused below
                vectors = np.array([item["embedding"] for item in items], np.float32)
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"{self.url}: the answer holds no vectors ({self._shown(answer)}): check the URL"
            ) from error
        whole = vectors.ndim == 2 and len(vectors) == len(texts) and vectors.shape[1] > 0
        if not whole or not np.isfinite(vectors).all():
            raise ModelError(
                f"{self.url}: asked for {len(texts)} vectors, got values of shape {vectors.shape}, "
                "or some that are not finite: use a model for embeddings"
            )
        return vectors
