"""Answers of servers, kept by content: what was paid or waited for is asked once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import orjson

from pyids.store.files import fingerprint, naming

if TYPE_CHECKING:
    from pyids.models.batching import Progress

Q = TypeVar("Q")


@dataclass
class Answers:
    """JSON values by key; one JSON object a line of a file to which they are appended.

    Attributes
    ----------
    path
        The file; None keeps them in memory.
    name
        What a value is called in a line.
    """

    path: Path | None
    name: str
    _known: dict[str, Any] = field(default_factory=dict, init=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.path is not None and self.path.exists():
            self._known = dict(self._read(self.path))

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def __getitem__(self, key: str) -> Any:
        return self._known[key]

    def keep(self, key: str, value: Any) -> None:
        """Keep a value, on the disk at once; any number of threads may."""
        with self._lock:
            self._known[key] = value
            if self.path is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with naming(self.path), self.path.open("ab") as file:
                    entry = {"key": key, self.name: value}
                    file.write(orjson.dumps({**entry, "xxh3": fingerprint(entry)}) + b"\n")

    def ask(
        self,
        questions: Mapping[str, Q],
        ask: Callable[[Q], Any],
        workers: int,
        progress: Progress | None = None,
    ) -> None:
        """Ask what is not known, several at a time, and keep each answer at once.

        Parameters
        ----------
        questions
            By key.
        ask
            Gives the answer to one, from any thread; what it raises is raised here, and no more is
            asked after it.
        workers
            Questions at a time.
        progress
            Called after each answer.
        """

        def settle(key: str) -> None:
            self.keep(key, ask(questions[key]))

        with ThreadPoolExecutor(workers) as pool:
            asked = [pool.submit(settle, key) for key in questions if key not in self]
            try:
                for done, answer in enumerate(as_completed(asked), 1):
                    answer.result()
                    if progress is not None:
                        progress(done, len(asked))
            finally:
                for answer in asked:
                    answer.cancel()

    def _read(self, path: Path) -> Iterator[tuple[str, Any]]:
        """Read the file; what is half written or damaged is skipped: it is asked again."""
        for line in path.read_bytes().split(b"\n"):
            try:
                entry = orjson.loads(line)
            except orjson.JSONDecodeError:
                continue
            if isinstance(entry, dict) and entry.pop("xxh3", None) == fingerprint(entry):
                yield entry["key"], entry[self.name]
