"""The digest by which exact duplicates are known."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable

import xxhash

from pyids.chat.formats import Message, UnusableRow, tools_of


def normalize(text: str) -> str:
    """Text as it is compared: Unicode NFC, every run of white space one space, ends cut.

    Case, punctuation and everything else stay: rows that differ in them are different rows.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    return " ".join(text.split())


def digest(messages: Iterable[Message]) -> bytes:
    """xxh3-128 of a conversation's normalized text: equal digests mean an exact repeat.

    Roles, contents (`normalize`), tool calls and the tools offered count; other columns do not.

    Raises
    ------
    UnusableRow
        A text holds half of a surrogate pair, which no tokenizer reads.
    """
    # `normalize` leaves no control characters 1e and 1f, so they part turns and fields for certain.
    parts = []
    for message in messages:
        parts.append(f"{message['role']}\x1f{normalize(message['content'])}")
        if "tool_calls" in message:
            parts.append("\x1f" + _canonical(message["tool_calls"]))
    if tools := tools_of(messages):
        parts.append("\x1f\x1f" + _canonical(tools))
    try:
        return xxhash.xxh3_128_digest("\x1e".join(parts).encode())
    except UnicodeEncodeError:
        raise UnusableRow("a text holds half of a surrogate pair (a broken \\u escape)") from None


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
