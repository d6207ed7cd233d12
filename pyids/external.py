"""Options of what works outside of pyids: a trainer of the user's own, a serving engine.

`pyids.config.RunConfig` has them beside its own; they stand here because there are many.
"""

from __future__ import annotations

import shlex
import string
from typing import Annotated

from pydantic import AfterValidator, BaseModel, model_validator

from pyids.options import option
from pyids.parsing import check_url
from pyids.registry import TRAINERS

# What stands in braces in a --train-command.
PLACEHOLDERS = ("config", "data", "model", "output", "round", "seed")


def parse_command(command: str) -> list[str]:
    """Take a command apart as a shell would, and check what stands in braces.

    Returns
    -------
    list of str
        The words; no shell sees them. In each, ``{NAME}`` is one of `PLACEHOLDERS`.

    Raises
    ------
    ValueError
        A quote is open, a name in braces is unknown, or the program would not know its data or
        where its checkpoint goes.
    """
    remedy = 'write it as --train-command "axolotl train {config}"'
    try:
        words = shlex.split(command)
        parts = [part for word in words for part in string.Formatter().parse(word)]
    except ValueError as error:
        raise ValueError(f"train command {command!r}: {error}: {remedy}") from None
    if not words:
        raise ValueError(f"train command {command!r} is empty: {remedy}")
    names = {name for _, name, *_ in parts if name is not None}
    plain = all(not form and change is None for _, _, form, change in parts)
    if not plain or not names <= set(PLACEHOLDERS):
        raise ValueError(
            f"train command {command!r}: in braces stand {', '.join(PLACEHOLDERS)} alone (double "
            f"other braces): {remedy}"
        )
    if "config" not in names and not {"data", "output"} <= names:
        raise ValueError(
            f"train command {command!r}: the program must be told its data and where its "
            f"checkpoint goes, by {{config}} or by {{data}} and {{output}}: {remedy}"
        )
    return words


def _check_command(command: str) -> str:
    parse_command(command)
    return command


class ExternalOptions(BaseModel):
    """The options; they are fields of `pyids.config.RunConfig`."""

    trainer: Annotated[str, AfterValidator(TRAINERS.check)] | None = option(
        "Training", "train with a function of your own, module:function, in every round", None
    )
    train_command: Annotated[str, AfterValidator(_check_command)] | None = option(
        "Training",
        'train with a program of your own, such as "axolotl train {config}"; in braces: '
        + ", ".join(PLACEHOLDERS),
        None,
    )
    train_config: str | None = option(
        "Training", "YAML file of that trainer, to which model, data and output are added", None
    )

    gradient_checkpointing: bool = option(
        "Training", "compute activations twice instead of keeping them: slower, less memory", False
    )
    load_in_4bit: bool = option(
        "Training",
        "hold the base model in 4 bits while its adapter is trained (QLoRA; needs bitsandbytes)",
        False,
    )
    packing: bool = option(
        "Training", "put rows one after the other instead of padding them; none sees another", False
    )
    num_gpus: int | None = option(
        "Machine", "GPUs that train and score together, a process on each", None, ge=1, le=1024
    )
    num_processes: int = option(
        "Machine", "processes that train and score together, on GPUs or CPUs", 1, ge=1, le=1024
    )
    fsdp: bool = option(
        "Training", "share out the weights over the processes: for models that do not fit", False
    )

    serve_url: Annotated[str, AfterValidator(check_url)] | None = option(
        "Scoring",
        "OpenAI-compatible server (vLLM, SGLang) that scores rows and answers instead of the local "
        "model; key in OPENAI_API_KEY",
        None,
    )
    serve_model: str | None = option(
        "Scoring", "base model at that server (default: as the model is called here)", None
    )
    serve_max_requests: int | None = option(
        "Scoring", "most requests to that server in a run (default: no cap)", None, ge=1
    )

    @model_validator(mode="after")
    def _check_trainer(self) -> ExternalOptions:
        if self.trainer is not None and self.train_command is not None:
            raise ValueError("--trainer and --train-command both say who trains: give one")
        if self.num_gpus is not None and self.num_processes > 1:
            raise ValueError("--num-gpus and --num-processes both say how many train: give one")
        if self.processes > 1 and self.has_own_trainer:
            flag = "--num-processes" if self.num_gpus is None else "--num-gpus"
            raise ValueError(f"{flag} is for the trainer of pyids: tell your own yourself")
        if self.fsdp and self.processes == 1:
            raise ValueError(
                "--fsdp shares out the weights over several processes: say how many by --num-gpus "
                "or --num-processes"
            )
        if self.train_config is not None and not self.has_own_trainer:
            raise ValueError("--train-config belongs to --train-command or --trainer: name one")
        for name in ("serve_model", "serve_max_requests"):
            if getattr(self, name) is not None and self.serve_url is None:
                raise ValueError(f"--{name.replace('_', '-')} belongs to --serve-url: name that")
        return self

    @property
    def processes(self) -> int:
        """How many processes train and score together."""
        return self.num_gpus or self.num_processes

    @property
    def has_own_trainer(self) -> bool:
        """Whether a trainer of the user's own trains in the rounds."""
        return self.trainer is not None or self.train_command is not None
