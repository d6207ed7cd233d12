"""The functions that a pipeline calls: the commands of the command line, with Python's values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pyids.callbacks import Callback
from pyids.config import RunConfig
from pyids.pipeline.inputs import config_of, working
from pyids.progress import Progress, listening
from pyids.result import Result

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
        As for `run`.
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
    from pyids.methods.select import select_rows

    with listening(progress), working(config_of(config, {"rounds": 1, **fields})) as made:
        return select_rows(made, method, to, settings=options)
