"""Gradients of single rows, sketched to a few thousand numbers so that they can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyids.chat.template import Encoded
from pyids.models.adapter import last_layer
from pyids.models.batching import Progress, micro_batches
from pyids.models.lm_head import response_loss

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class AdamMoments:
    """What Adam remembers of each weight, in the order of the adapter's weights."""

    mean: Sequence[torch.Tensor]
    square: Sequence[torch.Tensor]
    betas: tuple[float, float]
    epsilon: float

    def step(self, n: int, gradient: torch.Tensor) -> torch.Tensor:
        """Return the direction in which Adam would move weight n after one more gradient."""
        first, second = self.betas
        mean = first * self.mean[n] + (1 - first) * gradient
        square = second * self.square[n] + (1 - second) * gradient**2
        return mean / (square.sqrt() + self.epsilon)


def row_gradients(
    model: Any,
    rows: Sequence[Encoded],
    *,
    dims: int = 8192,
    seed: int = 0,
    device: str = "cpu",
    moments: AdamMoments | None = None,
    progress: Progress | None = None,
) -> NDArray[np.float32]:
    """Return the gradient of each row's mean response NLL, sketched and scaled to unit length.

    The gradient is that of the adapter's weights, or of the last decoder layer where there is no
    adapter. Each of its P entries is multiplied by a random sign and added to one of ``dims``
    random bins (a count sketch): inner products are kept in expectation, with a relative error of
    about 1/sqrt(dims). Signs and bins depend on ``seed`` and the weights' shapes alone. With
    ``moments`` it is Adam's step for the row that is sketched, not the gradient.

    Returns
    -------
    float32 (B, dims)
        Zeros for a row without a response token.
    """
    import torch

    weights = _weights(model)
    asked = [weight.requires_grad for weight in weights]
    others = [p for p in model.parameters() if p.requires_grad]
    sketch = np.zeros((len(rows), dims), np.float32)
    total = sum(len(row.input_ids) for row in rows)
    done = 0
    for parameter in others:
        parameter.requires_grad_(False)
    for weight in weights:
        weight.requires_grad_(True)
    try:
        generator = torch.Generator().manual_seed(seed)
        bins = [torch.randint(dims, (w.numel(),), generator=generator) for w in weights]
        signs = [torch.randint(2, (w.numel(),), generator=generator) * 2.0 - 1 for w in weights]
        for i, row in enumerate(rows):
            if count := int(row.response_mask[1:].sum()):
                (batch,) = micro_batches([row], len(row.input_ids), 0)
                loss = response_loss(model, {k: v.to(device) for k, v in batch.items()})
                gradient = torch.zeros(dims)
                for n, grad in enumerate(torch.autograd.grad(loss, weights)):
                    step = grad if moments is None else moments.step(n, grad / count)
                    gradient.index_add_(0, bins[n], step.flatten().float().cpu() * signs[n])
                sketch[i] = torch.nn.functional.normalize(gradient, dim=0).numpy()
            done += len(row.input_ids)
            if progress is not None:
                progress(done, total)
    finally:
        for parameter in others:
            parameter.requires_grad_(True)
        for weight, wanted in zip(weights, asked, strict=True):
            weight.requires_grad_(wanted)
    return sketch


def _weights(model: Any) -> list[torch.nn.Parameter]:
    adapter = [p for name, p in model.named_parameters() if "lora_" in name]
    return adapter or list(last_layer(model).parameters())
