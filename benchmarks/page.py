"""Tables in the documents, between two marks, filled by the benchmarks that measure them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path


def fill(page: Path, mark: str, lines: Sequence[str]) -> None:
    """Put `lines` between ``<!-- MARK -->`` and the ``<!-- end -->`` that follows it.

    Raises
    ------
    ValueError
        The page has no such marks.
    """
    marks = rf"(<!-- {re.escape(mark)} -->\n).*?(<!-- end -->)"
    body = "\n".join(lines) + "\n"
    text, n = re.subn(marks, lambda m: m[1] + body + m[2], page.read_text(), flags=re.S)
    if n != 1:
        raise ValueError(f"{page} has {n} places marked {mark!r}, not one")
    page.write_text(text)
