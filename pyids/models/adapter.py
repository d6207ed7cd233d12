"""A LoRA adapter on the linear layers that can bear one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyids.errors import ModelError
from pyids.models.hf import one_line, quiet
from pyids.models.lm_head import Head


def add_adapter(model: Any, rank: int) -> Any:
    """Put a LoRA adapter of rank r and alpha 2 r, without dropout, on `linear_layers`.

    Raises
    ------
    ModelError
        No layer can bear one.
    """
    from peft import LoraConfig, get_peft_model

    names, name = linear_layers(model), Head.of(model).name
    remedy = "train all weights: --finetuning-type full"
    if not names:
        raise ModelError(f"model {name!r}: it has no linear layer for a LoRA adapter; {remedy}")
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        lora_dropout=0.0,
        target_modules=names,
        task_type="CAUSAL_LM",
    )
    try:
        with quiet():
            return get_peft_model(model, config)
    except (ValueError, TypeError, AttributeError, NotImplementedError) as error:
        raise ModelError(
            f"model {name!r}: it takes no LoRA adapter ({one_line(error)}); {remedy}"
        ) from error


def check_adapter(model: Any, folder: Path) -> None:
    """Refuse an adapter whose files leave weights out, or that is more than changed layers.

    Raises
    ------
    ModelError
        In one line.
    """
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    if model.active_peft_config.is_prompt_learning:
        raise ModelError(
            f"{folder}: an adapter that adds tokens to the prompt: use one of another kind (LoRA)"
        )
    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        return
    with safe_open(file, "pt") as stored:
        missing = sorted(set(get_peft_model_state_dict(model)) - set(stored.keys()))
    if missing:
        raise ModelError(
            f"{folder}: {len(missing)} weights of the adapter are missing ({missing[0]}, ...): get "
            "its files again"
        )


def linear_layers(model: Any) -> list[str]:
    """Return the names of the linear layers of the text model that an adapter is put on.

    All of them but the LM head; layers that compute something else than a product, such as routers
    that return a pair; and, beside a state space (``A_log`` and ``D``), all but ``in_proj``: fused
    kernels take the other layers' weights past the adapter, which would learn nothing there.
    """
    from torch.nn import Linear
    from transformers.pytorch_utils import Conv1D

    modules = dict(model.named_modules())
    head, text = model.get_output_embeddings(), _text_model(model)
    inside = {id(module) for module in text.modules()}
    names = []
    for name, module in modules.items():
        if not isinstance(module, Linear | Conv1D) or module is head or id(module) not in inside:
            continue
        own = type(module).forward not in (Linear.forward, Conv1D.forward)
        if own and not _is_product(module):
            continue
        parent, _, last = name.rpartition(".")
        mixer = modules[parent]
        if hasattr(mixer, "A_log") and hasattr(mixer, "D") and last != "in_proj":
            continue
        names.append(name)
    return names


def _is_product(module: Any) -> bool:
    """Whether a linear layer with a forward of its own computes what a linear layer does.

    One of another library's making, such as a quantized one, is peft's to judge.
    """
    import torch

    if not type(module).__module__.startswith("transformers.models."):
        return True
    weight = module.weight
    states = torch.ones(2, weight.shape[1], dtype=weight.dtype, device=weight.device)
    try:
        with torch.no_grad():
            found = module(states)
    except (RuntimeError, TypeError, ValueError, IndexError):
        return False
    expected = torch.nn.functional.linear(states, weight, module.bias)
    return isinstance(found, torch.Tensor) and torch.allclose(found, expected, rtol=1e-3)


def _text_model(model: Any) -> Any:
    """Return the part of a model that reads text: of most, all of it."""
    from torch.nn import ModuleList

    try:
        decoder = model.get_decoder()
    except (AttributeError, NotImplementedError):
        return model
    # Some call their head a decoder, and some have an empty one.
    modules = list(decoder.modules()) if hasattr(decoder, "modules") else []
    return decoder if any(isinstance(module, ModuleList) for module in modules) else model


def last_layer(model: Any) -> Any:
    """Return the last of the layers of a model: of its longest lists of modules, the outermost."""
    from torch.nn import ModuleList

    lists = [m for m in _text_model(model).modules() if isinstance(m, ModuleList) and len(m)]
    if not lists:
        raise ModelError(f"model {Head.of(model).name!r}: it has no list of layers: use another")
    return max(lists, key=lambda layers: sum(p.numel() for p in layers.parameters()))[-1]
