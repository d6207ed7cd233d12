"""LESS: how much a step on one row would help on another, by the gradients of a short training.

``sum over checkpoints of learning rate x cosine(Adam's step for the row, gradient of the target
row)``, after a random projection keyed by the seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyids._typing import Float64
from pyids.chat.template import Conversation, Encoded, encode
from pyids.errors import ModelError
from pyids.models.adapter import add_adapter
from pyids.models.batching import Progress, default_batch_tokens, micro_batches, plan_steps
from pyids.models.finetune import seeded
from pyids.models.gradients import AdamMoments, row_gradients
from pyids.models.hub import ModelRef
from pyids.models.lm_head import response_loss
from pyids.models.load import load_model

_BETAS, _EPSILON = (0.9, 0.999), 1e-8


@dataclass(frozen=True)
class Influence:
    """The warm-up and the gradients of LESS.

    Attributes
    ----------
    ref
        The base model, of which an adapter is trained.
    device, dtype, max_length
        Where and in which precision it runs; the longest row.
    epochs
        Checkpoints: one after each pass over the warm-up rows.
    learning_rate, batch_size, lora_rank
        Of the warm-up.
    dims
        Of the random projection.
    seed
        Of warm-up and projection.

    References
    ----------
    Xia et al., "LESS: Selecting Influential Data for Targeted Instruction Tuning", arXiv
    2402.04333.
    """

    ref: ModelRef | str
    device: str = "cpu"
    dtype: str = "float32"
    max_length: int = 1024
    epochs: int = 2
    learning_rate: float = 1e-4
    batch_size: int = 8
    lora_rank: int = 16
    dims: int = 8192
    seed: int = 0

    def scores(
        self,
        warm_up: Sequence[Conversation],
        rows: Sequence[Conversation],
        target: Sequence[Conversation],
        progress: Progress | None = None,
    ) -> Float64:
        """Return the influence of B rows on Q target rows, float64 (B, Q).

        Rows without a response token have no influence: 0.

        Raises
        ------
        ModelError
            No warm-up row, or no target row, has a response token.
        """
        total = np.zeros((len(rows), len(target)))
        with seeded(self.seed):
            base, tokenizer = load_model(self.ref, self.device, self.dtype)
            model = add_adapter(base, self.lora_rank)

            def tokens(conversations: Sequence[Conversation]) -> list[Encoded]:
                return [encode(row, tokenizer, self.max_length) for row in conversations]

            wanted, pool = tokens(target), tokens(rows)
            if not any(row.response_mask[1:].any() for row in wanted):
                raise ModelError("less: no row of the target has a response token: check its turns")
            shared: dict[str, Any] = {"dims": self.dims, "seed": self.seed, "device": self.device}
            for rate, moments in self._checkpoints(model, tokens(warm_up)):
                ours = row_gradients(
                    model, pool, moments=moments, progress=progress, **shared
                ).astype(np.float64)
                theirs = row_gradients(model, wanted, **shared).astype(np.float64)
                total += rate * (ours @ theirs.T)
        return total

    def _checkpoints(
        self, model: Any, rows: Sequence[Encoded]
    ) -> Iterator[tuple[float, AdamMoments]]:
        """Train; after each epoch give its mean learning rate and Adam's moments."""
        import torch

        rows = [row for row in rows if row.response_mask[1:].any()]
        if not rows:
            raise ModelError("less: no row of the warm-up has a response token: check the data")
        weights = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(weights, self.learning_rate, _BETAS, _EPSILON)
        steps = plan_steps(len(rows), self.epochs, self.batch_size, self.seed)
        per_epoch = len(steps) // self.epochs
        rates: list[float] = []
        pad = model.config.pad_token_id or 0
        for n, step in enumerate(steps):
            rate = self.learning_rate * (len(steps) - n) / len(steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            chosen = [rows[i] for i in step]
            count = sum(int(row.response_mask[1:].sum()) for row in chosen)
            model.train()
            for micro in micro_batches(chosen, default_batch_tokens(self.device), pad):
                batch = {name: tensor.to(self.device) for name, tensor in micro.items()}
                loss: Any = response_loss(model, batch) / count
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            rates.append(rate)
            if (n + 1) % per_epoch == 0:
                model.eval()
                state = [optimizer.state[weight] for weight in weights]
                yield (
                    float(np.mean(rates)),
                    AdamMoments(
                        [s["exp_avg"] for s in state],
                        [s["exp_avg_sq"] for s in state],
                        *(_BETAS, _EPSILON),
                    ),
                )
                rates = []
