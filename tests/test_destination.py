"""What a command writes replaces nothing of the user's, and nothing of a run's."""

import json
import os

import numpy as np
import pytest
from click.testing import CliRunner

import pyids
from pyids import Selection
from pyids.cli import cli
from pyids.data.export import FORMATS
from pyids.errors import ConfigError
from pyids.report.page import write_report
from pyids.store.manifest import verify


def invoke(*words):
    return CliRunner().invoke(cli, ["-q", *map(str, words)])


def contents(folder):
    """Every file below a folder, and what it holds; locks are not looked at."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".lock")
    }


@pytest.fixture
def ended(pool, tmp_path):
    held = tmp_path / "held.jsonl"
    held.write_text("".join(json.dumps(row) + "\n" for row in pool.rows[:5]))
    with Selection.open(tmp_path / "R", **pool.options(rounds=1)) as selection:
        selection.ask()
        selection.tell({int(row): 1.0 for row in selection.probes()})
        selection.finish()
    return tmp_path


def refused(folder, *words, says):
    before = contents(folder)
    result = invoke(*words)
    assert result.exit_code == 2, result.output
    assert result.output.count("\n") == 1
    assert says in result.output
    assert contents(folder) == before


def test_an_input_is_never_an_output(ended, pool, monkeypatch):
    monkeypatch.chdir(ended)
    os.symlink("pool.jsonl", "link.jsonl")
    (ended / "options.json").write_text('{"seed": 3}')
    vectors = pool.vectors.name
    data = pool.path.name
    select = ("select", data, "--method", "random", "--budget", 5, "--output-dir", "S")
    for words in (
        ("report", "R", "--to", data),
        ("report", "R", "--to", "link.jsonl"),
        ("compare", data, "held.jsonl", "--json", data),
        ("compare", data, "held.jsonl", "--html", "held.jsonl"),
        ("eval", "model", "held.jsonl", "--json", "held.jsonl"),
        ("export", "R", "--to", data),
        ("export", "R", "--format", "indices", "--to", vectors),
        ("export", "R", "--format", "indices", "--to", "./R/../" + vectors),
        (*select, "--to", data),
        ("select", "R", *select[2:-2], "--to", data),
        ("select", "R", *select[2:-2], "--exclude", "held.jsonl", "--to", "held.jsonl"),
        (*select, "--config", "options.json", "--to", "options.json"),
        (*select, "--exclude", "held.jsonl", "--to", "held.jsonl"),
        (*select, "--exclude", "*held.jsonl", "--to", "held.jsonl"),
        (*select, "--already", "held.jsonl", "--to", "held.jsonl"),
    ):
        refused(ended, *words, says="an input of this command")
    assert not (ended / "S").exists()  # before any work
    os.rename("held.jsonl", "excluded-out.jsonl")  # the list of what was excluded has that name
    to = ("--exclude", "excluded-out.jsonl", "--to", "out.jsonl")
    refused(ended, *select, *to, says="an input of this command")
    with Selection.open("R") as selection, pytest.raises(ConfigError, match="an input"):
        selection.export(vectors, format="indices")
    with pytest.raises(ConfigError, match="an input"):
        pyids.select("random", to=data, data=data, budget=5, output_dir="S")


def test_nothing_of_a_run_is_written_over(ended, monkeypatch):
    monkeypatch.chdir(ended)
    os.symlink("R", "to-run")
    select = ("select", "R", "--method", "random", "--budget", 5, "--to")
    for words in (
        ("report", "R", "--to", "R/manifest.json"),
        ("report", "R", "--to", "R/rows/00000-0000.parquet"),
        ("report", "R", "--to", "to-run/manifest.json"),
        ("export", "R", "--format", "trl", "--to", "R"),
        ("export", "R", "--format", "trl", "--to", "R/rows"),
        ("export", "R", "--format", "indices", "--to", "R/config.yaml"),
        ("export", "R", "--to", "to-run/rounds"),
        ("compare", "pool.jsonl", "held.jsonl", "--json", "R/manifest.json"),
        ("eval", "model", "held.jsonl", "--json", "R/identity.json"),
        (*select, "R/selected.jsonl"),
        (*select, "R"),
        (*select, "R/x.jsonl"),
    ):
        refused(ended, *words, says="among the files of the run")
    before = contents(ended)
    with Selection.open("R") as selection:
        for place, format in (("config.yaml", "indices"), ("rows/foo.jsonl", "jsonl"), ("", "trl")):
            with pytest.raises(ConfigError, match="among the files of the run"):
                selection.export(f"R/{place}", format=format)
        with pytest.raises(ConfigError, match="among the files of the run"):
            write_report("R", "R/config.yaml")
    # A run folder that is not there yet is one, too.
    new = ("--method", "random", "--budget", 5, "--output-dir", "new", "--to", "new/x.jsonl")
    refused(ended, "select", "pool.jsonl", *new, says="among the files of the run")
    assert contents(ended) == before
    for words in (
        ("export", "R"),
        ("export", "R", "--to", "R/selected.jsonl"),
        ("export", "R", "--format", "trl", "--to", "R/selected-mine"),
        ("export", "R", "--to", "R/selected-mine.jsonl"),
        (*select, "R/selected-few.jsonl"),
        ("report", "R"),
        ("report", "R", "--to", "R"),
        ("report", "R", "--to", "R/report.html"),
    ):
        for _ in range(2):  # what they wrote themselves they may write again
            result = invoke(*words)
            assert result.exit_code == 0, result.output
    assert verify(ended / "R") == []


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (("export", "R", "--to"), "x.jsonl"),
        (("export", "R", "--format", "parquet", "--to"), "x.parquet"),
        (("export", "R", "--format", "indices", "--to"), "x.npy"),
        (("select", "R", "--method", "random", "--budget", 5, "--to"), "x.json"),
        (("report", "R", "--to"), "x.html"),
        (("compare", "pool.jsonl", "held.jsonl", "--json"), "x.json"),
        (("compare", "pool.jsonl", "held.jsonl", "--html"), "x.html"),
        (("eval", "model", "held.jsonl", "--json"), "x.json"),
    ],
)
def test_a_file_of_something_else_stays_and_an_earlier_output_is_replaced(
    words, name, ended, monkeypatch
):
    monkeypatch.chdir(ended)
    foreign = b"\x93NUMPY" if name.endswith("npy") else b'{"mine": 1}\n'
    (ended / name).write_bytes(foreign)
    refused(ended, *words, name, says="holds something else")
    if words[0] != "eval":  # for want of a model
        (ended / name).unlink()
        for _ in range(2):
            result = invoke(*words, name)
            assert result.exit_code == 0, result.output
            assert (ended / name).read_bytes() != foreign


def test_the_map_and_the_files_of_trainers_replace_no_others(ended, monkeypatch):
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.chdir(ended)
    pq.write_table(pa.table({"country": ["A"]}), "map.parquet")
    refused(ended, "report", "R", "--to", "r.html", says="map.parquet: holds something else")
    (ended / "t").mkdir()
    for format, name, text in (
        ("llamafactory", "dataset_info.json", '{"mine": {}, "pyids_selected": {}}'),
        ("axolotl", "axolotl.yaml", "base_model: x\ndatasets: []\n"),
        ("trl", "sft.yaml", "learning_rate: 1\n"),
    ):
        (ended / "t" / name).write_text(text)
        to = ("export", "R", "--format", format, "--to", "t")
        refused(ended, *to, says=f"t/{name}: holds something else")
        (ended / "t" / name).unlink()
        for _ in range(2):
            assert invoke(*to).exit_code == 0


def test_a_card_replaces_no_file_of_something_else(ended, monkeypatch):
    monkeypatch.chdir(ended)
    for name in ("README.md", "x.README.md"):
        (ended / name).write_text("mine")
    assert invoke("export", "R", "--to", "x.jsonl").exit_code == 0
    assert [(ended / name).read_text() for name in ("README.md", "x.README.md")] == ["mine"] * 2


@pytest.mark.parametrize("format", FORMATS)
def test_a_folder_that_is_named_is_written_into(format, ended, monkeypatch):
    monkeypatch.chdir(ended)
    (ended / "dest").mkdir()
    for place in ("dest", "dest/", "new/"):
        result = invoke("export", "R", "--format", format, "--to", place)
        assert result.exit_code == 0, result.output
        ending = {"parquet": "parquet", "indices": "txt"}.get(format, "jsonl")
        assert (ended / place / f"selected.{ending}").is_file()
    assert not list(ended.glob("dest.*"))
    assert not list(ended.glob("new.*"))


def test_other_commands_write_into_a_folder_too(ended, monkeypatch):
    monkeypatch.chdir(ended)
    (ended / "dest").mkdir()
    words = ("select", "R", "--method", "random", "--budget", 5)
    assert invoke(*words, "--to", "dest").output.strip().endswith("dest/selected.jsonl")
    assert invoke("report", "R", "--to", "dest").output.strip() == "dest/report.html"
    np.testing.assert_equal(sorted(p.name for p in ended.glob("dest*")), ["dest"])


@pytest.mark.parametrize(
    "words",
    [
        ("select", "pool.jsonl", "--method", "random", "--budget", 5, "--to"),
        ("select", "R", "--method", "random", "--budget", 5, "--to"),
        ("export", "R", "--to"),
        ("export", "R", "--format", "trl", "--to"),
        ("report", "R", "--to"),
    ],
)
def test_an_empty_name_is_answered(words, ended, monkeypatch):
    monkeypatch.chdir(ended)
    refused(ended, *words, "", says="not the name of a file")
