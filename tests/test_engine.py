"""The engines: order, bounded look-ahead, errors, dead workers, and a cluster that is not ours."""

import os
import socket
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import orjson
import pytest

from pyids.data.ingest import ingest
from pyids.data.precomputed import take_vectors
from pyids.data.sources import open_sources
from pyids.engine import IN_FLIGHT, LocalEngine, RayEngine, make_engine
from pyids.errors import ConfigError, DataError, PyidsError
from pyids.store.folder import Store

# The workers import the tasks by name: the folder of the tests goes on their path and on ours.
sys.path.insert(0, str(Path(__file__).parent))
from engine_tasks import Job, die_at_three, process_id, refuse_three, write_number


@pytest.fixture(scope="module", autouse=True)
def path_of_ray_workers():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        yield


def jobs(folder, n=20):
    return [Job(number, str(folder)) for number in range(n)]


def ray_folders():
    """Folders of the private clusters of this machine."""
    return set(Path(tempfile.gettempdir()).glob("pyids-ray-*"))


@pytest.fixture(scope="module")
def ray_engine():
    ray = pytest.importorskip("ray", reason="the package ray is not installed")
    assert not ray.is_initialized()
    before = ray_folders()
    with RayEngine(workers=2) as engine:
        assert ray_folders() - before
        yield engine
    assert not ray.is_initialized()  # it started the cluster, so it stopped it
    assert not ray_folders() - before


@pytest.fixture(params=["in process", "two processes", "ray"])
def engine(request):
    if request.param == "ray":
        yield request.getfixturevalue("ray_engine")
        return
    with LocalEngine(1 if request.param == "in process" else 2) as engine:
        yield engine


def test_results_come_in_order(engine, tmp_path):
    assert list(engine.map(write_number, jobs(tmp_path))) == [n**2 for n in range(20)]
    assert len(list(tmp_path.iterdir())) == 20
    assert list(engine.map(write_number, [])) == []


def test_few_items_are_taken_ahead(engine, tmp_path):
    taken = []

    def endless():
        for number in range(10**9):
            taken.append(number)
            yield Job(number, str(tmp_path))

    results = engine.map(write_number, endless())
    assert [next(results) for _ in range(3)] == [0, 1, 4]
    assert len(taken) <= 3 + IN_FLIGHT * engine.workers
    results.close()


def test_the_error_of_a_task_arrives_as_it_was(engine, tmp_path):
    results = engine.map(refuse_three, jobs(tmp_path))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(DataError, match=r"^row 3 is bad$"):
        next(results)
    assert list(engine.map(refuse_three, jobs(tmp_path, 3))) == [0, 1, 2]


def test_a_dead_local_worker_is_an_error_and_no_hang(tmp_path):
    with LocalEngine(2) as engine:
        with pytest.raises(PyidsError, match="a worker process died"):
            list(engine.map(die_at_three, jobs(tmp_path)))
        assert list(engine.map(refuse_three, jobs(tmp_path, 3))) == [0, 1, 2]


def test_a_dead_ray_worker_is_an_error_and_no_hang(ray_engine, tmp_path):
    with pytest.raises(PyidsError, match=r"a Ray worker died at Job\(number=3"):
        list(ray_engine.map(die_at_three, jobs(tmp_path)))
    assert list(ray_engine.map(refuse_three, jobs(tmp_path, 3))) == [0, 1, 2]


def test_one_worker_is_this_process_and_two_are_others(tmp_path):
    with LocalEngine() as engine:
        assert set(engine.map(process_id, jobs(tmp_path, 3))) == {os.getpid()}
    with LocalEngine(2) as engine:
        others = set(engine.map(process_id, jobs(tmp_path, 6)))
    assert os.getpid() not in others
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{other}").exists() for other in others):
        assert time.monotonic() < deadline, "the workers outlive their engine"
        time.sleep(0.05)


def test_which_cluster_is_joined(tmp_path, monkeypatch):
    """The one at RAY_ADDRESS, else the one that `ray start` has written down."""
    pytest.importorskip("ray", reason="the package ray is not installed")
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("", 0)) as other:
        started, named = (f"127.0.0.1:{server.getsockname()[1]}" for server in (one, other))
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text(f"{started}\n")
    with pytest.raises(ConfigError, match=f"no Ray cluster answers at '{started}'"):
        make_engine("ray")
    monkeypatch.setenv("RAY_ADDRESS", named)
    with pytest.raises(ConfigError, match=f"no Ray cluster answers at '{named}'"):
        make_engine("ray")


def test_an_address_where_nobody_answers_is_said_at_once(monkeypatch):
    pytest.importorskip("ray", reason="the package ray is not installed")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(ConfigError, match=f"no Ray cluster answers at '{address}': start it"):
        make_engine("ray", address=address)


def test_a_cluster_that_runs_is_used_and_left_running(ray_engine):
    import ray

    with make_engine("ray") as second:
        assert second.workers == 2
        assert list(second.map(refuse_three, jobs("", 3))) == [0, 1, 2]
    assert ray.is_initialized()


def test_reading_gives_the_same_bytes_on_every_engine(engine, tmp_path):
    for name in "abcde":
        rows = [
            {"prompt": f"{name}{i % 300}", "completion": f"answer {i % 300}"} for i in range(400)
        ]
        (tmp_path / f"{name}.jsonl").write_bytes(b"\n".join(map(orjson.dumps, rows)))
    sources = open_sources([str(tmp_path / "*.jsonl")])
    rng = np.random.default_rng(0)
    np.save(tmp_path / "v.npy", rng.normal(size=(2000, 5)).astype(np.float16))
    trees = []
    for folder, where in (("here", LocalEngine()), ("there", engine)):
        with Store.open(tmp_path / folder) as store:
            ingest(store, sources, engine=where)
            assert take_vectors(store, str(tmp_path / "v.npy"), engine=where) == 5
            assert store.kept == 1500
            store.write_manifest({})
        trees.append(orjson.loads((tmp_path / folder / "manifest.json").read_bytes())["files"])
    assert trees[0] == trees[1]
    assert len(trees[0]) > 20


def test_engines_that_cannot_be_made():
    with pytest.raises(ConfigError, match="there is no engine 'dask'"):
        make_engine("dask")
    with pytest.raises(ConfigError, match="workers is 0"):
        make_engine("local", 0)
    with pytest.raises(ConfigError, match="workers is -1"):
        LocalEngine(-1)
