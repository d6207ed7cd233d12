"""One op of the benchmark, in this process; a JSON object a line for whoever started it."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

if "--dry-run" in sys.argv:
    # Before triton is imported: it decides then whether it interprets.
    os.environ["TRITON_INTERPRET"] = "1"

import torch
from harness import ROOT, Bench, Record, load_kernels
from kmeans import bench_assign, bench_lloyd, bench_update
from loss import bench_loss
from pooling import bench_pool

KERNELS = {
    "assign": bench_assign,
    "loss": bench_loss,
    "update": bench_update,
    "pool": bench_pool,
    "lloyd": bench_lloyd,
}


def run_tests(bench: Bench) -> None:
    """Run the tests of each kernel, all files at a time; a dry run only collects them."""
    options = ["-c", "/dev/null", "--noconftest", "-q", "-p", "no:cacheprovider", "--tb=line"]
    options += ["--collect-only"] if bench.dry else []
    started = []
    for path in sorted((ROOT / "tests").glob("test_kernels*.py")):
        command = [sys.executable, "-P", "-m", "pytest", *options, str(path)]
        child = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
        )
        started.append((path.name, child))
    for name, child in started:
        lines = child.communicate()[0].strip().splitlines() or ["no output"]
        bad = [line.split(" - ")[0] for line in lines if line.startswith(("FAILED", "ERROR"))]
        # 5: nothing to run, as where a file needs the C++ core
        wrong = child.returncode not in (0, 5)
        note = "; ".join(bad)[:400]
        bench.add(Record("tests", name, "pytest", error=lines[-1], note=note, wrong=wrong))


def run_driver(bench: Bench) -> None:
    """Run `pyids run` on a pool of few rows, on this device; built here if it is not installed."""
    rows, budget = (60, 8) if bench.dry else (2000, 64)
    with tempfile.TemporaryDirectory() as folder:
        environment = dict(os.environ)
        if importlib.util.find_spec("pyids") is None:
            wheel = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation"]
            subprocess.run([*wheel, "-q", "--target", f"{folder}/site", str(ROOT)], check=True)
            environment["PYTHONPATH"] = f"{folder}/site"
        pool = Path(folder) / "pool.jsonl"
        pool.write_text("".join(json.dumps(conversation(n)) + "\n" for n in range(rows)))
        command = [sys.executable, "-P", "-m", "pyids.cli", "run", str(pool)]
        command += ["--budget", str(budget), "--clusters", "8", "--rounds", "2", "--seed", "0"]
        command += ["--output", f"{folder}/run"]
        command += [] if bench.dry else ["--device", "cuda"]
        start = time.monotonic()
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        seconds = time.monotonic() - start
        bench.add(Record("run", f"{rows} rows, 2 rounds", "pyids run", ms=1e3 * seconds))


def conversation(n: int) -> dict[str, list[dict[str, str]]]:
    """Return one row of a pool with a few kinds of question."""
    a, b = n % 97, n // 97
    kinds = [
        (f"What is {a} plus {b}?", f"{a + b}"),
        (f"Spell {chr(97 + a % 26) * 3}.", "-".join(chr(97 + a % 26) * 3)),
        (f"Is {a} larger than {b}?", "Yes." if a > b else "No."),
    ]
    question, answer = kinds[n % 3]
    turns = (("user", question), ("assistant", answer))
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("op")
    parser.add_argument("seconds", type=float)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--no-sweep", action="store_true")
    parser.add_argument("--limits", type=json.loads, default={})
    options = parser.parse_args()
    # Sweeps end when half of the op's time is over: anchors are worth more than they.
    deadline = time.monotonic() + 0.5 * options.seconds
    if options.op == "tests" or options.op == "run":
        bench = Bench(options.op, True, False, deadline)
        bench.dry = options.dry_run
        (run_tests if options.op == "tests" else run_driver)(bench)
        return
    torch.manual_seed(0)
    bench = Bench(options.op, options.dry_run, not options.no_sweep, deadline)
    bench.limits = options.limits
    with torch.inference_mode():
        if options.op == "limits":
            bench.measure_limits()
        else:
            KERNELS[options.op](bench, load_kernels())


if __name__ == "__main__":
    main()
