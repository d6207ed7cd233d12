"""Plain text tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from pyids.terminal import printable


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Align columns: the first to the left, the others to the right.

    Parameters
    ----------
    header
        Names of the columns.
    rows
        Cells, as many as the header has; floats get four significant digits, None and NaN a dash.
    """
    lines = [[_cell(name) for name in header], *([_cell(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _cell(value: object) -> str:
    if value is None or value != value:  # None, or NaN: the only value unequal to itself
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else printable(value, one_line=True)
