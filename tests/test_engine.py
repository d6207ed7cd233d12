"""The engines: order, bounded look-ahead, errors, dead workers, and a cluster that is not ours."""

import itertools
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import orjson
import pytest

from pyids.config import make_config
from pyids.data.ingest import ingest
from pyids.data.precomputed import take_vectors
from pyids.data.sources import open_sources
from pyids.device import task_device
from pyids.engine import IN_FLIGHT, LocalEngine, make_engine, name_of, ray_cluster
from pyids.engine.failing import died
from pyids.engine.node_check import look
from pyids.engine.ray import RayEngine
from pyids.errors import ConfigError, DataError, PyidsError
from pyids.pipeline.preflight import check_inputs, check_model
from pyids.pipeline.prepare import prepare
from pyids.scoring.cache import store_quality
from pyids.selection import Selection
from pyids.store.files import hash_file, known_hash
from pyids.store.folder import Shard, Store
from pyids.store.reading import hash_ahead

# The workers import the tasks by name: the folder of the tests goes on their path and on ours.
sys.path.insert(0, str(Path(__file__).parent))
from engine_tasks import (
    Job,
    die_at_three,
    die_once,
    folder_bytes,
    process_id,
    process_that_loaded,
    raise_at_three,
    refuse_three,
    stuck_once,
    take_a_second,
    when,
    write_number,
)


@pytest.fixture(scope="module", autouse=True)
def path_of_ray_workers(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        # Ray puts the working directory on the path of its workers: not the source tree.
        patch.chdir(tmp_path_factory.mktemp("here"))
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


def test_an_exception_of_a_task_names_what_it_worked_on(engine, tmp_path):
    with pytest.raises(Exception, match="row 3 holds that") as raised:
        list(engine.map(raise_at_three, jobs(tmp_path)))
    assert "in the task of Job(number=3" in "".join(raised.value.__notes__)
    [failed] = engine.failed
    assert (failed.reason, failed.item.number) == ("PickyError", 3)
    assert failed.error is raised.value
    if engine.workers > 1:
        assert "raise_at_three" in "".join(raised.value.__notes__)  # where it was raised
    assert list(engine.map(refuse_three, jobs(tmp_path, 3))) == [0, 1, 2]
    assert engine.failed == ()


def test_a_dead_local_worker_is_an_error_and_no_hang(tmp_path, caplog):
    with LocalEngine(2) as engine:
        results = engine.map(die_at_three, jobs(tmp_path))
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(PyidsError, match=r"a worker process died twice .* at Job\(number=3"):
            next(results)
        assert "trying them again" in caplog.text
        assert [one.item.number for one in engine.failed] == [3]
        assert list(engine.map(refuse_three, jobs(tmp_path, 3))) == [0, 1, 2]


def test_a_local_worker_that_dies_once_costs_nothing(tmp_path):
    with LocalEngine(2) as engine:
        assert list(engine.map(die_once, jobs(tmp_path, 20))) == [n**2 for n in range(20)]
    assert (tmp_path / "died-3").exists()


def test_a_worker_that_is_killed_while_it_waits_leaves_nobody_behind(tmp_path):
    """It holds the lock of the queue of tasks, and the others would wait for it for ever."""
    with LocalEngine(2) as engine:
        list(engine.map(process_id, jobs(tmp_path, 4)))
        workers = list(engine._pool._processes.values())
        time.sleep(0.5)  # until both wait: one in the queue, one for its lock
        os.kill(workers[0].pid, signal.SIGKILL)
        # Long enough that the other worker is not through before the death is noticed.
        assert list(engine.map(take_a_second, jobs(tmp_path, 5))) == [0, 1, 2, 3, 4]
        # By the system's word: two threads that wait for one child may both be told nothing.
        deadline = time.monotonic() + 20
        while any(Path(f"/proc/{process.pid}").exists() for process in workers):
            assert time.monotonic() < deadline, "a worker is left behind"
            time.sleep(0.05)


@pytest.mark.parametrize("gpu", [False, True])
def test_a_dead_ray_worker_is_an_error_and_no_hang(ray_engine, tmp_path, gpu):
    results = ray_engine.map(die_at_three, jobs(tmp_path), gpu=gpu)
    with pytest.raises(PyidsError, match=r"a Ray worker died .* 4 times.* at Job\(number=3"):
        list(results)
    assert [one.item.number for one in ray_engine.failed] == [3]
    assert list(ray_engine.map(refuse_three, jobs(tmp_path, 3))) == [0, 1, 2]


@pytest.mark.parametrize("gpu", [False, True])
def test_a_stuck_task_is_tried_elsewhere(ray_engine, tmp_path, gpu):
    with RayEngine(workers=2, task_timeout=15) as engine:
        found = list(engine.map(stuck_once, jobs(tmp_path, 8), gpu=gpu))
    assert found == [n**2 for n in range(8)]
    assert (tmp_path / "stuck-3").exists()


@pytest.mark.parametrize("gpu", [False, True])
def test_a_task_that_is_always_stuck_is_named(ray_engine, monkeypatch, gpu):
    monkeypatch.setattr("pyids.engine.ray_actors.RETRIES", 1)
    with RayEngine(workers=2, task_timeout=15) as engine:
        found = engine.map(stuck_once, jobs("always", 5), gpu=gpu)
        with pytest.raises(PyidsError, match=r"number=3, .*not done after 15 s .*, 2 times: give"):
            list(found)


def test_tasks_are_named_by_their_rows():
    class Item:
        shard = Shard("00002-0001", 100, 50, 0, 0)

    assert name_of(Item()) == "shard 00002-0001 (rows 100 to 149)"

    class Several:
        shards = (Shard("a", 0, 10, 0, 0), Shard("b", 10, 5, 0, 0))

    assert name_of(Several()) == "shard a to b (rows 0 to 14)"
    assert name_of(7) == "7"


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


@pytest.mark.parametrize("gpu", [False, True])
def test_a_task_whose_worker_is_killed_runs_again(ray_engine, tmp_path, gpu):
    assert list(ray_engine.map(die_once, jobs(tmp_path, 6), gpu=gpu)) == [0, 1, 4, 9, 16, 25]
    assert (tmp_path / "died-3").exists()


def test_what_a_process_loads_is_loaded_once_in_each(ray_engine, tmp_path):
    found = set(ray_engine.map(process_that_loaded, jobs(tmp_path, 20), gpu=True))
    assert len(list(tmp_path.glob("loaded-*"))) == len(found) == ray_engine.workers == 2
    # The next stage finds them; one of another kind gets their CPUs.
    assert set(ray_engine.map(process_that_loaded, jobs(tmp_path, 20), gpu=True)) == found
    assert len(list(ray_engine.map(refuse_three, jobs(tmp_path, 3)))) == 3


@pytest.mark.slow
def test_what_workers_lack_travels_with_the_command(tmp_path, monkeypatch):
    """A module that no worker has, named in the environment, on a cluster that runs."""
    pytest.importorskip("ray", reason="the package ray is not installed")
    package = tmp_path / "carried"
    package.mkdir()
    (package / "__init__.py").write_text("def square(number):\n    return number**2\n")
    (tmp_path / "env.yaml").write_text(f"py_modules: ['{package}']\nenv_vars: {{PART: '7'}}\n")
    monkeypatch.setenv("PYIDS_RUNTIME_ENV", str(tmp_path / "env.yaml"))
    # A user who has a token, and a cluster that asks for none: its actors must live.
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    # Where Ray leaves the address of the cluster: others on this machine are not to join it. Its
    # sockets' names must be short.
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        assert run_with_carried(tmp_path) == "[11, 16] [23]"


@pytest.mark.slow
def test_a_runtime_environment_that_cannot_be_made_is_one_line(tmp_path, monkeypatch):
    """A package that pip cannot find: its index answers nobody, so that no network is needed."""
    pytest.importorskip("ray", reason="the package ray is not installed")
    monkeypatch.setenv("PYIDS_RUNTIME_ENV", '{"pip": ["no-such-package-of-anybody"]}')
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    script = (
        "import pathlib\n"
        "from ray.cluster_utils import Cluster\n"
        "from pyids.engine.ray import RayEngine\n"
        "cluster = Cluster(initialize_head=True, head_node_args={'num_cpus': 1})\n"
        "with RayEngine(cluster.address) as engine:\n"
        "    for work in (\n"
        "        lambda: list(engine.map(abs, [1, 2])),\n"
        "        lambda: list(engine.map(abs, [1, 2], gpu=True)),\n"
        "        lambda: engine.check(pathlib.Path('.'), []),\n"
        "    ):\n"
        "        try:\n"
        "            work()\n"
        "        except Exception as error:\n"
        "            print('raised', type(error).__name__, error)\n"
        "import ray\n"
        "ray.shutdown()\n"
        "cluster.shutdown()\n"
    )
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        done = subprocess.run(
            [sys.executable, "-P", "-c", script], capture_output=True, text=True, cwd=tmp_path,
            check=False,
        )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("raised")]
    assert len(lines) == 3, done.stderr[-2000:]
    for line in lines:
        assert line.startswith("raised ConfigError")
        assert "the runtime environment of PYIDS_RUNTIME_ENV cannot be made on a node" in line
        # Without virtualenv Ray comes no further than to say so.
        assert "no-such-package-of-anybody" in line or "virtualenv" in line
        assert line.endswith("mend what it names, or unset PYIDS_RUNTIME_ENV")
    assert "Ray node" in lines[2]


def run_with_carried(folder):
    script = (
        "import os, sys\n"
        "from ray.cluster_utils import Cluster\n"
        "from pyids.engine.ray import RayEngine\n"
        "def work(number):\n"
        "    import carried\n"
        "    return carried.square(number) + int(os.environ['PART'])\n"
        "cluster = Cluster(initialize_head=True, head_node_args={'num_cpus': 1})\n"
        "with RayEngine(cluster.address) as engine:\n"
        "    print(list(engine.map(work, [2, 3])), list(engine.map(work, [4], gpu=True)))\n"
        "import ray\n"
        "ray.shutdown()\n"
        "cluster.shutdown()\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", script], capture_output=True, text=True, cwd=folder,
        check=False,
    )  # fmt: skip
    return done.stdout.strip() or done.stderr[-2000:]


@pytest.mark.parametrize("given", ["{", "gone.yaml", '{"pip": 5}', "[1, 2]"])
def test_a_runtime_environment_that_is_none_is_one_line(given, monkeypatch):
    pytest.importorskip("ray", reason="the package ray is not installed")
    monkeypatch.setenv("PYIDS_RUNTIME_ENV", given)
    with pytest.raises(
        ConfigError, match=r"^PYIDS_RUNTIME_ENV is no runtime environment \(.*: give"
    ):
        ray_cluster._runtime_env()


def test_the_error_of_an_actor_arrives_as_it_was(ray_engine, tmp_path):
    results = ray_engine.map(refuse_three, jobs(tmp_path), gpu=True)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(DataError, match=r"^row 3 is bad$"):
        next(results)


def test_every_node_is_asked_before_any_work(ray_engine, tmp_path):
    (tmp_path / "pool.jsonl").write_bytes(b"{}")
    ray_engine.check(tmp_path, [str(tmp_path / "pool.jsonl")])
    assert [path.name for path in tmp_path.iterdir()] == ["pool.jsonl"]
    with pytest.raises(ConfigError, match=r"^Ray node \S+ \([0-9.]+\): cannot read \S+gone.jsonl"):
        ray_engine.check(tmp_path, [str(tmp_path / "gone.jsonl")])


def test_what_a_node_lacks_is_said_in_one_line(tmp_path):
    from importlib.metadata import version

    here = version("pyids-select")
    mark = tmp_path / "mark"
    assert "does not see the run folder" in look(str(mark), "1", [], here)
    mark.write_text("2")  # another folder of the same name
    assert "does not see the run folder" in look(str(mark), "1", [], here)
    assert look(str(mark), "2", [], here) is None
    assert f"has pyids {here}, this machine 0.0" in look(str(mark), "2", [], "0.0")
    assert "cannot read" in look(str(mark), "2", [str(tmp_path / "{x}")], here)


def test_a_gpu_that_no_node_has_is_refused_before_any_work(ray_engine, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"--device cuda:1: no node of the Ray cluster has a GPU"):
        ray_engine.check(tmp_path, [], device="cuda:1")
    monkeypatch.setattr(ray_engine, "_resource", lambda name: 1.0)
    ray_engine.check(tmp_path, [], device="cuda:1")


def test_the_device_of_a_cluster_is_not_this_machines(pool, monkeypatch):
    """A head node need not have the GPU that its workers have; what runs on it says so."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    here, there = (make_config(**pool.options(device="cuda", engine=engine, output_dir="run"))
                   for engine in ("local", "ray"))  # fmt: skip
    with pytest.raises(ConfigError, match="torch finds no such device"):
        check_inputs(here)
    assert check_inputs(there)
    assert task_device(there) == "cuda"
    with pytest.raises(ConfigError, match="torch finds no such device"):
        check_model(there)


def test_only_rows_that_can_be_left_out_are_advised_to_be():
    shard = Shard("0-0", 0, 10, 0, 0)
    alone = died(SimpleNamespace(shard=shard), "it died")
    among = died(SimpleNamespace(shards=(shard,)), "it died")
    for failed in (alone, among):
        assert "at shard 0-0 (rows 0 to 9)" in str(failed.error)
    assert "--skip-failing" in str(alone.error)
    assert "--skip-failing" not in str(among.error)
    assert (alone.shards, among.shards) == ((shard,), ())


def test_workers_follow_the_cluster(ray_engine, monkeypatch):
    engine = make_engine("ray")
    assert engine.workers == 2
    monkeypatch.setattr(engine, "_resource", lambda name: {"CPU": 7.0}.get(name, 0.0))
    assert engine.workers == 7
    assert make_engine("ray", 3).workers == 3


@pytest.mark.parametrize("stay", [False, True])
def test_no_more_tasks_run_at_a_time_than_asked_for(ray_engine, stay):
    """Also where the cluster has room for more."""
    assert ray_engine.workers == 2
    with RayEngine(workers=1) as one:
        times = list(one.map(when, range(6), gpu=stay))
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(sorted(times)))


@pytest.mark.parametrize("stay", [False, True])
def test_a_cluster_that_can_grow_is_told_how_much_work_there_is(ray_engine, stay, monkeypatch):
    """As many as are sent ahead, until the last is sent; not where a number is asked for."""
    asked = []
    monkeypatch.setattr(
        "ray.autoscaler.sdk.request_resources", lambda bundles: asked.append(len(bundles))
    )
    with make_engine("ray") as engine:
        assert engine.workers == 2
        assert len(list(engine.map(process_id, range(9), gpu=stay))) == 9
    assert asked == [4, 0]
    with make_engine("ray", 2) as engine:
        list(engine.map(process_id, range(9), gpu=stay))
    assert asked == [4, 0]


def test_a_cluster_that_refuses_is_not_called_silent(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray", reason="the package ray is not installed")

    def refuse(**options):
        raise ConnectionError("Failed to connect to Ray cluster")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setattr(ray_cluster, "_TRY_SECONDS", 2)
    monkeypatch.setattr(ray_cluster, "_read_mode_again", lambda: None)  # this process has a cluster
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ConfigError, match=r"does not let this process in: .* does not send"):
            make_engine("ray", address=address)
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("secret")
        with pytest.raises(ConfigError, match=r"is not the one in .*auth_token") as raised:
            make_engine("ray", address=address)
        assert "secret" not in str(raised.value)
        assert os.environ.pop("RAY_AUTH_MODE") == "token"


def test_a_cluster_that_does_not_start_is_one_line(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray", reason="the package ray is not installed")

    def fail(**options):
        raise Exception("The current node timed out during startup.\nMore lines.")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", fail)
    monkeypatch.setattr("pyids.engine.ray_cluster._started_cluster", lambda: None)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match=r"cannot start a cluster .*timed out during") as raised:
        make_engine("ray")
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_a_whole_folder_is_the_same_bytes_on_ray(ray_engine, tmp_path, monkeypatch):
    """Read, vectors, k-means, near-duplicates, ratings on Ray, with more groups than workers."""
    for name in "abc":
        rows = [{"prompt": f"{name}{i % 290}", "completion": f"answer {i}"} for i in range(400)]
        (tmp_path / f"{name}.jsonl").write_bytes(b"\n".join(map(orjson.dumps, rows)))
    rng = np.random.default_rng(0)
    np.save(tmp_path / "v.npy", rng.normal(size=(1200, 3)).astype(np.float16))
    found = []
    for engine in ("local", "ray"):
        config = make_config(
            data=[str(tmp_path / "*.jsonl")],
            embeddings_file=str(tmp_path / "v.npy"),
            budget=20,
            rounds=1,
            clusters=7,
            semdedup_threshold=0.999,
            quality="length",
            engine=engine,
            output_dir=str(tmp_path / engine),
        )
        with Selection(prepare(config), config) as selection:
            selection.draw()
            selection.finish()
        found.append(folder_bytes(tmp_path / engine))
        manifest = orjson.loads(found[-1].pop("manifest.json"))
        names = {name for name in found[-1] if not name.endswith("README.md")}
        assert manifest["files"].keys() - {"config.yaml"} == names
    assert found[0] == found[1]
    assert any(name.startswith("distinct/") for name in found[0])
    assert sum(name.startswith("quality/cache/") for name in found[0]) >= 3


def test_rows_get_the_same_ratings_from_every_engine(engine, tmp_path, tiny):
    """A model's ratings to the bit; a worker that has rated a shard does not rate it again."""
    for name in "ab":
        rows = [{"prompt": f"{name}{i}", "completion": "so " * (1 + i % 5)} for i in range(6)]
        (tmp_path / f"{name}.jsonl").write_bytes(b"\n".join(map(orjson.dumps, rows)))
    rated = []
    for number in range(2):
        with Store.open(tmp_path / f"run{number}") as store:
            ingest(store, open_sources([str(tmp_path / "*.jsonl")]), engine=engine)
            where = (LocalEngine(), engine)[number]
            options = {"default_model": tiny, "engine": where}
            rated.append(store_quality(store, "perplexity", **options))
            files = {path: path.stat().st_mtime_ns for path in store.path.rglob("cache/**/*.npy")}
            assert len(files) == 2
            again = store_quality(store, "perplexity", **options)
            assert {path: path.stat().st_mtime_ns for path in files} == files
            assert again.tobytes() == rated[-1].tobytes()
            with pytest.raises(DataError, match=r"a.jsonl: row 1 holds 'a0' in column 'prompt'"):
                store_quality(store, "prompt", **options)
    assert len(set(rated[0].tolist())) > 6
    assert rated[0].tobytes() == rated[1].tobytes()


def test_files_are_hashed_by_the_workers(engine, tmp_path):
    files = [tmp_path / f"{n}.bin" for n in range(70)]
    for n, file in enumerate(files):
        file.write_bytes(bytes([n]) * 1000)
    hash_ahead(engine, files)
    if engine.workers == 1:
        assert all(known_hash(file) is None for file in files)  # it waits until somebody asks
        return
    assert [known_hash(file) for file in files] == [hash_file(file) for file in files]
    files[3].write_bytes(b"other")
    assert known_hash(files[3]) is None
