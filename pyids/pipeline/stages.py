"""From a configuration to a run folder whose rows are read, embedded and clustered.

Every stage works shard by shard and skips what a valid ledger entry proves to be done: that is all
that resuming is. `plan` does what can be checked before any work.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from pyids.config import Dtype, LongText, RunConfig
from pyids.data.ingest import describe, ingest
from pyids.data.sources import Source
from pyids.device import find_device, task_device
from pyids.engine import Engine, in_process, make_engine
from pyids.models.hf import torch_threads
from pyids.pipeline.budget import budget_of
from pyids.pipeline.counts import count
from pyids.pipeline.streamed import threads_of_task
from pyids.progress import report
from pyids.resources import processors
from pyids.store.folder import Shard, Store
from pyids.store.ledger import (
    read_entry,
    save_npy,
)
from pyids.store.reading import store_of

if TYPE_CHECKING:
    from pyids.encoders import Encoder


logger = logging.getLogger("pyids")


# ---- stages --------------------------------------------------------------------------------------


def engine_of(config: RunConfig, workers: int | None = None) -> Engine:
    """Make the engine that the stages of a configuration run on; `workers` are others than its."""
    return make_engine(
        config.engine,
        config.workers if workers is None else workers,
        address=config.address,
        task_timeout=config.task_timeout,
        size=max(config.workers or processors(), config.processes),
    )


def read(store: Store, config: RunConfig, sources: Sequence[Source], engine: Engine) -> None:
    """Read and validate the rows, drop duplicates."""
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


def measure(store: Store, config: RunConfig, engine: Engine) -> None:
    """Count what the budget counts by; check what depends on the number of rows."""
    count(store, config, engine)
    config.cluster_count(store.kept, budget_of(store, config).rows)


# To be raised when the same row would be embedded as another text.
_TEXT_VERSION = 2


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
    cores: int | None
    inputs: dict[str, Any]
    rows_before: int
    rows_in_all: int


def embed(store: Store, config: RunConfig, engine: Engine) -> None:
    """Embed every row that stays: ``embeddings/``, one file a shard."""
    revision = find_encoder(config.encoder).revision
    rows = [len(store.row_ids(shard)) for shard in store.shards]
    before = [0, *itertools.accumulate(rows)]
    # Beside other tasks, each has its share of the cores for work that gives the same bits on any
    # number of them; torch's threads are left as they are, where nothing else is asked for.
    cores = config.threads if in_process(engine) else threads_of_task(engine, config.threads)
    tasks = [
        _EmbedTask(
            folder=str(store.path),
            shard=shard,
            encoder=config.encoder,
            max_length=config.encoder_max_length,
            long_text=config.long_text,
            device=task_device(config),
            dtype=config.dtype,
            threads=config.threads,
            cores=cores,
            inputs={
                "rows": store.fingerprint(shard),
                "encoder": config.encoder,
                "revision": revision,
                "max_length": config.encoder_max_length,
                "long_text": config.long_text,
                "dtype": config.dtype,
                "text": _TEXT_VERSION,
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
    if task.cores is not None:
        os.environ.setdefault("RAYON_NUM_THREADS", str(task.cores))  # of the library `tokenizers`
    n_rows = len(store.row_ids(task.shard))
    texts = (text_of(messages) for messages in store.iter_messages(task.shard))

    def progress(done: int, total: int) -> None:  # in tokens or texts, by the encoder
        share = done / max(total, 1)
        report("embed", task.rows_before + int(share * n_rows), task.rows_in_all)

    if not n_rows:  # of none an encoder of somebody else's may make what it likes
        vectors = np.empty((0, encoder.dim), np.float16)
    elif (stream := getattr(encoder, "encode_stream", None)) is not None:
        vectors, done = np.empty((n_rows, encoder.dim), np.float16), 0
        for block in stream(texts, task.cores):
            vectors[done : done + len(block)] = block
            done += len(block)
            progress(done, n_rows)
    else:
        with torch_threads(task.threads):
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
