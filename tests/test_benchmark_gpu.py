"""bench-gpu's dry run, and the kernels' machine code for a GPU that is not here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


def run(*options, **environment):
    plain = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-P", str(SCRIPT), *options]
    return subprocess.run(command, capture_output=True, text=True, env=plain | environment)


@pytest.mark.slow
def test_the_dry_run_runs_every_op(tmp_path):
    done = run("--dry-run", "--output-dir", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "gpu-interpreter.json").read_text())
    assert report["wrong"] == []
    ours = [record for record in report["records"] if record["who"].startswith("ours")]
    assert {record["op"] for record in ours} == {"pool", "assign", "update", "loss", "lloyd"}
    assert all(record["ms"] > 0 for record in ours)
    others = [record for record in report["records"] if not record["who"].startswith("ours")]
    assert {"flash-kmeans float32", "chunked torch"} <= {record["who"] for record in others}
    assert not [record for record in others if record["note"].startswith("failed")]


@pytest.mark.slow
def test_every_kernel_compiles_for_hopper_and_uses_its_tensor_cores(tmp_path):
    done = run("--compile", "90", TRITON_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    kernels = {line.split()[0] for line in done.stdout.splitlines() if "registers=" in line}
    assert len(kernels) >= 17
    for line in done.stdout.splitlines():
        if line.startswith(("_nearest_kernel", "_part_kernel")):
            assert "HGMMA" in line, line
            assert "UTMALDG" in line, line


def test_without_a_gpu_it_says_so():
    done = run(CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    assert "no CUDA device" in done.stderr
