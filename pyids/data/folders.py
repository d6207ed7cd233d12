"""Which files of a folder are read: the split that is meant, by the rules of the package datasets.

A README whose head names configurations and their files decides; else the words train, validation
and test in the names of files and folders. The split train is read unless another is named.
"""

from __future__ import annotations

import glob
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from pyids.errors import DataError
from pyids.store.place import is_run_folder

logger = logging.getLogger("pyids")


METADATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}


# DATA, its configuration and its split.
_NAMED = re.compile(r"(?P<folder>.+?)(@(?P<config>[\w.-]+))?(:(?P<split>[\w.-]+))?")


_WORDS = {
    "train": "train|training",
    "validation": "validation|valid|dev|val",
    "test": "test|testing|eval|evaluation",
}


_SPLIT_WORD = {
    split: re.compile(rf"(?<![a-zA-Z])({words})(?![a-zA-Z])", re.IGNORECASE)
    for split, words in _WORDS.items()
}


def parse_name(name: str) -> tuple[Path, str | None, str | None] | None:
    """Take ``FOLDER@CONFIG:SPLIT`` apart; None where there is no such folder."""
    if os.path.isdir(name):
        return Path(name), None, None
    found = _NAMED.fullmatch(name)
    if found is None or not os.path.isdir(found["folder"]):
        return None
    return Path(found["folder"]), found["config"], found["split"]


# The splits that are meant where none is named: of data to learn from, and of a benchmark.
TRAIN = ("train",)
HELD_OUT = ("test", "validation", "dev")


def choose_split(
    folder: Path | str, splits: list[str], wanted: str | None, prefer: Sequence[str] = TRAIN
) -> str:
    """Return the split that is meant: what is wanted, the first of `prefer`, or the only one.

    Raises
    ------
    DataError
        There is no such split, or several and none of `prefer`.
    """
    names = ", ".join(splits)
    if wanted is not None:
        if wanted not in splits:
            raise DataError(f"{folder}: there is no split {wanted!r}: choose one of {names}")
        return wanted
    if (found := next((name for name in prefer if name in splits), None)) is not None:
        return found
    if len(splits) == 1:
        return splits[0]
    raise DataError(f"{folder}: holds the splits {names}: name one, such as {folder}:{splits[0]}")


def files_of_folder(
    folder: Path,
    config: str | None,
    split: str | None,
    is_data: Callable[[Path], Any],
    prefer: Sequence[str] = TRAIN,
) -> list[Path]:
    """Give the data files of a folder that are meant, sorted by path; log what is left out.

    Parameters
    ----------
    folder, config, split
        As `parse_name` gives them; the split ``all`` is every file.
    is_data : callable
        Whether a file is one of data, by its name.
    prefer : sequence of str
        The splits that are meant where none is named.

    Raises
    ------
    DataError
        No such configuration or split, or several.
    """
    files = [
        file
        for file in _walk(folder)
        if is_data(file)
        and file.name not in METADATA
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    ]
    # What runs have written beside the data, such as runs/ in the present directory, is none.
    inside = {parent for file in files for parent in file.parents if parent.is_relative_to(folder)}
    runs = set(filter(is_run_folder, inside))
    files = [file for file in files if runs.isdisjoint(file.parents)]
    if split == "all":
        return files
    configs = _configs(folder)
    if config is not None and config not in configs:
        known = ", ".join(configs) or "none"
        raise DataError(
            f"{folder}: there is no configuration {config!r} (its README has: {known}): choose one"
        )
    splits = _named(folder, configs, config, files) if configs else _by_words(folder, files)
    if not splits:
        return files
    chosen = choose_split(folder, list(splits), split, prefer)
    _log_left_out(folder, splits, chosen, files)
    return splits[chosen]


def _walk(folder: Path) -> list[Path]:
    """Give all files below a folder; a linked folder is followed, and none is entered twice."""
    seen = {os.path.realpath(folder)}
    found = []
    for here, folders, files in os.walk(folder, followlinks=True):
        new = []
        for name in sorted(folders):
            real = os.path.realpath(os.path.join(here, name))
            if real not in seen:
                seen.add(real)
                new.append(name)
        folders[:] = new
        found += [Path(here, name) for name in files]
    return sorted(file for file in found if file.is_file())


def _by_words(folder: Path, files: list[Path]) -> dict[str, list[Path]]:
    """Sort files by the word for a split in their names, the last of them first."""
    splits: dict[str, list[Path]] = {}
    rest = []
    for file in files:
        for part in reversed(file.relative_to(folder).parts):
            split = next((s for s, word in _SPLIT_WORD.items() if word.search(part)), None)
            if split is not None:
                splits.setdefault(split, []).append(file)
                break
        else:
            rest.append(file)
    if splits and rest and "train" not in splits:
        splits["train"] = rest  # what no word names beside a test file is what is trained on
    return splits


def _configs(folder: Path) -> dict[str, dict[str, Any]]:
    """Read the configurations with files of their own that the head of a README names."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return {}
    head = re.match(r"---\s*\n(.*?)\n---\s*(\n|\Z)", text, re.DOTALL)
    try:
        found = yaml.safe_load(head[1]) if head else None
    except (yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{folder / 'README.md'}: its head is no YAML ({reason}): mend it"
        ) from None
    listed = found.get("configs") if isinstance(found, dict) else None
    if not isinstance(listed, list):
        return {}
    return {
        str(config.get("config_name", "default")): config
        for config in listed
        if isinstance(config, dict) and "data_files" in config
    }


def _named(
    folder: Path, configs: dict[str, dict[str, Any]], name: str | None, files: list[Path]
) -> dict[str, list[Path]]:
    """Give the files of each split of a configuration."""
    if name is None:
        default = [key for key, config in configs.items() if config.get("default")]
        name = next(iter(default), "default" if "default" in configs else None)
    if name is None and len(configs) > 1:
        shown = ", ".join(configs)
        raise DataError(
            f"{folder}: its README names the configurations {shown}: choose one, such as "
            f"{folder}@{next(iter(configs))}"
        )
    config = configs[name if name is not None else next(iter(configs))]
    base = folder / str(config.get("data_dir") or "")
    splits, ours = {}, set(files)
    for split, patterns in _patterns(config["data_files"]):
        found = [file for pattern in patterns for file in _matches(base, pattern)]
        splits[split] = sorted(ours.intersection(found))
        if not splits[split]:
            raise DataError(
                f"{folder}: no data file matches {', '.join(patterns)}, which its README names for "
                f"the split {split}: mend the README, or name the files"
            )
    return splits


def _patterns(data_files: Any) -> Iterator[tuple[str, list[str]]]:
    def listed(value: Any) -> list[str]:
        return [str(part) for part in (value if isinstance(value, list) else [value])]

    if isinstance(data_files, dict):
        yield from ((str(split), listed(value)) for split, value in data_files.items())
    elif isinstance(data_files, list) and all(
        isinstance(part, dict) and "path" in part for part in data_files
    ):
        for part in data_files:
            yield str(part.get("split", "train")), listed(part["path"])
    else:
        yield "train", listed(data_files)


def _matches(base: Path, pattern: str) -> list[Path]:
    pattern = os.path.join(glob.escape(str(base)), pattern)
    found = [Path(name) for name in glob.glob(pattern, recursive=True)]
    return [file for path in found for file in (_walk(path) if path.is_dir() else [path])]


def _log_left_out(
    folder: Path, splits: dict[str, list[Path]], chosen: str, files: list[Path]
) -> None:
    read = set(splits[chosen])
    if not (left := [file for file in files if file not in read]):
        return
    others = [f"{name} ({len(found)} files)" for name, found in splits.items() if name != chosen]
    loose = len(left) - sum(len(set(found) - read) for n, found in splits.items() if n != chosen)
    if loose > 0:
        others.append(f"{loose} files of no split")
    shown = ", ".join(str(file.relative_to(folder)) for file in left[:5])
    logger.info(
        "%s: read the split %s; left out %s: %s%s (name a split as %s:SPLIT, or all)",
        *(folder, chosen, ", ".join(others), shown, ", ..." if len(left) > 5 else "", folder),
    )
