"""The benchmark's small language model: made once, from the pool's own text, and kept.

A Llama of 5.5 million parameters (4 layers of width 256, a vocabulary of 8,192 byte-level BPE
tokens), pre-trained on the turns of the pool's clean rows. Every turn is a document of its own, in
random order: the model knows the language of the questions and of the answers, but not which
answer follows which question. Then it is fine-tuned on a few hundred conversations that are in no
pool and in no held-out set, so that the chat format, which any selection teaches, is not what is
measured.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

NAME = "quality-5m"
VOCABULARY = 8192
CONTEXT = 256
# Longer turns are cut, so that a few long articles do not lead.
TURN_TOKENS = 256
BATCH = 16
LEARNING_RATE = 1.5e-3
END = "<|endoftext|>"
CHATML = (
    "{%- for message in messages -%}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{%- endfor -%}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif -%}"
)


def train_tokenizer(texts: Sequence[str]) -> Any:
    """Train the byte-level BPE tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END, "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token=END,
        bos_token=END,
        chat_template=CHATML,
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )


def pretrain(
    rows: Sequence[dict[str, Any]],
    folder: Path,
    *,
    n_tokens: int = 4_000_000,
    dtype: str = "bfloat16",
    seed: int = 0,
) -> Path:
    """Pre-train the model on the rows' turns, unless `folder` holds it."""
    if folder.exists():
        return folder
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    turns = [message["content"] for row in rows for message in row["messages"]]
    random.Random(seed).shuffle(turns)
    tokenizer = train_tokenizer(turns)
    end = tokenizer.convert_tokens_to_ids(END)
    stream = [end]
    for start in range(0, len(turns), 4096):
        for ids in tokenizer(turns[start : start + 4096], add_special_tokens=False)["input_ids"]:
            stream += [*ids[:TURN_TOKENS], end]
        if len(stream) > n_tokens:
            break
    blocks = np.array(stream[: len(stream) // CONTEXT * CONTEXT]).reshape(-1, CONTEXT)

    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=256,
            intermediate_size=768,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            bos_token_id=end,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=end,
        )
    )
    optimizer = torch.optim.AdamW(
        model.parameters(), LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.1
    )
    steps = len(blocks) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.04
    )
    began, losses = time.monotonic(), []
    for step in range(steps):
        batch = torch.from_numpy(blocks[step * BATCH : (step + 1) * BATCH])
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(float(loss.detach()))
        if step % 100 == 99:
            rate = (step + 1) * BATCH * CONTEXT / (time.monotonic() - began)
            mean = np.mean(losses[-100:])
            print(f"step {step + 1} of {steps}: loss {mean:.3f}, {rate:.0f} tokens/s", flush=True)
    temporary = folder.with_name(folder.name + ".part")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    temporary.rename(folder)
    return folder


def warm_up(
    base: str,
    rows: Sequence[dict[str, Any]],
    folder: Path,
    *,
    learning_rate: float = 1e-3,
    device: str = "cpu",
) -> Path:
    """Fine-tune the pre-trained model on conversations, unless `folder` holds the result."""
    if not folder.exists():
        from pyids.models.finetune import finetune

        conversations = [row["messages"] for row in rows]
        finetune(
            base, conversations, output_dir=folder, method="full", num_train_epochs=1,
            learning_rate=learning_rate, batch_size=8, max_length=CONTEXT, device=device,
        )  # fmt: skip
    return folder
