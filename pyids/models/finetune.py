"""Fine-tune a language model on what was selected: response tokens only, repeatable to the bit."""

from __future__ import annotations

import contextlib
import json
import math
import random
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pyids import device as device_module
from pyids.chat.template import Conversation, Encoded, encode
from pyids.config import DEFAULT_LEARNING_RATES, RunConfig
from pyids.errors import ModelError
from pyids.models.adapter import add_adapter, check_adapter
from pyids.models.batching import Progress, default_batch_tokens, micro_batches
from pyids.models.hf import one_line, quiet
from pyids.models.hub import ModelRef, resolve_model
from pyids.models.lm_head import Head
from pyids.models.load import load_model, load_tokenizer
from pyids.store.files import rename_folder

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


Method = Literal["lora", "full"]


_RECORD = "checkpoint.json"


# The share of the steps in which the learning rate rises.
_WARMUP = 0.03


@dataclass(frozen=True)
class Checkpoint:
    """A fine-tuned model on disk, and how it came about.

    Attributes
    ----------
    path
        The folder: a LoRA adapter or a whole model (safetensors), with ``checkpoint.json``.
    method
        "lora" or "full".
    base
        Name of the model that it was trained from.
    rows, tokens, response_tokens
        What one epoch holds after truncation; rows without a response token do not count.
    skipped
        Positions of the rows without a response token.
    steps
        Optimizer steps.
    loss
        Mean NLL per response token in nats over the last epoch, as training met the rows.
    seconds
        Wall-clock time of the training alone.
    """

    path: Path
    method: Method
    base: str
    rows: int
    tokens: int
    response_tokens: int
    skipped: tuple[int, ...]
    steps: int
    loss: float
    seconds: float = field(compare=False)


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
    progress
        Called after every step.

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
    encoded = [encode(messages, tokenizer, max_length) for messages in conversations]
    usable = [i for i, row in enumerate(encoded) if row.response_mask[1:].any()]
    if not usable:
        raise ModelError(
            f"fine-tuning: none of the {len(encoded)} rows has a response token; check the data's "
            "assistant turns"
        )
    rows = [encoded[i] for i in usable]
    steps = plan_steps(len(rows), num_train_epochs, batch_size, seed)

    with seeded(seed):
        weights = "float32" if method == "full" else dtype
        model, _ = load_model(ref, device, weights)
        if method == "lora":
            model = add_adapter(model, lora_rank)
        start = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="pyids-") as scratch:
            losses = _train(
                model,
                rows,
                steps,
                learning_rate=learning_rate or DEFAULT_LEARNING_RATES[method],
                batch_tokens=batch_tokens or default_batch_tokens(device),
                seed=seed,
                device=device,
                dtype=dtype,
                scratch=scratch,
                progress=progress,
            )
        seconds = time.monotonic() - start
    counts = [sum(int(rows[i].response_mask[1:].sum()) for i in step) for step in steps]
    last = -(-len(rows) // batch_size)
    loss = float(np.dot(losses[-last:], counts[-last:]) / sum(counts[-last:]))
    checkpoint = Checkpoint(
        path=Path(output_dir),
        method=method,
        base=ref.name,
        rows=len(rows),
        tokens=sum(len(row.input_ids) for row in rows),
        response_tokens=sum(int(row.response_mask[1:].sum()) for row in rows),
        skipped=tuple(sorted(set(range(len(encoded))) - set(usable))),
        steps=len(steps),
        loss=loss,
        seconds=round(seconds, 3),
    )
    _save(model, tokenizer, checkpoint)
    return checkpoint


def load_checkpoint(
    path: Path | str, ref: ModelRef | str, device: str = "cpu", dtype: str = "float32"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a checkpoint for evaluation.

    A LoRA checkpoint gives a ``peft`` model: the base model with the adapter beside it, so that
    ``model.disable_adapter()`` is the base model, bit for bit, without a second copy.

    Raises
    ------
    ModelError
        Where the folder holds no finished checkpoint.
    """
    record = read_record(path)
    if record.method == "full":
        return load_model(resolve_model(str(path)), device, dtype)
    return load_adapter(path, ref, device, dtype)


def load_adapter(
    path: Path | str, ref: ModelRef | str, device: str = "cpu", dtype: str = "float32"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a LoRA adapter, ours or another's, on the model that it was trained from.

    Raises
    ------
    ModelError
        Where the adapter cannot be read, or belongs to another model.
    """
    from peft import PeftModel
    from safetensors import SafetensorError

    model: Any
    model, tokenizer = load_model(ref, device, dtype)
    try:
        with quiet():
            model = PeftModel.from_pretrained(model, path, is_trainable=False)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise ModelError(f"{path}: the adapter cannot be loaded: {one_line(error)}") from error
    check_adapter(model, Path(path))
    return model.eval(), tokenizer


def read_record(path: Path | str) -> Checkpoint:
    """Read what `finetune` recorded about a checkpoint."""
    file = Path(path) / _RECORD
    try:
        record = json.loads(file.read_text("utf-8"))
        return Checkpoint(**{**record, "path": Path(path), "skipped": tuple(record["skipped"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelError(
            f"{path}: no finished checkpoint there ({one_line(error)}); train it again"
        ) from error


def plan_steps(rows: int, num_train_epochs: float, batch_size: int, seed: int) -> list[list[int]]:
    """Return the rows of each optimizer step, shuffled anew in each epoch; no step spans two."""
    steps: list[list[int]] = []
    left = max(1, round(num_train_epochs * rows))
    for epoch in range(math.ceil(left / rows)):
        order = np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(rows)
        order = order[: left - epoch * rows]
        steps += [order[i : i + batch_size].tolist() for i in range(0, len(order), batch_size)]
    return steps


def _train(
    model: Any,
    rows: Sequence[Encoded],
    steps: list[list[int]],
    *,
    learning_rate: float,
    batch_tokens: int,
    seed: int,
    device: str,
    dtype: str,
    scratch: str,
    progress: Progress | None,
) -> list[float]:
    """Run the optimizer over the planned steps; return the loss of each."""
    import torch
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    head = Head.of(model)
    for row in rows:
        head.limits.check(row.input_ids)
    # Padding is never looked at, so any token does.
    pad_id = 0
    losses: list[float] = []
    tokens = [sum(len(rows[i].input_ids) for i in step) for step in steps]

    class ResponseTrainer(Trainer):
        """A step's batch arrives as a list of micro-batches; its loss is per response token."""

        def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
            return [next(epoch_iterator)], None

        def _get_train_sampler(self, *args: Any) -> Any:
            return torch.utils.data.SequentialSampler(steps)  # `plan_steps` has shuffled

        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            # transformers' own warm-up and decay waste a first and a last step at rate 0, which in
            # runs of a few steps is much.
            warmup = round(_WARMUP * num_training_steps)

            def factor(step: int) -> float:
                if step < warmup:
                    return (step + 1) / (warmup + 1)
                return (num_training_steps - step) / (num_training_steps - warmup)

            chosen: Any = optimizer or self.optimizer
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(chosen, factor)
            return self.lr_scheduler

        def floating_point_ops(self, inputs: Any) -> int:
            return 0  # would be estimated from one tensor of ids

        def training_step(
            self, model: torch.nn.Module, inputs: Any, num_items_in_batch: Any = None
        ) -> torch.Tensor:
            model.train()
            count = sum(int((micro["targets"] != -100).sum()) for micro in inputs)
            total = torch.zeros((), dtype=torch.float32, device=self.args.device)
            for micro in inputs:
                with self.compute_loss_context_manager():
                    loss = response_loss(model, micro) / count
                self.accelerator.backward(loss)
                total += loss.detach()
            if not torch.isfinite(total):
                raise ModelError(
                    f"fine-tuning: the loss of step {len(losses) + 1} is not finite; lower the "
                    "learning rate"
                )
            losses.append(float(total))
            return total

    class Report(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if progress is not None:
                progress(sum(tokens[: state.global_step]), sum(tokens))

    class Steps(torch.utils.data.Dataset[list[int]]):
        def __len__(self) -> int:
            return len(steps)

        def __getitem__(self, i: int) -> list[int]:
            return steps[i]

    def collate(batch: list[list[int]]) -> Any:
        return micro_batches([rows[i] for i in batch[0]], batch_tokens if head.pads else 1, pad_id)

    where = torch.device(device)
    if where.type == "cuda":
        torch.cuda.set_device(where.index or 0)
    arguments = TrainingArguments(
        output_dir=scratch,  # is made, but stays empty
        per_device_train_batch_size=1,
        num_train_epochs=1,
        learning_rate=learning_rate,
        weight_decay=0.0,
        optim="adamw_torch",
        bf16=dtype == "bfloat16",
        fp16=dtype == "float16",
        use_cpu=where.type == "cpu",
        seed=seed,
        save_strategy="no",
        logging_strategy="no",
        eval_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # else it wraps the model over all visible GPUs
    with quiet():
        trainer = ResponseTrainer(
            model=model,
            args=arguments,
            train_dataset=Steps(),
            data_collator=collate,
            callbacks=[Report()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    model.eval()
    return losses


def response_loss(model: torch.nn.Module, micro: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the sum of the NLLs of a micro-batch's response tokens, with its gradient."""
    return Head.of(model).loss(micro["input_ids"], micro["attention_mask"], micro["targets"])


def _save(model: Any, tokenizer: Any, checkpoint: Checkpoint) -> None:
    folder = checkpoint.path
    folder.parent.mkdir(parents=True, exist_ok=True)
    for stale in folder.parent.glob(f".{folder.name}.{32 * '[0-9a-f]'}"):
        shutil.rmtree(stale)
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    record = asdict(checkpoint)
    del record["path"]
    with quiet():
        if checkpoint.method == "lora":
            # The cache's path would make equal adapters differ between machines.
            model.peft_config["default"].base_model_name_or_path = checkpoint.base
            model.save_pretrained(temporary)
            (temporary / "README.md").unlink(missing_ok=True)
        else:
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
    (temporary / _RECORD).write_text(json.dumps(record, indent=2) + "\n", "utf-8")
    rename_folder(temporary, folder)


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
    return {
        "method": config.finetuning_type,
        "num_train_epochs": config.num_train_epochs,
        "learning_rate": config.peak_learning_rate,
        "batch_size": config.batch_size,
        "max_length": config.max_length,
        "lora_rank": config.lora_rank,
        "seed": config.seed,
        "device": device_module.device(config),
        "dtype": config.dtype,
    }
