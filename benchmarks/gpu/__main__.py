"""The Triton kernels beside their anchors and the chip's own limits, in at most 8 minutes.

    python benchmarks/gpu                     all of it; a JSON file in benchmarks/results
    python benchmarks/gpu --dry-run           every op on tiny shapes, in Triton's interpreter

Needs the checkout, torch and triton; nothing is built. Anchors are timed where their packages are
found. Every op runs in a process of its own: one that crashes, hangs or runs out of memory is a row
of the report and costs no other. The report is written anew after each record, so that whoever
ends the run early keeps what it had.

The order is that of what must be known first: are the kernels right on this chip, then assignment,
loss, update, pooling, whole fits, a whole `pyids run`. A time is the median of repetitions between
device events; a floor is the op's bytes or operations over the copy bandwidth or matrix rate
measured here, now; a ratio is the anchor's time over ours, on the same tensors in the same process.
Exit code 1 means that a result was wrong or an op failed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "results"
# Seconds that an op may take, in the order in which they run.
OPS = {"tests": 170, "limits": 40, "assign": 150, "loss": 110, "update": 60, "pool": 60,
       "lloyd": 80, "run": 180}  # fmt: skip
# What is printed in all: a short answer is a whole one.
PRINT_BYTES = 7700
PACKAGES = "torch triton numpy flash-kmeans liger-kernel cut-cross-entropy sentence-transformers"
GAUGES = "clocks.sm,clocks.mem,power.draw,temperature.gpu"


class Report:
    """What is known so far, on disk at any time and on the terminal in brief."""

    def __init__(self, path: Path | None, device: str) -> None:
        self.path, self.printed, self.cut, self.start = path, 0, 0, time.monotonic()
        found = {d.name.lower(): d.version for d in distributions() if d.name in PACKAGES.split()}
        self.data: dict[str, Any] = {"device": device, "versions": found, "limits": {}, "ops": {}}
        self.records: list[dict[str, Any]] = []

    def line(self, text: str) -> None:
        """Print a line while there is room."""
        size = len(text.encode()) + 1
        room = self.printed + size <= PRINT_BYTES
        self.printed, self.cut = self.printed + size * room, self.cut + (not room)
        if room:
            print(text, flush=True)

    def take(self, record: dict[str, Any] | None = None) -> None:
        """Add a record, or put it in the place of an earlier state of itself; write the report."""
        if record is not None:
            names = [[old[key] for key in ("op", "shape", "who")] for old in self.records]
            name = [record[key] for key in ("op", "shape", "who")]
            if name in names:
                self.records[names.index(name)] = record
            else:
                self.records.append(record)
                self.line(row(record))
        if self.path is not None:
            seconds = round(time.monotonic() - self.start, 1)
            aside = self.path.with_suffix(".tmp")
            whole = self.data | {"seconds": seconds, "records": self.records}
            aside.write_text(json.dumps(whole, indent=1) + "\n")
            os.replace(aside, self.path)


def row(record: dict[str, Any]) -> str:
    """Return the table's line: op, shape, who, ms, share of the floor, ratio, errors and notes."""
    ms, floor, ratio = (record.get(k) for k in ("ms", "floor_ms", "ratio_to_ours"))
    numbers = f"{ms:9.3f}" if ms is not None else " " * 9
    numbers += f" {floor / ms:4.0%}" if ms and floor else " " * 5
    numbers += f" {ratio:5.2f}x" if ratio is not None else ""
    tail = "; ".join(part for part in (record.get("error"), record.get("note")) if part)
    wrong = "WRONG " if record.get("wrong") else ""
    line = f"{record['op']:6} {record['shape']} | {record['who']}{numbers} {wrong}{tail}"
    return line.rstrip()[:150]


def run_op(report: Report, op: str, dry: bool, seconds: float) -> bool:
    """Run one op in a process of its own and take its records; say whether it ended well."""
    own = {"stdout": subprocess.PIPE, "text": True, "start_new_session": True}
    command = [sys.executable, __file__, "--op", op, "--seconds", str(seconds)]
    command += ["--limits", json.dumps(report.data["limits"]), *["--dry-run"] * dry]
    start, said, gauges, watch = time.monotonic(), list[str](), list[list[float]](), None
    with contextlib.suppress(FileNotFoundError):
        query = ["nvidia-smi", f"--query-gpu={GAUGES}", "--format=csv,noheader,nounits", "-lms700"]
        watch = subprocess.Popen([*query, "-i0"], stderr=subprocess.DEVNULL, **own)
    child = subprocess.Popen(command, stderr=subprocess.PIPE, **own)
    late = threading.Timer(seconds, end, [child])
    listener = threading.Thread(target=lambda: said.extend(child.stderr), daemon=True)
    late.start()
    listener.start()
    for line in child.stdout:
        if line.startswith('{"limits"'):
            report.data |= json.loads(line)
            report.line(line.strip())
        elif line.startswith('{"op"'):
            report.take(json.loads(line))
    code, timed_out = child.wait(), not late.is_alive()
    late.cancel()
    end(child)
    listener.join(5)
    if watch is not None:
        end(watch)
        for line in watch.communicate()[0].splitlines():
            with contextlib.suppress(ValueError):
                gauges.append([float(value) for value in line.split(",")])
    ranges = {
        name: [min(v), max(v)]
        for name, v in zip(GAUGES.split(","), zip(*gauges, strict=False), strict=False)
    }
    report.data["ops"][op] = {"seconds": round(time.monotonic() - start, 1), "exit": code, **ranges}
    if code:
        last = next((line.strip() for line in reversed(said) if line.strip()), "")
        why = f"not done in {seconds:.0f} s" if timed_out else f"exit {code}: {last[:90]}"
        record = {"op": op, "shape": "", "who": "FAILED", "error": why, "wrong": True}
        report.take(record | {"stderr": "".join(said)[-4000:]})
    report.take()
    return code == 0


def end(child: subprocess.Popen[str]) -> None:
    """End a process and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


def work(options: argparse.Namespace) -> None:
    """Run one op in this process; whoever started it reads a JSON object a line."""
    import harness
    import kmeans
    import loss
    import pooling
    import torch
    import whole

    # Sweeps end when half of the op's time is over: anchors are worth more than they.
    deadline = time.monotonic() + 0.5 * options.seconds
    bench = harness.Bench(options.op, options.dry_run, options.limits, deadline)
    if options.op in ("tests", "run"):
        return (whole.run_tests if options.op == "tests" else whole.run_driver)(bench)
    torch.manual_seed(0)
    modules = {"loss": loss, "pool": pooling}
    with torch.inference_mode():
        if options.op == "limits":
            return bench.measure_limits()
        function = getattr(modules.get(options.op, kmeans), f"bench_{options.op}")
        return function(bench, harness.load_kernels())


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes, interpreted")
    parser.add_argument("--only", default=",".join(OPS), help="ops, separated by commas")
    parser.add_argument("--seconds", type=float, default=470.0, help="for all of it")
    parser.add_argument("--output", type=Path, help="folder (default: benchmarks/results)")
    parser.add_argument("--op", choices=OPS, help=argparse.SUPPRESS)
    parser.add_argument("--limits", type=json.loads, default={}, help=argparse.SUPPRESS)
    options = parser.parse_args()
    # Triton decides when it is imported whether it interprets.
    os.environ["TRITON_INTERPRET"] = str(int(options.dry_run))
    if options.op:
        return work(options) or 0
    only = set(options.only.split(","))
    if unknown := only - set(OPS):
        parser.error(f"no such op: {', '.join(sorted(unknown))}; there are {', '.join(OPS)}")
    program = (
        "import torch; print(torch.cuda.is_available() and torch.cuda.get_device_name() or '')"
    )
    ask = [sys.executable, "-c", program]
    name = "interpreter"
    if not options.dry_run:
        name = subprocess.run(ask, stdout=subprocess.PIPE, text=True).stdout.strip()
    if not name:
        print("no CUDA device: use --dry-run, or a machine with one", file=sys.stderr)
        return 2
    folder, path = options.output or (None if options.dry_run else RESULTS), None
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"gpu-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.json"
    report, failed = Report(path, name), []
    report.line(f"{name}, " + ", ".join(f"{k} {v}" for k, v in report.data["versions"].items()))
    for op in [op for op in OPS if op in only or (op == "limits" and only - {"tests", "run"})]:
        left = options.seconds * (1 + 9 * options.dry_run) - (time.monotonic() - report.start)
        if left < 10.0:
            report.take({"op": op, "shape": "", "who": "NOT RUN", "error": "no time was left"})
        elif not run_op(
            report, op, options.dry_run, left if options.dry_run else min(OPS[op], left)
        ):
            failed.append(op)
    wrong = sum(bool(record.get("wrong")) for record in report.records)
    cut = f"; {report.cut} lines more in the JSON" if report.cut else ""
    print(f"{time.monotonic() - report.start:.0f} s; {wrong} wrong; failed: {failed or None}{cut}")
    return 1 if wrong or failed else 0


if __name__ == "__main__":
    sys.exit(main())
