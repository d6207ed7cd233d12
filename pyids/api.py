"""The functions that a pipeline calls: the commands of the command line, with Python's values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pyids.callbacks import Callback
from pyids.config import RunConfig, load_config
from pyids.pipeline.inputs import config_of, working
from pyids.progress import Progress, listening
from pyids.result import Result
from pyids.store.place import is_run_folder

Config = RunConfig | Mapping[str, Any] | str | Path


def run(
    config: Config | None = None,
    *,
    callbacks: Sequence[Callback] = (),
    progress: Callable[[Progress], None] | None = None,
    **fields: Any,
) -> Result:
    """Select by rounds of draw, train, score and re-weight (Yu et al., Algorithm 1).

    Parameters
    ----------
    config
        A configuration, a mapping of its fields, or the path of a YAML file.
    callbacks
        What sees the rounds as they happen (`pyids.Callback`).
    progress
        Called with a `pyids.progress.Progress` whenever a stage is further.
    **fields
        Fields of `pyids.RunConfig`, which win over those of `config`: ``data`` and ``budget``
        among them. ``data`` may be paths, a ``datasets.Dataset``, a pandas, polars or Arrow table
        or an iterable of dicts, whose positions are the row ids; ``embeddings_file`` a path, an
        array or a tensor.

    Returns
    -------
    Result

    Raises
    ------
    PyidsError
        What the caller can mend: one line with the remedy.
    """
    from pyids.selection import Selection
    from pyids.selection import run as run_selection

    with listening(progress), working(config_of(config, fields)) as made:
        path = run_selection(made, callbacks)
        with Selection.open(made.output_path) as selection:
            return selection.result(path)


def _run_folder(data: Any) -> Path | None:
    """Return the run folder that data is, alone; None where it is anything else."""
    if isinstance(data, list | tuple) and len(data) == 1:
        [data] = data
    if isinstance(data, str | Path) and is_run_folder(Path(data)):
        return Path(data)
    return None


def _options(config: Config | None) -> dict[str, Any]:
    if isinstance(config, RunConfig):
        return config.model_dump(exclude_unset=True)
    return load_config(config) if isinstance(config, str | Path) else dict(config or {})


def select(
    method: str,
    config: Config | None = None,
    *,
    to: str | Path | None = None,
    options: Mapping[str, Any] | None = None,
    progress: Callable[[Progress], None] | None = None,
    **fields: Any,
) -> Result:
    """Select by one method, without rounds.

    Parameters
    ----------
    method
        A name that `pyids methods` lists, or ``module:function``.
    config, progress, **fields
        As for `run`; where ``data`` is a run folder, the rows, vectors and clusters that it holds
        are selected from, by its own configuration with those fields changed.
    to
        The file to write; by default ``selected-METHOD.jsonl`` of the run folder.
    options
        Options of the method.

    Returns
    -------
    Result

    Raises
    ------
    PyidsError
        What the caller can mend: one line with the remedy.
    """
    from pyids.methods.select import changes_of, rows_from_folder, select_rows

    given = _options(config)
    folder = _run_folder(fields.get("data", given.get("data")))
    if folder is not None:
        own = {name: value for name, value in fields.items() if name != "data"}
        changes = {**changes_of(given), **{n: v for n, v in own.items() if v is not None}}
        with listening(progress):
            return rows_from_folder(folder, method, to, settings=options, **changes)
    with listening(progress), working(config_of(config, {"rounds": 1, **fields})) as made:
        return select_rows(made, method, to, settings=options)
