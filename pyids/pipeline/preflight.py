"""What is checked before any work, and what a run would do."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from pyids.chat.formats import list_columns
from pyids.config import SCREENING_OVERSAMPLE, RunConfig
from pyids.data.ingest import check, describe
from pyids.data.readers import Reader
from pyids.data.sources import Source, open_sources
from pyids.data.target import read_target
from pyids.data.vector_files import open_vectors
from pyids.data.zero_vectors import check_zero_vectors
from pyids.device import device
from pyids.engine import make_engine
from pyids.errors import ConfigError
from pyids.models.raters import judge_endpoint
from pyids.pipeline.conversations import check_conversations
from pyids.pipeline.identity import identity_of
from pyids.pipeline.stages import find_encoder
from pyids.registry import SIGNALS, WEIGHT_UPDATES
from pyids.store.folder import Store

if TYPE_CHECKING:
    pass


# ---- before any work -----------------------------------------------------------------------------


def check_inputs(config: RunConfig) -> list[Source]:
    """Find the device, the input files, what each holds, and what vectors and quality are."""
    if config.device != "auto":  # which cannot fail, and would import torch
        device(config)
    column = config.embeddings_column
    if config.embeddings_file is not None:
        open_vectors(config.embeddings_file)
    elif column is None:
        find_encoder(config.encoder)
    sources = open_sources(
        config.data,
        format=config.row_format,
        vectors=column,
        max_row_bytes=config.max_row_bytes,
    )
    if config.target is not None:
        read_target(config)
    if config.quality == "judge":
        judge_endpoint(config)
    elif config.quality is not None:
        _check_quality(config.quality, config.model, sources)
    return sources


def _check_quality(quality: str, default_model: str, sources: Sequence[Source]) -> None:
    """Find the signal and its model, or the column and a number in it in every first row."""
    from pyids.scoring.signals import make_signal

    if (signal := make_signal(quality, default_model=default_model)) is not None:
        _ = signal.identity  # looks for the model
        return
    for source in sources:
        # Without columns there was no row that could be read: the reading will say so.
        if source.columns and quality not in source.columns:
            raise ConfigError(
                f"quality {quality!r} is neither a signal ({', '.join(SIGNALS.names())}) nor a "
                f"column of {source.path} (it has: {list_columns(source.columns)})"
            )
        rows = islice(Reader(source.path, source.kind, source.compression), 100)
        value = next((row.get(quality) for *_, row in rows if isinstance(row, dict)), None)
        if isinstance(value, bool) or not isinstance(value, int | float | None):
            raise ConfigError(
                f"{source.path}: the column {quality!r} of --quality holds {value!r:.40}: name one "
                f"of numbers, or a signal ({', '.join(SIGNALS.names())})"
            )


def check_model(config: RunConfig) -> None:
    """Find the language model, the scorer and its judge, without loading or asking anything."""
    from pyids.models.hub import resolve_model
    from pyids.scoring.scorers import find_scorer

    needed = ["torch", "transformers", *(["peft"] if config.finetuning_type == "lora" else [])]
    if missing := [name for name in needed if find_spec(name) is None]:
        raise ConfigError(
            f"training needs the package {missing[0]}: pip install 'pyids-select[train]'"
        )
    for name in (config.model, config.proxy_model, config.reward_model):
        if name is not None:
            resolve_model(name)
    if config.has_own_trainer:
        from pyids.models.own_trainer import check_own_trainer

        check_own_trainer(config)
    find_scorer(config.scorer)
    if config.serve_url is not None:
        _check_serving(config)
    if config.num_processes > 1 and device(config).startswith("cuda"):
        from torch.cuda import device_count

        if config.num_processes > device_count():
            raise ConfigError(
                f"--num-processes {config.num_processes}: this machine has {device_count()} GPUs, "
                "and each process takes one: lower it"
            )
    WEIGHT_UPDATES.find(config.weight_update)
    if config.scorer == "judge":
        judge_endpoint(config)


def _check_serving(config: RunConfig) -> None:
    """Check that a serving engine can do what the scorer asks of a round's models."""
    if find_spec("urllib3") is None:
        raise ConfigError("--serve-url needs urllib3: pip install 'pyids-select[endpoint]'")
    if config.finetuning_type == "full":
        raise ConfigError(
            "--serve-url: an engine takes a round's adapter, not all weights of a model: choose "
            "--finetuning-type lora"
        )
    if config.scorer == "gradient-alignment" or config.scorer.startswith("target"):
        raise ConfigError(
            f"--serve-url: the scorer {config.scorer} needs gradients or vectors, which no engine "
            "gives: choose another --scorer"
        )


def plan(config: RunConfig) -> str:
    """Check data, configuration, models and output as a run would, and say what it would do.

    Nothing is written but in a temporary folder, and no model is loaded but its tokenizer.
    """
    check_model(config)
    sources = check_inputs(config)
    check_conversations(config, sources)
    check_writable(config.output_path)
    folder = Store(config.output_path)
    folder.check_place()
    if (folder.path / "identity.json").exists():
        folder.check_claim(identity_of(config, sources))
    with make_engine(config.engine, config.workers) as engine:
        intake = check(
            sources,
            engine=engine,
            limit=config.limit,
            strict=config.strict,
            keep_duplicates=config.keep_duplicates,
            look=partial(_check_vectors, config=config),
        )
    budget, n_clusters = config.budget_rows(intake.kept), config.cluster_count(intake.kept)
    probes = min(config.probes_per_cluster * n_clusters, intake.kept)
    models = f"on {device(config)} in {config.dtype}"
    screened = ""
    if config.oversample != 1:
        screened = f", each of {config.oversample or SCREENING_OVERSAMPLE} candidates"
    if config.oversample is None:
        screened += " if answers look mismatched"
    vectors = config.embeddings_file or config.embeddings_column or f"{config.encoder} {models}"
    near = []
    if config.target is not None:
        near = [
            f"target    {len(read_target(config))} rows of {', '.join(config.target)}; they and "
            "near copies of them are left out"
        ]
    if config.semdedup_threshold is not None:
        near += [
            f"near      rows of cosine {config.semdedup_threshold:g} to another of their cluster "
            "go before the draw: how many is not known yet"
        ]
    return "\n".join(
        [
            describe(intake),
            f"vectors   {vectors}",
            f"clusters  {n_clusters}, k-means, at most {config.kmeans_max_iter} iterations",
            *near,
            f"rounds    {config.rounds}; draw {budget} rows in all ({budget / intake.kept:.2%})"
            f"{screened}",
            f"train     {config.round_model} {models}, {config.finetuning_type}, "
            f"{config.num_train_epochs} epochs a round on everything drawn so far",
            f"score     {config.scorer} on up to {probes} unseen rows a round; "
            f"weights by the rule {config.weight_update!r}",
            f"output    {config.output_path}",
        ]
    )


def _check_vectors(store: Store, config: RunConfig) -> None:
    """Check the number of the vectors, and that a metric by direction can place them."""
    if (path := config.embeddings_file) is not None:
        open_vectors(path, store.rows_read, limit=config.limit)
        if config.zero_vectors == "error":
            check_zero_vectors(store, path, config.metric)


def check_writable(folder: Path) -> None:
    """Check that a run folder could be made or used, without making it.

    Raises
    ------
    ConfigError
        It, or the nearest folder above it that exists, cannot be written, or is a file.
    """
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise ConfigError(f"{nearest} is a file, not a folder: choose another --output-dir")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigError(f"{nearest}: cannot write there: choose another --output-dir")
