"""The scale gate in small: memory that does not grow with the pool, bytes that stay the same."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCALE = Path(__file__).parents[1] / "benchmarks" / "scale.py"


@pytest.mark.slow
def test_memory_stays_bounded_and_workers_and_kills_change_no_byte(tmp_path):
    results = tmp_path / "scale.json"
    options = ["--rows", "20000", "60000", "--clusters", "16", "--dimensions", "32", "--no-time"]
    command = [sys.executable, "-P", str(SCALE), *options, "--results", str(results)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    figures = json.loads(results.read_text())["figures"]
    assert [(figure["rows"], figure["case"]) for figure in figures] == [
        (20000, "alone"), (20000, "two"), (20000, "killed"), (60000, "alone")
    ]  # fmt: skip
    assert all(figure["peaks_mb"]["import"] > 20 for figure in figures)  # it was really measured
