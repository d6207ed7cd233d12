"""`make bench-clusters`: k-means with tens of thousands of clusters, beside faiss.

    make bench-clusters                    1,000,000 x 256 float16, K = 16,384 and 65,536
    ... many_clusters.py --rows 100000 --clusters 2048     a smaller one

Text-like rows. Ours are the defaults of `pyids.KMeans` (two levels, then a few iterations over all
clusters) and, with --lloyd, plain Lloyd iterations from the same seed. faiss runs its `Kmeans`
(at most 256 rows a cluster, 25 iterations, its defaults) up to --flat clusters and its two-level
clustering above. Each library runs in a process of its own; CPU seconds are those of all its
threads, without making or reading the rows. Inertia is evaluated here, exactly, over all rows.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from cpu import PINNED, VENV, inertia, text_like
from measured import make_venv

RESULTS = Path(__file__).resolve().parent / "results" / "many-clusters.json"


def fit_two_level(x: np.ndarray, k: int, threads: int) -> Callable[[], Any]:
    import pyids

    model = pyids.KMeans(k, n_threads=threads, algorithm="two-level")
    return lambda: model.fit(x).cluster_centers_


def fit_lloyd(x: np.ndarray, k: int, threads: int) -> Callable[[], Any]:
    import pyids

    model = pyids.KMeans(k, algorithm="lloyd", n_threads=threads, rows_per_cluster=None)
    return lambda: model.fit(x).cluster_centers_


def fit_faiss(x: np.ndarray, k: int, threads: int) -> Callable[[], Any]:
    import faiss

    faiss.omp_set_num_threads(threads)
    rows, model = x.astype(np.float32), faiss.Kmeans(x.shape[1], k)

    def run() -> Any:
        model.train(rows)
        return model.centroids

    return run


def fit_faiss_two_level(x: np.ndarray, k: int, threads: int) -> Callable[[], Any]:
    import faiss
    from faiss.contrib.clustering import two_level_clustering

    faiss.omp_set_num_threads(threads)
    rows = x.astype(np.float32)
    return lambda: two_level_clustering(rows, round(k**0.5), k)[0]


def work(job: dict[str, Any]) -> None:
    """Run one fit, and report on standard output."""
    run = globals()[f"fit_{job['name']}"](np.load(job["x"]), job["k"], job["threads"])
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    centers = run()
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    np.save(job["out"], np.asarray(centers, dtype=np.float32))
    print(json.dumps({"cpu_seconds": cpu, "seconds": wall}))


def measure(name: str, k: int, folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    python = VENV / "bin" / "python" if name.startswith("faiss") else Path(sys.executable)
    job = {"name": name, "k": k, "threads": given.threads, "x": str(folder / "x.npy"),
           "out": str(folder / "c.npy")}  # fmt: skip
    limits = {f"{v}_NUM_THREADS": str(given.threads) for v in ("OMP", "OPENBLAS", "MKL")}
    done = subprocess.run(
        [str(python), "-P", "-W", "ignore", __file__, "--work", json.dumps(job)],
        env={**os.environ, **limits, "PYTHONPATH": str(Path(__file__).parent)},
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout.strip().splitlines()[-1])
    rows = np.load(folder / "x.npy").astype(np.float32)
    value = inertia(rows, np.load(folder / "c.npy"), given.threads)
    result = {"k": k, "way": name, **found, "inertia": value}
    print(json.dumps(result), flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--columns", type=int, default=256)
    parser.add_argument("--clusters", type=int, nargs="+", default=[16_384, 65_536])
    parser.add_argument("--flat", type=int, default=16_384, help="most clusters for faiss.Kmeans")
    parser.add_argument("--lloyd", action="store_true", help="also full Lloyd iterations")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work(json.loads(given.work))
        return
    make_venv(VENV, PINNED)
    from pyids import _core

    results = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        n_centers = max(1_000, given.rows // 40)
        rows = text_like(given.rows, given.columns, n_centers, 0).astype(np.float16)
        np.save(folder / "x.npy", rows)
        for k in given.clusters:
            ways = ["two_level", *(["lloyd"] if given.lloyd else [])]
            ways.append("faiss" if k <= given.flat else "faiss_two_level")
            results += [measure(way, k, folder, given) for way in ways]
    about = {
        "rows": given.rows, "columns": given.columns, "threads": given.threads,
        "simd": _core.simd_level(), "results": results,
    }  # fmt: skip
    RESULTS.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
