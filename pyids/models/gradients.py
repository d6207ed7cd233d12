"""Gradients of single rows, sketched to a few thousand numbers so that they can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyids.chat.template import Encoded
from pyids.models.adapter import last_layer
from pyids.models.batching import Progress, micro_batches
from pyids.models.finetune import response_loss

if TYPE_CHECKING:
    import torch


def row_gradients(
    model: Any,
    rows: Sequence[Encoded],
    *,
    dims: int = 8192,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> NDArray[np.float32]:
    """Return the gradient of each row's mean response NLL, sketched and scaled to unit length.

    The gradient is that of the adapter's weights, or of the last decoder layer where there is no
    adapter. Each of its P entries is multiplied by a random sign and added to one of ``dims``
    random bins (a count sketch): inner products are kept in expectation, with a relative error of
    about 1/sqrt(dims). Signs and bins depend on ``seed`` and the weights' shapes alone.

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
            if row.response_mask[1:].any():
                (batch,) = micro_batches([row], len(row.input_ids), 0)
                loss = response_loss(model, {k: v.to(device) for k, v in batch.items()})
                gradient = torch.zeros(dims)
                for grad, where, sign in zip(
                    torch.autograd.grad(loss, weights), bins, signs, strict=True
                ):
                    gradient.index_add_(0, where, grad.flatten().float().cpu() * sign)
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
