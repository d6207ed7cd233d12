"""How good each row is: what weights rows inside clusters (kMQ) and ranks them (Deita, QDIT).

`score_rows` streams rows through a signal (`pyids.scoring.signals`) and remembers every
score by what the row holds, the signal and the model, so that nothing is scored twice: not after a
crash, not for a repeat, not under another clustering.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import xxhash
from numpy.typing import NDArray

from pyids._typing import Float64
from pyids.chat.formats import tools_of
from pyids.chat.render import has_loss, reasoning_of
from pyids.errors import DataError
from pyids.registry import SIGNALS
from pyids.scoring.propagate import rate_few
from pyids.scoring.row_weights import check_quality
from pyids.scoring.signals import Signal, make_signal

if TYPE_CHECKING:
    from pyids.chat.template import Conversation
    from pyids.store.folder import Store


# Rows scored between two writes of the cache: what a crash can cost.
CHUNK_ROWS = 1024


_CACHED = np.dtype([("high", "<u8"), ("low", "<u8"), ("value", "<f8")])


# ---- scoring with a memory -----------------------------------------------------------------------


def content_hash(row: Conversation) -> int:
    """128 bits of all that a signal may see of a conversation."""
    turns: list[Any] = [[m["role"], m.get("content"), m.get("tool_calls")] for m in row]
    # Few turns have more: the others keep the hash that they had before this was read.
    for turn, message in zip(turns, row, strict=True):
        more = [reasoning_of(message), has_loss(message) or turn[0] != "assistant"]
        turn += more if more != ["", True] else []
    return xxhash.xxh3_128_intdigest(orjson.dumps([turns, tools_of(row)]))


@dataclass
class Cache:
    """Scores by content, in the files of one folder; one folder a signal.

    A file is a chunk of scores, written once, atomically.
    """

    folder: Path
    _known: dict[int, float] = field(default_factory=dict, init=False)
    _files: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        from pyids.errors import DamagedError
        from pyids.store.ledger import load_npy

        for file in sorted(self.folder.glob("*.npy")):
            self._files = max(self._files, int(file.stem) + 1 if file.stem.isdecimal() else 0)
            try:
                chunk = load_npy(file)
            except DamagedError:
                continue  # its rows are scored again
            keys = (
                (int(h) << 64) | int(low)
                for h, low in zip(chunk["high"], chunk["low"], strict=True)
            )
            self._known.update(zip(keys, chunk["value"].tolist(), strict=True))

    def get(self, key: int) -> float | None:
        """Return the score of a content, None if it is not known."""
        return self._known.get(key)

    def add(self, keys: Sequence[int], values: Float64) -> None:
        """Keep scores, on the disk at once."""
        from pyids.store.ledger import save_npy

        chunk = np.empty(len(keys), _CACHED)
        chunk["high"] = [key >> 64 for key in keys]
        chunk["low"] = [key & (2**64 - 1) for key in keys]
        chunk["value"] = values
        self.folder.mkdir(parents=True, exist_ok=True)
        save_npy(self.folder / f"{self._files:05d}.npy", chunk, {"signal": self.folder.name})
        self._files += 1
        self._known.update(zip(keys, values.tolist(), strict=True))


def score_rows(
    signal: Signal, rows: Iterable[Conversation], *, cache: Path | None = None
) -> Float64:
    """Score rows, each content once.

    Parameters
    ----------
    signal : Signal
        What scores.
    rows : iterable of conversations
        Streamed: `CHUNK_ROWS` of them are in memory.
    cache : Path, optional
        The folder in which the scores of any signal are kept.

    Returns
    -------
    float64 array of shape (N,)
        NaN where a row has no score.
    """
    from pyids.store.files import fingerprint

    folder = None if cache is None else cache / fingerprint(signal.identity)[:16]
    memory = Cache(folder) if folder else None
    values: list[float] = []
    for chunk in _chunks(rows):
        keys = [content_hash(row) for row in chunk]
        known = {key: value for key in keys if memory and (value := memory.get(key)) is not None}
        # A dictionary, so that a content that stands twice in the chunk is scored once.
        new = {key: row for key, row in zip(keys, chunk, strict=True) if key not in known}
        if new:
            scores = signal.score(list(new.values()))
            if memory:
                memory.add(list(new), scores)
            known |= dict(zip(new, scores.tolist(), strict=True))
        values += [known[key] for key in keys]
    return np.array(values, np.float64)


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
) -> Float64:
    """Return the quality of the kept rows of a run folder.

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

    Returns
    -------
    float64 array of shape (N,)
        In the order of the row ids.

    Raises
    ------
    DataError
        A value is missing or not a finite number, or all are equal.
    """
    if signal is None:
        signal = make_signal(spec, default_model=default_model, device=device, system=system)
    ids = np.concatenate([store.row_ids(shard) for shard in store.shards])
    cache = None if store.read_only else store.path / "quality" / "cache"
    if signal is None:
        quality = np.array(list(_column(store, spec)), np.float64)
    elif half_width is not None:
        asked = signal

        def rate(rows: NDArray[np.int64]) -> Float64:
            found = (row.messages for row in store.read_rows(ids[rows]))
            return score_rows(asked, found, cache=cache)

        labels = np.concatenate(store.labels())
        quality = rate_few(rate, labels, ids, half_width=half_width, seed=seed)
    else:
        rows = (row for shard in store.shards for row in store.iter_messages(shard))
        quality = score_rows(signal, rows, cache=cache)
    check_quality(quality, ids)
    return quality


def _column(store: Store, name: str) -> Iterator[float]:
    for shard in store.shards:
        for row in store.iter_rows(shard):
            value = row.record.get(name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                what = "has no" if value is None else f"holds {value!r} in"
                raise DataError(
                    f"{row.path}: row {row.line} {what} column {name!r}: quality must be a number "
                    "in every row; name a numeric column, or a signal "
                    f"({', '.join(SIGNALS.names())})"
                )
            yield float(value)


def _chunks(rows: Iterable[Conversation]) -> Iterator[list[Conversation]]:
    iterator = iter(rows)
    while chunk := list(islice(iterator, CHUNK_ROWS)):
        yield chunk
