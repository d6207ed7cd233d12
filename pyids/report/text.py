"""Texts of rows, made fit for a page: clean, and no longer than their share of it."""

from __future__ import annotations

import re

import orjson

# What JSON may hold and a page should not: control characters but tab and newline.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_MARKUP = re.compile(rb"[<>&]|\xe2\x80[\xa8\xa9]")

# An escaped character of markup: \\u003c.
_ESCAPE_BYTES = 6

ELLIPSIS = "…"


def clean(text: str) -> str:
    """Replace half surrogate pairs and control characters, which UTF-8 or a page cannot hold."""
    whole = text.encode("utf-8", "replace").decode()
    return _CONTROL.sub("\ufffd", whole.replace("\r\n", "\n"))


def cut(text: str, most_bytes: int) -> str:
    """Return `text`, cleaned and cut so that the page spends at most `most_bytes` on it.

    Parameters
    ----------
    text
        Of any length.
    most_bytes
        Bytes that `to_json` writes for it, quotes included; at least 16.

    Examples
    --------
    >>> cut("a long sentence", 16)
    'a long sent…'
    """
    shown = clean(text[:most_bytes])
    if len(text) <= most_bytes and json_bytes(shown) <= most_bytes:
        return shown
    room = most_bytes - len(ELLIPSIS.encode())
    while (size := json_bytes(shown)) > room:
        # By the mean size of a character, and by one at least: a few rounds.
        shown = shown[: min(len(shown) - 1, len(shown) * room // size)]
    return shown.rstrip() + ELLIPSIS


def json_bytes(text: str) -> int:
    """Return how many bytes `to_json` writes for a text."""
    raw = orjson.dumps(text)
    return len(raw) + sum(_ESCAPE_BYTES - len(found) for found in _MARKUP.findall(raw))


def to_json(value: object) -> str:
    """Return a JSON value as text that may stand inside a ``<script>`` element.

    No character of it can end the element or begin a comment: ``<``, ``>``, ``&`` and the line
    separators of JavaScript are escaped.
    """
    raw = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    return _MARKUP.sub(_escape, raw).decode()


def _escape(match: re.Match[bytes]) -> bytes:
    return b"\\u%04x" % ord(match[0].decode())
