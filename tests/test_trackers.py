"""Trackers log the rounds: each against its real package, without a network."""

import importlib.util
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

import pyids
from pyids import trackers
from pyids.cli import cli
from pyids.config import make_config
from pyids.errors import ConfigError
from pyids.scoring.probes import Scores


def needs(*packages):
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


@pytest.fixture
def config(pool, tmp_path):
    return make_config(**pool.options(output_dir=str(tmp_path / "run")))


def run(pool, config, tracker):
    """Do the rounds with scores and checkpoints that are made up."""
    with pyids.Selection.open(config.output_path, config, callbacks=[tracker]) as selection:
        while selection.draw():
            n = selection.round
            selection.callbacks.on_train(
                selection, n, SimpleNamespace(loss=2.0 - n, seconds=1.5, rows=20)
            )
            rows = selection.probes()
            scores = Scores((pool.topics[rows] != 3) * 1.0)
            selection.callbacks.on_score(selection, n, scores)
            selection.tell(scores)
        return [float(selection.rounds.weights(n).max() * 4) for n in range(1, 4)]


def test_every_tracker_gets_the_same_metrics(pool, config):
    class Listed(trackers.Tracker):
        logged, ended = [], 0

        def log(self, metrics, step):
            self.logged.append((step, dict(metrics)))

        def end(self):
            Listed.ended += 1

    largest = run(pool, config, tracker := Listed(config))
    assert [step for step, _ in tracker.logged] == [1, 2, 3]
    assert Listed.ended == 1
    assert [m["rows_in_all"] for _, m in tracker.logged] == [20, 40, 60]
    assert [m["loss"] for _, m in tracker.logged] == [2, 1, 0]
    assert [m["largest_weight"] for _, m in tracker.logged] == pytest.approx(largest)
    assert all(1 < m["effective_clusters"] <= 4.0001 for _, m in tracker.logged)
    assert all(0 <= m["score_mean"] <= 1 for _, m in tracker.logged)
    assert str(config.output_path) not in str(tracker.parameters)
    assert tracker.parameters["data"] == "pool.jsonl"


@needs("tensorboard", "torch")
def test_tensorboard(pool, config, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    largest = run(pool, config, trackers.start("tensorboard", config))
    events = EventAccumulator(str(tmp_path / "run-tensorboard"))
    events.Reload()
    scalars = events.Scalars("largest_weight")
    assert [event.step for event in scalars] == [1, 2, 3]
    assert [event.value for event in scalars] == pytest.approx(largest)


@needs("mlflow")
def test_mlflow(pool, config, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlruns")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow.tracking import MlflowClient

    largest = run(pool, config, trackers.start("mlflow", config))
    client = MlflowClient()
    experiment = client.get_experiment_by_name("pyids").experiment_id
    [found] = client.search_runs([experiment])
    history = client.get_metric_history(found.info.run_id, "largest_weight")
    assert [one.value for one in history] == pytest.approx(largest)
    assert found.data.params["budget"] == "60"
    assert found.info.status == "FINISHED"


@needs("wandb")
def test_wandb(pool, config, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    run(pool, config, trackers.start("wandb", config))
    importlib.import_module("wandb").teardown()  # its own process writes, until it has ended
    [written] = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    logged = written.read_bytes()
    assert logged.count(b"largest_weight") >= 3
    assert b"rows_in_all" in logged


@needs("trackio")
def test_trackio(pool, config):
    tracker = trackers.start("trackio", config)
    run(pool, config, tracker)
    # Where conftest.py has sent it.
    found = [path for path in Path(os.environ["TRACKIO_DIR"]).rglob("*") if path.is_file()]
    assert any(b"largest_weight" in path.read_bytes() for path in found)


class Down(trackers.Tracker):
    """A tracker whose server goes away before its call of some name."""

    calls, fails = [], "begin"

    def _call(self, name):
        self.calls.append(name)
        if name == self.fails:
            raise RuntimeError("\nno answer from https://me:secret@host/\x1b[2J\nand more")

    def begin(self):
        self._call("begin")

    def log(self, metrics, step):
        self._call("log")

    def end(self):
        self._call("end")


def test_a_tracker_that_cannot_begin_is_known_before_any_training(pool, config, monkeypatch):
    monkeypatch.setattr(Down, "calls", [])
    with (
        pyids.Selection.open(config.output_path, config, callbacks=[Down(config)]) as selection,
        pytest.raises(ConfigError) as caught,
    ):
        selection.draw()
    said = str(caught.value)
    assert "Down cannot log this run (RuntimeError: no answer from https://...@host/" in said
    assert not {"secret", "\x1b", "\n"} & {
        said[n : n + k] for n in range(len(said)) for k in (1, 6)
    }
    assert Down.calls == ["begin"]


@pytest.mark.parametrize("fails", ["log", "end"])
def test_a_tracker_that_fails_later_costs_no_round(pool, config, monkeypatch, caplog, fails):
    monkeypatch.setattr(Down, "calls", [])
    monkeypatch.setattr(Down, "fails", fails)
    run(pool, config, Down(config))
    assert Down.calls == ["begin", *(["log"] if fails == "log" else ["log"] * 3 + ["end"])]
    [warned] = [line for line in caplog.messages if "goes on without it" in line]
    assert "secret" not in warned
    assert f"round {1 if fails == 'log' else 3} (RuntimeError: no answer" in warned


def test_no_tracker_is_told_where_files_lie(pool, tmp_path):
    for name in ("held-out", "before", "target"):
        (tmp_path / f"{name}.jsonl").write_bytes(pool.path.read_bytes())
    named = {name: str(tmp_path / f"{name}.jsonl") for name in ("held-out", "before", "target")}
    options = {"exclude": named["held-out"], "already": [named["before"]]}
    options |= {"target": named["target"], "model": str(tmp_path / "model")}
    made = make_config(**pool.options(output_dir=str(tmp_path / "run"), **options))
    told = trackers.Tracker(made).parameters
    assert str(tmp_path) not in str(told)
    assert (told["exclude"], told["already"]) == (["held-out.jsonl"], ["before.jsonl"])


def test_a_package_that_is_missing_is_named_before_any_work(pool, tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "import_module", _missing)
    arguments = ["run", str(pool.path), "--budget", "9", "--output-dir", str(tmp_path / "run")]
    result = CliRunner().invoke(cli, [*arguments, "--report-to", "wandb"])
    assert result.exit_code == 2
    assert "pip install wandb" in result.output
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="choose one of wandb"):
        trackers.start("paper", make_config(**pool.options()))


def _missing(name):
    raise ImportError(name)
