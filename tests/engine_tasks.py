"""Tasks for the tests of the engines: a module of its own, which the workers can import."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

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


def die_once(job):
    """Kill this worker when it first meets the third job."""
    mark = Path(job.folder) / f"died-{job.number}"
    if job.number == 3 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return job.number**2


def process_that_loaded(job):
    """Load something slow, once a process, as an encoder's weights are."""
    if not hasattr(process_that_loaded, "loaded"):
        process_that_loaded.loaded = os.getpid()
        (Path(job.folder) / f"loaded-{os.getpid()}").touch()
    time.sleep(0.05)
    return os.getpid()
