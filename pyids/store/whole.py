"""Whether a folder holds what was made there, as far as its names and its small files tell."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import yaml

from pyids.errors import ConfigError, DamagedError
from pyids.store.files import brief, entries_of, files_inside, read_sealed
from pyids.store.ledger import entry_of
from pyids.store.remedies import remedy

# What every folder holds in which rows have been selected.
_ALWAYS = ("config.yaml", "identity.json", "rows/index.json", "keep/index.json")

# Where each array has a ledger entry.
_ARRAYS = ("keep", "embeddings", "labels", "distinct", "tokens", "groups")


def lacking(path: Path) -> Iterator[tuple[Path, str]]:
    """Yield what a run folder lacks in which rows have been selected, and what is wrong with it.

    For a folder in which nobody works: one that grows has files whose entry is yet to come.
    """
    for name in _ALWAYS:
        if not (path / name).is_file():
            yield path / name, "missing"
    if (problem := config_problem(path)) not in (None, "missing"):
        yield path / "config.yaml", str(problem)
    try:
        shards = read_sealed(path / "rows" / "index.json")["shards"]
    except (FileNotFoundError, DamagedError, ConfigError):
        shards = []  # who reads it says so
    for split in sorted({str(shard["name"]).partition("-")[0] for shard in shards}):
        if not (path / "rows" / f"{split}.json").is_file():
            yield path / "rows" / f"{split}.json", "missing"
    arrays = [file for name in _ARRAYS for file in sorted(files_inside(path / name, "*.npy"))]
    for file in (*arrays, *entries_of(path, "centroids.safetensors")):
        try:
            entry_of(file)
        except DamagedError:
            yield file, "no ledger entry vouches for it"
    entries = [entry for name in _ARRAYS for entry in sorted(files_inside(path / name, "*.json"))]
    for entry in (*entries, *entries_of(path, "centroids.json")):
        try:
            files = read_sealed(entry).get("files", {})
        except (FileNotFoundError, DamagedError, ConfigError):
            continue
        yield from ((entry.parent / f, "missing") for f in files if not (entry.parent / f).exists())


def config_problem(path: Path) -> str | None:
    """Say what is wrong with the ``config.yaml`` of a folder, beside what it was made with.

    None where nothing is, and where ``identity.json`` does not tell.
    """
    try:
        made_with = read_sealed(path / "identity.json")
    except (FileNotFoundError, DamagedError, ConfigError):
        return None
    try:
        options = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return "missing"
    except (ValueError, yaml.YAMLError, RecursionError):
        return "damaged, no YAML"
    given = options if isinstance(options, dict) else {}
    given = {str(name).replace("-", "_"): value for name, value in given.items()}
    for name, value in made_with.items():
        if name != "inputs" and not _same(given.get(name), value):
            now = brief(str(given.get(name)))
            return f"damaged or edited ({name} is {now}, and the folder was made with another)"
    return None


def _same(given: Any, value: Any) -> bool:
    """Whether an option is what a folder was made with, where files are known by their content."""
    if isinstance(value, dict) or (
        isinstance(value, list) and any(isinstance(one, dict) for one in value)
    ):
        return given is not None
    try:
        return bool(orjson.loads(orjson.dumps(given)) == value)
    except (TypeError, ValueError):
        return False


def check_config(path: Path) -> None:
    """Check that the ``config.yaml`` of a folder is the one that it was made with.

    Raises
    ------
    DamagedError
        It is not; names what helps.
    """
    if problem := config_problem(path):
        file = path / "config.yaml"
        raise DamagedError(f"{file}: {problem}: {remedy(file)}")
