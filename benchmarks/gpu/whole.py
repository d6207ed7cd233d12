"""What runs beside the timings: the tests of the kernels, and one whole `pyids run`."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import ROOT, Bench, Record


def run_tests(bench: Bench) -> None:
    """Run the tests of each kernel, all files at a time; a dry run only collects them."""
    options = ["-c", "/dev/null", "--noconftest", "-q", "-p", "no:cacheprovider", "--tb=line"]
    command = [sys.executable, "-m", "pytest", *options, *["--collect-only"] * bench.dry]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": ROOT}
    paths = sorted((ROOT / "tests").glob("test_kernels*.py"))
    children = [subprocess.Popen([*command, str(path)], **pipes) for path in paths]
    for path, child in zip(paths, children, strict=True):
        lines = child.communicate()[0].strip().splitlines() or ["no output"]
        bad = [line.split(" - ")[0] for line in lines if line.startswith(("FAILED", "ERROR"))]
        # 5: nothing to run, as where a file needs the C++ core
        wrong, note = child.returncode not in (0, 5), "; ".join(bad)[:400]
        bench.add(Record("tests", path.name, "pytest", error=lines[-1], note=note, wrong=wrong))


def run_driver(bench: Bench) -> None:
    """Run `pyids run` on 2,000 rows on the GPU; built here, from the checkout, if it must be."""
    with tempfile.TemporaryDirectory() as folder:
        environment, quiet = dict(os.environ), {"check": True, "stdout": subprocess.DEVNULL}
        if importlib.util.find_spec("pyids") is None:
            pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation"]
            subprocess.run([*pip, "--target", f"{folder}/site", str(ROOT)], **quiet)
            environment["PYTHONPATH"] = f"{folder}/site"
        pool = Path(folder) / "pool.jsonl"
        sums = [(f"{a} + {b}?", f"{a + b}") for a in range(40) for b in range(25)]
        words = [(f"Spell {n:x}.", "-".join(f"{n:x}")) for n in range(10**6, 10**6 + 1000)]
        rows = ({"prompt": question, "completion": answer} for question, answer in sums + words)
        pool.write_text("".join(json.dumps(row) + "\n" for row in rows))
        command = [sys.executable, "-P", "-c", "from pyids.__main__ import main; main()", "run"]
        command += [str(pool), "--budget", "64", "--clusters", "8", "--rounds", "2"]
        command += ["--output-dir", f"{folder}/run", "--device", "cuda"]
        start = time.monotonic()
        subprocess.run(["--help" if bench.dry and c == str(pool) else c for c in command],
                       env=environment, **quiet)  # fmt: skip
        ms = None if bench.dry else 1e3 * (time.monotonic() - start)
        note = "its options only" if bench.dry else ""
        bench.add(Record("run", "2000 rows, 2 rounds", "pyids run", ms, note=note))
