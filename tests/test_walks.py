"""What walks a run folder while another process renames and removes files in it."""

import os
import shutil
import threading
from pathlib import Path

import pytest

from pyids.pipeline.identity import check_decided
from pyids.report.stages import disk_bytes, stages_of
from pyids.report.status import status_of
from pyids.store.bucket import Mirror
from pyids.store.clean import found
from pyids.store.files import entries_of, files_inside
from pyids.store.folder import Store
from pyids.store.manifest import artifacts, verify
from pyids.store.place import check_links, check_place
from pyids.store.rounds import has_checkpoint, has_drawn, known_rounds


def changes_here(path):
    return Mirror(None, path, None)._changes()


def opened(path):
    Store.open(path).close()


WALKS = {
    "status": status_of,
    "stages_of": stages_of,
    "disk_bytes": disk_bytes,
    "clean": found,
    "check_links": check_links,
    "check_place": check_place,
    "artifacts": artifacts,
    "verify": verify,
    "bucket": changes_here,
    "known_rounds": lambda path: known_rounds(path / "rounds"),
    "has_drawn": has_drawn,
    "has_checkpoint": has_checkpoint,
    "check_decided": lambda path: check_decided(path, _config()),
    "open": opened,
}


def _config():
    from pyids.config import make_config

    return make_config(data=["a.jsonl"], budget=5)


@pytest.fixture
def folder(tmp_path):
    """A folder as a run leaves it, as far as a walk can see."""
    run = tmp_path / "run"
    with Store.open(run) as store:
        for name in ("rows", "embeddings", "rounds/1/checkpoint"):
            (run / name).mkdir(parents=True)
            (run / name / "00000-0000.npy").write_bytes(b"x" * 9)
        (run / "selected-a.jsonl").write_text("{}\n")
        (run / "rounds" / "2").mkdir()
        store.write_manifest({})
    return run


@pytest.mark.parametrize("name", WALKS)
@pytest.mark.parametrize("call", ["scandir", "listdir", "stat", "lstat"])
def test_what_vanishes_at_any_call_is_passed_over(name, call, folder, tmp_path, monkeypatch):
    """Take away what a call of the system is about to look at, each call in its turn."""
    original = getattr(os, call)
    for nth in range(200):
        run = tmp_path / "copy" / "run"
        shutil.rmtree(run.parent, ignore_errors=True)
        shutil.copytree(folder, run)
        calls, gone = 0, []

        def vanishing(path=".", *, _run=run, _nth=nth, _gone=gone, **options):
            nonlocal calls
            # What makes a run folder one stays, and what makes it a finished one.
            inside = isinstance(path, str | os.PathLike) and Path(path).is_relative_to(_run)
            if inside and Path(path).name not in (_run.name, ".pyids", "manifest.json"):
                calls += 1
                if calls == _nth + 1:
                    _gone.append(path)
                    with monkeypatch.context() as plain:
                        plain.setattr(os, call, original)
                        away = tmp_path / "copy" / "away"
                        if os.path.lexists(path):
                            os.rename(path, away)
            return original(path, **options)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, vanishing)
            WALKS[name](run)
        if not gone:
            break
    assert nth < 199


@pytest.mark.parametrize("name", WALKS)
def test_walks_beside_a_process_that_renames(name, folder):
    """The same beside a thread that does what a run does, for some tenths of a second."""
    ended = threading.Event()

    def work():
        rounds, n = folder / "rounds", 0
        while not ended.is_set():
            n += 1
            new = rounds / f".checkpoint.{n:032x}"
            new.mkdir()
            (new / "a.bin").write_bytes(b"x")
            os.replace(new, rounds / "3")
            temporary = folder / "rows" / f".{n}.tmp"
            temporary.write_bytes(b"x")
            if name != "open":  # which removes what is unfinished
                os.replace(temporary, folder / "rows" / "00001-0000.npy")
            shutil.rmtree(rounds / "3")

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(20):
            WALKS[name](folder)
    finally:
        ended.set()
        thread.join()


def test_a_folder_that_cannot_be_read_is_not_an_empty_one(tmp_path, monkeypatch):
    """A walk that finds nothing where it may not look would let a bucket lose its objects."""
    (tmp_path / "rows").mkdir()

    def failing(path):
        raise OSError(24, "Too many open files", str(path))

    monkeypatch.setattr(os, "scandir", failing)
    monkeypatch.setattr(os, "listdir", failing)
    with pytest.raises(OSError, match="Too many"):
        list(files_inside(tmp_path))
    with pytest.raises(OSError, match="Too many"):
        entries_of(tmp_path)
    with pytest.raises(OSError, match="Too many"):
        changes_here(Path(tmp_path))
