"""Pick, out of a huge instruction data set, the small subset that trains the better model."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyids.api import run, select
    from pyids.callbacks import Callback
    from pyids.clustering.kmeans import KMeans
    from pyids.config import RunConfig
    from pyids.errors import ConfigError, DataError, ModelError, PyidsError, PyidsWarning
    from pyids.result import Result
    from pyids.sampling import allocate, merge_samples, sample_by_cluster
    from pyids.selection import Selection

# Where the public names live; imported on first use, so that `import pyids` stays light.
_EXPORTS = {
    "Callback": "callbacks",
    "ConfigError": "errors",
    "DataError": "errors",
    "KMeans": "clustering.kmeans",
    "ModelError": "errors",
    "PyidsError": "errors",
    "PyidsWarning": "errors",
    "Result": "result",
    "RunConfig": "config",
    "Selection": "selection",
    "allocate": "sampling",
    "merge_samples": "sampling",
    "run": "api",
    "sample_by_cluster": "sampling",
    "select": "api",
}

__all__ = [
    "Callback",
    "ConfigError",
    "DataError",
    "KMeans",
    "ModelError",
    "PyidsError",
    "PyidsWarning",
    "Result",
    "RunConfig",
    "Selection",
    "allocate",
    "merge_samples",
    "run",
    "sample_by_cluster",
    "select",
]

# To a type checker a name that is not above does not exist.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            from importlib.metadata import version

            return version("pyids-select")
        if name not in _EXPORTS:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)


def _wait_politely() -> None:
    """Let OpenMP's threads, which torch brings, sleep while they wait where others work.

    They spin otherwise, which takes the cores from whoever works there, this process's own threads
    among them. OpenMP reads the policy when torch is imported; one that the user has set stays.
    """
    chosen = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    if "torch" in sys.modules or any(name in os.environ for name in chosen):
        return
    if os.getloadavg()[0] > 0.5 * len(os.sched_getaffinity(0)):
        os.environ["OMP_WAIT_POLICY"] = "passive"


_wait_politely()


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
