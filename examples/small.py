"""A pool, its vectors and a language model of a few thousand weights, made on the spot.

The examples need nothing else and download nothing: put your own data and models in their places.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

TOPICS = {
    "sums": ("What is {n} plus one?", "It is {m}."),
    "colors": ("Which color has the number {n}?", "Number {n} is red."),
    "lists": ("Count from {n}.", "{n}, {m}, and so on."),
    "echoes": ("Say {n} twice.", "{n} {n}"),
}
TEMPLATE = (
    "{%- for message in messages -%}<|{{ message.role }}|>"
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content }}<|end|>"
    "{% endgeneration %}{% else %}{{ message.content }}<|end|>{% endif %}{%- endfor -%}"
    "{%- if add_generation_prompt %}<|assistant|>{% endif -%}"
)


def make_pool(folder: Path, n_rows: int = 200) -> tuple[Path, Path]:
    """Write ``pool.jsonl`` and ``vectors.npy``, whose row i belongs to row i of the pool."""
    rng = np.random.default_rng(0)
    topics = rng.integers(0, len(TOPICS), n_rows)
    lines = []
    for n, topic in enumerate(topics):
        name = list(TOPICS)[topic]
        prompt, completion = (text.format(n=n, m=n + 1) for text in TOPICS[name])
        lines.append(json.dumps({"prompt": prompt, "completion": completion, "topic": name}))
    pool, vectors = folder / "pool.jsonl", folder / "vectors.npy"
    pool.write_text("\n".join(lines) + "\n")
    centers = 4 * rng.standard_normal((len(TOPICS), 16))
    np.save(vectors, (centers[topics] + rng.standard_normal((n_rows, 16))).astype(np.float32))
    return pool, vectors


def make_model(folder: Path) -> Path:
    """Write a Llama with random weights, and a tokenizer that knows single bytes."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    tokens = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    bytes_alone = Tokenizer(models.BPE(vocabulary, merges=[]))
    bytes_alone.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_alone.decoder = decoders.ByteLevel()
    bytes_alone.add_special_tokens(special)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bytes_alone, eos_token="<|end|>", pad_token="<|end|>",
        chat_template=TEMPLATE,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokens), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=2, eos_token_id=0, pad_token_id=0,
            bos_token_id=None,
        )
    )  # fmt: skip
    path = folder / "model"
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
