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
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pyids import finetune, lm, ops
from pyids.batching import Progress, batches_by_length, default_batch_tokens
from pyids.chat import Conversation, Encoded, encode, retell
from pyids.errors import ConfigError
from pyids.evidence import cluster_moments, robust_spread
from pyids.generation import generate, split_last
from pyids.gradients import row_gradients

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]


class Rater(Protocol):
    """Gives conversations marks: a reward model (`pyids.reward`), a judge."""

    def rate(
        self, conversations: Sequence[Conversation], progress: Progress | None = None
    ) -> Float64:
        """Return a mark for the last turn of each conversation, NaN where there is none."""
        ...


@dataclass(frozen=True)
class ScoringOptions:
    """What every scorer needs to know.

    Attributes
    ----------
    max_tokens
        Longest row (`pyids.chat.truncate`).
    batch_tokens
        Tokens of a forward pass with its padding: speed, not values; None for the device's default.
    max_new_tokens
        Longest answer of the scorers that let the checkpoint answer.
    rater
        Who rates answers for `rating`: a reward model, a judge.
    seed
        Of the gradients' sketch.
    progress
        Called after each batch of a pass over the rows.
    """

    max_tokens: int = 2048
    batch_tokens: int | None = None
    max_new_tokens: int = 128
    rater: Rater | None = None
    seed: int = 0
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
    temperature
        The score that multiplies a weight by e; None: to be taken from the spread of the scores.
    """

    values: Float64
    columns: dict[str, Float64] = field(default_factory=dict)
    temperature: float | None = None


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
    max_tokens: int = 2048,
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
    max_tokens
        See `pyids.chat.truncate`.
    batch_tokens
        Tokens of a forward pass with its padding: memory and speed, not values. By default
        `pyids.batching.default_batch_tokens`.

    Returns
    -------
    mean_nll : float64 (B,)
        In nats; NaN for a row without response tokens.
    counts : int64 (B,)
        Response tokens of each row.
    """
    encoded = [encode(messages, tokenizer, max_tokens) for messages in conversations]
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
    progress: Progress | None = None,
) -> ResponseNll:
    """Do what `response_nll` does, for conversations that are tokens already."""
    import torch

    if padding_side not in ("left", "right"):
        raise ValueError(f"padding_side must be 'left' or 'right', not {padding_side!r}")
    head = lm.Head.of(model)
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
            shared = head.remember(first.to(device))
            begin = begin if shared is not None else 0
        lengths = [ends[i] - begin for i in scored]
        for batch in batches_by_length(lengths, batch_tokens or default_batch_tokens(device)):
            members = scored[batch]
            width = lengths[batch[0]]
            input_ids = np.zeros((len(members), width), np.int64)
            attention_mask = np.zeros((len(members), width), np.int64)
            targets = np.full((len(members), width), -100, np.int64)
            for b, i in enumerate(members):
                size = ends[i] - begin
                at = slice(0, size) if padding_side == "right" else slice(width - size, width)
                nxt = slice(begin + 1, ends[i] + 1)
                input_ids[b, at] = rows[i].input_ids[begin : ends[i]]
                attention_mask[b, at] = 1
                targets[b, at] = np.where(rows[i].response_mask[nxt], rows[i].input_ids[nxt], -100)
            hidden = head.hidden(
                torch.from_numpy(input_ids).to(device),
                torch.from_numpy(attention_mask).to(device),
                shared,
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
            bounds = np.concatenate([[0], np.cumsum(counts[members])])
            means[members] = (
                ops.example_nll(nll, wanted, torch.from_numpy(bounds).to(device))[0].cpu().numpy()
            )
            last[members] = nll.cpu().numpy()[bounds[1:] - 1]
            done += sum(lengths[i] for i in batch)
            if progress is not None:
                progress(done, sum(lengths))
    return ResponseNll(means, counts, last)


def _shared_tokens(rows: Sequence[Encoded], first_targets: Sequence[int]) -> int:
    """Return with how many tokens all rows begin alike, where it pays; none of them is a target."""
    if len(rows) < 4:
        return 0
    most = min(first_targets)
    beginnings = np.stack([row.input_ids[:most] for row in rows])
    length = int((beginnings == beginnings[0]).all(0).cumprod().sum())
    return length if length >= 8 else 0


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
    """

    models: Models
    rows: Sequence[Conversation]
    clusters: NDArray[np.int32]
    options: ScoringOptions

    @cached_property
    def base_nll(self) -> Float64:
        """The base model's NLL of each row."""
        with self.models.base() as (model, tokenizer):
            return self._nll(model, tokenizer, self.rows)[0]

    @cached_property
    def _checkpoint(self) -> tuple[Float64, Int64]:
        with self.models.trained() as (model, tokenizer):
            return self._nll(model, tokenizer, self.rows)

    @cached_property
    def checkpoint_nll(self) -> Float64:
        """The checkpoint's NLL of each row."""
        return self._checkpoint[0]

    @cached_property
    def response_tokens(self) -> Float64:
        """How many tokens of each row have a loss: what the mean NLLs are means of."""
        return self._checkpoint[1].astype(np.float64)

    @cached_property
    def response_alone_nll(self) -> Float64:
        """The checkpoint's NLL of each response without its prompt."""
        with self.models.trained() as (_, tokenizer):
            bos = tokenizer.bos_token_id
            begin = (bos if bos is not None else tokenizer.eos_token_id) or 0
        return self.encoded_nll([response_alone(row, begin) for row in self.encode(self.rows)])

    @property
    def columns(self) -> dict[str, Float64]:
        """Both NLLs, under the names that runs keep them by."""
        return {"base_nll": self.base_nll, "checkpoint_nll": self.checkpoint_nll}

    @cached_property
    def answers(self) -> list[Conversation]:
        """Each row with the last assistant turn as the checkpoint would have it.

        A row without an assistant turn stays as it is.
        """
        splits = [split_last(messages) for messages in self.rows]
        with self.models.trained() as (model, tokenizer):
            texts = iter(
                generate(
                    model,
                    tokenizer,
                    [split[0] for split in splits if split],
                    max_tokens=self.options.max_tokens,
                    max_new_tokens=self.options.max_new_tokens,
                    device=self.models.device,
                    progress=self.options.progress,
                )
            )
        return [
            _answered(split[0], next(texts)) if split else messages
            for split, messages in zip(splits, self.rows, strict=True)
        ]

    @cached_property
    def references(self) -> list[Conversation]:
        """Each row up to its last assistant turn."""
        return [
            _answered(*split) if split else messages
            for messages in self.rows
            for split in [split_last(messages)]
        ]

    def encoded_nll(self, rows: Sequence[Encoded]) -> Float64:
        """Return the checkpoint's NLL of rows that are tokens already."""
        with self.models.trained() as (model, _):
            return encoded_nll(
                model,
                rows,
                batch_tokens=self.options.batch_tokens,
                device=self.models.device,
                progress=self.options.progress,
            ).mean

    def encode(self, rows: Sequence[Conversation]) -> list[Encoded]:
        """Turn rows into tokens."""
        with self.models.trained() as (_, tokenizer):
            return [encode(messages, tokenizer, self.options.max_tokens) for messages in rows]

    def _nll(
        self, model: Any, tokenizer: Any, rows: Sequence[Conversation]
    ) -> tuple[Float64, Int64]:
        return response_nll(
            model,
            tokenizer,
            rows,
            max_tokens=self.options.max_tokens,
            batch_tokens=self.options.batch_tokens,
            device=self.models.device,
            progress=self.options.progress,
        )


def _answered(prompt: Conversation, answer: str) -> Conversation:
    return retell(prompt, [*prompt, {"role": "assistant", "content": answer}])


def score(
    scorer: str,
    models: Models,
    rows: Sequence[Conversation],
    clusters: NDArray[np.int32],
    options: ScoringOptions | None = None,
) -> Scores:
    """Score probe rows with a scorer of `SCORERS`.

    Parameters
    ----------
    scorer
        A key of `SCORERS`.
    models, rows, clusters, options
        See `Probes`.
    """
    if scorer not in SCORERS:
        raise ValueError(f"scorer must be one of {', '.join(SCORERS)}, not {scorer!r}")
    if len(rows) != len(clusters):
        raise ValueError(f"{len(rows)} rows and {len(clusters)} clusters do not match")
    return SCORERS[scorer](Probes(models, rows, clusters, options or ScoringOptions()))


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


def ifd(probes: Probes) -> Scores:
    """Return NLL(response | prompt) / NLL(response): how little the prompt helps.

    The instruction-following difficulty of Li et al. (arXiv 2308.12032), under the checkpoint. The
    response alone follows the tokenizer's beginning-of-text token. Above 1 the prompt misleads
    (a swapped answer, noise): such rows are left out in the paper and count 0 here.
    """
    alone = probes.response_alone_nll
    ratio = probes.checkpoint_nll / np.maximum(alone, 1e-6)
    columns = {"checkpoint_nll": probes.checkpoint_nll, "response_nll": alone, "ifd": ratio}
    return Scores(np.where(ratio > 1, 0.0, ratio), columns)


def relevance(probes: Probes) -> Scores:
    """Return NLL(response) - NLL(response | prompt): by how many nats a token the prompt helps.

    The pointwise mutual information of prompt and response under the checkpoint. Where the answer
    does not follow from the question (noise, boilerplate, another alphabet) the prompt helps
    little, however well or badly the model has learnt to say such answers.
    """
    alone = probes.response_alone_nll
    columns = {"checkpoint_nll": probes.checkpoint_nll, "response_nll": alone}
    return Scores(alone - probes.checkpoint_nll, columns)


def response_alone(row: Encoded, bos: int) -> Encoded:
    """Keep a row's response tokens only, after one token that begins the text."""
    kept = row.input_ids[1:][row.response_mask[1:]]
    return Encoded(np.concatenate([[bos], kept]), np.arange(len(kept) + 1) > 0)


def perplexity(probes: Probes) -> Scores:
    """Return -log(PPL(generated) / PPL(gold)): the paper's Eq. 7.

    Both are the last assistant turn given what stands before it, under the checkpoint, whose greedy
    answer the generated one is.
    """
    gold = probes.encoded_nll([last_response(row) for row in probes.encode(probes.references)])
    ours = probes.encoded_nll([last_response(row) for row in probes.encode(probes.answers)])
    return Scores(gold - ours, {"gold_nll": gold, "generated_nll": ours})


def last_response(row: Encoded) -> Encoded:
    """Keep the mask of a row's last response only."""
    holes = np.flatnonzero(~row.response_mask[: int(row.response_mask.nonzero()[0].max(initial=0))])
    start = holes.max(initial=-1) + 1
    return Encoded(row.input_ids, row.response_mask & (np.arange(len(row.input_ids)) >= start))


def rating(probes: Probes) -> Scores:
    """Return mark(gold) - mark(generated): the paper's Eq. 4 with a reward model or a judge."""
    rater = probes.options.rater
    if rater is None:
        raise ConfigError("this scorer needs a reward model or a judge: name one")
    generated, progress = probes.answers, probes.options.progress
    probes.models.close()  # room for the rater
    gold = np.asarray(rater.rate(probes.references, progress), np.float64)
    ours = np.asarray(rater.rate(generated, progress), np.float64)
    return Scores(gold - ours, {"gold_mark": gold, "generated_mark": ours})


def alignment(probes: Probes) -> Scores:
    """Return the cosine of each row's gradient and the mean gradient of the other clusters.

    A step that helps the row then helps the rest too; the gradients of garbage point nowhere in
    common. Row gradients have unit length, so that long or noisy rows do not lead; each cluster
    counts once in the mean. Kin: LESS (arXiv 2402.04333).
    """
    with probes.models.trained() as (model, _):
        gradients = row_gradients(
            model,
            probes.encode(probes.rows),
            seed=probes.options.seed,
            device=probes.models.device,
            progress=probes.options.progress,
        ).astype(np.float64)
    learnt = gradients.any(1)
    _, cluster = np.unique(probes.clusters, return_inverse=True)
    counts = np.bincount(cluster[learnt], minlength=cluster.max(initial=-1) + 1)
    means = np.zeros((len(counts), gradients.shape[1]))
    np.add.at(means, cluster, gradients)
    means /= np.maximum(counts, 1)[:, None]
    others = means.sum(0) - means[cluster]
    length = np.linalg.norm(others, axis=1)
    cosine = (gradients * others).sum(1) / np.maximum(length, 1e-30)
    return Scores(np.where(learnt & (length > 0), cosine, np.nan))


# What these were chosen on is in docs/log.md.
_LEARNT, _NOISE, _FORM, _LIMIT, _ENOUGH_HELP, _HELP = 0.3, 1.5, 4.0, 5.0, 2 / 3, 12.0


def sound_learnability(probes: Probes) -> Scores:
    """Return how learnable a cluster is, within limits, less three signs that it is garbage.

    Let d be the cluster's mean drop of the loss, s that of the loss summed over the response, and c
    its mean loss under the checkpoint, all in robust standard deviations over the clusters; h the
    share of the response's loss that the prompt saves (1 - IFD) and m its median. The score is
    ``0.3 min(max(d, -1), 4)``, so that no skill gets lost, and less by

    - ``4 max(c - 1.5, 0)``: noise stays surprising;
    - ``max(min(d, s) - 4, 0)``: mere form (boilerplate, another alphabet) is learnt at once, at
      least by a model that knows few forms, and there is much of it, unlike in a label of one word;
    - ``12 m max(2/3 m - max(h, 0), 0)``: garbage does not follow from its prompts, as a model tells
      that reads them; m says how well it does.

    The first two count for 5 at most. No one of the signs serves every model.
    """
    given, alone = probes.checkpoint_nll, probes.response_alone_nll
    drop = probes.base_nll - given
    _, cluster = np.unique(probes.clusters, return_inverse=True)
    loss_left = _cluster_means(given, cluster)
    d = _deviations(_cluster_means(drop, cluster))
    s = _deviations(_cluster_means(drop * probes.response_tokens, cluster))
    noise = np.clip(4 * (_deviations(loss_left) - _NOISE), 0, _LIMIT)
    form = np.clip(np.minimum(d, s) - _FORM, 0, _LIMIT)
    saved = 1 - loss_left / np.maximum(_cluster_means(alone, cluster), 1e-6)
    h = np.maximum(saved, 0)
    m = np.median(h[np.isfinite(h)]) if np.isfinite(h).any() else 0.0
    unhelped = np.nan_to_num(np.maximum(_ENOUGH_HELP * m - h, 0))
    score = _LEARNT * np.clip(d, -1, 4) - noise - form - _HELP * m * unhelped
    values = np.where(np.isfinite(drop), score[cluster], np.nan)
    columns = {
        **probes.columns,
        "response_nll": alone,
        "response_tokens": probes.response_tokens,
    }
    return Scores(values, columns, temperature=1.0)


def _cluster_means(values: Float64, cluster: NDArray[np.intp]) -> Float64:
    """Return each cluster's mean over its finite values; NaN where it has none."""
    known = np.isfinite(values)
    size = int(cluster.max(initial=-1)) + 1
    return cluster_moments(values[known], cluster[known].astype(np.int32), size)[0]


def _deviations(means: Float64) -> Float64:
    """Return values as robust standard deviations from their median; 0 for NaN."""
    there = means[np.isfinite(means)]
    if not len(there):
        return np.zeros(len(means))
    median = np.median(there)
    spread = robust_spread(there - median)
    return np.nan_to_num((means - median) / spread) if spread > 0 else np.zeros(len(means))


Scorer = Callable[[Probes], Scores]

SCORERS: dict[str, Scorer] = {
    "sound-learnability": sound_learnability,
    "learnability": learnability,
    "relative-learnability": relative_learnability,
    "centred-learnability": centred_learnability,
    "relevance": relevance,
    "loss": loss,
    "ifd": ifd,
    "perplexity": perplexity,
    "reward": rating,
    "judge": rating,
    "alignment": alignment,
}
