"""The turns of a conversation: the one form, and how lists of turns of other shapes become it.

The one form is ``{"role": ..., "content": ...}`` with the roles of `ROLES`; a turn may carry more
that a model is given: `CARRIED`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pyids.chat.rawjson import parse

Message = dict[str, Any]


Tool = dict[str, Any]


ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})


# What others call the roles.
ROLE_NAMES = {
    **{role: role for role in ROLES},
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bing", "bard", "bot", "model"), "assistant"),
    **dict.fromkeys(("function_call", "tool_call"), "assistant"),
    **dict.fromkeys(("observation", "function", "tool_response", "ipython"), "tool"),
}


# Beside role and content: what chat templates render, and the weight of a turn's loss.
CARRIED = ("name", "reasoning_content", "thinking", "tool_calls", "tool_call_id", "weight")


_ROLE_KEYS = ("role", "from")


_CONTENT_KEYS = ("content", "value", "text")


# A list of exchanges: the key of the question and that of the answer in each item.
_EXCHANGES = (("input", "output"), ("human", "assistant"), ("user", "assistant"),
              ("prompt", "response"), ("question", "answer"))  # fmt: skip


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


def read_turns(record: Mapping[str, Any], column: str) -> list[Message]:
    """Give the conversation that stands in one column.

    The column is a list of turns with role and content (``from`` and ``value``), a list of texts
    that user and assistant say in turns, a list of exchanges (``input`` and ``output``), an object
    of equally long lists as tables store a list of objects, or any of these as JSON text.

    Raises
    ------
    BadRow
        It is none of them; a role is unknown; a content is no text.
    """
    turns = record.get(column)
    if type(turns) is list:
        # Turns that need nothing, first: this is the inner loop of reading.
        for turn in turns:
            if not (
                type(turn) is dict
                and len(turn) == 2
                and type(turn.get("content")) is str
                and type(role := turn.get("role")) is str
                and role in ROLES
            ):
                break
        else:
            return list(turns)
        if (found := _plain_exchange(turns)) is not None:
            return found
    else:
        turns = as_list(turns)
    if not isinstance(turns, list):
        raise BadRow(wrong(record, column, "a list of turns"))
    if turns and all(isinstance(turn, str) for turn in turns):
        sides = ("user", "assistant")
        return [{"role": sides[i % 2], "content": text} for i, text in enumerate(turns)]
    if turns and isinstance(turns[0], dict) and (pair := _exchange_of(turns[0])):
        return _read_exchanges(turns, pair, column)
    return [_read_turn(turn, number, column) for number, turn in enumerate(turns)]


def _plain_exchange(turns: list[Any]) -> list[Message] | None:
    """Read turns of ``from`` and ``value`` alone; None where there is more to look at."""
    found: list[Message] = []
    for turn in turns:
        if not (
            type(turn) is dict
            and len(turn) == 2
            and type(content := turn.get("value")) is str
            and type(said := turn.get("from")) is str
            and (role := ROLE_NAMES.get(said)) is not None
        ):
            return None
        found.append({"role": role, "content": content})
    return found


def as_list(value: Any) -> Any:
    """Undo what tables and CSV do to a list: JSON text, or an object of equally long lists."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            value = parse(value.encode())
        except (ValueError, RecursionError):  # what is no JSON stays a text, and is named as one
            return value
    if isinstance(value, dict) and value:
        columns = list(value.values())
        if all(isinstance(c, list) and len(c) == len(columns[0]) for c in columns):
            return [dict(zip(value, items, strict=True)) for items in zip(*columns, strict=True)]
    return value


def text_of_parts(content: Any) -> tuple[str, str] | None:
    """Join a content given as text parts: (text, reasoning); None where a part is no text."""
    if not isinstance(content, list) or not content:
        return None
    said: list[str] = []
    thought: list[str] = []
    for part in content:
        if isinstance(part, str):
            said.append(part)
            continue
        if not isinstance(part, dict):
            return None
        kind = part.get("type", "text")
        text = part.get("thinking") if kind == "thinking" else part.get("text")
        if isinstance(text, list):
            inner = text_of_parts(text)
            text = inner[0] if inner else None
        if kind not in ("text", "thinking", "input_text", "output_text") or not isinstance(
            text, str
        ):
            return None
        (thought if kind == "thinking" else said).append(text)
    return "".join(said), "".join(thought)


def _read_turn(turn: Any, number: int, column: str) -> Message:
    if not isinstance(turn, dict):
        raise BadRow(
            f"column {column!r}: turn {number} is {kind_of(turn)}, not an object: make it one"
        )
    role_key = next((key for key in _ROLE_KEYS if key in turn), "role")
    content_key = next((key for key in _CONTENT_KEYS if key in turn), "content")
    said = turn.get(role_key)
    role = (ROLE_NAMES.get(said) or ROLE_NAMES.get(said.lower())) if isinstance(said, str) else None
    if role is None:
        raise BadRow(
            f"column {column!r}: turn {number} has the {role_key} {brief(said)}: use one of "
            f"{', '.join(sorted(ROLES))} (or human, gpt)"
        )
    if (role_key, content_key) == ("role", "content"):
        found = {key: value for key, value in turn.items() if value is not None}
    else:
        found = {key: turn[key] for key in CARRIED if turn.get(key) is not None}
        if turn.get("reasoning") is not None:
            found["reasoning"] = turn["reasoning"]
    found["role"] = role
    found["content"] = turn.get(content_key)
    _add_calls(found, turn, number, column)
    _add_reasoning(found)
    _add_weight(found, turn, number, column)
    if found["content"] is None and any(found.get(key) for key in CARRIED[1:4]):
        found["content"] = ""
    if not isinstance(found["content"], str):
        raise BadRow(
            f"column {column!r}: the {content_key} of turn {number} is "
            f"{kind_of(found['content'])}: make it a text"
        )
    first = {"role": found.pop("role"), "content": found.pop("content")}
    return {**first, **found}


def _add_calls(found: Message, turn: Mapping[str, Any], number: int, column: str) -> None:
    """Make a call of a function, as the OpenAI API once gave it, one of a tool."""
    call = turn.get("function_call")
    if isinstance(call, dict) and not found.get("tool_calls"):
        found.pop("function_call", None)
        found["tool_calls"] = [{"type": "function", "function": call}]
    if "tool_calls" not in found:
        return
    calls = as_list(found["tool_calls"])  # tables hold them as JSON text
    if calls in ("", "null", "[]", []):
        del found["tool_calls"]
    elif isinstance(calls, list) and all(isinstance(call, dict) for call in calls):
        found["tool_calls"] = calls
    else:
        raise BadRow(
            f"column {column!r}: the tool_calls of turn {number} is {kind_of(calls)}: make it a "
            "list of objects"
        )


def _add_reasoning(found: Message) -> None:
    """Join text parts, and give reasoning the one name that templates read."""
    if (joined := text_of_parts(found["content"])) is not None:
        found["content"] = joined[0]
        if joined[1]:
            found.setdefault("reasoning_content", joined[1])
    if isinstance(found.get("reasoning"), str) and "reasoning_content" not in found:
        found["reasoning_content"] = found.pop("reasoning")
    if (joined := text_of_parts(found.get("reasoning_content"))) is not None:
        found["reasoning_content"] = joined[0]


def _add_weight(found: Message, turn: Mapping[str, Any], number: int, column: str) -> None:
    """Read the weight of a turn's loss, which axolotl's ``train`` and ``training`` are as well."""
    if found["role"] != "assistant":
        return
    for key in ("train", "training"):
        if isinstance(turn.get(key), bool) and "weight" not in found:
            found.pop(key, None)
            if not turn[key]:
                found["weight"] = 0
    weight = found.get("weight", 1)
    if not isinstance(weight, int | float) or weight not in (0, 1):
        raise BadRow(
            f"column {column!r}: the weight of turn {number} is {brief(weight)}: make it 0 (no "
            "loss on this turn) or 1"
        )


def _exchange_of(turn: Mapping[str, Any]) -> tuple[str, str] | None:
    if any(key in turn for key in _ROLE_KEYS):
        return None
    return next((pair for pair in _EXCHANGES if pair[0] in turn and pair[1] in turn), None)


def _read_exchanges(turns: list[Any], pair: tuple[str, str], column: str) -> list[Message]:
    messages = []
    for number, turn in enumerate(turns):
        for key, role in zip(pair, ("user", "assistant"), strict=True):
            text = turn.get(key) if isinstance(turn, dict) else None
            if not isinstance(text, str):
                raise BadRow(
                    f"column {column!r}: the {key} of item {number} is {kind_of(text)}: make it a "
                    "text"
                )
            messages.append({"role": role, "content": text})
    return messages


# ---- words for messages --------------------------------------------------------------------------


def wrong(record: Mapping[str, Any], column: str, wanted: str) -> str:
    """Say that a column is missing, or what it is and what it has to be."""
    if column not in record:
        return (
            f"column {column!r} is missing (the row has: {list_columns(record)}): name the format "
            "with --format"
        )
    return f"column {column!r} is {kind_of(record[column])}: make it {wanted}"


def list_columns(names: Iterable[str]) -> str:
    """Name the first columns in one line."""
    names = [name if name.isprintable() else repr(name) for name in names]
    shown = [name if len(name) <= 40 else f"{name[:37]}..." for name in names[:12]]
    return ", ".join([*shown, "..."] if len(names) > 12 else shown) or "none"


def kind_of(value: object) -> str:
    """Say what a JSON value is, in JSON's words."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "a truth value"}
    return "null" if value is None else names.get(type(value), f"the number {brief(value)}")


def brief(value: object) -> str:
    """Show a value in at most 40 characters."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
