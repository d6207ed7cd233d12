"""How good each row is: what weights rows inside clusters (kMQ) and ranks them (Deita, QDIT).

`store_quality` rates the rows of a run folder shard by shard, on any engine; `score_rows` streams
rows through a signal (`pyids.scoring.signals`). Every score is remembered by what the row holds,
the signal and the model, so that nothing is scored twice: not after a crash, not for a repeat, not
under another clustering.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import orjson
import xxhash
from numpy.typing import NDArray

from pyids._typing import Float64
from pyids.chat.digest import BOOKKEEPING
from pyids.chat.formats import tools_of
from pyids.chat.render import REASONING_KEYS, has_loss, reasoning_of
from pyids.device import find_device
from pyids.engine import Engine, LocalEngine
from pyids.errors import DataError
from pyids.models.hf import torch_threads
from pyids.progress import report
from pyids.registry import SIGNALS
from pyids.scoring.propagate import rate_few
from pyids.scoring.row_weights import check_quality
from pyids.scoring.signals import Signal, make_signal

if TYPE_CHECKING:
    from pyids.chat.template import Conversation
    from pyids.store.folder import Shard, Store


# Rows scored between two writes of the cache: what a crash can cost.
CHUNK_ROWS = 1024


# Scores that are sorted together, and small files that are made one.
SEGMENT_ROWS = 1 << 20
_SMALL_FILES = 64


_CACHED = np.dtype([("high", "<u8"), ("low", "<u8"), ("value", "<f8")])


# ---- scoring with a memory -----------------------------------------------------------------------


# What is hashed by itself, or is given to no model.
_HASHED = BOOKKEEPING | {*REASONING_KEYS, "role", "content", "tool_calls", "weight"}


def content_hash(row: Conversation) -> int:
    """128 bits of all that a signal may see of a conversation."""
    turns: list[Any] = [[m["role"], m.get("content"), m.get("tool_calls")] for m in row]
    # Few turns have more: the others keep the hash that they had before this was read.
    for turn, message in zip(turns, row, strict=True):
        if len(message) == 2:
            continue
        more = [reasoning_of(message), has_loss(message) or turn[0] != "assistant"]
        turn += more if more != ["", True] else []
        # What else a template may show, such as a name.
        turn += sorted((k, v) for k, v in message.items() if k not in _HASHED and v)
    return xxhash.xxh3_128_intdigest(orjson.dumps([turns, tools_of(row)]))


class _Segment(NamedTuple):
    """Scores sorted by content; its columns are mapped."""

    high: NDArray[np.uint64]
    low: NDArray[np.uint64]
    value: Float64


@dataclass
class Cache:
    """Scores by content, in the files of one folder; one folder a signal.

    A file is a chunk of scores, written once, atomically; many small ones become one. What is known
    is looked up in segments, sorted by content, that lie in files without a name: memory holds no
    more than `SEGMENT_ROWS` of them.
    """

    folder: Path
    _segments: list[_Segment] = field(default_factory=list, init=False)
    _recent: dict[int, float] = field(default_factory=dict, init=False)
    _small: list[Path] = field(default_factory=list, init=False)
    _files: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        from pyids.errors import DamagedError
        from pyids.store.ledger import load_npy

        waiting: list[NDArray[Any]] = []
        for file in sorted(self.folder.glob("*.npy")):
            self._files = max(self._files, int(file.stem) + 1 if file.stem.isdecimal() else 0)
            try:
                chunk = load_npy(file)
            except DamagedError:
                continue  # its rows are scored again
            if len(chunk) <= CHUNK_ROWS:
                self._small.append(file)
            waiting.append(chunk)
            if sum(map(len, waiting)) >= SEGMENT_ROWS:
                self._add_segment(waiting)
                waiting = []
        if waiting:
            self._add_segment(waiting)

    def find(self, keys: Sequence[int]) -> dict[int, float]:
        """Return the scores of those contents that are known."""
        found = {key: self._recent[key] for key in keys if key in self._recent}
        wanted = _as_chunk([key for key in keys if key not in found])
        for segment in self._segments:
            at, some = np.searchsorted(segment.high, wanted["high"]), wanted
            # Contents of the same leading 64 bits lie one after the other.
            while len(some):
                held = np.minimum(at, len(segment.high) - 1)
                same = (at < len(segment.high)) & (segment.high[held] == some["high"])
                hit = same & (segment.low[held] == some["low"])
                values = segment.value[held[hit]].tolist()
                found.update(zip(map(_key, some[hit]), values, strict=True))
                at, some = at[same & ~hit] + 1, some[same & ~hit]
            if len(found) == len(keys):
                break
        return found

    def add(self, keys: Sequence[int], values: Float64) -> None:
        """Keep scores, on the disk at once."""
        chunk = _as_chunk(keys)
        chunk["value"] = values
        self.folder.mkdir(parents=True, exist_ok=True)
        self._small.append(self._write(chunk))
        if len(self._small) >= _SMALL_FILES:
            self._merge_small()
        self._recent.update(zip(keys, values.tolist(), strict=True))
        if len(self._recent) >= SEGMENT_ROWS:
            recent = _as_chunk(list(self._recent))
            recent["value"] = list(self._recent.values())
            self._add_segment([recent])
            self._recent.clear()

    def _write(self, chunk: NDArray[Any]) -> Path:
        from pyids.store.ledger import save_npy

        path = self.folder / f"{self._files:05d}.npy"
        save_npy(path, chunk, {"signal": self.folder.name})
        self._files += 1
        return path

    def _merge_small(self) -> None:
        """Make one file of many: no folder is to hold tens of thousands."""
        from pyids.store.ledger import load_npy

        self._write(np.concatenate([load_npy(path) for path in self._small]))
        for path in self._small:
            path.unlink()
            path.with_suffix(".json").unlink()
        self._small.clear()

    def _add_segment(self, chunks: list[NDArray[Any]]) -> None:
        from pyids.store.arrays import join

        whole = np.concatenate(chunks)
        whole = whole[np.lexsort((whole["low"], whole["high"]))]
        columns = (np.ascontiguousarray(whole[name]) for name in _Segment._fields)
        folder = self.folder / ".segments"
        self._segments.append(
            _Segment(*(join([column], folder, len(column), column.dtype) for column in columns))
        )


def _as_chunk(keys: Sequence[int]) -> NDArray[Any]:
    chunk = np.zeros(len(keys), _CACHED)
    chunk["high"] = [key >> 64 for key in keys]
    chunk["low"] = [key & (2**64 - 1) for key in keys]
    return chunk


def _key(row: Any) -> int:
    return int(row["high"]) << 64 | int(row["low"])


def score_rows(
    signal: Signal, rows: Iterable[Conversation], *, cache: Path | None = None
) -> Float64:
    """Score rows, each content once; see `score_chunks`, which gives them as they come.

    Returns
    -------
    float64 array of shape (N,)
        NaN where a row has no score.
    """
    chunks = score_chunks(signal, rows, cache=cache)
    return np.concatenate([np.empty(0, np.float64), *chunks])


def score_chunks(
    signal: Signal, rows: Iterable[Conversation], *, cache: Path | None = None
) -> Iterator[Float64]:
    """Score rows, each content once.

    Parameters
    ----------
    signal : Signal
        What scores.
    rows : iterable of conversations
        Streamed: `CHUNK_ROWS` of them are in memory.
    cache : Path, optional
        The folder in which the scores of any signal are kept.

    Yields
    ------
    float64 array of shape (n,)
        Of some rows; NaN where a row has no score.
    """
    from pyids.store.files import fingerprint

    folder = None if cache is None else cache / fingerprint(signal.identity)[:16]
    memory = Cache(folder) if folder else None
    for chunk in _chunks(rows):
        keys = [content_hash(row) for row in chunk]
        known = memory.find(keys) if memory else {}
        # A dictionary, so that a content that stands twice in the chunk is scored once.
        new = {key: row for key, row in zip(keys, chunk, strict=True) if key not in known}
        if new:
            scores = signal.score(list(new.values()))
            if memory:
                memory.add(list(new), scores)
            known |= dict(zip(new, scores.tolist(), strict=True))
        yield np.array([known[key] for key in keys], np.float64)


def store_quality(
    store: Store,
    spec: str,
    *,
    default_model: str,
    device: str = "cpu",
    system: str = "error",
    signal: Signal | None = None,
    half_width: float | None = None,
    seed: int = 0,
    engine: Engine | None = None,
    threads: int | None = None,
) -> Float64:
    """Return the quality of the kept rows of a run folder.

    Every shard is rated by itself, so the numbers are the same for any engine and any number of
    its workers. What a server is asked for (`signal`) is asked from this process.

    Parameters
    ----------
    store : Store
        Scores are cached in ``quality/cache``.
    spec : str
        A signal (see `make_signal`) or a column of the data set.
    default_model, device, system : str
        See `make_signal`.
    signal : Signal, optional
        What scores, instead of what `spec` names.
    half_width, seed : float and int, optional
        Score only some rows of each cluster; see `pyids.scoring.propagate.rate_few`.
    engine : Engine, optional
        Where rows are rated; by default this process.
    threads : int, optional
        Threads of a language model.

    Returns
    -------
    float64 array of shape (N,)
        In the order of the row ids.

    Raises
    ------
    DataError
        A value is missing or not a finite number, or all are equal.
    """
    from pyids.store.arrays import join

    def joined(parts: Iterable[NDArray[Any]], dtype: Any) -> NDArray[Any]:
        return join(parts, store.scratch, store.kept, dtype)

    ids = joined(map(store.row_ids, store.shards), np.int64)
    cache = None if store.read_only else store.path / "quality" / "cache"
    how = _How(spec, default_model, device, system)
    asked = _signal(how) if signal is None and half_width is not None else signal
    if asked is not None and half_width is not None:
        asks = asked

        def rate(rows: NDArray[np.int64]) -> Float64:
            found = (row.messages for row in store.read_rows(ids[rows]))
            with _threads(asks, threads):
                return score_rows(asks, found, cache=cache)

        labels = joined(store.labels(), np.int32)
        quality = rate_few(rate, labels, ids, half_width=half_width, seed=seed)
    elif asked is not None:
        rows = (row for shard in store.shards for row in store.iter_messages(shard))
        with _threads(asked, threads):
            quality = joined(score_chunks(asked, rows, cache=cache), np.float64)
    else:
        tasks = [
            _RateTask(str(store.path), shard, store.deduplicated, how, cache is not None, threads)
            for shard in store.shards
        ]
        parts = (engine or LocalEngine()).map(_rate_shard, tasks, gpu=device != "cpu")
        quality = joined(_counted(parts, store.kept), np.float64)
    _signal.cache_clear()  # the model, where this process has rated
    check_quality(quality, ids)
    return quality


class _How(NamedTuple):
    """What makes the signal: see `make_signal`."""

    spec: str
    default_model: str
    device: str
    system: str


class _RateTask(NamedTuple):
    """What `_rate_shard` needs: paths and numbers."""

    folder: str
    shard: Shard
    deduplicated: bool
    how: _How
    remember: bool
    threads: int | None


def _rate_shard(task: _RateTask) -> Float64:
    """Rate the kept rows of one shard: one number a row, by ascending row id."""
    from pyids.store.reading import store_of

    store = store_of(task.folder, deduplicated=task.deduplicated)
    signal = _signal(task.how)
    if signal is None:
        return _column(store, task.shard, task.how.spec)
    # Each shard has a memory of its own: two workers never write to one.
    cache = store.path / "quality" / "cache" / task.shard.name if task.remember else None
    chunks = score_chunks(signal, store.iter_messages(task.shard), cache=cache)
    with _threads(signal, task.threads):
        return np.concatenate([np.empty(0, np.float64), *chunks])


def _threads(signal: Signal, threads: int | None) -> AbstractContextManager[None]:
    """Let a signal that is computed by torch use so many threads; others do not import it."""
    return torch_threads(threads if hasattr(signal, "device") else None)


@lru_cache(maxsize=1)
def _signal(how: _How) -> Signal | None:
    """Make a signal, once a process; its model is loaded with the first row."""
    spec, *rest = how
    options = dict(zip(("default_model", "device", "system"), rest, strict=True))
    signal = make_signal(spec, **options | {"device": "cpu"})
    # Looking for a device imports torch, which a column or the length has no use for.
    if how.device != "cpu" and hasattr(signal, "device"):
        signal = make_signal(spec, **options | {"device": find_device(how.device)})
    return signal


def _counted(parts: Iterable[Float64], total: int) -> Iterator[Float64]:
    """Say after each shard how many rows are rated."""
    done = 0
    for part in parts:
        done += len(part)
        report("rate", done, total)
        yield part


def _column(store: Store, shard: Shard, name: str) -> Float64:
    """Read a column of numbers."""
    values = array("d")
    for row in store.iter_rows(shard):
        value = row.record.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            what = "has no" if value is None else f"holds {value!r} in"
            raise DataError(
                f"{row.path}: row {row.line} {what} column {name!r}: quality must be a number "
                "in every row; name a numeric column, or a signal "
                f"({', '.join(SIGNALS.names())})"
            )
        values.append(float(value))
    return np.frombuffer(values, np.float64) if values else np.empty(0)


def _chunks(rows: Iterable[Conversation]) -> Iterator[list[Conversation]]:
    iterator = iter(rows)
    while chunk := list(islice(iterator, CHUNK_ROWS)):
        yield chunk
