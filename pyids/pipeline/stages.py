"""From a configuration to a run folder whose rows are read, embedded and clustered.

Every stage works shard by shard and skips what a valid ledger entry proves to be done: that is all
that resuming is. `plan` does what can be checked before any work.
"""

from __future__ import annotations

import itertools
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyids.config import Dtype, LongText, RunConfig
from pyids.data.ingest import Intake, describe, ingest
from pyids.data.sources import Source
from pyids.device import device, find_device
from pyids.engine import Engine, LocalEngine
from pyids.errors import ConfigError, DamagedError
from pyids.pipeline.budget import budget_of
from pyids.pipeline.counts import count
from pyids.pipeline.kmeans_plan import describe as describe_plan
from pyids.pipeline.kmeans_plan import kmeans_plan
from pyids.pipeline.streamed import Clusters, fit
from pyids.progress import report
from pyids.resources import default_max_memory
from pyids.store.files import (
    atomic_write,
    create_npy,
    fingerprint,
    read_sealed,
    remembered,
    write_sealed,
)
from pyids.store.folder import Shard, Store
from pyids.store.ledger import (
    begin,
    hash_npy,
    load_npy,
    load_sealed,
    read_entry,
    save_npy,
    write_entry,
)
from pyids.store.reading import store_of
from pyids.store.rounds import has_drawn

if TYPE_CHECKING:
    from pyids.encoders import Encoder
    from pyids.scoring.signals import Signal


logger = logging.getLogger("pyids")


# ---- stages --------------------------------------------------------------------------------------


def read(store: Store, config: RunConfig, sources: Sequence[Source], engine: Engine) -> Intake:
    """Read and validate the rows, drop duplicates; check what depends on their number."""
    intake = ingest(
        store,
        sources,
        engine=engine,
        limit=config.limit,
        strict=config.strict,
        keep_duplicates=config.keep_duplicates,
        progress=lambda rows, done, total: report("read", done, total, "bytes"),
    )
    logger.info("%s", describe(intake))
    count(store, config, engine)
    config.cluster_count(intake.kept, budget_of(store, config).rows)
    return intake


@dataclass(frozen=True)
class _EmbedTask:
    """What `_embed_shard` needs: paths and numbers."""

    folder: str
    shard: Shard
    encoder: str
    max_length: int | None
    long_text: LongText
    device: str
    dtype: Dtype
    threads: int | None
    inputs: dict[str, Any]
    rows_before: int
    rows_in_all: int


def embed(store: Store, config: RunConfig, engine: Engine) -> None:
    """Embed every row that stays: ``embeddings/``, one file a shard."""
    revision = find_encoder(config.encoder).revision
    rows = [len(store.row_ids(shard)) for shard in store.shards]
    before = [0, *itertools.accumulate(rows)]
    # Where a task runs on another machine, the device is that machine's.
    where = device(config) if isinstance(engine, LocalEngine) else config.device
    tasks = [
        _EmbedTask(
            folder=str(store.path),
            shard=shard,
            encoder=config.encoder,
            max_length=config.encoder_max_length,
            long_text=config.long_text,
            device=where,
            dtype=config.dtype,
            threads=config.threads,
            inputs={
                "rows": store.fingerprint(shard),
                "encoder": config.encoder,
                "revision": revision,
                "max_length": config.encoder_max_length,
                "long_text": config.long_text,
                "dtype": config.dtype,
            },
            rows_before=before[n],
            rows_in_all=before[-1],
        )
        for n, shard in enumerate(store.shards)
    ]
    done = 0
    for n_rows in engine.map(_embed_shard, tasks, gpu=config.device != "cpu"):
        done += n_rows
        report("embed", done, store.kept)
    logger.info("embedded %d rows", store.kept)


def _embed_shard(task: _EmbedTask) -> int:
    """Embed the rows of one shard; return their number."""
    store = store_of(task.folder)
    path = store.artifact("embeddings", task.shard)
    if (entry := read_entry(path.with_suffix(".json"), task.inputs)) is not None:
        return int(entry["rows"])
    from pyids.chat.template import text_of

    encoder = find_encoder(
        *(task.encoder, task.max_length, task.long_text, find_device(task.device), task.dtype)
    )
    if task.threads is not None:
        import torch

        torch.set_num_threads(task.threads)

    n_rows = len(store.row_ids(task.shard))
    texts = (text_of(messages) for messages in store.iter_messages(task.shard))

    def progress(done: int, total: int) -> None:  # in tokens or texts, by the encoder
        share = done / max(total, 1)
        report("embed", task.rows_before + int(share * n_rows), task.rows_in_all)

    if (stream := getattr(encoder, "encode_stream", None)) is not None:
        vectors, done = np.empty((n_rows, encoder.dim), np.float16), 0
        for block in stream(texts):
            vectors[done : done + len(block)] = block
            done += len(block)
            progress(done, n_rows)
    else:
        vectors = encoder.encode(list(texts), progress).astype(np.float16)
    save_npy(path, vectors, task.inputs)
    return n_rows


@lru_cache(maxsize=1)
def find_encoder(
    name: str,
    max_length: int | None = None,
    long_text: LongText = "truncate",
    device: str = "cpu",
    dtype: Dtype = "float32",
) -> Encoder:
    """Find an encoder, once a process; its weights are loaded with the first text."""
    from pyids.encoders import load_encoder

    return load_encoder(
        name, max_length=max_length, long_text=long_text, device=device, dtype=dtype
    )


def cluster(store: Store, config: RunConfig, engine: Engine | None = None) -> None:
    """Cluster the vectors: ``labels/``, one file a shard, and ``centroids.safetensors``."""
    n_clusters = choose_clusters(store, config)
    inputs: dict[str, Any] = {
        "embeddings": _vectors_of(store),
        "clusters": n_clusters,
        "iterations": config.kmeans_max_iter,
        "metric": config.metric,
        "seed": config.seed,
    }
    for name in ("kmeans_init", "kmeans_sample"):
        if (value := getattr(config, name)) is not None:
            inputs[name] = value
    entry = store.path / "centroids.json"
    labels = [store.artifact("labels", shard, ".json") for shard in store.shards]
    if all(read_entry(each, inputs) is not None for each in (entry, *labels)):
        return
    before = _drawn_from(store, [entry, *labels], inputs)
    found = _clusters(store, config, n_clusters, engine or LocalEngine())
    _write_clusters(store, found, inputs, before)
    logger.info(
        "clustered %d rows into %d clusters in %d iterations, inertia %.4g",
        *(store.kept, n_clusters, found.n_iter, found.inertia),
    )


def _clusters(store: Store, config: RunConfig, n_clusters: int, engine: Engine) -> Clusters:
    """Cluster the vectors, where they lie: on a GPU that has room for them, or streamed."""
    from pyids.clustering.kmeans import KMeans

    vectors, lengths = store.embeddings(), [len(store.row_ids(shard)) for shard in store.shards]
    plan = kmeans_plan(config, sum(lengths), vectors[0].shape[1], n_clusters)
    logger.info("%s", describe_plan(plan, sum(lengths)))
    # By the cosine there is k-means on the CPU alone.
    on_cpu = config.device == "cpu" or config.metric == "cosine"
    kmeans = KMeans(
        n_clusters,
        max_iter=plan.max_iter,
        metric=plan.metric,
        random_state=plan.seed,
        init="k-means++" if plan.init == "two-level" else plan.init,
        algorithm="two-level" if plan.init == "two-level" else "lloyd",
        rows_per_cluster=None if plan.sample_rows is None else plan.sample_rows // n_clusters,
        device="cpu" if on_cpu else "auto" if config.device == "auto" else "cuda",
        n_threads=config.threads,
    )
    if kmeans.runs_on_cuda(sum(lengths) * n_clusters * vectors[0].shape[1]):
        kmeans.fit(vectors.all(store.scratch))
        parts = np.split(kmeans.labels_, np.cumsum(lengths)[:-1])
        return Clusters(kmeans.cluster_centers_, kmeans.inertia_, kmeans.n_iter_, iter(parts))
    return fit(
        vectors,
        [store.artifact("embeddings", shard) for shard in store.shards],
        lengths,
        plan,
        engine=engine,
        threads=config.threads,
        scratch=store.scratch,
        max_memory=config.max_memory or default_max_memory(),
    )


def _write_clusters(
    store: Store, found: Clusters, inputs: dict[str, Any], before: dict[str, str]
) -> None:
    from safetensors.numpy import save

    # Held in files, not in memory, until all are found to be what the rounds drew from.
    store.scratch.mkdir(exist_ok=True)
    kept = create_npy(store.scratch / "labels.npy", (store.kept,), np.int32)
    sizes, start = np.zeros(len(found.centers), np.int64), 0
    for shard, part in zip(store.shards, found.labels, strict=True):
        path = store.artifact("labels", shard)
        if before.get(path.name, made := hash_npy(part)) != made:
            raise DamagedError(
                f"{path}: made again, it is not what the rounds drew from (another device or "
                f"version?): go on where it was made, or `pyids clean {store.path} --stage rounds`"
            )
        kept[start : start + len(part)] = part
        sizes += np.bincount(part, minlength=len(sizes))
        start += len(part)
    path = store.path / "centroids.safetensors"
    begin(path.with_suffix(".json"))
    start = 0
    for shard in store.shards:
        stop = start + len(store.row_ids(shard))
        save_npy(store.artifact("labels", shard), kept[start:stop], inputs)
        start = stop
    del kept
    with atomic_write(path) as temporary:
        temporary.write_bytes(save({"centroids": found.centers, "sizes": sizes}))
    metadata = {"sizes": sizes.tolist(), "inertia": found.inertia}
    write_entry(path.with_suffix(".json"), [path], inputs, **metadata)
    shutil.rmtree(store.scratch, ignore_errors=True)


def _drawn_from(store: Store, entries: Sequence[Path], inputs: dict[str, Any]) -> dict[str, str]:
    """Give the hashes of the files that the rounds drew from, as far as their entries stand.

    Raises
    ------
    ConfigError
        They were made from something else than there is now.
    """
    hashes: dict[str, str] = {}
    if not has_drawn(store.path):
        return hashes
    for entry in entries:
        try:
            content = read_sealed(entry)
        except (FileNotFoundError, DamagedError):
            continue
        differing = [key for key, value in inputs.items() if content["inputs"].get(key) != value]
        if differing:
            what = "vectors" if "embeddings" in differing else differing[0]
            guess = " (a new version of the encoder?)" if what == "vectors" else ""
            raise ConfigError(
                f"{store.path}: its rounds drew from clusters made with other {what} than now"
                f"{guess}: choose another --output-dir, or start over with "
                f"`pyids clean {store.path} --stage rounds`"
            )
        hashes |= {name: metadata["xxh3"] for name, metadata in content["files"].items()}
    return hashes


def choose_clusters(store: Store, config: RunConfig) -> int:
    """Return the number of clusters; for ``auto`` the best silhouette, kept in ``auto_k.json``."""
    if config.clusters != "auto":
        return config.cluster_count(store.kept, budget_of(store, config).rows)
    path = store.path / "auto_k.json"
    inputs = {
        "embeddings": _vectors_of(store),
        "metric": config.metric,
        "seed": config.seed,
    }

    def choose() -> dict[str, Any]:
        from pyids.clustering.choose_k import choose_k

        choice = choose_k(
            store.embeddings(), metric=config.metric, seed=config.seed, threads=config.threads
        )
        logger.info("chose %d clusters by silhouette", choice.k)
        return {"inputs": inputs, "clusters": choice.k, **choice.evidence}

    if remembered(path, choose)["inputs"] != inputs:
        path.unlink()
    return int(remembered(path, choose)["clusters"])


def _vectors_of(store: Store) -> str:
    """Stands for all vectors in what is made of them."""
    entries = [store.artifact("embeddings", shard, ".json") for shard in store.shards]
    return fingerprint([load_sealed(entry)["files"] for entry in entries])


def drop_near(store: Store, config: RunConfig, engine: Engine | None = None) -> None:
    """Take near-duplicates out, if asked: ``distinct/`` and ``near_duplicates.jsonl``."""
    if config.semdedup_threshold is None:
        return
    from pyids.data.near_dedup import drop_near_duplicates

    gone = drop_near_duplicates(store, config.semdedup_threshold, engine)
    store.deduplicate()
    logger.info(
        "dropped %d rows that are near one of their cluster (cosine at least %g): %d stay",
        *(gone, config.semdedup_threshold, store.kept),
    )
    budget_of(store, config)


def rate(store: Store, config: RunConfig) -> None:
    """Score the quality of every row: ``quality/``, log weights, one file a shard; a histogram."""
    if config.quality is None:
        return
    if rated(store, config):
        return
    inputs = _quality_inputs(store, config)
    from pyids.scoring.row_weights import histogram, log_weight_of

    values = quality(store, config)
    folder = store.path / "quality"
    folder.mkdir(exist_ok=True)
    write_sealed(folder / "histogram.json", {"quality": config.quality, **histogram(values)})
    weigh, start = log_weight_of(values), 0
    for shard in store.shards:
        stop = start + len(store.row_ids(shard))
        save_npy(store.artifact("quality", shard), weigh(values[start:stop]), inputs)
        start = stop


def rated(store: Store, config: RunConfig) -> bool:
    """Whether `rate` has nothing to do."""
    if config.quality is None:
        return True
    inputs = _quality_inputs(store, config)
    entries = [store.artifact("quality", shard, ".json") for shard in store.shards]
    return all(read_entry(entry, inputs) is not None for entry in entries)


def _quality_inputs(store: Store, config: RunConfig) -> dict[str, Any]:
    inputs: dict[str, Any] = {"quality": config.quality, "model": config.model}
    for name in ("rating_half_width", "correct_ratings"):
        if value := getattr(config, name):
            inputs[name] = value
    if config.quality == "judge":
        inputs["judge"] = [config.judge_url, config.judge_model]
    return inputs


def quality(store: Store, config: RunConfig) -> NDArray[np.float64]:
    """Quality of all rows that stay, float64 (N,); scores are cached by content."""
    from pyids.scoring.cache import store_quality
    from pyids.scoring.signals import make_signal

    assert config.quality is not None
    judged = config.quality == "judge"
    of_column = not judged and make_signal(config.quality, default_model=config.model) is None
    values = store_quality(
        store,
        config.quality,
        default_model=config.model,
        # A column needs none, and looking for one would import torch.
        device="cpu" if of_column else device(config),
        system=config.system,
        signal=_asked(store, config),
        half_width=config.rating_half_width,
        seed=config.seed,
    )
    if config.correct_ratings:
        from pyids.scoring.rating_noise import correct_ratings

        before = values
        try:
            values = correct_ratings(before, store.embeddings(), np.concatenate(store.labels()))
        except ValueError as error:
            raise ConfigError(f"--correct-ratings: {error}: leave it out") from None
        changed = np.count_nonzero(values != before)
        logger.info("corrected %d of %d ratings by their neighbors'", changed, len(values))
    return values


def _asked(store: Store, config: RunConfig) -> Signal | None:
    """Return the signal of a server, if one is asked."""
    if config.quality == "judge":
        return _judged(store, config)
    if config.serve_url is None or not served_quality(config):
        return None
    from pyids.models.serving import serving_engine
    from pyids.scoring.signals import LanguageModelSignal, make_signal

    assert config.quality is not None
    signal = make_signal(
        config.quality, default_model=config.model, device=device(config), system=config.system
    )
    assert isinstance(signal, LanguageModelSignal)
    cache = None if store.read_only else store.path / "quality" / "cache" / "serve.jsonl"
    engine = serving_engine(config.model_copy(update={"proxy_model": signal.model}), cache)
    return replace(signal, engine=engine)


def served_quality(config: RunConfig) -> bool:
    """Whether a serving engine can give the quality of rows."""
    return (config.quality or "").partition(":")[0] in ("perplexity", "ifd")


def _judged(store: Store, config: RunConfig) -> Signal:
    from pyids.models.judge import DIMENSIONS, Judge, quality_prompt
    from pyids.models.raters import judge_endpoint
    from pyids.scoring.judged import Judged

    return Judged(
        Judge(
            judge_endpoint(config),
            cache=store.path / "quality" / "judge.jsonl",
            prompt=quality_prompt(),
            dimensions=DIMENSIONS,
        )
    )


def row_weights(store: Store, config: RunConfig, shard: Shard) -> NDArray[np.float64] | None:
    """Log weights of a shard's rows inside their clusters, float64 (rows,); None: all equal."""
    return None if config.quality is None else load_npy(store.artifact("quality", shard))
