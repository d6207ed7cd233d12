"""Results as they are committed: a trial a line, and nothing that follows from them.

Tables are made from the trials when they are shown, so a file holds no number twice, and no name
of a skill more than once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

# Decimals of losses, and of all else.
NLL_DIGITS, DIGITS = 4, 3
# What a trial has unless its line says otherwise.
USUAL: dict[str, Any] = {"options": {}}
# Figures by skill and by kind of garbage are lists, in the order of the names at the file's head.
BY_NAME = {
    "nll": "skills", "exact_match": "skills", "skill_rows": "skills",
    "garbage": "kinds", "expected": "kinds", "drawn": "kinds",
}  # fmt: skip
ABSENT = ""


def compact(value: Any, digits: int = DIGITS) -> Any:
    """Round the numbers of JSON values; NaN, which JSON does not know, is None."""
    if isinstance(value, Mapping):
        return {
            key: compact(item, NLL_DIGITS if key == "nll" else digits)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [compact(item, digits) for item in value]
    if isinstance(value, float):
        return None if value != value else round(value, digits)
    return value


def walk(value: Any, change: Callable[[str, Any], Any]) -> Any:
    """Return JSON values with each entry of a mapping changed, the inner ones first."""
    if isinstance(value, Mapping):
        return {key: change(key, walk(item, change)) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [walk(item, change) for item in value]
    return value


def names_of(results: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return the skills and the kinds of garbage that results have figures of."""
    found: dict[str, set[str]] = {"skills": set(), "kinds": set()}

    def note(key: str, item: Any) -> Any:
        if key in BY_NAME:
            found[BY_NAME[key]].update(item)
        return item

    walk(results, note)
    return {what: sorted(names) for what, names in found.items()}


def line_of(result: Mapping[str, Any], names: Mapping[str, list[str]]) -> str:
    """Return a trial's result as one line of JSON."""

    def pack(key: str, item: Any) -> Any:
        if key not in BY_NAME:
            return item
        return [item.get(name, ABSENT) for name in names[BY_NAME[key]]] if item else []

    trial = {k: v for k, v in result["trial"].items() if USUAL.get(k) != v}
    packed = walk(compact({**result, "trial": trial}), pack)
    return json.dumps(packed, separators=(",", ":"), allow_nan=False)


def write_results(
    path: Path, about: Mapping[str, Any], results: Sequence[Mapping[str, Any]]
) -> None:
    """Write what a grid was run on and its trials; the file appears whole."""
    names = names_of(results)
    head = json.dumps(compact({**about, **names}, 6), separators=(",", ":"), allow_nan=False)
    lines = ",\n".join(line_of(result, names) for result in results)
    temporary = path.with_suffix(".part")
    temporary.write_text(f'{{"about":{head},\n"trials":[\n{lines}\n]}}\n')
    temporary.rename(path)


def read_results(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Read what `write_results` wrote, with the trials of the files that ``with`` names."""
    found = json.loads(path.read_text())
    names = {key: found["about"].pop(key) for key in ("skills", "kinds")}

    def unpack(key: str, item: Any) -> Any:
        if key not in BY_NAME:
            return item
        order = names[BY_NAME[key]]
        return {name: x for name, x in zip(order, item, strict=bool(item)) if x != ABSENT}

    trials = [{**walk(one, unpack), "trial": USUAL | one["trial"]} for one in found["trials"]]
    for name in found["about"].get("with", []):
        trials += read_results(path.with_name(name))[1]
    return found["about"], trials
