"""Reward models: any sequence classifier that gives one number to a conversation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyids.chat.render import Renderer
from pyids.chat.template import Conversation, text_of
from pyids.errors import ModelError
from pyids.models.batching import Progress, batches_by_length
from pyids.models.hub import ModelRef, local_folder
from pyids.models.load import load_pretrained, load_tokenizer


def load_classifier(ref: ModelRef, device: str, dtype: str = "float32") -> tuple[Any, Any]:
    """Load a sequence classifier and its tokenizer, which can pad."""
    from transformers import AutoModelForSequenceClassification

    folder = local_folder(ref)
    model = load_pretrained(AutoModelForSequenceClassification, ref, folder, device, dtype)
    tokenizer = load_tokenizer(ref)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer


@dataclass(frozen=True)
class RewardModel:
    """Rates conversations; loaded with the first of them.

    A model with one label gives its logit; one with two the log odds of the second. A tokenizer
    with a chat template renders the whole conversation; any other gets a pair of texts, the turns
    before the last one and the last one.
    """

    ref: ModelRef
    max_length: int = 2048
    batch_tokens: int = 4096
    device: str = "cpu"
    dtype: str = "float32"
    _held: list[Any] = field(default_factory=list, repr=False, compare=False)

    def rate(
        self, conversations: Sequence[Conversation], progress: Progress | None = None
    ) -> NDArray[np.float64]:
        """Return the reward of each of B conversations, float64 (B,)."""
        import torch

        if not self._held:
            self._held.extend(self._load())
        model, tokenizer = self._held
        rows = [self._tokenize(tokenizer, messages) for messages in conversations]
        lengths = [len(row["input_ids"]) for row in rows]
        rewards = np.zeros(len(rows))
        done = 0
        with torch.inference_mode():
            for batch in batches_by_length(lengths, self.batch_tokens):
                padded = tokenizer.pad(
                    {key: [rows[i][key] for i in batch] for key in rows[0]}, return_tensors="pt"
                )
                logits = model(**padded.to(self.device)).logits.double().cpu().numpy()
                rewards[batch] = logits[:, 0] if logits.shape[1] == 1 else logits @ [-1.0, 1.0]
                done += sum(lengths[i] for i in batch)
                if progress is not None:
                    progress(done, sum(lengths))
        return rewards

    def _load(self) -> tuple[Any, Any]:
        model, tokenizer = load_classifier(self.ref, self.device, self.dtype)
        if model.config.num_labels not in (1, 2):
            raise ModelError(
                f"reward model {self.ref.name!r}: it has {model.config.num_labels} labels, not one "
                "or two; choose a reward model"
            )
        return model, tokenizer

    def _tokenize(self, tokenizer: Any, messages: Conversation) -> dict[str, list[int]]:
        limit = {"truncation": True, "max_length": self.max_length}
        if tokenizer.chat_template:
            render = Renderer.of(tokenizer, messages)
            text = render(render.turns_of(messages))
            return dict(tokenizer(text, add_special_tokens=False, **limit))
        return dict(tokenizer(text_of(messages[:-1]), text_of(messages[-1:]), **limit))
