"""Faults of places: folders and data that move, data that changes, two processes in one folder."""

from __future__ import annotations

import random
import shutil
import threading
from pathlib import Path

from how import damaged
from workflow import Result, Workflow, run


def moved_command(workflow: Workflow, folder: Path, data: Path) -> list[str]:
    """Give the first command with the data in another place."""
    return [word.replace(f"{workflow.place}/", f"{data}/") for word in workflow.begin(folder)]


def move(workflow: Workflow, folder: Path, rng: random.Random) -> tuple[Path, Result, str]:
    """Move the folder, the data or both; then begin again from there. Give the new folder."""
    what = rng.choice(["folder", "data", "both"])
    data, to = workflow.place, folder
    if what != "data":
        to = folder.parent / "another" / "run"
        to.parent.mkdir()
        folder.rename(to)
        for scores in folder.parent.glob(f"{folder.name}-scores*.jsonl"):
            shutil.move(scores, to.parent)
    if what != "folder":
        data = folder.parent / "data"
        data.mkdir()
        for name in ("pool.jsonl", "vectors.npy"):
            shutil.copy(workflow.place / name, data / name)
        if (workflow.place / "model").exists():  # which is known by its name
            (data / "model").symlink_to(workflow.place / "model")
    command = moved_command(workflow, to, data)
    if "--model" in command:
        command[command.index("--model") + 1] = str(workflow.place / "model")
    return to, run(command), what


def damage_data(workflow: Workflow, folder: Path, rng: random.Random) -> tuple[Result, str]:
    """Begin again with data, or vectors, of the same name that have changed."""
    data = folder.parent / "data"
    data.mkdir()
    for name in ("pool.jsonl", "vectors.npy"):
        shutil.copy(workflow.place / name, data / name)
    name, how = rng.choice(["pool.jsonl", "vectors.npy"]), rng.choice(["flip", "zero", "truncate"])
    good = (data / name).read_bytes()
    bad = damaged(good, how, rng)
    if bad == good:  # what was zero
        bad = good[:-1]
    (data / name).write_bytes(bad)
    command = moved_command(workflow, folder, data)
    if "--model" in command:
        command[command.index("--model") + 1] = str(workflow.place / "model")
    return run(command), f"{name} {how}"


def two_at_once(workflow: Workflow, step: int, folder: Path) -> list[Result]:
    """Give one command twice at the same time."""
    results: list[Result] = []
    command = workflow.command(step, folder)
    both = [threading.Thread(target=lambda: results.append(run(command))) for _ in range(2)]
    for each in both:
        each.start()
    for each in both:
        each.join()
    return results
