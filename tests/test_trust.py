"""A run folder that cannot lie: damage found, gaps refused, rounds derived again."""

import errno
import os
import shutil
import subprocess
import sys

import numpy as np
import orjson
import pytest
from click.testing import CliRunner

from pyids.cli import cli
from pyids.data import near_dedup
from pyids.errors import ConfigError, DamagedError, DataError
from pyids.pipeline.replay import replay_rounds
from pyids.report.status import status_of
from pyids.scoring.statistics import cluster_moments
from pyids.scoring.told import read_scores
from pyids.selection import Selection
from pyids.store import place
from pyids.store.arrays import map_npy
from pyids.store.files import create_mapped, create_npy, read_sealed, write_npy, write_sealed
from pyids.store.folder import Store
from pyids.store.ledger import load_npy, save_npy
from pyids.store.manifest import verify


def scores_of(selection, offset=0.0):
    return {int(row): float(row % 7) + offset for row in selection.probes()}


def write_scores(folder, path):
    """Ask for the next round of a folder, and write its scores to a file, as a trainer does."""
    with Selection.open(folder) as selection:
        selection.draw()
        selection.export_probes()
        scores = scores_of(selection)
    lines = [orjson.dumps({"_pyids_id": row, "score": score}) for row, score in scores.items()]
    path.write_bytes(b"\n".join(lines))


@pytest.fixture
def two_told(pool, tmp_path):
    """A folder with two of three rounds told."""
    with Selection.open(tmp_path / "run", **pool.options()) as selection:
        for _ in range(2):
            selection.draw()
            selection.tell(scores_of(selection))
    return tmp_path / "run"


def finish(folder):
    with Selection.open(folder) as selection:
        while selection.draw():
            selection.tell(scores_of(selection))
        return selection.finish().read_bytes()


def flip(file, place=-9):
    content = bytearray(file.read_bytes())
    content[place] ^= 4
    file.write_bytes(content)


# ---- damage --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "rounds/1/selected.npy",
        "rounds/1/quotas.npy",
        "rounds/2/weights.npy",
        "rounds/2/probes.npy",
        "rounds/1/selected.json",
        "rounds/1/scores.json",
        "rounds/2/scores.json",
        "rounds/state.json",
        "labels/00000-0000.npy",
        "labels/00000-0000.json",
        "centroids.json",
        ".inputs.json",
    ],
)
@pytest.mark.parametrize("how", ["flip", "delete", "truncate"])
def test_what_can_be_made_again_is_made_to_the_same_bytes(two_told, tmp_path, name, how):
    whole = tmp_path / "whole"
    shutil.copytree(two_told, whole)
    expected = finish(whole)
    file = two_told / name
    if how == "flip":
        flip(file)
    elif how == "delete":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-3])
    assert finish(two_told) == expected
    assert verify(two_told) == [] or name == ".inputs.json"
    if (whole / name).exists() and name != ".inputs.json":
        assert file.read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("rounds/1/scores.parquet", "clean {} --stage rounds --from 1"),
        ("keep/00000-0000.npy", "clean {} --stage read"),
        ("rows/00000-0000.parquet", "clean {} --stage read"),
        ("embeddings/00000-0000.npy", "clean {} --stage embed"),
    ],
)
def test_what_cannot_be_made_again_is_named_with_the_command(two_told, name, remedy):
    expected = finish(shutil.copytree(two_told, two_told.parent / "whole"))
    flip(two_told / name)
    with pytest.raises(DamagedError) as caught:
        finish(two_told)
    assert f"{two_told / name}: " in str(caught.value)
    command = remedy.format(two_told)
    assert f"`pyids {command}`" in str(caught.value)
    assert CliRunner().invoke(cli, command.split()).exit_code == 0
    assert finish(two_told) == expected
    assert verify(two_told) == []


def test_a_finished_folder_is_not_approved_again(two_told):
    finish(two_told)
    manifest = (two_told / "manifest.json").read_bytes()
    for name in ("rounds/2/scores.parquet", "duplicates.jsonl"):
        kept = (two_told / name).read_bytes()
        (two_told / name).write_bytes(kept + b" ")
        with pytest.raises(DamagedError, match=name):
            finish(two_told)
        assert (two_told / "manifest.json").read_bytes() == manifest
        [problem] = verify(two_told)
        assert problem.startswith(f"{name}: ")
        (two_told / name).write_bytes(kept)
    finish(two_told)
    assert verify(two_told) == []


def test_verify_reads_a_broken_manifest(two_told):
    finish(two_told)
    for content in (b"", b"[]", b"{}", b"\xff", (two_told / "manifest.json").read_bytes()[:99]):
        (two_told / "manifest.json").write_bytes(content)
        [problem] = verify(two_told)
        assert problem.startswith("manifest.json: damaged: `pyids clean")


def test_replay_finds_a_lie_that_every_hash_confirms(two_told):
    assert replay_rounds(two_told) == []
    for name, file in (("weights", "rounds/2/weights.npy"), ("selected", "rounds/1/selected.npy")):
        path, entry = two_told / file, (two_told / file).with_suffix(".json")
        kept, entry_kept = path.read_bytes(), entry.read_bytes()
        array = np.array(map_npy(path))
        array[[0, 1]] = array[[1, 0]] if name == "weights" else array[[0, 1]] + 1
        save_npy(path, array, read_sealed(entry)["inputs"])
        assert any(problem.startswith(file) for problem in replay_rounds(two_told))
        path.write_bytes(kept)
        entry.write_bytes(entry_kept)
    assert replay_rounds(two_told) == []


def test_a_file_is_hashed_once_a_process(two_told, monkeypatch):
    with Selection.open(two_told) as selection:
        selection.selected()
        monkeypatch.setattr("pyids.store.files.hash_file", lambda *_: pytest.fail("hashed again"))
        selection.selected()
        load_npy(two_told / "rounds" / "1" / "selected.npy")


# ---- what was decided ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("min_weight: 0.02", "min_weight: 0.22"),
        ("weight_update: exponential", "weight_update: none"),
        ("budget: 60", "budget: 63"),
        ("rounds: 3", "rounds: 4"),
    ],
)
@pytest.mark.parametrize("identity", [True, False])
def test_an_edited_configuration_is_refused_naming_the_field(two_told, old, new, identity):
    config = two_told / "config.yaml"
    config.write_text(config.read_text().replace(old, new))
    if not identity:
        (two_told / "identity.json").unlink()
    field, value = new.split(": ")
    with pytest.raises(ConfigError, match=f"{field} is .*{value}.*set it back, or choose another"):
        Selection.open(two_told)


def test_without_an_identity_the_rounds_know_their_budget(two_told, pool):
    (two_told / "identity.json").unlink()
    config = (two_told / "config.yaml").read_bytes()
    with pytest.raises(ConfigError, match=r"budget is 90, and round 1 was drawn with 60"):
        Selection.open(two_told, **pool.options(budget=90))
    assert (two_told / "config.yaml").read_bytes() == config
    assert not (two_told / "identity.json").exists()


@pytest.mark.parametrize("how", ["flip", "empty", "delete"])
def test_a_damaged_identity_is_made_again_by_the_first_command(two_told, pool, how):
    expected = finish(shutil.copytree(two_told, two_told.parent / "whole"))
    file = two_told / "identity.json"
    kept = file.read_bytes()
    if how == "flip":
        flip(file)
    elif how == "empty":
        file.write_bytes(b"")
    else:
        file.unlink()
    if how != "delete":
        with pytest.raises(DamagedError, match=r"identity\.json: .*with all its options"):
            finish(two_told)
    Selection.open(two_told, **pool.options()).close()
    assert file.read_bytes() == kept
    assert finish(two_told) == expected


def test_where_it_works_may_be_edited(two_told):
    config = two_told / "config.yaml"
    config.write_text(config.read_text().replace("threads: null", "threads: 1"))
    Selection.open(two_told).close()


@pytest.mark.parametrize("missing", ["weights", "selected", "scores"])
def test_rounds_are_not_renumbered(two_told, missing):
    for file in (two_told / "rounds" / "1").glob(f"{missing}.*"):
        file.unlink()
    if missing != "scores":
        with Selection.open(two_told) as selection:  # what follows from the rest is made again
            assert selection.round == 2
        return
    (two_told / "rounds" / "1" / "weights.npy").unlink()
    with pytest.raises(DamagedError, match=r"rounds/1/weights\.npy: missing or damaged"):
        Selection.open(two_told)


def test_a_round_that_is_gone_is_missed(two_told):
    shutil.rmtree(two_told / "rounds" / "2")
    before = {path: path.stat().st_mtime_ns for path in two_told.rglob("*.json")}
    with pytest.raises(DamagedError, match="rounds/2"):
        Selection.open(two_told)
    assert before == {path: path.stat().st_mtime_ns for path in two_told.rglob("*.json")}


def test_a_folder_of_another_format_is_one_line(two_told):
    file = two_told / "rows" / "index.json"
    file.write_bytes(file.read_bytes().replace(b'"_format": 3', b'"_format": 4'))
    with pytest.raises((ConfigError, DataError), match=r"index\.json: of format 4, or damaged"):
        Selection.open(two_told)
    file.write_bytes(file.read_bytes().replace(b'"_format": 4', b'"_format": 3'))
    content = read_sealed(two_told / "identity.json")
    (two_told / "identity.json").write_bytes(orjson.dumps(content))
    with pytest.raises(ConfigError, match="of format 1, and this pyids reads format 3"):
        Selection.open(two_told)


def test_near_duplicates_are_looked_for_once(pool, tmp_path, monkeypatch):
    options = pool.options(semdedup_threshold=0.999, budget=30)
    Selection.open(tmp_path / "run", **options).close()
    monkeypatch.setattr(near_dedup, "near_duplicates", lambda *_, **__: pytest.fail("again"))
    Selection.open(tmp_path / "run", **options).close()
    Selection.open(tmp_path / "run").close()


# ---- scores --------------------------------------------------------------------------------------


def test_the_order_in_which_scores_are_told_changes_no_bit(pool, tmp_path):
    written = []
    for name in ("a", "b"):
        with Selection.open(tmp_path / name, **pool.options(probes_per_cluster=30)) as selection:
            selection.draw()
            scores = {row: 0.1 * (row % 11) + 1e-9 * row for row in scores_of(selection)}
            if name == "b":
                scores = dict(sorted(scores.items(), key=lambda item: item[0] * 7919 % 1009))
            selection.tell(scores)
        files = ("weights.npy", "scores.parquet", "scores.json")
        written.append([(tmp_path / name / "rounds" / "1" / f).read_bytes() for f in files])
    assert written[0] == written[1]


def test_moments_are_rounded_once():
    rng = np.random.default_rng(0)
    scores = rng.standard_normal(4000) * 10.0 ** rng.integers(-9, 9, 4000)
    clusters = rng.integers(0, 5, 4000).astype(np.int32)
    expected = cluster_moments(scores, clusters, 5)
    for _ in range(5):
        order = rng.permutation(4000)
        for one, other in zip(
            expected, cluster_moments(scores[order], clusters[order], 5), strict=True
        ):
            assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("value", [1e200, -1e308, 1e101])
def test_a_score_out_of_range_is_refused(pool, tmp_path, value):
    with Selection.open(tmp_path / "run", **pool.options()) as selection:
        selection.draw()
        scores = scores_of(selection)
        last = next(reversed(scores))
        with pytest.raises(DataError, match=f"the score of row {last} is .*divide all by one"):
            selection.tell({**scores, last: value})
        with pytest.raises(DataError, match="multiply all by one number"):
            selection.tell(dict.fromkeys(scores, 1e-200))
        selection.tell(dict.fromkeys(scores, 0.0))


def test_scores_of_another_round_and_of_selected_rows_are_refused(two_told):
    with Selection.open(two_told) as selection:
        selection.draw()
        old = selection.rounds.probes(0)
        old = old[~np.isin(old, selection.probes()) & ~np.isin(old, selection.rounds.selected())]
        with pytest.raises(DataError, match=r"was to be scored in round 1, not in round 3"):
            selection.tell(dict.fromkeys(old.tolist(), 1.0))
        drawn = selection.rounds.selected()[:3].tolist()
        with pytest.raises(DataError, match=f"row {drawn[0]} is one of those selected so far"):
            selection.tell({**scores_of(selection), **dict.fromkeys(drawn, 1.0)})
        assert selection.round == 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"_pyids_id": 1, "score": NaN}', "line 1: holds NaN, which is no JSON"),
        (b'\n{"_pyids_id": 1, "score": -Infinity}', "line 2: holds Infinity"),
        (b'\xef\xbb\xbf{"_pyids_id": 1, "score": 1}', "line 1: begins with a byte order mark"),
        ('{"_pyids_id": 1, "score": 1}'.encode("utf-16"), "line 1: begins with UTF-16"),
        (b'{"_pyids_id": 1, "score": 1}\r\n{"a": 1}', "line 2: not an object like"),
        (b"[1, 2]", "line 1: not an object like"),
        (b"\x00\x01", "line 1: not an object like"),
    ],
)
def test_a_file_that_holds_no_scores_is_refused_with_its_line(tmp_path, content, words):
    (tmp_path / "s.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=rf"s\.jsonl {words}"):
        read_scores(tmp_path / "s.jsonl")


def test_a_row_that_is_not_in_the_pool_is_named_with_its_line(two_told, tmp_path):
    with Selection.open(two_told) as selection:
        selection.draw()
        selection.export_probes()
    row = orjson.loads((two_told / "probes.jsonl").read_bytes().splitlines()[0])["_pyids_id"]
    lines = [b'{"_pyids_id": %d, "score": 1}' % number for number in (row, 99999)]
    (tmp_path / "s.jsonl").write_bytes(b"\n".join(lines))
    result = CliRunner().invoke(cli, ["tell", str(two_told), str(tmp_path / "s.jsonl")])
    assert result.exit_code == 2
    assert "s.jsonl line 2: row 99999 is not in the pool" in result.stderr


def test_a_damaged_file_is_not_blamed_on_the_scores(two_told, tmp_path):
    write_scores(two_told, tmp_path / "s.jsonl")
    [file] = (two_told / "keep").glob("*.npy")
    file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    result = CliRunner().invoke(cli, ["tell", str(two_told), str(tmp_path / "s.jsonl")])
    assert result.exit_code == 2
    assert result.stderr.startswith(f"pyids: {file}: damaged")


# ---- the machine ---------------------------------------------------------------------------------


def test_a_mapped_file_has_its_room_or_is_refused(tmp_path):
    mapped = create_mapped(tmp_path / "a", (1000,), np.int64)
    assert (tmp_path / "a").stat().st_blocks * 512 >= 8000
    mapped[:] = 7
    npy = create_npy(tmp_path / "b.npy", (50, 3), np.float16)
    npy[:] = 2
    del mapped, npy
    assert map_npy(tmp_path / "b.npy").shape == (50, 3)
    assert create_npy(tmp_path / "c.npy", (0, 3), np.float16).shape == (0, 3)
    assert map_npy(tmp_path / "c.npy").shape == (0, 3)
    code = (
        "import resource, sys, numpy as np; from pathlib import Path;"
        "from pyids.store.files import create_mapped;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096));"
        "create_mapped(Path(sys.argv[1]), (10**6,), np.int64)[:] = 1"
    )
    command = [sys.executable, "-P", "-c", code, str(tmp_path / "d")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1, result.returncode  # an exception, not a signal
    assert "OSError: [Errno 27]" in result.stderr


def test_a_folder_that_can_only_be_read_is_exported_from(two_told, tmp_path, monkeypatch):
    finish(two_told)
    before = {path: path.stat().st_mtime_ns for path in two_told.rglob("*")}

    def refuse(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("pyids.store.folder.take_lock", refuse)
    for arguments in (
        ["export", str(two_told), "--to", str(tmp_path / "out.jsonl")],
        ["verify", str(two_told), "--replay"],
        [
            "select",
            str(two_told),
            "--method",
            "km-random",
            "--to",
            str(tmp_path / "selected.jsonl"),
        ],
    ):
        result = CliRunner().invoke(cli, arguments)
        assert result.exit_code == 0, result.stderr
    assert (tmp_path / "out.jsonl").read_bytes() == (two_told / "selected.jsonl").read_bytes()
    assert {path: path.stat().st_mtime_ns for path in two_told.rglob("*")} == before
    result = CliRunner().invoke(cli, ["ask", str(two_told)])
    assert result.exit_code == 2
    assert "cannot write there (Read-only file system)" in result.stderr


def test_the_last_tell_imports_no_torch(two_told, tmp_path):
    write_scores(two_told, tmp_path / "s.jsonl")
    code = (
        "import sys; from pyids.cli import cli;"
        "cli(sys.argv[1:], standalone_mode=False);"
        "print(*{'torch', 'transformers', 'datasets'} & sys.modules.keys())"
    )
    command = [sys.executable, "-P", "-c", code, "-q", "tell", two_told, tmp_path / "s.jsonl"]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "\n"), result.stderr
    assert (two_told / "manifest.json").exists()


@pytest.mark.parametrize("answer", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_has_one_all_the_same(tmp_path, monkeypatch, answer):
    run = tmp_path / "run"
    Store.open(run).close()  # on a disk that has locks: its lock file stays, and nobody holds it

    def no_locks(*_):
        raise OSError(answer, os.strerror(answer))

    monkeypatch.setattr("fcntl.flock", no_locks)
    holder = Store.open(run)
    with pytest.raises(ConfigError, match=r"another process works .* remove .*\.lock-soft"):
        place.take_lock(run)
    assert status_of(run).working is None
    holder.close()
    Store.open(run).close()
    # A process that was killed holds it no more; one of another machine may.
    code = (
        "import errno, fcntl, os, sys; from pyids.store.place import *\n"
        "def no_locks(*_): raise OSError(errno.ENOLCK, '')\n"
        "fcntl.flock = no_locks\n"
        "lock = take_lock(Path(sys.argv[1])); os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-P", "-c", code, str(run)], capture_output=True)
    assert killed.returncode == -9, killed.stderr
    assert (run / ".lock-soft").exists()
    Store.open(run).close()
    (run / ".lock-soft").write_text("12345\nanother-machine\n")
    with pytest.raises(ConfigError, match="another process works in this run folder"):
        Store.open(run)


def test_an_array_on_a_full_disk_is_named(tmp_path):
    code = (
        "import resource, sys, numpy as np; from pathlib import Path;"
        "from pyids.store.files import *\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "with atomic_write(Path(sys.argv[1])) as temporary, temporary.open('wb') as file:\n"
        "    write_npy(file, np.zeros(10**6))"
    )
    command = [sys.executable, "-P", "-c", code, str(tmp_path / "a.npy")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert f"OSError: [Errno 27] File too large: '{tmp_path / 'a.npy'}'" in result.stderr
    assert not list(tmp_path.iterdir())


def test_what_the_system_refuses_is_no_damage(two_told, monkeypatch):
    def too_many(*_, **__):
        raise OSError(errno.EMFILE, "Too many open files")

    with Store.open(two_told) as store:
        monkeypatch.setattr("pyarrow.parquet.ParquetFile", too_many)
        with pytest.raises(OSError, match="Too many open files"):
            next(store.iter_rows(store.shards[0]))


@pytest.mark.parametrize("array", [np.arange(6.0).reshape(2, 3).T, np.empty(0, "i4"), np.array(3)])
def test_an_array_is_written_as_numpy_does(tmp_path, array):
    np.save(tmp_path / "numpy.npy", array)
    with (tmp_path / "a.npy").open("wb") as file:
        write_npy(file, array)
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "numpy.npy").read_bytes()


def test_what_is_sealed_is_read_back_or_refused(tmp_path):
    file = tmp_path / "a.json"
    written = write_sealed(file, {"b": [1, None, 2.5], "a": {"x": float("nan")}})
    assert read_sealed(file) == written == {"b": [1, None, 2.5], "a": {"x": None}}
    good = file.read_bytes()
    (tmp_path / "b.json").write_bytes(good)
    with pytest.raises(DamagedError, match=r"b\.json: damaged"):
        read_sealed(tmp_path / "b.json")
    for place_ in range(0, len(good), 7):
        flip(file, place_)
        try:
            content = read_sealed(file)
        except (DamagedError, ConfigError) as error:
            content = written if str(file) in str(error) else error
        assert content == written  # a flip that only changed white space
        file.write_bytes(good)
