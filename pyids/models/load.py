"""Language models by name: find the weights before any work starts, load them when they are needed.

A name is a folder, a ``.gguf`` file, a name on the model hub, or one of `PACKAGED`: models whose
weights an installed package carries, so that a machine without a network has them too.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyids.chat.render import adapt_to_system
from pyids.errors import ModelError
from pyids.models.hf import one_line, quiet, torch_dtype
from pyids.models.hub import ModelRef, local_folder, resolve_model
from pyids.models.lm_head import Head

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


# Weights that may be missing: nothing that is asked of a model passes through them.
_SPARE = r"(.*\.)?pooler\."


def load_model(
    ref: ModelRef | str,
    device: str = "cpu",
    dtype: str = "float32",
    *,
    trust_remote_code: bool = False,
    in_4bit: bool = False,
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
    in_4bit
        Hold the weights of linear layers as NF4, 4 bits each with a scale for every 64, and compute
        in `dtype`; by bitsandbytes. Dettmers et al. (QLoRA), arXiv 2305.14314.

    Raises
    ------
    ModelError
        Where the files are not a causal language model that transformers can load, or hold not all
        of its weights; where its tokens see later tokens, as an encoder's do.
    """
    ref = resolve_model(ref) if isinstance(ref, str) else ref
    folder = local_folder(ref)
    from transformers import AutoModelForCausalLM

    model = load_pretrained(
        AutoModelForCausalLM,
        ref,
        folder,
        device,
        dtype,
        trust_remote_code=trust_remote_code,
        **(_in_4bit(device, dtype) if in_4bit else {}),
    )
    Head.of(model)  # tries a few tokens
    return model, load_tokenizer(ref, trust_remote_code=trust_remote_code)


def _in_4bit(device: str, dtype: str) -> dict[str, Any]:
    from transformers import BitsAndBytesConfig

    make: Any = BitsAndBytesConfig  # has no types
    config = make(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch_dtype(dtype),
    )
    return {"quantization_config": config, "device_map": {"": device}}


def load_tokenizer(
    ref: ModelRef | str, *, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer alone; its template takes system turns as ``ref.system`` says."""
    ref = resolve_model(ref) if isinstance(ref, str) else ref
    folder = local_folder(ref)
    from transformers import AutoTokenizer

    try:
        with quiet():
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                folder, trust_remote_code=trust_remote_code, local_files_only=True
            )
    except Exception as error:  # as in `load_pretrained`; re-raised
        raise ModelError(
            f"model {ref.name!r}: its tokenizer cannot be loaded ({one_line(error)}): get its "
            "files again, or use another"
        ) from error
    adapt_to_system(tokenizer, ref.system)
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
    """Call ``auto_class.from_pretrained`` on a local folder, quietly.

    Raises
    ------
    ModelError
        The files cannot be read, or leave weights of the model at random values.
    """
    import torch

    try:
        with quiet():
            model, found = auto_class.from_pretrained(
                folder,
                dtype=torch_dtype(dtype),
                trust_remote_code=trust_remote_code,
                local_files_only=True,
                use_safetensors=True,  # never a pickle, which runs code
                output_loading_info=True,
                **options,
            )
        # Quantized weights are where they are to be from the first.
        model = (model if "device_map" in options else model.to(torch.device(device))).eval()
    except Exception as error:  # files of any content make any error; re-raised
        raise ModelError(
            f"model {ref.name!r}: cannot be loaded ({one_line(error)}): get its files "
            "again, or use another"
        ) from error
    # A pooler stands beside the hidden states, which are what is asked for where it may be missing.
    missing = sorted(name for name in found["missing_keys"] if not re.match(_SPARE, name))
    wrong = sorted(str(key[0]) for key in found["mismatched_keys"])
    for names, what in ((missing, "are missing"), (wrong, "have another shape")):
        if names:
            raise ModelError(
                f"model {ref.name!r}: its files are not those of a {type(model).__name__}: "
                f"{len(names)} of its weights {what} ({', '.join(names[:3])}"
                f"{', ...' if len(names) > 3 else ''}): they would be random; get the files again, "
                "or name another model"
            )
    return model
