"""The stage of clustering: centers and labels of all rows, or labels by centers that stand."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyids._typing import Int64
from pyids.config import RunConfig
from pyids.engine import Engine, LocalEngine
from pyids.errors import ConfigError, DamagedError
from pyids.pipeline.budget import budget_of
from pyids.pipeline.grow import base_shards, check_base, growth_of, vectors_of
from pyids.pipeline.kmeans_plan import describe as describe_plan
from pyids.pipeline.kmeans_plan import kmeans_plan
from pyids.pipeline.streamed import Clusters, fit, threads_of_task
from pyids.resources import default_max_memory
from pyids.store.arrays import ShardArrays
from pyids.store.files import atomic_write, create_npy, read_sealed, remembered, write_npy
from pyids.store.folder import Shard, Store
from pyids.store.ledger import (
    begin,
    checked,
    hash_npy,
    load_npy,
    load_sealed,
    read_entry,
    save_npy,
    write_entry,
)
from pyids.store.reading import store_of
from pyids.store.rounds import has_drawn

logger = logging.getLogger("pyids")


def cluster(store: Store, config: RunConfig, engine: Engine | None = None) -> None:
    """Cluster the vectors: ``labels/``, one file a shard, and ``centroids.safetensors``."""
    growth = growth_of(store)
    base = base_shards(store, growth)
    n_clusters = growth["clusters"] if growth is not None else choose_clusters(store, config)
    inputs: dict[str, Any] = {
        "embeddings": vectors_of(store, base),
        "clusters": n_clusters,
        "iterations": config.kmeans_max_iter,
        "metric": config.metric,
        "seed": config.seed,
    }
    for name in ("kmeans_init", "kmeans_sample"):
        if (value := getattr(config, name)) is not None:
            inputs[name] = value
    if growth is not None:
        check_base(store, base)
    entry = store.path / "centroids.json"
    labels = [store.artifact("labels", shard, ".json") for shard in base]
    if not all(read_entry(each, inputs) is not None for each in (entry, *labels)):
        before = _drawn_from(store, [entry, *labels], inputs)
        found = _clusters(store, config, base, n_clusters, engine or LocalEngine())
        rows = _write_clusters(store, base, found, inputs, before)
        logger.info(
            "clustered %d rows into %d clusters in %d iterations, inertia %.4g",
            *(rows, n_clusters, found.n_iter, found.inertia),
        )
    if growth is not None:
        _assign_new(store, base, inputs, config, engine or LocalEngine())


def _clusters(
    store: Store, config: RunConfig, base: Sequence[Shard], n_clusters: int, engine: Engine
) -> Clusters:
    """Cluster the vectors, where they lie: on a GPU that has room for them, or streamed."""
    from pyids.clustering.kmeans import KMeans

    paths = [store.artifact("embeddings", shard) for shard in base]
    vectors = ShardArrays(lambda i: load_npy(paths[i]), len(paths))
    lengths = [len(store.row_ids(shard)) for shard in base]
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
        paths,
        lengths,
        plan,
        engine=engine,
        threads=config.threads,
        scratch=store.scratch,
        max_memory=config.max_memory or default_max_memory(),
    )


def _write_clusters(
    store: Store,
    base: Sequence[Shard],
    found: Clusters,
    inputs: dict[str, Any],
    before: dict[str, str],
) -> int:
    """Write what k-means found; give how many rows have a label now."""
    from safetensors.numpy import save

    # Held in files, not in memory, until all are found to be what the rounds drew from.
    store.scratch.mkdir(exist_ok=True)
    lengths = [len(store.row_ids(shard)) for shard in base]
    kept = create_npy(store.scratch / "labels.npy", (sum(lengths),), np.int32)
    sizes, start = np.zeros(len(found.centers), np.int64), 0
    for shard, part in zip(base, found.labels, strict=True):
        _check_drawn(store, store.artifact("labels", shard), part, before)
        kept[start : start + len(part)] = part
        sizes += np.bincount(part, minlength=len(sizes))
        start += len(part)
    path = store.path / "centroids.safetensors"
    begin(path.with_suffix(".json"))
    start = 0
    for shard, length in zip(base, lengths, strict=True):
        save_npy(store.artifact("labels", shard), kept[start : start + length], inputs)
        start += length
    del kept
    with atomic_write(path) as temporary:
        temporary.write_bytes(save({"centroids": found.centers, "sizes": sizes}))
    metadata = {"sizes": sizes.tolist(), "inertia": found.inertia}
    write_entry(path.with_suffix(".json"), [path], inputs, **metadata)
    shutil.rmtree(store.scratch, ignore_errors=True)
    return start


def _assign_new(
    store: Store,
    base: Sequence[Shard],
    inputs: Mapping[str, Any],
    config: RunConfig,
    engine: Engine,
) -> None:
    """Give the rows of later shards the nearest centers: ``labels/``; add them to the sizes.

    The drift is how far they lie from them, in mean squared distances of the rows that the centers
    were made from; above 1 the centers fit them less.
    """
    path = store.path / "centroids.safetensors"
    entry = path.with_suffix(".json")
    made, counts = load_sealed(entry), _centers(checked(path))[1]
    names = {shard.name for shard in base}
    tasks = (
        _AssignTask(
            folder=str(store.path),
            shard=shard,
            centers=made["files"][path.name],
            metric=config.metric,
            threads=threads_of_task(engine, config.threads),
        )
        for shard in store.shards
        if shard.name not in names
    )
    sizes, rows, inertia = counts.copy(), 0, 0.0
    for own, squares in engine.map(assign_shard, tasks):
        sizes += own
        rows, inertia = rows + int(own.sum()), inertia + squares
    grown = {"rows": rows, "inertia": inertia, "drift": _drift(made, counts, rows, inertia)}
    if made["sizes"] != sizes.tolist() or made.get("grown") != grown:
        facts = {"sizes": sizes.tolist(), "inertia": made["inertia"], "grown": grown}
        write_entry(entry, [path], inputs, **facts)
        logger.info("gave %d added rows the nearest clusters: drift %.3g", rows, grown["drift"])


class _AssignTask(NamedTuple):
    """What `assign_shard` needs: paths and numbers."""

    folder: str
    shard: Shard
    centers: dict[str, Any]
    metric: Any
    threads: int


def assign_shard(task: _AssignTask) -> tuple[Int64, float]:
    """Label the rows of a shard by the nearest centers; sizes, int64 (K,), and sum of squares."""
    from pyids.clustering.nearest import nearest_centers

    store = store_of(task.folder)
    centers, sizes = _centers(store.path / "centroids.safetensors")
    vectors = store.artifact("embeddings", task.shard)
    own = {
        "centroids": task.centers,
        "embeddings": load_sealed(vectors.with_suffix(".json"))["files"],
    }
    file = store.artifact("labels", task.shard)
    done = read_entry(file.with_suffix(".json"), own)
    if done is None:
        before = _drawn_from(store, [file.with_suffix(".json")], own)
        found, squares = nearest_centers(
            [load_npy(vectors)], centers, metric=task.metric, n_threads=task.threads
        )
        inertia = float(squares.sum())
        done = _write_labels(store, file, found[:, 0], own, before, inertia=inertia)
    return np.bincount(load_npy(file), minlength=len(sizes)), float(done["inertia"])


def _centers(path: Path) -> tuple[NDArray[np.float32], Int64]:
    """Read the centers of a file, and how many rows each was made from."""
    from safetensors.numpy import load_file

    content = load_file(path)
    return content["centroids"], content["sizes"]


def _drift(made: Mapping[str, Any], sizes: Any, rows: int, inertia: float) -> float:
    """Return the mean squared distance of added rows over that of those before them."""
    mean = float(made["inertia"]) / max(1, int(sizes.sum()))
    return inertia / max(1, rows) / mean if mean > 0 else 1.0


def _write_labels(
    store: Store,
    path: Path,
    labels: NDArray[np.int32],
    inputs: dict[str, Any],
    before: dict[str, str],
    **metadata: Any,
) -> dict[str, Any]:
    """Write the labels of a shard, if they are what the rounds drew from; give the entry."""
    _check_drawn(store, path, labels, before)
    entry = path.with_suffix(".json")
    begin(entry)
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        write_npy(file, np.ascontiguousarray(labels))
    return write_entry(entry, [path], inputs, rows=len(labels), **metadata)


def _check_drawn(
    store: Store, path: Path, labels: NDArray[np.int32], before: dict[str, str]
) -> None:
    if before.get(path.name, made := hash_npy(labels)) != made:
        raise DamagedError(
            f"{path}: made again, it is not what the rounds drew from (another device or "
            f"version?): go on where it was made, or `pyids clean {store.path} --stage rounds`"
        )


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
