r"""A map from columns of any name to a conversation: ``--format-map``.

Written on the command line, ``prompt=instruction+context,response=answer``; or as a small YAML::

    system: persona
    prompt: "{question}\n\nChoices:\n{choices}"
    response: answer
    reasoning: rationale
    tools: functions

A value is a column, several columns (a list, or joined by ``+``; a blank line parts them), or a
text with ``{column}`` in it. ``messages`` names a column of turns in place of prompt and response.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from pyids.chat.turns import BadRow, Message, list_columns, read_turns, wrong

PREFIX = "map:"


KEYS = ("system", "prompt", "response", "reasoning", "tools", "messages")


_FIELD = re.compile(r"\{([^{}]+)\}")


def check_format_map(given: str) -> str:
    """Return a map as canonical JSON text, so that it holds without the file it came from.

    Raises
    ------
    ValueError
        No such file, or it is no map.
    """
    import yaml

    remedy = "write prompt=COLUMN+COLUMN,response=COLUMN, or name a YAML file of such keys"
    if given.lstrip().startswith("{"):
        try:
            found: Any = json.loads(given)
        except (ValueError, RecursionError):
            raise ValueError(f"the format map {given!r:.80} is no JSON: {remedy}") from None
    elif "=" in given and not Path(given).is_file():
        found = {}
        for part in given.split(","):
            key, _, value = part.partition("=")
            found[key.strip()] = [column.strip() for column in value.split("+")]
    else:
        try:
            found = yaml.safe_load(Path(given).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"the format map {given!r} cannot be read ({reason}): {remedy}"
            ) from None
    if not isinstance(found, dict) or not found:
        raise ValueError(f"the format map {given!r} is no mapping: {remedy}")
    found = {key: [value] if isinstance(value, str) else value for key, value in found.items()}
    for key, value in found.items():
        if key not in KEYS:
            raise ValueError(f"the format map has the key {key!r}: use {', '.join(KEYS)}")
        if not isinstance(value, list) or not all(isinstance(v, str) and v for v in value):
            raise ValueError(f"the format map's {key!r} is neither a column nor a text: {remedy}")
    if "messages" not in found and not {"prompt", "response"} <= found.keys():
        raise ValueError(f"the format map needs prompt and response, or messages: {remedy}")
    return json.dumps(found, sort_keys=True, ensure_ascii=False)


@lru_cache(maxsize=8)
def _parsed(format: str) -> dict[str, list[str]]:
    parsed: dict[str, list[str]] = json.loads(format.removeprefix(PREFIX))
    return parsed


def columns_of(format: str) -> set[str]:
    """Return the columns that a map names."""
    values = [value for values in _parsed(format).values() for value in values]
    return {name for value in values for name in _FIELD.findall(value) or [value]}


def tools_column(format: str) -> str:
    """Return the column of the tools."""
    return _parsed(format).get("tools", ["tools"])[0]


def read_mapped(record: Mapping[str, Any], format: str) -> list[Message]:
    """Give the turns of a row by a map.

    Raises
    ------
    BadRow
        A column is missing, or is neither a text nor a list of texts.
    """
    parts = _parsed(format)
    messages: list[Message] = []
    if text := _filled(record, parts.get("system", [])):
        messages.append({"role": "system", "content": text})
    if "messages" in parts:
        messages += read_turns(record, parts["messages"][0])
    else:
        for key, role in (("prompt", "user"), ("response", "assistant")):
            _check_any(record, parts[key])
            messages.append({"role": role, "content": _filled(record, parts[key])})
    if (text := _filled(record, parts.get("reasoning", []))) and messages:
        messages[-1] = {**messages[-1], "reasoning_content": text}
    return messages


def _check_any(record: Mapping[str, Any], values: list[str]) -> None:
    """Raise where a row has none of the columns: a row may lack some, such as a context."""
    named = [name for value in values for name in _FIELD.findall(value) or [value]]
    if not any(name in record for name in named):
        raise BadRow(
            f"column {named[0]!r} of the format map is missing (the row has: "
            f"{list_columns(record)}): mend the map"
        )


def _filled(record: Mapping[str, Any], values: list[str]) -> str:
    texts = []
    for value in values:
        if _FIELD.search(value):
            texts.append(_FIELD.sub(lambda field: _text(record, field[1]), value))
        else:
            texts.append(_text(record, value))
    return "\n\n".join(text for text in texts if text.strip())


def _text(record: Mapping[str, Any], column: str) -> str:
    value = record.get(column)
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return "\n".join(value)
    if isinstance(value, bool) or not isinstance(value, str | int | float | None):
        raise BadRow(wrong(record, column, "a text"))
    return "" if value is None else str(value)
