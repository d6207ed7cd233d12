"""GGUF files, converted once to safetensors."""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyids.errors import ModelError
from pyids.models.hf import one_line, quiet
from pyids.store.files import rename_folder

if TYPE_CHECKING:
    pass


# Part of a converted model's folder name: raise it when the conversion changes, and old folders
# are no longer found.
_CONVERSION = 1


def cache_dir() -> Path:
    """Return the folder for converted models: $PYIDS_CACHE, else ``pyids`` in the XDG cache."""
    if own := os.environ.get("PYIDS_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "pyids"


def convert_gguf(path: Path) -> Path:
    """Convert a GGUF file to a safetensors folder in the cache, once.

    De-quantizing takes tens of seconds, loading the result one. The folder appears by one rename,
    so it is whole or absent; a lock keeps other processes waiting meanwhile; what a killed
    conversion left is removed by the next. The folder's name holds the hash of the GGUF file.
    """
    import xxhash

    digest = xxhash.xxh3_128()
    with path.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    models = cache_dir() / "models"
    folder = models / f"{path.stem}-{digest.hexdigest()[:16]}-v{_CONVERSION}"
    if folder.is_dir():
        return folder

    from filelock import FileLock

    try:
        models.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(folder.name + ".lock")):
            if not folder.is_dir():
                for stale in models.glob(f".{folder.name}.*"):
                    shutil.rmtree(stale)
                temporary = models / f".{folder.name}.{uuid.uuid4().hex}"
                try:
                    _convert_gguf(path, temporary)
                except OSError:
                    raise
                except Exception as error:  # a file of any content makes any error; re-raised
                    shutil.rmtree(temporary, ignore_errors=True)
                    raise ModelError(
                        f"{path}: cannot be read as a GGUF model: {one_line(error)}: get it again"
                    ) from error
                rename_folder(temporary, folder)
    except OSError as error:
        raise ModelError(
            f"{path.name}: the converted copy cannot be written to {models}: {one_line(error)}; "
            "set PYIDS_CACHE to a writable folder with 1 GB free"
        ) from error
    return folder


def _convert_gguf(path: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet():
        source = {"gguf_file": path.name, "local_files_only": True}
        tokenizer = AutoTokenizer.from_pretrained(path.parent, **source)
        model: Any = AutoModelForCausalLM.from_pretrained(
            path.parent, dtype=torch.float32, **source
        )
        # The tensors are plain float32 by now; without this save_pretrained refuses.
        model.hf_quantizer = None
        del model.config.quantization_config
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
