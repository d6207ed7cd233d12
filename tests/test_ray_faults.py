"""Every stage on a Ray cluster of two nodes, of which something dies while it works.

Each stage loses workers: one before its task, one after it, before anybody is told; or it loses the
node that its first task is on. The run folder must hold the bytes that a single process makes, to
the last file. docs/pipelines.md has the table.
"""

import contextlib
import os
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import orjson
import pytest

import pyids
from pyids.config import make_config
from pyids.data import exported_rows
from pyids.engine.ray import RayEngine
from pyids.pipeline import shard_draw, target_search

# The workers import the tasks by name: the folder of the tests goes on their path and on ours.
sys.path.insert(0, str(Path(__file__).parent))
from engine_tasks import die_inside, folder_bytes, node_of, wait_for_the_end

FILES, ROWS = 6, 100
# What must have met a fault: the task of each stage.
TASKS = {"read_split", "_deal", "_find", "_embed_shard", "measure_group", "assign_group",
         "assign_shard", "find_repeats", "_rate_shard", "search_shards", "draw_shards", "do_share",
         "write_lines", "hash_some"}  # fmt: skip


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of two CPUs each, beside the head, on which no task runs."""
    pytest.importorskip("ray", reason="the package ray is not installed")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        patch.chdir(folder)  # Ray puts the working directory on the path: not the source tree
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        made.others = [made.add_node(num_cpus=2) for _ in range(2)]
        with contextlib.closing(RayEngine(made.address)):
            yield made
        import ray

        ray.shutdown()
        made.shutdown()


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pool")
    rng = np.random.default_rng(0)
    words = (Path(__file__).parents[1] / "README.md").read_text().split()
    for n in range(FILES):
        texts = [(" ".join(rng.choice(words, 12)), " ".join(rng.choice(words, 30)))
                 for _ in range(ROWS)]  # fmt: skip
        texts[7] = texts[3]  # an exact duplicate
        rows = [{"prompt": ask, "completion": say} for ask, say in texts]
        (folder / f"{n:02d}.jsonl").write_bytes(b"\n".join(map(orjson.dumps, rows)))
    (folder / "target.json").write_bytes(orjson.dumps(rows[50:60]))
    return folder


def draw(pool, tiny, folder, engine="local"):
    """Let a pool grow by its last file, then draw from it.

    Its files and the model have relative names, which mean nothing where the nodes were started.
    """
    options = dict(
        encoder="wordllama", budget=20, rounds=1, clusters=5, semdedup_threshold=0.95,
        quality="perplexity", target="target.json", model=os.path.relpath(tiny, pool),
        device="cpu", threads=1, oversample=2, engine=engine, output_dir=str(folder),
    )  # fmt: skip
    with contextlib.chdir(pool):
        pyids.Selection.open(folder, make_config(data=["0[0-4].jsonl"], **options)).close()
        with pyids.Selection.open(folder, make_config(data=["*.jsonl"], **options)) as selection:
            selection.draw()
            selection.finish()
    found = folder_bytes(folder)
    return {name: content for name, content in found.items() if name != "manifest.json"}


@pytest.fixture(scope="module")
def whole(pool, tiny, tmp_path_factory):
    """What one process makes of the pool."""
    return draw(pool, tiny, tmp_path_factory.mktemp("here") / "run")


class Dying(RayEngine):
    """Its tasks are done by another function, which is told the task and more.

    Those of the stages in `stay` run in processes that stay, as they do where there is a GPU.
    """

    def __init__(self, address, workers, stay, instead, *more):
        super().__init__(address, workers)
        self.stay, self.instead, self.more = stay, instead, more

    cluster = None  # to be made whole before each stage

    def map(self, task, items, *, gpu=False):
        while self.cluster is not None and len(self.cluster.others) < 2:
            self.cluster.others.append(self.cluster.add_node(num_cpus=2))
        jobs = ((task, *self.more, item) for item in items)
        return super().map(self.instead, jobs, gpu=task.__name__ in self.stay)


def use(monkeypatch, cluster, workers, stay, instead, *more):
    """Let stages run there; what screens candidates runs in processes that stay."""

    def make(*args, **options):
        return Dying(cluster.address, workers, (*stay, "do_share"), instead, *more)

    for user in ("pipeline.stages", "scoring.together"):
        monkeypatch.setattr(f"pyids.{user}.make_engine", make)
    for module in (shard_draw, exported_rows, target_search):
        monkeypatch.setattr(module, "_TASK_ROWS", 2 * ROWS)


@pytest.mark.parametrize(
    ("workers", "stay"),
    [(1, ()), (2, ()), (4, ("_embed_shard", "_rate_shard"))],
    ids=["1", "2", "4, some of which stay"],
)
def test_every_stage_loses_two_workers(
    cluster, pool, tiny, whole, tmp_path, monkeypatch, workers, stay
):
    marks = tmp_path / "marks"
    marks.mkdir()
    use(monkeypatch, cluster, workers, stay, die_inside, str(marks))
    found = draw(pool, tiny, tmp_path / "run", "ray")
    met = {path.name for path in marks.iterdir()}
    assert met >= {f"{task} {when}" for task in TASKS for when in ("before", "after")}
    assert found == whole


def test_every_stage_loses_a_node(cluster, pool, tiny, whole, tmp_path, monkeypatch):
    """The first task of each waits until its node is lost; before the next stage another comes."""
    marks = tmp_path / "marks"
    marks.mkdir()
    lost, over = {}, threading.Event()

    def remove_nodes():
        while not over.wait(0.05):
            for mark in marks.glob("[!.]*"):
                if mark.name in lost:
                    continue
                lost[mark.name] = mark.read_text()
                [node] = [one for one in cluster.others if one.node_id == lost[mark.name]]
                cluster.remove_node(node, allow_graceful=False)
                cluster.others.remove(node)

    monkeypatch.setattr(Dying, "cluster", cluster)  # nodes can be added by the main thread alone
    thread = threading.Thread(target=remove_nodes, daemon=True)
    thread.start()
    try:
        use(monkeypatch, cluster, 4, ("_rate_shard",), wait_for_the_end, str(marks))
        found = draw(pool, tiny, tmp_path / "run", "ray")
    finally:
        over.set()
        thread.join()
    assert lost.keys() >= TASKS
    assert len(set(lost.values())) == len(lost)
    assert found == whole


@pytest.mark.parametrize("stay", [False, True])
def test_a_node_that_comes_during_a_stage_gets_work(cluster, stay):
    """More is asked for than there is; what waits takes no work."""
    engine = RayEngine(cluster.address)
    with contextlib.closing(engine):
        results = engine.map(node_of, range(60), gpu=stay)
        found = [next(results)]
        node = cluster.add_node(num_cpus=2)
        cluster.others.append(node)
        found += results
    assert [number for number, _ in found] == list(range(60))
    assert node.node_id in {where for _, where in found}
    cluster.remove_node(cluster.others.pop())
