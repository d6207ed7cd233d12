"""What a model knows of held-out rows: `pyids eval`.

Two instruments. The loss of the response tokens, source by source, is the one that the rounds of a
selection and its training use (`pyids.models.nll.response_nll`). Tasks of the LM evaluation harness
(the package ``lm_eval``, extra ``eval``) bring their own measures.
"""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pyids.data.ingest import describe, ingest
from pyids.data.sources import open_sources
from pyids.device import find_device
from pyids.errors import ConfigError, DataError, ModelError
from pyids.evaluation.harness import find_tasks, run_tasks
from pyids.evaluation.tables import table
from pyids.models.checkpoints import load_adapter
from pyids.models.hub import resolve_model
from pyids.models.lm_head import Head
from pyids.models.load import load_model
from pyids.models.nll import response_nll
from pyids.parsing import parse_row_format
from pyids.pipeline.conversations import Located, check_rows
from pyids.store.folder import Row, Store
from pyids.store.rounds import last_checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


logger = logging.getLogger("pyids")


# Rows that are in memory at a time; they are batched by length among themselves.
_ROWS_AT_A_TIME = 2048


# The column that groups the rows unless another is named, and the group of all without one.
_BY = "source"


_ALL = "all"


@dataclass(frozen=True)
class Group:
    """The loss on the rows of one group.

    Attributes
    ----------
    name
        The value of the column.
    rows
        Rows with a response token.
    response_tokens
        Response tokens of these rows, after truncation.
    token_nll
        Mean NLL over the response tokens, in nats: its exponential is the perplexity.
    row_nll
        Mean over the rows of each row's mean NLL, as the scorers of the rounds count.
    """

    name: str
    rows: int
    response_tokens: int
    token_nll: float
    row_nll: float


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    Attributes
    ----------
    model
        As the caller named it.
    group_by
        The column that groups the rows; None where all are one group.
    groups
        By name.
    skipped
        Rows that were read and have no response token, or are unusable.
    tasks
        Task of the harness -> metric -> value; ``stderr`` metrics beside their own.
    """

    model: str
    group_by: str | None = None
    groups: tuple[Group, ...] = ()
    skipped: int = 0
    tasks: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def macro(self) -> Group:
        """The mean of the groups, each counting the same; rows and tokens are summed."""
        return Group(
            "macro average",
            sum(group.rows for group in self.groups),
            sum(group.response_tokens for group in self.groups),
            float(np.mean([group.token_nll for group in self.groups])),
            float(np.mean([group.row_nll for group in self.groups])),
        )

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {**asdict(self), **({"macro": asdict(self.macro)} if self.groups else {})}

    def __str__(self) -> str:
        parts = []
        if self.groups:
            shown = (*self.groups, self.macro) if self.group_by else self.groups
            header = (self.group_by or "rows", "rows", "tokens", "nll/token", "nll/row")
            parts.append(table(header, [tuple(asdict(group).values()) for group in shown]))
        if self.tasks:
            cells = [
                (task, metric, value)
                for task, metrics in self.tasks.items()
                for metric, value in metrics.items()
            ]
            parts.append(table(("task", "metric", "value"), cells))
        return "\n\n".join(parts)


def evaluate(
    model: str,
    data: Sequence[str] = (),
    *,
    base_model: str | None = None,
    group_by: str | None = None,
    tasks: Sequence[str] = (),
    include_path: str | None = None,
    apply_chat_template: bool = False,
    format: str = "auto",
    format_map: str | None = None,
    limit: int | None = None,
    max_length: int = 1024,
    device: str = "auto",
    dtype: str = "float32",
    system: str = "error",
) -> Evaluation:
    """Measure a model on held-out rows, and on tasks of the LM evaluation harness.

    Parameters
    ----------
    model
        What `pyids.models.hub.resolve_model` takes; or a LoRA adapter's folder; or a run
        folder, whose last checkpoint is meant.
    data
        Held-out rows: files, folders, globs or a hub name, as for a run. Repeats count.
    base_model
        The model under an adapter, unless it is where the adapter says.
    group_by
        Column whose values group the rows; ``source`` where every row has it, else none.
    tasks
        Names of tasks of the harness.
    include_path
        Folder of task definitions of one's own. A task's YAML may name Python functions beside it,
        which are run.
    apply_chat_template
        Put the tasks' questions into the model's chat template. Rows always are.
    format, format_map
        Chat format of the rows (`pyids.chat.formats`), or which columns hold them, as for a run.
    limit
        Only the first rows of the data, and of each task.
    max_length
        Longest row, and longest input of a task.
    device, dtype
        Where and in which precision the model computes; ``auto`` is CUDA where there is one.
    system
        What is done with a system turn that the model's chat template refuses; see
        `pyids.config.RunConfig`.

    Raises
    ------
    PyidsError
        Neither data nor tasks, a model, base, file, column or task that is not there, or the
        harness is not installed: found before the model is loaded.
    """
    if not data and not tasks:
        raise ConfigError("nothing to evaluate on: name DATA, or tasks with --tasks")
    loader = _find_model(model, base_model, system)
    sources = open_sources(data, format=parse_row_format(format, format_map)) if data else []
    manager = find_tasks(tasks, include_path) if tasks else None
    device = find_device(device)

    found: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        if sources:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="pyids-eval-"))
            store = stack.enter_context(Store.open(folder))
            intake = ingest(store, sources, limit=limit, keep_duplicates=True)
            logger.info("%s", describe(intake))
            group_by = _column(store, group_by)
        network, tokenizer = loader(device, dtype)
        if sources:
            rows = (Located(f"{row.path} line {row.line}", row.messages) for row in _rows(store))
            check_rows(rows, tokenizer, Head.of(network).limits, max_length=max_length)
            found["groups"], without = _by_group(
                network, tokenizer, store, group_by, max_length=max_length, device=device
            )
            found.update(group_by=group_by, skipped=intake.skipped + without)
    if manager is not None:
        found["tasks"] = run_tasks(
            *(network, tokenizer, tasks, manager, limit, max_length),
            apply_chat_template=apply_chat_template,
        )
    return Evaluation(model, **found)


# ---- the model -----------------------------------------------------------------------------------


def adapter_config(name: str) -> Path | None:
    """Return the configuration of the LoRA adapter that is meant, None where it is none."""
    path = _folder(name) / "adapter_config.json"
    return path if path.is_file() else None


def _folder(name: str) -> Path:
    """Return the folder of a model: of a run's, the last checkpoint."""
    folder = Path(name)
    return last_checkpoint(folder) if (folder / "config.yaml").is_file() else folder


def _find_model(name: str, base_model: str | None, system: str) -> Any:
    """Find the weights; return what loads them, given device and dtype."""
    config = adapter_config(name)
    if config is None:
        if base_model is not None:
            raise ConfigError(f"{name} is no adapter: leave out --base-model")
        folder = _folder(name)
        ref = replace(resolve_model(name if folder == Path(name) else str(folder)), system=system)
        return lambda device, dtype: load_model(ref, device, dtype)
    if base_model is None:
        recorded = json.loads(config.read_text("utf-8")).get("base_model_name_or_path") or ""
        try:
            ref = resolve_model(recorded)
        except ModelError as error:
            raise ModelError(
                f"{config.parent}: the model that this adapter was trained from is not found "
                f"({error}): name it with --base-model"
            ) from None
    else:
        ref = resolve_model(base_model, kind="base model")
    ref = replace(ref, system=system)
    return lambda device, dtype: load_adapter(config.parent, ref, device, dtype)


# ---- rows ----------------------------------------------------------------------------------------


def _rows(store: Store) -> Iterator[Row]:
    return (row for shard in store.shards for row in store.iter_rows(shard))


def _column(store: Store, group_by: str | None) -> str | None:
    """Return the column to group by: `group_by`, which every row has, or `_BY` if all have that."""
    if group_by is None:
        return _BY if all(_BY in row.record for row in _rows(store)) else None
    for row in _rows(store):
        group_of(row, group_by)
    return group_by


def group_of(row: Row, group_by: str | None) -> str:
    """Return the group of a row: the text of its value in the column `group_by`.

    Raises
    ------
    DataError
        The row has no such column.
    """
    if group_by is None:
        return _ALL
    if group_by not in row.record:
        raise DataError(
            f"{row.path} line {row.line}: there is no column {group_by!r} to group by: "
            "name another with --group-by"
        )
    value = row.record[group_by]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _by_group(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    store: Store,
    group_by: str | None,
    **options: Any,
) -> tuple[tuple[Group, ...], int]:
    """Return the loss of each group, and how many rows have no response token."""
    sums: dict[str, list[float]] = {}
    without = done = 0
    rows = _rows(store)
    while block := list(islice(rows, _ROWS_AT_A_TIME)):
        names = [group_of(row, group_by) for row in block]
        means, counts = response_nll(model, tokenizer, [row.messages for row in block], **options)
        for name, mean, count in zip(names, means.tolist(), counts.tolist(), strict=True):
            if not count:
                without += 1
                continue
            total = sums.setdefault(name, [0, 0, 0.0, 0.0])
            for i, value in enumerate((1, count, mean * count, mean)):
                total[i] += value
        done += len(block)
        logger.info("evaluated %d of %d rows", done, store.kept)
    if not sums:
        raise DataError("no row has a response token: check the data, or raise --max-length")
    groups = tuple(
        Group(name, int(n), int(tokens), by_token / tokens, by_row / n)
        for name, (n, tokens, by_token, by_row) in sorted(sums.items())
    )
    return groups, without
