"""Fine-tuned models on disk: an adapter or a whole model, with the record of how it came about."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pyids.errors import ModelError
from pyids.models.adapter import check_adapter
from pyids.models.hf import one_line, quiet
from pyids.models.hub import ModelRef, resolve_model
from pyids.models.load import load_model, load_tokenizer
from pyids.store.files import naming, rename_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


Method = Literal["lora", "full"]


_RECORD = "checkpoint.json"

# What is taken of another trainer's model: first its weights, then what describes them.
_FILES: dict[Method, tuple[str, ...]] = {
    "lora": ("adapter_model.safetensors", "adapter_config.json"),
    "full": (
        "model*.safetensors",
        "model.safetensors.index.json",
        "config.json",
        "generation_config.json",
    ),
}


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
        Optimizer steps; None where a trainer of the user's own has made them.
    loss
        Mean NLL per response token in nats over the last epoch, as training met the rows; None as
        for `steps`.
    seconds
        Wall-clock time of loading the base model and training it.
    """

    path: Path
    method: Method
    base: str
    rows: int
    tokens: int
    response_tokens: int
    skipped: tuple[int, ...]
    steps: int | None
    loss: float | None
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
        raise ModelError(
            f"{path}: the adapter cannot be loaded ({one_line(error)}): train it again, or get its "
            "files again"
        ) from error
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
    temporary = _begin(checkpoint.path)
    with quiet():
        if checkpoint.method == "lora":
            model.save_pretrained(temporary)
            _describe(temporary / "adapter_config.json", checkpoint.base)
            (temporary / "README.md").unlink(missing_ok=True)
        else:
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
    _write_record(temporary, checkpoint)
    rename_folder(temporary, checkpoint.path)


def take_checkpoint(
    output: Path,
    ref: ModelRef,
    record: Checkpoint,
    check: Callable[[Path], None] = lambda folder: None,
) -> Checkpoint:
    """Take what a trainer of the user's own has left: a LoRA adapter or a whole model.

    Parameters
    ----------
    output
        Where it lies, or in the last ``checkpoint-N`` of that folder.
    ref
        The base model; a whole model is kept with its tokenizer.
    record
        What is known of the training; the method is that of what is found.
    check
        Called with the folder before it appears under its name; raises where it cannot be used.

    Raises
    ------
    ModelError
        There is no model, or none in safetensors.
    """
    source, method = _find_model(output)
    checkpoint = replace(record, method=method)
    temporary = _begin(checkpoint.path)
    temporary.mkdir()
    for pattern in _FILES[method]:
        for file in sorted(source.glob(pattern)):
            shutil.copyfile(file, temporary / file.name)
    if method == "lora":
        _describe(temporary / "adapter_config.json", ref.name)
    else:
        # Rows are the same tokens under both models, whatever template the trainer has saved.
        load_tokenizer(ref).save_pretrained(temporary)
    _write_record(temporary, checkpoint)
    try:
        _check_finite(temporary)
        check(temporary)
    except ModelError as error:
        shutil.rmtree(temporary)
        raise ModelError(str(error).replace(str(temporary), str(source))) from None
    rename_folder(temporary, checkpoint.path)
    return checkpoint


def _find_model(output: Path) -> tuple[Path, Method]:
    numbered = [path for path in output.glob("checkpoint-*") if path.name[11:].isdecimal()]
    for folder in (output, *sorted(numbered, key=lambda path: -int(path.name[11:]))):
        for method in _FILES:
            description = "adapter_config.json" if method == "lora" else "config.json"
            weights = any(any(folder.glob(pattern)) for pattern in _FILES[method][:1])
            if weights and (folder / description).is_file():
                return folder, method
    pickles = [path.name for path in sorted(output.glob("**/*.bin")) if "model" in path.name]
    found = f"only {pickles[0]}, a pickle" if pickles else "nothing of the kind"
    raise ModelError(
        f"{output}: the trainer has left {found}: let it save a LoRA adapter "
        "(adapter_config.json, adapter_model.safetensors) or a whole model (config.json, "
        "*.safetensors) there"
    )


def _check_finite(folder: Path) -> None:
    """Refuse weights that are not finite: what diverged would end the scoring without a reason."""
    from safetensors import SafetensorError, safe_open

    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, "pt") as stored:
                wrong = (n for n in stored.keys() if not stored.get_tensor(n).isfinite().all())  # noqa: SIM118
                name = next(wrong, None)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{file}: cannot be read ({one_line(error)}): train again") from None
        if name is not None:
            raise ModelError(
                f"{file}: weights that are not finite ({name}): lower the trainer's learning rate"
            )


def _describe(file: Path, name: str) -> None:
    """Make equal adapters have equal descriptions, wherever and by which process they were made.

    The base model has its name, not the path of a cache, and the layers stand in their order, not
    in that of a set of strings, which is another in every process.
    """
    try:
        described = json.loads(file.read_bytes())
        described["base_model_name_or_path"] = name
        for names in ("target_modules", "modules_to_save"):
            if isinstance(described.get(names), list):
                described[names].sort()
    except (ValueError, TypeError) as error:
        raise ModelError(
            f"{file.name} of the trainer is no JSON object: let it save the adapter with peft"
        ) from error
    with naming(file):
        file.write_text(json.dumps(described, indent=2, sort_keys=True), "utf-8")


def _begin(folder: Path) -> Path:
    """Remove what a killed process has left of a checkpoint; name a folder for the new one."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for stale in folder.parent.glob(f".{folder.name}.{32 * '[0-9a-f]'}"):
        shutil.rmtree(stale)
    return folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")


def _write_record(folder: Path, checkpoint: Checkpoint) -> None:
    record = asdict(checkpoint)
    del record["path"]
    with naming(folder / _RECORD):
        (folder / _RECORD).write_text(json.dumps(record, indent=2) + "\n", "utf-8")
