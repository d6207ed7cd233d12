"""`make bench-workers`: how much faster two workers of a Ray cluster are than one.

A cluster of two CPUs on this machine embeds generated rows by static vectors, clusters them by
vectors that they come with, and scores rows by the default language model: with one worker and with
two, by turns, one thread each. Seconds are those of the stage alone: the cluster runs, and its
processes have imported and loaded what they need. Beside it stands what two processes that share
nothing gain on this machine, which no stage can surpass: run it where nothing else does.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from scale import generate

from pyids.config import RunConfig, make_config
from pyids.engine.ray import RayEngine
from pyids.pipeline.clusters import cluster
from pyids.pipeline.prepare import prepare
from pyids.pipeline.stages import embed
from pyids.store.files import write_json
from pyids.store.folder import Store
from pyids.store.manifest import environment

RESULTS = Path(__file__).resolve().parent / "results" / "workers.json"
MODEL = "smollm2-135m-instruct"
DIMENSIONS = 256
SPIN = "x = 0\nfor i in range(20_000_000): x += i * i % 7"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--scored", type=int, default=128, help="rows that the model scores")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    import ray

    table = {"no stage": measure(spin, options.repeat)}
    with tempfile.TemporaryDirectory(prefix="pyids-workers-") as name:
        folder = Path(name)
        os.chdir(folder)  # Ray puts this on its workers' path: not the source tree
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        generate(folder / "few", options.rows // 20, DIMENSIONS)
        generate(folder / "all", options.rows, DIMENSIONS)
        for stage, begin in (("embed", embedding), ("k-means", clustering)):
            with begin(folder / "few") as run:  # so that both workers have loaded what they need
                run(2)
            with begin(folder / "all") as run:
                table[stage] = measure(run, options.repeat)
        with scoring(folder / "all", options.scored) as run:
            table["score"] = measure(run, options.repeat)
        ray.shutdown()
        os.chdir("/")
    print(f"{'':<18}{'one':>9}{'two':>9}{'gain':>8}")
    for stage, parts in table.items():
        for part, row in parts.items():
            seconds = f"{row['one']:>8.2f}s{row['two']:>8.2f}s"
            print(f"{f'{stage}, {part}':<18}{seconds}{row['gain']:>7.2f}x")
    facts = {"rows": options.rows, "scored": options.scored, "environment": environment()}
    write_json(options.results, {"stages": table, **facts})


def measure(run: Callable[[int], dict[str, float]], repeat: int) -> dict[str, Any]:
    """Medians of the seconds with one worker and with two, and what the second one gains."""
    found: dict[str, dict[int, list[float]]] = {}
    for _ in range(repeat):
        for workers in (1, 2):
            for part, seconds in run(workers).items():
                found.setdefault(part, {1: [], 2: []})[workers].append(seconds)
    table = {}
    for part, seconds in found.items():
        one, two = (statistics.median(seconds[workers]) for workers in (1, 2))
        runs = {"one": seconds[1], "two": seconds[2]}
        table[part] = {"one": one, "two": two, "gain": one / two, "runs": runs}
    print(json.dumps(table), flush=True)
    return table


def spin(workers: int) -> dict[str, float]:
    """Seconds of two pieces of work that are done by so many processes."""
    start = time.perf_counter()
    for _ in range(2 // workers):
        started = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(workers)]
        for process in started:
            process.wait()
    return {"tasks": time.perf_counter() - start}


@contextmanager
def embedding(pool: Path) -> Iterator[Callable[[int], dict[str, float]]]:
    config = config_of(pool, encoder="wordllama")
    with prepare(config, "read") as store:

        def run(workers: int) -> dict[str, float]:
            shutil.rmtree(store.path / "embeddings", ignore_errors=True)
            return seconds_of(embed, store, config, workers)

        yield run


@contextmanager
def clustering(pool: Path) -> Iterator[Callable[[int], dict[str, float]]]:
    vectors = str(pool / "vectors.npy")
    config = config_of(pool, embeddings_file=vectors, clusters=1024, kmeans_max_iter=10)
    with prepare(config, "embed") as store:

        def run(workers: int) -> dict[str, float]:
            shutil.rmtree(store.path / "labels", ignore_errors=True)
            for made in store.path.glob("centroids.*"):
                made.unlink()
            return seconds_of(cluster, store, config, workers)

        yield run


def config_of(pool: Path, **options: object) -> RunConfig:
    """Options that both stages share."""
    return make_config(
        data=[str(pool / "pool.jsonl")],
        budget="1%",
        device="cpu",
        threads=1,
        output_dir=str(pool / f"run-{'-'.join(options)}"),
        **options,
    )


class Timed(RayEngine):
    """Counts the seconds in which tasks are waited for."""

    seconds = 0.0

    def map(self, task, items, *, gpu=False):
        found = super().map(task, items, gpu=gpu)
        while True:
            start = time.perf_counter()
            result = next(found, self)
            self.seconds += time.perf_counter() - start
            if result is self:
                return
            yield result


def seconds_of(
    stage: Callable[[Store, RunConfig, RayEngine], object],
    store: Store,
    config: RunConfig,
    workers: int,
) -> dict[str, float]:
    """Seconds of a stage on so many workers: of all of it, and of its tasks alone."""
    with Timed(workers=workers) as engine:
        start = time.perf_counter()
        stage(store, config, engine)
        return {"stage": time.perf_counter() - start, "tasks": engine.seconds}


@contextmanager
def scoring(pool: Path, rows: int) -> Iterator[Callable[[int], dict[str, float]]]:
    from pyids.chat.template import encode
    from pyids.models.distributed import Processes
    from pyids.models.hub import resolve_model
    from pyids.models.load import load_tokenizer
    from pyids.models.pair import Models
    from pyids.scoring.together import Together

    ref = resolve_model(MODEL)
    tokenizer = load_tokenizer(ref)
    with (pool / "pool.jsonl").open() as lines:
        messages = [json.loads(line)["messages"] for line in islice(lines, rows)]
    encoded = [encode(one, tokenizer, 512) for one in messages]

    def run(workers: int) -> dict[str, float]:
        models = Models(ref, None, device="cpu", dtype="float32")
        with closing(Together(models, Processes(workers, ray=True), pool / "score")) as together:
            together.nll("base", encoded[: 8 * workers])  # each process loads the model
            start = time.perf_counter()
            together.nll("base", encoded)
            return {"tasks": time.perf_counter() - start}

    yield run


if __name__ == "__main__":
    main()
