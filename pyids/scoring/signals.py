"""Signals of how good a row is: each turns conversations into one number each, higher is better.

`pyids.scoring.cache` streams rows through them and makes weights and ranks of what they say.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
import xxhash

from pyids._typing import Float64
from pyids.errors import ConfigError, ModelError
from pyids.registry import SIGNALS, find_module

if TYPE_CHECKING:
    from pyids.chat.template import Conversation, Encoded
    from pyids.models.reward import RewardModel


class Signal(Protocol):
    """What scores rows."""

    @property
    def identity(self) -> dict[str, Any]:
        """JSON values that decide the scores: name, model, options."""
        ...

    def score(self, rows: Sequence[Conversation]) -> Float64:
        """Return one number a row, NaN where it has none; whatever the rows beside it."""
        ...


@dataclass(frozen=True)
class Length:
    """Response length: characters that the assistant wrote."""

    name: ClassVar[str] = "length"

    @property
    def identity(self) -> dict[str, Any]:
        """See `Signal`."""
        return {"signal": self.name}

    def score(self, rows: Sequence[Conversation]) -> Float64:
        """See `Signal`."""
        return np.array(
            [
                sum(len(m.get("content") or "") for m in row if m["role"] == "assistant")
                for row in rows
            ],
            np.float64,
        )


@dataclass(frozen=True)
class LanguageModelSignal:
    """What the signals of a causal language model share.

    Attributes
    ----------
    model
        See `pyids.models.hub.resolve_model`.
    device, max_length, batch_tokens
        Where it runs, the longest row, and the tokens of a forward pass.
    system
        See `pyids.models.hub.ModelRef`.
    """

    model: str
    device: str = "cpu"
    max_length: int = 1024
    batch_tokens: int = 4096
    system: str = "error"
    name: ClassVar[str] = ""

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        from pyids.models.hub import resolve_model
        from pyids.models.load import load_model

        return load_model(replace(resolve_model(self.model), system=self.system), self.device)

    @property
    def identity(self) -> dict[str, Any]:
        """See `Signal`."""
        return {
            "signal": self.name,
            "model": model_identity(self.model),
            "tokens": self.max_length,
            **({} if self.system == "error" else {"system": self.system}),
        }

    def _nll(self, rows: Sequence[Encoded]) -> Float64:
        from pyids.models.nll import encoded_nll

        model, _ = self._loaded
        return encoded_nll(model, rows, batch_tokens=self.batch_tokens, device=self.device).mean

    def _encode(self, rows: Sequence[Conversation]) -> list[Encoded]:
        from pyids.chat.template import encode

        _, tokenizer = self._loaded
        return [encode(row, tokenizer, self.max_length) for row in rows]


@dataclass(frozen=True)
class Perplexity(LanguageModelSignal):
    """Minus the log perplexity of the responses: what the model finds fluent counts as good."""

    name: ClassVar[str] = "perplexity"

    def score(self, rows: Sequence[Conversation]) -> Float64:
        """See `Signal`."""
        return -self._nll(self._encode(rows))


@dataclass(frozen=True)
class Ifd(LanguageModelSignal):
    """Instruction-following difficulty: NLL(y | x) / NLL(y), high where the prompt helps little.

    NLL(y) is that of the response tokens after the model's beginning-of-text token alone. Above 1
    the prompt misleads: such rows count 0 (Li et al., arXiv 2308.12032).
    """

    name: ClassVar[str] = "ifd"

    def score(self, rows: Sequence[Conversation]) -> Float64:
        """See `Signal`."""
        from pyids.chat.template import response_alone

        _, tokenizer = self._loaded
        start = tokenizer.bos_token_id
        start = tokenizer.eos_token_id if start is None else start
        given = self._encode(rows)
        alone = self._nll([response_alone(row, start or 0) for row in given])
        ratio: Float64 = self._nll(given) / np.maximum(alone, 1e-6)
        return np.where(ratio > 1, 0.0, ratio)


COMPLEXITY_PROMPT = (
    "Rate how demanding the following request is, from 1 (trivial) to 6 (very demanding).\n\n"
    "Request:\n{prompt}\n\nRating:"
)


QUALITY_PROMPT = (
    "Rate how well the answer serves the request, from 1 (useless) to 6 (excellent).\n\n"
    "Request:\n{prompt}\n\nAnswer:\n{response}\n\nRating:"
)


@dataclass(frozen=True)
class Deita(LanguageModelSignal):
    """Complexity of the prompt times quality of the response, summed over the turns.

    Each is the expected value of the ratings 1 to 6 under the softmax over the logits of their
    tokens, where the prompt asks for one (Liu et al., arXiv 2312.15685). Any causal language model
    answers; one that was trained to rate answers well, with its own prompts. Prompts and responses
    are cut on their right so that a row has at most `max_length`.

    Attributes
    ----------
    complexity_model
        The model that rates prompts, where it is not the one that rates answers.
    complexity_prompt, quality_prompt
        With ``{prompt}``, and ``{prompt}`` and ``{response}``; the rating follows at the end.
    """

    complexity_model: str | None = None
    complexity_prompt: str = COMPLEXITY_PROMPT
    quality_prompt: str = QUALITY_PROMPT
    name: ClassVar[str] = "deita"

    @property
    def identity(self) -> dict[str, Any]:
        """See `Signal`."""
        identity = {**super().identity, "prompts": [self.complexity_prompt, self.quality_prompt]}
        if self.complexity_model is not None:
            identity["complexity_model"] = model_identity(self.complexity_model)
        return identity

    @cached_property
    def _complexity(self) -> Deita:
        """Who rates prompts."""
        other = self.complexity_model
        return self if other is None else replace(self, model=other, complexity_model=None)

    def score(self, rows: Sequence[Conversation]) -> Float64:
        """See `Signal`."""
        prompts, answers, owners = [], [], []
        for i, row in enumerate(rows):
            for prompt, response in _turns(row):
                prompt, response = self._cut(prompt), self._cut(response)
                prompts.append(self.complexity_prompt.format(prompt=prompt))
                answers.append(self.quality_prompt.format(prompt=prompt, response=response))
                owners.append(i)
        scores = np.full(len(rows), np.nan)
        if owners:
            complexity = self._complexity.expected_ratings(prompts)
            scores[np.unique(owners)] = 0.0
            np.add.at(scores, owners, complexity * self.expected_ratings(answers))
        return scores

    def _cut(self, text: str) -> str:
        _, tokenizer = self._loaded
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        most = max(1, (self.max_length - 64) // 2)  # 64: about what the instructions take
        return text if len(ids) <= most else str(tokenizer.decode(ids[:most]))

    def expected_ratings(self, texts: Sequence[str]) -> Float64:
        """Return ``sum_k k * p(k)`` over the ratings 1 to 6 that may follow each text."""
        import torch

        from pyids.models.batching import batches_by_length
        from pyids.models.lm_head import Head

        model, tokenizer = self._loaded
        head = Head.of(model)
        digits = torch.tensor(self._digit_ids(), device=self.device)
        ids = [tokenizer(text)["input_ids"] for text in texts]
        lengths = [len(row) for row in ids]
        ratings = np.empty(len(texts))
        with torch.inference_mode():
            for batch in batches_by_length(lengths, self.batch_tokens if head.pads else 1):
                width = max(lengths[i] for i in batch)
                input_ids = torch.zeros(len(batch), width, dtype=torch.int64)
                mask = torch.zeros(len(batch), width, dtype=torch.int64)
                for b, i in enumerate(batch):
                    input_ids[b, : lengths[i]] = torch.tensor(ids[i])
                    mask[b, : lengths[i]] = 1
                chosen = torch.zeros(len(batch), width, dtype=torch.bool)
                chosen[range(len(batch)), [lengths[i] - 1 for i in batch]] = True
                logits = head.logits_at(
                    input_ids.to(self.device), mask.to(self.device), chosen.to(self.device)
                )[:, digits].double()
                values = torch.arange(1, 7, dtype=torch.float64, device=self.device)
                ratings[batch] = (logits.softmax(-1) @ values).cpu().numpy()
        return ratings

    def _digit_ids(self) -> list[int]:
        """Return the tokens of " 1" to " 6" as they follow the prompt's end."""
        _, tokenizer = self._loaded
        before = tokenizer("Rating:", add_special_tokens=False)["input_ids"]
        after = [
            tokenizer(f"Rating: {digit}", add_special_tokens=False)["input_ids"][len(before) :]
            for digit in range(1, 7)
        ]
        # " 1" is one token, or a space that all share and then the digit.
        ids = [tokens[-1] for tokens in after]
        if len({tuple(tokens[:-1]) for tokens in after}) > 1 or len(set(ids)) < 6:
            raise ModelError(
                f"model {self.model!r} has no tokens of their own for the ratings 1 to 6: choose "
                "another model for the deita signal"
            )
        return ids


@dataclass(frozen=True)
class Reward:
    """The reward that a model gives the conversation (see `pyids.models.reward`).

    Attributes
    ----------
    model
        A sequence classifier; see `pyids.models.hub.resolve_model`.
    device
        A torch device.
    """

    model: str
    device: str = "cpu"
    name: ClassVar[str] = "reward"

    @cached_property
    def _loaded(self) -> RewardModel:
        from pyids.models.hub import resolve_model
        from pyids.models.reward import RewardModel

        return RewardModel(resolve_model(self.model, kind="reward model"), device=self.device)

    @property
    def identity(self) -> dict[str, Any]:
        """See `Signal`."""
        return {"signal": self.name, "model": model_identity(self.model)}

    def score(self, rows: Sequence[Conversation]) -> Float64:
        """See `Signal`."""
        return self._loaded.rate(rows)


@dataclass(frozen=True)
class Classifier:
    """The grade that a text classifier gives the text of a row.

    One output: its value. Several: the expected index under the softmax, which for an ordinal scale
    is the expected grade and for two classes the probability of the second.

    Attributes
    ----------
    model
        A sequence classifier that reads one text; see `pyids.models.hub.resolve_model`.
    device, max_length, batch_tokens
        Where it runs, the longest text (cut on its right), and the tokens of a forward pass.
    """

    model: str
    device: str = "cpu"
    max_length: int = 512
    batch_tokens: int = 4096
    name: ClassVar[str] = "classifier"

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        from transformers import AutoModelForSequenceClassification

        from pyids.models.hub import local_folder, resolve_model
        from pyids.models.load import load_pretrained, load_tokenizer

        ref = resolve_model(self.model, kind="classifier")
        model = load_pretrained(
            AutoModelForSequenceClassification, ref, local_folder(ref), self.device, "float32"
        )
        tokenizer = load_tokenizer(ref)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        if model.config.pad_token_id is None:
            model.config.pad_token_id = tokenizer.pad_token_id
        return model, tokenizer

    @property
    def identity(self) -> dict[str, Any]:
        """See `Signal`."""
        return {
            "signal": self.name,
            "model": model_identity(self.model),
            "tokens": self.max_length,
        }

    def score(self, rows: Sequence[Conversation]) -> Float64:
        """See `Signal`."""
        import torch

        from pyids.chat.template import text_of
        from pyids.models.batching import batches_by_length

        model, tokenizer = self._loaded
        texts = [text_of(row) for row in rows]
        tokens = tokenizer(texts, truncation=True, max_length=self.max_length)
        lengths = [len(ids) for ids in tokens["input_ids"]]
        scores = np.empty(len(rows))
        with torch.inference_mode():
            for batch in batches_by_length(lengths, self.batch_tokens):
                padded = tokenizer.pad(
                    {key: [values[i] for i in batch] for key, values in tokens.items()},
                    return_tensors="pt",
                )
                logits = model(**padded.to(self.device)).logits.double().cpu()
                if logits.shape[1] == 1:
                    scores[batch] = logits[:, 0].numpy()
                else:
                    grades = np.arange(logits.shape[1], dtype=np.float64)
                    scores[batch] = logits.softmax(-1).numpy() @ grades
        return scores


def make_signal(
    spec: str, *, default_model: str, device: str = "cpu", system: str = "error"
) -> Signal | None:
    """Read ``signal`` or ``signal:MODEL``; None means that `spec` is the name of a column.

    Parameters
    ----------
    spec : str
        A name of `pyids.registry.SIGNALS` or ``module:function``. ``reward`` and ``classifier``
        need a model, for the other language-model signals it is optional.
    default_model : str
        The language model of a signal that names none.
    device : str
        A torch device.
    system : str
        What a language model's template does with a system turn that it refuses.

    Raises
    ------
    ConfigError
        A model is missing, or stands where none is used.
    """
    name, _, model = spec.partition(":")
    if name == "judge":
        raise ConfigError(
            "quality 'judge' asks a server: name it with --judge-url and --judge-model, for `pyids "
            "run` or `pyids select`"
        )
    if name in SIGNALS.names():
        make = SIGNALS.find(name)
    elif model and find_module(name):
        make, model = SIGNALS.find(spec), ""
    else:
        return None
    signal: Signal = make(model, default_model=default_model, device=device, system=system)
    return signal


def make_length(model: str, *, default_model: str, device: str, system: str) -> Signal:
    """Make the signal ``length``."""
    if model:
        raise ConfigError(f"quality 'length:{model}': length takes no model: write length")
    return Length()


def make_perplexity(model: str, *, default_model: str, device: str, system: str) -> Signal:
    """Make the signal ``perplexity`` or ``perplexity:MODEL``."""
    return Perplexity(model or default_model, device, system=system)


def make_ifd(model: str, *, default_model: str, device: str, system: str) -> Signal:
    """Make the signal ``ifd`` or ``ifd:MODEL``."""
    return Ifd(model or default_model, device, system=system)


def make_perplexity_difference(
    model: str, *, default_model: str, device: str, system: str
) -> Signal:
    """Make the signal ``perplexity-difference:MODEL``: the default model's, less MODEL's."""
    from pyids.scoring.token_signals import PerplexityDifference

    other = _named(model, "perplexity-difference")
    return PerplexityDifference(default_model, device, system=system, other=other)


def make_s_ifd(model: str, *, default_model: str, device: str, system: str) -> Signal:
    """Make the signal ``s-ifd`` or ``s-ifd:MODEL``."""
    from pyids.scoring.token_signals import SIfd

    return SIfd(model or default_model, device, system=system)


def make_deita(model: str, *, default_model: str, device: str, system: str) -> Signal:
    """Make the signal ``deita``, ``deita:MODEL`` or ``deita:QUALITY-RATER,COMPLEXITY-RATER``."""
    if "," in model:
        answers, _, prompts = model.partition(",")
        return Deita(answers, device, system=system, complexity_model=prompts)
    return Deita(model or default_model, device, system=system)


def make_reward(model: str, *, default_model: str, device: str, system: str) -> Signal:
    """Make the signal ``reward:MODEL``."""
    return Reward(_named(model, "reward"), device)


def make_classifier(model: str, *, default_model: str, device: str, system: str) -> Signal:
    """Make the signal ``classifier:MODEL``."""
    return Classifier(_named(model, "classifier"), device)


def _named(model: str, signal: str) -> str:
    if not model:
        raise ConfigError(f"quality {signal!r} needs a model: write {signal}:MODEL")
    return model


def _turns(row: Conversation) -> Iterator[tuple[str, str]]:
    """Give each user turn with the assistant's answer to it."""
    prompt = ""
    for message in row:
        content = str(message.get("content") or "")
        if message["role"] == "user":
            prompt = content
        elif message["role"] == "assistant":
            yield prompt, content


def model_identity(name: str) -> str:
    """Name a model so that other weights under the same name are another model."""
    from pyids.models.hub import resolve_model

    ref = resolve_model(name, kind="quality model")
    if ref.path is None or ref.revision is not None:
        return f"{ref.name}@{ref.revision}"
    files = [ref.path] if ref.path.is_file() else sorted(ref.path.glob("*.safetensors"))
    stamps = [f"{file.name}:{file.stat().st_size}:{file.stat().st_mtime_ns}" for file in files]
    return f"{ref.name}#{xxhash.xxh3_64_hexdigest(' '.join(stamps).encode())}"
