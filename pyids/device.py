"""The device that a configuration means."""

from __future__ import annotations

from contextlib import suppress

from pyids.config import RunConfig
from pyids.errors import ConfigError


def device(config: RunConfig) -> str:
    """Choose the device of encoder and language model."""
    return find_device(config.device)


def task_device(config: RunConfig) -> str:
    """Name the device of an engine's tasks, which is found where they run (`find_device`).

    On a cluster each task has one GPU of its node, so that none has a number.
    """
    return config.device if config.engine == "local" else config.device.partition(":")[0]


def find_device(name: str) -> str:
    """Return the device that is meant: for ``auto`` CUDA, where there is one.

    Raises
    ------
    ConfigError
        A CUDA device is named that is not there.
    """
    if name == "cpu":
        return name
    found: list[str] = []
    # Without torch, as in an installation of the core alone, there is the CPU.
    with suppress(ImportError):
        import torch

        if torch.cuda.is_available():
            found = ["cuda", *(f"cuda:{n}" for n in range(torch.cuda.device_count()))]
    if name == "auto":
        return "cuda" if found else "cpu"
    if name.startswith("cuda") and name not in found:
        raise ConfigError(
            f"--device {name}: torch finds no such device ({', '.join(found) or 'no CUDA at all'}):"
            " choose auto or cpu"
        )
    return name
