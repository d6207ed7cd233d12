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


def micro_batches(
    rows: Sequence[Encoded], batch_tokens: int, pad_id: int
) -> list[dict[str, torch.Tensor]]:
    """Turn the rows of one step into padded tensors; padding stands on the right."""
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
            response = rows[i].response_mask[1 : end + 1]
            targets[b, :end][response] = rows[i].input_ids[1 : end + 1][response]
        arrays = {"input_ids": input_ids, "attention_mask": attention_mask, "targets": targets}
        micro.append({name: torch.from_numpy(array) for name, array in arrays.items()})
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
