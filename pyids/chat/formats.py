"""Chat formats: how a row holds a conversation, and the conversation in one form.

The one form is a list of turns, ``{"role": ..., "content": ...}`` with the roles of `ROLES`; what
else a turn of the format ``messages`` carries (``tool_calls``, ``name``) stays in it.

| format | columns |
|---|---|
| ``messages`` | ``messages``: turns with ``role`` and ``content`` |
| ``sharegpt`` | ``conversations``: turns with ``from`` and ``value``; ``system`` |
| ``alpaca`` | ``instruction``, ``input``, ``output``; ``system``, ``history`` |
| ``prompt/completion`` | two columns, each a text or a list of turns |

Any pair of columns is a format of the last kind: ``question/answer``, ``prompt/response``.

Beside any of them a column ``tools`` may hold what the row offers the assistant to call: a list of
objects, or that list as JSON text.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pyids.chat.rawjson import parse

if TYPE_CHECKING:
    pass


Message = dict[str, Any]


Tool = dict[str, Any]


ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})


_ROLES = {role: role for role in ROLES}


# Pairs that are recognized without being named, in order of preference.
PAIRS = ("prompt/completion", "prompt/response", "question/answer", "instruction/response")


FORMATS = ("messages", "sharegpt", "alpaca", *PAIRS)


_SHAREGPT_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    **_ROLES,
}


class BadRow(ValueError):
    """The row is not of its format: a mistake in the data, named with its column and remedy."""


class UnusableRow(ValueError):
    """The row is of its format, but nothing can be learnt from it: why."""


class Turns(list[Message]):
    """The turns of a row that offers tools; wherever there are none, a plain list does as well.

    Attributes
    ----------
    tools
        What the assistant may call, as the chat template is given it.
    """

    def __init__(self, turns: Iterable[Message], tools: Sequence[Tool]) -> None:
        super().__init__(turns)
        self.tools = list(tools)


def tools_of(turns: Iterable[Mapping[str, Any]]) -> list[Tool]:
    """Return the tools that a conversation offers, often none."""
    return turns.tools if isinstance(turns, Turns) else []


def detect_format(record: Mapping[str, Any]) -> str | None:
    """Tell the format of a row by its columns, or None.

    ``messages`` goes before ``sharegpt``, ``alpaca`` and the pairs.
    """
    if isinstance(record.get("messages"), list):
        return "messages"
    if isinstance(record.get("conversations"), list):
        return "sharegpt"
    if "instruction" in record and "output" in record:
        return "alpaca"
    for pair in PAIRS:
        prompt, completion = pair.split("/")
        if prompt in record and completion in record:
            return pair
    return None


def check_format(name: str) -> str:
    """Return the name of a format that exists, or ``auto``.

    Raises
    ------
    ValueError
        It is neither one of `FORMATS` nor two columns joined by a slash.
    """
    if name in ("auto", *FORMATS) or (name.count("/") == 1 and all(name.split("/"))):
        return name
    raise ValueError(
        f"there is no chat format {name!r}: choose auto, messages, sharegpt, alpaca, or two "
        "columns such as prompt/completion"
    )


def to_messages(record: Mapping[str, Any], format: str) -> list[Message]:
    """Give the conversation of a row.

    Parameters
    ----------
    record : mapping
        The row; it is not changed.
    format : str
        One of `FORMATS`, or two columns joined by a slash.

    Returns
    -------
    list of dict
        Turns with ``role`` and ``content``; at least one turn of the assistant says something, and
        at least one of somebody else. `Turns` where the row offers tools.

    Raises
    ------
    BadRow
        A column is missing or of the wrong type, a role is unknown, a content is no text, there is
        no turn of the assistant.
    UnusableRow
        The response or the prompt is empty, or a text cannot be written as UTF-8.
    """
    if format == "messages":
        messages = _turns(record, "messages")
    elif "messages" in record:
        raise BadRow(
            "column 'messages' stands where the conversation is added to what is selected: rename "
            "it, or read it with --format messages"
        )
    elif format == "sharegpt":
        messages = _system(record) + _sharegpt(record)
    elif format == "alpaca":
        messages = _system(record) + _alpaca(record)
    else:
        prompt, completion = format.split("/")
        messages = _system(record) + _side(record, prompt, "user")
        messages += _side(record, completion, "assistant")
    _check(messages)
    tools = _read_tools(record)
    return Turns(messages, tools) if tools else messages


def _read_tools(record: Mapping[str, Any]) -> list[Tool]:
    given = tools = record.get("tools")
    if isinstance(tools, str):
        with contextlib.suppress(ValueError):  # what is no JSON stays a text, and is named below
            tools = parse(tools.encode()) if tools.strip() else None
    if not tools:
        return []
    if isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools):
        return tools
    raise BadRow(
        f"column 'tools' is {_kind(given)}: make it a list of objects or that list as JSON text, "
        "or rename it"
    )


def _turns(
    record: Mapping[str, Any],
    column: str,
    role_key: str = "role",
    content_key: str = "content",
    roles: Mapping[str, str] = _ROLES,
) -> list[Message]:
    """Take the turns of a list column, their roles translated by `roles`."""
    turns = record.get(column)
    if not isinstance(turns, list):
        raise BadRow(_wrong(record, column, "a list of turns"))
    messages = []
    for number, turn in enumerate(turns):
        if not isinstance(turn, dict):
            raise BadRow(f"column {column!r}: turn {number} is {_kind(turn)}, not an object")
        role = turn.get(role_key)
        known = roles.get(role) if isinstance(role, str) else None
        if known is None:
            raise BadRow(
                f"column {column!r}: turn {number} has the {role_key} {_brief(role)}: "
                f"use one of {', '.join(sorted(roles))}"
            )
        content = turn.get(content_key)
        if content is None and turn.get("tool_calls"):
            content = ""
        elif not isinstance(content, str):
            raise BadRow(
                f"column {column!r}: the {content_key} of turn {number} is {_kind(content)}: "
                "make it a text"
            )
        if roles is not _ROLES:
            turn = {"role": known, "content": content}
        elif None in turn.values():  # columns that tables give every turn, used or not
            turn = {key: value for key, value in turn.items() if value is not None}
            turn["content"] = content
        messages.append(turn)
    return messages


def _sharegpt(record: Mapping[str, Any]) -> list[Message]:
    """Read turns of ``from`` and ``value``, or of ``role`` and ``content``."""
    turns = record.get("conversations")
    first = turns[0] if isinstance(turns, list) and turns else None
    if isinstance(first, dict) and "from" not in first:
        return _turns(record, "conversations", roles=_SHAREGPT_ROLES)
    return _turns(record, "conversations", "from", "value", _SHAREGPT_ROLES)


def _alpaca(record: Mapping[str, Any]) -> list[Message]:
    instruction = _text(record, "instruction")
    given = _text(record, "input", optional=True)
    messages: list[Message] = []
    history = record.get("history") or []
    if not isinstance(history, list):
        raise BadRow(_wrong(record, "history", "a list of [question, answer] pairs"))
    for number, pair in enumerate(history):
        if not (
            isinstance(pair, list)
            and len(pair) == 2
            and all(isinstance(text, str) for text in pair)
        ):
            raise BadRow(f"column 'history': item {number} is no pair of two texts")
        messages.append({"role": "user", "content": pair[0]})
        messages.append({"role": "assistant", "content": pair[1]})
    prompt = f"{instruction}\n\n{given}" if given.strip() else instruction
    messages.append({"role": "user", "content": prompt})
    messages.append({"role": "assistant", "content": _text(record, "output")})
    return messages


def _side(record: Mapping[str, Any], column: str, role: str) -> list[Message]:
    """One side of a pair: a text of `role`, or a list of turns."""
    if isinstance(record.get(column), list):
        return _turns(record, column)
    return [{"role": role, "content": _text(record, column)}]


def _system(record: Mapping[str, Any]) -> list[Message]:
    text = _text(record, "system", optional=True)
    return [{"role": "system", "content": text}] if text.strip() else []


def _text(record: Mapping[str, Any], column: str, *, optional: bool = False) -> str:
    text = record.get(column)
    if isinstance(text, str):
        return text
    if optional and text is None:
        return ""
    raise BadRow(_wrong(record, column, "a text"))


def _wrong(record: Mapping[str, Any], column: str, wanted: str) -> str:
    if column not in record:
        return (
            f"column {column!r} is missing (the row has: {list_columns(record)}): name the format "
            "with --format"
        )
    return f"column {column!r} is {_kind(record[column])}: make it {wanted}"


def list_columns(names: Iterable[str]) -> str:
    """Name the first columns in one line."""
    names = [name if name.isprintable() else repr(name) for name in names]
    shown = [name if len(name) <= 40 else f"{name[:37]}..." for name in names[:12]]
    return ", ".join([*shown, "..."] if len(names) > 12 else shown) or "none"


def _kind(value: object) -> str:
    """Say what a JSON value is, in JSON's words."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "a truth value"}
    return "null" if value is None else names.get(type(value), f"the number {_brief(value)}")


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _check(messages: Iterable[Message]) -> None:
    answered = asked = has_assistant = False
    for message in messages:
        said = not message["content"].isspace() and message["content"] != ""
        if message["role"] == "assistant":
            has_assistant = True
            answered = answered or said or bool(message.get("tool_calls"))
        else:
            asked = asked or said
    if not has_assistant:
        raise BadRow("no turn of the assistant: every row needs a response to learn from")
    if not answered:
        raise UnusableRow("the response is empty")
    if not asked:
        raise UnusableRow("the prompt is empty")


def response_length(messages: Sequence[Message]) -> int:
    """Return the characters that the assistant wrote."""
    return sum(len(m.get("content") or "") for m in messages if m["role"] == "assistant")
