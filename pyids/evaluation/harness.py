"""Tasks of the LM evaluation harness."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyids.errors import ConfigError
from pyids.models.hf import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


# ---- tasks ---------------------------------------------------------------------------------------


def find_tasks(tasks: Sequence[str], include_path: str | None) -> Any:
    """Return the harness's task manager with `tasks` in it.

    The thousands of definitions that the harness brings are indexed only where the folder does not
    define all that is asked for: that takes seconds.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError(
            "--tasks needs the LM evaluation harness: pip install 'pyids-select[eval]'"
        )
    if include_path is not None and not Path(include_path).is_dir():
        raise ConfigError(f"--include-path {include_path}: there is no such folder: check the path")
    from lm_eval.tasks import TaskManager

    manager = None
    if include_path is not None:
        manager = TaskManager(include_path=include_path, include_defaults=False)
    if manager is None or not set(tasks) <= set(manager.all_tasks):
        manager = TaskManager(include_path=include_path)
    if missing := [name for name in tasks if not manager.match_tasks([name])]:
        where = f" nor in {include_path}" if include_path else ""
        raise ConfigError(
            f"task {missing[0]!r} is not one of the harness{where}: define it in a folder that "
            "--include-path names"
        )
    return manager


def run_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    manager: Any,
    limit: int | None,
    max_length: int,
    *,
    apply_chat_template: bool,
) -> dict[str, dict[str, float]]:
    """Run tasks of the harness on a loaded model; return their metrics by task."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    with quiet():
        wrapped = HFLM(
            pretrained=model,
            tokenizer=tokenizer,
            backend="causal",
            batch_size=8,
            max_length=max_length,
        )
        report = simple_evaluate(
            wrapped,
            tasks=list(tasks),
            task_manager=manager,
            limit=limit,
            log_samples=False,
            bootstrap_iters=1000,
            apply_chat_template=apply_chat_template,
        )
    return {
        task: {
            key.removesuffix(",none").replace(",none", ""): float(value)
            for key, value in metrics.items()
            if "," in key and isinstance(value, int | float)
        }
        for task, metrics in report["results"].items()
    }
