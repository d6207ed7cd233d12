"""bench-gpu: a dry run, a run that must not be lost; machine code for a GPU that is not here."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "benchmarks" / "gpu"


def run(*options, script=PACKAGE, **environment):
    plain = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-P", str(script), *options]
    return subprocess.run(command, capture_output=True, text=True, env=plain | environment)


@pytest.mark.slow
def test_the_dry_run_runs_every_op(tmp_path):
    done = run("--dry-run", "--output", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.encode()) <= 8192
    report = json.loads((tmp_path / "gpu-interpreter.json").read_text())
    assert not [record for record in report["records"] if record.get("wrong")]
    ours = [record for record in report["records"] if record["who"].startswith("ours")]
    assert {record["op"] for record in ours} == {"pool", "assign", "update", "loss", "lloyd"}
    assert all(record["ms"] > 0 for record in ours)
    assert {"tests", "run"} <= {record["op"] for record in report["records"]}
    others = [record for record in report["records"] if not record["who"].startswith("ours")]
    assert {"flash-kmeans float32", "chunked"} <= {record["who"] for record in others}
    assert not [record for record in others if record.get("note", "").startswith("failed")]


@pytest.mark.slow
def test_every_kernel_compiles_for_hopper_and_uses_its_tensor_cores(tmp_path):
    done = run("90", script=PACKAGE.with_name("kernel_code.py"), TRITON_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if "regs=" in line]
    assert len({line.split()[0] for line in lines}) >= 16
    for line in lines:
        assert "membar= 0" in line or line.startswith("collect"), line
        if line.startswith(("nearest", "part", "collect", "rescore")):
            assert "HGMMA" in line, line
            assert "UTMALDG" in line, line
        if line.startswith(("nearest", "part")):
            assert "stack=  0" in line, line


def test_without_a_gpu_it_says_so():
    done = run(CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    assert "no CUDA device" in done.stderr


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """Import the command as a module; its ops run a script of the test's instead."""
    spec = importlib.util.spec_from_file_location("bench_gpu", PACKAGE / "__main__.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    script = tmp_path / "op.py"

    def take(text):
        script.write_text(f"import json, sys, time\n{text}")
        monkeypatch.setattr(module, "__file__", str(script))
        return module.Report(tmp_path / "report.json", "no device")

    return module, take, tmp_path / "report.json"


RECORD = {"op": "pool", "shape": "1x1", "who": "ours", "ms": 1.0}


def test_an_op_that_crashes_or_hangs_costs_no_record(bench):
    module, take, path = bench
    say = f"print(json.dumps({RECORD!r}), flush=True)\n"
    for ending, why in (("raise OSError('lost')", "exit 1: OSError: lost"), ("time.sleep(60)", "")):
        report = take(say + ending)
        assert not module.run_op(report, "pool", True, 3.0)
        records = json.loads(path.read_text())["records"]
        assert records[0] == RECORD
        assert records[1]["who"] == "FAILED"
        assert why in records[1]["error"] or "not done in 3 s" in records[1]["error"]


def test_a_report_that_is_cut_off_is_on_disk_and_short_on_the_terminal(bench, capsys):
    module, take, path = bench
    report = take("")
    for n in range(200):
        report.take(RECORD | {"shape": f"{n}", "note": "x" * 300})
        assert len(json.loads(path.read_text())["records"]) == n + 1
    report.take(RECORD | {"shape": "7", "ms": 2.0})
    assert json.loads(path.read_text())["records"][7]["ms"] == 2.0
    assert len(capsys.readouterr().out.encode()) <= module.PRINT_BYTES
    assert report.cut > 100
