"""Every script of examples/ runs, without a network, and says what it promises."""

import runpy
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
def test_an_example_runs(name, tmp_path, monkeypatch, capsys):
    needs, says = SCRIPTS[name]
    for package in needs:
        pytest.importorskip(package, reason=f"the package {package} is not installed")
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    try:
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    finally:
        for module in (set(sys.modules) - before) & {"small", *SCRIPTS}:
            del sys.modules[module]
    said = capsys.readouterr().out
    for words in says:
        assert words in said
    assert not list(tmp_path.iterdir())
