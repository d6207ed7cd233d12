"""Scores of probe rows under a base model and a checkpoint trained from it.

Everything rests on `response_nll`: the mean NLL of each row's response tokens, from hidden states
times the LM head at those tokens alone, never the whole logits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyids import finetune, lm, ops
from pyids.batching import Progress, batches_by_length
from pyids.chat import Conversation, Encoded, encode

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class ScoringOptions:
    """What every scorer needs to know.

    Attributes
    ----------
    max_tokens
        Longest row (`pyids.chat.truncate`).
    batch_tokens
        Tokens of a forward pass with its padding; does not change the scores.
    progress
        Called after each batch of a pass over the rows.
    """

    max_tokens: int = 2048
    batch_tokens: int = 2048
    progress: Progress | None = None


@dataclass(frozen=True)
class Scores:
    """What a scorer says about the probe rows.

    Attributes
    ----------
    values
        float64 (B,): higher means that the row's cluster deserves more. NaN where the row has no
        response token.
    columns
        What the values were made of, float64 (B,) each, to be kept beside them.
    """

    values: Float64
    columns: dict[str, Float64] = field(default_factory=dict)


@dataclass(frozen=True)
class Models:
    """A base model and a checkpoint trained from it; one of them is in memory at a time.

    With a LoRA checkpoint both are one model, with its adapter off or on.
    """

    ref: lm.ModelRef
    checkpoint: Path
    device: str = "cpu"
    dtype: str = "float32"
    _held: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @contextlib.contextmanager
    def base(self) -> Iterator[tuple[PreTrainedModel, PreTrainedTokenizerBase]]:
        """Give the base model and its tokenizer."""
        if finetune.read_record(self.checkpoint).method == "lora":
            model, tokenizer = self._load("trained")
            with model.disable_adapter():
                yield model, tokenizer
        else:
            yield self._load("base")

    @contextlib.contextmanager
    def trained(self) -> Iterator[tuple[PreTrainedModel, PreTrainedTokenizerBase]]:
        """Give the checkpoint and its tokenizer."""
        yield self._load("trained")

    def close(self) -> None:
        """Let go of the model in memory."""
        self._held.clear()

    def _load(self, which: str) -> Any:
        if which not in self._held:
            self._held.clear()
            where = (self.device, self.dtype)
            self._held[which] = (
                lm.load_model(self.ref, *where)
                if which == "base"
                else finetune.load_checkpoint(self.checkpoint, self.ref, *where)
            )
        return self._held[which]


def response_nll(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Conversation],
    *,
    max_tokens: int = 2048,
    batch_tokens: int = 2048,
    device: str = "cpu",
    padding_side: str = "right",
    progress: Progress | None = None,
) -> tuple[Float64, NDArray[np.int64]]:
    """Return each conversation's mean NLL over its response tokens.

    The naive code: run one conversation through the model, take log-softmax of the logits at the
    position before each response token, and average the negatives of the tokens' entries.

    A row's result does not depend on the rows beside it, on the batch or on the padding side,
    beyond rounding (1e-4 in float32).

    Parameters
    ----------
    conversations
        B rows of messages.
    max_tokens
        See `pyids.chat.truncate`.
    batch_tokens
        Tokens of a forward pass with its padding: memory, not values.

    Returns
    -------
    mean_nll : float64 (B,)
        In nats; NaN for a row without response tokens.
    counts : int64 (B,)
        Response tokens of each row.
    """
    encoded = [encode(messages, tokenizer, max_tokens) for messages in conversations]
    return encoded_nll(
        model,
        encoded,
        batch_tokens=batch_tokens,
        device=device,
        padding_side=padding_side,
        progress=progress,
    )


def encoded_nll(
    model: PreTrainedModel,
    rows: Sequence[Encoded],
    *,
    batch_tokens: int = 2048,
    device: str = "cpu",
    padding_side: str = "right",
    progress: Progress | None = None,
) -> tuple[Float64, NDArray[np.int64]]:
    """Do what `response_nll` does, for conversations that are tokens already."""
    import torch

    if padding_side not in ("left", "right"):
        raise ValueError(f"padding_side must be 'left' or 'right', not {padding_side!r}")
    head = lm.Head.of(model)
    # Nothing after the last response token matters, and that token itself is only predicted.
    ends = [
        int(np.flatnonzero(row.response_mask[1:])[-1]) + 1 if row.response_mask[1:].any() else 0
        for row in rows
    ]
    means = np.full(len(rows), np.nan)
    counts = np.zeros(len(rows), np.int64)
    scored = np.flatnonzero(ends)
    lengths = [ends[i] for i in scored]
    done, total = 0, sum(lengths)
    with torch.inference_mode():
        for batch in batches_by_length(lengths, batch_tokens):
            members = scored[batch]
            width = max(ends[i] for i in members)
            input_ids = np.zeros((len(members), width), np.int64)
            attention_mask = np.zeros((len(members), width), np.int64)
            targets = np.full((len(members), width), -100, np.int64)
            for b, i in enumerate(members):
                at = slice(0, ends[i]) if padding_side == "right" else slice(width - ends[i], width)
                nxt = slice(1, ends[i] + 1)
                input_ids[b, at] = rows[i].input_ids[: ends[i]]
                attention_mask[b, at] = 1
                targets[b, at] = np.where(rows[i].response_mask[nxt], rows[i].input_ids[nxt], -100)
            hidden = head.hidden(
                torch.from_numpy(input_ids).to(device), torch.from_numpy(attention_mask).to(device)
            )
            chosen = targets != -100
            counts[members] = chosen.sum(1)
            wanted = torch.from_numpy(targets[chosen]).to(device)
            nll = ops.token_nll(
                hidden[torch.from_numpy(chosen).to(device)],
                head.weight,
                wanted,
                bias=head.bias,
                softcap=head.softcap,
            )
            bounds = torch.from_numpy(np.concatenate([[0], np.cumsum(counts[members])]))
            means[members] = ops.example_nll(nll, wanted, bounds.to(device))[0].cpu().numpy()
            done += sum(ends[i] for i in members)
            if progress is not None:
                progress(done, total)
    return means, counts


# ---- round scorers -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Probes:
    """What a scorer gets: the probe rows of a round and the two models.

    Attributes
    ----------
    models
        The base model and the round's checkpoint.
    rows
        B rows of messages that the checkpoint was not trained on.
    clusters
        int32 (B,): the cluster of each row.
    options
        See `ScoringOptions`.
    known_base_nll
        float64 (B,): the base model's NLLs from an earlier round, NaN where there is none.
    """

    models: Models
    rows: Sequence[Conversation]
    clusters: NDArray[np.int32]
    options: ScoringOptions
    known_base_nll: Float64

    @cached_property
    def base_nll(self) -> Float64:
        """The base model's NLL of each row; only what is not known is computed."""
        base = self.known_base_nll.copy()
        missing = np.flatnonzero(np.isnan(base)).tolist()
        if missing:
            with self.models.base() as (model, tokenizer):
                base[missing] = self._nll(model, tokenizer, [self.rows[i] for i in missing])
        return base

    @cached_property
    def checkpoint_nll(self) -> Float64:
        """The checkpoint's NLL of each row."""
        with self.models.trained() as (model, tokenizer):
            return self._nll(model, tokenizer, self.rows)

    @property
    def columns(self) -> dict[str, Float64]:
        """Both NLLs, under the names that runs keep them by."""
        return {"base_nll": self.base_nll, "checkpoint_nll": self.checkpoint_nll}

    def _nll(self, model: Any, tokenizer: Any, rows: Sequence[Conversation]) -> Float64:
        return response_nll(
            model,
            tokenizer,
            rows,
            max_tokens=self.options.max_tokens,
            batch_tokens=self.options.batch_tokens,
            device=self.models.device,
            progress=self.options.progress,
        )[0]


def score(
    scorer: str,
    models: Models,
    rows: Sequence[Conversation],
    clusters: NDArray[np.int32],
    options: ScoringOptions | None = None,
    *,
    base_nll: Float64 | None = None,
) -> Scores:
    """Score probe rows with a scorer of `SCORERS`.

    Parameters
    ----------
    scorer
        A key of `SCORERS`.
    models, rows, clusters, options
        See `Probes`.
    base_nll
        float64 (B,): the base model's NLLs from an earlier round, NaN where there is none; only
        those are computed.
    """
    if scorer not in SCORERS:
        raise ValueError(f"scorer must be one of {', '.join(SCORERS)}, not {scorer!r}")
    known = np.full(len(rows), np.nan) if base_nll is None else np.asarray(base_nll, np.float64)
    if not len(rows) == len(clusters) == len(known):
        raise ValueError(
            f"{len(rows)} rows, {len(clusters)} clusters and {len(known)} base NLLs do not match"
        )
    return SCORERS[scorer](Probes(models, rows, clusters, options or ScoringOptions(), known))


def learnability(probes: Probes) -> Scores:
    """Return base - checkpoint: what the training so far has taught about rows it did not see."""
    return Scores(probes.base_nll - probes.checkpoint_nll, probes.columns)


def relative_learnability(probes: Probes) -> Scores:
    """Return (base - checkpoint) / base: a high loss leaves more to drop, so count the share."""
    base = probes.base_nll
    return Scores((base - probes.checkpoint_nll) / np.maximum(base, 1e-6), probes.columns)


def centred_learnability(probes: Probes) -> Scores:
    """Return base - checkpoint, less what the base loss alone predicts over all probe rows.

    Training lowers the loss of any consistent format, and more where the loss is higher. A
    least-squares line of the drop on the base loss carries that part; what is left is the row's
    own.
    """
    base = probes.base_nll
    drop = base - probes.checkpoint_nll
    known = np.isfinite(drop)
    if known.any():
        x = base[known] - base[known].mean()
        slope = x @ drop[known] / (x @ x) if x @ x > 0 else 0.0
        drop[known] -= drop[known].mean() + slope * x
    return Scores(drop, probes.columns)


def loss(probes: Probes) -> Scores:
    """Return the checkpoint's NLL: what the model still cannot say scores high."""
    nll = probes.checkpoint_nll
    return Scores(nll, {"checkpoint_nll": nll})


Scorer = Callable[[Probes], Scores]

SCORERS: dict[str, Scorer] = {
    "learnability": learnability,
    "relative-learnability": relative_learnability,
    "centred-learnability": centred_learnability,
    "loss": loss,
}
