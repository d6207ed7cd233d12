"""Which run a folder belongs to: its configuration, and what two runs in one folder must share."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyids.config import RunConfig, load_config, make_config
from pyids.data.folders import parse_name
from pyids.data.remote import is_remote
from pyids.data.sources import Source, fingerprint_files, fingerprint_sources
from pyids.data.vector_files import vector_paths
from pyids.errors import ConfigError
from pyids.store.folder import Store

# Where a run works does not change what it selects: these may differ when it goes on.
_MACHINE = {"data", "engine", "workers", "threads", "device", "output_dir", "judge_max_requests"}


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """Give `config` with paths of data and vectors that hold in any working directory."""
    paths: dict[str, Any] = {
        "data": [
            os.path.abspath(name)
            if not is_remote(name)
            and (Path(name).exists() or glob.has_magic(name) or parse_name(name) is not None)
            else name
            for name in config.data  # what is none of these is a name on the hub
        ]
    }
    if (path := config.embeddings_file) is not None:
        paths["embeddings_file"] = os.path.abspath(path)
    return config.model_copy(update=paths)


def identity_of(
    config: RunConfig, sources: Sequence[Source], store: Store | None = None
) -> dict[str, Any]:
    """Collect what two runs in one folder must share: the options and the content of the input."""
    identity = {
        **config.model_dump(exclude=_MACHINE),
        "inputs": fingerprint_sources(sources, store, limit=config.limit),
    }
    if (path := config.embeddings_file) is not None:
        # What is in the file, not where it lies: vectors may move, as data may.
        found = fingerprint_files(vector_paths(path)[0], store)
        identity["embeddings_file"] = found[0] if len(found) == 1 else found
    return identity


def saved_config(folder: Path, **changes: Any) -> RunConfig:
    """Read the configuration that a run folder holds, made to point at that folder.

    Parameters
    ----------
    **changes
        Fields to change in it.

    Raises
    ------
    ConfigError
        It is not a run folder.
    """
    path = folder / "config.yaml"
    if not path.exists():
        raise ConfigError(f"{folder} is not a run folder: it has no config.yaml")
    return make_config(**{**load_config(path), **changes, "output_dir": str(folder)})
