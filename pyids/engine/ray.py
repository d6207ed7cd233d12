"""The tasks of a stage on a Ray cluster."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from pyids.engine import IN_FLIGHT, Closing, name_of, node_check
from pyids.errors import ConfigError, PyidsError

T = TypeVar("T")
R = TypeVar("R")

logger = logging.getLogger("pyids")

# A node that has not answered by then is named.
_CHECK_SECONDS = 120
# Times that a task is tried elsewhere when its worker or node dies, or it is stuck.
_RETRIES = 3
# A cluster that has not let a process in without a token by then may want one.
_TRY_SECONDS = 60
# Names what travels to workers.
_RUNTIME_ENV = "PYIDS_RUNTIME_ENV"


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
        has at that time. It is also the size of a private cluster.
    task_timeout : float, optional
        Seconds after which a task is ended and tried elsewhere, counted from when all before it
        are done; after the third of these tries it is an error that names its rows. By default a
        task has all the time.
    """

    def __init__(
        self,
        address: str | None = None,
        workers: int | None = None,
        task_timeout: float | None = None,
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
        self._folder: str | None = None  # of the cluster that this engine started
        self._dropped: list[Any] = []
        self._actors: list[_Actor] = []
        self._asked = workers
        self._task_timeout = task_timeout
        if not ray.is_initialized():
            self._connect(address, workers)

    @property
    def workers(self) -> int:
        """How many tasks run at a time: as asked, or the CPUs that the cluster has now."""
        return self._asked or max(1, int(self._resource("CPU")))

    def _resource(self, name: str) -> float:
        return float(self._ray.cluster_resources().get(name, 0))

    def _connect(self, address: str | None, workers: int | None) -> None:
        quiet = {"log_to_driver": False, "configure_logging": False}
        address = address or os.environ.get("RAY_ADDRESS") or _started_cluster()
        if address is not None:
            try:
                # Asked first: Ray itself waits for minutes where nobody answers.
                if match := re.fullmatch(r"(?:ray://)?(.+):(\d+)", address):
                    socket.create_connection((match[1], int(match[2])), timeout=10).close()
            except OSError:
                raise ConfigError(
                    f"no Ray cluster answers at {address!r}: start it, or give another address"
                ) from None
            runtime_env = _runtime_env()
            _send_token(address)
            try:
                self._ray.init(address=address, runtime_env=runtime_env, **quiet)
            except (OSError, RuntimeError, self._ray.exceptions.RayError):
                raise ConfigError(
                    f"the Ray cluster at {address!r} answers and does not let this process in: it "
                    f"asks for a token that {_token_source()} (set RAY_AUTH_MODE=token and "
                    "RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to that of the cluster), or it runs "
                    f"another version of Ray than {self._ray.__version__}"
                ) from None
            return
        # In a temporary folder of its own, because Ray leaves its logs behind.
        self._folder = tempfile.mkdtemp(prefix="pyids-ray-")
        try:
            self._ray.init(
                address="local",
                num_cpus=workers,
                include_dashboard=False,
                _temp_dir=self._folder,
                **quiet,
            )
        except Exception as error:  # Ray raises a bare one where its node does not start in time
            shutil.rmtree(self._folder, ignore_errors=True)
            raise ConfigError(
                f"Ray cannot start a cluster on this machine ({_first_line(error):.200}): give the "
                "same command again when it is less busy, or start one by `ray start --head`"
            ) from error

    # -- before any work --

    def check(self, folder: Path, files: Iterable[str]) -> None:
        """Ask every node whether it sees the run folder and the files, with the same pyids.

        Raises
        ------
        ConfigError
            A node does not, or does not answer; names the node and what is missing there.
        """
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
            raise ConfigError(
                f"{name}: cannot run a task ({_first_line(error)}): see that pyids starts there"
            ) from None
        if problem is not None:
            raise ConfigError(f"{name}: {problem.format(folder=folder)}")

    # -- work --

    def map(self, task: Callable[[T], R], items: Iterable[T], *, gpu: bool = False) -> Iterator[R]:
        """See `Engine.map`."""
        if gpu:
            yield from self._map_on_actors(task, items)
            return
        self._end_actors()  # they hold CPUs that these tasks need
        # The arguments of `remote`: those of Ray's own defaults that the results rest on.
        remote = self._ray.remote(num_cpus=1, max_retries=_RETRIES)(task)
        running: deque[_Job] = deque()

        def again(job: _Job) -> None:
            # With force its process ends. Not done to tasks that may end at that moment: there,
            # Ray 2.60 aborts this process ("Tried to complete task that was not pending").
            self._ray.cancel(job.reference, force=True)
            job.reference = remote.options(scheduling_strategy="SPREAD").remote(job.item)

        try:
            for item in items:
                running.append(_Job(item, remote.remote(item)))
                if len(running) >= IN_FLIGHT * self.workers:
                    yield self._result(running[0], again)
                    running.popleft()
            while running:
                yield self._result(running[0], again)
                running.popleft()
        finally:
            self._dropped += [job.reference for job in running]

    def _map_on_actors(self, task: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """Run tasks in processes that stay, also for the next stage: what they load is there."""
        gpus = int(self._resource("GPU"))
        actor_type = self._ray.remote(
            num_cpus=1, num_gpus=1 if gpus else 0, max_restarts=-1, max_task_retries=_RETRIES
        )(_Worker)
        actors = self._actors
        running: deque[_Job] = deque()

        def send(job: _Job, actor: _Actor) -> None:
            job.reference, job.actor = actor.handle.run.remote(task, job.item), actor
            actor.waiting.append(job)

        def again(job: _Job) -> None:
            stuck = job.actor
            assert stuck is not None
            self._ray.kill(stuck.handle)
            actors.remove(stuck)
            actors.append(_Actor(actor_type.remote(), []))
            for each in stuck.waiting:  # those behind it, too
                send(each, actors[-1])

        def result() -> Any:
            found = self._result(running[0], again)
            job = running.popleft()
            assert job.actor is not None
            job.actor.waiting.remove(job)
            return found

        try:
            for item in items:
                most = self._asked or gpus or self.workers
                actor = min(actors, key=lambda one: len(one.waiting), default=None)
                if actor is None or (actor.waiting and len(actors) < most):
                    actor = _Actor(actor_type.remote(), [])
                    actors.append(actor)
                running.append(_Job(item, None))
                send(running[-1], actor)
                if len(running) >= IN_FLIGHT * most:
                    yield result()
            while running:
                yield result()
        finally:
            self._end_actors(busy=True)

    def _end_actors(self, *, busy: bool = False) -> None:
        """End the processes that stay: all, or those that are still at work."""
        ended = [actor for actor in self._actors if actor.waiting or not busy]
        for actor in ended:
            self._ray.kill(actor.handle)
            self._actors.remove(actor)

    def _result(self, job: _Job, again: Callable[[_Job], None]) -> Any:
        """Wait for the task that has been waited for longest; try it elsewhere if it is stuck."""
        errors = self._ray.exceptions
        for tried in range(_RETRIES + 1):
            try:
                return self._ray.get(job.reference, timeout=self._task_timeout)
            except errors.RayTaskError as error:
                raise error.cause from None
            except errors.GetTimeoutError:
                if tried < _RETRIES:
                    logger.warning(
                        "%s: not done after %g s (--task-timeout): trying it elsewhere",
                        *(name_of(job.item), self._task_timeout),
                    )
                    again(job)
            except errors.RayError as error:
                raise PyidsError(
                    f"a Ray worker died at {name_of(job.item)} ({_first_line(error)}), after "
                    f"{_RETRIES} more tries if it was killed: repeat the command, which goes on "
                    "where it stopped; if it dies there again, look at these rows"
                ) from None
        raise PyidsError(
            f"{name_of(job.item)}: not done after {self._task_timeout:g} s (--task-timeout), "
            f"{_RETRIES + 1} times: look at these rows, or give it more time; the same command "
            "goes on where it stopped"
        )

    def close(self) -> None:
        """Wait for the tasks that still run; stop the cluster if this engine started it."""
        self._end_actors()
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


class _Worker:
    """A process of the cluster that stays for the tasks of a stage."""

    def run(self, task: Callable[[T], R], item: T) -> R:
        return task(item)


@dataclass(eq=False)
class _Actor:
    """A process that stays, and what it has been given and is not done with."""

    handle: Any
    waiting: list[_Job]


@dataclass(eq=False)
class _Job:
    """A task in flight: its item, the reference to its result, the worker that stays for it."""

    item: Any
    reference: Any
    actor: _Actor | None = None


def _first_line(error: object) -> str:
    return str(error).partition("\n")[0]


def _send_token(address: str) -> None:
    """Let Ray send the token that this user has, to a cluster that asks for one.

    To no other: a process that expects tokens refuses what a cluster without them asks of it, and
    its actors die (Ray 2.60). So the cluster is tried without one, in a process of its own, for Ray
    decides once a process.
    """
    has_one = _token_file().is_file() or "RAY_AUTH_TOKEN" in os.environ
    if "RAY_AUTH_MODE" in os.environ or not has_one:
        return
    script = "import sys, ray; ray.init(address=sys.argv[1], configure_logging=False)"
    with contextlib.suppress(subprocess.TimeoutExpired):
        done = subprocess.run(
            [sys.executable, "-P", "-c", script, address],
            env={**os.environ, "RAY_AUTH_MODE": "disabled"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_TRY_SECONDS,
            check=False,
        )
        if done.returncode == 0:
            return
    os.environ["RAY_AUTH_MODE"] = "token"
    _read_mode_again()


def _read_mode_again() -> None:
    """Let Ray read the mode once more, as it does itself: it was read when Ray was imported."""
    raylet: Any = importlib.import_module("ray._raylet")  # has no types
    raylet.Config.initialize("")


def _token_file() -> Path:
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


def _token_source() -> str:
    """Say which token was sent, never the token."""
    if os.environ.get("RAY_AUTH_MODE") != "token":
        return "this process does not send"
    if "RAY_AUTH_TOKEN" in os.environ:
        return "is not the one in RAY_AUTH_TOKEN"
    return f"is not the one in {_token_file()}"


def _runtime_env() -> Any:
    """Return what the user has workers install, as Ray takes it."""
    import yaml
    from ray.runtime_env import RuntimeEnv

    given = os.environ.get(_RUNTIME_ENV, "").strip()
    if not given:
        return None
    try:
        # JSON is YAML, too.
        text = given if given.startswith("{") else Path(given).read_text(encoding="utf-8")
        return RuntimeEnv(**yaml.safe_load(text))
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise ConfigError(
            f"{_RUNTIME_ENV} is no runtime environment ({_first_line(error):.200}): give JSON, or "
            "the path of a JSON or YAML file, with what Ray takes there"
        ) from None


def _started_cluster() -> str | None:
    """Address of the cluster that ``ray start`` began on this machine.

    Not what ``ray.init("auto")`` finds: that may be the private cluster of another process, which
    ends when that process does.
    """
    folder = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    try:
        return Path(folder, "ray", "ray_current_cluster").read_text().strip() or None
    except OSError:
        return None
