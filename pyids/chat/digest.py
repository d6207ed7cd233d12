"""The digest by which exact duplicates are known."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import xxhash

from pyids import _core
from pyids.chat.formats import Message, UnusableRow, tools_of

# What turns carry that no model is given: rows that differ in it alone are the same row.
BOOKKEEPING = frozenset(
    {"id", "message_id", "parent_id", "turn_id", "turn_identifier", "timestamp", "created"}
    | {"created_at", "create_time", "hashed_ip", "header", "country", "state", "language"}
    | {"toxic", "redacted", "openai_id"}
)


# What one space would stand for, in ASCII.
_ASCII_SPACES = ("\n", "\t", "\r", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x1f", "  ")


# Characters of a text that are split into words at a time.
_BLOCK = 1 << 16


nfc = partial(unicodedata.normalize, "NFC")


def normalize(text: str) -> str:
    """Text as it is compared: Unicode NFC, every run of white space one space, ends cut.

    Case, punctuation and everything else stay: rows that differ in them are different rows.
    """
    if not text.isascii():
        text = nfc(text)
    elif not any(map(text.__contains__, _ASCII_SPACES)) and text[:1] != " " != text[-1:]:
        return text  # nothing to do, found faster than it is done
    if len(text) <= _BLOCK:
        return " ".join(text.split())
    return "".join(_squeezed(text))


def _squeezed(text: str) -> Iterator[str]:
    """Do so in pieces: a list of all words would take ten times the memory of the text."""
    space = begun = False
    for start in range(0, len(text), _BLOCK):
        block = text[start : start + _BLOCK]
        words = " ".join(block.split())
        if not words:
            space = True
            continue
        if begun and (space or block[0].isspace()):
            yield " "
        yield words
        begun, space = True, block[-1].isspace()


def digest(messages: Iterable[Message]) -> bytes:
    """xxh3-128 of a conversation's normalized text: equal digests mean an exact repeat.

    All that reaches the model counts: roles, contents (`normalize`), reasoning, tool calls, names,
    weights, whatever else a template may render of a turn, and the tools offered. Other columns do
    not, nor what a turn has of bookkeeping, such as ids and times.

    Raises
    ------
    UnusableRow
        A text holds half of a surrogate pair, which no tokenizer reads.
    """
    text = _core.conversation_text(messages, "role", "content", None, nfc, False)
    if text is not None:  # nearly all: turns of a role and a content, and no more
        return xxhash.xxh3_128_digest(text)
    return _digest_in_parts(messages)


def digest_of_turns(turns: object, keys: tuple[str, str], roles: Mapping[str, str]) -> bytes | None:
    """Digest of the conversation that turns as they stand in a row are; None unless they are plain.

    Plain are a list of objects of two texts each, of which an assistant says something and somebody
    else does: no `to_messages` would change or refuse them, but for what other columns hold.

    Parameters
    ----------
    turns
        What stands in the row.
    keys
        Names of the role and of the content in a turn.
    roles
        Role as written -> role.
    """
    role, content = keys
    text = _core.conversation_text(turns, role, content, roles, nfc, True)
    return None if text is None else xxhash.xxh3_128_digest(text)


def _digest_in_parts(messages: Iterable[Message]) -> bytes:
    """Do so for turns of any kind and length."""
    # `normalize` leaves no control characters 1e and 1f, so they part turns and fields for certain.
    parts = []
    for message in messages:
        parts.append(f"{message['role']}\x1f{normalize(message['content'])}")
        if len(message) > 2:
            parts += _carried(message)
    if tools := tools_of(messages):
        parts.append("\x1f\x1f" + _canonical(tools))
    try:
        if sum(map(len, parts)) <= _BLOCK:
            return xxhash.xxh3_128_digest("\x1e".join(parts).encode())
        # The same bytes in pieces, which do not copy a text of many megabytes once more.
        hasher = xxhash.xxh3_128()
        for number, part in enumerate(parts):
            hasher.update(b"\x1e" if number else b"")
            for start in range(0, len(part), _BLOCK):
                hasher.update(part[start : start + _BLOCK].encode())
        return hasher.digest()
    except UnicodeEncodeError:
        raise UnusableRow("a text holds half of a surrogate pair (a broken \\u escape)") from None


def _carried(message: Message) -> Iterable[str]:
    """Give what a turn carries beside role and content; what says nothing is left out."""
    for key in sorted(message.keys() - {"role", "content"} - BOOKKEEPING):
        value = message[key]
        if key == "weight":
            if value == 0:
                yield "\x1fweight\x1f0"
        elif isinstance(value, str):
            if text := normalize(value):
                yield f"\x1f{normalize(key)}\x1f{text}"
        elif value not in (None, [], {}):
            yield f"\x1f{normalize(key)}\x1f" + _canonical(value)


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
