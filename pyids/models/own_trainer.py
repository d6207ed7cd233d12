"""A trainer of the user's own: a function or a program trains in each round, and leaves a model.

It reads what `pyids.data.export` wrote and saves a LoRA adapter or a whole model, of which only the
weights and their description are taken: no pickle, no state of an optimizer.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyids.chat.template import Conversation, encode
from pyids.config import RunConfig, load_config
from pyids.device import device
from pyids.errors import ConfigError
from pyids.external import parse_command
from pyids.models.checkpoints import Checkpoint, load_checkpoint, take_checkpoint
from pyids.models.hub import ModelRef, local_folder
from pyids.models.load import load_tokenizer
from pyids.models.programs import find_program, run_program
from pyids.models.trainer_configs import (
    TrainingTask,
    options_of,
    program_of,
    write_training_config,
)
from pyids.registry import TRAINERS
from pyids.store.files import fingerprint
from pyids.store.place import NO_LOCKS

Exporter = Callable[[Path, str], Path]


def check_own_trainer(config: RunConfig) -> None:
    """Find the user's function or program, and read its configuration; start nothing.

    Raises
    ------
    ConfigError
        It is not there.
    """
    if config.train_config is not None:
        load_config(config.train_config)
    if config.trainer is not None and not callable(TRAINERS.find(config.trainer)):
        raise ConfigError(f"trainer {config.trainer!r}: name a function of a `TrainingTask`")
    if config.train_command is not None:
        find_program(parse_command(config.train_command)[0], "--train-command")


def train_outside(
    config: RunConfig,
    ref: ModelRef,
    conversations: Sequence[Conversation],
    export: Exporter,
    *,
    output_dir: Path,
    number: int,
) -> Checkpoint:
    """Let the user's trainer train the base model on what was selected; take its checkpoint.

    Parameters
    ----------
    config
        Names the function or the program.
    ref
        The base model.
    conversations
        The rows that are exported, for the record's counts.
    export
        Writes the rows to a path in a format (`pyids.data.export.FORMATS`).
    output_dir
        Where the checkpoint appears, whole or not at all. The trainer works beside it, in the
        folder ``training``, which is removed when its checkpoint has been taken; what a program
        printed stays in ``.train.log``.
    number
        The round, from 1.

    Raises
    ------
    ConfigError
        The program of an earlier try is still at work.
    ModelError
        The trainer fails, or leaves no model that could be used.
    """
    folder = output_dir.with_name("training")
    with _alone(folder) as lock:
        shutil.rmtree(folder, ignore_errors=True)
        task, words = _prepare(config, ref, export, folder, number)
        start = time.monotonic()
        if words:
            run_program(words, folder.with_name(".train.log"), "--train-command", [lock])
        else:
            _call(config, task)
        seconds = round(time.monotonic() - start, 3)
        record = _count(config, ref, conversations, output_dir, seconds)
        checkpoint = take_checkpoint(task.output_dir, ref, record, _check_loads(config, ref))
        shutil.rmtree(folder)
    return checkpoint


@contextmanager
def _alone(folder: Path) -> Iterator[int]:
    """Hold the lock of a training; a program that is started with it holds it until it ends.

    A process that is killed leaves its program behind, which still writes.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    file = folder.with_name(".training.lock")
    if not _has_locks(folder.parent):  # the program of an earlier try is one of this machine
        name = f"pyids-{os.getuid()}-{fingerprint(str(folder.absolute()))}.lock"
        file = Path(tempfile.gettempdir(), name)
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{folder}: the program that an earlier try has started still trains there: wait "
                "until it ends, or end it"
            ) from None
        yield descriptor
        file.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _has_locks(folder: Path) -> bool:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in NO_LOCKS
    finally:
        os.close(descriptor)
    return True


def _prepare(
    config: RunConfig, ref: ModelRef, export: Exporter, folder: Path, number: int
) -> tuple[TrainingTask, list[str]]:
    """Write data and configuration of a training; return it with the words of its program."""
    words = parse_command(config.train_command) if config.train_command is not None else []
    program = program_of(words)
    folder.mkdir(parents=True)
    if program:
        data = export(folder / "data", program) / "selected.jsonl"
    else:
        (folder / "data").mkdir()
        data = export(folder / "data" / "selected.jsonl", "jsonl")
    given = load_config_as_is(config.train_config)
    task = TrainingTask(
        round=number,
        data=data.absolute(),
        model=local_folder(ref).absolute(),
        output_dir=(folder / "output").absolute(),
        options={**options_of(config, device(config)), **({} if program else given)},
        config_file=(folder / "config.yaml").absolute(),
    )
    task.output_dir.mkdir()
    write_training_config(task, program, given)
    filled = {
        "config": task.config_file,
        "data": task.data,
        "model": task.model,
        "output": task.output_dir,
        "round": number,
        "seed": config.seed,
    }
    return task, [word.format(**filled) for word in words]


def load_config_as_is(path: str | None) -> dict[str, Any]:
    """Read the YAML file of a trainer, whose options are spelled as it wants them."""
    if path is None:
        return {}
    import yaml

    load_config(path)  # says in one line what is wrong with it
    content: dict[str, Any] = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    return content


def _call(config: RunConfig, task: TrainingTask) -> None:
    from pyids.models.finetune import seeded

    assert config.trainer is not None
    train = TRAINERS.find(config.trainer)
    with seeded(config.seed):
        train(task)


def _count(
    config: RunConfig,
    ref: ModelRef,
    conversations: Sequence[Conversation],
    output_dir: Path,
    seconds: float,
) -> Checkpoint:
    """Make the record of a training, as far as it can be known here."""
    tokenizer = load_tokenizer(ref)
    rows = [encode(messages, tokenizer, config.max_length) for messages in conversations]
    answers = [int(row.response_mask[1:].sum()) for row in rows]
    return Checkpoint(
        path=output_dir,
        method=config.finetuning_type,
        base=ref.name,
        rows=sum(map(bool, answers)),
        tokens=sum(len(row.input_ids) for row, n in zip(rows, answers, strict=True) if n),
        response_tokens=sum(answers),
        skipped=tuple(i for i, n in enumerate(answers) if not n),
        steps=None,
        loss=None,
        seconds=seconds,
    )


def _check_loads(config: RunConfig, ref: ModelRef) -> Callable[[Path], None]:
    """Return what loads a checkpoint as scoring will; it raises where that fails."""

    def check(folder: Path) -> None:
        load_checkpoint(folder, ref, device(config), config.dtype)

    return check
