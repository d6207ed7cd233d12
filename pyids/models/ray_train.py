"""A training of several processes that Ray Train starts, and starts again where one dies."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyids.engine import make_engine
from pyids.errors import ConfigError, ModelError, PyidsError
from pyids.models.distributed import Processes, be_one_of_several

# Times that a training begins anew when a worker or its node dies.
_RETRIES = 3

# What a worker leaves where the training cannot succeed, however often it begins.
_PROBLEM = "problem.json"


def check_cluster(processes: Processes, device: str) -> None:
    """Check that a cluster has room for a training on the device.

    Raises
    ------
    ConfigError
        It has fewer CPUs or GPUs than processes, or Ray Train is missing; in one line.
    """
    flag = "--num-gpus" if processes.gpus else "--num-processes"
    kind = "CPU" if device == "cpu" else "GPU"
    with make_engine("ray", processes.number, address=processes.address):
        _trainer()
        there = int(_ray().cluster_resources().get(kind, 0))
    if there < processes.number:
        raise ConfigError(
            f"{flag} {processes.number}: the Ray cluster has {there} {kind}s, and each process "
            "takes one: lower it, or add nodes"
        )


def _ray() -> Any:
    import ray

    return ray


def _trainer() -> Any:
    try:
        from ray.train.torch import TorchTrainer
    except ImportError as error:
        raise ConfigError(
            f"training on a Ray cluster needs Ray Train ({error}): pip install 'ray[train]'"
        ) from None
    return TorchTrainer


def train_on_ray(processes: Processes, folder: Path, files: Sequence[str], *, cpu: bool) -> None:
    """Train the job of a folder under Ray Train's TorchTrainer.

    A training whose worker dies begins anew, a few times, to the same weights.

    Parameters
    ----------
    folder
        Lies where all nodes see it.
    files
        What else every node must see.
    cpu
        Whether it runs on CPUs.

    Raises
    ------
    ModelError
        It fails; in one line.
    """
    loggers = [logging.getLogger(name) for name in ("ray.train", "ray.tune")]
    levels = [one.level for one in loggers]
    with make_engine("ray", processes.number, address=processes.address) as engine:
        engine.check(folder, files)
        trainer_type = _trainer()
        import ray
        from ray.train import FailureConfig, RunConfig, ScalingConfig

        for one in loggers:
            one.setLevel(logging.ERROR)
        trainer = trainer_type(
            _work,
            train_loop_config={"folder": str(folder.absolute())},
            scaling_config=ScalingConfig(
                num_workers=processes.number,
                use_gpu=not cpu,
                resources_per_worker={"CPU": 1} if cpu else {"GPU": 1},
            ),
            run_config=RunConfig(
                name="ray",
                storage_path=str(folder.absolute()),
                failure_config=FailureConfig(max_failures=_RETRIES),
            ),
        )
        try:
            trainer.fit()
        except (ray.train.TrainingFailedError, ray.exceptions.RayError) as error:
            raise _problem(folder, error) from None
        finally:
            for one, level in zip(loggers, levels, strict=True):
                one.setLevel(level)
            shutil.rmtree(folder / "ray", ignore_errors=True)


def _work(config: dict[str, str]) -> None:
    """Be one of the workers; what no second try would mend ends every try at once."""
    folder = Path(config["folder"])
    if (folder / _PROBLEM).exists():
        raise ModelError("an earlier try failed: see what it says")
    try:
        be_one_of_several(folder)
    except PyidsError as error:
        (folder / _PROBLEM).write_text(json.dumps(str(error)), encoding="utf-8")
        raise


def _problem(folder: Path, error: Exception) -> ModelError:
    try:
        return ModelError(json.loads((folder / _PROBLEM).read_bytes()))
    except FileNotFoundError:
        pass
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[-1] if lines else type(error).__name__
    return ModelError(
        f"Ray Train: the training failed {_RETRIES + 1} times ({reason:.200}): mend it, and give "
        "the same command again"
    )
