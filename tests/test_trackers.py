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
