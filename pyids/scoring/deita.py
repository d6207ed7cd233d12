"""Deita's quality: a causal language model rates complexity and quality (arXiv 2312.15685)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from pyids._typing import Float64
from pyids.chat.render import said_in
from pyids.errors import ModelError
from pyids.scoring.signals import LanguageModelSignal, Signal, model_identity

if TYPE_CHECKING:
    from pyids.chat.template import Conversation


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


def make_deita(model: str, *, default_model: str, device: str, system: str) -> Signal:
    """Make the signal ``deita``, ``deita:MODEL`` or ``deita:QUALITY-RATER,COMPLEXITY-RATER``."""
    if "," in model:
        answers, _, prompts = model.partition(",")
        return Deita(answers, device, system=system, complexity_model=prompts)
    return Deita(model or default_model, device, system=system)


def _turns(row: Conversation) -> Iterator[tuple[str, str]]:
    """Give each user turn with the assistant's answer to it."""
    prompt = ""
    for message in row:
        content = said_in(message)
        if message["role"] == "user":
            prompt = content
        elif message["role"] == "assistant":
            yield prompt, content
