"""What the benchmarks share that measure many things once, each in a process of its own."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import venv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


def read_pool(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a .jsonl or .jsonl.gz file."""
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def peak_kib() -> int:
    """Return the most memory that this process has held.

    Not getrusage's figure: that begins with what the parent held when it forked.
    """
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def in_own_process(script: str, *arguments: object) -> dict[str, Any]:
    """Run a script with these arguments; return the JSON object of its last line, and print it."""
    command = [sys.executable, script, *map(str, arguments)]
    out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    last = out.splitlines()[-1]
    print(last, flush=True)
    return json.loads(last)


def make_venv(folder: Path, packages: Sequence[str]) -> None:
    """Make an environment with the packages of others, unless it is there."""
    python, stamp = folder / "bin" / "python", folder / ".ready"
    if stamp.exists() and stamp.read_text() == "\n".join(packages):
        return
    if not python.exists():
        venv.create(folder, with_pip=True)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "-q", "install"]
    subprocess.run([*pip, *packages], check=True)
    stamp.write_text("\n".join(packages))
