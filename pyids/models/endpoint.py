"""A client for servers that speak OpenAI's HTTP interface: chat completions and embeddings.

Requests that fail for a passing reason (429, 5xx, time-outs, broken connections) are sent again
after a growing pause, or the one that the server asks for. A cap on requests and tokens bounds what
a run can cost. The key is read from an environment variable, sent in one header, and appears in no
message, file or log.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from pyids._typing import Float32
from pyids.config import check_url
from pyids.errors import ConfigError, ModelError

if TYPE_CHECKING:
    import urllib3


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
    max_requests, max_length
        The caps: requests sent, the repeated ones too, and tokens as the server counts them. A
        request that would come after a cap was reached is not sent. None: no cap.
    retries
        How often a request is sent again.
    timeout_s
        Longest wait for a connection or for the next bytes, in seconds.
    pause_s
        First pause before sending again, in seconds; doubles each time, at most 60.
    workers
        Requests under way at once.
    """

    url: str
    model: str
    key_variable: str = "OPENAI_API_KEY"
    max_requests: int | None = None
    max_length: int | None = None
    retries: int = 5
    timeout_s: float = 120.0
    pause_s: float = 1.0
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
        retry = urllib3.Retry(
            total=self.retries,
            status_forcelist=(408, 409, 425, 429, 500, 502, 503, 504),
            allowed_methods=None,  # a POST too: asking again changes nothing on the server
            backoff_factor=self.pause_s,
            backoff_max=60,
            backoff_jitter=self.pause_s / 4,
            raise_on_status=False,
            redirect=0,  # a redirect could take the key elsewhere
        )
        return urllib3.PoolManager(
            maxsize=self.workers,
            retries=retry,
            timeout=urllib3.Timeout(total=None, connect=self.timeout_s, read=self.timeout_s),
        )

    def post(self, path: str, content: Mapping[str, Any]) -> Any:
        """Send a JSON value, with the model's name, and return the answer's.

        Raises
        ------
        ConfigError
            A cap was reached, or the server refuses the key.
        ModelError
            The server cannot be reached, refuses the request, or does not answer in JSON.
        """
        import urllib3

        with self._lock:
            self._check_caps()
            self.requests_sent += 1
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self.key_variable):
            headers["Authorization"] = f"Bearer {key}"
        where = f"{self.url}{path}"
        body = orjson.dumps({"model": self.model, **content})
        try:
            response = self._pool.request("POST", where, body=body, headers=headers)
        except urllib3.exceptions.HTTPError as error:
            with self._lock:
                self.requests_sent += self.retries
            reason = getattr(error, "reason", None) or error
            raise ModelError(
                f"{where}: no answer after {self.retries + 1} requests ({type(reason).__name__}): "
                "check that the server runs, or raise the time-out"
            ) from error
        repeated = len(response.retries.history) if response.retries else 0
        if response.status in (401, 403):
            raise ConfigError(
                f"{where}: the server refuses the key (status {response.status}): set "
                f"{self.key_variable}"
            )
        try:
            answer = orjson.loads(response.data)
        except orjson.JSONDecodeError:
            answer = None
        with self._lock:
            self.requests_sent += repeated
            if isinstance(answer, dict):
                self.tokens_used += int((answer.get("usage") or {}).get("total_tokens") or 0)
        if response.status != 200 or not isinstance(answer, dict):
            said = " ".join(response.data.decode(errors="replace").split())[:200]
            raise ModelError(
                f"{where}: status {response.status} after {repeated + 1} requests: {said}"
            )
        return answer

    def _check_caps(self) -> None:
        if self.max_requests is not None and self.requests_sent >= self.max_requests:
            raise ConfigError(
                f"{self.url}: the cap of {self.max_requests} requests is reached: raise it and run "
                "again, answers so far are kept"
            )
        if self.max_length is not None and self.tokens_used >= self.max_length:
            raise ConfigError(
                f"{self.url}: the cap of {self.max_length} tokens is reached: raise it and run "
                "again, answers so far are kept"
            )

    def chat(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
        """Return what the model answers to a conversation."""
        answer = self.post("/chat/completions", {"messages": list(messages), **options})
        try:
            return str(answer["choices"][0]["message"]["content"] or "")
        except (KeyError, IndexError, TypeError) as error:
            raise ModelError(
                f"{self.url}: the answer holds no message: {str(answer)[:200]}"
            ) from error

    def embed(self, texts: Sequence[str]) -> Float32:
        """Return the vectors of N texts: float32 (N, D)."""
        answer = self.post("/embeddings", {"input": list(texts), "encoding_format": "float"})
        try:
            items = sorted(answer["data"], key=lambda item: item["index"])
            vectors = np.array([item["embedding"] for item in items], np.float32)
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"{self.url}: the answer holds no vectors: {str(answer)[:200]}"
            ) from error
        if vectors.ndim != 2 or len(vectors) != len(texts) or not np.isfinite(vectors).all():
            raise ModelError(
                f"{self.url}: asked for {len(texts)} vectors, got values of shape {vectors.shape}, "
                "or some that are not finite"
            )
        return vectors
