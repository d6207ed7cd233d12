"""Fine-tune a language model on what was selected: response tokens only, repeatable to the bit."""

from __future__ import annotations

import contextlib
import random
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pyids.chat.template import Conversation, Encoded, encode
from pyids.config import DEFAULT_LEARNING_RATES, RunConfig
from pyids.errors import ModelError
from pyids.models.batching import Progress, default_batch_tokens, plan_steps
from pyids.models.checkpoints import (
    Checkpoint,
    Method,
    load_adapter,
    load_checkpoint,
    read_record,
    save_checkpoint,
    take_checkpoint,
)
from pyids.models.distributed import ALONE, Job, Processes, train_here, train_together
from pyids.models.hf import torch_threads
from pyids.models.hub import ModelRef, resolve_model
from pyids.models.load import load_tokenizer

__all__ = [
    "Checkpoint",
    "finetune",
    "load_adapter",
    "load_checkpoint",
    "plan_steps",
    "read_record",
    "seeded",
    "training_options",
]


def finetune(
    ref: ModelRef | str,
    conversations: Sequence[Conversation],
    *,
    output_dir: Path | str,
    method: Method = "lora",
    num_train_epochs: float = 1.0,
    learning_rate: float | None = None,
    batch_size: int = 8,
    max_length: int = 1024,
    batch_tokens: int | None = None,
    lora_rank: int = 16,
    seed: int = 0,
    device: str = "cpu",
    dtype: str = "float32",
    gradient_checkpointing: bool = False,
    packing: bool = False,
    load_in_4bit: bool = False,
    processes: Processes = ALONE,
    fsdp: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Checkpoint:
    """Train the base model on conversations, through transformers' Trainer.

    The loss of a step is the sum of the NLLs of its response tokens over their number: every
    response token of the step weighs the same, however the step is cut into micro-batches. Equal
    arguments on the same machine with the same number of threads give the same bits.

    Parameters
    ----------
    ref
        The base model.
    conversations
        Rows of messages; they are shuffled anew in each epoch, keyed by ``seed``.
    output_dir
        Where the checkpoint appears, whole or not at all; an older one there is replaced.
    method
        "lora" trains an adapter on all linear layers but the LM head, "full" all weights.
    num_train_epochs
        Passes over the rows; a fraction of one is a part of the rows.
    learning_rate
        The peak; by default 5e-4 for LoRA and 2e-5 for full. It rises over 3% of the steps, then
        falls linearly towards zero; AdamW without weight decay.
    batch_size
        Rows of an optimizer step.
    max_length
        Longest row (`pyids.chat.template.truncate`).
    batch_tokens
        Tokens of a micro-batch with its padding: bounds memory, does not change the loss. By
        default `pyids.models.batching.default_batch_tokens`.
    lora_rank
        Rank r; alpha is 2 r, without dropout.
    dtype
        "float32"; or "bfloat16", with float32 for what is trained and for the optimizer.
    gradient_checkpointing
        Compute activations twice instead of keeping them: less memory, the same values.
    packing
        Let rows stand one after the other instead of padding them to one length: no row sees
        another, and the loss is the same, within rounding.
    load_in_4bit
        Hold the base model in 4 bits while its adapter is trained (QLoRA).
    processes
        Those that share the rows of each step, on a GPU each where the device is CUDA: what they
        compute is that of one, within rounding (`pyids.models.distributed`). By default this one.
    fsdp
        Whether they share out the model's weights, too (`pyids.models.sharded`).
    threads
        Threads of each process; None: its share of the cores.
    progress
        Called after every step; not where several processes train.

    Raises
    ------
    ModelError
        Where no row has a response token, or the loss stops being finite.
    """
    if method not in ("lora", "full"):
        raise ValueError(f"method must be 'lora' or 'full', not {method!r}")
    if num_train_epochs <= 0 or batch_size < 1:
        raise ValueError(
            "num_train_epochs and batch_size must be positive, not "
            f"{num_train_epochs} and {batch_size}"
        )
    ref = resolve_model(ref) if isinstance(ref, str) else ref
    tokenizer = load_tokenizer(ref)
    rows, skipped = _usable([encode(turns, tokenizer, max_length) for turns in conversations])
    steps = plan_steps(len(rows), num_train_epochs, batch_size, seed)

    options: dict[str, Any] = {
        "learning_rate": learning_rate or DEFAULT_LEARNING_RATES[method],
        "batch_tokens": batch_tokens or default_batch_tokens(device),
        "seed": seed,
        "device": device,
        "dtype": dtype,
        "gradient_checkpointing": gradient_checkpointing,
        "packing": packing,
        "fsdp": fsdp,
    }
    job = Job(ref, method, lora_rank, rows, steps, options, load_in_4bit, threads)
    start = time.monotonic()
    with _workplace(Path(output_dir), processes) as scratch:
        if not processes.here:
            losses = train_together(job, processes, scratch)
        else:
            with torch_threads(threads):
                model, losses = train_here(job, str(scratch), progress)
        record = _record(job, losses, Path(output_dir), skipped, batch_size, start)
        if not processes.here:
            take_checkpoint(scratch / "model", ref, record)
        else:
            save_checkpoint(model, tokenizer, record)
    return record


@contextlib.contextmanager
def _workplace(output_dir: Path, processes: Processes) -> Iterator[Path]:
    """Give an empty folder for what a training leaves, which other machines see if they take part.

    What a killed process has left in it is removed.
    """
    if processes.here or not processes.ray:
        with tempfile.TemporaryDirectory(prefix="pyids-") as scratch:
            yield Path(scratch)
        return
    folder = output_dir.absolute().with_name("training")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _record(
    job: Job,
    losses: Sequence[float],
    output_dir: Path,
    skipped: tuple[int, ...],
    batch_size: int,
    start: float,
) -> Checkpoint:
    """Say how a checkpoint came about; its loss is that of the last epoch."""
    rows = job.rows
    counts = [sum(int(rows[i].response_mask[1:].sum()) for i in step) for step in job.steps]
    last = -(-len(rows) // batch_size)
    return Checkpoint(
        path=output_dir,
        method=job.method,
        base=job.ref.name,
        rows=len(rows),
        tokens=sum(len(row.input_ids) for row in rows),
        response_tokens=sum(int(row.response_mask[1:].sum()) for row in rows),
        skipped=skipped,
        steps=len(job.steps),
        loss=float(np.dot(losses[-last:], counts[-last:]) / sum(counts[-last:])),
        seconds=round(time.monotonic() - start, 3),
    )


def _usable(encoded: Sequence[Encoded]) -> tuple[list[Encoded], tuple[int, ...]]:
    """Return the rows that have a response token, and the positions of those that have none."""
    rows = [row for row in encoded if row.response_mask[1:].any()]
    if not rows:
        raise ModelError(
            f"fine-tuning: none of the {len(encoded)} rows has a response token; check the data's "
            "assistant turns"
        )
    skipped = (i for i, row in enumerate(encoded) if not row.response_mask[1:].any())
    return rows, tuple(skipped)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators that peft and the Trainer use, and put them back afterwards."""
    import torch

    state, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002  the Trainer seeds it
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(state)
            np.random.set_state(legacy)  # noqa: NPY002


def training_options(config: RunConfig) -> dict[str, Any]:
    """Return what `pyids.models.finetune.finetune` needs to know of the configuration."""
    processes = Processes.of(config)
    return {
        "method": config.finetuning_type,
        "num_train_epochs": config.num_train_epochs,
        "learning_rate": config.peak_learning_rate,
        "batch_size": config.batch_size,
        "max_length": config.max_length,
        "lora_rank": config.lora_rank,
        "seed": config.seed,
        "device": processes.device(config),
        "dtype": config.dtype,
        "gradient_checkpointing": config.gradient_checkpointing,
        "processes": processes,
        "packing": config.packing,
        "load_in_4bit": config.load_in_4bit,
        "fsdp": config.fsdp,
        "threads": config.threads,
    }
