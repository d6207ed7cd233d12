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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import yaml
from numpy.typing import NDArray

from pyids.chat.formats import Message, tools_of
from pyids.chat.rawjson import parse, with_members, without_member
from pyids.data.card import How, write_card
from pyids.data.destination import STANZAS, check_export, inputs_of_folder, place_of, with_ending
from pyids.errors import ConfigError, DataError, PyidsError
from pyids.progress import report
from pyids.store.files import atomic_write
from pyids.store.folder import Row, Store
from pyids.terminal import why_not_written

logger = logging.getLogger("pyids")


PREFIX = "_pyids_"


_WEIGHT = "the weight 0 of a turn, which it trains on"


_NUMPY = orjson.OPT_SERIALIZE_NUMPY


@dataclass(frozen=True)
class Selected:
    """The selected rows: arrays of one length, in any order.

    Attributes
    ----------
    row_ids : int64 (n,)
        Distinct row ids.
    clusters, rounds : int (n,), optional
        Cluster, and round from 1.
    scores, weights : float (n,), optional
        NaN is written as null.
    """

    row_ids: NDArray[np.int64]
    clusters: NDArray[np.integer[Any]] | None = None
    scores: NDArray[np.floating[Any]] | None = None
    weights: NDArray[np.floating[Any]] | None = None
    rounds: NDArray[np.integer[Any]] | None = None

    def __post_init__(self) -> None:
        for name in ("clusters", "scores", "weights", "rounds"):
            column = getattr(self, name)
            if column is not None and len(column) != len(self.row_ids):
                raise ValueError(f"{name} has {len(column)} rows, row_ids has {len(self.row_ids)}")

    def sorted(self) -> Selected:
        """Give the same rows in the order of their ids.

        Raises
        ------
        ValueError
            A row stands in it twice.
        """
        order = np.argsort(self.row_ids, kind="stable")
        ids = np.asarray(self.row_ids, dtype=np.int64)[order]
        twice = np.flatnonzero(ids[1:] == ids[:-1])
        if len(twice):
            raise ValueError(f"row id {ids[twice[0]]} is selected twice")
        columns = (self.clusters, self.scores, self.weights, self.rounds)
        return Selected(
            ids, *(None if column is None else np.asarray(column)[order] for column in columns)
        )


def export(
    store: Store,
    selected: Selected,
    path: Path | str,
    format: str = "jsonl",
    how: How | None = None,
    *,
    own: bool = False,
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
        write = FORMATS[format]
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
        write(store, selected.sorted(), path)
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


# ---- rows ----------------------------------------------------------------------------------------


def _our_members(selected: Selected) -> Iterator[list[tuple[str, bytes]]]:
    """For each row our members as JSON."""
    columns: list[tuple[str, list[Any]]] = [(f"{PREFIX}id", selected.row_ids.tolist())]
    for name, column in (
        ("cluster", selected.clusters),
        ("score", selected.scores),
        ("weight", selected.weights),
        ("round", selected.rounds),
    ):
        if column is not None:
            columns.append((f"{PREFIX}{name}", column.tolist()))
    names = [name for name, _ in columns]
    for values in zip(*(values for _, values in columns), strict=True):
        yield [(name, orjson.dumps(value)) for name, value in zip(names, values, strict=True)]


def _read_rows(store: Store, selected: Selected) -> Iterator[Row]:
    """Yield the selected rows, and say how far that is."""
    total = len(selected.row_ids)
    for done, row in enumerate(store.read_rows(selected.row_ids), start=1):
        yield row
        if done % 64 == 0 or done == total:
            report("export", done, total)


def _whole_rows(store: Store, selected: Selected) -> Iterator[bytes]:
    """Original columns, messages where the input has none, ours."""
    sources = {source["path"]: source for source in store.index["sources"]}
    rows = _read_rows(store, selected)
    for row, ours in zip(rows, _our_members(selected), strict=True):
        added = ours
        source = sources[row.path]
        if source["vectors"] and source["kind"] in ("parquet", "arrow"):
            vector = store.embedding(row.row_id)
            added = [(source["vectors"], orjson.dumps(vector, option=_NUMPY)), *added]
        raw = row.raw
        record = parse(raw)
        if not _says(record.get("messages"), row.messages):
            # A system prompt of another column, turns given as text, weights by another name.
            added = [("messages", orjson.dumps(row.messages)), *added]
            raw = without_member(raw, "messages") if "messages" in record else raw
        yield with_members(raw, added, replace=PREFIX)


def _says(given: Any, messages: list[Message]) -> bool:
    """Whether the column as it came is what is trained on; nulls say nothing."""
    if not isinstance(given, list) or len(given) != len(messages):
        return False
    return all(
        turn == said or {"content": "", **{k: v for k, v in turn.items() if v is not None}} == said
        for turn, said in zip(given, messages, strict=True)
        if isinstance(turn, dict)
    ) and all(isinstance(turn, dict) for turn in given)


def _conversation(row: Row, messages: Sequence[Message]) -> bytes:
    return orjson.dumps({"messages": messages, **_tools(row), f"{PREFIX}id": row.row_id})


def _say_left_out(trainer: str, counts: Counter[str]) -> None:
    """Say what of the rows a trainer's format has no place for."""
    for what, turns in counts.items():
        logger.warning("%s has no place for %s, left out of %d turns", trainer, what, turns)


def _tools(row: Row) -> dict[str, str]:
    """Give the tools as JSON text, which all trainers read and no table changes."""
    tools = tools_of(row.messages)
    return {"tools": _as_text(tools)} if tools else {}


# ---- files ---------------------------------------------------------------------------------------


def _write_lines(path: Path, lines: Iterator[bytes]) -> None:
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        for line in lines:
            file.write(line + b"\n")


def _jsonl(store: Store, selected: Selected, path: Path) -> None:
    _write_lines(path, _whole_rows(store, selected))


def _indices(store: Store, selected: Selected, path: Path) -> None:
    _write_lines(path, (str(row_id).encode() for row_id in selected.row_ids))


def _parquet(store: Store, selected: Selected, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def batches() -> Iterator[list[dict[str, Any]]]:
        rows = _whole_rows(store, selected)
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


def _trl(store: Store, selected: Selected, folder: Path) -> None:
    left_out = Counter[str]()

    def rows() -> Iterator[bytes]:
        for row in _read_rows(store, selected):
            left_out[_WEIGHT] += sum(turn.get("weight") == 0 for turn in row.messages)
            yield _conversation(row, row.messages)

    _write_lines(folder / "selected.jsonl", rows())
    _say_left_out("TRL", +left_out)
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


def _axolotl(store: Store, selected: Selected, folder: Path) -> None:
    """Give the turns of weight 0 to axolotl as those that are not trained on."""

    def rows() -> Iterator[bytes]:
        for row in _read_rows(store, selected):
            messages = list(row.messages)
            if any(turn.get("weight") == 0 for turn in messages):
                messages = [
                    {
                        **turn,
                        "training": turn["role"] == "assistant" and turn.get("weight") != 0,
                    }
                    for turn in messages
                ]
            yield _conversation(row, messages)

    _write_lines(folder / "selected.jsonl", rows())
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


def _llamafactory(store: Store, selected: Selected, folder: Path) -> None:
    """LLaMA-Factory wants turns that alternate, and calls of tools as JSON in a turn of their own.

    Reasoning stands before the answer as a think block. Conversations whose turns do not alternate
    stay as they are; it skips them with a warning.
    """
    left_out = Counter[str]()

    def rows() -> Iterator[bytes]:
        for row in _read_rows(store, selected):
            messages = [_with_call_as_text(turn, left_out) for turn in row.messages]
            whole = {"messages": messages, "tools": "", **_tools(row), f"{PREFIX}id": row.row_id}
            yield orjson.dumps(whole)

    _write_lines(folder / "selected.jsonl", rows())
    _say_left_out("LLaMA-Factory", +left_out)
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


def _with_call_as_text(turn: Message, left_out: Counter[str]) -> Message:
    thought = turn.get("reasoning_content") or turn.get("thinking") or ""
    left_out[_WEIGHT] += turn.get("weight") == 0
    if not turn.get("tool_calls"):
        content = turn["content"]
        if thought and turn["role"] == "assistant":
            content = f"<think>\n{thought}\n</think>\n\n{content}"
        return {"role": turn["role"], "content": content}
    left_out["the text beside a call of a tool"] += bool(turn["content"].strip())
    left_out["the reasoning before a call of a tool"] += bool(thought)
    calls = [dict(call.get("function", call)) for call in turn["tool_calls"]]
    for call in calls:
        if isinstance(call.get("arguments"), str):  # as the OpenAI API gives them
            with contextlib.suppress(ValueError, TypeError):
                arguments = parse(call["arguments"].encode())
                orjson.dumps(arguments)  # half a surrogate pair in it: the text stays
                call["arguments"] = arguments
    return {"role": "function_call", "content": _as_text(calls)}


def _as_text(value: object) -> str:
    return orjson.dumps(value).decode()


def _write_yaml(path: Path, value: object) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(yaml.safe_dump(value, sort_keys=False))


FORMATS: dict[str, Callable[[Store, Selected, Path], None]] = {
    "jsonl": _jsonl,
    "parquet": _parquet,
    "indices": _indices,
    "trl": _trl,
    "llamafactory": _llamafactory,
    "axolotl": _axolotl,
}
