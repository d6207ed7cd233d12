"""The two models of a round, or the model of a signal, at a serving engine."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyids._typing import Float64, Int64
from pyids.chat.template import Encoded
from pyids.models.batching import Progress
from pyids.models.nll import ResponseNll, encoded_nll
from pyids.models.serving import Engine, ServedModel
from pyids.store.files import hash_file

# Gives a model and its tokenizer, loaded here.
Opener = Callable[[], contextlib.AbstractContextManager[tuple[Any, Any]]]


@dataclass
class Served:
    """A base model and a checkpoint trained from it, served.

    Attributes
    ----------
    engine
        Who is asked.
    identity
        Of the base model (`pyids.scoring.signals.model_identity`).
    base, trained
        Open the local models, to which a few answers are compared before all others.
    close
        Lets go of the local model.
    checkpoint
        The folder of the trained adapter; None where there is only the base model.
    device, dtype
        Of the local model.
    """

    engine: Engine
    identity: str
    base: Opener
    trained: Opener
    close: Callable[[], None]
    checkpoint: Path | None = None
    device: str = "cpu"
    dtype: str = "float32"
    _ready: dict[str, ServedModel] = field(default_factory=dict, init=False, repr=False)

    def nll(
        self, which: str, rows: Sequence[Encoded], progress: Progress | None = None
    ) -> ResponseNll:
        """Return the NLL of rows under the model "base" or "trained"."""
        return self.engine.nll(self._model(which, rows), rows, progress)

    def answer(
        self,
        which: str,
        prompts: Sequence[Int64],
        max_new_tokens: int,
        known: Sequence[Encoded],
        progress: Progress | None = None,
    ) -> list[str]:
        """Return greedy answers to prompts; the model is compared on the rows `known`."""
        return self.engine.answer(self._model(which, known), prompts, max_new_tokens, progress)

    def _model(self, which: str, rows: Sequence[Encoded]) -> ServedModel:
        """Let the engine load what it does not hold; compare a few rows, once."""
        if which not in self._ready:
            made = self._base() if which == "base" else self._adapter()
            self.engine.check(made, rows, self._local(which), self.dtype)
            self.close()
            self._ready[which] = made
        return self._ready[which]

    def _base(self) -> ServedModel:
        return ServedModel(self.engine.endpoint.model, self.identity)

    def _adapter(self) -> ServedModel:
        assert self.checkpoint is not None
        content = hash_file(self.checkpoint / "adapter_model.safetensors")
        made = ServedModel(f"pyids-{content[:16]}", f"{self.identity}+{content}")
        self.engine.load_adapter(made.name, self.checkpoint)
        return made

    def _local(self, which: str) -> Callable[[Sequence[Encoded]], Float64]:
        def nll(rows: Sequence[Encoded]) -> Float64:
            with self.base() if which == "base" else self.trained() as (model, _):
                return encoded_nll(model, rows, device=self.device).mean

        return nll
