"""A run folder whose data grows: the same command, with more files in DATA, extends it.

Files are known by name and content. Those that the folder knows stand first, in the order in which
it read them, and new ones behind them: so rows, vectors and labels keep their ids and their shards,
and only new shards are worked on. The centers of the clusters stay what they were (frozen): rows
that come later get the nearest one, and the same clusters follow whether the files came one by one
or at once. What earlier rounds have selected is kept in ``grown/N/``, and the rounds begin anew on
all rows. ``pyids clean RUN --stage cluster`` lets the next command make centers of all rows.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pyids.data.fingerprints import fingerprint_sources
from pyids.data.sources import Source
from pyids.engine import Engine
from pyids.errors import ConfigError, DamagedError, DataError
from pyids.store.files import entries_of, fingerprint, read_sealed, write_sealed
from pyids.store.folder import Shard, Store
from pyids.store.ledger import load_sealed

logger = logging.getLogger("pyids")

# What may differ when data is added: vectors of the new rows, and what is trained on by now.
_MAY_CHANGE = {"inputs", "embeddings_file", "already"}
# What belongs to the rounds of a folder; they themselves are moved last.
_OF_ROUNDS = ("selected.jsonl", "README.md", "probes.jsonl", "mismatch.json", "manifest.json")


def known_first(
    store: Store,
    sources: Sequence[Source],
    limit: int | None,
    *,
    remember: bool = True,
    engine: Engine | None = None,
) -> list[Source]:
    """Put the files that a run folder knows first, in its order, and new ones behind them.

    The folder remembers the hashes of the files, unless nothing may be written there.
    """
    if (had := store.identity()) is None:
        return _in_order_of_reading(store, sources)
    found = fingerprint_sources(sources, store if remember else None, limit=limit, engine=engine)
    left = list(zip(found, sources, strict=True))
    known = []
    for facts in had["inputs"]:
        at = next((n for n, (one, _) in enumerate(left) if one == facts), None)
        if at is not None:
            known.append(left.pop(at)[1])
    return [*known, *(source for _, source in left)]


def _in_order_of_reading(store: Store, sources: Sequence[Source]) -> list[Source]:
    """Do so by the names of the files, in a folder that has grown and lost its identity."""
    if not (store.path / "growth.json").exists():
        return list(sources)
    try:
        read = [Path(source["path"]).name for source in store.index["sources"]]
    except (DataError, ConfigError):
        return list(sources)
    place = {name: n for n, name in reversed(list(enumerate(read)))}
    return sorted(sources, key=lambda source: place.get(Path(source.path).name, len(read)))


def new_inputs(store: Store, identity: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the files that a run with this identity adds to the folder's; none if it is another's.

    Parameters
    ----------
    identity
        See `pyids.pipeline.identity.identity_of`; its files in the order of `known_first`.
    """
    had = store.identity()
    if had is None or identity.get("limit") is not None:
        return []
    before, now = had["inputs"], identity["inputs"]
    others = {**had, **identity}.keys() - _MAY_CHANGE
    same = all(had.get(key) == identity.get(key) for key in others)
    vectors = [one.get("embeddings_file") is None for one in (had, identity)]
    if not same or vectors[0] != vectors[1] or now[: len(before)] != before:
        return []
    return list(now[len(before) :])


def extend(store: Store, new: Sequence[Mapping[str, Any]], identity: Mapping[str, Any]) -> None:
    """Make ready for the rows of new files, which have been read: keep centers, put rounds away.

    Then the folder is that of `identity`. May be done again where it was stopped.
    """
    n_known = len(store.index["sources"]) - len(new)
    path = store.path / "growth.json"
    centers = store.path / "centroids.json"
    if centers.exists():
        growth = growth_of(store)
        if growth is None:
            base = [shard.name for shard in store.shards if shard.source < n_known]
            growth = {"base": base, "clusters": len(load_sealed(centers)["sizes"])}
        check_base(store, base_shards(store, growth))
        write_sealed(path, growth)
    kept = _put_away(store.path)
    # Made of all rows: the target's is made again.
    shutil.rmtree(store.path / "target", ignore_errors=True)
    write_sealed(store.path / "identity.json", identity)
    rows = sum(shard.rows for shard in store.shards if shard.source >= n_known)
    logger.info(
        "added %d rows of %s to %s%s",
        *(rows, ", ".join(str(one["name"]) for one in new), store.path),
        f"; what was selected before is in {kept}" if kept else "",
    )


def _put_away(folder: Path) -> Path | None:
    """Move the rounds of a folder and what was made of them to ``grown/N/``; give that."""
    if not (folder / "rounds").exists():
        (folder / "manifest.json").unlink(missing_ok=True)
        return None
    number = 1
    while (folder / "grown" / str(number) / "rounds").exists():
        number += 1
    kept = folder / "grown" / str(number)
    kept.mkdir(parents=True, exist_ok=True)
    for name in (*_OF_ROUNDS, "rounds"):
        if (folder / name).exists():
            (folder / name).rename(kept / name)
    return kept


def growth_of(store: Store) -> dict[str, Any] | None:
    """Return the shards that centers were made from, and how many there are; None: of all rows."""
    try:
        return read_sealed(store.path / "growth.json")
    except FileNotFoundError:
        return None


def base_shards(store: Store, growth: Mapping[str, Any] | None) -> list[Shard]:
    """Return the shards whose rows the centers are made from."""
    if growth is None:
        return store.shards
    names = set(growth["base"])
    return [shard for shard in store.shards if shard.name in names]


def vectors_of(store: Store, shards: Sequence[Shard]) -> str:
    """Stands for the vectors of some shards in what is made of them."""
    entries = [store.artifact("embeddings", shard, ".json") for shard in shards]
    return fingerprint([load_sealed(entry)["files"] for entry in entries])


def check_base(store: Store, base: Sequence[Shard]) -> None:
    """Check that the rows that the centers were made from have the vectors that they had.

    Raises
    ------
    ConfigError
        They have others.
    """
    try:
        had = read_sealed(store.path / "centroids.json")["inputs"]
    except (FileNotFoundError, DamagedError):
        return
    if had.get("embeddings") != vectors_of(store, base):
        raise ConfigError(
            f"{store.path}: rows that its clusters were made from have other vectors than then (a "
            "new version of the encoder, or another file?): give the same vectors, or let `pyids "
            f"clean {store.path} --stage cluster` and the same command cluster all rows anew"
        )


def carried_over(store: Store) -> dict[str, Any]:
    """Return what the manifest says of a folder that has grown, JSON values."""
    if growth_of(store) is None:
        return {}
    before = [path / "selected.jsonl" for path in entries_of(store.path / "grown")]
    selected = [path for path in before if path.exists()]
    return {
        "grown": {
            **load_sealed(store.path / "centroids.json").get("grown", {}),
            "selected before": [str(path.relative_to(store.path)) for path in selected],
        }
    }
