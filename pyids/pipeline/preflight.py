"""What is checked before any work, and what a run would do."""

from __future__ import annotations

import os
import resource
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

from pyids.chat.formats import list_columns
from pyids.config import RunConfig
from pyids.data.exclude import read_held_out
from pyids.data.ingest import Intake, check, describe
from pyids.data.readers import Reader
from pyids.data.sources import Source, open_sources
from pyids.data.target import read_target
from pyids.data.vector_files import open_vectors
from pyids.data.zero_vectors import check_zero_vectors
from pyids.device import device
from pyids.errors import ConfigError, DataError
from pyids.models.raters import judge_endpoint
from pyids.pipeline.budget import Budget
from pyids.pipeline.conversations import check_conversations
from pyids.pipeline.grow import known_first, new_inputs
from pyids.pipeline.identity import identity_of
from pyids.pipeline.planned import needs_rows, plan_budget
from pyids.pipeline.stages import engine_of, find_encoder
from pyids.registry import SIGNALS, WEIGHT_UPDATES
from pyids.store.folder import Store

# Open files of a run: libraries and their models, the shard in work, sockets of workers.
_OPEN_FILES = 128


# ---- before any work -----------------------------------------------------------------------------


def check_inputs(config: RunConfig) -> list[Source]:
    """Find the device, the input files, what each holds, and what vectors and quality are."""
    check_open_files()
    # A cluster's device is not this machine's, unless vectors are to be made here, too.
    here = config.engine == "local" or config.target or config.exclude_cosine is not None
    if config.device != "auto" and here:  # `auto` cannot fail, and would import torch
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
    _check_exclusion(config)
    if config.unit != "rows":
        _check_tokenizer(config)
    if config.quality == "judge":
        judge_endpoint(config)
    elif config.quality is not None:
        _check_quality(config.quality, config.model, sources)
    return sources


def _check_exclusion(config: RunConfig) -> None:
    """Read the held-out rows, and find what is trained on already."""
    if config.exclude is not None:
        rows = len(read_held_out(config.exclude))
        if (path := config.exclude_embeddings_file) is not None and len(open_vectors(path)) != rows:
            raise DataError(
                f"{path}: {len(open_vectors(path))} vectors for {rows} held-out rows: give one a "
                "row, in their order (--exclude-embeddings-file)"
            )
    if config.already is not None:
        open_sources(config.already)


def _check_tokenizer(config: RunConfig) -> None:
    """Find the model whose tokens the budget counts."""
    from pyids.models.hub import resolve_model

    if find_spec("transformers") is None:
        raise ConfigError(
            "a budget in tokens needs the package transformers: pip install 'pyids-select[train]'"
        )
    resolve_model(config.model)


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
                f"column of {source.path}: choose one, or of {list_columns(source.columns)}"
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
    _check_processes(config)
    if config.load_in_4bit:
        _check_4bit(config)
    WEIGHT_UPDATES.find(config.weight_update)
    if config.scorer == "judge":
        judge_endpoint(config)


def _check_4bit(config: RunConfig) -> None:
    """Check that the base model can be held in 4 bits."""
    if config.finetuning_type == "full" or config.fsdp or config.has_own_trainer:
        raise ConfigError(
            "--load-in-4bit is for the LoRA adapter that pyids trains, in processes that hold the "
            "whole model: leave out --finetuning-type full, --fsdp and a trainer of your own"
        )
    if find_spec("bitsandbytes") is None:
        raise ConfigError(
            "--load-in-4bit needs the package bitsandbytes: pip install 'pyids-select[qlora]'"
        )


def _check_processes(config: RunConfig) -> None:
    """Check that there is room for the processes that train together."""
    n, flag = config.processes, "--num-processes" if config.num_gpus is None else "--num-gpus"
    if config.fsdp and config.dtype == "float16":
        raise ConfigError("--fsdp does not go with --dtype float16: choose bfloat16")
    if config.engine == "ray":
        if n > 1 or config.num_gpus is not None:
            from pyids.models.distributed import Processes
            from pyids.models.ray_train import check_cluster

            processes = Processes.of(config)
            check_cluster(processes, processes.device(config))
        elif config.device != "auto":
            device(config)  # it trains here
        return
    on_gpus = device(config).startswith("cuda")
    if config.num_gpus is not None and not on_gpus:
        raise ConfigError(
            f"{flag} {n}: torch finds no GPU here, or --device names the CPU: leave it out; on "
            f"CPUs --num-processes {n} trains in as many processes"
        )
    if on_gpus and (n > 1 or config.num_gpus is not None):
        from torch.cuda import device_count

        if n > device_count():
            raise ConfigError(
                f"{flag} {n}: this machine has {device_count()} GPUs, and each process takes one: "
                "lower it"
            )


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


@dataclass(frozen=True)
class Planned:
    """What reading the data for a plan has found.

    Attributes
    ----------
    intake
        The rows.
    budget
        What would be selected.
    lines
        What stands in a plan of vectors, clusters, growth, quotas, and rows that are left out.
    """

    intake: Intake
    budget: Budget
    lines: list[str]


def look_through(config: RunConfig, sources: Sequence[Source]) -> Planned:
    """Read the data as a run would, and say what follows; nothing is written."""
    check_writable(config.output_path)
    folder = Store(config.output_path)
    folder.check_place()
    sources = known_first(folder, sources, config.limit, remember=False)
    grows = _check_growth(folder, config, sources)
    planned, lines = Budget("rows", 0, 0), list[str]()

    def look(store: Store) -> None:
        nonlocal planned, lines
        _check_vectors(store, config)
        planned, lines = plan_budget(store, config)

    with engine_of(config) as engine:
        intake = check(
            sources,
            engine=engine,
            limit=config.limit,
            strict=config.strict,
            keep_duplicates=config.keep_duplicates,
            look=look,
            records=needs_rows(config),
        )
    return Planned(intake, planned, [*grows, *lines, *_left_out(config)])


def plan(config: RunConfig, *, trains: bool = True) -> str:
    """Check data, configuration, models and output as a run would, and say what it would do.

    Nothing is written but in a temporary folder, and no model is loaded but its tokenizer.

    Parameters
    ----------
    config
        Of the run.
    trains
        Whether pyids trains and scores, and not a trainer that asks and tells.
    """
    if trains:
        check_model(config)
    sources = check_inputs(config)
    if trains:
        check_conversations(config, sources)
    found = look_through(config, sources)
    kept, rows = found.intake.kept, found.budget.rows
    n_clusters = config.cluster_count(kept, rows)
    probes = min(config.probes_per_cluster * n_clusters, kept)
    models = f"on {_where(config)} in {config.dtype}"
    steps = [f"score     up to {probes} unseen rows a round, by your own trainer"]
    if trains:
        steps = [
            f"train     {config.round_model} {models}, {config.finetuning_type}, "
            f"{config.num_train_epochs} epochs a round on everything drawn so far",
            f"score     {config.scorer} on up to {probes} unseen rows a round; "
            f"weights by the rule {config.weight_update!r}",
        ]
    return "\n".join(
        [
            describe(found.intake),
            vectors_line(config),
            f"clusters  {n_clusters}, k-means, at most {config.kmeans_max_iter} iterations",
            *found.lines,
            f"rounds    {config.rounds}; draw {rows} rows in all ({rows / kept:.2%})"
            f"{_screened(config)}",
            *steps,
            f"output    {config.output_path}",
        ]
    )


def vectors_line(config: RunConfig) -> str:
    """Say where vectors come from."""
    vectors = config.embeddings_file or config.embeddings_column
    if vectors is None:
        vectors = f"{config.encoder} on {_where(config)} in {config.dtype}"
    return f"vectors   {vectors}"


def _where(config: RunConfig) -> str:
    """Name the device; a cluster's is found on its nodes."""
    return device(config) if config.engine == "local" else config.device


def _check_growth(folder: Store, config: RunConfig, sources: Sequence[Source]) -> list[str]:
    """Check that the folder is this run's, or is extended by it; say so."""
    if not (folder.path / "identity.json").exists():
        return []
    identity = identity_of(config, sources)
    if not (new := new_inputs(folder, identity)):
        folder.check_claim(identity)
        return []
    names = ", ".join(str(one["name"]) for one in new)
    return [f"grows     by {names}; the rounds begin anew on all rows"]


def _screened(config: RunConfig) -> str:
    return "" if config.oversample == 1 else f", each of {config.oversample} candidates"


def _left_out(config: RunConfig) -> list[str]:
    """Say which rows of the pool go for their likeness to others."""
    lines = []
    if config.target is not None:
        lines = [
            f"target    {len(read_target(config))} rows of {', '.join(config.target)}; they and "
            "near copies of them are left out"
        ]
    if config.semdedup_threshold is not None:
        lines += [
            f"near      rows of cosine {config.semdedup_threshold:g} to another of their cluster "
            "go before the draw: how many is not known yet"
        ]
    return lines


def _check_vectors(store: Store, config: RunConfig) -> None:
    """Check the number of the vectors, and that a metric by direction can place them."""
    if (path := config.embeddings_file) is not None:
        open_vectors(path, store.rows_read, limit=config.limit)
        if config.zero_vectors == "error":
            check_zero_vectors(store, path, config.metric)


def check_open_files() -> None:
    """Raise the limit of open files as far as it goes, and refuse one that no run ends with.

    Shards are mapped without a descriptor and spilled one bucket at a time, so that the number of
    files that a run needs does not grow with the pool.

    Raises
    ------
    ConfigError
        Fewer than `_OPEN_FILES` files may be open at a time.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < _OPEN_FILES:
        soft = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft < _OPEN_FILES:
        raise ConfigError(
            f"only {soft} files may be open at a time: raise the limit to {_OPEN_FILES} or more "
            f"(`ulimit -n {_OPEN_FILES}`)"
        )


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
