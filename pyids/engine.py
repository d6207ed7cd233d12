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
import re
import shutil
import signal
import socket
import tempfile
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

    def map(self, task: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """Yield ``task(item)`` for each item, in the order of the items.

        At most ``IN_FLIGHT * workers`` items are taken ahead of the result that is yielded, so
        `items` may be endless. The first exception of a task, in item order, is raised here as it
        was; a worker that died is a `PyidsError` that names its item. Tasks in flight when the
        iterator is closed may still run to their end; `close` waits for them.
        """
        ...

    def close(self) -> None:
        """End the workers that this engine started, and only those."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class _Closing:
    """`with engine:` closes it."""

    def close(self) -> None:
        pass

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


class LocalEngine(_Closing):
    """The process that calls it (one worker), or a pool of spawned processes.

    Parameters
    ----------
    workers : int, default 1
        With 1, tasks run in this process. Above it, in processes that are spawned, not forked: a
        fork copies locks that threads of this process may hold.
    """

    def __init__(self, workers: int = 1) -> None:
        if workers < 1:
            raise ConfigError(f"workers is {workers}: give 1 or more")
        self.workers = workers
        self._pool: ProcessPoolExecutor | None = None

    def map(self, task: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """See `Engine.map`."""
        if self.workers == 1:
            return (task(item) for item in items)
        return self._map_in_pool(task, items)

    def _map_in_pool(self, task: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                self.workers, multiprocessing.get_context("spawn"), initializer=_end_with_parent
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
            self._pool = None  # a broken pool takes no more work; the next map starts a new one
            place = f" at or soon after {running[0][0]!r}" if running else ""
            raise PyidsError(
                f"a worker process died{place} (killed, or out of memory?): the same command goes "
                "on where it stopped; give fewer workers if memory was short"
            ) from None
        finally:
            for _, future in running:
                future.cancel()

    def kill(self) -> None:
        """End the worker processes at once; what they were writing is removed by the next run."""
        if self._pool is not None:
            for process in list((getattr(self._pool, "_processes", None) or {}).values()):
                process.kill()
        self.close()

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


class RayEngine(_Closing):
    """A Ray cluster: the one that runs, or a private one for as long as this engine lives.

    An initialized Ray is used as it is; else the cluster at `address`, at ``RAY_ADDRESS``, or begun
    on this machine with ``ray start``; else a private one is started, and `close` stops it. A
    cluster that this engine did not start is never stopped. Only paths and numbers cross the
    network, so the run folder must lie where every node sees it.

    Parameters
    ----------
    address : str, optional
        Address of a cluster.
    workers : int, optional
        Tasks at a time; default: the cluster's CPUs. It is also the size of a private cluster.
    """

    def __init__(self, address: str | None = None, workers: int | None = None) -> None:
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
        if not ray.is_initialized():
            self._connect(address, workers)
        self.workers = workers or max(1, int(self._ray.cluster_resources().get("CPU", 1)))

    def _connect(self, address: str | None, workers: int | None) -> None:
        quiet = {"log_to_driver": False, "configure_logging": False}
        address = address or os.environ.get("RAY_ADDRESS") or _started_cluster()
        if address is not None:
            try:
                # Asked first: Ray itself waits for minutes where nobody answers.
                if match := re.fullmatch(r"(?:ray://)?(.+):(\d+)", address):
                    socket.create_connection((match[1], int(match[2])), timeout=10).close()
                self._ray.init(address=address, **quiet)
            except OSError:
                raise ConfigError(
                    f"no Ray cluster answers at {address!r}: start it, or give another address"
                ) from None
            return
        # In a temporary folder of its own, because Ray leaves its logs behind.
        self._folder = tempfile.mkdtemp(prefix="pyids-ray-")
        self._ray.init(
            address="local",
            num_cpus=workers,
            include_dashboard=False,
            _temp_dir=self._folder,
            **quiet,
        )

    def map(self, task: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """See `Engine.map`."""
        remote = self._ray.remote(task)
        running: deque[tuple[T, Any]] = deque()
        try:
            for item in items:
                running.append((item, remote.remote(item)))
                if len(running) >= IN_FLIGHT * self.workers:
                    yield self._result(*running[0])
                    running.popleft()
            while running:
                yield self._result(*running[0])
                running.popleft()
        finally:
            # Not canceled: ray.cancel, when the task ends at that moment, aborts this process
            # ("Tried to complete task that was not pending", Ray 2.60).
            self._dropped += [reference for _, reference in running]

    def _result(self, item: object, reference: Any) -> Any:
        errors = self._ray.exceptions
        try:
            return self._ray.get(reference)
        except errors.RayTaskError as error:
            raise error.cause from None
        except errors.RayError as error:
            reason = str(error).partition("\n")[0]
            raise PyidsError(
                f"a Ray worker died at {item!r} ({reason}): the same command goes on where it "
                "stopped"
            ) from None

    def close(self) -> None:
        """Wait for the tasks that still run; stop the cluster if this engine started it."""
        if self._dropped:
            self._ray.wait(self._dropped, num_returns=len(self._dropped))
            self._dropped = []
        if self._folder is not None:
            self._ray.shutdown()
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


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


def make_engine(name: str, workers: int | None = None, *, address: str | None = None) -> Engine:
    """Make the engine `name`.

    Parameters
    ----------
    name : {"local", "ray"}
        Which engine.
    workers : int, optional
        Tasks at a time; default 1 for ``local``, the cluster's CPUs for ``ray``.
    address : str, optional
        The Ray cluster's address.

    Raises
    ------
    ConfigError
        An unknown name, a cluster that does not answer, or Ray missing.
    """
    if name == "local":
        return LocalEngine(1 if workers is None else workers)
    if name == "ray":
        return RayEngine(address, workers)
    raise ConfigError(f"there is no engine {name!r}: choose local or ray")
