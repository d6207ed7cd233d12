"""A run folder, a name or a row that comes from somebody else."""

import os
import shutil

import numpy as np
import orjson
import pytest
import yaml
from click.testing import CliRunner

from pyids.cli import cli
from pyids.config import make_config
from pyids.data.sources import open_sources
from pyids.errors import ConfigError, DataError, PyidsError
from pyids.selection import Selection
from pyids.store.files import write_sealed
from pyids.store.ledger import save_npy
from pyids.store.manifest import verify
from pyids.terminal import explain, printable, why_not_written


def pyids(*arguments, **environment):
    return CliRunner().invoke(cli, [*map(str, arguments)], env=environment)


@pytest.fixture
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def asked(pool, tmp_path, state):
    """A folder whose first round is drawn."""
    with Selection.open(tmp_path / "run", **pool.options()) as selection:
        selection.draw()
    return tmp_path / "run"


# ---- what a folder names -------------------------------------------------------------------------


@pytest.fixture
def stranger(asked, tmp_path, monkeypatch):
    """A folder that names a private file and a server, which somebody else has made."""
    private = tmp_path / "private.jsonl"
    private.write_bytes(orjson.dumps({"prompt": "my", "completion": "secret"}) + b"\n")
    config = yaml.safe_load((asked / "config.yaml").read_text())
    config |= {"data": [str(private)], "embeddings_file": None, "budget": 3}
    config |= {"encoder": "http://127.0.0.1:9/v1#m"}
    for name in ("rows", "keep", "embeddings", "labels", "rounds", "identity.json"):
        target = asked / name
        shutil.rmtree(target) if target.is_dir() else target.unlink()
    (asked / "config.yaml").write_text(yaml.safe_dump(config))
    for name in ("quotas", "selected"):
        save_npy(asked / "rounds" / "1" / f"{name}.npy", np.arange(1), {"round": 1, "decided": {}})
    monkeypatch.setattr("pyids.data.sources.open_sources", _never)
    return asked


def _never(*arguments, **options):
    raise AssertionError("it reads what the folder names")


@pytest.mark.parametrize("command", ["export", "ask", "tell", "select"])
def test_a_strangers_folder_reads_nothing_and_asks_nobody(stranger, command, tmp_path):
    more = {"tell": [tmp_path / "private.jsonl"], "select": ["--method", "km-random"]}
    if command == "select":
        # Rounds that name no options are none of ours.
        shutil.rmtree(stranger / "rounds")
    before = {path: path.stat().st_mtime_ns for path in stranger.rglob("*") if path.is_file()}
    result = pyids(command, stranger, *more.get(command, []), OPENAI_API_KEY="sk-secret")
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "secret" not in result.stderr
    assert not (stranger / "rows").exists()
    after = {path: path.stat().st_mtime_ns for path in stranger.rglob("*") if path.is_file()}
    assert {path for path in after if after[path] != before.get(path)} <= {stranger / ".lock"}


def test_a_folder_of_ones_own_reads_its_data_again_and_an_edited_one_does_not(asked, tmp_path):
    for name in ("rows", "embeddings"):
        shutil.rmtree(asked / name)
    other = tmp_path / "elsewhere"
    shutil.copytree(asked, other)
    with Selection.open(asked) as selection:
        assert selection.store.kept == 400
    config = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(config.replace("pool.jsonl", "private.jsonl"))
    with pytest.raises(ConfigError, match="is not used unless you have named it"):
        Selection.open(other)


def test_a_folder_that_another_user_made_needs_its_data_named(asked, tmp_path, monkeypatch, pool):
    shutil.rmtree(asked / "rows")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "of another user"))
    with pytest.raises(ConfigError, match="name the data again"):
        Selection.open(asked)
    Selection.open(asked, **pool.options()).close()
    shutil.rmtree(asked / "rows")
    Selection.open(asked).close()  # now it is this user's, too


def test_a_quality_that_a_folder_names_is_not_computed(pool, tmp_path, state, monkeypatch):
    for number, row in enumerate(pool.rows):
        row["worth"] = number
    pool.write()
    folder = tmp_path / "run"
    Selection.open(folder, **pool.options(quality="worth")).close()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "of another user"))
    Selection.open(folder).close()
    shutil.rmtree(folder / "quality")
    with pytest.raises(ConfigError, match="not rated by 'worth'"):
        Selection.open(folder)


# ---- links ---------------------------------------------------------------------------------------


def test_a_cluster_that_a_folder_names_is_not_joined(asked, monkeypatch):
    """By any command that takes no data, unless this user has named it."""
    pytest.importorskip("ray", reason="the package ray is not installed")
    config = yaml.safe_load((asked / "config.yaml").read_text())
    config |= {"engine": "ray", "address": "127.0.0.1:9"}
    (asked / "config.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.setenv("XDG_STATE_HOME", str(asked.parent / "another user's"))
    assert pyids("select", asked, "--method", "random", "--budget", 5).exit_code == 0
    assert pyids("export", asked, "--to", asked.parent / "elsewhere.jsonl").exit_code == 0
    with Selection.open(asked) as selection:
        assert (selection.config.engine, selection.config.address) == ("local", None)
        assert selection.draw()
    named = pyids("select", asked, "--method", "random", "--budget", 5, "--engine", "ray",
                  "--address", "127.0.0.1:9")  # fmt: skip
    assert named.exit_code == 2
    assert "no Ray cluster answers at '127.0.0.1:9'" in named.stderr


def test_a_model_that_a_folder_names_is_not_loaded(pool, tmp_path, state, monkeypatch):
    with Selection.open(tmp_path / "run", **pool.options(model="someone/else")) as selection:
        selection.draw()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another user's"))
    named = pytest.raises(ConfigError, match=r"config\.yaml names a model, and what")
    with Selection.open(tmp_path / "run") as selection, named:
        selection.train()


@pytest.mark.parametrize("inside", ["rows", ".pyids", "rounds/1", "config.yaml", "labels"])
def test_no_link_inside_a_run_folder_is_followed(asked, tmp_path, pool, inside):
    mine = tmp_path / "mine"
    original = asked / inside
    shutil.move(original, mine)
    original.symlink_to(mine)
    before = sorted((path, path.stat().st_mtime_ns) for path in [mine, *mine.rglob("*")])
    for result in (
        pyids("export", asked),
        pyids("ask", asked),
        pyids("select", pool.path, "--method", "random", "--budget", "5", "--output-dir", asked),
    ):
        assert result.exit_code == 2
        assert "link" in result.stderr or "not a run folder" in result.stderr
        assert result.stderr.count("\n") == 1
    assert sorted((path, path.stat().st_mtime_ns) for path in [mine, *mine.rglob("*")]) == before


def test_a_trap_of_links_loses_nobodys_files(pool, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.parquet").write_text("years of work")
    (mine / "notes.json").write_text("{}")
    trap = tmp_path / "trap"
    trap.mkdir()
    (trap / ".pyids").symlink_to(mine / "notes.json")
    (trap / "rows").symlink_to(mine)
    result = pyids("select", pool.path, "--method", "random", "--budget", "5", "--output-dir", trap)
    assert result.exit_code == 2
    assert {path.name for path in mine.iterdir()} == {"thesis.parquet", "notes.json"}


def test_verify_names_links(asked, tmp_path):
    write_sealed(asked / "manifest.json", {"files": {}})
    (asked / "labels" / "x.npy").symlink_to("/etc/hostname")
    assert any(line.startswith("labels/x.npy: a link") for line in verify(asked))


# ---- what is printed -----------------------------------------------------------------------------

ESCAPES = "\x1b[31m\x1b]0;t\x07\x08\x7f\x9b1A\r\u202e\u2066\ud800"


def test_printable_writes_controls_out():
    assert printable("a\tb\nc é 漢") == "a\tb\nc é 漢"
    shown = printable(ESCAPES)
    assert shown.isprintable()
    assert shown.startswith("\\x1b[31m\\x1b]0;t\\x07\\x08\\x7f\\x9b1A\\x0d\\u202e\\u2066\\ud800")
    assert printable("a\nb\tc", one_line=True) == "a\\nb\\tc"


def test_escapes_in_names_and_keys_reach_no_terminal(asked, tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text('"a\\e[31mb": 1\nbudget: 3\n')
    name = os.fsdecode(b"x\x1b[2J\xff.jsonl")
    write_sealed(asked / "manifest.json", {"files": {}})
    (asked / "labels" / "y\x1b[2J").write_text("x")
    for result in (
        pyids("run", tmp_path / name, "--budget", "5"),
        pyids("run", "--config", config),
        pyids("tell", asked, tmp_path / name),
        pyids("verify", asked),
        pyids("export", tmp_path / name),
    ):
        assert result.exit_code in (1, 2)
        assert "\x1b" not in result.stdout + result.stderr
        assert "\\x1b" in result.stdout + result.stderr


# ---- failures of the machine ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(28, "No space left on device", "/a/b"), "/a/b: the disk is full: make room"),
        (OSError(122, "Disk quota exceeded", "/a/b"), "/a/b: your quota on this disk"),
        (OSError(24, "Too many open files"), "too many open files: raise the limit"),
        (OSError("Error writing: [errno 28] No space"), "the disk is full"),
        (OSError(5, "Input/output error", b"/a/b"), "/a/b: the disk answers with an error"),
        (OSError(71, "Protocol error", "/a/b"), "/a/b: Protocol error: mend that, then"),
        (MemoryError(), "no memory left: give fewer --workers"),
        (RuntimeError("can't start new thread"), "no more processes or threads"),
    ],
)
def test_a_failure_of_the_machine_is_one_line_with_a_remedy(error, words):
    said = explain(error)
    assert words in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (28, "the disk is full: make room, then the same command goes on"),
        (27, "files may not grow so large: raise the limit"),
        (30, "cannot be written (Read-only file system): name another"),
        (13, "cannot be written (Permission denied): name another"),
        (21, "cannot be written (Is a directory): remove what stands there, or name another"),
    ],
)
def test_another_place_is_advised_where_it_helps(number, words):
    assert why_not_written(OSError(number, os.strerror(number)), "name another").startswith(words)


def test_a_fault_of_pyids_keeps_its_traceback():
    assert explain(ValueError("x")) is None
    assert explain(RuntimeError("x")) is None


def test_damage_is_one_kind_of_error():
    assert issubclass(DataError, PyidsError)


# ---- names in files ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("dataset_dict.json", {"splits": ["."]}),
        ("dataset_dict.json", {"splits": ["../elsewhere"]}),
        ("dataset_dict.json", {"splits": [7]}),
        ("dataset_dict.json", {"splits": []}),
        ("dataset_dict.json", []),
        ("state.json", {"_data_files": [{"filename": "../private.arrow"}]}),
        ("state.json", {"_data_files": [{"filename": "/etc/passwd"}]}),
        ("state.json", {"_data_files": ["x"]}),
        ("state.json", {}),
    ],
)
def test_a_data_set_names_no_files_outside_its_folder(tmp_path, file, content):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / file).write_bytes(orjson.dumps(content))
    with pytest.raises(DataError, match=f"{file}: .*save the data set again|holds the splits"):
        open_sources([str(tmp_path / "d")])


@pytest.mark.parametrize("model", ["m?key=sk-1", "m&key=sk-1", "m#sk-1", "key=sk-1"])
def test_a_secret_behind_the_model_of_an_endpoint_is_refused_and_not_shown(model):
    with pytest.raises(ConfigError, match="name the model alone") as caught:
        make_config(data="d", budget=5, encoder=f"https://h/v1#{model}")
    assert "sk-1" not in str(caught.value)
