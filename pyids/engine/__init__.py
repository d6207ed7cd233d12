"""Where the tasks of a stage run: in this process, in worker processes, or on a Ray cluster.

A stage is `engine.map(task, items)`. The task is a function at the top level of a module; an item
is a small picklable value that holds paths and numbers, never arrays. A task reads files, writes
its output to a temporary file and renames it (`pyids.store.files`), and returns a
small value. So a task may run twice, on any machine that sees the same folder, and the results are
the same whatever the engine.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures import wait as wait_for
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

from pyids.engine.failing import Failed, attempt, died, judged, name_of, outcome
from pyids.errors import ConfigError

T = TypeVar("T")
R = TypeVar("R")

logger = logging.getLogger("pyids")

# Tasks in flight for each worker: one runs, one waits, so that no worker idles between two tasks.
IN_FLIGHT = 2
# Failed tasks after which the others are not done, though each of them is to be known.
_MOST_FAILED = 64


class Engine(Protocol):
    """Runs the tasks of a stage; a context manager that ends what it started."""

    @property
    def workers(self) -> int:
        """How many tasks run at a time."""
        ...

    def map(self, task: Callable[[T], R], items: Iterable[T], *, gpu: bool = False) -> Iterator[R]:
        """Yield ``task(item)`` for each item, in the order of the items.

        `gpu` says that a task has use for a GPU: where workers have some, each task gets one, and
        what a process has loaded stays there for the tasks after it.

        At most ``IN_FLIGHT * workers`` items are taken ahead of the result that is yielded, so
        `items` may be endless. The first exception of a task, in item order, is raised here as it
        was, with a note that names its item; a worker that dies each time is a `PyidsError` that
        names it. What failed is in `failed` then. Tasks in flight when the iterator is closed may
        still run to their end; `close` waits for them.
        """
        ...

    @property
    def failed(self) -> tuple[Failed, ...]:
        """The tasks that made the last `map` raise; none where no task is to blame."""
        ...

    def find_all_failing(self) -> None:
        """From now on, let a `map` in which a task on shards fails do the others before it raises.

        So `failed` holds all of them (up to `_MOST_FAILED`), and what the others write is there.
        """
        ...

    def has_gpus(self) -> bool:
        """Whether tasks that have use for a GPU get one each, of a cluster."""
        ...

    def release(self) -> None:
        """Give back what idle processes hold, before others than this engine's need the place."""
        ...

    def close(self) -> None:
        """End the workers that this engine started, and only those."""
        ...

    def check(self, folder: Path, files: Iterable[str], *, device: str = "auto") -> None:
        """Refuse workers that do not see the folder and the files or have no such device."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class Closing:
    """What engines share: `with engine:` closes it, and `map` raises what tasks fail with."""

    failed: tuple[Failed, ...] = ()
    _all_failing = False

    def find_all_failing(self) -> None:
        """See `Engine.find_all_failing`."""
        self._all_failing = True

    def map(self, task: Callable[[T], R], items: Iterable[T], *, gpu: bool = False) -> Iterator[R]:
        """See `Engine.map`."""
        self.failed = ()
        failed: list[Failed] = []
        with closing(self._outcomes(task, items, gpu)) as outcomes:
            for found in outcomes:
                if not isinstance(found, Failed):
                    if not failed:
                        yield found
                    continue
                failed.append(found)
                if not (self._all_failing and found.shards) or len(failed) == _MOST_FAILED:
                    break
        if failed:
            self.failed = tuple(failed)
            raise failed[0].error

    def _outcomes(
        self, task: Callable[[T], R], items: Iterable[T], gpu: bool
    ) -> Generator[R | Failed]:
        """Yield what became of each task, in the order of the items."""
        raise NotImplementedError

    def has_gpus(self) -> bool:
        """See `Engine.has_gpus`: on this machine a process finds them itself."""
        return False

    def release(self) -> None:
        """See `Engine.release`."""
        self.close()

    def close(self) -> None:
        """End what this engine started."""

    def __enter__(self) -> Self:
        return self

    def kill(self) -> None:
        """End what this engine started without waiting for tasks."""
        self.close()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None and not issubclass(kind, Exception):
            self.kill()  # the user wants the process to end
        else:
            self.close()


class LocalEngine(Closing):
    """The process that calls it (one worker), or a pool of spawned processes.

    Parameters
    ----------
    workers : int, default 1
        With 1, tasks run in this process. Above it, in processes that are spawned, not forked: a
        fork copies locks that threads of this process may hold.
    gpus : int, default 0
        GPUs of this machine, of which each process sees one; 0 leaves them all to each.
    """

    def __init__(self, workers: int = 1, gpus: int = 0) -> None:
        if workers < 1:
            raise ConfigError(f"workers is {workers}: give 1 or more")
        self.workers = workers
        self._gpus = gpus
        self._pool: ProcessPoolExecutor | None = None

    def check(self, folder: Path, files: Iterable[str], *, device: str = "auto") -> None:
        """See `Engine.check`: its workers are of this machine."""

    def _outcomes(
        self, task: Callable[[T], R], items: Iterable[T], gpu: bool
    ) -> Generator[R | Failed]:
        if self.workers > 1:
            yield from self._outcomes_of_pool(task, items)
            return
        for item in items:
            found: R | Failed
            try:
                found = task(item)
            except Exception as error:  # noqa: BLE001  raised by `map`, unless it is judged
                found = judged(error, item)
            yield found

    def _outcomes_of_pool(
        self, task: Callable[[T], R], items: Iterable[T]
    ) -> Generator[R | Failed]:
        running: deque[_Running[T]] = deque()
        try:
            for item in items:
                if self._pool is None:
                    self._pool = self._started(self.workers)
                running.append(_Running(item, _submitted(self._pool, task, item)))
                if len(running) >= IN_FLIGHT * self.workers:
                    yield self._outcome(task, running)
            while running:
                yield self._outcome(task, running)
        finally:
            for one in running:
                one.future.cancel()

    def _started(self, workers: int) -> ProcessPoolExecutor:
        spawn = multiprocessing.get_context("spawn")
        devices = None
        if self._gpus:
            devices = spawn.SimpleQueue()
            for n in range(workers):
                devices.put(_gpu_name(n % self._gpus))
        return ProcessPoolExecutor(workers, spawn, initializer=_begin, initargs=(devices,))

    def _outcome(self, task: Callable[[T], Any], running: deque[_Running[T]]) -> Any:
        """Wait for the first of the tasks in flight."""
        if running[0].lost and not running[0].alone:
            self._do_alone(task, running)
        one = running.popleft()
        if one.lost:
            return died(one.item, "a worker process died twice (killed, or out of memory?)")
        return outcome(one.future.result(), one.item)

    def _do_alone(self, task: Callable[[T], Any], running: deque[_Running[T]]) -> None:
        """Do again what a broken pool has lost, one at a time, each in a process of its own.

        A pool does not tell whose task it was that the dead process worked on.
        """
        wait_for([one.future for one in running])
        self._end_workers()
        self._pool = None
        lost = [one for one in running if not one.alone and one.lost]
        logger.warning(
            "a worker process died (killed, or out of memory?) at one of %s: trying them again, "
            "one at a time",
            ", ".join(name_of(one.item) for one in lost),
        )
        for one in lost:
            one.alone = True
            self._pool = self._started(1)
            one.future = _submitted(self._pool, task, one.item)
            wait_for([one.future])
            if one.lost:
                self._end_workers()
            else:
                self._pool.shutdown()
            self._pool = None

    def kill(self) -> None:
        """End the worker processes at once; what they were writing is removed by the next run."""
        self._end_workers()
        self.close()

    def _end_workers(self) -> None:
        """Kill what is left of the workers.

        Those of a broken pool might never end: one that is killed while it waits for a task keeps
        the lock of their queue, and they hold SIGTERM back (`_signals_held`).
        """
        for process in list((getattr(self._pool, "_processes", None) or {}).values()):
            process.kill()

    def close(self) -> None:
        """End the worker processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None


@dataclass(eq=False)
class _Running(Generic[T]):
    """A task in flight; `alone` in a process of its own."""

    item: T
    future: Future[Any]
    alone: bool = False

    @property
    def lost(self) -> bool:
        """Whether its process died, or another of the same pool; waits for the task."""
        return isinstance(self.future.exception(), BrokenProcessPool)


def _submitted(pool: ProcessPoolExecutor, task: Callable[[T], Any], item: T) -> Future[Any]:
    try:
        with _signals_held():
            return pool.submit(attempt, task, item)
    except BrokenProcessPool as error:  # noticed only now
        lost: Future[Any] = Future()
        lost.set_exception(error)
        return lost


@contextmanager
def _signals_held() -> Iterator[None]:
    """Let processes that start here know no SIGINT and SIGTERM: who started them ends them.

    A terminal sends Ctrl-C to all of them, and each would print where it was.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _gpu_name(n: int) -> str:
    """Return the name of the n-th GPU that this process sees."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return str(n) if visible is None else visible.split(",")[n].strip()


def _begin(devices: Any) -> None:
    """Begin a worker: with a GPU of its own, if they are dealt out."""
    if devices is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices.get()
    _end_with_parent()


def _end_with_parent() -> None:
    """End this worker when the process that started it dies, even by SIGKILL."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    sentinel = parent.sentinel

    def watch() -> None:
        wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


def on_cluster(engine: Engine) -> bool:
    """Whether tasks run on a cluster, which may have other machines than this one."""
    return not isinstance(engine, LocalEngine)


def in_process(engine: Engine) -> bool:
    """Whether tasks run in this process, which may then keep what it knows between them."""
    return isinstance(engine, LocalEngine) and engine.workers == 1


def make_engine(
    name: str,
    workers: int | None = None,
    *,
    address: str | None = None,
    gpus: int = 0,
    task_timeout: float | None = None,
    size: int | None = None,
) -> Engine:
    """Make the engine `name`.

    Parameters
    ----------
    name : {"local", "ray"}
        Which engine.
    workers : int, optional
        Tasks at a time; default 1 for ``local``, the cluster's CPUs for ``ray``.
    address : str, optional
        The Ray cluster's address.
    gpus : int, default 0
        See `LocalEngine`; on a cluster, Ray deals them out.
    task_timeout : float, optional
        See `pyids.engine.ray.RayEngine`.
    size : int, optional
        See `pyids.engine.ray.RayEngine`.

    Raises
    ------
    ConfigError
        An unknown name, a cluster that does not answer, or Ray missing.
    """
    if name == "local":
        return LocalEngine(1 if workers is None else workers, gpus)
    if name == "ray":
        from pyids.engine.ray import RayEngine

        return RayEngine(address, workers, task_timeout, size)
    raise ConfigError(f"there is no engine {name!r}: choose local or ray")
