"""CPU seconds until help is shown and the package is imported: what is waited for every time.

    python benchmarks/startup.py [--repeats 7]

Medians of interleaved runs, each in a process of its own; user and system time, so that a busy
machine counts little. The limit for help is 0.5 s.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
from pathlib import Path

PYIDS = str(Path(sys.executable).with_name("pyids"))
COMMANDS = {
    "python -c pass": [sys.executable, "-P", "-c", "pass"],
    "import pyids": [sys.executable, "-P", "-c", "import pyids"],
    "pyids --help": [PYIDS, "--help"],
    "pyids run --help": [PYIDS, "run", "--help"],
}
LIMIT_S = 0.5


def cpu_seconds(command: list[str]) -> float:
    """Run a command; return its user and system time."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(repeats):
        for name, command in COMMANDS.items():
            times[name].append(cpu_seconds(command))
    for name, seconds in times.items():
        median = statistics.median(seconds)
        late = median > LIMIT_S and name.endswith("--help")
        print(f"{name:18} {median:.2f} s{f', above {LIMIT_S} s' * late}")


if __name__ == "__main__":
    main()
