"""A base model and a checkpoint trained from it: one of them, or both as one, in memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyids.models.checkpoints import load_checkpoint, read_record
from pyids.models.hub import ModelRef
from pyids.models.load import load_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Models:
    """A base model and a checkpoint trained from it; one of them is in memory at a time.

    With a LoRA checkpoint both are one model, with its adapter off or on. Before the first
    training there is no checkpoint (None), and only the base model can be asked for.
    """

    ref: ModelRef
    checkpoint: Path | None
    device: str = "cpu"
    dtype: str = "float32"
    _held: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @contextlib.contextmanager
    def base(self) -> Iterator[tuple[PreTrainedModel, PreTrainedTokenizerBase]]:
        """Give the base model and its tokenizer."""
        if self.checkpoint is not None and read_record(self.checkpoint).method == "lora":
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
            if which == "base":
                self._held[which] = load_model(self.ref, *where)
            else:
                if self.checkpoint is None:
                    raise ValueError("there is no checkpoint yet: only the base model")
                self._held[which] = load_checkpoint(self.checkpoint, self.ref, *where)
        return self._held[which]
