"""Every file of a run folder, damaged one at a time, and every command after it.

Run ``python -P tests/faults/sweep.py``; `test_faults.py` runs a share of it. Where `inject.py`
draws what it damages, here nothing is left out: each file of a finished run, of one that waits for
scores or for the next round, and of a selection without rounds is deleted, emptied, cut off and has
one bit flipped. A command that works must print what it prints for the whole folder, or leave the
same selection; one that refuses must name that file and what helps, and that must help.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import orjson
from how import names_file
from judge import Trial, compare, go_on, judge, mender
from workflow import Result, Selecting, Workflow, load, run

HOW = ("delete", "empty", "truncate", "flip")

# What `verify` does not answer for: it decides nothing, or may come and change after the run.
_FREE = (".lock", ".pyids", "README.md", "probes.jsonl", "report.html", "map.parquet")

# What is made again where it is missing, and `verify` asks for no more.
_FREE_IF_GONE = (".inputs.json",)

# What a message may advise.
_HELPS = ("`pyids clean ", "all its options", "remove it", "`pyids select`", "`pyids ask`")
_HELPS += ("`pyids export ",)


@dataclass(frozen=True)
class Case:
    """One file, damaged in one way in a copy of a folder as it stood before a step."""

    workflow: Workflow
    step: int
    name: str
    how: str
    command: str

    def __str__(self) -> str:
        place = self.workflow.place.name
        return f"{place} before step {self.step}: {self.name}: {self.how}, {self.command}"


def cases(workflow: Workflow, steps: list[int], looks: tuple[str, ...]) -> Iterator[Case]:
    """Yield all cases; a command is ``next`` (the step that follows), ``begin``, or one that looks.

    One file after the other, each with all damages and commands.
    """
    for step in steps:
        folder = workflow.snapshot(step)
        finished = step == len(workflow.steps)
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            name = str(file.relative_to(folder))
            for how in HOW:
                for command in (*(() if finished else ("next",)), "begin", *looks):
                    if how == "delete" or file.stat().st_size:
                        yield Case(workflow, step, name, how, command)


def one_of_each(found: list[Case]) -> list[Case]:
    """Take one case of each file, such that states, damages and commands take turns."""
    of_file: dict[tuple[int, str], list[Case]] = {}
    for case in found:
        of_file.setdefault((id(case.workflow), case.name), []).append(case)
    return [same[n * 13 % len(same)] for n, same in enumerate(of_file.values())]


def damage(file: Path, how: str) -> None:
    content = bytearray(file.read_bytes())
    if how == "delete":
        file.unlink()
        return
    if how == "empty":
        content.clear()
    elif how == "truncate":
        del content[len(content) // 2 :]
    else:
        content[len(content) // 2] ^= 4
    file.write_bytes(content)


def arguments(case: Case, folder: Path) -> list[str]:
    if case.command == "next":
        return case.workflow.command(case.step, folder)
    if case.command == "begin":
        return case.workflow.begin(folder)
    if case.command == "export":  # to another place
        return ["-q", "export", str(folder), "--to", str(folder.parent / "out" / "rows.jsonl")]
    if case.command == "select":  # another method, from the rows of this folder
        to = str(folder.parent / "out" / "rows.jsonl")
        return ["-q", "select", str(folder), "--method", "longest", "--budget", "9", "--to", to]
    if case.command == "report":
        return ["report", str(folder), "--to", str(folder.parent / "out" / "report.html")]
    return [case.command, str(folder)]


def seen(case: Case, result: Result, folder: Path) -> object:
    """What a command shows, but for places, times and sizes."""
    out = folder.parent / "out"
    if case.command in ("export", "select"):
        rows = out / "rows.jsonl"
        return rows.read_bytes() if rows.exists() else None
    if case.command == "report":
        page = (out / "report.html").read_text()
        found = re.search(r'<script[^>]*type="application/json"[^>]*>(.*?)</script>', page, re.S)
        data = orjson.loads(found[1])
        # Without its manifest a page says that it has none.
        free = ("disk", "costs", *(("provenance", "config") if "manifest" in case.name else ()))
        return {key: value for key, value in data.items() if key not in free}
    return None


def try_case(case: Case, folder: Path, expected: dict[tuple[int, str, str], object]) -> Trial:
    """Damage the file, give the command, do what it says, and go on to the end."""
    workflow = case.workflow
    trial = Trial("damage", str(case))
    workflow.copy(case.step, folder)
    key = (id(workflow), case.step, f"{case.command} {'manifest' in case.name}")
    (folder.parent / "out").mkdir(exist_ok=True)
    looks = case.command in ("export", "select", "report")
    if looks and key not in expected:
        result = run(arguments(case, folder))
        expected[key] = seen(case, result, folder) if result.code == 0 else result.code
        shutil.rmtree(folder.parent)
        return try_case(case, folder, expected)
    file = folder / case.name
    damage(file, case.how)
    before = contents(folder)
    result = run(arguments(case, folder))
    if judge(trial, result):
        return trial
    said = result.errors + (result.output if case.command == "verify" else "")
    if result.code not in (0, 1, 2, 3):
        trial.outcome, trial.message = "exit code", f"{result.code} {said}"
    elif result.code == 0 and looks and seen(case, result, folder) != expected[key]:
        trial.outcome = "different in silence"
    elif case.command == "verify" and result.code == 0 and vouched(case):
        trial.outcome = "unseen by verify"
    elif result.code in (1, 2) and not (looks and expected[key] == result.code):
        if not names_file(said, file, folder) and not (
            case.command == "verify" and not finished(case)
        ):
            trial.outcome, trial.message = "names another file", said
        elif result.code == 2 and not any(words in said for words in _HELPS):
            trial.outcome, trial.message = "no remedy", said
    if trial.outcome != "right":
        return trial
    if case.command in ("next", "begin", "export", "select", "verify"):
        mend = mender(trial, workflow, folder, file)
        step = case.step + (result.code == 0 and case.command == "next")
        if result.code in (1, 2) and not mend(said) and trial.outcome == "right":
            trial.outcome, trial.message = "does not help", said
        elif (step := workflow.where(step, folder)) < len(workflow.steps):
            go_on(trial, workflow, step, folder, mend)
        else:
            compare(trial, workflow, folder, mend)
    elif (now := contents(folder)) != before:
        trial.outcome = "changed"
        trial.message = ", ".join(sorted(n for n in {*now, *before} if now.get(n) != before.get(n)))
    return trial


def contents(folder: Path) -> dict[str, bytes]:
    """What a command that looks must leave as it is."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {
        name: path.read_bytes()
        for path in files
        if (name := str(path.relative_to(folder))) not in (".lock", ".pyids")
    }


def finished(case: Case) -> bool:
    return case.step == len(case.workflow.steps)


def vouched(case: Case) -> bool:
    free = (*_FREE, *(_FREE_IF_GONE if case.how == "delete" else ()))
    return finished(case) and case.name not in free


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", default="0/1", help="N/M: the Nth of M parts, dealt in turn")
    parser.add_argument("--each-file", action="store_true", help="one case of each file")
    parser.add_argument("--only", help="of the cases those whose description holds this")
    options = parser.parse_args()
    part, parts = map(int, options.part.split("/"))
    load()
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    begun, bad, expected = time.monotonic(), 0, {}
    with tempfile.TemporaryDirectory(prefix="pyids-sweep-", dir=memory) as place:
        os.environ["XDG_STATE_HOME"] = f"{place}/state"
        plain, select = Workflow(Path(place) / "plain"), Selecting(Path(place) / "select")
        for workflow in (plain, select):
            workflow.record()
        looks = ("verify", "status", "report", "clean", "select")
        found = [
            *cases(plain, [len(plain.steps)], ("export", *looks)),
            *cases(plain, [3, 4], ()),
            *cases(select, [1], looks),
        ]
        if options.each_file:
            found = one_of_each(found)
        found = [case for n, case in enumerate(found) if n % parts == part]
        if options.only:
            found = [case for case in found if options.only in str(case)]
        for number, case in enumerate(found):
            folder = Path(place) / f"case-{number}" / "run"
            folder.parent.mkdir()
            trial = try_case(case, folder, expected)
            shutil.rmtree(folder.parent, ignore_errors=True)
            if trial.outcome != "right":
                bad += 1
                print(f"{trial.detail}: {trial.outcome}", flush=True)
                print("    " + trial.message.replace("\n", "\n    "), flush=True)
    print(f"{len(found)} cases in {time.monotonic() - begun:.0f} s, {bad} not right")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
