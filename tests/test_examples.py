"""Every script of examples/ runs, without a network, and says what it promises."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
# Script: what it needs, and what it must print.
SCRIPTS = {
    "run_from_python": (("transformers", "datasets"), ["round 2: weights [", "rows        24"]),
    "own_trainer": (("torch", "datasets"), ["30 rows, loss of unseen ones", "selected.jsonl"]),
    "sklearn_pipeline": (("sklearn",), ["agreement with the topics: 1.00", "300 rows: ["]),
    "own_method": ((), ["rows        20"]),
    "own_scorer": (("transformers",), ["rows        24"]),
    "export_to_trl": (("trl",), ["TRL trained on 16 rows"]),
}


def test_every_script_is_tested_and_listed():
    scripts = {path.stem for path in EXAMPLES.glob("*.py")} - {"small"}
    assert scripts == SCRIPTS.keys()
    page = (EXAMPLES / "README.md").read_text()
    assert all(f"({name}.py)" in page for name in scripts)


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_example_runs(name, tmp_path):
    needs, says = SCRIPTS[name]
    for package in needs:
        pytest.importorskip(package, reason=f"the package {package} is not installed")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TMPDIR": str(tmp_path)}
    out = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert out.returncode == 0, out.stderr
    for words in says:
        assert words in out.stdout
    assert not list(tmp_path.iterdir())
