"""From a configuration to a run folder whose rows are read, embedded and clustered."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pyids.config import RunConfig
from pyids.data.precomputed import take_vectors
from pyids.data.remote import is_remote
from pyids.data.replaced import accept, put_back
from pyids.data.sources import Source
from pyids.data.vector_files import vector_paths
from pyids.device import device
from pyids.engine import Engine
from pyids.errors import ConfigError, DataError
from pyids.models.hub import PACKAGED
from pyids.pipeline.clusters import cluster
from pyids.pipeline.counts import count, counted
from pyids.pipeline.exclude import exclude, stands
from pyids.pipeline.failing import do_stages
from pyids.pipeline.grow import extend, known_first, new_inputs
from pyids.pipeline.identity import check_decided, identity_of, named, with_absolute_paths
from pyids.pipeline.preflight import check_inputs
from pyids.pipeline.rate import rate, rated, served_quality
from pyids.pipeline.stages import drop_near, embed, engine_of, measure, read
from pyids.progress import report
from pyids.store.files import atomic_write
from pyids.store.folder import Store
from pyids.store.ledger import load_sealed
from pyids.store.manifest import note_places
from pyids.store.place import check_links, is_ours, write_mark

# Files of the input that every node of a cluster is asked for, from either end.
_FILES_CHECKED = 20

# Stages in their order; a later one needs those before it.
Stage: TypeAlias = Literal["read", "embed", "cluster"]


def prepare(config: RunConfig, until: Stage = "cluster", engine: Engine | None = None) -> Store:
    """Make the run folder of `config`, or find it, and do the stages that are not done.

    Parameters
    ----------
    config
        What the folder is made with.
    until
        The last stage that is needed.
    engine
        Where stages run; by default on an engine that is made for them.

    Raises
    ------
    PyidsError
        Anything the user can mend; the encoder is looked for before the data is read, and loaded
        after the data has been found good.
    """
    sources = check_inputs(config)
    with _opened(config) as store:
        with engine_of(config) if engine is None else nullcontext(engine) as engine:
            engine.check(store.path, _local_files(config, sources), device=config.device)
            sources = known_first(store, sources, config.limit, engine=engine)
            identity = identity_of(config, sources, store, engine)
            if not (new := new_inputs(store, identity)):
                store.check_claim(identity)
            check_decided(store.path, config)
            read(store, config, sources, engine)
            added = iter([new] if new else [])

            def claim() -> None:
                for files in added:  # once, though the stages may begin anew
                    extend(store, files, identity)
                _claim(store, config, identity)

            known = len(sources) - len(new) if new else 0
            do_stages(store, config, engine, _stages(store, config, engine, until, known, claim))
        return store


def reopen(
    config: RunConfig,
    until: Stage = "cluster",
    *,
    finish: bool = False,
    may_write: bool | None = None,
) -> Store:
    """Open the run folder that holds `config`, and do the stages that are not done.

    Unlike `prepare` it looks at data and vectors only where a stage that reads them is missing, and
    only if this user has named them: a folder may come from somebody else.

    Parameters
    ----------
    config
        The configuration that the folder holds (`pyids.pipeline.identity.saved_config`).
    until
        The last stage that is needed.
    finish
        Only scores are taken, or what was selected is written: use nothing but what the folder
        itself holds.
    may_write
        Whether something will be written to the folder, which must then be possible; by default
        unless `finish`.

    Raises
    ------
    ConfigError
        A stage is missing that would use what the folder names, and this user has not named it.
    DamagedError
        A file is missing or damaged and cannot be made again.
    """
    folder = config.output_path
    missing = _missing(Store(folder), needed=until != "read" and not finish)
    if missing is not None and finish:
        raise missing
    if missing is not None:
        if not is_ours(folder, named(config)):
            raise ConfigError(
                f"{missing}; or name the data again (`pyids ask {folder} --data ...` with all "
                "options): what a folder's config.yaml names is not used unless you have named it"
            )
        try:
            return prepare(config, until)
        except DataError as error:
            raise type(error)(f"{missing}; the data cannot be read again: {error}") from None
    ours = is_ours(folder, named(config))
    with _opened(config, may_write=not finish if may_write is None else may_write) as store:
        if not ours:
            _check_made(store, config)
        if finish:
            cluster(store, config)
            drop_near(store, config)
        elif until == "cluster":
            _after_vectors(store, config, ours=ours)
        return store


def _check_made(store: Store, config: RunConfig) -> None:
    """Refuse to open another user's folder where that would make what its target or model makes."""
    entries = {
        "target/index.json": config.target is not None,
        "best_response/left_out.json": config.best_response,
    }
    for entry, wanted in entries.items():
        if wanted and not (store.path / entry).exists():
            raise ConfigError(
                f"{store.path / entry}: missing, and what a folder's config.yaml names is not used "
                f"unless you have named it: name the data again (`pyids ask {store.path} --data "
                "...` with all options)"
            )


def _stages(
    store: Store,
    config: RunConfig,
    engine: Engine,
    until: Stage,
    known: int,
    claim: Callable[[], None],
) -> list[tuple[str, Callable[[], object]]]:
    """List the stages after the reading: their names and what does them."""
    stages: list[tuple[str, Callable[[], object]]] = [
        ("count", lambda: measure(store, config, engine))
    ]
    if config.has_vectors and until != "read":
        stages.append(("embed", lambda: _take_vectors(store, config, engine, known)))
    # Only now: a folder whose rows or vectors could not be read is nobody's.
    stages.append(("claim", claim))
    if not config.has_vectors and until != "read":
        stages.append(("embed", lambda: embed(store, config, engine)))
    if until == "cluster":
        stages += [
            ("exclude", lambda: exclude(store, config, engine)),
            ("cluster", lambda: cluster(store, config, engine)),
            ("near-duplicates", lambda: drop_near(store, config, engine)),
            ("quality", lambda: rate(store, config, engine)),
        ]
    return stages


def _take_vectors(store: Store, config: RunConfig, engine: Engine, known: int) -> None:
    take_vectors(
        store,
        config.embeddings_file,
        column=config.embeddings_column,
        engine=engine,
        progress=lambda done: report("copy vectors", done, store.kept),
        metric=config.metric,
        zero_vectors=config.zero_vectors,
        known=known,
    )


def _claim(store: Store, config: RunConfig, identity: Mapping[str, Any]) -> None:
    """Make the folder that of this run."""
    store.claim(identity)
    accept(store.path / "input")
    with atomic_write(store.path / "config.yaml") as temporary:
        absolute = with_absolute_paths(config)
        temporary.write_text(absolute.to_yaml(), encoding="utf-8")
    note_places(store.path)
    write_mark(store.path, named(absolute))


def _local_files(config: RunConfig, sources: Sequence[Source]) -> list[str]:
    """Name the first and last of the files that every worker must see."""
    files = [source.path for source in sources if not is_remote(source.path)]
    if config.embeddings_file is not None:
        files += [path for path in vector_paths(config.embeddings_file)[0] if Path(path).is_file()]
    some = [*files[:_FILES_CHECKED], *files[-_FILES_CHECKED:], *_model_files(config)]
    return list(map(os.path.abspath, some))


def _model_files(config: RunConfig) -> list[str]:
    """Name a file of each model that a stage uses and that is no package and of no hub."""
    names = {config.model} if served_quality(config) or config.best_response else set()
    if not config.has_vectors:
        names |= {config.encoder, config.encoder.rpartition(":")[0]}
    places = [Path(name).expanduser() for name in sorted(names - {"", *PACKAGED})]
    inside = [place / "config.json" if place.is_dir() else place for place in places]
    return [str(path) for path in inside if path.is_file()]


@contextmanager
def _opened(config: RunConfig, *, may_write: bool = True) -> Iterator[Store]:
    """Open the run folder; it stays open, unless the block raises."""
    store = Store.open(config.output_path, may_write=may_write)
    try:
        yield store
    except BaseException:
        if not store.read_only:
            put_back(store.path / "input")  # if the run was refused
        store.close()
        raise


def _missing(store: Store, *, needed: bool) -> DataError | None:
    """Return what is wrong with the rows that were read, and the vectors if they are needed."""
    try:
        check_links(store.path)
        _ = store.index, store.kept
        if needed:
            for shard in store.shards:
                load_sealed(store.artifact("embeddings", shard, ".json"))
    except DataError as error:
        return error
    return None


def _after_vectors(
    store: Store, config: RunConfig, engine: Engine | None = None, *, ours: bool = True
) -> None:
    """Do the stages that need nothing but rows and vectors; by default in this process."""
    if ours and not counted(store, config):
        count(store, config, engine)
    if not stands(store, config):
        if not ours:
            raise ConfigError(
                f"{store.path}: what it excludes is not there, and what a folder's config.yaml "
                "names is not used unless you have named it: repeat the command that began the "
                "run, with all its options"
            )
        exclude(store, config, engine)
    cluster(store, config, engine)
    drop_near(store, config, engine)
    if not ours and not rated(store, config):
        raise ConfigError(
            f"{store.path}: its rows are not rated by {config.quality!r}, and what a folder's "
            "config.yaml names is not used unless you have named it: repeat the command that began "
            "the run, with all its options"
        )
    rate(store, config, engine)


def metadata(store: Store, config: RunConfig) -> dict[str, Any]:
    """Return what the manifest says of a run beside the hashes: how and on what it was made."""
    looked_for = config.device == "auto" and "torch" in sys.modules
    return {
        "config": config.model_dump(),
        "rows": {
            "read": store.rows_read,
            "skipped": store.skipped,
            "duplicates": store.duplicates,
            "near_duplicates": store.near_duplicates,
            "kept": store.kept,
        },
        # What is named may be missing here, where the rest of the work needs it no more; and where
        # nothing has asked for a device, none is looked for: that would import torch.
        "device": device(config) if looked_for else config.device,
        "threads": config.threads or len(os.sched_getaffinity(0)),
    }
