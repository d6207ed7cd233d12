"""Where an export lies, and whether it may: the files that it writes, and what they replace."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import yaml

from pyids.config import load_config
from pyids.errors import ConfigError
from pyids.store.objects import ADDRESS, Bucket
from pyids.store.place import MARK, check_destination, inputs_of
from pyids.store.whole import check_config

if TYPE_CHECKING:
    from pyids.store.folder import Store

# The trainers' formats: a folder with ``selected.jsonl`` and a file of this name.
STANZAS = {"trl": "sft.yaml", "llamafactory": "dataset_info.json", "axolotl": "axolotl.yaml"}

# What stands in those files when pyids has written them, and nobody has added to them.
_MEMBERS = {
    "trl": {"datasets", "assistant_only_loss"},
    "llamafactory": {"pyids_selected"},
    "axolotl": {"datasets"},
}

# No row that can be read is longer by much; a line of another file may be.
_LINE_BYTES = 1 << 28


def place_of(path: str | Path, format: str) -> Path:
    """Return the file, or for a trainer's format the folder, that is written to.

    In a folder it is ``selected`` with the ending of the format, as for a trainer. A file whose
    ending names another kind, or none, gets that of its format.

    Raises
    ------
    ConfigError
        It is the empty name, as of a variable of the shell that is not set.
    """
    if not str(path):
        raise ConfigError("'': not the name of a file: name one to write to")
    into = format not in STANZAS and (str(path).endswith(("/", os.sep)) or os.path.isdir(path))
    return with_ending(Path(path, "selected") if into else Path(path), format)


def with_ending(path: Path, format: str) -> Path:
    """Give a file the ending by which it is read again, where its name has none of them."""
    endings = {
        "jsonl": (".jsonl", ".ndjson", ".json"),
        "parquet": (".parquet",),
        "indices": (path.suffix or ".txt",),
    }.get(format)
    if endings is None or path.suffix.lower() in endings:
        return path
    return path.with_name(path.name.removesuffix(f"-{format}") + endings[0])


def own_place(run: Path, format: str) -> Path:
    """Return where a run's selection is written when no place is named."""
    return with_ending(run / ("selected" if format == "jsonl" else f"selected-{format}"), format)


def check_export(
    path: Path,
    format: str,
    inputs: Iterable[str | Path] = (),
    run: Path | None = None,
    own: Path | None = None,
) -> None:
    """Check that an export may be written there; see `pyids.store.place.check_destination`.

    Parameters
    ----------
    path
        What `place_of` returned.
    format
        Its format.
    inputs
        What must stay.
    run
        A run folder that may not be there yet.
    own
        What this export is in its run folder, where no place is named; it may be written again.

    Raises
    ------
    ConfigError
        It may not.
    """
    if own is not None and os.path.abspath(path) == os.path.abspath(own):
        return
    inputs = list(inputs)
    rows = path / "selected.jsonl" if format in STANZAS else path
    check_destination(rows, inputs, run=run, same_kind=lambda file: _is_export(file, format))
    if format in STANZAS:
        stanza = path / STANZAS[format]
        check_destination(stanza, inputs, run=run, same_kind=lambda file: _is_stanza(file, format))


def check_export_in_bucket(url: str, format: str, inputs: Iterable[str] = ()) -> None:
    """Check that an export may be written into a bucket, by the rule of `check_export`.

    Parameters
    ----------
    url
        The address of the file, or for a trainer's format of the folder.
    format
        Its format.
    inputs
        What must stay; files on this machine are passed over.

    Raises
    ------
    ConfigError
        It may not, or the bucket cannot be read.
    """
    parent, _, name = url.rstrip("/").rpartition("/")
    if parent in ("s3:", "s3:/"):
        raise ConfigError(ADDRESS)
    names = [with_ending(Path(name), format).name]
    if format in STANZAS:
        names = [f"{name}/{file}" for file in ("selected.jsonl", STANZAS[format])]
    parts = parent.split("/")
    for n in range(len(parts), 2, -1):  # as far as the bucket itself
        folder = "/".join(parts[:n])
        free = ((n < len(parts) and parts[n]) or name).startswith("selected-")
        if not free and Bucket(folder).age(MARK) is not None:
            raise ConfigError(
                f"{url}: among the files of the run in {folder}: name a place outside of it, or "
                "selected-... at its top"
            )
    bucket, given = Bucket(parent), list(inputs)
    for file in names:
        if bucket.age(file) is not None:
            _check_object(bucket, file, format, given)


def _check_object(bucket: Bucket, name: str, format: str, inputs: Iterable[str]) -> None:
    """Check that an object of a bucket may be replaced: no input, and an earlier export."""
    url = f"{bucket.url}/{name}"
    for given in inputs:
        there = given.rstrip("/")
        same = url in (there, there.rpartition(":")[0])  # a column of it
        if same or url.startswith(f"{there}/") or fnmatchcase(url, there):
            raise ConfigError(
                f"{url}: an input of this command or of its run, which would be lost: choose "
                "another place"
            )
    with tempfile.TemporaryDirectory(prefix="pyids-") as folder:
        file = Path(folder, Path(name).name)
        if format == "parquet":
            bucket.get(name, file)
        else:
            bucket.get_front(name, file, _LINE_BYTES)
        stanza = format in STANZAS and file.name == STANZAS[format]
        if file.stat().st_size and not (_is_stanza if stanza else _is_export)(file, format):
            raise ConfigError(
                f"{url}: holds something else, which would be lost: choose another place, or move "
                "that away"
            )


def inputs_of_folder(store: Store) -> list[str]:
    """Return what a run folder was made of: its data, vectors, target and whatever it names."""
    return [*(source["path"] for source in store.index["sources"]), *named_in(store.path)]


def named_in(run: Path) -> list[str]:
    """Return the inputs that the configuration of a run folder names, if it has one."""
    config = run / "config.yaml"
    if not config.is_file():
        return []
    check_config(run)
    return inputs_of(load_config(config))


def _is_export(file: Path, format: str) -> bool:
    """Whether a file is an earlier export in the same format."""
    if format == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return "_pyids_id" in pq.read_schema(file).names
        except (pa.ArrowException, OSError):
            return False
    with file.open("rb") as opened:
        if format == "indices":
            return re.fullmatch(rb"[0-9\n]*", opened.read(4096)) is not None
        return b'"_pyids_id":' in opened.readline(_LINE_BYTES)


def _is_stanza(file: Path, format: str) -> bool:
    """Whether a file of a trainer holds what pyids writes, and nothing more."""
    content: Any = None
    with contextlib.suppress(yaml.YAMLError, orjson.JSONDecodeError, UnicodeDecodeError):
        text = file.read_text("utf-8")
        content = orjson.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
    return isinstance(content, dict) and content.keys() == _MEMBERS[format]
