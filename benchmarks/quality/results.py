"""Results as they are committed: a trial a line, and nothing that follows from them.

Tables are made from the trials when they are shown, so a file holds no number twice.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Decimals of losses, and of all else.
NLL_DIGITS, DIGITS = 4, 3
# What a trial has unless its line says otherwise.
USUAL: dict[str, Any] = {"options": {}}


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


def line_of(result: Mapping[str, Any]) -> str:
    """Return a trial's result as one line of JSON."""
    trial = {k: v for k, v in result["trial"].items() if USUAL.get(k) != v}
    return json.dumps(compact({**result, "trial": trial}), separators=(",", ":"), allow_nan=False)


def write_results(
    path: Path, about: Mapping[str, Any], results: Sequence[Mapping[str, Any]]
) -> None:
    """Write what a grid was run on and its trials; the file appears whole."""
    head = json.dumps(compact(about, 6), separators=(",", ":"), allow_nan=False)
    lines = ",\n".join(map(line_of, results))
    temporary = path.with_suffix(".part")
    temporary.write_text(f'{{"about":{head},\n"trials":[\n{lines}\n]}}\n')
    temporary.rename(path)


def read_results(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Read what `write_results` wrote, with the trials of the files that ``with`` names."""
    found = json.loads(path.read_text())
    trials = [{**one, "trial": USUAL | one["trial"]} for one in found["trials"]]
    for name in found["about"].get("with", []):
        trials += read_results(path.with_name(name))[1]
    return found["about"], trials
