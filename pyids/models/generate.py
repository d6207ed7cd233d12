"""What a model answers: greedy continuations of the prompts of conversations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pyids._typing import Int64
from pyids.chat.render import has_loss, said_in
from pyids.chat.template import Conversation, encode_prompt, with_turns
from pyids.models.batching import Progress, batches_by_length

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def split_last(messages: Conversation) -> tuple[Conversation, str] | None:
    """Return the turns before the last assistant turn to be learnt, and its text; None without."""
    for i in range(len(messages) - 1, 0, -1):
        if has_loss(messages[i]):
            return with_turns(messages, messages[:i]), said_in(messages[i])
    return None


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Conversation],
    *,
    max_length: int = 2048,
    max_new_tokens: int = 128,
    batch_tokens: int = 4096,
    device: str = "cpu",
    progress: Progress | None = None,
) -> list[str]:
    """Let a model answer prompts, taking the likeliest token each time.

    Parameters
    ----------
    prompts
        Conversations that end before an assistant turn.
    max_length
        Longest prompt: what is above goes on its left.
    max_new_tokens
        Longest answer.
    batch_tokens
        Rows x (longest prompt + max_new_tokens) of a batch.

    Returns
    -------
    list of str
        The answers without their end-of-turn token, in the order of the prompts.
    """
    return generate_encoded(
        model,
        tokenizer,
        [encode_prompt(messages, tokenizer, max_length) for messages in prompts],
        max_new_tokens=max_new_tokens,
        batch_tokens=batch_tokens,
        device=device,
        progress=progress,
    )


def generate_encoded(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Int64],
    *,
    max_new_tokens: int = 128,
    batch_tokens: int = 4096,
    device: str = "cpu",
    part: tuple[int, int] = (0, 1),
    progress: Progress | None = None,
) -> list[str]:
    """Do what `generate` does, for prompts that are tokens already.

    Of the batches only every n-th is done, from the i-th on, where `part` is (i, n): other answers
    are empty.
    """
    import torch

    lengths = [len(row) for row in rows]
    pad_id = tokenizer.pad_token_id
    pad_id = tokenizer.eos_token_id if pad_id is None else pad_id
    answers = [""] * len(rows)
    done = 0
    engine: Any = model
    with torch.inference_mode():
        batches = batches_by_length([n + max_new_tokens for n in lengths], batch_tokens)
        for batch in batches[part[0] :: part[1]]:
            width = max(lengths[i] for i in batch)
            input_ids = np.full((len(batch), width), pad_id or 0, np.int64)
            attention_mask = np.zeros((len(batch), width), np.int64)
            for b, i in enumerate(batch):
                input_ids[b, width - lengths[i] :] = rows[i]
                attention_mask[b, width - lengths[i] :] = 1
            out = engine.generate(
                input_ids=torch.from_numpy(input_ids).to(device),
                attention_mask=torch.from_numpy(attention_mask).to(device),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                # The sampling options of the model's own generation config do not fit greedy.
                temperature=None,
                top_p=None,
                top_k=None,
                pad_token_id=pad_id,
            )
            for b, i in enumerate(batch):
                answer: Any = tokenizer.decode(out[b, width:], skip_special_tokens=True)
                answers[i] = answer.strip()
            done += sum(lengths[i] for i in batch)
            if progress is not None:
                progress(done, sum(lengths))
    return answers
