"""The rows of an export, as lines of JSON: made in this process, or by tasks of an engine.

A task writes the lines of some shards to a file beside the run; they are put together in the order
of the rows' ids. So the lines are the same whoever makes them.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, Self

import numpy as np
import orjson
from numpy.typing import NDArray

from pyids.chat.formats import Message, tools_of
from pyids.chat.rawjson import parse, with_members, without_member
from pyids.engine import Engine, in_process
from pyids.progress import report
from pyids.store.arrays import map_npy
from pyids.store.files import atomic_write, write_npy
from pyids.store.folder import Row, Shard, Store
from pyids.store.reading import store_of

PREFIX = "_pyids_"

WEIGHT = "the weight 0 of a turn, which it trains on"

_NUMPY = orjson.OPT_SERIALIZE_NUMPY
# A task's rows of the pool, of which whole row groups are read, and of the selection.
_TASK_ROWS, _TASK_SELECTED = 1 << 20, 1 << 16


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


# ---- lines ---------------------------------------------------------------------------------------


class Lines:
    """The selected rows as lines of JSON, without line ends; a context manager.

    May be gone through more than once.

    Parameters
    ----------
    store
        The run folder that holds the rows.
    selected
        Which rows, in the order of their ids.
    form
        One of `FORMS`.
    engine
        Where lines are made, if rows are many; None: here.

    Attributes
    ----------
    left_out
        Of how many turns a form has left out what; known when the lines have been gone through.
    """

    def __init__(
        self, store: Store, selected: Selected, form: str, engine: Engine | None = None
    ) -> None:
        self.selected = selected
        self.left_out = Counter[str]()
        self._store, self._form, self._engine = store, form, engine
        self._files = ExitStack()
        self._parts: list[Path] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._files.close()

    def __iter__(self) -> Iterator[bytes]:
        """Yield the lines, and say how far that is."""
        total = len(self.selected.row_ids)
        lines = self._lines() if self._parts is None else _read(self._parts)
        for done, line in enumerate(lines, start=1):
            yield line
            if done % 64 == 0 or done == total:
                report("export", done, total)

    def _lines(self) -> Iterator[bytes]:
        self.left_out.clear()
        # What lies beside a folder that is only read, other machines may not see.
        if self._engine is None or in_process(self._engine) or self._store.read_only:
            return FORMS[self._form](self._store, self.selected, self.left_out)
        groups = list(_groups(self._store.shards, self.selected.row_ids))
        if len(groups) < 2:
            return FORMS[self._form](self._store, self.selected, self.left_out)
        return self._on_engine(self._engine, groups)

    def _on_engine(self, engine: Engine, groups: Sequence[_Group]) -> Iterator[bytes]:
        scratch = self._store.scratch
        scratch.mkdir(exist_ok=True)
        folder = self._files.enter_context(TemporaryDirectory(prefix="export-", dir=scratch))
        for column in fields(self.selected):
            values = getattr(self.selected, column.name)
            if values is not None:
                with Path(folder, f"{column.name}.npy").open("wb") as file:
                    write_npy(file, values)
        tasks = [
            _Task(str(self._store.path), *group, folder, self._form, f"{folder}/{number}.jsonl")
            for number, group in enumerate(groups)
        ]
        for task, left_out in zip(tasks, engine.map(write_lines, tasks), strict=True):
            self.left_out.update(left_out)
            yield from _read([Path(task.path)])
        self._parts = [Path(task.path) for task in tasks]


class _Group(NamedTuple):
    """Shards, and which of the selected rows lie in them."""

    shards: tuple[Shard, ...]
    start: int
    stop: int


def _groups(shards: Sequence[Shard], row_ids: NDArray[np.int64]) -> Iterator[_Group]:
    """Put shards that follow each other together, up to the rows of a task."""
    ends = np.searchsorted(row_ids, [shard.row_ids.stop for shard in shards]).tolist()
    start, held, rows = 0, list[Shard](), 0
    for index, shard in enumerate(shards):
        held.append(shard)
        rows += shard.rows
        last = index == len(shards) - 1
        following = 0 if last else shards[index + 1].rows
        more = 0 if last else ends[index + 1] - start
        if last or rows + following > _TASK_ROWS or more > _TASK_SELECTED:
            if ends[index] > start:
                yield _Group(tuple(held), start, ends[index])
            start, held, rows = ends[index], [], 0


class _Task(NamedTuple):
    """What `write_lines` needs: paths and numbers."""

    folder: str
    shards: tuple[Shard, ...]
    start: int
    stop: int
    columns: str
    form: str
    path: str


def write_lines(task: _Task) -> Counter[str]:
    """Write the lines of some shards; what was left out of them."""
    files = {column.name: Path(task.columns, f"{column.name}.npy") for column in fields(Selected)}
    columns = {
        name: map_npy(file)[task.start : task.stop] for name, file in files.items() if file.exists()
    }
    left_out = Counter[str]()
    store = store_of(task.folder)
    with atomic_write(Path(task.path)) as temporary, temporary.open("wb") as file:
        for line in FORMS[task.form](store, Selected(**columns), left_out):
            file.write(line + b"\n")
    return left_out


def _read(parts: Sequence[Path]) -> Iterator[bytes]:
    for part in parts:
        with part.open("rb") as file:
            for line in file:
                yield line[:-1]


# ---- forms ---------------------------------------------------------------------------------------


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


def _whole(store: Store, selected: Selected, left_out: Counter[str]) -> Iterator[bytes]:
    """Original columns, messages where the input has none, ours."""
    sources = {source["path"]: source for source in store.index["sources"]}
    rows = store.read_rows(selected.row_ids)
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


def _trl(store: Store, selected: Selected, left_out: Counter[str]) -> Iterator[bytes]:
    for row in store.read_rows(selected.row_ids):
        left_out[WEIGHT] += sum(turn.get("weight") == 0 for turn in row.messages)
        yield _conversation(row, row.messages)


def _axolotl(store: Store, selected: Selected, left_out: Counter[str]) -> Iterator[bytes]:
    """Give the turns of weight 0 as those that are not trained on."""
    for row in store.read_rows(selected.row_ids):
        messages = list(row.messages)
        if any(turn.get("weight") == 0 for turn in messages):
            messages = [
                {**turn, "training": turn["role"] == "assistant" and turn.get("weight") != 0}
                for turn in messages
            ]
        yield _conversation(row, messages)


def _llamafactory(store: Store, selected: Selected, left_out: Counter[str]) -> Iterator[bytes]:
    for row in store.read_rows(selected.row_ids):
        messages = [_with_call_as_text(turn, left_out) for turn in row.messages]
        whole = {"messages": messages, "tools": "", **_tools(row), f"{PREFIX}id": row.row_id}
        yield orjson.dumps(whole)


def _conversation(row: Row, messages: Sequence[Message]) -> bytes:
    return orjson.dumps({"messages": messages, **_tools(row), f"{PREFIX}id": row.row_id})


def _tools(row: Row) -> dict[str, str]:
    """Give the tools as JSON text, which all trainers read and no table changes."""
    tools = tools_of(row.messages)
    return {"tools": _as_text(tools)} if tools else {}


def _with_call_as_text(turn: Message, left_out: Counter[str]) -> Message:
    thought = turn.get("reasoning_content") or turn.get("thinking") or ""
    left_out[WEIGHT] += turn.get("weight") == 0
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


# What makes the lines: given the run folder, the rows and what counts what is left out.
FORMS: dict[str, Callable[[Store, Selected, Counter[str]], Iterator[bytes]]] = {
    "whole": _whole,
    "trl": _trl,
    "axolotl": _axolotl,
    "llamafactory": _llamafactory,
}
