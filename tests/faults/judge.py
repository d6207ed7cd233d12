"""How a workflow goes on after a fault, and what is said of its end."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from how import names_file
from workflow import Result, Workflow, run


@dataclass
class Trial:
    """One trial: what was done, and how it ended."""

    fault: str
    detail: str
    outcome: str = "right"
    message: str = ""


def go_on(
    trial: Trial,
    workflow: Workflow,
    step: int,
    folder: Path,
    mend: Callable[[str], bool] | None = None,
) -> None:
    """Run the steps that are left; where one refuses, mend what it names, a few times."""
    mended = 0
    while step < len(workflow.steps):
        result = run(workflow.command(step, folder))
        if judge(trial, result):
            return
        if result.code == 0:
            step = workflow.after(step)
        elif result.code == 3:  # all rounds are done
            step = len(workflow.steps) - 1
        elif mend is not None and mended < 4 and mend(result.errors):
            mended += 1
            step = workflow.where(step, folder)
        else:
            if trial.outcome == "right":
                trial.outcome, trial.message = "lost", result.errors
            return
    compare(trial, workflow, folder, mend)


def judge(trial: Trial, result: Result) -> bool:
    """Note a traceback or a crash."""
    if result.traceback:
        trial.outcome, trial.message = "traceback", f"{result.command} {result.errors}"
    elif result.code == 2 and len(result.errors.strip().splitlines()) > 3:
        trial.outcome, trial.message = "many lines", result.errors
    return trial.outcome != "right"


def compare(
    trial: Trial,
    workflow: Workflow,
    folder: Path,
    mend: Callable[[str], bool] | None = None,
) -> None:
    """Compare the selection with that of the undisturbed run, and verify the folder.

    What no command has read since it was damaged, `verify` finds, with what to do.
    """
    selected = folder / workflow.selected
    if not selected.exists() or selected.read_bytes() != workflow.result:
        trial.outcome, trial.message = "wrong", "the selection differs"
        return
    result = run(["verify", str(folder)])
    if judge(trial, result):
        return
    if result.code != 0 and mend is not None and mend(result.output + result.errors):
        step = workflow.where(len(workflow.steps), folder)
        while step < len(workflow.steps):
            if judge(trial, run(workflow.command(step, folder))):
                return
            step = workflow.after(step)
        compare(trial, workflow, folder)
    elif result.code != 0:
        trial.outcome, trial.message = "unverified", result.output + result.errors


def mender(trial: Trial, workflow: Workflow, folder: Path, file: Path) -> Callable[[str], bool]:
    """Do what a message about a damaged file says: it must name that file, and what helps."""
    name = str(file.relative_to(folder))

    def mend(message: str) -> bool:
        if not names_file(message, file, folder):
            trial.outcome = "names another file"
            trial.message = message
            return False
        if found := re.search(r"`pyids (clean [^`]*)`", message):
            cleaned = run(found[1].split()).code == 0
            if not cleaned or "all its options" not in message:
                return cleaned
        if found := re.search(r"`pyids (export [^`]*)`", message):
            return run(found[1].split()).code == 0
        if "all its options" in message or "repeat the `pyids select`" in message:
            return run(workflow.begin(folder)).code in (0, 3)
        if "remove it" in message or name.endswith("scores.jsonl"):
            file.unlink(missing_ok=True)
            return True
        return False

    return mend
