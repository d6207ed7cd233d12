"""Chat formats: how a row holds a conversation, and the conversation in one form.

The one form is a list of turns, ``{"role": ..., "content": ...}`` with the roles of `ROLES`; what
else the model is given of a turn (``tool_calls``, ``reasoning_content``, ``weight``) stays in it.
`pyids.chat.schemas.SCHEMAS` is the table of the forms that are known, among them

| format | columns |
|---|---|
| ``messages`` | ``messages``: turns with ``role`` and ``content`` |
| ``sharegpt`` | ``conversations``: turns with ``from`` and ``value``, or texts in turns |
| ``alpaca`` | ``instruction``, ``input``, ``output``; ``history`` |
| ``prompt/completion`` | two columns, each a text or a list of turns |
| ``text`` | ``text``: a language-model row, all of it the response |

Any pair of columns is a format of the fourth kind, ``question/answer``, and a map
(`pyids.chat.format_map`) names columns of any sort. ``auto`` tells the format of each row by its
columns.

Beside any of them a column ``system`` holds the system turn, and a column ``tools`` what the row
offers the assistant to call: a list of objects, or that list as JSON text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from pyids.chat.format_map import PREFIX as MAP_PREFIX
from pyids.chat.format_map import columns_of, read_mapped, tools_column
from pyids.chat.schemas import (
    BY_NAME,
    SCHEMAS,
    SHAPES,
    SYSTEM_COLUMNS,
    Schema,
    check_types,
    read_pair,
)
from pyids.chat.turns import ROLE_NAMES, as_list, kind_of, read_turns, text_of_parts
from pyids.chat.turns import ROLES as ROLES
from pyids.chat.turns import BadRow as BadRow
from pyids.chat.turns import Message as Message
from pyids.chat.turns import Tool as Tool
from pyids.chat.turns import Turns as Turns
from pyids.chat.turns import UnusableRow as UnusableRow
from pyids.chat.turns import list_columns as list_columns
from pyids.chat.turns import tools_of as tools_of

FORMATS = tuple(schema.name for schema in SCHEMAS)


# Preference rows of single answers, as TRL's KTO takes them.
_RATED = {"prompt", "completion", "label"}


# Columns whose name says that they belong to the prompt.
_PROMPT_LIKE = re.compile(
    r"(sys|system)([_ -]?(prompt|message|instruction)s?)?|contexts?|inputs?|histor(y|ies)|"
    r"instructions?|questions?|quer(y|ies)|prompts?|problems?|background|passages?|documents?|"
    r"articles?|persona|(available_)?tools|functions|thoughts?|.*(reasoning|think|rationale).*|"
    r"(complex_)?cot|chain_of_thought|choices|options|examples|demonstrations|few_shot|definition|"
    r"images?|audios?|videos?|knowledge|scratchpad|messages|conversations?|.*_(context|history)|"
    r"premise|hypothesis|evidence|facts|story|paragraphs?|scenario|situation|hints?|constraints",
    re.IGNORECASE,
)


@lru_cache(maxsize=4096)
def _candidates(columns: tuple[str, ...]) -> tuple[Schema, ...]:
    """Schemas that rows of these columns may have, in the order of preference."""
    spelled = {column.lower(): column for column in columns if column != column.lower()}
    found = []
    for schema in SCHEMAS:
        if all(column in columns for column in schema.columns):
            found.append(schema)
        if schema.read is None and any(column in spelled for column in schema.columns):
            # Question and Response: a pair has the columns as they are spelled.
            shapes = {spelled.get(column, column): s for column, s in schema.columns.items()}
            if all(column in columns for column in shapes):
                found.append(Schema("/".join(shapes), shapes, schema.published))
    return tuple(found)


def detect_format(record: Mapping[str, Any]) -> str | None:
    """Tell the format of a row by its columns and what stands in them, or None.

    A column of null counts as missing: a table fills it in where rows of several formats meet.
    """
    if type(record.get("messages")) is list:  # most rows
        return "messages"
    candidates = _candidates(tuple(record))
    for schema in candidates:
        for column, shape in schema.columns.items():
            value = record[column]
            if value is None if shape == "any" else not SHAPES[shape](value):
                break
        else:
            if schema.name == "text" and "parent_id" in record:
                return None  # a message of a tree, not a text of its own
            return schema.name
    # The columns of a schema with something else in them: its error says what.
    for schema in candidates:
        if schema.name in ("messages", "sharegpt") and record[next(iter(schema.columns))]:
            return schema.name
    return None


def check_format(name: str) -> str:
    """Return the name of a format that exists, or ``auto``.

    Raises
    ------
    ValueError
        It is neither one of `FORMATS` nor two columns joined by a slash.
    """
    if name in ("auto", *FORMATS) or name.startswith(MAP_PREFIX):
        return name
    if name.count("/") == 1 and all(name.split("/")):
        return name
    raise ValueError(
        f"there is no chat format {name!r}: choose auto, messages, sharegpt, alpaca, text, or two "
        "columns such as prompt/completion"
    )


def no_format(record: Mapping[str, Any]) -> str:
    """Say what to do with a row whose format nothing tells."""
    if "parent_id" in record:
        return (
            "one message of a tree of messages in each row (parent_id): join each path of the tree "
            "into a column messages first"
        )
    return (
        f"no chat format has the columns {list_columns(record)}: rename them to prompt and "
        "completion, name the pair with --format COLUMN/COLUMN, or the columns of each part with "
        "--format-map"
    )


def to_messages(record: Mapping[str, Any], format: str) -> list[Message]:
    """Give the conversation of a row.

    Parameters
    ----------
    record : mapping
        The row; it is not changed.
    format : str
        One of `FORMATS`, two columns joined by a slash, a map, or ``auto``.

    Returns
    -------
    list of dict
        Turns with ``role`` and ``content``; at least one turn of the assistant says something, and
        at least one of somebody else, but for language-model rows. `Turns` where the row offers
        tools.

    Raises
    ------
    BadRow
        A column is missing or of the wrong type, a role is unknown, a content is no text, there is
        no turn of the assistant.
    UnusableRow
        The response or the prompt is empty, or no response has a weight.
    """
    if format == "auto":
        detected = detect_format(record)
        if detected is None:
            raise BadRow(no_format(record))
        format = detected
    if format != "messages" and record.get("messages") is not None and not _maps_messages(format):
        raise BadRow(
            "column 'messages' stands where the conversation is added to what is selected: rename "
            "it, or read it with --format messages"
        )
    if format == "messages":
        messages = read_turns(record, "messages")
    elif format.startswith(MAP_PREFIX):
        messages = read_mapped(record, format)
    elif (schema := BY_NAME.get(format)) is not None and schema.read is not None:
        check_types(record, schema)
        messages = schema.read(record)
    else:
        messages = read_pair(record, *format.split("/"))
        if record.get("label") is False and record.keys() == _RATED:
            raise UnusableRow("its label is false: an answer that was rejected")
    if messages and messages[0]["role"] not in ("system", "developer"):
        messages = _system(record) + messages
    _check(messages, record)
    column = tools_column(format) if format.startswith(MAP_PREFIX) else "tools"
    tools = _read_tools(record, column)
    return Turns(messages, tools) if tools else messages


def _maps_messages(format: str) -> bool:
    return format.startswith(MAP_PREFIX) and "messages" in columns_of(format)


def _system(record: Mapping[str, Any]) -> list[Message]:
    for column in SYSTEM_COLUMNS:
        if column in record:
            text = record[column]
            if (parts := text_of_parts(text)) is not None:  # as Anthropic's API takes it
                text = parts[0]
            if isinstance(text, str) and text.strip():
                return [{"role": "system", "content": text}]
    return []


def _read_tools(record: Mapping[str, Any], column: str) -> list[Tool]:
    given = record.get(column)
    if not given and column == "tools":
        if "functions" not in record:
            return []
        # The name that the OpenAI API once had; of another form it is a column like any other.
        column, given = "functions", record.get("functions")
        if not SHAPES["calls"](given):
            return []
    tools = as_list(given)
    if not tools or (isinstance(tools, str) and tools.strip() in ("", "null")):
        return []
    if isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools):
        return tools
    raise BadRow(
        f"column {column!r} is {kind_of(given)}: make it a list of objects or that list as JSON "
        "text, or rename it"
    )


def _check(messages: Sequence[Message], record: Mapping[str, Any]) -> None:
    answered = asked = has_assistant = weighted = False
    for message in messages:
        content = message["content"]
        said = content != "" and not content.isspace()
        if message["role"] == "assistant":
            has_assistant = True
            if len(message) > 2:
                said = said or any(
                    message.get(key) for key in ("tool_calls", "reasoning_content", "thinking")
                )
                weighted = weighted or message.get("weight") != 0
            else:
                weighted = True
            answered = answered or said
        else:
            asked = asked or said
    if not has_assistant:
        raise BadRow("no turn of the assistant: add one, which is what is learnt from")
    if not answered:
        raise UnusableRow("the response is empty")
    if not weighted:
        raise UnusableRow("the weight of every response is 0")
    if not asked and not (len(messages) == 1 and messages[0]["content"] == record.get("text")):
        raise UnusableRow("the prompt is empty")


# ---- what does not reach the model ---------------------------------------------------------------


@lru_cache(maxsize=4096)
def _prompt_like(columns: tuple[str, ...], format: str) -> tuple[str, ...]:
    """Columns that look like part of a prompt, but for those that the format is made of."""
    if format.startswith(MAP_PREFIX):
        core = columns_of(format)
    elif format in BY_NAME and BY_NAME[format].read is not None:
        core = set(BY_NAME[format].columns)
    else:
        core = set(format.split("/"))
    return tuple(c for c in columns if c not in core and _PROMPT_LIKE.fullmatch(c.strip()))


class PlainTurns(NamedTuple):
    """Rows whose turns say all that there is to know of their conversation, by their columns."""

    format: str
    column: str
    keys: tuple[str, str]
    roles: Mapping[str, str]


@lru_cache(maxsize=4096)
def plain_turns(columns: tuple[str, ...], format: str) -> PlainTurns | None:
    """Tell where the turns of such rows stand; None where other columns may have a say, too.

    If these turns are plain (`pyids.chat.digest.digest_of_turns`), `to_messages` gives them as they
    stand, and `unused_columns` none.
    """
    for name, column, keys, roles in (
        ("messages", "messages", ("role", "content"), {role: role for role in ROLES}),
        ("sharegpt", "conversations", ("from", "value"), ROLE_NAMES),
    ):
        # Both are formats that come before all others, in this order.
        if column in columns and format in ("auto", name):
            others = {*SYSTEM_COLUMNS, "tools", "functions", "messages"} - {column}
            if others.isdisjoint(columns) and not _prompt_like(columns, name):
                return PlainTurns(name, column, keys, roles)
            return None
    return None


def unused_columns(
    record: Mapping[str, Any], format: str, messages: Sequence[Message]
) -> Sequence[str]:
    """Name the columns that look like part of the prompt and hold what the model is not given.

    Parameters
    ----------
    record, format, messages
        A row, its format, and its conversation by `to_messages`.
    """
    columns = [column for column in _prompt_like(tuple(record), format) if record[column]]
    if not columns:
        return ()
    tools = tools_of(messages)
    given = "\n".join(_texts([*messages, *tools]))
    return [
        column
        for column in columns
        if not (tools and as_list(record[column]) == tools)
        and any(text.strip() not in given for text in _texts([as_list(record[column])]))
    ]


def _texts(values: Iterable[Any]) -> Iterator[str]:
    """All texts inside JSON values, but for the names of those who speak and their kinds."""
    for value in values:
        if isinstance(value, str):
            yield value
        elif isinstance(value, list):
            yield from _texts(value)
        elif isinstance(value, dict):
            yield from _texts(v for k, v in value.items() if k not in ("role", "from", "type"))
