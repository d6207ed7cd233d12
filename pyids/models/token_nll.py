"""The negative log-likelihood of every response token by itself, also with noisy embeddings."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import xxhash

from pyids._typing import Float64
from pyids.chat.template import Encoded
from pyids.models.batching import batches_by_length, default_batch_tokens
from pyids.models.lm_head import Head


def token_nlls(
    model: Any,
    rows: Sequence[Encoded],
    *,
    batch_tokens: int | None = None,
    device: str = "cpu",
    noise: float = 0.0,
    seed: int = 0,
) -> list[Float64]:
    """Return the NLL of each response token of each row, in nats.

    Parameters
    ----------
    rows
        Tokens and which of them are responses.
    noise
        To each entry of an embedding is added a uniform number of at most ``noise / sqrt(T H)`` for
        T tokens of H dimensions, keyed by `seed` and the row's tokens: what stands beside a row
        changes nothing.

    Returns
    -------
    list of float64 arrays
        One entry a response token; empty for a row without any.
    """
    import torch

    head = Head.of(model)
    for row in rows:
        head.limits.check(row.input_ids)
    spans = [np.flatnonzero(row.response_mask[1:]) for row in rows]
    found = [np.empty(0) for _ in rows]
    scored = [i for i, span in enumerate(spans) if len(span)]
    lengths = [int(spans[i][-1]) + 1 for i in scored]
    tokens = batch_tokens or default_batch_tokens(device)
    with torch.inference_mode():
        for batch in batches_by_length(lengths, tokens if head.pads else 1):
            members = [scored[b] for b in batch.tolist()]
            ids = torch.zeros(len(members), lengths[batch[0]], dtype=torch.int64)
            mask = torch.zeros_like(ids)
            targets = torch.full_like(ids, -100)
            for b, i in enumerate(members):
                size = int(spans[i][-1]) + 1
                ids[b, :size] = torch.from_numpy(rows[i].input_ids[:size])
                mask[b, :size] = 1
                targets[b, spans[i]] = torch.from_numpy(rows[i].input_ids[spans[i] + 1])
            with _noisy(model, ids, mask, noise, seed) if noise else contextlib.nullcontext():
                nll = head.nll(ids.to(device), mask.to(device), targets.to(device))
            ends = np.cumsum([len(spans[i]) for i in members])
            parts = np.split(nll.double().cpu().numpy(), ends[:-1])
            for i, part in zip(members, parts, strict=True):
                found[i] = part
    return found


@contextlib.contextmanager
def _noisy(model: Any, ids: Any, mask: Any, noise: float, seed: int) -> Iterator[None]:
    """Add to the embeddings of a batch, while the block runs, each row's own noise."""
    import torch

    def add(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        drawn = torch.zeros(output.shape)
        for b, size in enumerate(mask.sum(1).tolist()):
            key = xxhash.xxh3_64_intdigest(ids[b, :size].numpy().tobytes(), seed) >> 1
            generator = torch.Generator().manual_seed(key)
            uniform = torch.rand(size, output.shape[-1], generator=generator) * 2 - 1
            drawn[b, :size] = uniform * (noise / (size * output.shape[-1]) ** 0.5)
        return output + drawn.to(output)

    handle = model.get_input_embeddings().register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()
