"""What a caller in Python gives, paths or data in memory, made into a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyids.config import RunConfig, load_config, make_config


def config_of(
    config: RunConfig | Mapping[str, Any] | str | Path | None, fields: Mapping[str, Any]
) -> RunConfig:
    """Make a configuration of one that is given and of fields that win over it.

    Parameters
    ----------
    config
        A configuration, a mapping of its fields, or the path of a YAML file.
    fields
        Fields of `RunConfig`; None counts as not given.

    Raises
    ------
    ConfigError
        A field is missing, unknown or out of range.
    """
    if isinstance(config, RunConfig):
        given: dict[str, Any] = config.model_dump(exclude_unset=True)
    elif isinstance(config, str | Path):
        given = load_config(config)
    else:
        given = dict(config or {})
    given |= {name: value for name, value in fields.items() if value is not None}
    return make_config(**given)
