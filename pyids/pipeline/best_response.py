"""Of several answers to one prompt, keep the one that the base model finds likeliest.

Digests of the prompts are dealt to buckets on disk by their leading bits; each bucket is sorted by
itself; the rows that share a prompt are scored, so many at a time. All three are tasks of an
engine, and what is kept depends neither on it nor on the shards: a model rounds by the rows of a
batch, so that batches follow from the rows alone, and rows of the same content have one score.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyids._typing import Float64, Int64
from pyids.chat.digest import digest
from pyids.chat.formats import Turns, tools_of
from pyids.chat.template import Conversation
from pyids.config import RunConfig
from pyids.device import find_device, task_device
from pyids.engine import Engine, LocalEngine
from pyids.models.hf import torch_threads
from pyids.scoring.cache import CHUNK_ROWS, content_hash, score_rows
from pyids.scoring.signals import Perplexity
from pyids.store.arrays import join, map_npy
from pyids.store.files import save_array
from pyids.store.folder import Shard, Store
from pyids.store.ledger import load_npy, read_entry, save_npy
from pyids.store.reading import cut_shards, store_of

logger = logging.getLogger("pyids")

# Rows of a task that hashes prompts: some seconds.
_TASK_ROWS = 1 << 17
# About so many rows a bucket: some 100 MB while it is sorted.
_ROWS_PER_BUCKET = 1 << 19
# Rows of a task that scores: another number would be other batches.
_TASK_SCORED = 4 * CHUNK_ROWS


def other_responses(store: Store, config: RunConfig, engine: Engine | None = None) -> Int64:
    """Return the ids of the rows whose prompt has a likelier answer in another row, ascending.

    A prompt is all that stands before a row's last answer, tools included, as exact repeats are
    told. Likelier is the larger mean log-probability of the responses under ``model``; equal ones
    go to the lower row. Made once, in ``best_response/``, on `engine` or in this process.

    References
    ----------
    Zhang et al., "The Best Instruction-Tuning Data are Those That Fit" (GRAPE), arXiv 2502.04194.
    """
    if not config.best_response:
        return np.empty(0, np.int64)
    path = store.path / "best_response" / "left_out.npy"
    signal = Perplexity(config.model, max_length=config.max_length)
    inputs = {"signal": signal.identity, "rows": [store.fingerprint(s) for s in store.shards]}
    if read_entry(path.with_suffix(".json"), inputs) is None:
        left_out = _left_out(store, config, engine or LocalEngine())
        logger.info("left out %d rows with a likelier answer to the same prompt", len(left_out))
        if store.read_only:
            return left_out
        save_npy(path, left_out, inputs)
    return np.array(load_npy(path), np.int64)


def _left_out(store: Store, config: RunConfig, engine: Engine) -> Int64:
    # What lies beside a folder that is only read, other machines may not see.
    engine = LocalEngine() if store.read_only else engine
    store.scratch.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="best-response-", dir=store.scratch) as name:
        files = Path(name)
        buckets = _find_shared(store, engine, files)
        total = sum(int((rows == of).sum()) for rows, _, of in (b.T for b in buckets))
        parts = (_to_score(shard, buckets) for shard in store.shards)
        ids = join(parts, store.scratch, total, np.int64)
        scores = _likelihoods(store, config, engine, files, ids)
        likelihood = join(scores, store.scratch, total, np.float64)
        left_out = [np.empty(0, np.int64)]
        for rows, prompt, of in (bucket.T for bucket in buckets):
            found = likelihood[np.searchsorted(ids, of)]
            order = np.lexsort((rows, -np.where(np.isfinite(found), found, -np.inf), prompt))
            other = np.diff(prompt[order], prepend=-1) == 0
            left_out.append(rows[order[other]])
    return np.sort(np.concatenate(left_out))


def prompt_key(messages: Conversation) -> bytes | None:
    """Return a digest of what stands before the last answer; None where there is no answer."""
    answers = [n for n, message in enumerate(messages) if message["role"] == "assistant"]
    if not answers:
        return None
    return digest(Turns(map(dict, messages[: answers[-1]]), tools_of(messages)))


# ---- rows that share a prompt --------------------------------------------------------------------


def _find_shared(store: Store, engine: Engine, files: Path) -> list[Int64]:
    """Find the rows that share their prompt with others.

    Returns
    -------
    list of int64 arrays (n, 3)
        Mapped, one a bucket: ids of rows, ascending; of a row that stands for their prompt; and of
        the first row with this prompt and the same content.
    """
    bits = max(1, (store.kept // _ROWS_PER_BUCKET).bit_length())
    deals = [
        _Deal(str(store.path), store.deduplicated, shards, bits, str(files / f"dealt-{n}.npy"))
        for n, shards in enumerate(cut_shards(store.shards, _TASK_ROWS))
    ]
    ends = np.array(list(engine.map(deal_prompts, deals)), np.int64).reshape(-1, (1 << bits) + 1)
    finds = [
        _Find(str(files), tuple(map(tuple, ends[:, n : n + 2].tolist())), n)
        for n in range(1 << bits)
    ]
    return [map_npy(Path(path)) for path in engine.map(find_shared, finds)]


class _Deal(NamedTuple):
    """What `deal_prompts` needs: paths and numbers."""

    folder: str
    deduplicated: bool
    shards: tuple[Shard, ...]
    bits: int
    out: str


def deal_prompts(task: _Deal) -> list[int]:
    """Write the prompts of some shards bucket by bucket; return where each bucket starts.

    A row is two numbers of its prompt's digest, two of its content's, and its id; one without an
    answer is alike to no other.
    """
    store = store_of(task.folder, deduplicated=task.deduplicated)
    keys, ids = bytearray(), array("q")
    for shard in task.shards:
        for row in store.iter_rows(shard):
            if (key := prompt_key(row.messages)) is not None:
                keys += key + content_hash(row.messages).to_bytes(16, "big")
                ids.append(row.row_id)
    dealt = np.empty((len(ids), 5), np.uint64)
    dealt[:, :4] = np.frombuffer(keys, ">u8").reshape(-1, 4)
    dealt[:, 4] = ids
    bucket = (dealt[:, 0] >> np.uint64(64 - task.bits)).astype(np.intp)
    save_array(Path(task.out), dealt[np.argsort(bucket, kind="stable")])
    return [0, *np.cumsum(np.bincount(bucket, minlength=1 << task.bits)).tolist()]


class _Find(NamedTuple):
    """What `find_shared` needs: a bucket, and where it lies in the file of each deal."""

    files: str
    cuts: tuple[tuple[int, ...], ...]
    bucket: int


def find_shared(task: _Find) -> str:
    """Write which rows of a bucket share a prompt, see `_find_shared`; return the path."""
    parts = [np.empty((0, 5), np.uint64)]
    for number, (start, stop) in enumerate(task.cuts):
        parts.append(map_npy(Path(task.files, f"dealt-{number}.npy"))[start:stop])
    dealt = np.concatenate(parts)
    # Rows of one content stay as they are: ascending.
    dealt = dealt[np.lexsort(dealt[:, 3::-1].T)]
    rows = dealt[:, 4].astype(np.int64)
    prompt, content = (_runs(dealt[:, :columns]) for columns in (2, 4))
    shared = np.bincount(prompt)[prompt] > 1
    firsts = (rows[np.flatnonzero(np.diff(run, prepend=-1))][run] for run in (prompt, content))
    found = np.column_stack([rows, *firsts])[shared]
    out = Path(task.files, f"shared-{task.bucket}.npy")
    save_array(out, found[np.argsort(found[:, 0])])
    return str(out)


def _runs(keys: NDArray[np.uint64]) -> NDArray[np.intp]:
    """Give the number of the run of equal keys that each of some keys (n, C) lies in."""
    new = (keys[1:] != keys[:-1]).any(axis=1)
    return np.concatenate([np.zeros(min(1, len(keys)), np.intp), np.cumsum(new)])


def _to_score(shard: Shard, buckets: Sequence[Int64]) -> Int64:
    """Give the rows of a shard whose score decides: the first of each content; ids, ascending."""
    found = [np.empty(0, np.int64)]
    for bucket in buckets:
        first, last = np.searchsorted(bucket[:, 0], [shard.row_ids.start, shard.row_ids.stop])
        rows, _, of = bucket[first:last].T
        found.append(rows[rows == of])
    return np.sort(np.concatenate(found))


# ---- how likely their answers are ----------------------------------------------------------------


def _likelihoods(
    store: Store, config: RunConfig, engine: Engine, files: Path, ids: Int64
) -> Iterator[Float64]:
    """Give the mean log-probability of the responses of rows, ids ascending, some at a time."""
    firsts = np.array([shard.first_row_id for shard in store.shards], np.int64)

    def tasks() -> Iterator[_Score]:
        for number, start in enumerate(range(0, len(ids), _TASK_SCORED)):
            some = ids[start : start + _TASK_SCORED]
            first, last = np.searchsorted(firsts, some[[0, -1]], side="right")
            rows = files / f"rows-{number}.npy"
            save_array(rows, some)
            # Each task has a memory of its own: two workers never write to one.
            cache = store.path / "quality" / "cache" / "best-response" / f"{number:06d}"
            yield _Score(
                folder=str(store.path),
                shards=tuple(store.shards[first - 1 : last]),
                rows=str(rows),
                cache=None if store.read_only else str(cache),
                model=config.model,
                device=task_device(config),
                max_length=config.max_length,
                threads=config.threads,
            )

    yield from engine.map(score_shared, tasks(), gpu=config.device != "cpu")
    _signal.cache_clear()  # the model, where this process has scored


class _Score(NamedTuple):
    """What `score_shared` needs: paths and numbers."""

    folder: str
    shards: tuple[Shard, ...]
    rows: str
    cache: str | None
    model: str
    device: str
    max_length: int
    threads: int | None


def score_shared(task: _Score) -> Float64:
    """Give the mean log-probability of the responses of some rows; NaN where there is none."""
    rows = store_of(task.folder).read_rows(map_npy(Path(task.rows)))
    signal = _signal(task.model, task.device, task.max_length)
    cache = None if task.cache is None else Path(task.cache)
    with torch_threads(task.threads):
        return score_rows(signal, (row.messages for row in rows), cache=cache)


@lru_cache(maxsize=1)
def _signal(model: str, device: str, max_length: int) -> Perplexity:
    """Make the signal, once a process; its model is loaded with the first row."""
    return Perplexity(model, find_device(device), max_length)
