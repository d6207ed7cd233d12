"""Processes of a Ray cluster that stay for many tasks, so that what they have loaded is there.

Ray restarts none of them and repeats none of their tasks: a process that is to be restarted may
wait for ever for a place while others have nothing to do. What a dead one had is given to others,
and the task that it died of is known: it takes its tasks in order.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar

from pyids.engine.failing import Failed, attempt, died, name_of, outcome, too_long
from pyids.engine.ray_cluster import explained, first_line
from pyids.errors import ConfigError, PyidsError

T = TypeVar("T")
R = TypeVar("R")

logger = logging.getLogger("pyids")

# Times that a task is tried elsewhere when its worker or node dies, or it is stuck.
RETRIES = 3
# Seconds in which a process that has nothing to do must say that it is there.
_PING_SECONDS = 30


def attempt_in(folder: str, task: Callable[[T], R], item: T) -> Any:
    """Do a task in the folder that the command was given in, where its node has it.

    So relative names of data, models and encoders mean there what they mean here; Ray starts its
    processes in the folder where its node was started.
    """
    with suppress(OSError):
        os.chdir(folder)
    return attempt(task, item)


class _Worker:
    """A process of the cluster that stays for the tasks of a stage."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def run(self, task: Callable[[T], R], item: T) -> Any:
        return attempt_in(self._folder, task, item)

    def there(self) -> None:
        """Answer, which it can as soon as it is placed and has nothing to do."""


@dataclass(eq=False)
class _Actor:
    """A process that stays, and what it has been given whose result is not taken."""

    handle: Any
    ready: Any
    placed: bool = False
    waiting: list[_Job] = field(default_factory=list)


@dataclass(eq=False)
class _Job:
    """A task in flight: its item, the reference to its result, the process that has it."""

    item: Any
    reference: Any = None
    actor: _Actor | None = None
    tries: int = 0
    failed: Failed | None = None


class Actors:
    """The processes that an engine keeps.

    Parameters
    ----------
    ray : module
    task_timeout : float, optional
        See `pyids.engine.ray.RayEngine`.
    in_flight : int
        Tasks that each has at a time.
    """

    def __init__(self, ray: Any, task_timeout: float | None, in_flight: int) -> None:
        self._ray, self._task_timeout, self._in_flight = ray, task_timeout, in_flight
        self._actors: list[_Actor] = []
        self._gpu = False
        # Processes in a row that did not start, of how many: a node may take several with it.
        self._not_started, self._most = 0, 0

    def end(self, *, busy: bool = False) -> None:
        """End the processes: all, or those that are still at work or not placed."""
        ended = [one for one in self._actors if one.waiting or not one.placed or not busy]
        for actor in ended:
            self._ray.kill(actor.handle)
            self._actors.remove(actor)

    def outcomes(
        self,
        task: Callable[[T], R],
        items: Iterable[T],
        size: Callable[[], int],
        asked: int | None,
        grow: Callable[[int], None],
        *,
        gpu: bool,
    ) -> Generator[R | Failed]:
        """Yield what became of each task, in order.

        Parameters
        ----------
        size
            Tells how many processes the cluster has room for at that time. More are asked for while
            tasks wait, up to twice as many, for which a cluster may grow. They get work
            when they have a place.
        asked : int, optional
            The most that are wanted.
        grow
            Is told how many processes there is work for, where it is more than there is room for.
        gpu : bool
            Each has a GPU.
        """
        if gpu != self._gpu:
            self.end()
        self._gpu, self._not_started, self._most = gpu, 0, 0
        source, running = iter(items), deque[_Job]()
        try:
            while True:
                room = self._in_flight * (asked or size())
                running.extend(map(_Job, islice(source, max(0, room - len(running)))))
                if not running:
                    return
                if len(running) >= room:
                    grow(room)
                self._start(min(len(running), asked or room))
                self._deal(task, running)
                if self._is_done(running[0]) and (found := self._take(running[0])) is not _LOST:
                    running.popleft()
                    yield found
        finally:
            self.end(busy=True)

    def _start(self, wanted: int) -> None:
        self._most = max(self._most, wanted)
        options = {"num_cpus": 1, "num_gpus": int(self._gpu), "max_restarts": 0}
        while len(self._actors) < wanted:
            handle = self._ray.remote(**options)(_Worker).remote(os.getcwd())
            self._actors.append(_Actor(handle, handle.there.remote()))

    def _deal(self, task: Callable[[T], R], running: deque[_Job]) -> None:
        """Give tasks to processes that have a place: never one that waits for it."""
        for job in running:
            if job.actor is not None or job.failed is not None:
                continue
            placed = [one for one in self._actors if one.placed]
            actor = min(placed, key=lambda one: len(one.waiting), default=None)
            # The first may come late, after a death: all others wait for it.
            if actor is None or (len(actor.waiting) >= self._in_flight and job is not running[0]):
                return
            job.reference, job.actor = actor.handle.run.remote(task, job.item), actor
            actor.waiting.append(job)

    def _is_done(self, job: _Job) -> bool:
        """Wait until a task is done or stuck, or a process has got its place."""
        if job.failed is not None:
            return True
        pending = [one for one in self._actors if not one.placed]
        references = [one.ready for one in pending]
        if job.actor is not None:
            references.append(job.reference)
        done, _ = self._ray.wait(references, num_returns=1, timeout=self._task_timeout)
        if not done and job.actor is None:
            kind = "GPU" if self._gpu else "CPU"
            raise ConfigError(
                f"{name_of(job.item)}: the Ray cluster has had no free {kind} for it in "
                f"{self._task_timeout:g} s (--task-timeout): free one, or give it more time"
            )
        if not done:
            assert job.actor is not None
            self._lose(job.actor, stuck=True)
            return False
        done, _ = self._ray.wait(references, num_returns=len(references), timeout=0)
        for one in pending:
            if one.ready in done:
                self._place(one)
        return job.actor is not None and job.reference in done

    def _place(self, actor: _Actor) -> None:
        """Take a process in that has a place, or could not be started."""
        try:
            self._ray.get(actor.ready)
            actor.placed, self._not_started = True, 0
        except self._ray.exceptions.RayError as error:
            self._actors.remove(actor)
            self._not_started += 1
            if (problem := explained(self._ray, error)) is not None:
                raise problem from None
            if self._not_started > RETRIES * self._most:
                raise PyidsError(
                    f"a Ray worker does not start ({first_line(error)}): see that pyids starts on "
                    "its node; the same command goes on where it stopped"
                ) from None

    def _take(self, job: _Job) -> Any:
        """Return what became of a task that is done; `_LOST` where its process died."""
        if job.failed is not None:
            return job.failed
        assert job.actor is not None
        try:
            told = self._ray.get(job.reference)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except self._ray.exceptions.RayError as error:
            if (problem := explained(self._ray, error)) is not None:
                raise problem from None
            self._lose(job.actor, first_line(error))
            return _LOST
        job.actor.waiting.remove(job)
        return outcome(told, job.item)

    def _lose(self, actor: _Actor, reason: str = "", *, stuck: bool = False) -> None:
        """Take back what a process had that died or is stuck; the first of it was the reason."""
        lost = [job for job in actor.waiting if not self._has_result(job)]
        self._ray.kill(actor.handle)
        self._actors.remove(actor)
        for job in lost:
            actor.waiting.remove(job)
            job.reference = job.actor = None
        for idle in [one for one in self._actors if one.placed and not one.waiting]:
            self._drop_if_dead(idle)  # its node may be gone, too
        if not lost:
            return
        first = lost[0]
        first.tries += 1
        if first.tries > RETRIES:
            if stuck:
                first.failed = too_long(first.item, self._task_timeout or 0, first.tries)
            else:
                what = f"a Ray worker died ({reason}), {first.tries} times,"
                first.failed = died(first.item, what)
        elif stuck:
            logger.warning(
                "%s: not done after %g s (--task-timeout): trying it elsewhere",
                *(name_of(first.item), self._task_timeout),
            )

    def _has_result(self, job: _Job) -> bool:
        errors = self._ray.exceptions
        try:
            self._ray.get(job.reference, timeout=0)
        except errors.RayTaskError:
            return True
        except (errors.RayError, errors.GetTimeoutError):
            return False
        return True

    def _drop_if_dead(self, actor: _Actor) -> None:
        errors = self._ray.exceptions
        try:
            self._ray.get(actor.handle.there.remote(), timeout=_PING_SECONDS)
        except (errors.RayError, errors.GetTimeoutError):
            self._ray.kill(actor.handle)
            self._actors.remove(actor)


# Stands for the result of a task that is to be done again.
_LOST = object()
