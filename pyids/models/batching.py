"""Batches of sequences of like length under a token budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

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
