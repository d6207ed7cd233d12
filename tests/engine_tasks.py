"""Tasks for the tests of the engines: a module of its own, which the workers can import."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pyids.errors import DataError


@dataclass(frozen=True)
class Job:
    number: int
    folder: str


def write_number(job):
    time.sleep(0.002 * (7 - job.number % 7))  # later ones end earlier
    path = Path(job.folder) / str(job.number)
    path.write_text(str(job.number**2))
    return job.number**2


def refuse_three(job):
    if job.number == 3:
        raise DataError("row 3 is bad")
    return job.number


def die_at_three(job):
    if job.number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return job.number


def process_id(job):
    return os.getpid()


def take_a_second(job):
    time.sleep(1)
    return job.number


def die_once(job):
    """Kill this worker when it first meets the third job."""
    mark = Path(job.folder) / f"died-{job.number}"
    if job.number == 3 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return job.number**2


def stuck_once(job):
    """Get stuck when the third job is first met; told by name, always."""
    mark = Path(job.folder) / f"stuck-{job.number}"
    if job.number == 3 and (job.folder == "always" or not mark.exists()):
        if job.folder != "always":
            mark.touch()
        time.sleep(3600)
    return job.number**2


def process_that_loaded(job):
    """Load something slow, once a process, as an encoder's weights are; until two have."""
    if not hasattr(process_that_loaded, "loaded"):
        process_that_loaded.loaded = os.getpid()
        (Path(job.folder) / f"loaded-{os.getpid()}").touch()
    deadline = time.monotonic() + 60
    while len(list(Path(job.folder).glob("loaded-*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.05)
    return os.getpid()


def die_inside(job):
    """Do a task; of each stage one dies before its work, and one with it done and not told."""
    task, marks, item = job
    for when in ("before", "after"):
        try:
            (Path(marks) / f"{task.__name__} {when}").touch(exist_ok=False)
        except FileExistsError:
            continue
        if when == "after":
            task(item)
        os.kill(os.getpid(), signal.SIGKILL)
    return task(item)


def wait_for_the_end(job):
    """Do a task; the first one of its stage names its node, and waits until that is lost."""
    import ray

    task, marks, item = job
    named = Path(marks) / f".{task.__name__}-{os.getpid()}"
    named.write_text(ray.get_runtime_context().get_node_id())
    try:
        os.link(named, Path(marks) / task.__name__)
    except FileExistsError:
        return task(item)
    time.sleep(600)
    raise AssertionError("the node was not lost")


def node_of(number):
    """Say which node this is, after a while."""
    import ray

    time.sleep(1)
    return number, ray.get_runtime_context().get_node_id()


def when(number):
    """Say when this began and ended."""
    start = time.time()
    time.sleep(0.2)
    return start, time.time()


def folder_bytes(folder):
    """Contents of all files of a run folder but those that name where it lies."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not file.name.startswith(".") and file.name != "config.yaml"
    }


class PickyError(ValueError):
    """One that does not survive being pickled: its arguments are not those it is made with."""

    def __init__(self, row, word):
        super().__init__(f"row {row} holds {word}")


def fail_at(text):
    """Fail as the text says."""
    if "RAISE" in text:
        raise ValueError("a text that nobody can embed")
    if "PICKY" in text:
        raise PickyError(1, "PICKY")
    if "KILL" in text:
        os.kill(os.getpid(), signal.SIGKILL)
    if "SLEEP" in text:
        time.sleep(3600)
    if "FULL" in text:
        raise OSError(28, "No space left on device", "/some/file")


class Letters:
    """An encoder that fails at some texts."""

    name, revision, dim = "letters", "1", 26

    def encode(self, texts, progress=None):
        for text in texts:
            fail_at(text)
        counts = [[text.lower().count(chr(97 + i)) for i in range(26)] for text in texts]
        return np.array(counts, np.float32)


def letters(**options):
    return Letters()


class Length:
    """A quality signal that fails at some rows."""

    def __init__(self):
        self.identity = {"signal": "length, with care"}

    def score(self, rows):
        for row in rows:
            if "UNRATED" in row[0]["content"]:
                raise ValueError("cannot be rated")
        return np.array([float(len(row[-1]["content"])) for row in rows])


def length(model, **options):
    return Length()


def raise_at_three(job):
    if job.number == 3:
        raise PickyError(3, "that")
    return job.number
