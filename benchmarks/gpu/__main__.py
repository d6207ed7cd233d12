"""The Triton kernels beside their anchors and the chip's own limits, in at most 8 minutes.

    python benchmarks/gpu                     all of it; a JSON file in benchmarks/results
    python benchmarks/gpu --dry-run           every op on tiny shapes, in Triton's interpreter
    python benchmarks/gpu --compile 90        every kernel for a chip that need not be here

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
import platform
import re
import signal
import subprocess
import sys
import threading
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
# Seconds that an op may take, in the order in which they run.
OPS = {
    "tests": 170.0,
    "limits": 40.0,
    "assign": 150.0,
    "loss": 110.0,
    "update": 60.0,
    "pool": 60.0,
    "lloyd": 80.0,
    "run": 90.0,
}
# What is printed in all: a short answer is a whole one.
PRINT_BYTES = 7800
PACKAGES = "torch triton numpy flash-kmeans sentence-transformers liger-kernel cut-cross-entropy"
GAUGES = "clocks.sm,clocks.mem,power.draw,temperature.gpu"


class Report:
    """What is known so far, on disk at any time and on the terminal in brief."""

    def __init__(self, path: Path | None, device: str) -> None:
        self.path, self.printed, self.cut = path, 0, 0
        self.start = time.monotonic()
        self.data: dict[str, Any] = {
            "device": device, "versions": versions(), "limits": {}, "ops": {}, "records": [],
        }  # fmt: skip

    def line(self, text: str) -> None:
        """Print a line while there is room."""
        size = len(text.encode()) + 1
        if self.printed + size > PRINT_BYTES:
            self.cut += 1
            return
        self.printed += size
        print(text, flush=True)

    def save(self) -> None:
        """Write the report; what was there before stays whole until the new one is."""
        self.data["seconds"] = round(time.monotonic() - self.start, 1)
        if self.path is not None:
            aside = self.path.with_suffix(".tmp")
            aside.write_text(json.dumps(self.data, indent=1) + "\n")
            os.replace(aside, self.path)

    def take(self, record: dict[str, Any]) -> None:
        """Add a record; the same one again, with more in it, takes its own place."""
        records, key = self.data["records"], ("op", "shape", "who")
        same = [i for i, old in enumerate(records) if all(old[k] == record[k] for k in key)]
        if same:
            records[same[-1]] = record
        else:
            records.append(record)
            self.line(row(record))
        self.save()


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


def versions() -> dict[str, str]:
    """Return the versions of what takes part."""
    found = {"python": platform.python_version()}
    for name in PACKAGES.split():
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


class Gauges:
    """Clocks, power and temperature while an op runs; nothing where there is no nvidia-smi."""

    def __init__(self) -> None:
        self.seen: list[list[float]] = []
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def _watch(self) -> None:
        command = ["nvidia-smi", f"--query-gpu={GAUGES}", "--format=csv,noheader,nounits", "-i0"]
        while not self.done.wait(0.7):
            try:
                text = subprocess.run(command, capture_output=True, text=True, timeout=5).stdout
                self.seen.append([float(value) for value in text.split(",")])
            except (OSError, ValueError, subprocess.SubprocessError):
                return

    def stop(self) -> dict[str, dict[str, float]]:
        """Return least and most of each."""
        self.done.set()
        self.thread.join(6)
        columns = zip(GAUGES.split(","), zip(*self.seen, strict=True), strict=False)
        return {name: {"least": min(v), "most": max(v)} for name, v in columns}


def run_op(report: Report, op: str, options: argparse.Namespace, seconds: float) -> bool:
    """Run one op in a process of its own and take its records; say whether it ended well."""
    command = [sys.executable, str(Path(__file__).parent / "worker.py"), op, str(seconds)]
    command += ["--dry-run"] * options.dry_run + ["--no-sweep"] * options.no_sweep
    command += ["--limits", json.dumps(report.data["limits"])]
    start, gauges = time.monotonic(), Gauges()
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    late = threading.Timer(seconds, stop, [child])
    late.start()
    said: list[str] = []
    assert child.stdout is not None
    assert child.stderr is not None
    listener = threading.Thread(target=lambda: said.extend(child.stderr), daemon=True)
    listener.start()
    for line in child.stdout:
        if line.startswith('{"limits"'):
            report.data["limits"] = json.loads(line)["limits"]
            figures = (f"{k} {v:.4g}" for k, v in report.data["limits"].items())
            report.line("limits " + ", ".join(figures))
        elif line.startswith('{"op"'):
            report.take(json.loads(line))
    code = child.wait()
    listener.join(5)
    timed_out = not late.is_alive()
    late.cancel()
    stop(child)
    report.data["ops"][op] = {
        "seconds": round(time.monotonic() - start, 1), "exit": code, "gauges": gauges.stop(),
    }  # fmt: skip
    if code:
        last = next((line.strip() for line in reversed(said) if line.strip()), "")
        why = f"not done in {seconds:.0f} s" if timed_out else f"exit {code}: {last[:90]}"
        record = {"op": op, "shape": "", "who": "FAILED", "error": why, "wrong": True}
        report.take(record | {"stderr": "".join(said)[-4000:]})
    report.save()
    return code == 0


def stop(child: subprocess.Popen[str]) -> None:
    """End a process and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


def device_name(dry: bool) -> str:
    """Return the name of the GPU; an empty string if there is none."""
    if dry:
        return "interpreter"
    program = (
        "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    return done.stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes, interpreted")
    parser.add_argument("--compile", type=int, metavar="CAPABILITY", help="90 for Hopper")
    parser.add_argument("--only", default=",".join(OPS), help="ops, separated by commas")
    parser.add_argument("--no-sweep", action="store_true", help="only the launches in use")
    parser.add_argument("--seconds", type=float, default=470.0, help="for all of it")
    parser.add_argument("--output", type=Path, help="folder (default: benchmarks/results)")
    options = parser.parse_args()
    if options.compile:
        os.environ["TRITON_INTERPRET"] = "0"
        from compile import compile_all

        return int(compile_all(options.compile))
    only = options.only.split(",")
    if unknown := set(only) - set(OPS):
        parser.error(f"no such op: {', '.join(sorted(unknown))}; there are {', '.join(OPS)}")
    name = device_name(options.dry_run)
    if not name:
        print("no CUDA device: use --dry-run, or a machine with one", file=sys.stderr)
        return 2
    folder = options.output or (None if options.dry_run else RESULTS)
    path = None
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"gpu-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.json"
    report = Report(path, name)
    report.line(f"{name}, " + ", ".join(f"{k} {v}" for k, v in report.data["versions"].items()))
    failed = []
    for op in OPS:
        if op not in only and not (op == "limits" and set(only) - {"tests", "run"}):
            continue
        left = options.seconds - (time.monotonic() - report.start)
        if left < 10.0:
            report.take({"op": op, "shape": "", "who": "NOT RUN", "error": "no time was left"})
        elif not run_op(report, op, options, min(OPS[op], left)):
            failed.append(op)
    wrong = sum(bool(record.get("wrong")) for record in report.data["records"])
    end = f"{report.cut} lines more in the JSON; " if report.cut else ""
    end += f"{wrong} wrong" if wrong else "nothing wrong"
    end += f"; failed: {', '.join(failed)}" if failed else ""
    print(f"{report.data['seconds']:.0f} s; {end}" + (f"; {path.name}" if path else ""))
    return 1 if wrong or failed else 0


if __name__ == "__main__":
    sys.exit(main())
