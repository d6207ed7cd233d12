"""`make bench-memory`: k-means over a matrix four times as large as the memory it may take.

Writes a .npy of 6 GB, maps it, clusters it in a process of its own under `max_memory` and samples
that process's anonymous memory (RssAnon) all along; pages of the mapped file are not counted: the
kernel takes them back when it needs to. Exits with 1 if the peak is above the limit.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

BLOCK_ROWS = 50_000


def generate(path: Path, rows: int, dimensions: int) -> None:
    """Noise round 100 centers: one block, its columns rolled by one for every further block."""
    rng = np.random.default_rng(0)
    block = rng.standard_normal((BLOCK_ROWS, dimensions), dtype=np.float32)
    block += rng.standard_normal((100, dimensions), dtype=np.float32)[np.arange(BLOCK_ROWS) % 100]
    with path.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (rows, dimensions)}
        np.lib.format.write_array_header_1_0(file, header)
        for i, start in enumerate(range(0, rows, BLOCK_ROWS)):
            np.roll(block, i, axis=1)[: rows - start].tofile(file)


def anonymous_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024


def fit(path: Path, clusters: int, iterations: int, max_memory: int) -> dict[str, float]:
    """Cluster the mapped matrix; run in a process of its own."""
    import pyids

    x = np.load(path, mmap_mode="r")
    peak, done = anonymous_bytes(), threading.Event()

    def sample() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, anonymous_bytes())

    sampler = threading.Thread(target=sample)
    sampler.start()
    start, cpu_start = time.perf_counter(), time.process_time()
    model = pyids.KMeans(clusters, max_iter=iterations, tol=0, max_memory=max_memory).fit(x)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    done.set()
    sampler.join()
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_anonymous_mb": max(peak, anonymous_bytes()) / 1e6,
        "iterations": model.n_iter_,
        "inertia": model.inertia_,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=6.0, help="of the matrix")
    parser.add_argument("--limit", type=float, default=1.5, help="gigabytes of anonymous memory")
    parser.add_argument("--dimensions", type=int, default=384)
    parser.add_argument("--clusters", type=int, default=256)
    parser.add_argument("--iterations", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where the matrix is written for the while")
    parser.add_argument("--fit", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    limit = int(options.limit * 1e9)
    if options.fit is not None:
        print(json.dumps(fit(options.fit, options.clusters, options.iterations, limit)))
        return
    rows = int(options.gigabytes * 1e9 / 4 / options.dimensions)
    with tempfile.TemporaryDirectory(prefix="pyids-streaming-", dir=options.folder) as folder:
        path = Path(folder) / "x.npy"
        generate(path, rows, options.dimensions)
        command = [sys.executable, "-P", __file__, *sys.argv[1:], "--fit", str(path)]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    figures = json.loads(output)
    peak = figures["peak_anonymous_mb"]
    holds = peak * 1e6 <= limit
    print(
        f"{rows} x {options.dimensions} float32 ({options.gigabytes:g} GB, mapped), "
        f"k = {options.clusters}, {figures['iterations']} iterations: {figures['seconds']:.1f} s, "
        f"{figures['cpu_seconds']:.1f} s of CPU"
    )
    print(
        f"{'ok  ' if holds else 'FAIL'}  {peak:.0f} MB of anonymous memory <= {limit / 1e6:.0f} MB"
    )
    sys.exit(0 if holds else 1)


if __name__ == "__main__":
    main()
