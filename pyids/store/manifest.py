"""The manifest: the hash of everything, and its check."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pyids.errors import DataError
from pyids.store.files import hash_file, read_json


def verify(path: Path | str) -> list[str]:
    """Hash every file of a run folder again and compare with its manifest.

    Returns
    -------
    list of str
        One line for each file that is missing, has changed or is not in the manifest; empty when
        the folder is what its run left behind.

    Raises
    ------
    DataError
        The folder has no manifest: its run has not ended.
    """
    path = Path(path)
    try:
        files = read_json(path / "manifest.json")["files"]
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(
            f"{path} has no manifest.json: not a run folder, or its run has not ended"
        ) from None
    problems = []
    for name, facts in files.items():
        file = path / name
        if not file.is_file():
            problems.append(f"{name}: missing")
        elif file.stat().st_size != facts["bytes"]:
            problems.append(f"{name}: {file.stat().st_size} bytes, was {facts['bytes']}")
        elif hash_file(file) != facts["xxh3"]:
            problems.append(f"{name}: the content has changed")
    known = set(files)
    problems += [
        f"{name}: not in the manifest"
        for name in (str(file.relative_to(path)) for file in artifacts(path))
        if name not in known and not name.startswith("quality/cache/")  # `pyids select` adds to it
    ]
    return problems


def artifacts(path: Path) -> list[Path]:
    """Every file of the run folder that the manifest vouches for, sorted.

    Not ``selected-...``, the report and the cards: what `pyids export`, `pyids select` and `pyids
    report` write there may come and change after the run.
    """
    return sorted(
        file
        for file in path.rglob("*")
        if file.is_file()
        and file.name != "manifest.json"
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
        and not _comes_after(file.relative_to(path).parts)
    )


def _comes_after(parts: tuple[str, ...]) -> bool:
    """Whether this file, or the folder that holds it, may come and change after the run."""
    top = parts[0]
    ours = len(parts) == 1 and (top in ("report.html", "map.parquet") or top.endswith("README.md"))
    return ours or top.startswith("selected-")


def environment() -> dict[str, Any]:
    """Versions and machine, as far as they are known without importing anything heavy."""
    packages: dict[str, str | None] = {}
    for name in ("pyids-select", "numpy", "pyarrow", "orjson", "torch", "transformers", "triton"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "packages": packages,
    }
