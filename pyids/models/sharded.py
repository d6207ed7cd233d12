"""A model whose weights several processes share out (fully sharded data parallel, FSDP).

Each process keeps a part of every weight, of its gradient and of what the optimizer remembers of
it; the weights of a layer are whole only while the layer is at work. The gradients are those of
whole weights, so that losses are, too. By torch's `fully_shard`, because accelerate has FSDP for
GPUs alone, and what cannot run here cannot be tested here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor


def share_out(wrapped: torch.nn.Module, model: Any, device: str, ranks: int) -> None:
    """Share out the weights of a model, layer by layer; what is left goes with `wrapped`.

    Parameters
    ----------
    wrapped
        What is called in training: all work on the weights happens inside its forward.
    model
        The transformers or peft model inside it.
    device
        Where each process keeps its part.
    ranks
        Processes of the group.
    """
    mesh = init_device_mesh(torch.device(device).type, (ranks,))
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    layers = set(getattr(causal, "_no_split_modules", None) or ())
    for module in causal.modules():
        if type(module).__name__ in layers:
            fully_shard(module, mesh=mesh)
    fully_shard(wrapped, mesh=mesh)
    # So that accelerate leaves it as it is: around it would go a wrapper for whole copies.
    wrapped._is_accelerate_prepared = True  # type: ignore[assignment]


def whole_weights(model: Any, *, trained: bool, keep: bool) -> dict[str, torch.Tensor]:
    """Put the weights together again; every process must ask.

    Parameters
    ----------
    trained
        Only those that are trained.
    keep
        Whether this process wants them; others get nothing.

    Returns
    -------
    dict of str to Tensor
        On the CPU. Weights that are tied are one tensor under several names.
    """
    found: dict[str, torch.Tensor] = {}
    known: dict[int, torch.Tensor] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        if trained and not weight.requires_grad:
            continue
        if id(weight) not in known:
            whole = weight.full_tensor() if isinstance(weight, DTensor) else weight
            known[id(weight)] = whole.detach().cpu() if keep else torch.empty(0)
        found[name] = known[id(weight)]
    persistent = model.state_dict().keys()
    for name, buffer in model.named_buffers():
        if not trained and name in persistent:
            found[name] = buffer.detach().cpu()
    return found if keep else {}
