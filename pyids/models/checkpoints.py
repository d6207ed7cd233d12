"""Fine-tuned models on disk: an adapter or a whole model, with the record of how it came about."""

from __future__ import annotations

import json
import shutil
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pyids.errors import ModelError
from pyids.models.adapter import check_adapter
from pyids.models.hf import one_line, quiet
from pyids.models.hub import ModelRef, resolve_model
from pyids.models.load import load_model
from pyids.store.files import rename_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


Method = Literal["lora", "full"]


_RECORD = "checkpoint.json"


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


def save_checkpoint(model: Any, tokenizer: Any, checkpoint: Checkpoint) -> None:
    """Write a model and its record: the folder appears whole, or not at all."""
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
