"""What a caller in Python gives, paths or data in memory, made into a configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyids.config import RunConfig, load_config, make_config
from pyids.errors import ConfigError
from pyids.store.bucket import working_in
from pyids.store.objects import is_bucket


@contextmanager
def working(config: RunConfig) -> Iterator[RunConfig]:
    """Give a configuration whose run folder lies on this machine; see `pyids.store.bucket`."""
    if config.output_dir is None or not is_bucket(config.output_dir):
        yield config
        return
    with working_in(config.output_dir) as folder:
        yield config.model_copy(update={"output_dir": str(folder)})


@contextmanager
def folder_here(folder: str | Path) -> Iterator[Path]:
    """Give a run folder on this machine, be it in a bucket."""
    if is_bucket(folder):
        with working_in(str(folder)) as path:
            yield path
    else:
        yield Path(folder)


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
    return make_config(**_on_disk(given))


def _on_disk(fields: dict[str, Any]) -> dict[str, Any]:
    """Write data and vectors that stand in memory to the run folder; give their paths.

    Raises
    ------
    ConfigError
        Data is in memory, and no run folder is named.
    """
    fields = {
        name: str(value) if isinstance(value, Path) else value for name, value in fields.items()
    }
    data = fields.get("data")
    if isinstance(data, list | tuple) and all(isinstance(item, str | Path) for item in data):
        fields["data"] = [str(item) for item in data]
    in_memory = {
        name: fields[name]
        for name in ("data", "embeddings_file", "target_embeddings_file")
        if name in fields and not _is_path(fields[name])
    }
    if not in_memory:
        return fields
    if "output_dir" not in fields:
        raise ConfigError(
            f"{', '.join(in_memory)} in memory is written to the run folder, and none is named: "
            "give output_dir"
        )
    from pyids.data.memory import FILES, materialize
    from pyids.data.replaced import put_back, put_in
    from pyids.store.files import atomic_write, write_npy
    from pyids.store.folder import Store
    from pyids.store.place import check_writable_place

    if is_bucket(fields["output_dir"]):
        raise ConfigError(
            f"{', '.join(in_memory)} in memory and a run folder in a bucket: write it to a file, "
            "or to a bucket, first"
        )
    check_writable_place(fields["output_dir"])
    make_config(**(fields | {name: "in memory" for name in in_memory}))  # before any work
    with Store.open(fields["output_dir"]) as store:
        folder = store.path / "input"
        folder.mkdir(exist_ok=True)
        put_back(folder)  # what a killed process left
        for name, value in in_memory.items():
            others: tuple[str, ...] = ()
            if name == "data":
                new, others = materialize(value, store.scratch), FILES
            else:
                array = _as_matrix(name, value)
                new = store.scratch / f"{name.removesuffix('_file')}.npy"
                new.parent.mkdir(exist_ok=True)
                with atomic_write(new) as temporary, temporary.open("wb") as file:
                    write_npy(file, array)
            path = put_in(new, folder, *others)
            fields[name] = [str(path)] if name == "data" else str(path)
    return fields


def _is_path(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(isinstance(item, str) for item in value)
    return isinstance(value, str)


def _as_matrix(name: str, value: Any) -> NDArray[np.floating[Any]]:
    """Copy vectors to an array: an ndarray, a tensor of any device, nested lists of numbers."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = (value.float() if "bfloat16" in str(value.dtype) else value).numpy()
    array = np.asarray(value)
    if array.dtype.kind != "f" or array.ndim != 2:
        raise ConfigError(
            f"{name} is {array.dtype} of shape {array.shape}: give a matrix of floats, a row for "
            "each row of the data, or the path of a .npy file"
        )
    return array
