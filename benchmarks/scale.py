"""`make bench-scale`: does a large pool take no more memory and time a row than a small one?

Generated short rows with precomputed vectors go through `ask`, `tell`, `ask`, and `select kmq`, in
a process of its own for each size, which may open 256 files. Its anonymous memory (RssAnon, its
workers included) is sampled all along; files that are mapped are not counted: the kernel takes
them back when it needs to. CPU seconds are those of the process and of its workers. The gate:

- the peak at the largest size is at most 256 MB above what the imports take, and at most 1.1 times
  that at the size before it;
- CPU a row at the largest size is at most 1.05 times that at the size before it, and at most a
  limit;
- two worker processes, and a run that is killed (SIGKILL) in each stage and goes on, give the same
  bytes as one that is not.

With `--paper` two large sizes are run alone: what the smaller one takes is multiplied for the
larger one and for 100 million rows, and what the larger one then takes is set beside it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from pyids.config import make_config
from pyids.methods.select import select_from_folder
from pyids.pipeline import prepare
from pyids.selection import Selection
from pyids.store.files import hash_file, write_json
from pyids.store.manifest import environment

LIMIT_MB = 256
LIMIT_RATIO = 1.1
LIMIT_CPU_RATIO = 1.05
LIMIT_US_A_ROW = 14
OPEN_FILES = 256
MAX_MEMORY = "128MB"
ITERATIONS = 5
BLOCK_ROWS = 10_000
PAPER_ROWS = 100_000_000
LIMIT_PAPER = 1.3
FIRST_ASK = ("read", "vectors", "cluster", "draw", "export")
STAGES = ("import", "read", "vectors", "cluster", "draw", "export", "tell", "ask again", "kmq")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    sizes = [1_000_000, 2_000_000, 10_000_000]
    parser.add_argument("--rows", type=int, nargs="+", default=sizes, help="the smallest first")
    parser.add_argument("--clusters", type=int, default=1024)
    parser.add_argument("--dimensions", type=int, default=256)
    parser.add_argument("--folder", type=Path, help="keep everything there")
    parser.add_argument("--results", type=Path, help="write the figures to this .json")
    parser.add_argument("--paper", action="store_true", help="foretell large sizes from smaller")
    parser.add_argument("--no-time", action="store_true", help="leave CPU out of the gate")
    parser.add_argument("--select", nargs=3, metavar=("POOL", "RUN", "WORKERS"))
    options = parser.parse_args()
    if options.select:
        pool, run, workers = options.select
        select(Path(pool), Path(run), int(workers), options.clusters, paper=options.paper)
        return
    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
        sys.exit(measure(options, options.folder))
    with tempfile.TemporaryDirectory(prefix="pyids-scale-") as folder:
        sys.exit(measure(options, Path(folder)))


def measure(options: argparse.Namespace, folder: Path) -> int:
    """Run every size, the smallest in all cases; print the table; 0 when the gate holds."""
    small, *larger = options.rows
    figures: list[dict[str, Any]] = []
    print(
        f"CPU seconds and peak MB of anonymous memory of each stage; {OPEN_FILES} open files, "
        f"--max-memory {MAX_MEMORY}"
    )
    print(f"{'rows':>10} {'case':>8}", *(f"{stage:>14}" for stage in STAGES), f"{'us a row':>9}")
    beside = () if options.paper else ((small, "two", 2), (small, "killed", 1))
    alone = [(rows, "alone", 1) for rows in larger]
    for rows, case, workers in ((small, "alone", 1), *beside, *alone):
        pool = folder / f"pool-{rows}"
        generate(pool, rows, options.dimensions)
        run = folder / f"run-{rows}-{case}"
        shutil.rmtree(run, ignore_errors=True)
        if case == "killed":
            kill_in_each_stage(pool, run, options.clusters, figures[0]["wall"])
        figure = select_measured(pool, run, workers, options.clusters, paper=options.paper)
        figure |= {"rows": rows, "case": case, "workers": workers, "files": {}}
        if options.paper:
            files = [file for file in run.rglob("*") if file.is_file()]
            figure["disk_mb"] = sum(file.stat().st_size for file in files) / 1e6
        else:
            figure["files"] = fingerprint_run(run)
        figure["us_a_row"] = 1e6 * sum(figure["seconds"][stage] for stage in FIRST_ASK) / rows
        figures.append(figure)
        cells = (f"{figure['seconds'][s]:>8.1f} {figure['peaks_mb'][s]:>5.0f}" for s in STAGES)
        print(f"{rows:>10} {case:>8}", *cells, f"{figure['us_a_row']:>9.1f}", flush=True)
        if case in ("two", "killed"):
            shutil.rmtree(run)
    checks = _paper(*figures) if options.paper else _checks(figures)
    if options.no_time:
        checks = {check: holds for check, holds in checks.items() if "CPU" not in check}
    for check, holds in checks.items():
        print(f"{'ok  ' if holds else 'FAIL'}  {check}")
    if options.results is not None:
        for figure in figures:
            del figure["files"]
        write_json(
            options.results,
            {"figures": figures, "checks": checks, "environment": environment()},
        )
    return 0 if all(checks.values()) else 1


def _paper(first: dict[str, Any], second: dict[str, Any]) -> dict[str, bool]:
    """Foretell the larger size, and 100 million rows, from the smaller one; print both."""
    times = second["rows"] / first["rows"]
    lines = {stage: (first["seconds"][stage], second["seconds"][stage]) for stage in STAGES[1:-1]}
    few, many = (sum(lines[stage][n] for stage in FIRST_ASK) for n in (0, 1))
    lines["first ask"] = few, many
    lines["disk MB"] = first["disk_mb"], second["disk_mb"]
    print(f"{'':>10} {'foretold':>10} {'measured':>10} {'ratio':>6} {'of 100M':>10}")
    ratios = {}
    for name, (few, many) in lines.items():
        ratios[name] = many / (few * times)
        whole = few * PAPER_ROWS / first["rows"]
        print(f"{name:>10} {few * times:>10.1f} {many:>10.1f} {ratios[name]:>6.2f} {whole:>10.0f}")
    beyond = second["peak_mb"] - second["peaks_mb"]["import"]
    return {
        f"the first ask and the disk within {LIMIT_PAPER}x of what was foretold": all(
            1 / LIMIT_PAPER <= ratios[name] <= LIMIT_PAPER for name in ("first ask", "disk MB")
        ),
        f"peak anonymous memory {beyond:.0f} MB beyond the imports <= {LIMIT_MB} MB": (
            beyond <= LIMIT_MB
        ),
    }


def _checks(figures: list[dict[str, Any]]) -> dict[str, bool]:
    one, two, killed, *_ = figures
    # The last size is compared with the one before it: of fewer rows all are known in memory.
    first, second = [one, one, *figures[3:]][-2:]
    beyond = second["peak_mb"] - second["peaks_mb"]["import"]
    memory = second["peak_mb"] / first["peak_mb"]
    cpu = second["us_a_row"] / first["us_a_row"]
    checks = {
        f"peak anonymous memory {beyond:.0f} MB beyond the imports <= {LIMIT_MB} MB": (
            beyond <= LIMIT_MB
        ),
        f"{memory:.2f}x that of {first['rows']} rows <= {LIMIT_RATIO}x": memory <= LIMIT_RATIO,
        f"CPU a row {cpu:.2f}x that of {first['rows']} rows <= {LIMIT_CPU_RATIO}x": (
            cpu <= LIMIT_CPU_RATIO
        ),
        f"CPU a row {second['us_a_row']:.1f} us <= {LIMIT_US_A_ROW} us": (
            second["us_a_row"] <= LIMIT_US_A_ROW
        ),
    }
    for name, other in (("two workers", two), ("killed and resumed", killed)):
        differing = sorted(file for file, _ in one["files"].items() ^ other["files"].items())
        if differing:
            print("differing files:", *differing[:10])
        checks[f"{name}: the same bytes in {len(other['files'])} files"] = not differing
    return checks


def generate(pool: Path, rows: int, dimensions: int) -> None:
    """Write ``pool.jsonl`` and ``vectors.npy``; one row in fifty repeats an earlier one."""
    if (pool / "vectors.npy").exists():
        return
    pool.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    words = np.array([f"{a}{b}" for a in ("ka", "lo", "mi", "nu") for b in range(250)])
    centers = rng.standard_normal((100, dimensions), dtype=np.float32)
    vectors = np.lib.format.open_memmap(
        pool / "vectors.npy", mode="w+", dtype=np.float16, shape=(rows, dimensions)
    )
    with (pool / "pool.jsonl").open("wb") as file:
        for start in range(0, rows, BLOCK_ROWS):
            count = min(BLOCK_ROWS, rows - start)
            topics = rng.integers(0, len(centers), count)
            noise = rng.standard_normal((count, dimensions), dtype=np.float32)
            vectors[start : start + count] = centers[topics] + noise
            texts = words[rng.integers(0, len(words), (count, 20))].tolist()
            for i in range(count):
                original = i - 7 if i % 50 == 49 else i
                text = texts[original]
                turns = [
                    {"role": "user", "content": f"{' '.join(text[:12])} {start + original}?"},
                    {"role": "assistant", "content": " ".join(text[12:])},
                ]
                row = {"id": start + i, "score": i % 97, "messages": turns}
                file.write(orjson.dumps(row) + b"\n")


def select(pool: Path, run: Path, workers: int, clusters: int, *, paper: bool) -> None:
    """Go through all stages without a language model; print what each took when it ends."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))
    start, wall = 0.0, time.perf_counter()

    def lap(stage: str) -> None:
        nonlocal start, wall
        now, here = sum(os.times()[:4]), time.perf_counter()
        print(json.dumps([stage, now - start, here - wall]), flush=True)
        start, wall = now, here

    # What large pools choose by themselves; here every size does, so that they are comparable.
    fitted = {"kmeans_init": "two-level", "kmeans_sample": str(256 * clusters)} if paper else {}
    config = make_config(
        data=[str(pool / "pool.jsonl")],
        embeddings_file=str(pool / "vectors.npy"),
        budget="1%",
        rounds=2,
        clusters=clusters,
        kmeans_max_iter=ITERATIONS,
        max_memory=MAX_MEMORY,
        workers=workers,
        output_dir=str(run),
        **fitted,
    )
    lap("import")
    # One stage after the other, each finding the ones before it done.
    for stage, until in (("read", "read"), ("vectors", "embed"), ("cluster", "cluster")):
        prepare.prepare(config, until).close()
        lap(stage)
    with Selection.open(config.output_path, config) as selection:
        if selection.round == 0:
            selection.draw()
            lap("draw")
            selection.export()
            selection.export_probes()
            lap("export")
            selection.tell({int(row): float(row % 7) for row in selection.probes()})
            lap("tell")
        selection.draw()
        selection.export()
        selection.export_probes()
        lap("ask again")
    if not paper:
        select_from_folder(str(run), "kmq", quality="score")
    lap("kmq")


def start_selection(
    pool: Path, run: Path, workers: int, clusters: int, *, paper: bool = False
) -> subprocess.Popen[str]:
    """Run `select` in a process of its own; on paper without the method that parses every row."""
    command = [sys.executable, "-P", __file__, "--clusters", str(clusters)]
    command += ["--select", str(pool), str(run), str(workers), *(["--paper"] if paper else [])]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def kill_in_each_stage(pool: Path, run: Path, clusters: int, wall: dict[str, float]) -> None:
    """Start over and over again, and kill in the midst of one stage after the other."""
    for before, stage in itertools.pairwise(STAGES):
        process = start_selection(pool, run, 1, clusters)
        for line in process.stdout:
            done = json.loads(line)[0]
            if done == before or (before in ("draw", "export", "tell") and done == "cluster"):
                time.sleep(wall[stage] / 2)
                process.kill()
                break
        process.wait()


def select_measured(
    pool: Path, run: Path, workers: int, clusters: int, *, paper: bool = False
) -> dict[str, Any]:
    """Run `select` in a process of its own; CPU seconds of its stages and its peak memory."""
    process = start_selection(pool, run, workers, clusters, paper=paper)
    peak_kb = 0
    done = threading.Event()

    def sample() -> None:
        nonlocal peak_kb
        while not done.wait(0.01):
            peak_kb = max(peak_kb, sum(map(anonymous_kb, process_tree(process.pid))))

    sampler = threading.Thread(target=sample)
    sampler.start()
    seconds: dict[str, float] = dict.fromkeys(STAGES, 0.0)
    wall, peaks_mb = dict(seconds), dict(seconds)
    for line in process.stdout:
        stage, seconds[stage], wall[stage] = json.loads(line)
        peaks_mb[stage], peak_kb = peak_kb * 1024 / 1e6, 0
    done.set()
    sampler.join()
    if process.wait():
        raise SystemExit(f"the selection of {pool} failed with {process.returncode}")
    peak = max(peaks_mb.values())
    return {"peak_mb": peak, "peaks_mb": peaks_mb, "seconds": seconds, "wall": wall}


def process_tree(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for parent in found:
        try:
            tasks = list(Path(f"/proc/{parent}/task").iterdir())
            for task in tasks:
                found += map(int, (task / "children").read_text().split())
        except OSError:
            continue  # it has ended
    return found


def anonymous_kb(pid: int) -> int:
    """RssAnon of a process, 0 when it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    for line in status.splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1])
    return 0


def fingerprint_run(run: Path) -> dict[str, str]:
    """Hash of every file that the stages left; the configuration names the workers, so not it."""
    return {
        str(file.relative_to(run)): hash_file(file)
        for file in sorted(run.rglob("*"))
        if file.is_file()
        and not file.name.startswith(".")
        # These say where and by how many processes it was worked.
        and not file.name.endswith(("config.yaml", ".manifest.json"))
    }


if __name__ == "__main__":
    main()
