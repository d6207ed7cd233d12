"""Every causal family that can be built tiny: our losses beside those of its own logits.

    python benchmarks/families.py [FAMILY ...]

Each is a random model of two layers with a byte-level tokenizer and a head of large weights, so
that caps and factors show. Columns: the way its logits are had; how far the NLL of rows without
and with a common beginning is from its own logits; the first loss of a LoRA and a full step and the
loss of what was saved and loaded again, as differences; or the one line that refuses it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from pyids.chat.template import encode
from pyids.errors import PyidsError
from pyids.models import finetune, hub, load, nll
from pyids.models.hf import quiet
from pyids.models.lm_head import Head, accepts

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    specials = ["<pad>", "<s>", "<|im_end|>", "<|im_start|>"]
    vocabulary = {
        t: i for i, t in enumerate([*specials, *sorted(pre_tokenizers.ByteLevel.alphabet())])
    }
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="<|im_end|>",
        extra_special_tokens=["<|im_start|>"],
    )
    made.chat_template = TEMPLATE
    return made


V = 260
# Small values for the names that configurations use; a name that a family has is set.
SMALL: dict[str, Any] = {
    "vocab_size": V, "hidden_size": 32, "n_embd": 32, "d_model": 32, "embed_dim": 32, "dim": 32,
    "emb_dim": 32, "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "num_layers": 2,
    "decoder_layers": 2, "encoder_layers": 2, "decoder_attention_heads": 4,
    "encoder_attention_heads": 4, "decoder_ffn_dim": 64, "encoder_ffn_dim": 64,
    "num_attention_heads": 4,
    "n_head": 4, "n_heads": 4, "num_heads": 4, "num_key_value_heads": 2, "num_kv_heads": 2,
    "intermediate_size": 64, "ffn_hidden_size": 64, "ffn_dim": 64, "n_inner": 64, "head_dim": 8,
    "max_position_embeddings": 512, "n_positions": 512, "n_ctx": 512, "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32, "num_experts": 4, "num_local_experts": 4,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "n_group": 1,
    "topk_group": 1, "first_k_dense_replace": 1, "q_lora_rank": 16, "kv_lora_rank": 16,
    "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8, "state_size": 8,
    "rotary_dim": 4, "word_embed_proj_dim": 32, "hidden_dim": 64, "dff": 64, "lru_width": 32,
    "sliding_window": 16, "attention_window_size": 64, "vocab_size_per_layer_input": V,
    "hidden_size_per_layer_input": 8, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    "embedding_size": 32, "max_seq_len": 512, "mamba_d_state": 8, "mamba_n_heads": 4,
    "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_ssm": 64, "ssm_state_size": 8,
    "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    # Dropout and jitter of training would be differences, too.
    "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "dropout": 0.0,
    "attention_dropout": 0.0, "activation_dropout": 0.0, "hidden_dropout": 0.0,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "residual_dropout": 0.0,
    "embedding_dropout": 0.0, "resid_dropout": 0.0, "layerdrop": 0.0, "summary_first_dropout": 0.0,
    "router_jitter_noise": 0.0, "input_jitter_noise": 0.0, "attention_dropout_prob": 0.0,
}  # fmt: skip
# What a family needs beside that, or factors and caps that should show.
OWN: dict[str, dict[str, Any]] = {
    "gemma2": {"final_logit_softcapping": 20.0},
    "gemma3_text": {"final_logit_softcapping": 20.0},
    "cohere": {"logit_scale": 0.25},
    "cohere2": {"logit_scale": 0.25},
    "granite": {"logits_scaling": 6.0},
    "granitemoe": {"logits_scaling": 8.0},
    "hyperclovax": {"logits_scaling": 0.25},
    "falcon_h1": {"lm_head_multiplier": 0.1},
    "minicpm3": {"dim_model_base": 16},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"], "head_dim": 8},
    "xlstm": {
        "hidden_size": 64, "embedding_dim": 64, "num_blocks": 2, "v_dim_factor": 1.0,
        "qk_dim_factor": 1.0, "output_logit_soft_cap": 30.0,
    },
    "mamba2": {"num_heads": 4, "head_dim": 16, "n_groups": 1},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 16},
    "bamba": {"attn_layer_indices": [1]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"], "logits_scaling": 8.0},
    "phi": {"partial_rotary_factor": 0.5},
    "jamba": {"mamba_d_state": 8, "attn_layer_period": 2, "attn_layer_offset": 1,
              "expert_layer_period": 2},
    **{
        name: {"layer_types": ["linear_attention", "full_attention"]}
        for name in ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text")
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "lfm3": {"layer_types": ["conv", "full_attention"]},
    "kimi_linear": {
        "layer_types": ["linear_attention", "full_attention"], "linear_head_dim": 8,
        "linear_num_heads": 4, "num_experts_per_token": 2, "mlp_layer_types": ["dense", "sparse"],
    },
    "zamba": {
        "layers_block_type": ["linear_attention", "hybrid"], "attention_hidden_size": 64,
        "attention_head_dim": 16, "num_key_value_heads": 4, "mamba_d_state": 8,
        "mamba_dt_rank": 4, "use_mamba_kernels": False,
    },
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid"], "hybrid_layer_ids": [1],
        "mamba_d_state": 8, "n_mamba_heads": 4, "mamba_headdim": 16, "use_mamba_kernels": False,
        "attention_hidden_size": 64, "attention_head_dim": 16, "num_key_value_heads": 4,
        "num_query_groups": 4,
    },
    "roc_bert": {"enable_pronunciation": False, "enable_shape": False},
    "gemma3n_text": {
        "layer_types": ["sliding_attention", "full_attention"], "num_kv_shared_layers": 0,
        "laurel_rank": 8, "activation_sparsity_pattern": [0.0, 0.0], "intermediate_size": [64, 64],
        "final_logit_softcapping": 20.0,
    },
}  # fmt: skip
TEXT = {k: SMALL[k] for k in (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "intermediate_size", "head_dim", "max_position_embeddings", "bos_token_id", "eos_token_id",
    "pad_token_id",
)}  # fmt: skip
VISION = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
          "intermediate_size": 64, "image_size": 28, "patch_size": 14}  # fmt: skip
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"], "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5,
                        "mrope_section": [1, 1, 0]},
}  # fmt: skip
EYES = {"depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64,
        "out_hidden_size": 32, "num_position_embeddings": 16}  # fmt: skip
# Tokens of images and the like, that no text has.
SEEN = {
    "image_token_id": V - 1, "video_token_id": V - 2, "vision_start_token_id": V - 3,
    "vision_end_token_id": V - 4,
}  # fmt: skip
# Whole models, that see images, too.
WHOLE: dict[str, dict[str, Any]] = {
    "gemma3": {
        "text_config": {**TEXT, "sliding_window": 16, "final_logit_softcapping": 20.0},
        "vision_config": VISION, "mm_tokens_per_image": 4,
        "image_token_index": V - 1, "boi_token_index": V - 2, "eoi_token_index": V - 3,
    },
    "gemma4": {
        "text_config": {
            **TEXT, "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"],
            "final_logit_softcapping": 30.0, "vocab_size_per_layer_input": V,
            "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0, "global_head_dim": 8,
            "enable_moe_block": False,
        },
        "vision_config": None, "audio_config": None,
    },
    "gemma4_unified": {
        "text_config": {
            **TEXT, "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"],
            "final_logit_softcapping": 30.0, "per_layer_config": {},
        },
        "vision_config": None, "audio_config": None, "image_token_id": V - 1,
        "video_token_id": V - 2, "audio_token_id": V - 3, "boi_token_id": V - 4,
        "eoi_token_id": V - 5, "boa_token_id": V - 6, "eoa_token_index": V - 7,
    },
    "qwen3_5": {"text_config": {**TEXT, **LINEAR}, "vision_config": EYES, **SEEN},
    "qwen3_5_moe": {
        "text_config": {
            **TEXT, **LINEAR, "num_experts": 4, "num_experts_per_tok": 2,
            "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32,
        },
        "vision_config": EYES, **SEEN,
    },
    "llama4": {
        "text_config": {
            **TEXT, "intermediate_size_mlp": 64, "num_local_experts": 2, "num_experts_per_tok": 1,
            "interleave_moe_layer_step": 2, "attention_chunk_size": 64,
        },
        "vision_config": {
            **VISION, "intermediate_size": 128, "vision_output_dim": 32,
            "projector_input_dim": 32, "projector_output_dim": 32,
        },
    },
}  # fmt: skip


def build(family: str, folder: Path) -> None:
    """Write a tiny random model of a family, and the tokenizer, to a folder."""
    kind = CONFIG_MAPPING[family]
    if family in WHOLE:
        config = kind(**WHOLE[family])
    else:
        given = set(kind().to_dict())
        options = {name: value for name, value in SMALL.items() if name in given}
        if "qk_rope_head_dim" in given:
            # The head's size follows from its parts, and keys are as many as queries.
            options.pop("head_dim", None)
            options["num_key_value_heads"] = options["num_attention_heads"]
        config = kind(**{**options, **OWN.get(family, {})})
    with quiet():
        with torch.device("meta"):
            size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
        if size > 6_000_000:
            raise ValueError(f"{size:,} weights, as its configuration has other names")
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        head = model.get_output_embeddings()
        with torch.no_grad():
            if head is not None and getattr(head, "weight", None) is not None:
                head.weight.mul_(1.5 / head.weight.std())
        model.save_pretrained(folder)
        tokenizer().save_pretrained(folder)


def conversation(*turns: str) -> list[dict[str, str]]:
    roles = ["system", "user", "assistant"] if len(turns) == 3 else ["user", "assistant"]
    return [{"role": r, "content": t} for r, t in zip(roles, turns, strict=True)]


APART = [conversation(f"{n} is?", "Answer " * (n + 1)) for n in range(3)]
ALIKE = [conversation("Answer in one word.", f"{n}?", f"It is {n}." * (n + 1)) for n in range(5)]


def own_nll(model: Any, rows: list) -> np.ndarray:
    """Return the mean NLL of each row from the model's own logits of that row alone."""
    found = []
    options = {"use_cache": False} if "use_cache" in accepts(Head.of(model).causal) else {}
    for row in rows:
        ids, keep = torch.from_numpy(row.input_ids), torch.from_numpy(row.response_mask[1:])
        with torch.no_grad():
            # Without a cache: that of some families wants one layer of attention at least.
            logits = model(input_ids=ids[None], **options).logits[0, :-1].double()
        found.append(float(torch.nn.functional.cross_entropy(logits[keep], ids[1:][keep])))
    return np.asarray(found)


HEADER = (
    "| family | way | shares | apart | alike | LoRA: step | LoRA: loaded again "
    "| LoRA: learnt | full: step | full: loaded again | full: learnt |\n" + "|-" * 11 + "|"
)


def measure(folder: Path, methods: tuple[str, ...] = ("lora", "full")) -> dict[str, Any]:
    """Return how far our losses of a model are from its own, without and with what is shared."""
    ref = hub.resolve_model(str(folder))
    model, words = load.load_model(ref)
    head = Head.of(model)
    found: dict[str, Any] = {"way": head.way, "shares": head.shares}
    for name, rows in (("apart", APART), ("alike", ALIKE)):
        encoded = [encode(row, words) for row in rows]
        ours = nll.encoded_nll(model, encoded).mean
        found[name] = float(np.abs(ours - own_nll(model, encoded)).max())
    rows = [*APART, *ALIKE]
    encoded = [encode(row, words) for row in rows]
    weights = np.asarray([row.response_mask.sum() for row in encoded])
    own = float(own_nll(model, encoded) @ weights / weights.sum())
    for method in methods:
        output = folder / method
        record = finetune.finetune(
            ref, rows, output_dir=output, method=method, batch_size=8, lora_rank=2
        )
        found[method] = abs(record.loss - own)
        again, _ = finetune.load_checkpoint(output, ref)
        ours = nll.encoded_nll(again, encoded).mean
        found[f"{method} again"] = float(np.abs(ours - own_nll(again, encoded)).max())
        found[f"{method} learns"] = own - float(ours @ weights / weights.sum())
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("families", nargs="*")
    names = parser.parse_args().families or sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *WHOLE})
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print(HEADER, flush=True)
    for name in names:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / name
            try:
                build(name, folder)
            except Exception as error:  # noqa: BLE001  not built here is a result
                print(f"| {name} | not built: {' '.join(str(error).split())[:90]} |", flush=True)
                continue
            try:
                found = measure(folder)
                shown = [f"{v:.0e}" if isinstance(v, float) else str(v) for v in found.values()]
            except PyidsError as error:
                shown = [f"refused: {str(error).replace(scratch, '')}"]
            except Exception as error:  # noqa: BLE001  a traceback is a result, too
                shown = [f"FAILED {type(error).__name__}: {' '.join(str(error).split())[:150]}"]
        print("|", " | ".join([name, *shown]), "|", flush=True)


if __name__ == "__main__":
    sys.exit(main())
