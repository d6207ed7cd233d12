"""`make bench-scale`: does memory stay bounded when the pool grows, and the result the same?

Generated short rows with precomputed vectors go through read, cluster, draw and export, in a
process of its own for each size. Its anonymous memory (RssAnon, its workers included) is sampled
all along; files that are mapped are not counted: the kernel takes them back when it needs to.
The gate:

- the peak at the large size is below a limit, and at most 1.2 times that at the small size;
- two worker processes give the same bytes as one.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import orjson

from pyids.config import make_config
from pyids.pipeline import prepare
from pyids.selection import Selection
from pyids.store.files import hash_file, write_json
from pyids.store.manifest import environment

LIMIT_MB = 1500
LIMIT_RATIO = 1.2
ITERATIONS = 4
BLOCK_ROWS = 10_000
STAGES = ("import", "read", "vectors", "cluster", "draw", "export")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs=2, default=[200_000, 1_000_000])
    parser.add_argument("--clusters", type=int, default=256)
    parser.add_argument("--dimensions", type=int, default=384)
    parser.add_argument("--folder", type=Path, help="keep everything there")
    parser.add_argument("--results", type=Path, help="write the figures to this .json")
    parser.add_argument("--select", nargs=3, metavar=("POOL", "RUN", "WORKERS"))
    options = parser.parse_args()
    if options.select:
        pool, run, workers = options.select
        select(Path(pool), Path(run), int(workers), options.clusters)
        return
    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
        sys.exit(measure(options, options.folder))
    with tempfile.TemporaryDirectory(prefix="pyids-scale-") as folder:
        sys.exit(measure(options, Path(folder)))


def measure(options: argparse.Namespace, folder: Path) -> int:
    """Run every size, print the table; 0 when the gate holds."""
    small, large = options.rows
    cases = [(small, 1), (large, 1), (large, 2)]
    figures = []
    print("seconds and peak MB of anonymous memory of each stage")
    print(f"{'rows':>9} {'workers':>7}", *(f"{stage:>15}" for stage in STAGES))
    for rows, workers in cases:
        pool = folder / f"pool-{rows}"
        generate(pool, rows, options.dimensions)
        run = folder / f"run-{rows}-{workers}"
        shutil.rmtree(run, ignore_errors=True)
        figure = select_measured(pool, run, workers, options.clusters)
        figure |= {"rows": rows, "workers": workers, "files": fingerprint_run(run)}
        figures.append(figure)
        cells = (f"{figure['seconds'][s]:>7.1f} {figure['peaks_mb'][s]:>7.0f}" for s in STAGES)
        print(f"{rows:>9} {workers:>7}", *cells, flush=True)
    first, second, third = figures
    peak = max(second["peak_mb"], third["peak_mb"])
    differing = sorted(name for name, _ in second["files"].items() ^ third["files"].items())
    if differing:
        print("differing files:", *differing[:10])
    checks = {
        f"peak anonymous memory {peak:.0f} MB <= {LIMIT_MB} MB": peak <= LIMIT_MB,
        f"{second['peak_mb'] / first['peak_mb']:.2f}x that of {small} rows <= {LIMIT_RATIO}x": (
            second["peak_mb"] <= LIMIT_RATIO * first["peak_mb"]
        ),
        f"two workers: the same bytes in {len(second['files'])} files": not differing,
    }
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


def generate(pool: Path, rows: int, dimensions: int) -> None:
    """Write ``pool.jsonl`` and ``vectors.npy``; one row in fifty repeats an earlier one."""
    if (pool / "vectors.npy").exists():
        return
    pool.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    words = np.array([f"{a}{b}" for a in ("ka", "lo", "mi", "nu") for b in range(250)])
    centers = rng.standard_normal((100, dimensions), dtype=np.float32)
    vectors = np.lib.format.open_memmap(
        pool / "vectors.npy", mode="w+", dtype=np.float32, shape=(rows, dimensions)
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
                file.write(orjson.dumps({"id": start + i, "messages": turns}) + b"\n")


def select(pool: Path, run: Path, workers: int, clusters: int) -> None:
    """Select 1%: the stages of `pyids run` without the language model; print each when it ends."""
    start = time.perf_counter()

    def lap(stage: str) -> None:
        nonlocal start
        print(json.dumps([stage, time.perf_counter() - start]), flush=True)
        start = time.perf_counter()

    config = make_config(
        data=[str(pool / "pool.jsonl")],
        embeddings_file=str(pool / "vectors.npy"),
        budget="1%",
        rounds=1,
        clusters=clusters,
        kmeans_max_iter=ITERATIONS,
        workers=workers,
        output_dir=str(run),
    )
    lap("import")
    # One stage after the other, each finding the ones before it done.
    for stage, until in (("read", "read"), ("vectors", "embed"), ("cluster", "cluster")):
        prepare.prepare(config, until).close()
        lap(stage)
    with Selection.open(config.output_path, config) as selection:
        selection.draw()
        lap("draw")
        selection.export()
        lap("export")


def select_measured(pool: Path, run: Path, workers: int, clusters: int) -> dict[str, object]:
    """Run `select` in a process of its own; seconds of its stages and its peak memory."""
    command = [sys.executable, "-P", __file__, "--clusters", str(clusters)]
    command += ["--select", str(pool), str(run), str(workers)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak_kb = 0
    done = threading.Event()

    def sample() -> None:
        nonlocal peak_kb
        while not done.wait(0.01):
            peak_kb = max(peak_kb, sum(map(anonymous_kb, process_tree(process.pid))))

    sampler = threading.Thread(target=sample)
    sampler.start()
    seconds, peaks_mb = {}, {}
    for line in process.stdout:
        stage, seconds[stage] = json.loads(line)
        peaks_mb[stage], peak_kb = peak_kb * 1024 / 1e6, 0
    done.set()
    sampler.join()
    if process.wait():
        raise SystemExit(f"the selection of {pool} failed with {process.returncode}")
    return {"peak_mb": max(peaks_mb.values()), "peaks_mb": peaks_mb, "seconds": seconds}


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
        if file.is_file() and not file.name.startswith(".") and file.name != "config.yaml"
    }


if __name__ == "__main__":
    main()
