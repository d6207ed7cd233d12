"""Language models by name: find the weights before any work starts, load them when they are needed.

A name is a folder, a ``.gguf`` file, a name on the model hub, or one of `PACKAGED`: models whose
weights an installed package carries, so that a machine without a network has them too.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyids.errors import ModelError
from pyids.models.hf import one_line, quiet, torch_dtype
from pyids.models.hub import ModelRef, local_folder, resolve_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_model(
    ref: ModelRef | str,
    device: str = "cpu",
    dtype: str = "float32",
    *,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model, in evaluation mode, and its tokenizer.

    Parameters
    ----------
    ref
        What `resolve_model` returned, or a name.
    device
        A torch device.
    dtype
        "float32", "bfloat16" or "float16".
    trust_remote_code
        Run code that comes with the model. Off unless the user asks.

    Raises
    ------
    ModelError
        Where the files are not a causal language model that transformers can load.
    """
    ref = resolve_model(ref) if isinstance(ref, str) else ref
    folder = local_folder(ref)
    from transformers import AutoModelForCausalLM

    model = load_pretrained(
        AutoModelForCausalLM, ref, folder, device, dtype, trust_remote_code=trust_remote_code
    )
    return model, load_tokenizer(ref, trust_remote_code=trust_remote_code)


def load_tokenizer(
    ref: ModelRef | str, *, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer alone."""
    ref = resolve_model(ref) if isinstance(ref, str) else ref
    folder = local_folder(ref)
    from transformers import AutoTokenizer

    try:
        with quiet():
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                folder, trust_remote_code=trust_remote_code, local_files_only=True
            )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"model {ref.name!r}: its tokenizer cannot be loaded: {one_line(error)}"
        ) from error
    return tokenizer


def load_pretrained(
    auto_class: Any,
    ref: ModelRef,
    folder: Path,
    device: str,
    dtype: str,
    *,
    trust_remote_code: bool = False,
    **options: Any,
) -> Any:
    """Call ``auto_class.from_pretrained`` on a local folder, quietly; our error when it fails."""
    import torch
    from safetensors import SafetensorError

    try:
        with quiet():
            model = auto_class.from_pretrained(
                folder,
                dtype=torch_dtype(dtype),
                trust_remote_code=trust_remote_code,
                local_files_only=True,
                **options,
            )
        return model.to(torch.device(device)).eval()
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"model {ref.name!r}: cannot be loaded: {one_line(error)}") from error
