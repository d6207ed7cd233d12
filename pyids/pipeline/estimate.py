"""What a run will take: rows, disk, memory, files, hours of each stage; by a short calibration.

Some rows of all parts of the pool go through the stages themselves, at two sizes: what a stage
takes a row is the slope between them. A sample has no thousands of clusters, so that k-means is
timed by its multiply-adds.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from pyids.config import RunConfig
from pyids.data.ingest import groups_per_shard
from pyids.data.readers import Problem, Reader
from pyids.data.shard_writer import ROWS_PER_GROUP
from pyids.data.splits import Split, plan_splits
from pyids.data.vector_files import open_vectors
from pyids.errors import ConfigError, DataError
from pyids.pipeline.kmeans_plan import kmeans_plan
from pyids.pipeline.planned import estimate_budget
from pyids.pipeline.preflight import check_inputs
from pyids.resources import default_max_memory, memory_left, processors
from pyids.store.files import naming, write_npy
from pyids.store.folder import Store

# Rows of the two calibrations, and splits of the pool that they are taken from.
_ROWS = (2_000, 12_000)
_SPLITS = 16
# Rows a cluster that k-means is timed with, for with few its centers soon rest; and iterations.
_ROWS_PER_CLUSTER, _ITERATIONS = 64, 5
# Rows a cluster of an assignment of which nothing is known before.
_ROWS_PER_CLUSTER_ONCE = 8
# What is timed again and again lasts at least so long.
_LEAST_SECONDS = 0.3
# Of the reading, what finding exact duplicates takes: one process does it.
_DEDUP_SHARE = 0.15
# Bytes that the interpreter and the core take; with torch.
_FIXED_BYTES, _FIXED_BYTES_TORCH = 120 << 20, 500 << 20


@dataclass(frozen=True)
class Stage:
    """What one stage will take.

    Attributes
    ----------
    name
        The stage.
    cpu_seconds, seconds
        Of one machine such as this: processors' time, and time that passes.
    serial_seconds
        Of the time that passes, what more workers do not shorten.
    """

    name: str
    cpu_seconds: float
    seconds: float
    serial_seconds: float = 0.0

    def on(self, workers: int) -> float:
        """Seconds on so many machines or workers."""
        return self.serial_seconds + (self.seconds - self.serial_seconds) / workers


@dataclass(frozen=True)
class Estimate:
    """What a run will take.

    Attributes
    ----------
    rows, tokens
        Of the pool; tokens are about four characters each.
    disk_bytes, files, memory_bytes
        Of the run folder; the most that is taken of memory.
    stages
        In their order.
    shares
        What the budget comes to, and what is not drawn; see `pyids.pipeline.planned`.
    problems
        What would not fit, each with the option that mends it.
    """

    rows: int
    tokens: int
    disk_bytes: int
    files: int
    memory_bytes: int
    n_clusters: int
    stages: list[Stage]
    shares: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def text(self, workers: Sequence[int] = (1, 8)) -> str:
        """Show it as a table."""
        lines = [
            f"rows      about {self.rows:,}; {self.tokens:,} tokens",
            f"disk      {_size(self.disk_bytes)} in {self.files:,} files",
            f"memory    {_size(self.memory_bytes)} at most, without a language model",
            f"clusters  {self.n_clusters:,}",
            *self.shares,
            f"{'stage':<12}{'CPU':>10}" + "".join(f"{_workers(n):>17}" for n in workers),
        ]
        for stage in self.stages:
            times = "".join(f"{_duration(stage.on(n)):>17}" for n in workers)
            lines.append(f"{stage.name:<12}{_duration(stage.cpu_seconds):>10}{times}")
        total = "".join(
            f"{_duration(sum(stage.on(n) for stage in self.stages)):>17}" for n in workers
        )
        cpu = _duration(sum(stage.cpu_seconds for stage in self.stages))
        lines.append(f"{'all':<12}{cpu:>10}{total}")
        lines.append("training and scoring come on top: `pyids run` shows how far a round is")
        return "\n".join([*lines, *(f"does not fit: {problem}" for problem in self.problems)])


def estimate(config: RunConfig) -> Estimate:
    """Estimate what a run takes; nothing is written but in a temporary folder.

    Raises
    ------
    PyidsError
        The data, the vectors or the encoder cannot be used.
    """
    splits = plan_splits(check_inputs(config))
    with tempfile.TemporaryDirectory(prefix="pyids-plan-") as folder, _quietly():
        sample = _Sample(splits, Path(folder), config.max_row_bytes)
        rows = sample.rows_in_all if config.limit is None else min(config.limit, sample.rows_in_all)
        _run_sample(config, sample, _ROWS[0] // 10)  # what is loaded once is no matter of rows
        small, large = (_run_sample(config, sample, n) for n in _ROWS)
        share = large.kept / large.rows
        kept = max(1, round(rows * share))
        selected, shares, problems = _shares(config, sample, rows, kept)
        n_clusters = config.cluster_count(kept, selected)
        plan = kmeans_plan(config, kept, large.width, n_clusters)
        cluster = _time_kmeans(large, plan, kept, config)
    stages = [
        _stage("read", small, large, rows, _DEDUP_SHARE),
        _stage("embed" if not config.has_vectors else "vectors", small, large, rows, 0.0),
        cluster,
    ]
    # Every row group is read for the export of 1%: it takes as long as a tenth of the reading.
    touched = min(1.0, selected / kept * ROWS_PER_GROUP)
    read = stages[0]
    stages.append(
        Stage("draw, export", *(0.12 * touched * t for t in (read.cpu_seconds, read.seconds)))
    )
    n_shards = _count_shards(splits, rows)
    disk = round(large.disk_bytes / large.rows * rows)
    memory = _memory(config, plan.n_clusters, large.width, kept)
    found = Estimate(
        rows,
        round(large.characters / large.rows * rows / 4),
        disk,
        6 * n_shards + len(splits) + 40,
        memory,
        n_clusters,
        stages,
        shares,
        problems,
    )
    found.problems.extend(_problems(config, found))
    return found


def _shares(
    config: RunConfig, sample: _Sample, rows: int, kept: int
) -> tuple[int, list[str], list[str]]:
    """Return the rows that the budget comes to, what it is shared into, and what does not fit."""
    store = Store(sample.folder / str(_ROWS[-1]) / "run")
    try:
        budget, lines = estimate_budget(store, config, rows, kept, sample.files)
    except ConfigError as error:
        said = f"by a sample of {store.rows_read:,} rows, which `--dry-run` would not rely on"
        return 1, [], [f"{error} ({said})"]
    return budget.rows, lines, []


class _Sample:
    """Rows out of all parts of the pool, and how many the pool has."""

    def __init__(self, splits: Sequence[Split], folder: Path, max_row_bytes: int) -> None:
        self.folder = folder
        self.raws: list[bytes] = []
        chosen = sorted({i * (len(splits) - 1) // max(1, _SPLITS - 1) for i in range(_SPLITS)})
        per_split = math.ceil(_ROWS[-1] / len(chosen))
        bytes_read, rows_read = 0.0, 0
        for number in chosen:
            split = splits[number]
            raws = list(islice(_raws(split, max_row_bytes), per_split))
            whole = len(raws) < per_split
            bytes_read += split.bytes if whole else _bytes_of(split, raws, max_row_bytes)
            rows_read += len(raws)
            self.raws += raws
        if not self.raws:
            raise DataError("no row of the data can be read: `pyids run --dry-run` says why")
        in_all = max(1, sum(split.bytes for split in splits))
        # Of each file the share of the rows that it has, by its bytes.
        self.files: dict[str, float] = {}
        for split in splits:
            name = Path(split.source.path).name
            self.files[name] = self.files.get(name, 0.0) + split.bytes / in_all
        self.rows_in_all = max(
            len(self.raws), round(sum(s.bytes for s in splits) * rows_read / max(1, bytes_read))
        )


def _raws(split: Split, max_row_bytes: int) -> Iterator[bytes]:
    source = split.source
    reader = Reader(
        *(source.path, source.kind, source.compression, split.start, split.stop),
        max_row_bytes=max_row_bytes,
    )
    for _, raw, record in reader:
        if not isinstance(record, Problem):
            yield raw


def _bytes_of(split: Split, raws: list[bytes], max_row_bytes: int) -> float:
    """Return the bytes of the input that some rows of a split took."""
    source = split.source
    if source.kind == "jsonl" and source.compression is None:
        return sum(map(len, raws)) + len(raws)
    # What is compressed or in columns is counted to the end of the split, which is a file or less.
    n_rows = sum(1 for _ in _raws(split, max_row_bytes))
    return split.bytes * len(raws) / max(1, n_rows)


@dataclass
class _Timed:
    """A sample that went through the stages."""

    rows: int
    kept: int
    width: int
    characters: int
    disk_bytes: int
    times: dict[str, tuple[float, float]]
    vectors: Any = None


def _run_sample(config: RunConfig, sample: _Sample, n_rows: int) -> _Timed:
    from pyids.pipeline.prepare import prepare

    raws = sample.raws[:: max(1, len(sample.raws) // n_rows)][:n_rows]
    folder = sample.folder / str(n_rows)
    folder.mkdir()
    with naming(folder / "rows.jsonl"):
        (folder / "rows.jsonl").write_bytes(b"\n".join(raws) + b"\n")
    changes: dict[str, Any] = {
        "data": [str(folder / "rows.jsonl")], "output_dir": str(folder / "run"), "limit": None,
        "budget": 1, "rounds": 1, "clusters": None, "engine": "local", "workers": 1,
        "quality": None, "target": None, "target_by": None, "target_embeddings_file": None,
        "semdedup_threshold": None, "scorer": "sound-learnability",
    }  # fmt: skip
    if config.embeddings_file is not None:
        vectors = open_vectors(config.embeddings_file)
        ids = np.arange(len(raws)) * max(1, len(vectors) // len(raws))
        file = folder / "vectors.npy"
        with naming(file), file.open("wb") as out:
            write_npy(out, vectors.take(np.minimum(ids, len(vectors) - 1)))
        changes["embeddings_file"] = str(folder / "vectors.npy")
    small = config.model_copy(update=changes)
    times: dict[str, tuple[float, float]] = {}
    for stage in ("read", "embed"):
        with _timed(times, stage):
            store = prepare(small, "read" if stage == "read" else "embed")
        store.close()
    arrays = [np.array(part) for part in store.embeddings()]
    files = [file for file in (folder / "run").rglob("*") if file.is_file()]
    # The labels are yet to come.
    disk = sum(file.stat().st_size for file in files) + 4 * store.kept
    return _Timed(
        store.rows_read,
        store.kept,
        arrays[0].shape[1],
        sum(map(len, raws)),
        disk,
        times,
        np.concatenate(arrays),
    )


@contextmanager
def _timed(times: dict[str, tuple[float, float]], name: str) -> Iterator[None]:
    cpu, wall = _cpu_seconds(), time.perf_counter()
    yield
    before = times.get(name, (0.0, 0.0))
    times[name] = (before[0] + _cpu_seconds() - cpu, before[1] + time.perf_counter() - wall)


def _cpu_seconds() -> float:
    """Processors' time of this process and its children; the children's in hundredths."""
    return time.process_time() + sum(os.times()[2:4])


@contextmanager
def _quietly() -> Iterator[None]:
    logger = logging.getLogger("pyids")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _stage(name: str, small: _Timed, large: _Timed, rows: int, serial: float) -> Stage:
    """Extend what a stage took from two sizes to all rows, along their line."""
    of = "read" if name == "read" else "embed"

    def extended(which: int) -> float:
        few, many = small.times[of][which], large.times[of][which]
        if large.rows <= small.rows:
            return many * rows / large.rows
        # Never less than half of what the larger one took a row: its timing may be noise.
        slope = max((many - few) / (large.rows - small.rows), many / large.rows / 2)
        return max(0.0, many - slope * large.rows) + slope * rows

    cpu, seconds = extended(0), extended(1)
    return Stage(name, cpu, seconds, serial * seconds)


def _time_kmeans(sample: _Timed, plan: Any, kept: int, config: RunConfig) -> Stage:
    """Time an assignment, and an iteration that knows the one before, a multiply-add each."""
    from pyids.clustering.lloyd import ShardPass, finish_update, measure
    from pyids.clustering.seeding import seed_centers

    rows = sample.vectors
    k = min(plan.n_clusters, max(1, len(rows) // _ROWS_PER_CLUSTER))
    # How many centers an assignment can rule out hangs on how many there are.
    k_once = min(plan.n_clusters, max(1, len(rows) // _ROWS_PER_CLUSTER_ONCE))
    work, work_once = (len(rows) * n * sample.width for n in (k, k_once))
    extent = measure(rows, metric=plan.metric, n_threads=config.threads)
    options: dict[str, Any] = {"metric": plan.metric, "n_threads": config.threads}
    times: dict[str, tuple[float, float]] = {}
    few = max(1, k // 8)
    later = min(_ITERATIONS, plan.max_iter)
    often = 0
    while often == 0 or times["once"][1] < _LEAST_SECONDS:
        often += 1
        with _timed(times, "seed"):
            seed_centers([rows], few, extent=extent, **options)
        start = rows[:: len(rows) // k][:k].astype(np.float64)
        shard = ShardPass([rows], k, extent, **options)
        partial = shard.assign(start)
        with _timed(times, "next"):
            for _ in range(later):
                start, _ = finish_update(partial, start, extent, metric=plan.metric)
                partial = shard.assign(start)
        start = rows[:: len(rows) // k_once][:k_once].astype(np.float64)
        shard = ShardPass([rows], k_once, extent, once=True, **options)
        start, _ = finish_update(shard.assign(start), start, extent, metric=plan.metric)
        with _timed(times, "once"):
            ShardPass([rows], k_once, extent, once=True, **options).assign(start)
    times = {name: (cpu / often, wall / often) for name, (cpu, wall) in times.items()}
    fitted = plan.sample_rows or kept
    all_work = fitted * plan.n_clusters * sample.width
    iterations = max(1, plan.max_iter // 3) if plan.init == "two-level" else plan.max_iter
    parts: list[Callable[[int], float]] = [
        lambda i: times["once"][i] / work_once * all_work,
        lambda i: times["next"][i] / later / work * all_work * iterations,
    ]
    if plan.init == "k-means++":
        looked = min(fitted, 64 * plan.n_clusters)
        scale = looked * _trials(plan.n_clusters) / (len(rows) * _trials(few))
        parts.append(lambda i: times["seed"][i] * scale)
    if plan.sample_rows is not None:
        everything = kept * plan.n_clusters * sample.width
        parts.append(lambda i: times["once"][i] / work_once * everything)
    cpu, seconds = (sum(part(i) for part in parts) for i in (0, 1))
    return Stage("cluster", cpu, seconds, 0.1 * seconds)


def _trials(k: int) -> float:
    """Distances that k-means++ computes a row."""
    return k * (2 + math.log(k))


def _count_shards(splits: Sequence[Split], rows: int) -> int:
    total = max(1, sum(split.bytes for split in splits))
    most = groups_per_shard(total) * ROWS_PER_GROUP
    return sum(max(1, math.ceil(rows * split.bytes / total / most)) for split in splits)


def _memory(config: RunConfig, n_clusters: int, width: int, kept: int) -> int:
    from pyids.pipeline.streamed import clustering_bytes

    fixed = _FIXED_BYTES if config.has_vectors else _FIXED_BYTES_TORCH
    most = config.max_memory or default_max_memory()
    return fixed + clustering_bytes(n_clusters, width, kept, most)


def _problems(config: RunConfig, found: Estimate) -> list[str]:
    problems = []
    output = config.output_path.absolute()
    nearest = next(path for path in (output, *output.parents) if path.exists())
    free = shutil.disk_usage(nearest).free
    if found.disk_bytes > free:
        problems.append(
            f"{_size(found.disk_bytes)} on a disk with {_size(free)} free: choose another "
            "--output-dir, an encoder of fewer dimensions, or fewer rows with --limit"
        )
    left = memory_left()
    if found.memory_bytes > left:
        problems.append(
            f"{_size(found.memory_bytes)} of memory where {_size(left)} are left: give fewer "
            "--clusters, or less with --max-memory"
        )
    return problems


def _workers(n: int) -> str:
    return f"here ({processors()} cores)" if n == 1 else f"{n} workers"


def _size(n_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.3g} TB"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
