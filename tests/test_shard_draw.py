"""Draws and exports whose rows come from tasks of an engine: the same files as from one process."""

from collections import Counter

import numpy as np
import orjson
import pytest

from pyids.config import make_config
from pyids.data import exported_rows
from pyids.data.export import FORMATS
from pyids.engine import LocalEngine
from pyids.pipeline import shard_draw, target_search
from pyids.pipeline.prepare import prepare
from pyids.selection import Selection

FILES, ROWS = 6, 150
CASES = {
    "rows": {},
    "quality": {"quality": "score"},
    "tokens": {"budget": "3000-tokens"},
    "response tokens of groups": {
        "budget": 900,
        "budget_unit": "response-tokens",
        "group_by": "source",
        "floor": ["b=20%"],
    },
    "groups": {"group_by": "source", "cap": ["a=10"]},
    "target": {"target": "dev.jsonl", "target_embeddings_file": "dev.npy", "quality": "score"},
    "near-duplicates": {"semdedup_threshold": 0.97},
    "target without near-duplicates": {
        "target": "dev.jsonl",
        "target_embeddings_file": "dev.npy",
        "semdedup_threshold": 0.97,
    },
}


class Counting(LocalEngine):
    """Counts what tasks have done; its processes outlive the selections."""

    def map(self, task, items, *, gpu=False):
        for found in super().map(task, items, gpu=gpu):
            self.done[task.__name__] += 1
            yield found

    def close(self):
        pass


@pytest.fixture(scope="module")
def two():
    engine = Counting(2)
    yield engine
    LocalEngine.close(engine)


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(3)
    vectors = rng.standard_normal((FILES * ROWS, 16)).astype(np.float32)
    vectors[50::50] = vectors[49:-1:50]  # near-duplicates
    np.save(tmp_path / "vectors.npy", vectors)
    np.save(tmp_path / "dev.npy", rng.standard_normal((5, 16)).astype(np.float32))
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Question {n} " + "word " * int(rng.integers(1, 30))},
                {"role": "assistant", "content": f"Answer {n * n} " * int(rng.integers(1, 9)),
                 **({"weight": 0} if n % 9 == 0 else {})},
                {"role": "user", "content": "And then?"},
                {"role": "assistant", "content": f"{n}"},
            ],
            "source": "abc"[n % 3],
            "score": n % 11,
        }
        for n in range(FILES * ROWS + 5)
    ]  # fmt: skip
    for n in range(FILES):
        part = rows[n * ROWS : (n + 1) * ROWS]
        (tmp_path / f"{n}.jsonl").write_bytes(b"\n".join(map(orjson.dumps, part)))
    rows[-1] = rows[77]  # a row of the target stands in the pool
    (tmp_path / "dev.jsonl").write_bytes(b"\n".join(map(orjson.dumps, rows[-5:])))
    return tmp_path


def rounds(files, folder, changes, tiny, engine=None):
    """Every file of two rounds and of all formats."""
    changes = {name: str(files / value) if str(value).startswith("dev.") else value
               for name, value in changes.items()}  # fmt: skip
    config = make_config(
        **{"data": [str(files / "[0-9].jsonl")], "embeddings_file": str(files / "vectors.npy"),
           "budget": 60, "rounds": 2, "clusters": 7, "model": tiny, "device": "cpu",
           "output_dir": str(folder), **changes},
    )  # fmt: skip
    with Selection(prepare(config), config, engine=engine) as selection:
        for _ in range(2):
            selection.draw()
            selection.export_probes()
            selection.tell({int(row): float(row % 5) for row in selection.probes()})
        for form in FORMATS:
            selection.export(format=form)
        left = {path.name for path in selection.store.scratch.glob("*-*")}
        assert left <= {f"{shard.name}.npy" for shard in selection.store.shards}
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("case", CASES)
def test_tasks_draw_and_write_what_one_process_does(case, files, tiny, two, monkeypatch, tmp_path):
    folder = tmp_path / "run"
    whole = rounds(files, folder, CASES[case], tiny)
    folder.rename(tmp_path / "whole")
    for module in (shard_draw, exported_rows, target_search):
        monkeypatch.setattr(module, "_TASK_ROWS", 2 * ROWS)
    two.done = Counter()
    shared = rounds(files, folder, CASES[case], tiny, two)
    assert two.done["draw_shards"] >= 4 * 3
    assert two.done["write_lines"] >= 7 * 2
    assert two.done["search_shards"] >= (3 * 3 if "target" in CASES[case] else 0)
    assert shared == whole


def test_the_lines_of_a_task_are_those_of_its_rows_alone(files, tiny, monkeypatch, tmp_path):
    """Shards without a selected row belong to no task; a full task ends."""
    monkeypatch.setattr(exported_rows, "_TASK_ROWS", 2 * ROWS)
    monkeypatch.setattr(exported_rows, "_TASK_SELECTED", 10)
    config = make_config(
        data=[str(files / "[0-9].jsonl")], embeddings_file=str(files / "vectors.npy"), budget=60,
        rounds=1, clusters=7, output_dir=str(tmp_path / "run"),
    )  # fmt: skip
    with prepare(config) as store:
        row_ids = np.r_[3:5, 160:175, 760:780]
        groups = list(exported_rows._groups(store.shards, row_ids))
        shown = [(group.start, group.stop, len(group.shards)) for group in groups]
        assert shown == [(0, 2, 1), (2, 17, 1), (17, 37, 1)]
        assert list(exported_rows._groups(store.shards, row_ids[:0])) == []
