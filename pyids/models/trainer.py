"""transformers' Trainer over planned steps: whole steps, and a loss per response token.

Imports torch and transformers: only what trains imports it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from pyids.chat.template import Encoded
from pyids.errors import ModelError
from pyids.models.batching import (
    Progress,
    batches_by_length,
    micro_batches,
    packs_by_length,
    trained_lengths,
)
from pyids.models.hf import quiet, torch_dtype
from pyids.models.lm_head import Head, response_loss
from pyids.models.take_apart import keeps_apart

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
    rank, ranks
        Which of several processes this is: it takes every ``ranks``-th row of a step.
    even
        Whether all processes make as many micro-batches of a step: where they share out the
        weights, each must go along with every forward pass of the others.
    packed
        Whether the rows of a micro-batch stand one after the other instead of being padded.
    """

    rows: Sequence[Encoded]
    plan: list[list[int]]
    batch_tokens: int
    losses: list[float] = field(default_factory=list)
    rank: int = 0
    ranks: int = 1
    even: bool = False
    packed: bool = False

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, i: int) -> list[int]:
        return self.plan[i]

    def tokens(self) -> list[int]:
        """Return the tokens of each step."""
        return [sum(len(self.rows[i].input_ids) for i in step) for step in self.plan]

    def collate(self, batch: list[list[int]]) -> Any:
        """Make the micro-batches of one step; of several processes, this one's.

        One that gets none takes the step's first row without its targets, since all must go along.
        """
        rows = [self.rows[i] for i in batch[0]]
        shares = [rows[rank :: self.ranks] for rank in range(self.ranks)]
        micro = micro_batches(shares[self.rank], self.batch_tokens, _PAD_ID, packed=self.packed)
        least = max(self._count(rows) for rows in shares) if self.even else 1
        return micro + [self._idle(rows[0]) for _ in range(len(micro), least)]

    def _count(self, rows: Sequence[Encoded]) -> int:
        """Return of how many micro-batches some rows are."""
        group = packs_by_length if self.packed else batches_by_length
        return len(group(trained_lengths(rows), self.batch_tokens))

    def _idle(self, row: Encoded) -> dict[str, torch.Tensor]:
        """Make a micro-batch without a loss."""
        (micro,) = micro_batches([row], self.batch_tokens, _PAD_ID)
        micro["targets"].fill_(-100)
        micro["targets"][0, 0] = 0
        return {**micro, "weight": torch.zeros(())}

    def response_tokens(self, step: int) -> int:
        """Return the tokens that have a loss in a step, over all processes."""
        return sum(int(self.rows[i].response_mask[1:].sum()) for i in self.plan[step])


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

    def get_train_dataloader(self) -> Any:
        """Let each of several processes see every step: `Steps.collate` shares out its rows."""
        if self.train_dataset.ranks == 1:
            return super().get_train_dataloader()
        return torch.utils.data.DataLoader(
            self.train_dataset, batch_size=1, shuffle=False, collate_fn=self.data_collator
        )

    def training_step(
        self, model: torch.nn.Module, inputs: Any, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Add up the gradients of a step's micro-batches; return its loss."""
        model.train()
        data = self.train_dataset
        losses, count = data.losses, data.response_tokens(len(data.losses))
        total = torch.zeros((), dtype=torch.float32, device=self.args.device)
        if data.ranks > 1:
            inputs = self._prepare_inputs(inputs)
        for n, micro in enumerate(inputs):
            # Gradients are exchanged once a step, after its last micro-batch.
            together = data.ranks > 1 and not data.even and n + 1 < len(inputs)
            with self.accelerator.no_sync(model) if together else contextlib.nullcontext():
                with self.compute_loss_context_manager():
                    loss = self._loss(model, micro) / count
                # Of the processes' gradients the mean is taken; the sum is wanted.
                self.accelerator.backward(loss * data.ranks if data.ranks > 1 else loss)
            total += loss.detach()
        if data.ranks > 1:
            total = self.accelerator.reduce(total, "sum")
        if not torch.isfinite(total):
            raise ModelError(
                f"fine-tuning: the loss of step {len(losses) + 1} is not finite; lower the "
                "learning rate"
            )
        losses.append(float(total))
        return total

    def _loss(self, model: torch.nn.Module, micro: dict[str, torch.Tensor]) -> torch.Tensor:
        if self.train_dataset.ranks == 1:
            return response_loss(model, micro)
        loss: torch.Tensor = model(**micro)
        return loss


class LossOf(torch.nn.Module):
    """A model whose forward is its loss, so that what wraps it sees all of a step's work.

    Parameters
    ----------
    model
        The model.
    dtype
        What it computes in, by autocast; None leaves that to the Trainer.
    """

    def __init__(self, model: Any, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.model = model
        self._dtype = dtype

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        targets: torch.Tensor,
        weight: torch.Tensor | float = 1.0,
    ) -> torch.Tensor:
        """Return the sum of the NLLs of a micro-batch's response tokens, times `weight`."""
        micro = {"input_ids": input_ids, "attention_mask": attention_mask, "targets": targets}
        use = self._dtype is not None
        with torch.autocast(input_ids.device.type, self._dtype, enabled=use):
            return response_loss(self.model, micro) * weight


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
    gradient_checkpointing: bool = False,
    packing: bool = False,
    fsdp: bool = False,
    rank: int = 0,
    ranks: int = 1,
    progress: Progress | None = None,
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
    gradient_checkpointing
        Keep no activations inside the layers.
    packing
        Let the rows of a micro-batch stand one after the other; see `Steps`.
    fsdp
        Share out the weights over the processes (`pyids.models.sharded`).
    rank, ranks
        Which of several processes this is; they have a process group.

    Raises
    ------
    ModelError
        The model cannot take a row, or the loss stops being finite.
    """
    head = Head.of(model)
    for row in rows:
        head.limits.check(row.input_ids)
    if packing and not keeps_apart(model):
        raise ModelError(
            f"model {head.name!r}: rows that stand one after the other would see each other in it: "
            "leave out --packing"
        )
    most = batch_tokens if head.pads or packing else 1
    data = Steps(rows, steps, most, rank=rank, ranks=ranks, even=fsdp, packed=packing)
    arguments = _arguments(scratch, learning_rate, seed, device, dtype)
    with quiet():
        if gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        wrapped: Any = model if ranks == 1 else LossOf(model)
        if fsdp:
            wrapped = _shared_out(model, device, dtype, ranks)
        trainer = ResponseTrainer(
            model=wrapped,
            args=arguments,
            train_dataset=data,
            data_collator=data.collate,
            callbacks=[] if progress is None else [_Report(data.tokens(), progress)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        if gradient_checkpointing:
            model.gradient_checkpointing_disable()
        if fsdp:
            wrapped.reshard()
    model.eval()
    return data.losses


def _shared_out(model: Any, device: str, dtype: str, ranks: int) -> Any:
    from pyids.models.sharded import share_out

    wrapped = LossOf(model, None if dtype == "float32" else torch_dtype(dtype))
    share_out(wrapped, model, device, ranks)
    return wrapped


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
