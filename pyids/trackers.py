"""Experiment trackers that see the rounds of a selection: wandb, mlflow, tensorboard, trackio.

All log the same metrics, at the round's number (from 1) as the step. The packages are imported when
a tracker is started; where a run is sent, and whether it is sent at all, is what their own settings
say (``WANDB_MODE=offline``, ``MLFLOW_TRACKING_URI``, ``TRACKIO_DIR``, ...).
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pyids.callbacks import Callback
from pyids.config import RunConfig
from pyids.errors import ConfigError
from pyids.terminal import printable

if TYPE_CHECKING:
    from pyids.models.checkpoints import Checkpoint
    from pyids.scoring.probes import Scores
    from pyids.selection import Selection

logger = logging.getLogger("pyids")

PROJECT = "pyids"


class Tracker(Callback):
    """Logs what each round came to; `begin`, `log` and `end` are what a tracker adds.

    The metrics: ``rows`` drawn in the round, ``rows_in_all``, ``clusters`` drawn from, ``loss`` and
    ``train_seconds`` of the training, ``score_mean`` of the probe rows, ``scored_rows``,
    ``effective_clusters`` (the exponential of the entropy of the new weights) and
    ``largest_weight`` (as a multiple of an equal one).

    Parameters
    ----------
    config
        The configuration of the run; it is logged as its parameters, without where files lie.
    """

    def __init__(self, config: RunConfig) -> None:
        self.name = config.output_path.name
        self.folder = config.output_path
        self.parameters = _parameters(config)
        self._metrics: dict[str, float] = {}
        self._begun = self._failed = False

    def begin(self) -> None:
        """Begin a run of the tracker, when the first rows have been drawn."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Log the metrics of one round."""
        raise NotImplementedError

    def end(self) -> None:
        """End the run of the tracker."""

    def on_draw(self, selection: Selection, n: int) -> None:
        """See `pyids.callbacks.Callback`."""
        self._begin()
        quotas = selection.rounds.quotas(n)
        self._metrics |= {
            "rows": int(quotas.sum()),
            "rows_in_all": len(selection.rounds.selected()),
            "clusters": int(np.count_nonzero(quotas)),
        }

    def on_train(self, selection: Selection, n: int, checkpoint: Checkpoint) -> None:
        """See `pyids.callbacks.Callback`."""
        self._metrics["train_seconds"] = checkpoint.seconds
        if checkpoint.loss is not None:
            self._metrics["loss"] = checkpoint.loss

    def on_score(self, selection: Selection, n: int, scores: Scores) -> None:
        """See `pyids.callbacks.Callback`."""
        values = scores.values[np.isfinite(scores.values)]
        if len(values):
            self._metrics["score_mean"] = float(values.mean())

    def on_round_end(self, selection: Selection, n: int) -> None:
        """See `pyids.callbacks.Callback`."""
        if selection.rounds.told > n:
            weights = selection.rounds.weights(n + 1)
            some = weights[weights > 0]
            self._metrics |= {
                "scored_rows": int(selection.rounds.summary(n)["scored_rows"]),
                "effective_clusters": float(np.exp(-(some * np.log(some)).sum())),
                "largest_weight": float(weights.max() * len(weights)),
            }
        self._begin()
        metrics, self._metrics = self._metrics, {}
        if self._failed:
            return
        # Any exception: there may be a server behind it, and a round of training is worth more.
        try:
            # A tracker's axis has no place for what is not a number.
            self.log({name: x for name, x in metrics.items() if math.isfinite(x)}, n + 1)
            if n + 1 == selection.config.rounds:
                self.end()
        except Exception as error:  # noqa: BLE001  packages of others raise anything
            self._failed = True
            logger.warning(
                "%s did not take the metrics of round %d (%s): the run goes on without it",
                *(type(self).__name__, n + 1, _in_short(error)),
            )

    def _begin(self) -> None:
        """Begin, once, before anything is trained: what is wrong then is found early."""
        if self._begun:
            return
        try:
            self.begin()
        except Exception as error:
            raise ConfigError(
                f"{type(self).__name__} cannot log this run ({_in_short(error)}): see its "
                "settings, or leave --report-to out"
            ) from error
        self._begun = True


class WandB(Tracker):
    """Weights & Biases."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self._wandb = _package("wandb")

    def begin(self) -> None:
        """See `Tracker`."""
        self._run = self._wandb.init(project=PROJECT, name=self.name, config=self.parameters)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """See `Tracker`."""
        self._run.log(dict(metrics), step=step)

    def end(self) -> None:
        """See `Tracker`."""
        self._run.finish()


class MLflow(Tracker):
    """MLflow."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self._mlflow = _package("mlflow.tracking", "mlflow")

    def begin(self) -> None:
        """See `Tracker`."""
        client = self._mlflow.MlflowClient()
        experiment = client.get_experiment_by_name(PROJECT)
        number = experiment.experiment_id if experiment else client.create_experiment(PROJECT)
        self._client = client
        self._run = client.create_run(number, run_name=self.name).info.run_id
        for name, value in self.parameters.items():
            client.log_param(self._run, name, str(value)[:500])

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """See `Tracker`."""
        for name, value in metrics.items():
            self._client.log_metric(self._run, name, value, step=step)

    def end(self) -> None:
        """See `Tracker`."""
        self._client.set_terminated(self._run)


class TensorBoard(Tracker):
    """TensorBoard: event files beside the run folder, in ``NAME-tensorboard``."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        _package("tensorboard")
        self._package = _package("torch.utils.tensorboard", "torch")

    def begin(self) -> None:
        """See `Tracker`."""
        folder: Path = self.folder.with_name(f"{self.name}-tensorboard")
        self._writer = self._package.SummaryWriter(str(folder))
        lines = (f"{name}: {value}" for name, value in self.parameters.items())
        self._writer.add_text("parameters", "    " + "\n    ".join(lines))

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """See `Tracker`."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def end(self) -> None:
        """See `Tracker`."""
        self._writer.close()


class Trackio(Tracker):
    """Trackio."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self._trackio = _package("trackio")

    def begin(self) -> None:
        """See `Tracker`."""
        self._trackio.init(project=PROJECT, name=self.name, config=self.parameters)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """See `Tracker`."""
        self._trackio.log(dict(metrics), step=step)

    def end(self) -> None:
        """See `Tracker`."""
        self._trackio.finish()


_TRACKERS: dict[str, type[Tracker]] = {
    "wandb": WandB,
    "mlflow": MLflow,
    "tensorboard": TensorBoard,
    "trackio": Trackio,
}


def start(name: str, config: RunConfig) -> Tracker:
    """Start the tracker of that name for one run.

    Raises
    ------
    ConfigError
        There is none of that name, or its package is not installed.
    """
    if name not in _TRACKERS:
        raise ConfigError(f"there is no tracker {name!r}: choose one of {', '.join(_TRACKERS)}")
    return _TRACKERS[name](config)


def _package(module: str, package: str | None = None) -> Any:
    try:
        return import_module(module)
    except ImportError:
        package = package or module
        raise ConfigError(
            f"--report-to needs the package {package}: pip install {package}, or leave it out"
        ) from None


def _parameters(config: RunConfig) -> dict[str, Any]:
    """Return the options that were chosen, without paths: where files lie is nobody's business."""
    values = {name: _without_folder(value) for name, value in config.model_dump().items()}
    for name in ("data", "embeddings_file"):
        if isinstance(value := values[name], list):
            values[name] = ", ".join(value)
    del values["output_dir"]
    return {name: value for name, value in values.items() if value is not None}


def _without_folder(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_folder(one) for one in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _in_short(error: BaseException) -> str:
    """Return the first line of what a package says, without what stands before the @ of a URL."""
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    shown = printable(re.sub(r"//[^/@\s]*@", "//...@", said), one_line=True)[:300]
    return f"{type(error).__name__}: {shown}"
