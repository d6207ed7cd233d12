"""Every stage on a Ray cluster of two nodes, of which something dies while it works.

Each stage loses a worker: before its task, or after it, before anybody is told; then one stage
loses a node. The run folder must hold the bytes that a single process makes, to the last file.
"""

import contextlib
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import orjson
import pytest

from pyids import selection as selection_module
from pyids.config import make_config
from pyids.engine.ray import RayEngine
from pyids.pipeline import prepare as prepare_module

# The workers import the tasks by name: the folder of the tests goes on their path and on ours.
sys.path.insert(0, str(Path(__file__).parent))
from engine_tasks import die_inside, folder_bytes, hold_node

FILES, ROWS = 6, 100
# What must have met a fault: the task of each stage.
TASKS = {"read_split", "_deal", "_find", "_embed_shard", "measure_group", "assign_group",
         "find_repeats", "_rate_shard", "hash_some"}  # fmt: skip


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one CPU each."""
    pytest.importorskip("ray", reason="the package ray is not installed")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        patch.chdir(folder)  # Ray puts the working directory on the path: not the source tree
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        made.second = made.add_node(num_cpus=1)
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
    return folder


def draw(pool, tiny, folder):
    config = make_config(
        data=[str(pool / "*.jsonl")], encoder="wordllama", budget=20, rounds=1, clusters=5,
        semdedup_threshold=0.95, quality="perplexity", model=tiny, device="cpu", threads=1,
        output_dir=str(folder),
    )  # fmt: skip
    with selection_module.Selection(prepare_module.prepare(config), config) as selection:
        selection.draw()
        selection.finish()
    found = folder_bytes(folder)
    return {name: content for name, content in found.items() if name != "manifest.json"}


@pytest.fixture(scope="module")
def whole(pool, tiny, tmp_path_factory):
    """What one process makes of the pool."""
    return draw(pool, tiny, tmp_path_factory.mktemp("here") / "run")


class Dying(RayEngine):
    """Some of its tasks are done by another function, which is told the task and more."""

    def __init__(self, address, instead, only, *more):
        super().__init__(address, 2)
        self.instead, self.only, self.more = instead, only, more

    def map(self, task, items, *, gpu=False):
        if self.only in ("every", task.__name__):
            jobs = ((task, *self.more, item) for item in items)
            return super().map(self.instead, jobs, gpu=gpu)
        return super().map(task, items, gpu=gpu)


@pytest.mark.parametrize("when", ["before", "after"])
def test_every_stage_loses_a_worker(cluster, pool, tiny, whole, tmp_path, monkeypatch, when):
    marks = tmp_path / "marks"
    marks.mkdir()

    def make(*args, **options):
        return Dying(cluster.address, die_inside, "every", str(marks), when)

    monkeypatch.setattr("pyids.pipeline.stages.make_engine", make)
    found = draw(pool, tiny, tmp_path / "run")
    assert {path.name for path in marks.iterdir()} >= TASKS
    assert found == whole


def test_a_stage_loses_a_node(cluster, pool, tiny, whole, tmp_path, monkeypatch):
    marks = tmp_path / "marks"
    marks.mkdir()
    node = cluster.second.node_id

    def make(*args, **options):
        return Dying(cluster.address, hold_node, "_embed_shard", str(marks), node)

    def remove():
        while not (marks / "_embed_shard").exists():
            time.sleep(0.05)
        cluster.remove_node(cluster.second, allow_graceful=False)

    monkeypatch.setattr("pyids.pipeline.stages.make_engine", make)
    thread = threading.Thread(target=remove, daemon=True)
    thread.start()
    found = draw(pool, tiny, tmp_path / "run")
    thread.join()
    assert (marks / "_embed_shard").exists()
    assert found == whole
