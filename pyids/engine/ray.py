"""The tasks of a stage on a Ray cluster."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
from collections import deque
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from pyids.engine import IN_FLIGHT, Closing, node_check, ray_actors
from pyids.engine.failing import Failed, died, name_of, outcome, too_long
from pyids.engine.ray_actors import attempt_in
from pyids.engine.ray_cluster import ask_for_workers, connect, explained, first_line
from pyids.errors import ConfigError

T = TypeVar("T")
R = TypeVar("R")

logger = logging.getLogger("pyids")

# A node that has not answered by then is named.
_CHECK_SECONDS = 120


class RayEngine(Closing):
    """A Ray cluster: the one that runs, or a private one for as long as this engine lives.

    An initialized Ray is used as it is; else the cluster at `address`, at ``RAY_ADDRESS``, or begun
    on this machine with ``ray start``; else a private one is started, and `close` stops it. A
    cluster that this engine did not start is never stopped. Only paths and numbers cross the
    network, so the run folder must lie where every node sees it (`check`).

    What workers of a cluster need and do not have travels with ``PYIDS_RUNTIME_ENV``: JSON, or the
    path of a JSON or YAML file, with what Ray calls a runtime environment (``pip``,
    ``py_modules``, ``env_vars``). It comes from the environment alone, never from a run folder,
    for it says what other machines install and run.

    Parameters
    ----------
    address : str, optional
        Address of a cluster.
    workers : int, optional
        Tasks at a time; default: the cluster's CPUs (GPUs for tasks that use one), as many as it
        has at that time.
    task_timeout : float, optional
        Seconds after which a task is ended and tried elsewhere, counted from when all before it
        are done; after the third of these tries it is an error that names its rows. By default a
        task has all the time.
    size : int, optional
        CPUs of a private cluster; default: `workers`.
    """

    def __init__(
        self,
        address: str | None = None,
        workers: int | None = None,
        task_timeout: float | None = None,
        size: int | None = None,
    ) -> None:
        if workers is not None and workers < 1:
            raise ConfigError(f"workers is {workers}: give 1 or more")
        try:
            import ray
        except ImportError:
            raise ConfigError(
                "the engine 'ray' needs the package ray: pip install 'pyids-select[ray]'"
            ) from None
        self._ray: Any = ray
        self._dropped: list[Any] = []
        self._actors = ray_actors.Actors(ray, task_timeout, IN_FLIGHT)
        self._asked = workers
        self._wanted = 0  # workers that the cluster is asked to grow to
        self._task_timeout = task_timeout
        # The folder of the cluster that this engine started.
        self._folder = None if ray.is_initialized() else connect(ray, address, size or workers)

    @property
    def workers(self) -> int:
        """How many tasks run at a time: as asked, or the CPUs that the cluster has now."""
        return self._asked or max(1, int(self._resource("CPU")))

    def _resource(self, name: str) -> float:
        return float(self._ray.cluster_resources().get(name, 0))

    def has_gpus(self) -> bool:
        """See `Engine.has_gpus`."""
        return self._resource("GPU") > 0

    def release(self) -> None:
        """See `Engine.release`."""
        self._actors.end()

    # -- before any work --

    def check(self, folder: Path, files: Iterable[str], *, device: str = "auto") -> None:
        """Ask every node whether it sees the run folder and the files, with the same pyids.

        Raises
        ------
        ConfigError
            A node does not, or does not answer; names the node and what is missing there. Or a
            GPU is wanted, and no node has one.
        """
        if device.startswith("cuda") and not self._resource("GPU"):
            raise ConfigError(
                f"--device {device}: no node of the Ray cluster has a GPU that Ray knows of: "
                "choose auto or cpu, or add one"
            )
        strategy = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        # By value: a node without pyids must be able to say so.
        self._ray.cloudpickle.register_pickle_by_value(node_check)
        try:
            remote = self._ray.remote(num_cpus=0, max_retries=0)(node_check.look)
            nonce, mark = secrets.token_hex(8), folder / f".node-check-{secrets.token_hex(4)}.tmp"
            mark.write_text(nonce)
            try:
                asked = [
                    (
                        node,
                        remote.options(
                            scheduling_strategy=strategy(node["NodeID"], soft=False)
                        ).remote(str(mark.absolute()), nonce, list(files), version("pyids-select")),
                    )
                    for node in self._ray.nodes()
                    if node["Alive"]
                ]
                for node, reference in asked:
                    self._hear(node, reference, folder)
            finally:
                mark.unlink(missing_ok=True)
        finally:
            self._ray.cloudpickle.unregister_pickle_by_value(node_check)

    def _hear(self, node: dict[str, Any], reference: Any, folder: Path) -> None:
        name = f"Ray node {node.get('NodeManagerHostname')} ({node.get('NodeManagerAddress')})"
        try:
            problem = self._ray.get(reference, timeout=_CHECK_SECONDS)
        except self._ray.exceptions.GetTimeoutError:
            raise ConfigError(
                f"{name}: has not answered in {_CHECK_SECONDS} s: mend it, or take it out"
            ) from None
        except self._ray.exceptions.RayError as error:
            alive = (one["NodeID"] for one in self._ray.nodes() if one["Alive"])
            if node["NodeID"] not in alive:
                return  # it was lost meanwhile: nothing will run there
            if isinstance(problem := explained(self._ray, error), ConfigError):
                raise ConfigError(f"{name}: {problem}") from None
            raise ConfigError(
                f"{name}: cannot run a task ({first_line(error)}): see that pyids starts there"
            ) from None
        if problem is not None:
            raise ConfigError(f"{name}: {problem.format(folder=folder)}")

    # -- work --

    def _grow(self, wanted: int, *, gpu: bool = False) -> None:
        """Let a cluster that can grow have so many workers, if it decides how many there are."""
        if self._asked is None and self._folder is None and wanted != self._wanted:
            ask_for_workers(wanted, gpu=gpu)
            self._wanted = wanted

    def _most_in_flight(self) -> int:
        """Tasks that are sent ahead: none, where the cluster would do them at once, unasked."""
        if self._asked is not None and self._asked < self._resource("CPU"):
            return self._asked
        return IN_FLIGHT * self.workers

    def _outcomes(
        self, task: Callable[[T], R], items: Iterable[T], gpu: bool
    ) -> Generator[R | Failed]:
        if gpu:
            gpus = int(self._resource("GPU"))

            def size() -> int:
                return max(1, int(self._resource("GPU"))) if gpus else self.workers

            def grow(wanted: int) -> None:
                self._grow(wanted, gpu=gpus > 0)

            try:
                yield from self._actors.outcomes(task, items, size, self._asked, grow, gpu=gpus > 0)
            finally:
                self._grow(0)
            return
        self._actors.end()  # they hold CPUs that these tasks need
        # The arguments of `remote`: those of Ray's own defaults that the results rest on.
        remote = self._ray.remote(num_cpus=1, max_retries=ray_actors.RETRIES)(attempt_in)
        name, folder = task.__name__, os.getcwd()  # Ray's own pages show the name
        running: deque[_Job] = deque()

        def again(job: _Job) -> None:
            spread = remote.options(name=name, scheduling_strategy="SPREAD")
            job.reference = spread.remote(folder, task, job.item)

        try:
            for item in items:
                running.append(_Job(item, remote.options(name=name).remote(folder, task, item)))
                if len(running) >= (most := self._most_in_flight()):
                    self._grow(most)
                    yield self._result(running[0], again)
                    running.popleft()
            while running:
                yield self._result(running[0], again)
                running.popleft()
        finally:
            self._grow(0)
            self._dropped += [job.reference for job in running]

    def _result(self, job: _Job, again: Callable[[_Job], None]) -> Any:
        """Wait for the task that has been waited for longest; try it elsewhere if it is stuck."""
        errors = self._ray.exceptions
        times = ray_actors.RETRIES + 1
        for tried in range(1, times + 1):
            try:
                return outcome(self._ray.get(job.reference, timeout=self._task_timeout), job.item)
            except errors.RayTaskError as error:
                raise error.cause from None
            except errors.GetTimeoutError:
                # With force its process ends. Not done to tasks that may end at that moment: there,
                # Ray 2.60 aborts this process ("Tried to complete task that was not pending").
                self._ray.cancel(job.reference, force=True)
                if tried < times:
                    logger.warning(
                        "%s: not done after %g s (--task-timeout): trying it elsewhere",
                        *(name_of(job.item), self._task_timeout),
                    )
                    again(job)
            except errors.RayError as error:
                if (problem := explained(self._ray, error)) is not None:
                    raise problem from None
                what = f"a Ray worker died ({first_line(error)}), {times} times if it was killed,"
                return died(job.item, what)
        return too_long(job.item, self._task_timeout or 0, times)

    def close(self) -> None:
        """Wait for the tasks that still run; stop the cluster if this engine started it."""
        self._actors.end()
        if self._dropped:
            done, stuck = self._ray.wait(
                self._dropped, num_returns=len(self._dropped), timeout=self._task_timeout
            )
            del done
            for reference in stuck:
                self._ray.cancel(reference, force=True)
            self._dropped = []
        if self._folder is not None:
            self._ray.shutdown()
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


@dataclass(eq=False)
class _Job:
    """A task in flight: its item, and the reference to its result."""

    item: Any
    reference: Any
