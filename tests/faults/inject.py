"""Faults, injected into a small workflow: nothing may be lost, silently wrong, or a traceback.

Run ``python -P tests/faults/inject.py --trials 1000``; ``make faults N=1000`` does. Every trial
takes the run folder as it was before one of the steps, does something to it or to the command, and
goes on to the end. A command may refuse, in one line that says what to do; then that is done. The
selection at the end must be the bytes of the undisturbed run.
"""

from __future__ import annotations

import argparse
import errno
import gc
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from how import CALLS, LOOKS, Disk, after, damaged, fail, names_file
from judge import Trial, go_on, judge, mender
from places import damage_data, move, two_at_once
from told import bad_scores
from training import Training
from workflow import ROUNDS, Selecting, Workflow, load, run

_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.EROFS, errno.ENOMEM)


class Injector:
    """Injects faults into workflows that have been recorded.

    Parameters
    ----------
    place
        A folder for everything.
    seed
        Decides every trial.
    only
        The one workflow that is disturbed; by default all are.
    """

    def __init__(self, place: Path, seed: int, only: str | None = None) -> None:
        self.place = place
        self.seed, self.random = seed, random.Random()
        made: dict[str, Callable[[Path], Workflow]] = {
            "plain": Workflow,
            "near": lambda path: Workflow(path, ["--semdedup-threshold", "0.999"]),
            "quality": lambda path: Workflow(path, ["--quality", "worth", "--clusters", "auto"]),
            "training": Training,
            "select": Selecting,
        }
        self.workflows = [make(place / name) for name, make in made.items() if only in (None, name)]
        for workflow in self.workflows:
            workflow.record()
        # Each with how often it is chosen.
        self.faults: dict[str, tuple[int, Callable[[Trial, Workflow, int, Path], None]]] = {
            "damage": (8, self.damage),
            "kill": (3, self.kill),
            "signal": (3, self.signal),
            "errno": (4, self.errno),
            "disk full": (2, self.disk_full),
            "limit": (1, self.limit),
            "edited": (2, self.edited),
            "version": (2, self.version),
            "scores": (2, self.scores),
            "moved": (1, self.moved),
            "other data": (1, self.other_data),
            "two processes": (1, self.two),
        }

    def trial(self, number: int) -> Trial:
        """Inject one fault and go on to the end; its number decides all of it."""
        self.random.seed(f"{self.seed} {number}")
        [workflow] = self.random.choices(self.workflows, [w.weight for w in self.workflows])
        known = workflow.faults or tuple(self.faults)
        [fault] = self.random.choices(known, [self.faults[name][0] for name in known])
        step = self.random.randrange(len(workflow.steps))
        trial = Trial(fault, f"{workflow.place.name} before step {step}")
        folder = self.place / f"trial-{number}" / "run"
        folder.parent.mkdir()
        workflow.copy(step, folder)
        try:
            self.faults[fault][1](trial, workflow, step, folder)
        finally:
            shutil.rmtree(folder.parent, ignore_errors=True)
        return trial

    # -- faults --

    def damage(self, trial: Trial, workflow: Workflow, step: int, folder: Path) -> None:
        """Damage one file between two commands."""
        step = max(step, 1)
        if not folder.exists():
            workflow.copy(step, folder)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        file = self.random.choice([path for path in files if path.name != ".lock"])
        like = [path for path in files if path.name == file.name and path != file]
        how = self.random.choice(["flip", "zero", "truncate", "empty", "delete", "foreign"])
        name = str(file.relative_to(folder))
        trial.fault, trial.detail = f"damage: {how}", f"{trial.detail}: {name}"
        good = file.read_bytes()
        if how == "delete":
            file.unlink()
        elif how == "foreign":
            # Half of them of its own name, from another folder, as they are.
            more = b"\n" if not like or self.random.random() < 0.5 else b""
            file.write_bytes(self.random.choice(files if more else like).read_bytes() + more)
        else:
            file.write_bytes(damaged(good, how, self.random))
        look = self.random.choice(LOOKS)
        if look and judge(trial, run([look[0], str(folder), *look[1:]])):
            return

        go_on(trial, workflow, step, folder, mender(trial, workflow, folder, file))

    def kill(self, trial: Trial, workflow: Workflow, step: int, folder: Path) -> None:
        """Kill a command at a random time, up to three times."""
        for _ in range(self.random.randint(1, 3)):
            wait_s = workflow.seconds * 10 ** self.random.uniform(-2.7, 0)
            command = workflow.command(step, folder)
            run(command, meanwhile=after(wait_s, signal.SIGKILL))
            if (step := workflow.where(step + 1, folder)) >= len(workflow.steps) - 1:
                break
        go_on(trial, workflow, step, folder)

    def signal(self, trial: Trial, workflow: Workflow, step: int, folder: Path) -> None:
        """Stop a command by SIGINT or SIGTERM: exit code 130 or 143, no traceback."""
        number = self.random.choice([signal.SIGINT, signal.SIGTERM])
        trial.fault = f"signal: {number.name}"
        command = workflow.command(step, folder)
        if step == 0 and self.random.random() < 0.5:
            command += ["--workers", "2"]
        wait_s = workflow.seconds * 10 ** self.random.uniform(-2.2, 0.1)
        result = run(command, meanwhile=after(wait_s, number))
        if judge(trial, result):
            return
        if result.code not in (0, 128 + number):
            trial.outcome, trial.message = "exit code", f"{result.code} {result.errors}"
            return
        go_on(trial, workflow, workflow.where(step + 1, folder), folder)

    def errno(self, trial: Trial, workflow: Workflow, step: int, folder: Path) -> None:
        """Let a system call fail, then go on."""
        number = self.random.choice(_ERRNOS)
        name = self.random.choice(CALLS)
        nth = int(10 ** self.random.uniform(0, 2))
        trial.fault = f"errno: {errno.errorcode[number]}"
        trial.detail += f": {name} {nth}"
        result = run(workflow.command(step, folder), before=lambda: fail(name, nth, number))
        if judge(trial, result):
            return
        if result.code not in (0, 2, 3):
            trial.outcome, trial.message = "exit code", f"{result.code} {result.errors}"
            return
        go_on(trial, workflow, workflow.where(step + 1, folder), folder)

    def disk_full(self, trial: Trial, workflow: Workflow, step: int, folder: Path) -> None:
        """Run a command on a disk that is too small, then make room."""
        disk = folder.parent / "disk"
        disk.mkdir()
        room = self.random.randrange(0, 400_000)
        used = sum(8192 + path.stat().st_size for path in folder.parent.rglob("*"))
        small = Disk(disk, used + room)
        if not small.mounted:
            trial.fault = "disk full (limit)"
            result = run(
                workflow.command(step, folder),
                before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room // 8, room // 8)),
            )
            if not judge(trial, result):
                go_on(trial, workflow, workflow.where(step + 1, folder), folder)
            return
        try:
            on_disk = disk / "run"
            workflow.copy(step, on_disk)
            result = run(workflow.command(step, on_disk))
            trial.detail += f": {room} bytes left, exit code {result.code}"
            if judge(trial, result):
                return
            small.enlarge()
            go_on(trial, workflow, workflow.where(step + 1, on_disk), on_disk)
        finally:
            small.unmount()

    def limit(self, trial: Trial, workflow: Workflow, step: int, folder: Path) -> None:
        """Run a command with few open files or little memory."""
        files, memory = self.random.randint(4, 30), (1 << 20) * self.random.randint(900, 1500)
        kind, limit = self.random.choice(
            [(resource.RLIMIT_NOFILE, files), (resource.RLIMIT_AS, memory)]
        )
        trial.detail += f": {limit}"
        result = run(
            workflow.command(step, folder), before=lambda: resource.setrlimit(kind, (limit, limit))
        )
        if not judge(trial, result):
            go_on(trial, workflow, workflow.where(step + 1, folder), folder)

    def edited(self, trial: Trial, workflow: Workflow, step: int, folder: Path) -> None:
        """Edit the configuration, or delete what the folder is known by and ask for more rows."""
        step = max(step, 1)
        workflow.copy(step, folder)
        config = folder / "config.yaml"
        good = config.read_text()
        if self.random.random() < 0.3:
            (folder / "identity.json").unlink()
            command = workflow.begin(folder)
            command[command.index("--budget") + 1] = str(workflow.budget + 9)
            trial.detail += ": no identity, other budget"
            result = run(command)
            if judge(trial, result):
                return
            if result.code == 0:
                trial.outcome, trial.message = "wrong", "another budget was taken"
                return
            run(workflow.begin(folder))  # which writes it again
            step = workflow.where(step, folder)
        else:
            edits = [
                ("min_weight: 0.02", "min_weight: 0.22"),
                ("weight_update: exponential", "weight_update: none"),
                (f"budget: {workflow.budget}", f"budget: {workflow.budget + 3}"),
                ("seed: 0", "seed: 1"),
                (f"rounds: {ROUNDS}", f"rounds: {ROUNDS - 1}"),
                ("allocation: proportional", "allocation: equal"),
                ("metric: euclidean", "metric: cosine"),
            ]
            old, new = self.random.choice(edits)
            assert old in good, old
            config.write_text(good.replace(old, new))
            trial.detail += f": {new}"
            result = run(workflow.command(step, folder))
            if judge(trial, result):
                return
            if result.code == 0:
                trial.outcome, trial.message = "wrong", f"{new} was taken"
                return
            if new.partition(":")[0] not in result.errors:
                trial.outcome, trial.message = "names another field", result.errors
                return
            config.write_text(good)
        go_on(trial, workflow, step, folder)

    def version(self, trial: Trial, workflow: Workflow, step: int, folder: Path) -> None:
        """Change the format that a file says it has."""
        step = max(step, 1)
        workflow.copy(step, folder)
        files = sorted(p for p in folder.rglob("*.json") if b'"_format"' in p.read_bytes())
        file = self.random.choice(files)
        good = file.read_bytes()
        number = self.random.choice([b"0", b"1", b"2", b"4", b"99"])
        file.write_bytes(re.sub(rb'"_format": \d+', b'"_format": ' + number, good))
        trial.detail += f": {file.relative_to(folder)} of format {number.decode()}"

        def mend(message: str) -> bool:
            if not names_file(message, file, folder):
                trial.outcome, trial.message = "names another file", message
                return False
            file.write_bytes(good)
            return True

        go_on(trial, workflow, step, folder, mend)

    def scores(self, trial: Trial, workflow: Workflow, step: int, folder: Path) -> None:
        """Tell scores that are wrong: they are refused, and the right ones change nothing."""
        tells = [n for n, name in enumerate(workflow.steps) if name.startswith("tell")]
        step = self.random.choice(tells)
        shutil.rmtree(folder, ignore_errors=True)
        workflow.copy(step, folder)
        kind, bad = bad_scores(workflow, step, folder, self.random)
        trial.fault = f"scores: {kind}"
        result = run(["-q", "tell", str(folder), str(bad)])
        if judge(trial, result):
            return
        if kind == "shuffled":
            if result.code != 0:
                trial.outcome, trial.message = "exit code", result.errors
                return
            step += 1
        elif result.code != 2 or " line " not in result.errors:
            trial.outcome = "wrong" if result.code == 0 else "names no line"
            trial.message = result.errors
            return
        go_on(trial, workflow, step, folder)

    def moved(self, trial: Trial, workflow: Workflow, step: int, folder: Path) -> None:
        """Move the folder, its data or both, and begin again from there."""
        step = max(step, 1)
        workflow.copy(step, folder)
        folder, result, what = move(workflow, folder, self.random)
        trial.fault = f"moved: {what}"
        if judge(trial, result):
            return
        if result.code not in (0, 3):
            trial.outcome, trial.message = "exit code", f"{result.code} {result.errors}"
            return
        go_on(trial, workflow, step, folder)

    def other_data(self, trial: Trial, workflow: Workflow, step: int, folder: Path) -> None:
        """Begin again with data that has changed: refused, and nothing changes."""
        step = max(step, 1)
        workflow.copy(step, folder)
        result, what = damage_data(workflow, folder, self.random)
        trial.detail += f": {what}"
        if judge(trial, result):
            return
        if result.code != 2:
            trial.outcome, trial.message = "wrong", f"{what} was taken"
            return
        go_on(trial, workflow, step, folder)

    def two(self, trial: Trial, workflow: Workflow, step: int, folder: Path) -> None:
        """Give one command twice at the same time: one works, the other refuses or has nothing."""
        for result in two_at_once(workflow, step, folder):
            if judge(trial, result):
                return
        go_on(trial, workflow, workflow.where(step + 1, folder), folder)


def main() -> int:
    """Run trials and print what became of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first trial")
    parser.add_argument("--only", help="plain, near, quality, training or select")
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    load()
    outcomes: dict[str, Counter[str]] = {}
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # where fsync costs nothing
    with tempfile.TemporaryDirectory(prefix="pyids-faults-", dir=memory) as place:
        os.environ["XDG_STATE_HOME"] = f"{place}/state"
        injector = Injector(Path(place), options.seed, options.only)
        begin = time.monotonic()
        for number in range(options.first, options.first + options.trials):
            trial = injector.trial(number)
            outcomes.setdefault(trial.fault, Counter())[trial.outcome] += 1
            if trial.outcome != "right" or options.verbose:
                print(f"{number} {trial.fault}: {trial.detail}: {trial.outcome}", flush=True)
                print("    " + trial.message.replace("\n", "\n    "), flush=True)
        print(f"\n{options.trials} trials in {time.monotonic() - begin:.0f} s, seed {options.seed}")
    gc.unfreeze()
    print("| fault | trials | outcome |\n|---|---|---|")
    for fault, counts in sorted(outcomes.items()):
        said = ", ".join(f"{count} {outcome}" for outcome, count in counts.most_common())
        print(f"| {fault} | {counts.total()} | {said} |")
    return int(any(counts.total() != counts["right"] for counts in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
