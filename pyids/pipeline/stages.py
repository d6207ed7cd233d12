"""From a configuration to a run folder whose rows are read, embedded and clustered.

Every stage works shard by shard and skips what a valid ledger entry proves to be done: that is all
that resuming is. `plan` does what can be checked before any work.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyids.config import Dtype, LongText, RunConfig
from pyids.data.ingest import Intake, describe, ingest
from pyids.data.sources import Source
from pyids.device import device
from pyids.engine import Engine
from pyids.errors import ConfigError, DamagedError
from pyids.pipeline.budget import budget_of
from pyids.pipeline.counts import count
from pyids.pipeline.grow import assign_new, base_shards, check_base, growth_of, vectors_of
from pyids.progress import report
from pyids.store.files import (
    atomic_write,
    read_sealed,
    remembered,
    write_sealed,
)
from pyids.store.folder import Shard, Store
from pyids.store.ledger import (
    begin,
    hash_npy,
    load_npy,
    read_entry,
    save_npy,
    write_entry,
)
from pyids.store.rounds import has_drawn

if TYPE_CHECKING:
    from pyids.encoders import Encoder
    from pyids.scoring.signals import Signal


logger = logging.getLogger("pyids")


# What k-means may copy of the vectors to be faster: memory must not grow with the pool.
_CLUSTERING_BYTES = 64 << 20


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
    tasks = [
        _EmbedTask(
            folder=str(store.path),
            shard=shard,
            encoder=config.encoder,
            max_length=config.encoder_max_length,
            long_text=config.long_text,
            device=device(config),
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
            rows_before=sum(rows[:n]),
            rows_in_all=sum(rows),
        )
        for n, shard in enumerate(store.shards)
    ]
    done = 0
    for n_rows in engine.map(_embed_shard, tasks):
        done += n_rows
        report("embed", done, store.kept)
    logger.info("embedded %d rows", store.kept)


def _embed_shard(task: _EmbedTask) -> int:
    """Embed the rows of one shard; return their number."""
    store = Store(task.folder)
    path = store.artifact("embeddings", task.shard)
    if (entry := read_entry(path.with_suffix(".json"), task.inputs)) is not None:
        return int(entry["rows"])
    from pyids.chat.template import text_of

    texts = [text_of(messages) for messages in store.iter_messages(task.shard)]
    encoder = find_encoder(task.encoder, task.max_length, task.long_text, task.device, task.dtype)
    if task.threads is not None:
        import torch

        torch.set_num_threads(task.threads)

    def progress(done: int, total: int) -> None:  # in tokens or texts, by the encoder
        share = done / max(total, 1)
        report("embed", task.rows_before + int(share * len(texts)), task.rows_in_all)

    save_npy(path, encoder.encode(texts, progress).astype(np.float16), task.inputs)
    return len(texts)


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


def cluster(store: Store, config: RunConfig) -> None:
    """Cluster the vectors: ``labels/``, one file a shard, and ``centroids.safetensors``."""
    growth = growth_of(store)
    base = base_shards(store, growth)
    n_clusters = growth["clusters"] if growth is not None else choose_clusters(store, config)
    inputs = {
        "embeddings": vectors_of(store, base),
        "clusters": n_clusters,
        "iterations": config.kmeans_max_iter,
        "metric": config.metric,
        "seed": config.seed,
    }
    if growth is not None:
        check_base(store, base)
    entry = store.path / "centroids.json"
    labels = [store.artifact("labels", shard, ".json") for shard in base]
    if not all(read_entry(each, inputs) is not None for each in (entry, *labels)):
        _make_clusters(store, config, base, n_clusters, inputs)
    if growth is not None:
        assign_new(store, base, inputs, metric=config.metric, threads=config.threads)


def _make_clusters(
    store: Store,
    config: RunConfig,
    base: Sequence[Shard],
    n_clusters: int,
    inputs: dict[str, Any],
) -> None:
    """Do the k-means of `cluster` on the rows of some shards."""
    entries = [store.artifact("labels", shard, ".json") for shard in base]
    before = drawn_from(store, [store.path / "centroids.json", *entries], inputs)
    from pyids.clustering.kmeans import KMeans

    # By the cosine there is k-means on the CPU alone.
    on_cpu = config.device == "cpu" or config.metric == "cosine"
    kmeans = KMeans(
        n_clusters,
        max_iter=config.kmeans_max_iter,
        metric=config.metric,
        random_state=config.seed,
        device="cpu" if on_cpu else "auto" if config.device == "auto" else "cuda",
        n_threads=config.threads,
        max_memory=_CLUSTERING_BYTES,
    )
    kmeans.fit([load_npy(store.artifact("embeddings", shard)) for shard in base])
    labels = _by_shard(store, base, kmeans.labels_)
    _write_clusters(store, labels, kmeans.cluster_centers_, kmeans.inertia_, inputs, before)
    logger.info(
        "clustered %d rows into %d clusters in %d iterations, inertia %.4g",
        *(len(kmeans.labels_), n_clusters, kmeans.n_iter_, kmeans.inertia_),
    )


def _by_shard(
    store: Store, shards: Sequence[Shard], labels: NDArray[np.int32]
) -> dict[Shard, NDArray[np.int32]]:
    ends = np.cumsum([len(store.row_ids(shard)) for shard in shards])
    return dict(zip(shards, np.split(labels, ends[:-1]), strict=True))


def write_labels(
    path: Path,
    labels: NDArray[np.int32],
    inputs: dict[str, Any],
    before: dict[str, str],
    **metadata: Any,
) -> dict[str, Any]:
    """Write the labels of a shard, if they are what the rounds drew from; give the entry."""
    _check_drawn(path, labels, before)
    entry = path.with_suffix(".json")
    begin(entry)
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.lib.format.write_array(file, np.ascontiguousarray(labels), allow_pickle=False)
    return write_entry(entry, [path], inputs, rows=len(labels), **metadata)


def _check_drawn(path: Path, labels: NDArray[np.int32], before: dict[str, str]) -> None:
    if before.get(path.name, made := hash_npy(labels)) != made:
        folder = path.parent.parent
        raise DamagedError(
            f"{path}: made again, it is not what the rounds drew from (another device or "
            f"version?): go on where it was made, or `pyids clean {folder} --stage rounds`"
        )


def _write_clusters(
    store: Store,
    parts: dict[Shard, NDArray[np.int32]],
    centroids: NDArray[Any],
    inertia: float,
    inputs: dict[str, Any],
    before: dict[str, str],
) -> None:
    from safetensors.numpy import save

    for shard, part in parts.items():
        _check_drawn(store.artifact("labels", shard), part, before)
    path = store.path / "centroids.safetensors"
    begin(path.with_suffix(".json"))
    for shard, part in parts.items():
        save_npy(store.artifact("labels", shard), part, inputs)
    sizes = sum(
        (np.bincount(part, minlength=len(centroids)) for part in parts.values()),
        np.zeros(len(centroids), np.int64),
    )
    with atomic_write(path) as temporary:
        temporary.write_bytes(save({"centroids": centroids, "sizes": sizes}))
    metadata = {"sizes": sizes.tolist(), "inertia": inertia}
    write_entry(path.with_suffix(".json"), [path], inputs, **metadata)


def drawn_from(store: Store, entries: Sequence[Path], inputs: dict[str, Any]) -> dict[str, str]:
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
        "embeddings": vectors_of(store, store.shards),
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


def drop_near(store: Store, config: RunConfig) -> None:
    """Take near-duplicates out, if asked: ``distinct/`` and ``near_duplicates.jsonl``."""
    if config.semdedup_threshold is None:
        return
    from pyids.data.near_dedup import drop_near_duplicates

    gone = drop_near_duplicates(store, config.semdedup_threshold)
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
    from pyids.scoring.row_weights import histogram, log_weights

    values = quality(store, config)
    folder = store.path / "quality"
    folder.mkdir(exist_ok=True)
    write_sealed(folder / "histogram.json", {"quality": config.quality, **histogram(values)})
    logs, start = log_weights(values), 0
    for shard in store.shards:
        stop = start + len(store.row_ids(shard))
        save_npy(store.artifact("quality", shard), logs[start:stop], inputs)
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

    assert config.quality is not None
    values = store_quality(
        store,
        config.quality,
        default_model=config.model,
        device=device(config),
        system=config.system,
        signal=_judged(store, config) if config.quality == "judge" else None,
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
