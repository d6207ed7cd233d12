"""A look into each row that is read: its format, its digest, what of it reaches no model."""

from __future__ import annotations

from collections import Counter
from typing import Any

from pyids.chat.digest import digest, digest_of_turns
from pyids.chat.formats import (
    BadRow,
    UnusableRow,
    detect_format,
    no_format,
    plain_turns,
    to_messages,
    unused_columns,
)
from pyids.data.readers import Damaged


class Look:
    """Looks into rows, and counts their formats and the columns that do not reach the model."""

    def __init__(self, format: str) -> None:
        self.format = format
        self.formats = Counter[str]()
        self.unused = Counter[str]()
        self._columns: tuple[str, ...] = ()
        self._plain = plain_turns((), format)

    def digest(self, record: dict[str, Any]) -> bytes:
        """Give the digest of a row's conversation; see `to_messages` for what is raised."""
        if type(record) is dict:
            columns = tuple(record)
            if columns != self._columns:  # nearly all rows have those of the one before
                self._columns, self._plain = columns, plain_turns(columns, self.format)
            if (plain := self._plain) is not None:
                name, column, keys, roles = plain
                key = digest_of_turns(record[column], keys, roles)
                if key is not None:
                    self.formats[name] += 1
                    return key
        format = self.format if self.format != "auto" else detect_format(record)
        if format is None:
            raise BadRow(no_format(record))
        try:
            messages = to_messages(record, format)
        except UnusableRow:
            self.formats[format] += 1
            raise
        self.formats[format] += 1
        if isinstance(record, Damaged):
            raise UnusableRow("a text holds half of a surrogate pair (a broken \\u escape)")
        if unused := unused_columns(record, format, messages):
            self.unused.update(unused)
        return digest(messages)
