"""Scores that are wrong, or written otherwise."""

from __future__ import annotations

import random
import re
from pathlib import Path

from workflow import Workflow

_KINDS = ["shuffled", "1e200", "-1e308", "NaN", "Infinity", "utf-16", "bom", "unknown"]
_KINDS += ["selected", "twice", "text", "cut off", "null bytes", "true"]


def bad_scores(workflow: Workflow, step: int, folder: Path, rng: random.Random) -> tuple[str, Path]:
    """Write scores for a step that tells; return what is wrong with them, and the file."""
    good = folder.parent / f"{folder.name}-scores{workflow.steps[step][4:]}.jsonl"
    lines = good.read_bytes().splitlines()
    kind = rng.choice([*_KINDS, *(["last round"] if step > 1 else [])])
    line = rng.randrange(len(lines))
    wrong = list(lines)
    if kind == "shuffled":
        rng.shuffle(wrong)
    elif kind in ("1e200", "-1e308", "NaN", "Infinity", "true"):
        wrong[line] = re.sub(rb'("score":)[^}]*', rb"\g<1>" + kind.encode(), wrong[line])
    elif kind in ("unknown", "selected"):
        row_id = b"99999999"
        if kind == "selected":
            first = (folder / "selected.jsonl").read_bytes().splitlines()[0]
            row_id = re.search(rb'"_pyids_id":(\d+)', first)[1]
        wrong[line] = re.sub(rb'("_pyids_id":)\d+', rb"\g<1>" + row_id, wrong[line])
    elif kind == "twice":
        wrong.append(wrong[line])
    elif kind == "text":
        wrong[line] = b"step 7 loss 0.3"
    elif kind == "cut off":
        wrong = [*wrong[:line], wrong[line][: rng.randrange(1, len(wrong[line]))]]
    elif kind == "null bytes":
        wrong[line] = bytes(len(wrong[line]))
    elif kind == "last round":
        before = int(workflow.steps[step][4:]) - 1
        wrong = (workflow.place / f"run-scores{before}.jsonl").read_bytes().splitlines()
        rng.shuffle(wrong)
    content = b"\n".join(wrong) + b"\n"
    if kind == "utf-16":
        content = content.decode().encode("utf-16")
    elif kind == "bom":
        content = b"\xef\xbb\xbf" + content
    bad = folder.parent / "bad.jsonl"
    bad.write_bytes(content)
    return kind, bad
