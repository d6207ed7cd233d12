"""One row of input as the bytes of one JSON object, and how to look into it without changing it.

A row is kept as the bytes it came in and leaves as them, so that no number is rounded, no key moved
and no escape rewritten on the way.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from json.decoder import JSONDecodeError
from typing import Any

import orjson

# Possessive, so that a long text leaves nothing to come back to: that took 100 times its size.
_STRING_OR_SPACE = re.compile(rb'("(?:[^"\\]++|\\.)*+")|[ \t\r\n]+')


_SPACE = re.compile(r"[ \t\r\n]*")


_decoder = json.JSONDecoder()


def parse(raw: bytes) -> Any:
    """Parse JSON: fast where it is strict, else as Python's json does (NaN, half surrogate pairs).

    An integer beyond 64 bits may come back as a float: for looking, never for writing.

    Raises
    ------
    ValueError
        Neither reads it.
    """
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        return json.loads(raw.decode())  # decoded here: json would guess at UTF-16


def has_half_surrogate(value: object) -> bool:
    """Whether a text in a JSON value holds half of a surrogate pair, which no UTF-8 can hold."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def compact(raw: bytes) -> bytes:
    """Put JSON on one line: white space outside strings goes, nothing else is touched."""
    return _STRING_OR_SPACE.sub(rb"\1", raw)


def members(raw: bytes) -> list[tuple[str, str]]:
    """Top-level keys of an object with the text of their values, in order, as written.

    Examples
    --------
    >>> members(b'{"a": 1.50, "b": [1, 2]}')
    [('a', '1.50'), ('b', '[1, 2]')]
    """
    text = raw.decode()
    found = []
    position = _skip(text, text.index("{") + 1)
    while text[position] == '"':
        key, position = _decoder.raw_decode(text, position)
        start = _skip(text, _skip(text, position) + 1)
        _, position = _decoder.raw_decode(text, start)
        found.append((key, text[start:position]))
        position = _skip(text, position)
        if text[position] == ",":
            position = _skip(text, position + 1)
    return found


def with_members(raw: bytes, new: Iterable[tuple[str, bytes]], *, replace: str = "") -> bytes:
    """Add members at the end of the object `raw`, the others byte for byte as they were.

    Parameters
    ----------
    raw : bytes
        One JSON object.
    new : iterable of (str, bytes)
        Keys that the object does not have, and JSON values.
    replace : str, optional
        Members whose key begins with this are left out of `raw`.
    """
    if replace and f'"{replace}'.encode() in raw:
        old = [(key, value) for key, value in members(raw) if not key.startswith(replace)]
        inside = _joined(old)
    else:
        inside = raw.strip()[1:-1].strip()
    added = b",".join(orjson.dumps(key) + b":" + value for key, value in new)
    return b"{" + b",".join(part for part in (inside, added) if part) + b"}"


def without_member(raw: bytes, name: str) -> bytes:
    """Leave a member out of the object `raw`, the others as they were written."""
    return b"{" + _joined([(key, value) for key, value in members(raw) if key != name]) + b"}"


def _joined(pairs: Iterable[tuple[str, str]]) -> bytes:
    return b",".join(orjson.dumps(key) + b":" + value.encode() for key, value in pairs)


def array_items(text: str, position: int, *, ended: bool = False) -> Iterator[tuple[str, Any, int]]:
    """Parse as many items of a JSON array as `text` holds whole, from `position`.

    Parameters
    ----------
    ended : bool, default False
        Nothing follows the text, so that its last item is whole.

    Yields
    ------
    str
        The text of the item.
    value
        The item.
    int
        Where it ends.
    """
    while True:
        start = _skip(text, position)
        if text.startswith(",", start):
            start = _skip(text, start + 1)
        try:
            value, stop = _decoder.raw_decode(text, start)
        except JSONDecodeError:
            return
        # A number cut by the end of the block would look whole.
        if stop == len(text) and not (ended or text[start] in "{["):
            return
        position = stop
        yield text[start:stop], value, position


def _skip(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return match.end() if match else position
