"""Of several answers to one prompt, keep the one that the base model finds likeliest."""

from __future__ import annotations

import logging

import numpy as np

from pyids._typing import Int64
from pyids.chat.digest import digest
from pyids.chat.formats import Turns, tools_of
from pyids.chat.template import Conversation
from pyids.config import RunConfig
from pyids.device import device
from pyids.scoring.cache import score_rows
from pyids.scoring.signals import Perplexity
from pyids.store.folder import Store
from pyids.store.ledger import load_npy, read_entry, save_npy

logger = logging.getLogger("pyids")


def other_responses(store: Store, config: RunConfig) -> Int64:
    """Return the ids of the rows whose prompt has a likelier answer in another row, ascending.

    A prompt is all that stands before a row's last answer, tools included, as exact repeats are
    told. Likelier is the larger mean log-probability of the responses under ``model``; equal ones
    go to the lower row. Made once, in ``best_response/``.

    References
    ----------
    Zhang et al., "The Best Instruction-Tuning Data are Those That Fit" (GRAPE), arXiv 2502.04194.
    """
    if not config.best_response:
        return np.empty(0, np.int64)
    path = store.path / "best_response" / "left_out.npy"
    signal = Perplexity(config.model, device(config), config.max_length)
    inputs = {"signal": signal.identity, "rows": [store.fingerprint(s) for s in store.shards]}
    if read_entry(path.with_suffix(".json"), inputs) is None:
        left_out = _left_out(store, signal)
        save_npy(path, left_out, inputs)
        logger.info("left out %d rows with a likelier answer to the same prompt", len(left_out))
    return np.array(load_npy(path), np.int64)


def _left_out(store: Store, signal: Perplexity) -> Int64:
    rows = (row for shard in store.shards for row in store.iter_rows(shard))
    # Rows without an answer are alike to no other.
    keys = b"".join(prompt_key(r.messages) or r.row_id.to_bytes(16, "big") for r in rows)
    ids = np.concatenate([np.empty(0, np.int64), *map(store.row_ids, store.shards)])
    _, group, sizes = np.unique(
        np.frombuffer(keys, ">u8").reshape(-1, 2), axis=0, return_inverse=True, return_counts=True
    )
    group = group.ravel()
    shared = np.flatnonzero(sizes[group] > 1)
    conversations = (row.messages for row in store.read_rows(ids[shared]))
    likelihood = score_rows(signal, conversations, cache=store.path / "quality" / "cache")
    likelihood = np.where(np.isfinite(likelihood), likelihood, -np.inf)
    order = np.lexsort((shared, -likelihood, group[shared]))
    first = np.diff(group[shared][order], prepend=-1) != 0
    return np.sort(ids[shared[order[~first]]])


def prompt_key(messages: Conversation) -> bytes | None:
    """Return a digest of what stands before the last answer; None where there is no answer."""
    answers = [n for n, message in enumerate(messages) if message["role"] == "assistant"]
    if not answers:
        return None
    return digest(Turns(map(dict, messages[: answers[-1]]), tools_of(messages)))
