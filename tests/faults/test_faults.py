"""Sixty faults of every kind; `make faults N=1000` injects more."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_no_fault_loses_or_changes_anything():
    script = Path(__file__).with_name("inject.py")
    command = [sys.executable, "-P", str(script), "--trials", "60", "--seed", "2026"]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "60 trials" in result.stdout
