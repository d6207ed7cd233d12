"""A look into each row that is read: its format, its digest, what of it reaches no model."""

from __future__ import annotations

from collections import Counter
from typing import Any

from pyids.chat.digest import digest
from pyids.chat.formats import (
    BadRow,
    UnusableRow,
    detect_format,
    no_format,
    to_messages,
    unused_columns,
)
from pyids.chat.rawjson import has_half_surrogate


class Look:
    """Looks into rows, and counts their formats and the columns that do not reach the model."""

    def __init__(self, format: str) -> None:
        self.format = format
        self.formats = Counter[str]()
        self.unused = Counter[str]()

    def digest(self, record: dict[str, Any], raw: bytes) -> bytes:
        """Give the digest of a row's conversation; see `to_messages` for what is raised."""
        format = self.format if self.format != "auto" else detect_format(record)
        if format is None:
            raise BadRow(no_format(record))
        try:
            messages = to_messages(record, format)
        except UnusableRow:
            self.formats[format] += 1
            raise
        self.formats[format] += 1
        if (b"\\ud" in raw or b"\\uD" in raw) and has_half_surrogate(raw):
            raise UnusableRow("a text holds half of a surrogate pair (a broken \\u escape)")
        self.unused.update(unused_columns(record, format, messages))
        return digest(messages)
