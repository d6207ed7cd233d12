"""Files of a run folder in another's place, folders and pipes for files, odd names."""

import errno
import os
import shutil

import orjson
import pytest
from click.testing import CliRunner

from pyids.cli import cli
from pyids.config import load_config
from pyids.data.vector_files import open_vectors
from pyids.errors import ConfigError, DamagedError, DataError, PyidsError
from pyids.report.collect import collect
from pyids.report.status import status_of
from pyids.scoring import told
from pyids.scoring.told import read_scores
from pyids.selection import Selection
from pyids.store import files
from pyids.store.clean import clean
from pyids.store.files import fingerprint, read_sealed, write_sealed
from pyids.store.folder import Store
from pyids.store.manifest import verify
from pyids.terminal import explain


@pytest.fixture
def finished(pool, tmp_path):
    """A folder whose three rounds have been told."""
    with Selection.open(tmp_path / "run", **pool.options()) as selection:
        while selection.draw():
            selection.tell({int(row): float(row % 7) for row in selection.probes()})
        selection.finish()
    return tmp_path / "run"


# ---- another's place -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("keep/index.json", "rows/index.json"),
        ("rows/index.json", "keep/index.json"),
        ("labels/00000-0000.json", "embeddings/00000-0000.json"),
        ("rounds/1/selected.json rounds/1/selected.npy", "rounds/2/selected.json"),
        ("rounds/1/weights.json rounds/1/weights.npy", "rounds/2/weights.json"),
        ("rounds/1/quotas.json rounds/1/quotas.npy", "rounds/2/quotas.json"),
    ],
)
def test_a_file_of_the_same_name_from_elsewhere_is_damage(finished, source, target):
    """Copied alone, or with the file that it vouches for, it is not what was written there."""
    whole = (finished / "selected.jsonl").read_bytes()
    for name in source.split():
        place = finished / target
        shutil.copy(finished / name, place.with_name(os.path.basename(name)))
    assert any(line.startswith(target) for line in verify(finished))
    with pytest.raises(DamagedError, match="damaged"):
        read_sealed(finished / target)
    answer = CliRunner().invoke(cli, ["export", str(finished)])
    assert answer.exit_code == 0 or target.removesuffix(".json") in answer.output
    assert (finished / "selected.jsonl").read_bytes() == whole


def test_what_an_older_version_has_sealed_is_read(tmp_path, monkeypatch):
    (tmp_path / "identity.json").write_bytes(b"{}")
    file = tmp_path / "rounds" / "1" / "x.json"
    file.parent.mkdir(parents=True)
    content = {"a": 1}
    seal = fingerprint([2, "x.json", content])
    file.write_bytes(orjson.dumps({**content, "_format": 2, "_xxh3": seal}))
    assert read_sealed(file) == content
    write_sealed(file, content)
    written = orjson.loads(file.read_bytes())
    assert written["_format"] == 3
    assert written["_xxh3"] == fingerprint([3, "rounds/1/x.json", content])
    for number in (2, 4, 0, "3", True, None):
        file.write_bytes(orjson.dumps({**written, "_format": number}))
        with pytest.raises(PyidsError, match="damaged"):
            read_sealed(file)
    write_sealed(file, content)
    grown = tmp_path / "grown" / "1" / "rounds"
    grown.parent.mkdir(parents=True)
    (tmp_path / "rounds").rename(grown)
    assert read_sealed(grown / "1" / "x.json") == content  # put away, it is what it was
    shutil.move(grown / "1", tmp_path / "elsewhere")
    with pytest.raises(DamagedError):
        read_sealed(tmp_path / "elsewhere" / "x.json")
    monkeypatch.setattr(files, "_READABLE", (files.FORMAT,))
    file = tmp_path / "old.json"
    file.write_bytes(orjson.dumps({"_format": 2, "_xxh3": fingerprint([2, "old.json", {}])}))
    with pytest.raises(ConfigError, match="of format 2"):
        read_sealed(file)


# ---- no files ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *("config.yaml", "identity.json", "manifest.json", "selected.jsonl", ".inputs.json"),
        *("rounds/1/selected.npy", "rounds/1/scores.parquet", "labels/00000-0000.npy"),
        *("rounds/state.json", "rows/index.json", "keep/00000-0000.npy", "centroids.safetensors"),
    ],
)
@pytest.mark.parametrize("what", ["folder", "pipe"])
@pytest.mark.timeout(60)
def test_what_is_no_file_is_named_or_made_again(finished, name, what):
    whole = (finished / "selected.jsonl").read_bytes()
    file = finished / name
    file.unlink()
    if what == "folder":
        file.mkdir()
    else:
        os.mkfifo(file)
    for command in (["export", finished], ["verify", finished], ["status", finished]):
        answer = CliRunner().invoke(cli, list(map(str, command)))
        assert answer.exit_code in (0, 1, 2), answer.exception
        if answer.exit_code:
            assert name.partition(".")[0] in answer.output
            assert "choose another" not in answer.output
            assert "another place" not in answer.output
    shutil.rmtree(file) if file.is_dir() else file.unlink()
    if name == "config.yaml":
        return  # what the command that began the run writes again
    answer = CliRunner().invoke(cli, ["export", str(finished)])
    if answer.exit_code:
        assert f"pyids clean {finished}" in answer.output or "all its options" in answer.output
        assert name.rpartition(".")[0] in answer.output
    else:
        assert (finished / "selected.jsonl").read_bytes() == whole


def test_the_remedy_for_a_folder_depends_on_where_it_stands(finished, tmp_path):
    inside, outside = str(finished / "rounds" / "state.json"), str(tmp_path / "x.jsonl")
    for number in (errno.EISDIR, errno.ENOTDIR):
        assert "remove it" in explain(OSError(number, "", inside))
        assert "another place" in explain(OSError(number, "", outside))


def test_inputs_that_cannot_be_read_twice_or_end_never_are_refused(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "vectors.npy")
    with pytest.raises(DataError, match=r"vectors\.npy: a pipe or device"):
        open_vectors(tmp_path / "vectors.npy")
    monkeypatch.setattr(told, "_LONGEST_LINE", 1 << 20)
    with pytest.raises(DataError, match="/dev/zero line 1: longer than 1 MB"):
        read_scores(told.Path("/dev/zero"))
    scores = tmp_path / "scores.jsonl"
    scores.write_bytes(b'{"_pyids_id": 7, "score": 1, "text": "%b"}\n' % (b"x" * 1_000_000) * 2)
    with pytest.raises(DataError, match=r"line 2: .*earlier line"):  # long lines are read
        read_scores(scores)


def test_vectors_that_claim_an_impossible_shape(tmp_path, recwarn):
    for shape in ("(-600, 8)", "(600000000000, 800000000)", f"({2**70}, 1)"):
        head = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
        (tmp_path / "x.npy").write_bytes(b"\x93NUMPY\x01\x00v\x00" + head.encode() + bytes(64))
        with pytest.raises(DataError, match=r"x\.npy: "):
            open_vectors(tmp_path / "x.npy")
    assert not recwarn.list


@pytest.mark.parametrize("name", ["rounds/1/scores", "config", "rows/00000-0000", "x"])
def test_an_export_does_not_lie_among_the_files_of_a_run(finished, tmp_path, name):
    to = ["export", str(finished), "--format", "parquet", "--to"]
    answer = CliRunner().invoke(cli, [*to, str(finished / f"{name}.parquet")])
    assert answer.exit_code == 2
    assert "among the files of the run" in answer.output
    for path in (finished / "selected-x.parquet", tmp_path / "x.parquet"):
        assert CliRunner().invoke(cli, [*to, str(path)]).exit_code == 0
        assert path.exists()
    assert verify(finished) == []


@pytest.mark.parametrize("from_round", [2, 3, 4, 9])
def test_cleaning_rounds_that_there_are_not_changes_nothing(pool, tmp_path, from_round):
    folder, options = tmp_path / "run", pool.options(rounds=4)
    with Selection.open(folder, **options) as selection:
        selection.draw()
        selection.tell({int(row): float(row % 7) for row in selection.probes()})
        selection.draw()
        drawn = selection.rounds.selected().tolist()
    assert clean(folder, "rounds", from_round=from_round) == (
        ["rounds/2"] if from_round == 2 else []
    )
    with Selection.open(folder) as selection:
        assert selection.round == 1
        selection.draw()
        assert selection.rounds.selected().tolist() == drawn


# ---- names and depth -----------------------------------------------------------------------------


def test_names_that_are_no_utf8_are_one_line(pool, tmp_path):
    odd = os.fsdecode(b"odd\xff")
    for command in (
        ["ask", str(tmp_path / odd), "--data", str(pool.path)],
        ["ask", str(tmp_path / "run"), "--data", str(pool.path), "--embeddings-file", odd],
        ["verify", odd],
    ):
        answer = CliRunner().invoke(cli, command)
        assert answer.exit_code == 2
        assert len(answer.output.splitlines()) == 1
        assert "no UTF-8" in answer.output
    assert not (tmp_path / odd).exists()
    with pytest.raises(ConfigError, match="no UTF-8"):
        Store.open(tmp_path / odd)
    shutil.copy(pool.vectors, tmp_path / f"{odd}.npy")
    with pytest.raises(DataError, match="no UTF-8"):
        open_vectors(tmp_path / f"{odd}.npy")


def test_a_stray_name_that_is_no_utf8_does_not_end_in_a_traceback(finished):
    (finished / os.fsdecode(b"stray\xff")).write_bytes(b"")
    with Selection.open(finished) as selection, pytest.raises(DamagedError, match="no UTF-8"):
        selection.finish()
    assert len(verify(finished)) == 1


def test_yaml_that_is_nested_deep_is_one_line(tmp_path):
    deep = "[" * 20_000
    (tmp_path / "c.yaml").write_text(f"a: {deep}")
    with pytest.raises(ConfigError, match=r"c\.yaml"):
        load_config(tmp_path / "c.yaml")
    for option in (["--config", str(tmp_path / "c.yaml")], ["--format-map", "{" * 20_000]):
        answer = CliRunner().invoke(cli, ["run", "x.jsonl", *option])
        assert answer.exit_code == 2, answer.exception
        assert len(answer.output) < 2000


# ---- looking at it -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "look"),
    [
        ("rows/index.json", status_of),
        ("rows/index.json", collect),
        ("keep/index.json", collect),
        ("skipped.jsonl", collect),
        ("manifest.json", collect),
        ("config.yaml", collect),
        ("rounds/1/scores.parquet", collect),
        ("rounds/1/scores.json", collect),
        ("rounds/2/selected.npy", collect),
    ],
)
@pytest.mark.parametrize("how", ["zero", "cut", "text"])
def test_who_looks_at_a_damaged_folder_is_told_in_a_line(finished, name, look, how):
    file = finished / name
    content = file.read_bytes()
    other = {"zero": bytes(200) + content[200:], "cut": content[:-9], "text": b"7"}[how]
    file.write_bytes(other or b"\0\0")
    if how == "cut" and name in ("config.yaml", "skipped.jsonl"):
        file.write_bytes(b"{" + content)
    with pytest.raises(PyidsError) as caught:
        look(finished)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"budget: 3\n"])
def test_status_is_of_what_the_folder_was_made_with(finished, content):
    before = [(stage.name, stage.done, stage.total) for stage in status_of(finished).stages]
    (finished / "config.yaml").write_bytes(content)
    after = [(stage.name, stage.done, stage.total) for stage in status_of(finished).stages]
    assert after == before
