"""From a configuration to a run folder whose rows are read, embedded and clustered.

Every stage works shard by shard and skips what a valid ledger entry proves to be done: that is all
that resuming is. `plan` does what can be checked before any work.
"""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pyids import data
from pyids.config import LOOK_CANDIDATES, Dtype, LongText, RunConfig, load_config, make_config
from pyids.data.readers import Reader
from pyids.data.sources import fingerprint_files
from pyids.engine import Engine, make_engine
from pyids.errors import ConfigError
from pyids.formats import list_columns
from pyids.rounds import has_drawn
from pyids.store import (
    Shard,
    Store,
    atomic_write,
    begin,
    fingerprint,
    load_npy,
    read_entry,
    read_json,
    save_npy,
    write_entry,
    write_json,
)

if TYPE_CHECKING:
    from pyids.encoders import Encoder
    from pyids.endpoint import Endpoint
    from pyids.scoring import Rater

logger = logging.getLogger("pyids")

# Where a run works does not change what it selects: these may differ when it goes on.
_MACHINE = {"data", "engine", "workers", "threads", "device", "output", "judge_requests"}

# Stages in their order; a later one needs those before it.
Stage: TypeAlias = Literal["read", "embed", "cluster"]

# What k-means may copy of the vectors to be faster: memory must not grow with the pool.
_CLUSTERING_BYTES = 64 << 20


def prepare(config: RunConfig, until: Stage = "cluster") -> Store:
    """Make the run folder of `config`, or find it, and do the stages that are not done.

    Raises
    ------
    PyidsError
        Anything the user can mend; the encoder is looked for before the data is read, and loaded
        after the data has been found good.
    """
    sources = check_inputs(config)
    with _opened(config) as store:
        identity = _identity(config, sources, store)
        store.check_claim(identity)
        with make_engine(config.engine, config.workers) as engine:
            read(store, config, sources, engine)
            if config.embeddings is not None and until != "read":
                data.take_vectors(store, config.embeddings, engine)
            # Only now: a folder whose rows or vectors could not be read is nobody's.
            store.claim(identity)
            with atomic_write(store.path / "config.yaml") as aside:
                aside.write_text(_anywhere(config).to_yaml(), encoding="utf-8")
            if config.embeddings is None and until != "read":
                embed(store, config, engine)
        if until == "cluster":
            _after_vectors(store, config)
        return store


def reopen(config: RunConfig, until: Stage = "cluster") -> Store:
    """Open the run folder that holds `config`, and do the stages that are not done.

    Unlike `prepare` it looks at data and vectors only where a stage that reads them is missing: a
    folder that has them needs nothing outside it.
    """
    if not _has_vectors(Store(config.output_path), needed=until != "read"):
        return prepare(config, until)
    with _opened(config) as store:
        if until == "cluster":
            _after_vectors(store, config)
        return store


@contextmanager
def _opened(config: RunConfig) -> Iterator[Store]:
    """Open the run folder; it stays open, unless the block raises."""
    store = Store.open(config.output_path)
    try:
        yield store
    except BaseException:
        store.close()
        raise


def _has_vectors(store: Store, *, needed: bool) -> bool:
    """Whether the rows have been read to the end, and embedded if that is needed."""
    if not all((store.path / kind / "index.json").exists() for kind in ("rows", "keep")):
        return False
    entries = (store.artefact("embeddings", shard, ".json") for shard in store.shards)
    return not needed or all(entry.exists() for entry in entries)


def _after_vectors(store: Store, config: RunConfig) -> None:
    """Do the stages that need nothing but rows and vectors."""
    cluster(store, config)
    drop_near(store, config)
    rate(store, config)


def _anywhere(config: RunConfig) -> RunConfig:
    """Give `config` with paths of data and vectors that hold in any working directory."""
    paths: dict[str, Any] = {
        "data": [
            os.path.abspath(name) if Path(name).exists() or glob.has_magic(name) else name
            for name in config.data  # what is neither is a name on the hub
        ]
    }
    if (path := _vectors_file(config)) is not None:
        paths["embeddings"] = os.path.abspath(path)
    return config.model_copy(update=paths)


def _identity(
    config: RunConfig, sources: Sequence[data.Source], store: Store | None = None
) -> dict[str, Any]:
    """Collect what two runs in one folder must share: the options and the content of the input."""
    identity = {
        **config.model_dump(exclude=_MACHINE),
        "inputs": data.fingerprint_sources(sources, store, limit=config.limit),
    }
    if (path := _vectors_file(config)) is not None:
        # What is in the file, not where it lies: vectors may move, as data may.
        [identity["embeddings"]] = fingerprint_files([path], store)
    return identity


def _vectors_file(config: RunConfig) -> str | None:
    """Return the ``.npy`` file that brings the vectors, if one does."""
    return config.embeddings if data.vectors_column(config.embeddings) is None else None


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
    return make_config(**{**load_config(path), **changes, "output": str(folder)})


# ---- before any work -----------------------------------------------------------------------------


def check_inputs(config: RunConfig) -> list[data.Source]:
    """Find the device, the input files, what each holds, and what vectors and quality are."""
    if config.device != "auto":  # which cannot fail, and would import torch
        device(config)
    column = data.vectors_column(config.embeddings)
    if config.embeddings is None:
        find_encoder(config.encoder)
    elif column is None:
        data.open_vectors(config.embeddings)
    sources = data.open_sources(config.data, format=config.format, vectors=column)
    if config.quality is not None:
        _check_quality(config.quality, config.model, sources)
    return sources


def _check_quality(quality: str, default_model: str, sources: Sequence[data.Source]) -> None:
    """Find the signal and its model, or the column and a number in it in every first row."""
    from pyids.signals import SIGNALS, make_signal

    if (signal := make_signal(quality, default_model=default_model)) is not None:
        _ = signal.identity  # looks for the model
        return
    for source in sources:
        # Without columns there was no row that could be read: the reading will say so.
        if source.columns and quality not in source.columns:
            raise ConfigError(
                f"quality {quality!r} is neither a signal ({', '.join(SIGNALS)}) nor a column of "
                f"{source.path} (it has: {list_columns(source.columns)})"
            )
        rows = islice(Reader(source.path, source.kind, source.compression), 100)
        value = next((row.get(quality) for *_, row in rows if isinstance(row, dict)), None)
        if isinstance(value, bool) or not isinstance(value, int | float | None):
            raise ConfigError(
                f"{source.path}: the column {quality!r} of --quality holds {value!r:.40}: name one "
                f"of numbers, or a signal ({', '.join(SIGNALS)})"
            )


def check_model(config: RunConfig) -> None:
    """Find the language model, the scorer and its judge, without loading or asking anything."""
    from pyids.lm import resolve_model
    from pyids.scoring import SCORERS

    needed = ["torch", "transformers", *(["peft"] if config.tuning == "lora" else [])]
    if missing := [name for name in needed if find_spec(name) is None]:
        raise ConfigError(
            f"training needs the package {missing[0]}: pip install 'pyids-select[train]'"
        )
    for name in (config.model, config.guide, config.reward_model):
        if name is not None:
            resolve_model(name)
    if config.scorer not in SCORERS:
        raise ConfigError(
            f"there is no scorer {config.scorer!r}: choose one of {', '.join(SCORERS)}"
        )
    if config.scorer == "judge":
        _judge(config)


def device(config: RunConfig) -> str:
    """Choose the device of encoder and language model."""
    return find_device(config.device)


def find_device(name: str) -> str:
    """Return the device that is meant: for ``auto`` CUDA, where there is one.

    Raises
    ------
    ConfigError
        A CUDA device is named that is not there.
    """
    if name == "cpu":
        return name
    found: list[str] = []
    # Without torch, as in an installation of the core alone, there is the CPU.
    with suppress(ImportError):
        import torch

        if torch.cuda.is_available():
            found = ["cuda", *(f"cuda:{n}" for n in range(torch.cuda.device_count()))]
    if name == "auto":
        return "cuda" if found else "cpu"
    if name.startswith("cuda") and name not in found:
        raise ConfigError(
            f"--device {name}: torch finds no such device ({', '.join(found) or 'no CUDA at all'}):"
            " choose auto or cpu"
        )
    return name


def plan(config: RunConfig) -> str:
    """Check data, configuration, models and output as a run would, and say what it would do.

    Nothing is written but in a temporary folder, and no model is loaded.
    """
    check_model(config)
    sources = check_inputs(config)
    check_writable(config.output_path)
    folder = Store(config.output_path)
    folder.check_place()
    if (folder.path / "identity.json").exists():
        folder.check_claim(_identity(config, sources))
    with make_engine(config.engine, config.workers) as engine:
        intake = data.check(
            sources,
            engine=engine,
            limit=config.limit,
            strict=config.strict,
            keep_duplicates=config.keep_duplicates,
        )
    if (path := _vectors_file(config)) is not None:
        data.open_vectors(path, intake.rows, limit=config.limit)
    budget, n_clusters = config.budget_rows(intake.kept), config.cluster_count(intake.kept)
    probes = min(config.probes * n_clusters, intake.kept)
    models = f"on {device(config)} in {config.dtype}"
    look = ""
    if config.candidates != 1:
        look = f", each of {config.candidates or LOOK_CANDIDATES} candidates"
    if config.candidates is None:
        look += " if answers look mismatched"
    vectors = config.embeddings or f"{config.encoder} {models}"
    near = []
    if config.near_duplicates is not None:
        near = [
            f"near      rows of cosine {config.near_duplicates:g} to another of their cluster go "
            "before the draw: how many is not known yet"
        ]
    return "\n".join(
        [
            describe(intake),
            f"vectors   {vectors}",
            f"clusters  {n_clusters}, k-means, at most {config.kmeans_iterations} iterations",
            *near,
            f"rounds    {config.rounds}; draw {budget} rows in all ({budget / intake.kept:.2%})"
            f"{look}",
            f"train     {config.round_model} {models}, {config.tuning}, {config.epochs} "
            "epochs a round on everything drawn so far",
            f"score     {config.scorer} on up to {probes} unseen rows a round; "
            f"weights by the rule {config.weight_rule!r}",
            f"output    {config.output_path}",
        ]
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
        raise ConfigError(f"{nearest} is a file, not a folder: choose another --output")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigError(f"{nearest}: cannot write there: choose another --output")


# ---- stages --------------------------------------------------------------------------------------


def read(
    store: Store, config: RunConfig, sources: Sequence[data.Source], engine: Engine
) -> data.Intake:
    """Read and validate the rows, drop repeats; check what depends on their number."""
    intake = data.ingest(
        store,
        sources,
        engine=engine,
        limit=config.limit,
        strict=config.strict,
        keep_duplicates=config.keep_duplicates,
    )
    logger.info("%s", describe(intake))
    config.budget_rows(intake.kept)
    config.cluster_count(intake.kept)
    return intake


def describe(intake: data.Intake) -> str:
    """Say in one line what was read."""
    formats = ", ".join(f"{name} ({files})" for name, files in intake.formats.items())
    return (
        f"read {intake.rows} rows of {formats}: {intake.kept} stay, {intake.skipped} are unusable, "
        f"{intake.repeats} repeat another"
    )


@dataclass(frozen=True)
class _EmbedTask:
    """What `_embed_shard` needs: paths and numbers."""

    folder: str
    shard: Shard
    encoder: str
    max_tokens: int | None
    long_text: LongText
    device: str
    dtype: Dtype
    threads: int | None
    made_from: dict[str, Any]


def embed(store: Store, config: RunConfig, engine: Engine) -> None:
    """Embed every row that stays: ``embeddings/``, one file a shard."""
    revision = find_encoder(config.encoder).revision
    tasks = [
        _EmbedTask(
            folder=str(store.path),
            shard=shard,
            encoder=config.encoder,
            max_tokens=config.encoder_tokens,
            long_text=config.long_text,
            device=device(config),
            dtype=config.dtype,
            threads=config.threads,
            made_from={
                "rows": store.fingerprint(shard),
                "encoder": config.encoder,
                "revision": revision,
                "max_tokens": config.encoder_tokens,
                "long_text": config.long_text,
                "dtype": config.dtype,
            },
        )
        for shard in store.shards
    ]
    done = 0
    for n_rows in engine.map(_embed_shard, tasks):
        done += n_rows
        logger.info("embedded %d of %d rows", done, store.kept)


def _embed_shard(task: _EmbedTask) -> int:
    """Embed the rows of one shard; return their number."""
    store = Store(task.folder)
    path = store.artefact("embeddings", task.shard)
    if (entry := read_entry(path.with_suffix(".json"), task.made_from)) is not None:
        return int(entry["rows"])
    from pyids.chat import text_of

    texts = [text_of(messages) for messages in store.iter_messages(task.shard)]
    encoder = find_encoder(task.encoder, task.max_tokens, task.long_text, task.device, task.dtype)
    if task.threads is not None:
        import torch

        torch.set_num_threads(task.threads)
    save_npy(path, encoder.encode(texts).astype(np.float16), task.made_from)
    return len(texts)


@lru_cache(maxsize=1)
def find_encoder(
    name: str,
    max_tokens: int | None = None,
    long_text: LongText = "truncate",
    device: str = "cpu",
    dtype: Dtype = "float32",
) -> Encoder:
    """Find an encoder, once a process; its weights are loaded with the first text."""
    from pyids.encoders import load_encoder

    return load_encoder(
        name, max_tokens=max_tokens, long_text=long_text, device=device, dtype=dtype
    )


def cluster(store: Store, config: RunConfig) -> None:
    """Cluster the vectors: ``labels/``, one file a shard, and ``centroids.safetensors``."""
    n_clusters = choose_clusters(store, config)
    made_from = {
        "embeddings": _vectors_of(store),
        "clusters": n_clusters,
        "iterations": config.kmeans_iterations,
        "metric": config.metric,
        "seed": config.seed,
    }
    path = store.path / "centroids.safetensors"
    entry = path.with_suffix(".json")
    if read_entry(entry, made_from) is not None:
        return
    if has_drawn(store.path) and entry.exists() and read_json(entry)["made_from"] != made_from:
        raise ConfigError(
            f"{store.path}: its rounds drew from clusters of other vectors than there are now (a "
            "new version of the encoder?): choose another --output"
        )
    from safetensors.numpy import save_file

    from pyids.clustering import KMeans

    # By the cosine there is k-means on the CPU alone.
    on_cpu = config.device == "cpu" or config.metric == "cosine"
    kmeans = KMeans(
        n_clusters,
        max_iter=config.kmeans_iterations,
        metric=config.metric,
        random_state=config.seed,
        device="cpu" if on_cpu else "auto" if config.device == "auto" else "cuda",
        n_threads=config.threads,
        max_memory=_CLUSTERING_BYTES,
    )
    kmeans.fit(store.embeddings())
    begin(entry)
    start = 0
    for shard in store.shards:
        stop = start + len(store.row_ids(shard))
        save_npy(store.artefact("labels", shard), kmeans.labels_[start:stop], made_from)
        start = stop
    sizes = np.bincount(kmeans.labels_, minlength=n_clusters)
    with atomic_write(path) as aside:
        save_file({"centroids": kmeans.cluster_centers_, "sizes": sizes.astype(np.int64)}, aside)
    write_entry(entry, [path], made_from, sizes=sizes.tolist(), inertia=kmeans.inertia_)
    logger.info(
        "clustered %d rows into %d clusters in %d iterations, inertia %.4g",
        *(store.kept, n_clusters, kmeans.n_iter_, kmeans.inertia_),
    )


def choose_clusters(store: Store, config: RunConfig) -> int:
    """Return the number of clusters; for ``auto`` the best silhouette, kept in ``auto_k.json``."""
    if config.clusters != "auto":
        return config.cluster_count(store.kept)
    path = store.path / "auto_k.json"
    made_from = {
        "embeddings": _vectors_of(store),
        "metric": config.metric,
        "seed": config.seed,
    }
    if not path.exists() or read_json(path).get("made_from") != made_from:
        from pyids.auto_k import choose_k

        choice = choose_k(
            store.embeddings(), metric=config.metric, seed=config.seed, threads=config.threads
        )
        write_json(path, {"made_from": made_from, "clusters": choice.k, **choice.evidence})
        logger.info("chose %d clusters by silhouette", choice.k)
    return int(read_json(path)["clusters"])


def _vectors_of(store: Store) -> str:
    """Stands for all vectors in what is made of them."""
    entries = [store.artefact("embeddings", shard, ".json") for shard in store.shards]
    return fingerprint([read_json(entry)["files"] for entry in entries])


def drop_near(store: Store, config: RunConfig) -> None:
    """Take near-duplicates out of the pool, if asked: ``distinct/`` and ``near_repeats.jsonl``."""
    if config.near_duplicates is None:
        return
    from pyids.data.near import drop_near_repeats

    gone = drop_near_repeats(store, config.near_duplicates)
    store.narrow()
    logger.info(
        "dropped %d rows that are near one of their cluster (cosine at least %g): %d stay",
        *(gone, config.near_duplicates, store.kept),
    )
    config.budget_rows(store.kept)


def rate(store: Store, config: RunConfig) -> None:
    """Score the quality of every row: ``quality/``, log weights, one file a shard; a histogram."""
    if config.quality is None:
        return
    made_from = {"quality": config.quality, "model": config.model}
    entries = [store.artefact("quality", shard, ".json") for shard in store.shards]
    if all(read_entry(entry, made_from) is not None for entry in entries):
        return
    from pyids.quality import histogram, log_weights

    values = quality(store, config)
    folder = store.path / "quality"
    folder.mkdir(exist_ok=True)
    write_json(folder / "histogram.json", {"quality": config.quality, **histogram(values)})
    logs, start = log_weights(values), 0
    for shard in store.shards:
        stop = start + len(store.row_ids(shard))
        save_npy(store.artefact("quality", shard), logs[start:stop], made_from)
        start = stop


def quality(store: Store, config: RunConfig) -> NDArray[np.float64]:
    """Quality of all rows that stay, float64 (N,); scores are cached by content."""
    from pyids.quality import store_quality

    assert config.quality is not None
    return store_quality(store, config.quality, default_model=config.model, device=device(config))


def row_weights(store: Store, config: RunConfig, shard: Shard) -> NDArray[np.float64] | None:
    """Log weights of a shard's rows inside their clusters, float64 (rows,); None: all equal."""
    return None if config.quality is None else load_npy(store.artefact("quality", shard))


def rater(store: Store, config: RunConfig) -> Rater | None:
    """Make who rates answers for the scorer, if it wants somebody."""
    if config.scorer == "reward" and config.reward_model:
        from pyids.lm import resolve_model
        from pyids.reward import RewardModel

        return RewardModel(
            resolve_model(config.reward_model),
            config.max_tokens,
            device=device(config),
            dtype=config.dtype,
        )
    if config.scorer == "judge":
        from pyids.judge import Judge

        return Judge(_judge(config), cache=store.path / "judge.jsonl")
    return None


def _judge(config: RunConfig) -> Endpoint:
    """Return where the judge is asked."""
    from pyids.endpoint import Endpoint

    return Endpoint(
        config.judge_url or "", config.judge_model or "", max_requests=config.judge_requests
    )


def facts(store: Store, config: RunConfig) -> dict[str, Any]:
    """Return what the manifest says of a run beside the hashes: how and on what it was made."""
    return {
        "config": config.model_dump(),
        "rows": {
            "read": store.rows_read,
            "skipped": store.skipped,
            "repeats": store.repeats,
            "near_repeats": store.near_repeats,
            "kept": store.kept,
        },
        # What is named may be missing here, where the rest of the work needs it no more.
        "device": device(config) if config.device == "auto" else config.device,
        "threads": config.threads or len(os.sched_getaffinity(0)),
    }
