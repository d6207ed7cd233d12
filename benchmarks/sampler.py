"""Our sampler beside what libraries offer, interleaved in one run.

    python benchmarks/sampler.py [--quick] [--output benchmarks/results/sampler-NAME.json]

Every method draws without replacement inside clusters, with probability proportional to the weights
among the rows left; labels are unsorted, weights log-normal. Medians of interleaved repetitions
(`cpu_seconds` adds all threads up: what a busy machine distorts least); memory is the peak resident
memory of a fresh process above its inputs, less the result.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import pyids

K = 1024


def make_pool(n: int, fraction: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, K, n, dtype=np.int32)
    weights = rng.lognormal(size=n)
    counts = np.bincount(labels, minlength=K)
    return labels, weights, pyids.allocate(int(fraction * n), counts, counts)


def ours(labels, weights, quotas):
    return pyids.sample_by_cluster(labels, quotas, weights=weights, seed=0)


def numpy_loop(labels, weights, quotas):
    """One `np.where` and one `np.random.choice` a cluster: what the paper's code runs."""
    rng = np.random.default_rng(0)
    drawn = []
    for cluster, quota in enumerate(quotas):
        rows = np.where(labels == cluster)[0]
        p = weights[rows]
        drawn.append(rng.choice(rows, quota, replace=False, p=p / p.sum()))
    return np.concatenate(drawn)


def grouped(labels):
    order = np.argsort(labels, kind="stable")
    return order, np.searchsorted(labels[order], np.arange(K + 1))


def numpy_grouped_choice(labels, weights, quotas):
    rng = np.random.default_rng(0)
    order, starts = grouped(labels)
    drawn = []
    for cluster, quota in enumerate(quotas):
        rows = order[starts[cluster] : starts[cluster + 1]]
        p = weights[rows]
        drawn.append(rng.choice(rows, quota, replace=False, p=p / p.sum()))
    return np.concatenate(drawn)


def numpy_keys(labels, weights, quotas):
    """Exponential keys for all rows at once, then one argpartition a cluster."""
    keys = np.random.default_rng(0).standard_exponential(len(labels)) / weights
    order, starts = grouped(labels)
    drawn = []
    for cluster, quota in enumerate(quotas):
        rows = order[starts[cluster] : starts[cluster + 1]]
        drawn.append(rows[np.argpartition(keys[rows], quota - 1)[:quota]])
    return np.concatenate(drawn)


def torch_multinomial(labels, weights, quotas):
    import torch

    generator = torch.Generator().manual_seed(0)
    order, starts = grouped(labels)
    order, weights = torch.from_numpy(order), torch.from_numpy(weights)
    drawn = []
    for cluster, quota in enumerate(quotas.tolist()):
        rows = order[starts[cluster] : starts[cluster + 1]]
        drawn.append(rows[torch.multinomial(weights[rows], quota, generator=generator)])
    return torch.cat(drawn).numpy()


def pandas_groupby_sample(labels, weights, quotas):
    """One fraction for all clusters: `groupby.sample` knows no quotas."""
    import pandas

    frame = pandas.DataFrame({"label": labels})
    fraction = quotas.sum() / len(labels)
    drawn = frame.groupby("label").sample(frac=fraction, weights=weights, random_state=0)
    return drawn.index.to_numpy()


METHODS: dict[str, Callable[..., np.ndarray]] = {
    "pyids": ours,
    "loop of numpy choice": numpy_loop,
    "numpy choice, grouped": numpy_grouped_choice,
    "torch.multinomial, grouped": torch_multinomial,
    "numpy keys + argpartition": numpy_keys,
    "pandas groupby.sample": pandas_groupby_sample,
}
LIBRARIES = list(METHODS)[2:]


def compare(n: int, fraction: float, repetitions: int) -> dict:
    pool = make_pool(n, fraction)
    budget = int(pool[2].sum())
    seconds: dict[str, list[float]] = {name: [] for name in METHODS}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in METHODS}
    failed: dict[str, str] = {}
    for repetition in range(repetitions):
        for name, method in METHODS.items():
            if name in failed or (name == "loop of numpy choice" and repetition >= 3):
                continue
            for _ in range(5 if name == "pyids" else 1):  # a short time needs more readings
                start, cpu_start = time.perf_counter(), time.process_time()
                try:
                    drawn = method(*pool)
                except ValueError as error:  # pandas refuses some weights
                    failed[name] = str(error).splitlines()[0]
                    break
                seconds[name].append(time.perf_counter() - start)
                cpu_seconds[name].append(time.process_time() - cpu_start)
                if name != "pandas groupby.sample":
                    assert len(np.unique(drawn)) == budget
    medians = {name: statistics.median(s) for name, s in seconds.items() if s}
    mine = medians["pyids"]
    best = min(medians[name] for name in LIBRARIES if name in medians)
    return {
        "n": n,
        "clusters": K,
        "budget": budget,
        "median_seconds": medians,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "failed": failed,
        "ns_a_row": mine / n * 1e9,
        "times_faster_than_loop": medians["loop of numpy choice"] / mine,
        "times_faster_than_best_library": best / mine,
    }


def peak_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmHWM in /proc/self/status")


def measure_memory(n: int, fraction: float) -> dict:
    """Run in a process of its own: the peak above the inputs, less the result."""
    labels, weights, quotas = make_pool(n, fraction)
    ours(labels[:1000], weights[:1000], np.zeros(K, np.int64))  # load the core
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = peak_bytes()
    drawn = ours(labels, weights, quotas)
    extra = peak_bytes() - before - drawn.nbytes
    inputs = labels.nbytes + weights.nbytes
    return {"input_bytes": inputs, "extra_bytes": extra, "share_of_inputs": extra / inputs}


def stream(n: int, fraction: float, shard_rows: int) -> dict:
    """A pool that is never held: made, drawn from and forgotten shard by shard."""
    quotas = pyids.allocate(int(fraction * n), np.ones(K), np.full(K, n))
    drawing = 0.0

    def parts():
        nonlocal drawing
        for start in range(0, n, shard_rows):
            rng = np.random.default_rng(start)
            size = min(shard_rows, n - start)
            labels = rng.integers(0, K, size, dtype=np.int32)
            weights = rng.lognormal(size=size).astype(np.float32)
            row_ids = np.arange(start, start + size)
            begin = time.perf_counter()
            part = pyids.sample_by_cluster(
                labels,
                quotas,
                weights=weights,
                row_ids=row_ids,
                seed=0,
                return_keys=True,
                allow_fewer=True,
            )
            drawing += time.perf_counter() - begin
            yield part

    begin = time.perf_counter()
    drawn = pyids.merge_samples(parts(), quotas)
    return {
        "n": n,
        "budget": int(quotas.sum()),
        "drawn": len(drawn),
        "shard_rows": shard_rows,
        "seconds_drawing": drawing,
        "ns_a_row_drawing": drawing / n * 1e9,
        "seconds_with_making_the_pool_and_merging": time.perf_counter() - begin,
        "peak_resident_bytes": peak_bytes(),
        "bytes_of_the_whole_pool": n * 16,
    }


def in_subprocess(*arguments: object) -> dict:
    command = [sys.executable, __file__, *map(str, arguments)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="n = 10^6 only, no stream")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--measure-memory", nargs=2, type=float, help=argparse.SUPPRESS)
    parser.add_argument("--stream", nargs=2, type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure_memory:
        n, fraction = options.measure_memory
        print(json.dumps(measure_memory(int(n), fraction)))
        return
    if options.stream:
        n, fraction = options.stream
        print(json.dumps(stream(int(n), fraction, shard_rows=1 << 22)))
        return

    import pandas
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    results = {
        "processor": platform.processor() or platform.machine(),
        "threads": len(os.sched_getaffinity(0)),
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "torch": torch.__version__,
            "pandas": pandas.__version__,
        },
        "runs": [],
    }
    for n in [10**6] if options.quick else [10**6, 10**7]:
        for fraction in (0.01, 0.1):
            run = compare(n, fraction, options.repetitions)
            run["memory"] = in_subprocess("--measure-memory", n, fraction)
            results["runs"].append(run)
            print(f"n = {n:.0e}, {fraction:.0%}: {run['ns_a_row']:.2f} ns a row")
            for name, seconds in run["median_seconds"].items():
                ratio = seconds / run["median_seconds"]["pyids"]
                print(f"  {name:28} {seconds:8.4f} s {ratio:7.1f} x")
            for name, error in run["failed"].items():
                print(f"  {name:28} {error}")
            print(
                f"  extra memory {run['memory']['share_of_inputs']:.1%} of the inputs", flush=True
            )
    if not options.quick:
        results["stream"] = in_subprocess("--stream", 10**8, 0.01)
        print(json.dumps(results["stream"], indent=2))
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
