"""k-means beside faiss, scikit-learn, scikit-learn-intelex, SuperKMeans and fastkmeans on the CPU.

    make bench-cpu            the table, in about 20 minutes on two cores
    make bench-cpu FULL=1     also 500,000 x 768, k = 4096, once

Every library runs in a process of its own (its peak memory is its own, too) on the same matrix
with the same number of threads. Repeats are interleaved: all libraries, then all again; medians
are shown.
All start from the same rows, except SuperKMeans and fastkmeans, which choose their own.
The rivals live in `.venv-bench` at pinned versions. Inertia is evaluated once, in float64, here.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from measured import make_venv

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv-bench"
PINNED = (
    "torch==2.13.0",  # fastkmeans needs it; unpinned it would bring a whole CUDA toolkit
    "faiss-cpu==1.15.1",
    "scikit-learn==1.9.1",
    "scikit-learn-intelex==2026.2.0",
    "superkmeans==0.2.0",
    "fastkmeans==0.5.0",
)
RIVALS = (
    "faiss", "faiss-superkmeans", "scikit-learn", "scikit-learn-intelex", "superkmeans",
    "fastkmeans",
)  # fmt: skip
# name: (data set, clusters, iterations, what is timed, libraries)
ITERATE = ("pyids", *RIVALS)
WORKLOADS: dict[str, tuple[str, int, int, str, tuple[str, ...]]] = {
    "real, 10 iterations": ("real", 1024, 10, "fit", ITERATE),
    "real, 25 iterations": ("real", 1024, 25, "fit", ITERATE),
    "text-like 200k, 25 iterations": ("text200k", 1024, 25, "fit", ITERATE),
    "real, to convergence": ("real", 1024, 300, "fit", ("pyids", "faiss", "scikit-learn")),
    "new rows, 200k": ("text200k", 1024, 1, "predict", ("pyids", "faiss", "scikit-learn")),
    "k-means++ and 25 iterations, real": ("real", 1024, 25, "seed", ("pyids", "scikit-learn")),
    "uniform noise, 10 iterations": ("noise", 1024, 10, "fit", ("pyids", "faiss")),
}
# Minutes a run: the anchors only.
ANCHORS = ("pyids", "faiss", "scikit-learn", "superkmeans")
FULL = {"text-like 500k, 10 iterations": ("text500k", 4096, 10, "fit", ANCHORS)}


# ---- the data ------------------------------------------------------------------------------------


def text_like(n: int, d: int, n_centers: int, seed: int) -> np.ndarray:
    """Unit rows round Dirichlet-weighted centers, with the spectrum of text embeddings."""
    rng = np.random.default_rng(seed)

    def spectrum(offset: int, power: float, share: float) -> np.ndarray:
        variance = (np.arange(d) + offset) ** -power
        return np.sqrt(share * variance / variance.sum()).astype(np.float32)

    centers = rng.standard_normal((n_centers, d), dtype=np.float32) * spectrum(5, 0.9, 0.45)
    weights = rng.dirichlet(np.full(n_centers, 2.0))
    rotation = np.linalg.qr(rng.standard_normal((d, d)))[0].astype(np.float32)
    x = np.empty((n, d), dtype=np.float32)
    for part in np.array_split(np.arange(n), max(1, n // 50_000)):
        rows = rng.standard_normal((len(part), d), dtype=np.float32) * spectrum(20, 0.63, 0.55)
        rows *= np.sqrt(rng.gamma(8, 1 / 8, size=(len(part), 1))).astype(np.float32)
        rows += centers[rng.choice(n_centers, len(part), p=weights)]
        rows[:, 0] += 0.25
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        x[part] = rows @ rotation
    return x


def real(path: Path) -> np.ndarray:
    """50,000 distinct rows of the stored embeddings."""
    x = np.load(path).astype(np.float32)
    first = np.sort(np.unique(x, axis=0, return_index=True)[1])
    return np.ascontiguousarray(x[first][:50_000])


def make_data(name: str, embeddings: Path) -> np.ndarray:
    if name == "real":
        if embeddings.exists():
            return real(embeddings)
        print(f"{embeddings} is not there: 'real' is text-like rows instead", flush=True)
        return text_like(50_000, 384, 1_000, 0)
    if name == "noise":
        return np.random.default_rng(0).random((50_000, 384), dtype=np.float32)
    n, d, n_centers, seed = {
        "text200k": (200_000, 384, 3_000, 1),
        "text500k": (500_000, 768, 12_000, 2),
    }[name]
    return text_like(n, d, n_centers, seed)


# ---- one run, in a process of its own ------------------------------------------------------------


def fit_pyids(x: np.ndarray, start: np.ndarray, n: int, threads: int) -> Callable[[], Any]:
    import pyids

    model = pyids.KMeans(len(start), init=start, max_iter=n, tol=0, n_threads=threads)
    return lambda: model.fit(x).cluster_centers_


def fit_faiss(x: np.ndarray, start: np.ndarray, n: int, threads: int) -> Callable[[], Any]:
    import faiss

    faiss.omp_set_num_threads(threads)
    model = faiss.Kmeans(x.shape[1], len(start), niter=n, max_points_per_centroid=len(x))

    def run() -> Any:
        model.train(x, init_centroids=start)
        return model.centroids

    return run


def fit_faiss_superkmeans(
    x: np.ndarray, start: np.ndarray, n: int, threads: int
) -> Callable[[], Any]:
    import faiss

    faiss.omp_set_num_threads(threads)
    # It takes no start of ours.
    model = faiss.SuperKmeans(x.shape[1], len(start), niter=n, max_points_per_centroid=len(x))

    def run() -> Any:
        model.train(x)
        return model.centroids

    return run


def fit_sklearn(x: np.ndarray, start: np.ndarray, n: int, threads: int) -> Callable[[], Any]:
    from sklearn.cluster import KMeans

    model = KMeans(len(start), init=start, n_init=1, max_iter=n, tol=0, algorithm="lloyd")
    return lambda: model.fit(x).cluster_centers_


def fit_intelex(x: np.ndarray, start: np.ndarray, n: int, threads: int) -> Callable[[], Any]:
    from sklearnex.cluster import KMeans

    model = KMeans(len(start), init=start, n_init=1, max_iter=n, tol=0, algorithm="lloyd")
    return lambda: model.fit(x).cluster_centers_


def fit_superkmeans(x: np.ndarray, start: np.ndarray, n: int, threads: int) -> Callable[[], Any]:
    from superkmeans import SuperKMeans

    model = SuperKMeans(
        len(start), x.shape[1], hierarchical=False, iters=n, sampling_fraction=1.0,
        max_points_per_cluster=len(x), n_threads=threads, early_termination=False,
    )  # fmt: skip
    return lambda: model.train(x)


def fit_fastkmeans(x: np.ndarray, start: np.ndarray, n: int, threads: int) -> Callable[[], Any]:
    import torch
    from fastkmeans import FastKMeans

    torch.set_num_threads(threads)
    model = FastKMeans(x.shape[1], len(start), niter=n, tol=0, gpu=False, use_triton=False)

    def run() -> Any:
        model.train(x)
        return model.centroids

    return run


def predict_pyids(x: np.ndarray, start: np.ndarray, n: int, threads: int) -> Callable[[], Any]:
    import pyids

    model = pyids.KMeans(len(start), init=start, max_iter=1, tol=0, n_threads=threads)
    model.fit(start)
    model.cluster_centers_ = start
    return lambda: model.predict(x)


def predict_faiss(x: np.ndarray, start: np.ndarray, n: int, threads: int) -> Callable[[], Any]:
    import faiss

    faiss.omp_set_num_threads(threads)
    index = faiss.IndexFlatL2(x.shape[1])
    index.add(start)
    return lambda: index.search(x, 1)[1][:, 0]


def predict_sklearn(x: np.ndarray, start: np.ndarray, n: int, threads: int) -> Callable[[], Any]:
    from sklearn.cluster import KMeans

    model = KMeans(len(start), init=start, n_init=1, max_iter=1, tol=0).fit(start)
    model.cluster_centers_ = start
    return lambda: model.predict(x)


def seed_pyids(x: np.ndarray, start: np.ndarray, n: int, threads: int) -> Callable[[], Any]:
    import pyids

    model = pyids.KMeans(len(start), max_iter=n, tol=0, n_threads=threads)
    return lambda: model.fit(x).cluster_centers_


def seed_sklearn(x: np.ndarray, start: np.ndarray, n: int, threads: int) -> Callable[[], Any]:
    from sklearn.cluster import KMeans

    model = KMeans(len(start), n_init=1, max_iter=n, tol=0, random_state=0)
    return lambda: model.fit(x).cluster_centers_


def peak_kib(*, reset: bool = False) -> int:
    """Peak resident memory of this process, since the last reset."""
    if reset:  # a child starts with its parent's peak
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


def work(job: dict[str, Any]) -> None:
    """Run one job: load, build, time, and report on standard output."""
    x, start = np.load(job["x"]), np.load(job["start"])
    names = {
        "scikit-learn": "sklearn",
        "scikit-learn-intelex": "intelex",
        "faiss-superkmeans": "faiss_superkmeans",
    }
    name = names.get(job["library"], job["library"])
    run = globals()[f"{job['task']}_{name}"](x, start, job["n_iter"], job["threads"])
    before = peak_kib(reset=True)
    began = time.perf_counter()
    result = run()
    seconds = time.perf_counter() - began
    peak = peak_kib()
    if job["task"] != "predict":
        np.save(job["out"], np.asarray(result, dtype=np.float32))
    print(json.dumps({"seconds": seconds, "extra_mb": (peak - before) / 1024}))


# ---- the comparison ------------------------------------------------------------------------------


def sgemm_peak(threads: int) -> float:
    """Best of many float32 products, in GFLOP/s."""
    a = np.random.default_rng(0).random((4096, 768), dtype=np.float32)
    b = np.random.default_rng(1).random((768, 2048), dtype=np.float32)
    best = 0.0
    for _ in range(12):
        began = time.perf_counter()
        a @ b
        best = max(best, 2 * 4096 * 768 * 2048 / (time.perf_counter() - began) / 1e9)
    return best


def run_once(library: str, job: dict[str, Any], environment: dict[str, str]) -> dict[str, float]:
    python = sys.executable if library == "pyids" else str(VENV / "bin" / "python")
    command = [python, "-P", "-W", "ignore", __file__, "--work", json.dumps(job)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{library}: {done.stderr.strip().splitlines()[-1]}")
    result: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def inertia(x: np.ndarray, centers: np.ndarray, threads: int) -> float:
    from pyids.clustering import lloyd

    extent = lloyd.measure(x, n_threads=threads)
    rows = lloyd.ShardPass(x, len(centers), extent, n_threads=threads)
    values = centers.astype(np.float64)
    rows.assign(values)
    return float(rows.inertia() * 2.0 ** -extent.inertia_shift(values))


def compare(
    name: str, arguments: argparse.Namespace, folder: Path, peak: float
) -> list[dict[str, Any]]:
    data, k, n_iter, task, libraries = (WORKLOADS | FULL)[name]
    libraries = tuple(one for one in libraries if one in arguments.libraries)
    threads = arguments.threads
    path = folder / f"{data}.npy"
    if not path.exists():
        np.save(path, make_data(data, arguments.embeddings))
    x = np.load(path, mmap_mode="r")
    chosen = np.sort(np.random.default_rng(0).choice(len(x), k, replace=False))
    np.save(folder / "start.npy", np.ascontiguousarray(x[chosen]))
    limits = {f"{v}_NUM_THREADS": str(threads) for v in ("OMP", "OPENBLAS", "MKL")}
    environment = {**os.environ, **limits}
    runs: dict[str, list[dict[str, float]]] = {library: [] for library in libraries}
    values: dict[str, float] = {}
    repeats = 1 if name in FULL else arguments.repeats
    for repeat in range(repeats):
        for library in libraries:
            job = {
                "library": library, "task": task, "n_iter": n_iter, "threads": threads,
                "x": str(path), "start": str(folder / "start.npy"), "out": str(folder / "c.npy"),
            }  # fmt: skip
            runs[library].append(run_once(library, job, environment))
            if repeat == 0 and task != "predict":
                values[library] = inertia(np.load(path), np.load(folder / "c.npy"), threads)
    flops = 2.0 * x.shape[0] * k * x.shape[1] * (n_iter if n_iter < 300 else 1)
    own = statistics.median(run["seconds"] for run in runs[libraries[0]])
    rows = []
    for library in libraries:
        seconds = [run["seconds"] for run in runs[library]]
        middle = statistics.median(seconds)
        rows.append({
            "work": name, "library": library, "seconds": middle, "all_seconds": seconds,
            "times_pyids": middle / own, "inertia": values.get(library),
            "extra_mb": max(run["extra_mb"] for run in runs[library]),
            "matrix_mb": x.size * 4 / 2**20,
            "of_gemm_floor": middle / (flops / peak / 1e9) if n_iter < 300 else None,
        })  # fmt: skip
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    print(f"\n{rows[0]['work']}")
    print(
        f"  {'library':22}{'seconds':>9}{'x pyids':>9}{'floor':>8}{'extra MB':>10}{'inertia':>14}"
    )
    for row in rows:
        floor = f"{row['of_gemm_floor']:.2f}" if row["of_gemm_floor"] else "-"
        value = f"{row['inertia']:.6g}" if row["inertia"] else "-"
        print(
            f"  {row['library']:22}{row['seconds']:9.3f}{row['times_pyids']:9.2f}{floor:>8}"
            f"{row['extra_mb']:10.0f}{value:>14}",
            flush=True,
        )


def plot(results: list[dict[str, Any]]) -> str:
    """Bars of seconds relative to pyids, by workload, as SVG."""
    bar, left, unit = 16, 190, 36
    parts, y = [], 0
    for name in dict.fromkeys(row["work"] for row in results):
        y += 26
        parts.append(f'<text x="0" y="{y}" font-weight="bold">{name}</text>')
        for row in (row for row in results if row["work"] == name):
            y += bar + 3
            width = row["times_pyids"] * unit
            color = "#0072b2" if row["library"] == "pyids" else "#999999"
            parts.append(
                f'<text x="{left - 8}" y="{y}" text-anchor="end">{row["library"]}</text>'
                f'<rect x="{left}" y="{y - 12}" width="{width:.0f}" height="{bar}" fill="{color}"/>'
                f'<text x="{left + width + 6:.0f}" y="{y}">{row["times_pyids"]:.1f}x '
                f"({row['seconds']:.2f} s)</text>"
            )
    width = left + 130 + unit * max(row["times_pyids"] for row in results)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{y + 12}" '
        'font-family="sans-serif" font-size="12">\n' + "\n".join(parts) + "\n</svg>\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="also 500,000 x 768, k = 4096")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="*", help="workloads whose name contains one of these")
    parser.add_argument("--libraries", nargs="*", default=list(ITERATE))
    parser.add_argument(
        "--embeddings", type=Path, default=ROOT / "shared" / "data" / "pool_minilm_f16.npy"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(json.loads(arguments.work))
        return
    make_venv(VENV, PINNED)
    from pyids import _core

    peak = sgemm_peak(arguments.threads)
    level = _core.simd_level()
    print(f"{arguments.threads} threads, {level}, sgemm {peak:.0f} GFLOP/s", flush=True)
    wanted = [
        name
        for name in (WORKLOADS | FULL if arguments.full else WORKLOADS)
        if not arguments.only or any(part in name for part in arguments.only)
    ]
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for name in wanted:
            rows = compare(name, arguments, Path(folder), peak)
            show(rows)
            results += rows
    arguments.out.mkdir(parents=True, exist_ok=True)
    target = arguments.out / f"cpu-{level}.json"
    about = {
        "date": datetime.now(UTC).date().isoformat(), "threads": arguments.threads, "simd": level,
        "sgemm_gflops": peak, "python": platform.python_version(), "versions": PINNED,
        "results": results,
    }  # fmt: skip
    target.write_text(json.dumps(about, indent=1) + "\n")
    target.with_suffix(".svg").write_text(plot(results))
    print(f"\nwritten to {target.name}")


if __name__ == "__main__":
    main()
