"""From a configuration to a run folder whose rows are read, embedded and clustered."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

from pyids.config import RunConfig
from pyids.data.precomputed import take_vectors
from pyids.device import device
from pyids.engine import make_engine
from pyids.pipeline.identity import identity_of, with_absolute_paths
from pyids.pipeline.preflight import check_inputs
from pyids.pipeline.stages import cluster, drop_near, embed, rate, read
from pyids.store.files import atomic_write
from pyids.store.folder import Store

# Stages in their order; a later one needs those before it.
Stage: TypeAlias = Literal["read", "embed", "cluster"]


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
        identity = identity_of(config, sources, store)
        store.check_claim(identity)
        with make_engine(config.engine, config.workers) as engine:
            read(store, config, sources, engine)
            if config.has_vectors and until != "read":
                take_vectors(
                    store,
                    config.embeddings_file,
                    column=config.embeddings_column,
                    engine=engine,
                    metric=config.metric,
                    zero_vectors=config.zero_vectors,
                )
            # Only now: a folder whose rows or vectors could not be read is nobody's.
            store.claim(identity)
            with atomic_write(store.path / "config.yaml") as temporary:
                temporary.write_text(with_absolute_paths(config).to_yaml(), encoding="utf-8")
            if not config.has_vectors and until != "read":
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
    entries = (store.artifact("embeddings", shard, ".json") for shard in store.shards)
    return not needed or all(entry.exists() for entry in entries)


def _after_vectors(store: Store, config: RunConfig) -> None:
    """Do the stages that need nothing but rows and vectors."""
    cluster(store, config)
    drop_near(store, config)
    rate(store, config)


def facts(store: Store, config: RunConfig) -> dict[str, Any]:
    """Return what the manifest says of a run beside the hashes: how and on what it was made."""
    return {
        "config": config.model_dump(),
        "rows": {
            "read": store.rows_read,
            "skipped": store.skipped,
            "repeats": store.repeats,
            "near_duplicates": store.near_duplicates,
            "kept": store.kept,
        },
        # What is named may be missing here, where the rest of the work needs it no more.
        "device": device(config) if config.device == "auto" else config.device,
        "threads": config.threads or len(os.sched_getaffinity(0)),
    }
