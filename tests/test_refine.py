"""The loop by ask and tell: no language model, scores that the test makes up."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import orjson
import pytest

import pyids
from pyids.config import make_config
from pyids.errors import ConfigError, DataError
from pyids.pipeline import clusters, prepare
from pyids.scoring.probes import Scores

NOISE = 3  # the topic that the made-up scores call useless


def useful(pool, selection):
    """Score probe rows: 1 for those of a true topic, 0 for noise."""
    return {int(row): float(pool.topics[row] != NOISE) for row in selection.probes()}


def run_to_the_end(pool, path, **options):
    with pyids.Selection.open(path, **pool.options(**options)) as selection:
        while selection.ask() is not None:
            selection.tell(useful(pool, selection))
        return selection.finish().read_bytes()


def test_the_budget_is_met_exactly_and_noise_fades(pool, tmp_path):
    shares = []
    with pyids.Selection.open(tmp_path / "run", **pool.options()) as selection:
        for n in range(3):
            subset = selection.ask()
            assert len(subset) == 20 * (n + 1)
            assert len(set(subset["_pyids_id"])) == len(subset)
            shares.append(np.mean(pool.topics[selection.rounds.selected(n)] == NOISE))
            selection.tell(useful(pool, selection))
        assert selection.ask() is None
        assert shares[2] < shares[0] / 2
        with pytest.raises(ConfigError, match="all 3 rounds have been told"):
            selection.tell({0: 1.0})


def test_asking_twice_gives_the_same_rows(pool, tmp_path):
    with pyids.Selection.open(tmp_path / "run", **pool.options()) as selection:
        assert selection.ask().to_list() == selection.ask().to_list()


def test_tools_and_calls_of_any_schema_come_out_of_ask_as_they_were(pool, tmp_path):
    def tool(name, **properties):
        parameters = {"type": "object", "properties": properties}
        return {"type": "function", "function": {"name": name, "parameters": parameters}}

    for n, row in enumerate(pool.rows[1:], 1):  # the first row has no such column
        row["tools"] = [tool("f", x={"enum": [n]}) if n % 2 else tool("g", x={"enum": ["n"]}, y={})]
        call = {"name": "f", "arguments": {"x": n} if n % 2 else {"x": "n", "y": {"z": n}}}
        row["messages"][1]["tool_calls"] = [{"type": "function", "function": call}]
    pool.write()
    with pyids.Selection.open(tmp_path / "run", **pool.options(budget=400, rounds=1)) as selection:
        asked = selection.ask()
        assert asked["_pyids_id"] == list(range(400))
        assert asked[0]["tools"] is None
        for row, original in zip(asked, pool.rows, strict=True):
            assert row.get("tools") == original.get("tools")
            assert row["messages"] == original["messages"]


def test_scores_may_bring_the_temperature_that_they_are_meant_for(pool, tmp_path):
    def weights(name, scores_of, **options):
        with pyids.Selection.open(tmp_path / name, **pool.options(**options)) as selection:
            selection.draw()
            probes = selection.probes()
            values = (pool.topics[probes] == NOISE) * -1.0
            selection.tell(scores_of(probes, values))
            return selection.rounds.weights(1)

    brought = weights("a", lambda probes, values: Scores(values, temperature=0.5))
    pairs = lambda probes, values: dict(zip(probes, values, strict=True))  # noqa: E731
    asked = weights("b", pairs, temperature=0.5)
    wins = weights("c", lambda probes, values: Scores(values, temperature=9.0), temperature=0.5)
    np.testing.assert_array_equal(brought, asked)
    np.testing.assert_array_equal(wins, asked)
    adaptive = weights("d", lambda probes, values: Scores(values))
    assert (adaptive != asked).any()


def test_probes_are_unseen_and_fresh_in_each_round(pool, tmp_path):
    with pyids.Selection.open(tmp_path / "run", **pool.options(probes_per_cluster=5)) as selection:
        seen = []
        for _ in range(3):
            selection.draw()
            probes = selection.probes()
            assert not set(probes) & set(selection.rounds.selected())
            assert np.bincount(selection.clusters_of(probes)).tolist() == [5] * 4
            seen.append(set(probes.tolist()))
            selection.tell(useful(pool, selection))
        assert seen[0] != seen[1] != seen[2]


def test_the_first_draw_follows_the_sizes_of_the_clusters(pool, tmp_path):
    with pyids.Selection.open(tmp_path / "run", **pool.options()) as selection:
        selection.draw()
        exact = 20 * selection.rounds.sizes / selection.rounds.sizes.sum()
        assert (np.abs(selection.rounds.quotas(0) - exact) < 1).all()


def test_equal_quotas(pool, tmp_path):
    with pyids.Selection.open(tmp_path / "run", **pool.options(allocation="equal")) as selection:
        selection.draw()
        assert selection.rounds.quotas(0).tolist() == [5] * 4


def test_clusters_are_chosen_from_the_data(pool, tmp_path):
    with pyids.Selection.open(tmp_path / "run", **pool.options(clusters="auto")) as selection:
        assert len(selection.rounds.sizes) == 4  # as many as the pool has topics
    evidence = orjson.loads((tmp_path / "run" / "auto_k.json").read_bytes())
    assert evidence["clusters"] == 4
    assert {point["k"] for point in evidence["grid"]} >= {2, 4, 8}


def test_same_seed_same_bytes_other_seed_other_rows(pool, tmp_path):
    first = run_to_the_end(pool, tmp_path / "a")
    assert run_to_the_end(pool, tmp_path / "b", threads=1) == first
    assert run_to_the_end(pool, tmp_path / "c", seed=1) != first


def test_two_workers_give_the_same_bytes(pool, tmp_path):
    first = run_to_the_end(pool, tmp_path / "a")
    assert run_to_the_end(pool, tmp_path / "b", workers=2) == first


def test_a_selection_goes_on_after_every_step(pool, tmp_path):
    whole = run_to_the_end(pool, tmp_path / "whole")
    path = tmp_path / "steps"
    options = pool.options()
    for _ in range(3):
        for step in ("draw", "probes", "tell"):
            with pyids.Selection.open(path, **options) as selection:
                arguments = [useful(pool, selection)] if step == "tell" else []
                getattr(selection, step)(*arguments)
            options = {}
    with pyids.Selection.open(path) as selection:
        assert not selection.draw()
        assert selection.finish().read_bytes() == whole


def test_every_original_column_comes_out_again(pool, tmp_path):
    rows = [orjson.loads(line) for line in run_to_the_end(pool, tmp_path / "run").splitlines()]
    assert len(rows) == 60
    for row in rows:
        original = pool.rows[row["_pyids_id"]]
        assert {name: row[name] for name in original} == original
        assert row["_pyids_round"] in (1, 2, 3)
        assert 0 <= row["_pyids_cluster"] < 4
        assert 0 < row["_pyids_weight"] < 1


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        ({0: float("nan")}, "the score of row 0 is nan"),
        ({400: 1.0}, "row 400 is not in the pool"),
        ({-1: 1.0}, "row -1 is not in the pool"),
    ],
)
def test_bad_scores_are_named(pool, tmp_path, scores, words):
    with pyids.Selection.open(tmp_path / "run", **pool.options()) as selection:
        selection.draw()
        with pytest.raises(DataError, match=words):
            selection.tell(scores)


def test_a_round_is_told_once_and_only_after_it_was_asked_for(pool, tmp_path):
    with pyids.Selection.open(tmp_path / "run", **pool.options()) as selection:
        for n in range(3):
            with pytest.raises(ConfigError, match=rf"round {n + 1} of 3 has not been asked for"):
                selection.tell({0: 1.0})
            for too_early in (selection.probes, selection.train):
                with pytest.raises(ConfigError, match="has not been asked for"):
                    too_early()
            assert selection.rounds.drawn == selection.rounds.told == n
            selection.ask()
            drawn = selection.rounds.selected()
            unseen = next(row for row in range(400) if row not in drawn)
            selection.tell({unseen: 1.0})  # any row of the pool that was not selected
        with pytest.raises(ConfigError, match="all 3 rounds have been told"):
            selection.probes()


def test_a_folder_of_another_config_is_refused(pool, tmp_path):
    pyids.Selection.open(tmp_path / "run", **pool.options()).close()
    with pytest.raises(ConfigError, match=r"clusters was 4, now 5"):
        pyids.Selection.open(tmp_path / "run", **pool.options(clusters=5))


def test_other_vectors_are_refused_as_other_data_are(pool, tmp_path):
    with pyids.Selection.open(tmp_path / "run", **pool.options()) as selection:
        selection.draw()
        drawn = selection.rounds.selected(0)
        selection.tell(useful(pool, selection))
    vectors = np.load(pool.vectors)
    moved = tmp_path / "elsewhere" / pool.vectors.name
    moved.parent.mkdir()
    np.save(moved, vectors)
    with pyids.Selection.open(
        tmp_path / "run", **pool.options(embeddings_file=str(moved))
    ) as selection:
        np.testing.assert_array_equal(selection.rounds.selected(0), drawn)
    np.save(pool.vectors, vectors[::-1])
    with pytest.raises(ConfigError, match=r"another run: embeddings_file was .*vectors\.npy"):
        pyids.Selection.open(tmp_path / "run", **pool.options())


def test_rows_that_were_drawn_keep_their_clusters(pool, tmp_path):
    config = make_config(**pool.options(output_dir=str(tmp_path / "run")))
    with pyids.Selection.open(tmp_path / "run", config) as selection:
        clusters.cluster(selection.store, config.model_copy(update={"seed": 1}))
        clusters.cluster(selection.store, config)
        selection.draw()
        with pytest.raises(ConfigError, match="drew from clusters made with other"):
            clusters.cluster(selection.store, config.model_copy(update={"seed": 1}))


def test_clusters_by_the_cosine_are_found_on_the_cpu(pool, tmp_path):
    config = make_config(**pool.options(output_dir=str(tmp_path / "run"), metric="cosine"))
    with prepare.prepare(config, "embed") as store:
        clusters.cluster(store, config.model_copy(update={"device": "cuda"}))
        assert store.cluster_sizes.sum() == 400


def test_the_number_of_clusters_is_chosen_anew_for_other_vectors(pool, tmp_path):
    config = make_config(**pool.options(output_dir=str(tmp_path / "run"), clusters="auto"))
    with prepare.prepare(config) as store:
        path = tmp_path / "run" / "auto_k.json"
        choice = orjson.loads(path.read_bytes())
        stale = {**choice["inputs"], "embeddings": "others"}
        path.write_bytes(orjson.dumps({**choice, "inputs": stale, "clusters": 7}))
        assert clusters.choose_clusters(store, config) == choice["clusters"]


def test_a_folder_without_a_selection_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="not a run folder"):
        pyids.Selection.open(tmp_path)


TRAINER = """
import json, subprocess, sys
pyids, folder, pool, vectors = sys.argv[1:]
options = ["--data", pool, "--embeddings-file", vectors, "--budget", "30", "--clusters", "4"]
rounds = 0
while True:
    asked = subprocess.run([pyids, "-q", "ask", folder, *options], capture_output=True, text=True)
    options = []
    if asked.returncode == 3:
        break
    assert asked.returncode == 0, asked.stderr
    train, probes = asked.stdout.split()
    rounds += 1
    assert sum(1 for _ in open(train)) == 10 * rounds
    with open(folder + "/my-scores.jsonl", "w") as scores:
        for line in open(probes):
            row = json.loads(line)
            score = float(not row["messages"][0]["content"].startswith("noise"))
            scores.write(json.dumps({"_pyids_id": row["_pyids_id"], "score": score}) + "\\n")
    subprocess.run([pyids, "-q", "tell", folder, scores.name], check=True)
print(rounds)
"""


@pytest.mark.slow
def test_a_trainer_in_another_process_asks_and_tells(pool, tmp_path):
    command = str(Path(sys.executable).with_name("pyids"))
    done = subprocess.run(
        [sys.executable, "-c", TRAINER, command, str(tmp_path / "run"), pool.path, pool.vectors],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "3"
    with pyids.Selection.open(tmp_path / "run") as selection:
        drawn = [pool.topics[selection.rounds.selected(n)] == NOISE for n in range(3)]
        assert drawn[2].mean() < drawn[0].mean()
    assert (tmp_path / "run" / "manifest.json").exists()


CORE = """
import sys
sys.modules |= dict.fromkeys(["torch", "datasets", "transformers", "peft"])  # not installed
import orjson
from click.testing import CliRunner
import pyids
from pyids.cli import cli
from pyids.errors import ConfigError

folder, pool, vectors = sys.argv[1:]
data = ["--data", pool, "--embeddings-file", vectors, "--budget", "20", "--rounds", "2"]

def invoke(*arguments):
    result = CliRunner().invoke(cli, arguments)
    print(result.exit_code, result.exception and repr(result.exception))
    return result.stdout

for options in (data, []):
    probes = invoke("ask", folder, *options).split()[-1]
    with open(folder + "/scores.jsonl", "w") as scores:
        for line in open(probes):
            row_id = orjson.loads(line)["_pyids_id"]
            print(orjson.dumps({"_pyids_id": row_id, "score": 1}).decode(), file=scores)
    invoke("tell", folder, scores.name)
options = {"data": pool, "embeddings_file": vectors, "budget": 20, "rounds": 1}
with pyids.Selection.open(folder + "2", **options) as selection:
    try:
        selection.ask()
    except ConfigError as error:
        print(error)
    selection.tell({int(row): 1.0 for row in selection.probes()})
    selection.finish()
invoke("run", pool, "--embeddings-file", vectors, "--budget", "20", "--dry-run")
"""


def test_the_core_alone_asks_and_tells_with_vectors_of_ones_own(pool, tmp_path):
    done = subprocess.run(
        [sys.executable, "-P", "-c", CORE, str(tmp_path / "run"), pool.path, pool.vectors],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *told, asked, ran = done.stdout.splitlines()
    assert told == ["0 None"] * 4
    assert "need the package datasets: pip install 'pyids-select[train]'" in asked
    assert ran == "2 SystemExit(2)"
    for folder in (tmp_path / "run", tmp_path / "run2"):
        assert orjson.loads((folder / "manifest.json").read_bytes())["device"] == "cpu"
