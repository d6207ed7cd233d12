"""Which run a folder belongs to: its configuration, and what two runs in one folder must share."""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from pyids.config import RunConfig, load_config, make_config
from pyids.data.fingerprints import fingerprint_files, fingerprint_sources
from pyids.data.folders import parse_name
from pyids.data.remote import is_remote
from pyids.data.sources import Source, named_files
from pyids.data.target import target_files
from pyids.data.vector_files import vector_paths
from pyids.engine import Engine
from pyids.errors import ConfigError, DamagedError
from pyids.models.hub import round_model
from pyids.store.files import brief, entries_of, read_sealed
from pyids.store.folder import Store
from pyids.store.place import is_run_folder

# Where a run works does not change what it selects: these may differ when it goes on.
_MACHINE = {
    *("data", "engine", "workers", "threads", "max_memory", "address", "device", "output_dir"),
    *("task_timeout", "skip_failing"),
    *(
        "num_gpus",
        "num_processes",
        "fsdp",
        "packing",
        "gradient_checkpointing",
        "judge_max_requests",
    ),
    *("serve_url", "serve_model", "serve_max_requests"),
}

# Known by what is in them, not by where they lie.
_FILES = {"embeddings_file", "target", "target_embeddings_file", "train_config"} | {
    *("exclude", "exclude_embeddings_file", "already")
}

_SET_BACK = (
    "set it back, or choose another --output-dir; if the file is damaged, repeat the command that "
    "began the run, with all its options"
)


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """Give `config` with paths of data and vectors that hold in any working directory."""
    paths: dict[str, Any] = {
        "data": [
            os.path.abspath(name)
            if not is_remote(name)
            and (Path(name).exists() or glob.has_magic(name) or parse_name(name) is not None)
            else name
            for name in config.data  # what is none of these is a name on the hub
        ]
    }
    for several in ("target", "exclude", "already"):
        if (names := getattr(config, several)) is not None:
            paths[several] = [
                os.path.abspath(name)
                if not is_remote(name)
                and (Path(name).exists() or glob.has_magic(name) or parse_name(name) is not None)
                else name
                for name in names
            ]
    for name in (
        *("embeddings_file", "target_embeddings_file", "exclude_embeddings_file", "train_config"),
    ):
        if (path := getattr(config, name)) is not None and not is_remote(path):
            paths[name] = os.path.abspath(path)
    return config.model_copy(update=paths)


def identity_of(
    config: RunConfig,
    sources: Sequence[Source],
    store: Store | None = None,
    engine: Engine | None = None,
) -> dict[str, Any]:
    """Collect what two runs in one folder must share: the options and the content of the input."""
    identity = {
        **config.model_dump(exclude=_MACHINE),
        "inputs": fingerprint_sources(sources, store, limit=config.limit, engine=engine),
    }
    if (path := config.embeddings_file) is not None:
        # What is in the file, not where it lies: vectors may move, as data may.
        found = fingerprint_files(vector_paths(path)[0], store, engine=engine)
        identity["embeddings_file"] = found[0] if len(found) == 1 else found
    if config.target is not None:
        identity["target"] = fingerprint_files(target_files(config), store)
        del identity["target_embeddings_file"]
    if config.train_config is not None:
        # By its content alone: it may move, and have another name.
        [content] = fingerprint_files([config.train_config], store)
        identity["train_config"] = {k: v for k, v in content.items() if k != "name"}
    for name in ("exclude", "already"):
        if names := getattr(config, name):
            files = named_files(names, held_out=name == "exclude")
            identity[name] = fingerprint_files(files, store)
    if (path := config.exclude_embeddings_file) is not None:
        identity["exclude_embeddings_file"] = fingerprint_files(vector_paths(path)[0], store)
    return identity


# What a model's folder is known by: weights, and what its rows become tokens by.
_OF_MODELS = {".safetensors", ".json", ".jinja", ".model", ".txt"}


def model_content(config: RunConfig, store: Store) -> dict[str, Any]:
    """Give what the model of the rounds is known by: its revision, or the hashes of its files.

    A file that has not changed since the run folder came to know it is not read again.
    """
    ref = round_model(config)
    if ref.revision is not None or ref.path is None:
        return {"revision": ref.revision}
    inside = sorted(ref.path.iterdir()) if ref.path.is_dir() else [ref.path]
    files = [str(file) for file in inside if file.suffix in _OF_MODELS or file == ref.path]
    return {file["name"]: file["xxh3"] for file in fingerprint_files(files, store)}


def saved_config(folder: Path, **changes: Any) -> RunConfig:
    """Read the configuration that a run folder holds, made to point at that folder.

    Parameters
    ----------
    **changes
        Fields to change in it.

    Raises
    ------
    ConfigError
        It is not a run folder, its ``config.yaml`` cannot be used, or was edited where it decides
        what is selected.
    """
    path = folder / "config.yaml"
    if is_run_folder(folder) and not path.is_file() and not path.is_symlink():
        raise DamagedError(
            f"{path}: missing, or no file: repeat the command that began the run, with all its "
            "options, and it is written again"
        )
    if path.is_symlink() or not path.is_file():
        raise ConfigError(
            f"{folder} is not a run folder (it has no config.yaml): name the --output-dir of a run"
        )
    try:
        saved = make_config(**{**load_config(path), "output_dir": str(folder)})
    except ConfigError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise ConfigError(
            f"{path}: damaged or edited ({reason}): repeat the command that began the run, with "
            "all its options, and it is written again"
        ) from None
    made_with = Store(folder).identity()
    if made_with is not None:
        _compare(path, decided(saved), made_with, f"{folder} was made with")
        _compare_files(path, saved, made_with)
    check_decided(folder, saved)
    return make_config(**{**saved.model_dump(), **changes, "output_dir": str(folder)})


def is_made_with(config: RunConfig) -> bool:
    """Whether the run folder of `config` was made with its options, or does not tell with which."""
    made_with = Store(config.output_path).identity()
    return made_with is None or all(
        made_with.get(name) == value for name, value in decided(config).items()
    )


def _compare_files(path: Path, saved: RunConfig, made_with: Mapping[str, Any]) -> None:
    """Compare whether there are files of each kind, which are known by their content."""
    for name in sorted(_FILES & made_with.keys()):
        value, were = getattr(saved, name), made_with[name] is not None
        if were != (value is not None):
            origin = f"{path.parent} was made with{'' if were else 'out'} such files"
            raise ConfigError(f"{path}: {name} is {brief(value)}, and {origin}: {_SET_BACK}")


def decided(config: RunConfig) -> dict[str, Any]:
    """Collect the options that decide what is selected, as JSON values."""
    chosen: dict[str, Any] = orjson.loads(
        orjson.dumps(config.model_dump(exclude=_MACHINE | _FILES))
    )
    return chosen


def named(config: RunConfig) -> dict[str, Any]:
    """Collect the files, servers, models and options that a run with `config` would use."""
    used = {"data": config.data, **({"serve_url": config.serve_url} if config.serve_url else {})}
    return {**config.model_dump(exclude=_MACHINE), **used}


def check_decided(folder: Path, config: RunConfig) -> None:
    """Check that the rounds of a folder were drawn with the options of `config`.

    Raises
    ------
    ConfigError
        They were not; names the field.
    """
    for entry in (drawn / "selected.json" for drawn in entries_of(folder / "rounds", "[0-9]*")):
        try:
            had = read_sealed(entry)["inputs"]["decided"]
        except (DamagedError, FileNotFoundError):
            continue  # `pyids.pipeline.replay` sees to it
        number = entry.parent.name
        _compare(folder, decided(config), had, f"round {number} was drawn with")


def _compare(where: Path, now: Mapping[str, Any], had: Mapping[str, Any], origin: str) -> None:
    for key, value in now.items():
        if had.get(key) != value:
            raise ConfigError(
                f"{where}: {key} is {brief(value)}, and {origin} {brief(had.get(key))}: {_SET_BACK}"
            )
