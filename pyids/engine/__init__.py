"""Where the tasks of a stage run: in this process, in worker processes, or on a Ray cluster.

A stage is `engine.map(task, items)`. The task is a function at the top level of a module; an item
is a small picklable value that holds paths and numbers, never arrays. A task reads files, writes
its output to a temporary file and renames it (`pyids.store.files`), and returns a
small value. So a task may run twice, on any machine that sees the same folder, and the results are
the same whatever the engine.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from pyids.errors import ConfigError, PyidsError

T = TypeVar("T")
R = TypeVar("R")

# Tasks in flight for each worker: one runs, one waits, so that no worker idles between two tasks.
IN_FLIGHT = 2


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
        was; a worker that died is a `PyidsError` that names its item. Tasks in flight when the
        iterator is closed may still run to their end; `close` waits for them.
        """
        ...

    def close(self) -> None:
        """End the workers that this engine started, and only those."""
        ...

    def check(self, folder: Path, files: Iterable[str]) -> None:
        """Refuse workers that do not see the folder and the files, before any work."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class Closing:
    """`with engine:` closes it."""

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

    def check(self, folder: Path, files: Iterable[str]) -> None:
        """See `Engine.check`: its workers are of this machine."""

    def map(self, task: Callable[[T], R], items: Iterable[T], *, gpu: bool = False) -> Iterator[R]:
        """See `Engine.map`."""
        if self.workers == 1:
            return (task(item) for item in items)
        return self._map_in_pool(task, items)

    def _map_in_pool(self, task: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        if self._pool is None:
            spawn = multiprocessing.get_context("spawn")
            devices = None
            if self._gpus:
                devices = spawn.SimpleQueue()
                for n in range(self.workers):
                    devices.put(_gpu_name(n % self._gpus))
            self._pool = ProcessPoolExecutor(
                self.workers, spawn, initializer=_begin, initargs=(devices,)
            )
        running: deque[tuple[T, Future[R]]] = deque()
        try:
            for item in items:
                with _signals_held():
                    running.append((item, self._pool.submit(task, item)))
                if len(running) >= IN_FLIGHT * self.workers:
                    yield running[0][1].result()
                    running.popleft()
            while running:
                yield running[0][1].result()
                running.popleft()
        except BrokenProcessPool:
            self._end_workers()
            self._pool = None  # a broken pool takes no more work; the next map starts a new one
            place = f" at or soon after {name_of(running[0][0])}" if running else ""
            raise PyidsError(
                f"a worker process died{place} (killed, or out of memory?): the same command goes "
                "on where it stopped; give fewer workers if memory was short"
            ) from None
        finally:
            for _, future in running:
                future.cancel()

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


def name_of(item: object) -> str:
    """Name what a task works on: its shards and rows, its file; else the item as it is."""
    shards = getattr(item, "shards", None) or getattr(item, "targets", ())
    if (shard := getattr(item, "shard", None)) is not None:
        shards = (shard,)
    if shards:
        first, last = shards[0], shards[-1]
        names = first.name if len(shards) == 1 else f"{first.name} to {last.name}"
        rows = f"rows {first.first_row_id} to {last.first_row_id + last.rows - 1}"
        return f"shard {names} ({rows})"
    if (split := getattr(item, "split", None)) is not None:
        end = f"byte or row group {split.start} to {split.stop}" if split.stop else "the whole file"
        return f"{split.source.path} ({end})"
    if (group := getattr(item, "group", None)) is not None:
        names = [Path(path).stem for path in (group.paths[0], group.paths[-1])]
        return f"shards {names[0]} to {names[1]} ({group.rows} rows)"
    return repr(item)


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

    Raises
    ------
    ConfigError
        An unknown name, a cluster that does not answer, or Ray missing.
    """
    if name == "local":
        return LocalEngine(1 if workers is None else workers, gpus)
    if name == "ray":
        from pyids.engine.ray import RayEngine

        return RayEngine(address, workers, task_timeout)
    raise ConfigError(f"there is no engine {name!r}: choose local or ray")
