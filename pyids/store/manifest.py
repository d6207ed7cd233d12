"""The manifest: the hash of everything when a run has ended, and its check."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pyids.engine import Engine
from pyids.errors import ConfigError, DamagedError, DataError
from pyids.store.files import entries_of, files_inside, read_sealed, write_sealed
from pyids.store.ledger import damaged_files, difference, facts_of, load_sealed
from pyids.store.place import find_strange
from pyids.store.remedies import remedy
from pyids.store.whole import check_config, lacking

# Files that say where the data lie, among other things: the data may move.
_OF_PLACES = ("config.yaml", "rows/index.json")

# What may change in a finished folder: where its data lie and what it works with, what `pyids
# select` adds to the scores of rows, and answers that were paid for.
_FREE = (*_OF_PLACES, "judge.jsonl", "serve.jsonl", "quality/cache/")

# Files that decide though they begin with a dot, which the manifest leaves out: they may change.
_DOTFILES = (".inputs.json",)


def write_manifest(path: Path, metadata: Mapping[str, Any], engine: Engine | None = None) -> None:
    """Write ``manifest.json``: `metadata`, the environment, and the hash of every file.

    Parameters
    ----------
    path : Path
        The run folder.
    metadata : mapping
        JSON values of the run: configuration, seeds, device, threads, timings, inputs.
    engine : Engine, optional
        Where the files are hashed.

    Raises
    ------
    DamagedError
        A file is not what its ledger entry says, or not what it was when the run ended before: what
        is damaged is not approved.
    """
    if engine is not None:
        from pyids.store.reading import hash_ahead

        hash_ahead(engine, artifacts(path))
    for file, problem in _unlike_ledgers(path):
        raise DamagedError(f"{file}: damaged ({problem}): {remedy(file)}")
    manifest = path / "manifest.json"
    try:
        before = read_sealed(manifest)["files"]
    except (FileNotFoundError, DamagedError):
        before = {}
    for name, noted in before.items():
        if not _may_change(name) and (change := difference(path / name, noted)):
            raise DamagedError(
                f"{path / name}: not what it was when the run ended ({change}): "
                f"{remedy(path / name)}"
            )
    files = {_named(path, file): facts_of(file) for file in artifacts(path)}
    write_sealed(manifest, {**metadata, "environment": environment(), "files": files})


def _named(path: Path, file: Path) -> str:
    name = str(file.relative_to(path))
    try:
        name.encode()
    except UnicodeEncodeError:
        raise DamagedError(f"{file}: no run has made this name, no UTF-8: remove it") from None
    return name


def _may_change(name: str) -> bool:
    # How long a training took is written beside a checkpoint. Its ledger entry vouches for it.
    of_training = name.startswith("rounds/") and name.endswith("/checkpoint.json")
    return name.startswith(_FREE) or of_training


def note_places(path: Path) -> None:
    """Let the manifest of a finished folder, if it has one, vouch anew for files that name places.

    Folders and data may be moved, which decides nothing. Only for a process that has written these
    files itself, and compared the configuration with what the folder was made with.
    """
    try:
        manifest = read_sealed(path / "manifest.json")
    except (FileNotFoundError, DamagedError, ConfigError):
        return  # it has none, or `verify` says what is wrong with it
    facts = {name: facts_of(path / name) for name in _OF_PLACES}
    if any(manifest["files"].get(name) != fact for name, fact in facts.items()):
        manifest["files"].update(facts)
        write_sealed(path / "manifest.json", manifest)


def verify(path: Path | str) -> list[str]:
    """Hash every file of a run folder again and compare with its manifest and its ledgers.

    Returns
    -------
    list of str
        One line for each file that is missing, has changed, is a link or is not in the manifest,
        with the command that makes it again; empty when the folder is what its run left behind.

    Raises
    ------
    DataError
        The folder has no manifest: its run has not ended, and nothing was selected without rounds.
    """
    path = Path(path)
    ended, records = (path / "manifest.json").is_file(), entries_of(path, "*.manifest.json")
    if not ended and not records:
        for rows in entries_of(path, "selected-*"):
            raise DataError(
                f"{rows}: has no {rows.stem}.manifest.json beside it, by which it could be "
                "verified: repeat the `pyids select` that made it"
            )
        raise DataError(
            f"{path} has no manifest.json: not a run folder, or its run has not ended: repeat the "
            f"command that began the run, or, if all its rounds are done, `pyids export {path}`"
        ) from None
    problems = dict(find_strange(path))
    files = None
    try:
        files = read_sealed(path / "manifest.json")["files"] if ended else None
    except DamagedError:
        problems[path / "manifest.json"] = "damaged"
    if not ended:
        problems |= unlike_records(path, records)
        for file, problem in lacking(path):
            problems.setdefault(file, problem)
    for name, noted in (files or {}).items():
        if (change := difference(path / name, noted)) is not None:
            problems.setdefault(path / name, change)
    for file, problem in _unlike_ledgers(path):
        problems.setdefault(file, problem)
    for name in _DOTFILES:
        if (path / name).exists() and not _readable(path / name):
            problems[path / name] = "damaged"
    if files is not None:
        for file in artifacts(path):
            name = str(file.relative_to(path))
            # `pyids select` adds to the cache.
            if name not in files and not name.startswith("quality/cache/"):
                problems.setdefault(file, "not in the manifest")
    return [
        ": ".join([str(file.relative_to(path)), *_with_remedy(file, problem)])
        for file, problem in problems.items()
    ]


def check_ended(path: Path) -> None:
    """Check that a folder has the configuration, and lacks no file, that its selection was made by.

    What lies there is not hashed but for the rows selected without rounds; `verify` does.

    Raises
    ------
    DamagedError
        It does not; names the first file, and what helps.
    """
    check_config(path)
    records = entries_of(path, "*.manifest.json")
    problems: dict[Path, str] = {}
    if (path / "manifest.json").is_file():
        files = load_sealed(path / "manifest.json")["files"]
        problems = {path / name: "missing" for name in files if not (path / name).is_file()}
    elif records:
        problems = unlike_records(path, records) | dict(lacking(path))
    for file, found in problems.items():
        problem = ": ".join(_with_remedy(file, found))
        raise DamagedError(f"{file}: {problem}")


def unlike_records(path: Path, records: Sequence[Path]) -> dict[Path, str]:
    """Find selections without rounds that are not what they were (`pyids.methods.record`)."""
    again, problems = "repeat the `pyids select` that made it", {}
    for record in records:
        try:
            noted = read_sealed(record)["selected"]
            rows = path / Path(noted["file"]).name
            if change := difference(rows, noted):
                problems[rows] = f"{change}: {again}"
        except (DamagedError, ConfigError):
            problems[record] = f"damaged: {again}"
    return problems


def _with_remedy(file: Path, problem: str) -> tuple[str, str]:
    if problem == "not in the manifest":
        return problem, "remove it"
    if problem.endswith(("remove it", "that made it")):
        what, _, own = problem.partition(": ")
        return what, own
    if file.name in _DOTFILES:
        return problem, "remove it, and the data is hashed again"
    return problem, remedy(file)


def _readable(file: Path) -> bool:
    try:
        read_sealed(file)
    except (DamagedError, ConfigError):
        return False
    return True


def _unlike_ledgers(path: Path) -> Iterator[tuple[Path, str]]:
    """Yield what is not as the ledger entries of a folder say, the entries themselves first."""
    for entry in artifacts(path):
        parts = entry.relative_to(path).parts
        if entry.suffix != ".json" or "checkpoint" in parts or "cache" in parts:
            continue
        try:
            content = read_sealed(entry)
        except FileNotFoundError:
            continue  # another process has just removed it; who needs it will say so
        except (DamagedError, ConfigError):
            yield entry, "cannot be read, or of another format"
            continue
        if isinstance(content.get("files"), dict) and isinstance(content.get("inputs"), dict):
            yield from damaged_files(entry, content)


def artifacts(path: Path) -> list[Path]:
    """Every file of the run folder that the manifest vouches for, sorted.

    Not ``selected-...``, ``excluded-...``, ``probes.jsonl``, the report and the cards: what `pyids
    export`, `pyids select`, `pyids ask` and `pyids report` write there may come and change after
    the run.
    """
    return sorted(
        file
        for file in files_inside(path)
        if not file.is_symlink()
        and file.is_file()
        and file.name != "manifest.json"
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
        and not _comes_after(file.relative_to(path).parts)
    )


def _comes_after(parts: tuple[str, ...]) -> bool:
    """Whether this file, or the folder that holds it, may come and change after the run."""
    top = parts[0]
    ours = top in (
        "report.html",
        "map.parquet",
        "probes.jsonl",
        "selected.parquet",
        "selected.txt",
    ) or top.endswith("README.md")
    return (len(parts) == 1 and ours) or top.startswith(("selected-", "excluded-"))


def environment() -> dict[str, Any]:
    """Versions and machine, as far as they are known without importing anything heavy."""
    from pyids._core import simd_level  # late, so that reading needs no extension module

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
        "instructions": simd_level(),
        "packages": packages,
    }
