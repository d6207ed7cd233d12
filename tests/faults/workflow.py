"""A small real workflow, run command by command in processes of its own."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import ClassVar

import numpy as np
import orjson
import xxhash

ROUNDS = 3
# What a command prints that did something it should not: a traceback, or an assertion's.
_BAD = ("Traceback", "Exception ignored", "Segmentation", "core dumped")


@dataclass
class Result:
    """How a command ended: exit code, or minus the signal."""

    command: list[str]
    code: int
    errors: str
    output: str = ""

    @property
    def traceback(self) -> bool:
        return any(word in self.errors for word in _BAD) or (
            self.code < 0 and -self.code in (signal.SIGBUS, signal.SIGSEGV, signal.SIGABRT)
        )


def load() -> None:
    """Import what commands need, so that a fork of this process begins at once."""
    for name in ("__main__", "cli", "clustering.kmeans", "data.near_dedup", "scoring.told"):
        import_module(f"pyids.{name}")
    for name in ("pyids.selection", "pyids.report", "pyarrow.parquet", "safetensors.numpy"):
        import_module(name)
    with suppress(ImportError):
        import_module("pandas")  # which pyarrow imports where it is


def run(
    arguments: list[str],
    *,
    before: Callable[[], None] | None = None,
    meanwhile: Callable[[int], None] | None = None,
    limit_s: float = 240.0,
) -> Result:
    """Run `pyids` with `arguments` in a fork of this process, which has read no file yet.

    Parameters
    ----------
    before
        Called in the child first: limits, faults of system calls.
    meanwhile
        Called in the parent with the child's id.
    """
    reader, writer = os.pipe()
    printed = os.memfd_create("stdout")
    # A signal that comes before the command begins is kept for it.
    held = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, held)
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            os.dup2(writer, 2)
            os.dup2(printed, 1)
            sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
            sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
            sys.argv = ["pyids", *arguments]
            from pyids.__main__ import _stop, main

            for number in held:
                signal.signal(number, _stop)
            code = 0
            try:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, held)
                if before:
                    before()
                main()
            except SystemExit as error:
                code = error.code if isinstance(error.code, int) else int(error.code is not None)
            except BaseException:  # noqa: BLE001
                import traceback

                traceback.print_exc()
                code = 1
            sys.stderr.flush()
            sys.stdout.flush()
            os._exit(code)
        finally:
            os._exit(99)
    os.close(writer)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, held)
    if meanwhile:
        meanwhile(child)
    os.set_blocking(reader, False)
    end, errors, status = time.monotonic() + limit_s, b"", None
    while status is None:
        done, status_ = os.waitpid(child, os.WNOHANG)
        errors += _read(reader)
        if done:
            status = status_
        elif time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            errors += b"Traceback: it hangs"
        else:
            time.sleep(0.002)
    errors += _read(reader)
    os.close(reader)
    os.lseek(printed, 0, os.SEEK_SET)
    with os.fdopen(printed, "rb") as file:
        output = file.read().decode(errors="replace")
    code = os.waitstatus_to_exitcode(status)
    return Result(arguments, code, errors.decode(errors="replace"), output)


def _read(descriptor: int) -> bytes:
    content = b""
    try:
        while block := os.read(descriptor, 1 << 16):
            content += block
    except BlockingIOError:
        pass
    return content


@dataclass
class Workflow:
    """`ask`, `tell`, ..., `export` over a pool; a copy of the folder after each step is kept."""

    place: Path
    options: list[str] = field(default_factory=list)
    rows: int = 600
    budget: int = 60
    seconds: float = 0.5  # that its longest step takes

    # How often it is chosen.
    weight: ClassVar[int] = 2
    # Faults that it knows; all of them by default.
    faults: ClassVar[tuple[str, ...]] = ()
    # Its result, in the run folder.
    selected: ClassVar[str] = "selected.jsonl"

    def __post_init__(self) -> None:
        self.place.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(7)
        topics = rng.integers(0, 5, self.rows)
        vectors = 4 * rng.standard_normal((5, 8))[topics] + rng.standard_normal((self.rows, 8))
        vectors[1::9] = vectors[::9][: len(vectors[1::9])] * 1.0001  # near-duplicates
        np.save(self.place / "vectors.npy", vectors.astype(np.float32))
        with (self.place / "pool.jsonl").open("wb") as file:
            for n, topic in enumerate(topics.tolist()):
                row = {"prompt": f"topic {topic} question {n}?", "completion": f"{n * 7 % 13}."}
                file.write(orjson.dumps({**row, "worth": n % 17 / 3}) + b"\n")
        self.folder = self.place / "run"
        self.steps: list[str] = ["ask"]
        for n in range(1, ROUNDS + 1):
            self.steps += [f"tell{n}", "ask" if n < ROUNDS else "export"]

    def begin(self, folder: Path) -> list[str]:
        command = ["ask", str(folder), "--data", str(self.place / "pool.jsonl")]
        command += ["--embeddings-file", str(self.place / "vectors.npy")]
        command += ["--budget", str(self.budget), "--rounds", str(ROUNDS), "--clusters", "6"]
        command += ["--threads", "1"]
        return ["-q", *command, "--probes-per-cluster", "3", *self.options]

    def command(self, step: int, folder: Path) -> list[str]:
        """Give the arguments of a step; the scores are written first, as a trainer would."""
        name = self.steps[step]
        if step == 0:
            return self.begin(folder)
        if name.startswith("tell"):
            scores = folder.parent / f"{folder.name}-scores{name[4:]}.jsonl"
            self.write_scores(folder, scores, int(name[4:]))
            return ["-q", "tell", str(folder), str(scores)]
        return ["-q", name, str(folder)]

    def after(self, step: int) -> int:
        """Give the step that follows one that was done."""
        return step + 1

    def where(self, step: int, folder: Path) -> int:
        """Find the step to go on with: an earlier one, if its round is gone."""
        told = len(list(folder.glob("rounds/*/weights.json")))
        drawn = len(list(folder.glob("rounds/*/selected.json")))
        if told == ROUNDS:
            return len(self.steps) - 1
        if drawn == told:
            return min(step, 2 * told)
        return min(step, 2 * told + 1) if (folder / "probes.jsonl").exists() else 2 * told

    def write_scores(self, folder: Path, scores: Path, number: int) -> None:
        """Score the rows to score; keep the file: a trainer does not train twice."""
        if scores.exists() or not (folder / "probes.jsonl").exists():
            return
        lines = []
        for line in (folder / "probes.jsonl").read_bytes().splitlines():
            row_id = orjson.loads(line)["_pyids_id"]
            noise = xxhash.xxh3_64_intdigest(b"%d %d" % (row_id, number)) % 1000 / 1000
            topic = orjson.loads(line)["prompt"].split()[1]
            lines.append(orjson.dumps({"_pyids_id": row_id, "score": int(topic) + noise}))
        scores.write_bytes(b"\n".join(lines) + b"\n")

    def snapshot(self, step: int) -> Path:
        """Give the copy of the run folder as it was before a step."""
        return self.place / f"before-{step}"

    def record(self) -> bytes:
        """Run it undisturbed; return the selection."""
        for step in range(len(self.steps)):
            if self.folder.exists():
                shutil.copytree(self.folder, self.snapshot(step), symlinks=True)
            result = run(self.command(step, self.folder))
            assert result.code == 0, result
        shutil.copytree(self.folder, self.snapshot(len(self.steps)), symlinks=True)
        self.result = (self.folder / self.selected).read_bytes()
        assert self.result.count(b"\n") == self.budget, self.result.count(b"\n")
        return self.result

    def copy(self, step: int, folder: Path) -> None:
        """Put the state before a step, and the scores told so far, to a new place."""
        if self.snapshot(step).exists():
            shutil.copytree(self.snapshot(step), folder, symlinks=True, dirs_exist_ok=True)
        for n in range(1, ROUNDS + 1):
            scores = self.place / f"run-scores{n}.jsonl"
            if scores.exists():
                shutil.copy(scores, folder.parent / f"{folder.name}-scores{n}.jsonl")


class Selecting(Workflow):
    """One `pyids select`, by a method without rounds that clusters."""

    selected = "selected-km-random.jsonl"
    # What says of rounds and of scores does not apply.
    faults = (
        *("damage", "kill", "signal", "errno", "disk full", "limit"),
        *("version", "moved", "other data", "two processes"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.steps = ["select"]

    def begin(self, folder: Path) -> list[str]:
        command = ["-q", "select", str(self.place / "pool.jsonl"), "--output-dir", str(folder)]
        command += ["--embeddings-file", str(self.place / "vectors.npy"), "--threads", "1"]
        command += ["--budget", str(self.budget), "--clusters", "6", "--method", "km-random"]
        return [*command, *self.options]

    def command(self, step: int, folder: Path) -> list[str]:
        return self.begin(folder)

    def where(self, step: int, folder: Path) -> int:
        return 0
