"""Sixty faults of every kind, and damage of each file; `make faults N=1000` does more of both."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


def injected(script, *options):
    command = [sys.executable, "-P", str(Path(__file__).with_name(script)), *options]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.mark.slow
def test_no_fault_loses_or_changes_anything():
    result = injected("inject.py", "--trials", "60", "--seed", "2026")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "60 trials" in result.stdout


@pytest.mark.slow
def test_damage_of_each_file_is_mended_or_named():
    """One damage of each file, and one command after it; `sweep.py` tries all of them."""
    result = injected("sweep.py", "--each-file")
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"^\d\d cases", result.stdout, re.MULTILINE), result.stdout
