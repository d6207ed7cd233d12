"""`pyids clean`: what may go is said with its size, a terminal is asked first, and no script is."""

import os
import pty
import subprocess
import sys

import pytest
from click.testing import CliRunner

import pyids
from pyids.cli import cli


@pytest.fixture
def folder(pool, tmp_path):
    with pyids.Selection.open(tmp_path / "run", **pool.options()) as selection:
        selection.draw()
        selection.export_probes()
    return tmp_path / "run"


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run(*arguments):
    done = CliRunner().invoke(cli, ["clean", *map(str, arguments)])
    assert done.exit_code == 0, done.output
    return done.output


def at_a_terminal(folder, *arguments, answer=""):
    """Run the command with a terminal to read from; its exit code, and what it wrote."""
    ours, its = pty.openpty()
    os.write(ours, f"{answer}\n".encode())
    command = [sys.executable, "-P", "-m", "pyids", "clean", str(folder), *arguments]
    done = subprocess.run(
        command, stdin=its, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300
    )
    os.close(ours)
    os.close(its)
    return done.returncode, done.stdout


def test_without_a_stage_it_says_what_each_takes_and_removes_nothing(folder):
    before = files(folder)
    shown = run(folder)
    sizes = {line.split()[0]: line.split()[1:3] for line in shown.splitlines()}
    vectors = sum(path.stat().st_size for path in (folder / "embeddings").iterdir())
    assert sizes["embed"] == [f"{vectors / 1024:.1f}", "KiB"]
    assert list(sizes)[:-1] == ["read", "embed", "cluster", "rounds", "export"]
    assert "nothing was removed" in shown
    assert files(folder) == before


def test_a_script_is_not_asked(folder):
    assert run(folder, "--stage", "rounds").split() == ["rounds"]
    assert not (folder / "rounds").exists()
    assert run(folder, "--stage", "near-duplicates") == "nothing to remove\n"


@pytest.mark.parametrize(
    ("arguments", "answer", "goes"), [((), "n", False), ((), "y", True), (("--yes",), "", True)]
)
def test_a_terminal_is_asked_first(folder, arguments, answer, goes):
    before = files(folder)
    code, shown = at_a_terminal(folder, "--stage", "embed", *arguments, answer=answer)
    assert (code == 0) == goes
    assert ("remove embeddings" in shown) == (not arguments)
    assert (folder / "embeddings").exists() != goes
    assert "Traceback" not in shown
    if not goes:
        assert files(folder) == before


def test_a_folder_of_another_is_refused(tmp_path):
    done = CliRunner().invoke(cli, ["clean", str(tmp_path)])
    assert done.exit_code != 0
    assert "not a run folder" in done.output
    assert done.output.count("\n") == 1


def test_a_folder_that_waits_for_scores_says_so(folder):
    done = CliRunner().invoke(cli, ["status", str(folder)])
    assert "waits for the scores of your trainer" in done.output.splitlines()[0]
