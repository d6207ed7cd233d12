"""Every selection method once on one pool: seconds and peak memory, each in its own process.

    python benchmarks/methods.py POOL.jsonl[.gz] VECTORS.npy [--budget 1%] [--only NAME ...]

VECTORS holds one row for each line of POOL. Clusters are those of one k-means, made first. Quality
is the response length (a signal that needs no language model), so that what is timed is the method.
Writes ``benchmarks/results/methods.json`` and the table of ``docs/methods.md``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from measured import in_own_process, peak_kib, read_pool
from page import fill

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "methods.json"
OPTIONS = {"uniform": {"column": "source"}}


def prepare(pool: Path, vectors: Path, folder: Path, clusters: int, seed: int) -> int:
    """Write what the methods need beside the vectors, which stay where they are."""
    from pyids import KMeans

    x = np.load(vectors, mmap_mode="r")
    start = time.perf_counter()
    kmeans = KMeans(clusters, random_state=seed).fit(x)
    print(f"k-means, K = {clusters}: {time.perf_counter() - start:.1f} s", flush=True)
    np.save(folder / "labels.npy", kmeans.labels_)
    np.save(folder / "centroids.npy", kmeans.cluster_centers_)
    lengths, sources = [], []
    for row in read_pool(pool):
        lengths.append(sum(len(m["content"]) for m in row["messages"] if m["role"] == "assistant"))
        sources.append(row.get("source", ""))
    if len(lengths) != len(x):
        sys.exit(f"{pool} has {len(lengths)} rows, {vectors} {len(x)}")
    np.save(folder / "lengths.npy", np.array(lengths))
    np.save(folder / "sources.npy", np.array(sources))
    return len(x)


def measure(name: str, vectors: str, folder: Path, budget: int, seed: int, threads: int) -> None:
    """Run one method in this process and print what it took as JSON."""
    from pyids.methods import get_method, pool_from_arrays

    lengths = np.load(folder / "lengths.npy")
    pool = pool_from_arrays(
        embeddings=np.load(vectors, mmap_mode="r"),
        labels=np.load(folder / "labels.npy"),
        centroids=np.load(folder / "centroids.npy"),
        quality=np.log1p(lengths),
        lengths=lengths,
        columns={"source": np.load(folder / "sources.npy").tolist()},
        threads=threads,
    )
    method = get_method(name)
    before_kib = peak_kib()
    start = time.perf_counter()
    rows = method(pool, budget, seed=seed, **OPTIONS.get(name, {}))
    seconds = time.perf_counter() - start
    after_kib = peak_kib()
    assert len(set(rows.tolist())) == budget
    print(
        json.dumps(
            {
                "method": name,
                "seconds": round(seconds, 3),
                "peak_mib": round(after_kib / 1024),
                "above_start_mib": round((after_kib - before_kib) / 1024),
            }
        )
    )


def table(result: dict) -> list[str]:
    """Return the lines of the table."""
    return [
        f"{result['rows']:,} x {result['columns']} float16, budget {result['budget']}, "
        f"K = {result['clusters']}, {result['threads']} threads:",
        "",
        "| method | seconds | peak MiB of the process | of which the method |",
        "|---|---:|---:|---:|",
        *(
            f"| {m['method']} | {m['seconds']:.2f} | {m['peak_mib']} | {m['above_start_mib']} |"
            for m in result["methods"]
        ),
    ]


def main() -> None:
    """Read the options, run each method in a process of its own, keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pool", type=Path)
    parser.add_argument("vectors", type=Path)
    parser.add_argument("--budget", default="1%", help="rows, or a share such as 1%%")
    parser.add_argument("--clusters", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", nargs="*", help="methods")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        budget = int(args.budget)
        measure(args.measure, args.vectors, args.folder, budget, args.seed, args.threads)
        return

    from pyids.methods import method_names

    measured = []
    with tempfile.TemporaryDirectory() as name:
        n = prepare(args.pool, args.vectors, Path(name), args.clusters, args.seed)
        share = args.budget.removesuffix("%")
        budget = math.ceil(n * float(share) / 100) if share != args.budget else int(share)
        shared = [str(args.pool), str(args.vectors), "--budget", str(budget), "--folder", name]
        shared += ["--seed", str(args.seed), "--threads", str(args.threads)]
        for method in args.only or method_names():
            measured.append(in_own_process(__file__, *shared, "--measure", method))
    columns = np.load(args.vectors, mmap_mode="r").shape[1]
    result = {
        "rows": n,
        "columns": columns,
        "budget": budget,
        "clusters": args.clusters,
        "threads": args.threads,
        "methods": measured,
    }
    if args.only:
        return
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    fill(ROOT / "docs" / "methods.md", "methods", table(result))


if __name__ == "__main__":
    main()
