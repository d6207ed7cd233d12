"""Trials in several processes, one a worker at a time."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


def limit_threads() -> None:
    """Keep torch to the threads of OMP_NUM_THREADS (which it reads before a worker can set it)."""
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def in_workers(
    do: Callable[[Job], Result],
    jobs: Sequence[Job],
    *,
    workers: int,
    threads: int,
    seconds: float | None,
) -> Iterator[tuple[Job, Result]]:
    """Yield each job and what it gives, as they are done; start none after so many seconds."""
    began, left = time.monotonic(), list(jobs)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=limit_threads) as pool:
        running: dict[Future[Result], Job] = {}
        while left or running:
            out_of_time = seconds is not None and time.monotonic() - began > seconds
            while left and len(running) < workers and not out_of_time:
                job = left.pop(0)
                running[pool.submit(do, job)] = job
            if not running:
                print(f"{len(left)} trials are left: run again", flush=True)
                break
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(done), done.result()
