"""Pick, out of a huge instruction data set, the small subset that trains the better model."""

from __future__ import annotations

from importlib import import_module
from typing import Any

# Where the public names live; imported on first use, so that `import pyids` stays light.
_EXPORTS = {
    "KMeans": "clustering.kmeans",
    "RunConfig": "config",
    "Selection": "selection",
    "allocate": "sampling",
    "merge_samples": "sampling",
    "run": "selection",
    "sample_by_cluster": "sampling",
}

__all__ = [
    "KMeans",
    "RunConfig",
    "Selection",
    "allocate",
    "merge_samples",
    "run",
    "sample_by_cluster",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("pyids-select")
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
