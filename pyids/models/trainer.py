"""transformers' Trainer over planned steps: whole steps, and a loss per response token.

Imports torch and transformers: only what trains imports it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from pyids.chat.template import Encoded
from pyids.errors import ModelError
from pyids.models.batching import Progress, micro_batches
from pyids.models.hf import quiet
from pyids.models.lm_head import Head, response_loss

# The share of the steps in which the learning rate rises.
_WARMUP = 0.03

# Padding is never looked at, so any token does.
_PAD_ID = 0


@dataclass
class Steps(torch.utils.data.Dataset[list[int]]):
    """The planned steps: which of the rows each takes.

    Attributes
    ----------
    rows
        All rows that are trained on.
    plan
        For each step the positions of its rows (`pyids.models.batching.plan_steps`).
    batch_tokens
        Tokens of a micro-batch with its padding.
    losses
        The mean NLL of each step that was made.
    """

    rows: Sequence[Encoded]
    plan: list[list[int]]
    batch_tokens: int
    losses: list[float] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, i: int) -> list[int]:
        return self.plan[i]

    def tokens(self) -> list[int]:
        """Return the tokens of each step."""
        return [sum(len(self.rows[i].input_ids) for i in step) for step in self.plan]

    def collate(self, batch: list[list[int]]) -> Any:
        """Make the micro-batches of one step."""
        return micro_batches([self.rows[i] for i in batch[0]], self.batch_tokens, _PAD_ID)


class ResponseTrainer(Trainer):
    """A step's batch arrives as a list of micro-batches; its loss is per response token."""

    train_dataset: Steps

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """Take one step as it is: transformers would count the tokens of its own labels."""
        return [next(epoch_iterator)], None

    def _get_train_sampler(self, *args: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)  # the plan has shuffled

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Let the rate rise, then fall linearly towards zero.

        transformers' own warm-up and decay waste a first and a last step at rate 0, which in runs
        of a few steps is much.
        """
        warmup = round(_WARMUP * num_training_steps)

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / (warmup + 1)
            return (num_training_steps - step) / (num_training_steps - warmup)

        chosen: Any = optimizer or self.optimizer
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(chosen, factor)
        return self.lr_scheduler

    def floating_point_ops(self, inputs: Any) -> int:
        """Count none: they would be estimated from one tensor of ids."""
        return 0

    def training_step(
        self, model: torch.nn.Module, inputs: Any, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Add up the gradients of a step's micro-batches; return its loss."""
        model.train()
        losses = self.train_dataset.losses
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


class _Report(TrainerCallback):
    """Says after each step how many tokens are done."""

    def __init__(self, tokens: list[int], progress: Progress) -> None:
        self.tokens, self.progress = tokens, progress

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `transformers.TrainerCallback`."""
        self.progress(sum(self.tokens[: state.global_step]), sum(self.tokens))


def train_steps(
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
    """Run the optimizer over the planned steps; return the loss of each.

    Parameters
    ----------
    model
        Changed in place.
    rows, steps, batch_tokens
        See `Steps`.
    learning_rate
        The peak.
    scratch
        A folder that the Trainer makes but leaves empty.

    Raises
    ------
    ModelError
        The model cannot take a row, or the loss stops being finite.
    """
    head = Head.of(model)
    for row in rows:
        head.limits.check(row.input_ids)
    data = Steps(rows, steps, batch_tokens if head.pads else 1)
    arguments = _arguments(scratch, learning_rate, seed, device, dtype)
    with quiet():
        trainer = ResponseTrainer(
            model=model,
            args=arguments,
            train_dataset=data,
            data_collator=data.collate,
            callbacks=[] if progress is None else [_Report(data.tokens(), progress)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    model.eval()
    return data.losses


def _arguments(
    scratch: str, learning_rate: float, seed: int, device: str, dtype: str
) -> TrainingArguments:
    where = torch.device(device)
    if where.type == "cuda":
        torch.cuda.set_device(where.index or 0)
    arguments = TrainingArguments(
        output_dir=scratch,
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
    return arguments
