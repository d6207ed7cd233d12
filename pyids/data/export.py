"""What was selected, written for a trainer.

Rows leave as they came: every original column with the value, the spelling and the order that it
had in the input. A ``messages`` column is added where the input had another chat format, and ours
begin with ``_pyids_``:

| column | |
|---|---|
| ``_pyids_id`` | row id: position in the input |
| ``_pyids_cluster`` | its cluster |
| ``_pyids_score`` | what the scorer gave its cluster, null when nothing did |
| ``_pyids_weight`` | weight with which its cluster was drawn |
| ``_pyids_round`` | round in which it was drawn, from 1 |

Columns of the input that begin with ``_pyids_`` come from an earlier selection and are replaced.
A column of vectors that was read from parquet or Arrow comes back in the precision that
``embeddings/`` holds, behind the others. Rows stand in the order of their ids, so the same
selection is the same bytes.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import yaml

from pyids.chat.rawjson import parse
from pyids.data.card import How, write_card
from pyids.data.destination import STANZAS, check_export, inputs_of_folder, place_of, with_ending
from pyids.data.exported_rows import Lines, Selected
from pyids.engine import Engine
from pyids.errors import ConfigError, DataError, PyidsError
from pyids.store.files import atomic_write
from pyids.store.folder import Store
from pyids.terminal import why_not_written

logger = logging.getLogger("pyids")


def export(
    store: Store,
    selected: Selected,
    path: Path | str,
    format: str = "jsonl",
    how: How | None = None,
    *,
    own: bool = False,
    engine: Engine | None = None,
) -> Path:
    """Write the selected rows.

    Parameters
    ----------
    store : Store
        The run folder that holds the rows.
    selected : Selected
        Which rows.
    path : path
        The file, or the folder for it; for a trainer's format the folder. A file whose ending
        names another kind, or none, gets that of its format.
    format : str
        One of `FORMATS`: ``jsonl``; ``parquet``; ``indices`` (row ids alone, one a line); or for a
        trainer a folder with ``selected.jsonl`` and the stanza of its configuration: ``trl``
        (``sft.yaml``), ``llamafactory`` (``dataset_info.json``), ``axolotl`` (``axolotl.yaml``).
    how : How, optional
        How a method has chosen them, for the card.
    own : bool
        Whether it is a place of pyids' own in the run folder.
    engine : Engine, optional
        Where rows are read, if they are many; by default in this process.

    Returns
    -------
    Path
        What was written; atomically, file by file.

    Raises
    ------
    ConfigError
        There is no such format, the place cannot be written, or what lies there would be lost.
    DataError
        A column of the input has the name of one that is added, or types that the format does not
        hold.
    """
    try:
        form, write = FORMATS[format]
    except KeyError:
        raise ConfigError(
            f"there is no export format {format!r}: choose {', '.join(FORMATS)}"
        ) from None
    path = with_ending(Path(path), format) if own else place_of(path, format)
    if not own:
        check_export(path, format, inputs_of_folder(store), store.path)
    folder = path if format in STANZAS else path.parent
    new = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with Lines(store, selected.sorted(), form, engine) as lines:
            write(lines, path)
        write_card(store, selected, path, format, how)
    except (OSError, PyidsError) as error:
        for place in new:
            with contextlib.suppress(OSError):  # something of it was written
                place.rmdir()
        if not isinstance(error, OSError):
            raise
        if own and error.errno in (errno.EISDIR, errno.ENOTDIR):
            raise  # no other place is meant: what stands in the way goes
        problem = why_not_written(error, "choose another place")
        raise ConfigError(f"{path}: {problem}") from None
    return path


# ---- formats -------------------------------------------------------------------------------------


def _write_lines(path: Path, lines: Iterable[bytes]) -> None:
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        for line in lines:
            file.write(line + b"\n")


def _indices(lines: Lines, path: Path) -> None:
    _write_lines(path, (str(row_id).encode() for row_id in lines.selected.row_ids))


def _jsonl(lines: Lines, path: Path) -> None:
    _write_lines(path, lines)


def _parquet(lines: Lines, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def batches() -> Iterator[list[dict[str, Any]]]:
        rows = iter(lines)
        while batch := [parse(raw) for raw in islice(rows, 1024)]:
            yield batch

    try:
        # Twice over the rows: the types of the columns are known only at the end.
        schemas = [pa.Table.from_pylist(batch).schema for batch in batches()]
        schema = pa.unify_schemas(schemas, promote_options="permissive")
        with atomic_write(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
            for batch in batches():
                writer.write_table(pa.Table.from_pylist(batch, schema=schema))
    except pa.ArrowException as error:
        reason = str(error).partition("\n")[0]
        raise DataError(
            f"{path}: the columns have no single type ({reason}): export as jsonl"
        ) from None


def _trl(lines: Lines, folder: Path) -> None:
    _write_lines(folder / "selected.jsonl", lines)
    _say_left_out("TRL", lines.left_out)
    _write_yaml(
        folder / STANZAS["trl"],
        {
            "datasets": [
                {
                    "path": "json",
                    # Read as a pattern: brackets of a folder's name are to stand for themselves.
                    "data_files": glob.escape(str(folder.resolve() / "selected.jsonl")),
                    "split": "train",
                }
            ],
            "assistant_only_loss": True,
        },
    )


def _axolotl(lines: Lines, folder: Path) -> None:
    _write_lines(folder / "selected.jsonl", lines)
    _write_yaml(
        folder / STANZAS["axolotl"],
        {
            "datasets": [
                {
                    "path": glob.escape(str(folder.resolve() / "selected.jsonl")),
                    "ds_type": "json",
                    "type": "chat_template",
                    "field_messages": "messages",
                    "message_property_mappings": {"role": "role", "content": "content"},
                    "roles_to_train": ["assistant"],
                    "message_field_training": "training",
                }
            ]
        },
    )


def _llamafactory(lines: Lines, folder: Path) -> None:
    """LLaMA-Factory wants turns that alternate, and calls of tools as JSON in a turn of their own.

    Reasoning stands before the answer as a think block. Conversations whose turns do not alternate
    stay as they are; it skips them with a warning.
    """
    _write_lines(folder / "selected.jsonl", lines)
    _say_left_out("LLaMA-Factory", lines.left_out)
    stanza = {
        "pyids_selected": {
            "file_name": "selected.jsonl",
            "formatting": "sharegpt",
            "columns": {"messages": "messages", "tools": "tools"},
            "tags": {
                "role_tag": "role",
                "content_tag": "content",
                "user_tag": "user",
                "assistant_tag": "assistant",
                "system_tag": "system",
                "function_tag": "function_call",
                "observation_tag": "tool",
            },
        }
    }
    with atomic_write(folder / STANZAS["llamafactory"]) as temporary:
        temporary.write_bytes(orjson.dumps(stanza, option=orjson.OPT_INDENT_2) + b"\n")


def _say_left_out(trainer: str, counts: Counter[str]) -> None:
    """Say what of the rows a trainer's format has no place for."""
    for what, turns in (+counts).items():
        logger.warning("%s has no place for %s, left out of %d turns", trainer, what, turns)


def _write_yaml(path: Path, value: object) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(yaml.safe_dump(value, sort_keys=False))


class Format(NamedTuple):
    """How rows are written: the form of their lines, and what writes them."""

    form: str
    write: Callable[[Lines, Path], None]


FORMATS = {
    "jsonl": Format("whole", _jsonl),
    "parquet": Format("whole", _parquet),
    "indices": Format("whole", _indices),
    "trl": Format("trl", _trl),
    "llamafactory": Format("llamafactory", _llamafactory),
    "axolotl": Format("axolotl", _axolotl),
}
