"""Where an export lies, and whether it may: the files that it writes, and what they replace."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import yaml

from pyids.config import load_config
from pyids.errors import ConfigError
from pyids.store.place import check_destination, inputs_of

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


def inputs_of_folder(store: Store) -> list[str]:
    """Return what a run folder was made of: its data, vectors, target and whatever it names."""
    return [*(source["path"] for source in store.index["sources"]), *named_in(store.path)]


def named_in(run: Path) -> list[str]:
    """Return the inputs that the configuration of a run folder names, if it has one."""
    config = run / "config.yaml"
    return inputs_of(load_config(config)) if config.is_file() else []


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
