"""Batches of sequences of like length under a token budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pyids.chat.template import Encoded

if TYPE_CHECKING:
    import torch

# Called with the tokens done so far and the tokens in all.
Progress = Callable[[int, int], None]


def batches_by_length(
    lengths: Sequence[int] | NDArray[np.int64], batch_tokens: int
) -> list[NDArray[np.int64]]:
    """Group sequences so that ``rows x longest row <= batch_tokens`` in each batch.

    Sequences are taken longest first, equal lengths in their given order, so batches are dense and
    a batch that does not fit in memory is the first one. A sequence longer than the budget is a
    batch of its own.

    Parameters
    ----------
    lengths
        Tokens of each of the B sequences.
    batch_tokens
        The budget, at least 1.

    Returns
    -------
    list of int64 arrays
        Positions in ``lengths``; each position stands in exactly one batch.
    """
    if batch_tokens < 1:
        raise ValueError(f"batch_tokens must be at least 1, not {batch_tokens}")
    sizes = np.asarray(lengths, np.int64)
    order = np.argsort(-sizes, kind="stable")
    batches = []
    start = 0
    while start < len(order):
        rows = max(1, batch_tokens // max(1, int(sizes[order[start]])))
        batches.append(order[start : start + rows])
        start += rows
    return batches


def default_batch_tokens(device: str) -> int:
    """Return the token budget of a language model's batch: what is fastest, with little padding.

    On a CPU small batches win: activations stay in the cache, and rows of one length are rare.
    """
    return 512 if device == "cpu" else 16384


def trained_lengths(rows: Sequence[Encoded]) -> list[int]:
    """Return of how many tokens of each row a model is given in training.

    Nothing after the last response token matters, and that token itself is only predicted.
    """
    return [int(np.flatnonzero(row.response_mask)[-1]) for row in rows]


def packs_by_length(lengths: Sequence[int], batch_tokens: int) -> list[NDArray[np.int64]]:
    """Group sequences so that their tokens are at most ``batch_tokens`` in each pack.

    Longest first, each goes into the first pack that has room; a sequence longer than the budget is
    a pack of its own. Parameters and result are those of `batches_by_length`.
    """
    room: list[int] = []
    packs: list[list[int]] = []
    for i in np.argsort(-np.asarray(lengths, np.int64), kind="stable").tolist():
        at = next((n for n, left in enumerate(room) if left >= lengths[i]), len(packs))
        if at == len(packs):
            room.append(batch_tokens)
            packs.append([])
        room[at] -= lengths[i]
        packs[at].append(i)
    return [np.array(pack, np.int64) for pack in packs]


def micro_batches(
    rows: Sequence[Encoded], batch_tokens: int, pad_id: int, *, packed: bool = False
) -> list[dict[str, torch.Tensor]]:
    """Turn the rows of one step into padded tensors; padding stands on the right.

    Packed, the rows of a micro-batch stand one after the other in a single sequence, and its
    ``attention_mask`` holds the number of each token's row, from 1.
    """
    if packed:
        return _packs(rows, batch_tokens)
    import torch

    ends = trained_lengths(rows)
    micro = []
    for batch in batches_by_length(ends, batch_tokens):
        width = max(ends[i] for i in batch)
        input_ids = np.full((len(batch), width), pad_id, np.int64)
        attention_mask = np.zeros((len(batch), width), np.int64)
        targets = np.full((len(batch), width), -100, np.int64)
        for b, i in enumerate(batch):
            end = ends[i]
            input_ids[b, :end] = rows[i].input_ids[:end]
            attention_mask[b, :end] = 1
            targets[b, :end] = _targets(rows[i], end)
        arrays = {"input_ids": input_ids, "attention_mask": attention_mask, "targets": targets}
        micro.append({name: torch.from_numpy(array) for name, array in arrays.items()})
    return micro


def _targets(row: Encoded, end: int) -> NDArray[np.int64]:
    """Return what each of the first tokens of a row predicts, -100 where it is not learnt."""
    following = slice(1, end + 1)
    return np.where(row.response_mask[following], row.input_ids[following], -100)


def _packs(rows: Sequence[Encoded], batch_tokens: int) -> list[dict[str, torch.Tensor]]:
    import torch

    ends = trained_lengths(rows)
    micro = []
    for pack in packs_by_length(ends, batch_tokens):
        arrays = {
            "input_ids": np.concatenate([rows[i].input_ids[: ends[i]] for i in pack]),
            "attention_mask": np.repeat(np.arange(len(pack)) + 1, [ends[i] for i in pack]),
            "targets": np.concatenate([_targets(rows[i], ends[i]) for i in pack]),
        }
        micro.append({name: torch.from_numpy(array)[None] for name, array in arrays.items()})
    return micro


def plan_steps(rows: int, num_train_epochs: float, batch_size: int, seed: int) -> list[list[int]]:
    """Return the rows of each optimizer step, shuffled anew in each epoch; no step spans two."""
    steps: list[list[int]] = []
    left = max(1, round(num_train_epochs * rows))
    for epoch in range(math.ceil(left / rows)):
        order = np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(rows)
        order = order[: left - epoch * rows]
        steps += [order[i : i + batch_size].tolist() for i in range(0, len(order), batch_size)]
    return steps
