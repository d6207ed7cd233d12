"""Rows that are never drawn: what held-out rows exclude, and what is trained on already.

``excluded/`` holds their ids, and of each shard what was found; ``excluded.jsonl`` lists each row
with the held-out row that it matches and why. Once made, a run folder needs the files no more.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from pyids._typing import Int64
from pyids.config import RunConfig
from pyids.data.exact_dedup import places
from pyids.data.exclude import NGRAM, Held, HeldOut, Match, Options, read_held_out
from pyids.data.fingerprints import fingerprint_files
from pyids.data.ingest import ingest
from pyids.data.near_held_out import NearHeldOut
from pyids.data.sources import named_files, open_sources
from pyids.data.vector_files import open_vectors
from pyids.device import device
from pyids.engine import Engine, LocalEngine, on_cluster
from pyids.errors import ConfigError, DataError
from pyids.models.hf import torch_threads
from pyids.progress import report
from pyids.store.arrays import map_npy
from pyids.store.files import atomic_write, fingerprint, read_sealed, stamp, write_npy, write_sealed
from pyids.store.folder import Shard, Store
from pyids.store.ledger import begin, checked, load_npy, load_sealed, read_entry, write_entry
from pyids.store.reading import cut_shards, store_of

logger = logging.getLogger("pyids")

# To be raised when the same rows would be excluded otherwise.
_VERSION = 1
# Rows whose vectors are compared at a time: float64 copies of them are made.
_BLOCK_ROWS = 16_384
# Rows of a task that looks for what is trained on already: half a second.
_TASK_ROWS = 1 << 19
_DIGEST = np.dtype("S16")


@dataclass(frozen=True)
class Excluded:
    """Rows that are never drawn.

    Attributes
    ----------
    rows
        int64, ascending: what held-out rows exclude.
    already
        int64, ascending: what is trained on already.
    facts
        What the manifest says of them, JSON values.
    """

    rows: Int64
    already: Int64
    facts: dict[str, Any]

    @property
    def ids(self) -> Int64:
        """All of them, ascending."""
        return np.union1d(self.rows, self.already)


def left_out_words(config: RunConfig) -> str:
    """Say which rows are not selected, by the options that leave some out."""
    reasons = {
        "repeat the target": config.target,
        "are excluded": config.exclude,
        "are trained on already": config.already,
        "have a likelier answer": config.best_response,
    }
    return " or ".join(reason for reason, asked in reasons.items() if asked)


def too_few(config: RunConfig, budget: int, left: int, unit: str) -> ConfigError:
    """Say that a budget is above what is left to select from, and why no more is."""
    others = f", for others {why}" if (why := left_out_words(config)) else ""
    return ConfigError(
        f"budget {budget} is above the {left} {unit} that are left{others}: lower --budget"
    )


NOTHING = Excluded(np.empty(0, np.int64), np.empty(0, np.int64), {})


def exclude(
    store: Store,
    config: RunConfig,
    engine: Engine | None = None,
    *,
    folder: Path | None = None,
    listing: Path | None = None,
) -> Excluded:
    """Find the rows that must not be drawn, once.

    Parameters
    ----------
    store
        Its rows have been read and, for ``exclude_cosine``, embedded.
    config
        What excludes them.
    engine
        Where shards are worked on.
    folder, listing
        Where to; ``excluded/`` and ``excluded.jsonl`` of the run folder unless given.

    Raises
    ------
    DataError
        Held-out rows or their vectors cannot be read, or do not fit.
    """
    if config.exclude is None and config.already is None:
        return NOTHING
    folder = folder or store.path / "excluded"
    listing = listing or store.path / "excluded.jsonl"
    inputs = _inputs(store, config)
    entry = folder / "index.json"
    if read_entry(entry, inputs) is None:
        folder.mkdir(parents=True, exist_ok=True)
        begin(entry)
        # What lies beside a folder that is only read, other machines may not see.
        if engine is None or (store.read_only and on_cluster(engine)):
            engine = LocalEngine()
        store.scratch.mkdir(exist_ok=True)
        matches = _matches(store, config, engine, folder, inputs)
        already = _already(store, config, engine)
        _write(store, config, folder, listing, matches, already, inputs)
    return excluded(store, config, folder)


def excluded(store: Store, config: RunConfig, folder: Path | None = None) -> Excluded:
    """Return what `exclude` has found, from the run folder alone.

    Raises
    ------
    DamagedError
        It is missing or damaged.
    """
    if config.exclude is None and config.already is None:
        return NOTHING
    folder = folder or store.path / "excluded"
    facts = load_sealed(folder / "index.json")["facts"]
    rows, already = (load_npy(folder / f"{name}.npy") for name in ("rows", "already"))
    return Excluded(_kept_of(store, rows), _kept_of(store, already), facts)


def _kept_of(store: Store, row_ids: Int64) -> Int64:
    """Give those of some rows that stay; ids, ascending."""
    row_ids, found = np.sort(row_ids), [np.empty(0, np.int64)]
    for shard in store.shards:
        first, last = np.searchsorted(row_ids, [shard.row_ids.start, shard.row_ids.stop])
        if first < last:
            found.append(np.intersect1d(store.row_ids(shard), row_ids[first:last]))
    return np.concatenate(found)


def stands(store: Store, config: RunConfig) -> bool:
    """Whether `exclude` has found the rows of a run folder, or has none to find."""
    nothing = config.exclude is None and config.already is None
    return nothing or (store.path / "excluded" / "index.json").exists()


def _inputs(store: Store, config: RunConfig) -> dict[str, Any]:
    """Collect what decides which rows go."""
    inputs: dict[str, Any] = {
        "version": _VERSION,
        "rows": [store.fingerprint(shard) for shard in store.shards],
        "exclude": fingerprint_files(named_files(config.exclude or [], held_out=True), store),
        "already": fingerprint_files(named_files(config.already or []), store),
        "ngram": config.exclude_ngram or NGRAM,
        "overlap": config.exclude_overlap,
    }
    if config.exclude_cosine is not None:
        entries = [store.artifact("embeddings", shard, ".json") for shard in store.shards]
        inputs["cosine"] = config.exclude_cosine
        inputs["vectors"] = fingerprint([load_sealed(entry)["files"] for entry in entries])
    return inputs


# ---- held-out rows -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Task:
    """What `_exclude_shard` needs: paths and numbers."""

    folder: str
    shard: Shard
    out: str
    held_out: str
    vectors: str | None
    cosine: float | None
    n: int
    overlap: float | None
    threads: int | None
    inputs: dict[str, Any]


def _matches(
    store: Store, config: RunConfig, engine: Engine, folder: Path, inputs: dict[str, Any]
) -> dict[Shard, list[Match]]:
    """Compare every row with the held-out rows, shard by shard; give the matches."""
    if config.exclude is None:
        return {}
    held = read_held_out(config.exclude)
    path, vectors = store.scratch / "held-out.jsonl", None
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        for row in held:
            file.write(orjson.dumps(_as_json(row)) + b"\n")
    if config.exclude_cosine is not None:
        vectors = store.scratch / "held-out.npy"
        with atomic_write(vectors) as temporary, temporary.open("wb") as file:
            write_npy(file, _vectors(store, config, held))
    whole = ("rows", "already", "vectors")
    shared = {key: value for key, value in inputs.items() if key not in whole}
    tasks = [
        _Task(
            *(str(store.path), shard, str(folder / f"{shard.name}.json"), str(path)),
            *(str(vectors) if vectors else None, config.exclude_cosine),
            int(inputs["ngram"]),
            config.exclude_overlap,
            config.threads,
            {**shared, **_inputs_of(store, config, shard)},
        )
        for shard in store.shards
    ]
    found, done = {}, 0
    for task, matches in zip(tasks, engine.map(_exclude_shard, tasks), strict=True):
        found[task.shard] = [Match(row_id, number, *rest) for row_id, number, *rest in matches]
        done += task.shard.rows
        report("exclude", done, store.rows_read)
    return found


def _inputs_of(store: Store, config: RunConfig, shard: Shard) -> dict[str, Any]:
    """Collect what decides which rows of one shard go, beside the held-out rows."""
    if config.exclude_cosine is None:
        return {"rows": store.fingerprint(shard)}
    vectors = load_sealed(store.artifact("embeddings", shard, ".json"))["files"]
    return {"rows": store.fingerprint(shard), "vectors": vectors}


def _exclude_shard(task: _Task) -> list[list[Any]]:
    """Compare the rows of one shard; idempotent."""
    out = Path(task.out)
    try:
        done = read_sealed(out)
        if done["made_of"] == task.inputs:
            return list(done["matches"])
    except (FileNotFoundError, DataError):
        pass
    store = Store(task.folder)
    held = _held_out(task.held_out, _stamp(task.held_out), task.n, task.overlap)
    rows = ((row.row_id, row.messages) for row in store.iter_rows(task.shard))
    matches = {match.row_id: match for match in held.find(rows)}
    if task.vectors is not None:
        assert task.cosine is not None
        near = _near_held_out(task.vectors, _stamp(task.vectors), task.cosine)
        for match in _near(store, task.shard, near, task.threads):
            matches.setdefault(match.row_id, match)
    found = [list(matches[row_id]) for row_id in sorted(matches)]
    return list(write_sealed(out, {"made_of": task.inputs, "matches": found})["matches"])


# A process may look at one folder with several sets of held-out rows: the stamp tells them apart.
@lru_cache(maxsize=1)
def _held_out(path: str, stamp: tuple[int, ...], n: int, overlap: float | None) -> HeldOut:
    """Make held-out rows ready, once a process."""
    lines = Path(path).read_bytes().splitlines()
    return HeldOut([_from_json(orjson.loads(line)) for line in lines], Options(n, overlap))


@lru_cache(maxsize=1)
def _near_held_out(path: str, stamp: tuple[int, ...], threshold: float) -> NearHeldOut:
    """Make the vectors of held-out rows ready, once a process."""
    return NearHeldOut(np.load(path), threshold)


def _stamp(path: str) -> tuple[int, ...]:
    return stamp(Path(path))


def _as_json(row: Held) -> list[Any]:
    key = None if row.digest is None else row.digest.hex()
    return [row.place, key, *([text.decode() for text in texts] for texts in row[2:4])]


def _from_json(row: list[Any]) -> Held:
    place, key, prompts, texts = row
    digest = None if key is None else bytes.fromhex(key)
    return Held(place, digest, tuple(map(str.encode, prompts)), tuple(map(str.encode, texts)), [])


def _vectors(store: Store, config: RunConfig, held: Sequence[Held]) -> NDArray[np.float64]:
    """Give the vectors of held-out rows at unit length, float64 (Q, D)."""
    if (path := config.exclude_embeddings_file) is not None:
        given = open_vectors(path)
        if len(given) != len(held):
            raise DataError(
                f"{path}: {len(given)} vectors for {len(held)} held-out rows: give one a row, in "
                "their order (--exclude-embeddings-file)"
            )
        vectors = np.asarray(given.take(np.arange(len(given))), np.float64)
    elif config.has_vectors:
        raise DataError(
            "the vectors of the pool are given, so those of the held-out rows must be, too: name "
            "them with --exclude-embeddings-file, or leave --exclude-cosine out"
        )
    else:
        from pyids.chat.template import text_of
        from pyids.pipeline.stages import find_encoder

        encoder = find_encoder(
            config.encoder, config.encoder_max_length, config.long_text, device(config),
            config.dtype,
        )  # fmt: skip
        with torch_threads(config.threads):
            made = encoder.encode([text_of(row.messages) for row in held])
        vectors = made.astype(np.float16).astype(np.float64)
    dim = load_npy(store.artifact("embeddings", store.shards[0])).shape[1]
    if vectors.shape[1] != dim:
        raise DataError(
            f"held-out vectors of {vectors.shape[1]} dimensions, those of the pool have {dim}: "
            "embed both with the same encoder"
        )
    lengths = np.sqrt(np.square(vectors).sum(axis=1, keepdims=True))
    if len(bad := np.flatnonzero(~(np.isfinite(lengths[:, 0]) & (lengths[:, 0] > 0)))):
        raise DataError(f"{held[bad[0]].place}: its vector is zero or not finite: embed it again")
    return np.asarray(vectors / lengths)


def _near(store: Store, shard: Shard, held: NearHeldOut, threads: int | None) -> Iterator[Match]:
    """Find rows whose vector has a cosine of at least the threshold to a held-out row's."""
    vectors, ids = load_npy(store.artifact("embeddings", shard)), store.row_ids(shard)
    for start in range(0, len(vectors), _BLOCK_ROWS):
        found = held.find(vectors[start : start + _BLOCK_ROWS], threads)
        for row in np.flatnonzero(found.held >= 0).tolist():
            cosine = float(min(1.0, found.cosines[row]))
            yield Match(int(ids[start + row]), int(found.held[row]), "vector", 0, cosine)


# ---- what is trained on already ------------------------------------------------------------------


def _already(store: Store, config: RunConfig, engine: Engine) -> Int64:
    """Find the rows that are trained on already; ids, ascending."""
    if not config.already:
        return np.empty(0, np.int64)
    digests = store.scratch / "already.npy"
    with atomic_write(digests) as temporary, temporary.open("wb") as file:
        write_npy(file, _digests(config.already))
    tasks = (
        _AlreadyTask(str(store.path), shards, str(digests))
        for shards in cut_shards(store.shards, _TASK_ROWS)
    )
    return np.concatenate([np.empty(0, np.int64), *engine.map(_find_already, tasks)])


def _digests(names: Sequence[str]) -> NDArray[np.bytes_]:
    """Read rows that are trained on already; their digests, ascending."""
    import tempfile

    with (
        tempfile.TemporaryDirectory(prefix="pyids-already-") as folder,
        Store.open(folder) as store,
    ):
        ingest(store, open_sources(names), keep_duplicates=True)
        found = (_digests_of(store, shard)[1] for shard in store.shards)
        return np.unique(np.concatenate([np.empty(0, _DIGEST), *found]))


@dataclass(frozen=True)
class _AlreadyTask:
    """What `_find_already` needs: paths and shards."""

    folder: str
    shards: tuple[Shard, ...]
    digests: str


def _find_already(task: _AlreadyTask) -> Int64:
    """Find the rows of some shards that have one of the digests; ids, ascending."""
    store, digests = store_of(task.folder), map_npy(Path(task.digests))
    found = [np.empty(0, np.int64)]
    for shard in task.shards if len(digests) else ():
        ids, keys = _digests_of(store, shard)
        at = np.minimum(np.searchsorted(digests, keys), len(digests) - 1)
        found.append(ids[digests[at] == keys])
    return np.concatenate(found)


def _digests_of(store: Store, shard: Shard) -> tuple[Int64, NDArray[np.bytes_]]:
    """Give the ids of a shard's usable rows, and their digests."""
    import pyarrow.parquet as pq

    path = checked(store.artifact("rows", shard, ".parquet"))
    column = pq.read_table(path, columns=["digest"])["digest"]
    ids = shard.first_row_id + np.flatnonzero(column.is_valid())
    return ids, np.frombuffer(b"".join(column.drop_null().to_pylist()), _DIGEST)


# ---- files ---------------------------------------------------------------------------------------


def _write(
    store: Store,
    config: RunConfig,
    folder: Path,
    listing: Path,
    matches: dict[Shard, list[Match]],
    already: Int64,
    inputs: dict[str, Any],
) -> None:
    """Write the ids and the list of them, then the entry that vouches for both."""
    held = [] if config.exclude is None else read_held_out(config.exclude)
    counts = Counter(match.why for found in matches.values() for match in found)
    with atomic_write(listing) as temporary, temporary.open("wb") as file:
        for shard, found in matches.items():
            at = np.array([match.row_id for match in found], np.intp) - shard.first_row_id
            for place, match in zip(places(store, shard, at), found, strict=True):
                line = {**place, "why": match.why, "held_out": held[match.held].place}
                if match.why == "n-gram":
                    line |= {"shared": match.shared, "share": match.share, "ngram": match.text}
                elif match.why == "vector":
                    line["cosine"] = match.share
                file.write(orjson.dumps(line) + b"\n")
    rows = np.array([m.row_id for found in matches.values() for m in found], np.int64)
    trained = _kept_of(store, already)
    for name, ids in (("rows", rows), ("already", trained)):
        with atomic_write(folder / f"{name}.npy") as temporary, temporary.open("wb") as file:
            write_npy(file, ids)
    facts = {"excluded": dict(sorted(counts.items())), "already": len(trained)}
    files = [folder / "rows.npy", folder / "already.npy", listing]
    write_entry(folder / "index.json", files, inputs, facts=facts)
    if config.exclude is not None:
        shown = ", ".join(f"{n} {why}" for why, n in sorted(counts.items())) or "none"
        logger.info("excluded %d rows that match held-out rows (%s)", len(rows), shown)
    if config.already is not None:
        logger.info(
            "found %d rows of the pool among those that are trained on already; the others charge "
            "no cluster",
            len(trained),
        )
