"""The negative log-likelihood of responses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyids._typing import Float64, Int64
from pyids.chat.template import Conversation, Encoded, encode
from pyids.models.batching import Progress, batches_by_length, default_batch_tokens
from pyids.models.lm_head import Head
from pyids.ops import example_nll

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class ResponseNll(NamedTuple):
    """What `encoded_nll` returns, for B rows.

    Attributes
    ----------
    mean : float64 (B,), mean NLL of the response tokens in nats; NaN for a row without any.
    counts : int64 (B,), response tokens.
    end : float64 (B,), NLL of the last response token alone.
    """

    mean: Float64
    counts: NDArray[np.int64]
    end: Float64


def response_nll(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Conversation],
    *,
    max_length: int = 2048,
    batch_tokens: int | None = None,
    device: str = "cpu",
    padding_side: str = "right",
    progress: Progress | None = None,
) -> tuple[Float64, Int64]:
    """Return each conversation's mean NLL over its response tokens.

    The naive code: run one conversation through the model, take log-softmax of the logits at the
    position before each response token, and average the negatives of the tokens' entries.

    A row's result does not depend on the rows beside it, on the batch or on the padding side,
    beyond rounding (1e-4 in float32).

    Parameters
    ----------
    conversations
        B rows of messages.
    max_length
        See `pyids.chat.template.truncate`.
    batch_tokens
        Tokens of a forward pass with its padding: memory and speed, not values. By default
        `pyids.models.batching.default_batch_tokens`.

    Returns
    -------
    mean_nll : float64 (B,)
        In nats; NaN for a row without response tokens.
    counts : int64 (B,)
        Response tokens of each row.
    """
    encoded = [encode(messages, tokenizer, max_length) for messages in conversations]
    nll = encoded_nll(
        model,
        encoded,
        batch_tokens=batch_tokens,
        device=device,
        padding_side=padding_side,
        progress=progress,
    )
    return nll.mean, nll.counts


def encoded_nll(
    model: PreTrainedModel,
    rows: Sequence[Encoded],
    *,
    batch_tokens: int | None = None,
    device: str = "cpu",
    padding_side: str = "right",
    part: tuple[int, int] = (0, 1),
    progress: Progress | None = None,
) -> ResponseNll:
    """Do what `response_nll` does, for conversations that are tokens already.

    Of the batches only every n-th is done, from the i-th on, where `part` is (i, n): the other rows
    are as if they had no response token. The parts together are the whole, to the bit.
    """
    import torch

    if padding_side not in ("left", "right"):
        raise ValueError(f"padding_side must be 'left' or 'right', not {padding_side!r}")
    head = Head.of(model)
    for row in rows:
        head.limits.check(row.input_ids)
    # Nothing after the last response token matters, and that token itself is only predicted.
    spans = [np.flatnonzero(row.response_mask[1:]) for row in rows]
    ends = [int(span[-1]) + 1 if len(span) else 0 for span in spans]
    means, last = np.full(len(rows), np.nan), np.full(len(rows), np.nan)
    counts = np.zeros(len(rows), np.int64)
    scored = np.flatnonzero(ends)
    done = 0
    with torch.inference_mode():
        # Rows of one model tend to begin alike (a system prompt): that part is computed once.
        begin = _shared_tokens(
            [rows[i] for i in scored.tolist()], [int(spans[i][0]) for i in scored.tolist()]
        )
        shared = None
        if begin:
            first = torch.from_numpy(rows[int(scored[0])].input_ids[:begin])
            shared = head.prefill(first.to(device))
            begin = begin if shared is not None else 0
        lengths = [ends[i] - begin for i in scored]
        tokens = batch_tokens or default_batch_tokens(device)
        batches = batches_by_length(lengths, tokens if head.pads else 1)
        for batch in batches[part[0] :: part[1]]:
            members = scored[batch]
            input_ids, attention_mask, targets = _batch(
                [rows[i] for i in members], [ends[i] for i in members], begin, padding_side
            )
            nll = head.nll(
                torch.from_numpy(input_ids).to(device),
                torch.from_numpy(attention_mask).to(device),
                torch.from_numpy(targets).to(device),
                shared,
            )
            chosen = targets != -100
            counts[members] = chosen.sum(1)
            wanted = torch.from_numpy(targets[chosen]).to(device)
            bounds = np.concatenate([[0], np.cumsum(counts[members])])
            means[members] = (
                example_nll(nll, wanted, torch.from_numpy(bounds).to(device))[0].cpu().numpy()
            )
            last[members] = nll.cpu().numpy()[bounds[1:] - 1]
            done += sum(lengths[i] for i in batch)
            if progress is not None:
                progress(done, sum(lengths))
    return ResponseNll(means, counts, last)


def _batch(
    rows: Sequence[Encoded], ends: Sequence[int], begin: int, padding_side: str
) -> tuple[Int64, Int64, Int64]:
    """Return the tokens from `begin` to each row's end, their mask, and what each predicts."""
    shape = (len(rows), max(ends) - begin)
    input_ids, attention_mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    targets = np.full(shape, -100, np.int64)
    for b, (row, end) in enumerate(zip(rows, ends, strict=True)):
        size = end - begin
        at = slice(0, size) if padding_side == "right" else slice(shape[1] - size, shape[1])
        following = slice(begin + 1, end + 1)
        input_ids[b, at] = row.input_ids[begin:end]
        attention_mask[b, at] = 1
        wanted = row.response_mask[following]
        targets[b, at] = np.where(wanted, row.input_ids[following], -100)
    return input_ids, attention_mask, targets


def _shared_tokens(rows: Sequence[Encoded], first_targets: Sequence[int]) -> int:
    """Return with how many tokens all rows begin alike, where it pays; none of them is a target."""
    if len(rows) < 4:
        return 0
    most = min(first_targets)
    beginnings = np.stack([row.input_ids[:most] for row in rows])
    length = int((beginnings == beginnings[0]).all(0).cumprod().sum())
    return length if length >= 8 else 0
