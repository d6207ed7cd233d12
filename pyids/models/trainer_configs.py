"""The configuration of one training, in the words of the trainer that is to do it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pyids.config import RunConfig
from pyids.store.files import naming

# What the words of a command tell of its program; the first that stands in one of them.
_PROGRAMS = {"axolotl": "axolotl", "llamafactory": "llamafactory", "trl": "trl"}


@dataclass(frozen=True)
class TrainingTask:
    """What a trainer of the user's own is to do in one round.

    Attributes
    ----------
    round
        The round, from 1.
    data
        A ``.jsonl`` file: everything selected so far, a row a line with the columns that it came
        with, ``messages`` and ``_pyids_id``.
    model
        The folder of the base model, from which each round starts anew.
    output_dir
        An empty folder. Here the trainer leaves a LoRA adapter as peft saves it, or a whole model,
        in safetensors.
    options
        What the configuration says of training: ``finetuning_type``, ``lora_rank``,
        ``learning_rate``, ``num_train_epochs``, ``batch_size``, ``max_length``, ``seed``,
        ``device``, ``dtype``; then what stands in the file of ``--train-config``.
    config_file
        All of that in YAML, as the program's own configuration where it is known.
    """

    round: int
    data: Path
    model: Path
    output_dir: Path
    options: Mapping[str, Any] = field(default_factory=dict)
    config_file: Path = Path()


def program_of(words: Sequence[str]) -> str:
    """Tell the trainer that a command starts: "axolotl", "llamafactory", "trl" or "" (unknown)."""
    found = (name for word in words for part, name in _PROGRAMS.items() if part in word.split("/"))
    loose = (
        name
        for word in words
        for part, name in _PROGRAMS.items()
        if part != "trl" and word.rpartition("/")[2].startswith(part)
    )
    return next(found, next(loose, ""))


def options_of(config: RunConfig, device: str) -> dict[str, Any]:
    """Return what a configuration says of training."""
    return {
        "finetuning_type": config.finetuning_type,
        "lora_rank": config.lora_rank,
        "learning_rate": config.peak_learning_rate,
        "num_train_epochs": config.num_train_epochs,
        "batch_size": config.batch_size,
        "max_length": config.max_length,
        "seed": config.seed,
        "device": device,
        "dtype": config.dtype,
    }


def write_training_config(task: TrainingTask, program: str, given: Mapping[str, Any]) -> None:
    """Write ``task.config_file``; what is `given` wins, but for model, data and output.

    Parameters
    ----------
    program
        See `program_of`; the data were exported in its format.
    given
        The options of the user's own file.
    """
    make = {"axolotl": _axolotl, "llamafactory": _llamafactory, "trl": _trl}.get(program, _plain)
    chosen, fixed = make(task)
    text = yaml.safe_dump({**chosen, **given, **fixed}, sort_keys=False, allow_unicode=True)
    with naming(task.config_file):
        task.config_file.write_text(text, encoding="utf-8")


def _plain(task: TrainingTask) -> tuple[dict[str, Any], dict[str, Any]]:
    return dict(task.options), {
        "model": str(task.model),
        "data": str(task.data),
        "output_dir": str(task.output_dir),
        "round": task.round,
    }


def _axolotl(task: TrainingTask) -> tuple[dict[str, Any], dict[str, Any]]:
    chosen, lora = task.options, task.options["finetuning_type"] == "lora"
    rank = chosen["lora_rank"]
    adapter = {
        "adapter": "lora",
        "lora_r": rank,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.0,
        "lora_target_linear": True,
    }
    return {
        **(adapter if lora else {}),
        "sequence_len": chosen["max_length"],
        "micro_batch_size": chosen["batch_size"],
        "gradient_accumulation_steps": 1,
        "num_epochs": chosen["num_train_epochs"],
        "learning_rate": chosen["learning_rate"],
        "lr_scheduler": "linear",
        "optimizer": "adamw_torch",
        "weight_decay": 0.0,
        "bf16": chosen["dtype"] == "bfloat16",
        "seed": chosen["seed"],
        "val_set_size": 0,
    }, {
        "base_model": str(task.model),
        **_stanza(task, "axolotl.yaml"),
        "output_dir": str(task.output_dir),
        "dataset_prepared_path": str(task.data.parent / "prepared"),
    }


def _llamafactory(task: TrainingTask) -> tuple[dict[str, Any], dict[str, Any]]:
    chosen, lora = task.options, task.options["finetuning_type"] == "lora"
    rank = chosen["lora_rank"]
    adapter = {"lora_rank": rank, "lora_alpha": 2 * rank, "lora_target": "all"}
    return {
        "finetuning_type": chosen["finetuning_type"],
        **(adapter if lora else {}),
        "cutoff_len": chosen["max_length"],
        **_hf_arguments(chosen),
    }, {
        "stage": "sft",
        "do_train": True,
        "model_name_or_path": str(task.model),
        "dataset": "pyids_selected",
        "dataset_dir": str(task.data.parent),
        "output_dir": str(task.output_dir),
    }


def _trl(task: TrainingTask) -> tuple[dict[str, Any], dict[str, Any]]:
    chosen, lora = task.options, task.options["finetuning_type"] == "lora"
    rank = chosen["lora_rank"]
    adapter = {
        "use_peft": True,
        "lora_r": rank,
        "lora_alpha": 2 * rank,
        "lora_target_modules": ["all-linear"],
    }
    stanza = _stanza(task, "sft.yaml")
    return {
        "assistant_only_loss": stanza.pop("assistant_only_loss"),
        **(adapter if lora else {}),
        "max_length": chosen["max_length"],
        **_hf_arguments(chosen),
        "use_cpu": chosen["device"] == "cpu",
    }, {
        "model_name_or_path": str(task.model),
        **stanza,
        "output_dir": str(task.output_dir),
    }


def _hf_arguments(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Give the options that are transformers' own."""
    return {
        "per_device_train_batch_size": chosen["batch_size"],
        "gradient_accumulation_steps": 1,
        "num_train_epochs": chosen["num_train_epochs"],
        "learning_rate": chosen["learning_rate"],
        "lr_scheduler_type": "linear",
        "weight_decay": 0.0,
        "bf16": chosen["dtype"] == "bfloat16",
        "seed": chosen["seed"],
        "save_strategy": "no",
        "report_to": "none",
    }


def _stanza(task: TrainingTask, name: str) -> dict[str, Any]:
    """Read what the export says of the data in the trainer's own words."""
    stanza: dict[str, Any] = yaml.safe_load((task.data.parent / name).read_text("utf-8"))
    return stanza
