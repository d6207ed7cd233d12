"""What a file is that does not hold the rows that its name promises, and what mends it."""

from __future__ import annotations

import csv
import json
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pyids.chat.formats import detect_format
from pyids.chat.rawjson import parse

# Longer lines are not tried as what they are not.
_MOST_BYTES = 1 << 16


# Braces and a single quote: how Python shows a dict.
_PYTHON = re.compile(rb"\[?\s*\{\s*'")


_AS_JSON = (
    "python -c 'import ast,json,sys; "
    "[print(json.dumps(ast.literal_eval(l))) for l in sys.stdin]' < FILE > NEW"
)


def what_line(raw: bytes) -> str | None:
    """Say what a line is that is no JSON, and the remedy; None where nothing tells.

    Parameters
    ----------
    raw : bytes
        The line, without white space around it.
    """
    if len(raw) > _MOST_BYTES:
        return None
    if raw.endswith(b",") and _is_json(raw[:-1]):
        return "an object with a comma behind it: take the commas away (sed 's/,$//')"
    if _PYTHON.match(raw):
        return f"a Python dict, no JSON: write it as JSON ({_AS_JSON})"
    return None


def what_table(path: str, header: Iterable[str]) -> str | None:
    """Say what a file of one column is that should be a table, and the remedy; None if it is one.

    Parameters
    ----------
    path : str
        The file.
    header : iterable of str
        Its columns as they were read.
    """
    line = ",".join(header)
    name = Path(path).name
    if _is_json(line.encode()) or line.lstrip().startswith('{"'):
        return f"it holds JSON lines: name it {Path(name).stem}.jsonl"
    if "\t" in line and "," not in line:
        return f"its fields are parted by tabs: name it {Path(name).stem}.tsv"
    if name.lower().endswith(".tsv") and "," in line:
        return f"its fields are parted by commas: name it {Path(name).stem}.csv"
    if ";" in line and "," not in line:
        quoted = shlex.quote(name)
        return (
            "its fields are parted by semicolons: write it with commas (python -c 'import csv,sys; "
            f'csv.writer(sys.stdout).writerows(csv.reader(sys.stdin, delimiter=";"))\' < {quoted})'
        )
    return None


def what_lines(path: str, line: str) -> str | None:
    """Say that a file of JSON lines is a table, by its first line; None if it is none."""
    stem = Path(path).name.partition(".")[0]
    for delimiter, ending in ((",", "csv"), ("\t", "tsv")):
        try:
            fields = next(csv.reader([line], delimiter=delimiter), [])
        except csv.Error:
            continue
        if len(fields) > 1 and detect_format(dict.fromkeys(fields, "x")) is not None:
            return f"a table with a header, no JSON lines: name it {stem}.{ending}"
    return None


def what_object(path: str, only: Mapping[str, Any], *, known: bool) -> str | None:
    """Say how the rows lie in a file of one object, and the command that writes them out.

    `known`: the object has the columns of a row, so that it is one, unless each is a whole column.
    """
    name = shlex.quote(Path(path).name)
    values = list(only.values())
    lengths = {len(v) if isinstance(v, list) and not _is_rows(v) else 0 for v in values}
    if len(values) > 1 and len(lengths) == 1 and 0 not in lengths:
        program = (
            "to_entries as $c | range($c[0].value | length) as $i | $c | "
            "map({key, value: .value[$i]}) | from_entries"
        )
        return f"one object with a list for each column: {_jq(program, name)}"
    inner = [list(value) if isinstance(value, dict) else [] for value in values]
    alike = bool(inner and inner[0]) and all(keys == inner[0] for keys in inner)
    if alike and all(key.isdigit() for key in inner[0]):
        return (
            "one object of columns by the number of the row: save the table with "
            "to_json(FILE, orient='records', lines=True)"
        )
    if known:
        return None
    if (key := next((key for key, value in only.items() if _is_rows(value)), None)) is not None:
        return f"one object with the rows under {key!r}: {_jq(f'.[{json.dumps(key)}][]', name)}"
    if alike and len(values) > 1:
        return f"one object with a row under each key: {_jq('.[]', name)}"
    return None


def _is_rows(value: object) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _jq(program: str, name: str) -> str:
    return f"write them out with jq -c {shlex.quote(program)} {name} > rows.jsonl"


def _is_json(raw: bytes) -> bool:
    try:
        return isinstance(parse(raw), dict)
    except (ValueError, RecursionError):
        return False


# ---- many problems of one kind -------------------------------------------------------------------


_PLACE = re.compile(r"(?P<file>.*?) (?P<unit>line|row) (?P<number>\d+): (?P<text>.*)", re.DOTALL)


def summarize(errors: Iterable[str], most: int) -> list[str]:
    """Tell errors of one kind in one file once, with the places of all of them.

    Two are of a kind if they differ in digits or in what stands in quotes alone. After `most` the
    reading has ended, which is said.
    """
    kinds: dict[str, list[str]] = {}
    errors = list(errors)
    for number, error in enumerate(errors[:most]):
        kind = str(number)
        if (place := _PLACE.fullmatch(error)) is not None:
            plain = re.sub(r"'[^']*'|\"[^\"]*\"|\d+|0x[0-9A-F]+", "", place["text"])
            kind = f"{place['file']}\0{plain}"
        kinds.setdefault(kind, []).append(error)
    lines = []
    for alike in kinds.values():
        first, more = alike[0], alike[1:]
        lines.append(f"{first} (the same: {_numbers(more)})" if more else first)
    if len(errors) > most:
        lines[-1] += f"; the reading ended after {most} errors"
    return lines


def _numbers(errors: Iterable[str]) -> str:
    places = [place for error in errors if (place := _PLACE.fullmatch(error)) is not None]
    unit = places[0]["unit"] + ("s" if len(places) > 1 else "")
    return f"{unit} {', '.join(place['number'] for place in places)}"
