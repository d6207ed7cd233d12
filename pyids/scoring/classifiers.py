"""Quality by a model that gives a number: a reward model, a text classifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from pyids._typing import Float64
from pyids.scoring.signals import Signal, _named, model_identity

if TYPE_CHECKING:
    from pyids.chat.template import Conversation
    from pyids.models.reward import RewardModel


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
        from pyids.models.hub import resolve_model
        from pyids.models.reward import load_classifier

        return load_classifier(resolve_model(self.model, kind="classifier"), self.device)

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


def make_reward(model: str, *, default_model: str, device: str, system: str) -> Signal:
    """Make the signal ``reward:MODEL``."""
    return Reward(_named(model, "reward"), device)


def make_classifier(model: str, *, default_model: str, device: str, system: str) -> Signal:
    """Make the signal ``classifier:MODEL``."""
    return Classifier(_named(model, "classifier"), device)
