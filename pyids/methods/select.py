"""One selection by one method, without rounds: `pyids select`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from pyids._typing import Float64, Int64
from pyids.config import DEFAULT_MODEL, ROUND_FIELDS, RunConfig
from pyids.data.card import How
from pyids.data.destination import check_export, place_of
from pyids.data.export import export
from pyids.data.exported_rows import Selected
from pyids.device import device
from pyids.engine import Engine
from pyids.errors import ConfigError, DamagedError
from pyids.methods import Method, Pool, Target, get_method, pool_from_store
from pyids.methods.budgeted import Choose, choose_groups, choose_units
from pyids.methods.pool import Influences
from pyids.methods.record import write_record
from pyids.options import BudgetOptions, ExclusionOptions
from pyids.pipeline import rate
from pyids.pipeline.best_response import other_responses
from pyids.pipeline.budget import bounds_of, budget_of, describe_groups, names_of, words
from pyids.pipeline.counts import count_beside, groups_of, tokens_of
from pyids.pipeline.exclude import NOTHING, Excluded, exclude, excluded, stands, too_few
from pyids.pipeline.identity import is_made_with, named, saved_config, with_absolute_paths
from pyids.pipeline.prepare import Stage, prepare, reopen
from pyids.pipeline.stages import engine_of
from pyids.pipeline.target import PoolTarget
from pyids.result import Result
from pyids.store.arrays import join
from pyids.store.folder import Store
from pyids.store.place import check_no_input, inputs_of, is_ours

logger = logging.getLogger("pyids")


# Who is asked for a quality, too.
_OF_A_JUDGE = (
    *("judge_url", "judge_model", "judge_max_requests"),
    *("serve_url", "serve_model", "serve_max_requests"),
)


# Where and with what a selection is computed: its rows are the same.
_OF_THE_MACHINE = {
    *("engine", "workers", "address", "task_timeout", "skip_failing"),
    *("threads", "max_memory", "device"),
}


# What may differ from the configuration of the run folder that is selected from.
_OF_A_SELECTION = {
    *("budget", "seed", "quality", "model", *_OF_THE_MACHINE),
    *BudgetOptions.model_fields,
    *ExclusionOptions.model_fields,
    *("target", "target_by", "target_embeddings_file"),
    *("rating_half_width", "correct_ratings", *_OF_A_JUDGE),
}


def select(
    config: RunConfig,
    method: str,
    path: str | Path | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """Select with a method of `pyids.methods`; return the path of the exported rows.

    Parameters
    ----------
    config
        What is selected from, how much, and where: rows are read, embedded and clustered only as
        far as the method needs. A folder that holds them already may be that of another draw.
    method
        Name of a method.
    path
        Where to; by default ``selected-METHOD.jsonl`` of the run folder.
    settings
        Options of the method.

    Raises
    ------
    ConfigError
        There is no such method or option, or it needs a quality and none is named.
    """
    return select_rows(config, method, path, settings=settings).path


def select_rows(
    config: RunConfig,
    method: str,
    path: str | Path | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
) -> Result:
    """Select as `select` does; return the rows beside their path."""
    folder_config = _for_folder(config, _needed(get_method(method), config))
    return _select(prepare, folder_config, config, method, path, settings or {})


def select_from_folder(
    folder: str | Path,
    method: str,
    path: str | Path | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """Select from the rows, vectors and clusters that a run folder holds; see `select`.

    Parameters
    ----------
    folder
        The run folder; what is in it stays.
    **changes
        Fields of its configuration to change: budget, seed, quality, model; options of the budget,
        of what is excluded, of the target and of who rates rows; and those of the machine: engine,
        workers, address, threads, max_memory, device.

    Raises
    ------
    ConfigError
        Another field differs: it would need another folder.
    """
    return rows_from_folder(folder, method, path, settings=settings, **changes).path


def rows_from_folder(
    folder: str | Path,
    method: str,
    path: str | Path | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Result:
    """Select as `select_from_folder` does; return the rows beside their path."""
    folder_config, config = configs_of(Path(folder), changes)

    def open_folder(config: RunConfig, until: Stage) -> Store:
        return reopen(config, until, may_write=path is None)

    return _select(open_folder, folder_config, config, method, path, settings or {})


def changes_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """Drop from a config file's options what the run folder says: what is selected from."""
    own = {"data", "output_dir", *ROUND_FIELDS}
    return {name: value for name, value in options.items() if name not in own}


def configs_of(folder: Path, changes: Mapping[str, Any]) -> tuple[RunConfig, RunConfig]:
    """Return the configuration of a run folder, and that of a selection from it.

    Raises
    ------
    ConfigError
        What a selection needs is another folder's, or names what this user has not.
    """
    folder_config = saved_config(folder)
    # Without rounds, a budget need not reach for one row in each.
    # And one that is given counts what it says, not what the folder's does.
    unit = {"budget_unit": None} if "budget" in changes else {}
    config = saved_config(folder, **{"rounds": 1, **unit, **changes})
    others = [
        name
        for name in sorted(changes.keys() - _OF_A_SELECTION)
        if name == "output_dir" or getattr(config, name) != getattr(folder_config, name)
    ]
    if others:
        raise ConfigError(
            f"{others[0]} belongs to the run folder {folder}: select from the data instead, with "
            "another --output-dir"
        )
    ours = is_ours(folder, named(folder_config))
    if not ours:  # a cluster that the folder alone names is not used
        here: dict[str, Any] = {"engine": "local", "address": None}
        config = config.model_copy(
            update={name: value for name, value in here.items() if name not in changes}
        )
    own = "model" in changes or config.model == DEFAULT_MODEL
    asked = config.quality is not None or config.unit != "rows"
    if asked and not own and not ours:
        raise ConfigError(
            f"{folder}: its config.yaml names the model {config.model!r}, and you have not: give "
            "--model for the quality, or for the tokens"
        )
    machine = {name: getattr(config, name) for name in changes.keys() & _OF_THE_MACHINE}
    return folder_config.model_copy(update=machine), config


def check_method(config: RunConfig, method: str, settings: Mapping[str, Any]) -> Method:
    """Find a method, and check that options give all that it needs.

    Raises
    ------
    ConfigError
        There is no such method, or it needs what is not given.
    """
    chosen = get_method(method)
    chosen.check_options(settings)
    if "quality" in chosen.needs and config.quality is None:
        raise ConfigError(f"method {method!r} needs --quality: name a column or a signal")
    if config.serve_url is not None and not rate.served_quality(config):
        raise ConfigError(
            "--serve-url gives the quality of rows here: name --quality perplexity or ifd, or "
            "leave it out"
        )
    if "target" in chosen.needs and config.target is None:
        raise ConfigError(
            f"method {method!r} needs --target: name rows of what the model is to learn"
        )
    return chosen


def _needed(method: Method, config: RunConfig) -> Stage:
    """Return how far rows must be prepared for a method."""
    of_clusters = (config.semdedup_threshold, config.rating_half_width, config.correct_ratings)
    if {"labels", "centroids"} & set(method.needs) or any(of_clusters):
        return "cluster"
    vectors = "embeddings" in method.needs or config.exclude_cosine is not None
    return "embed" if vectors else "read"


def _for_folder(config: RunConfig, until: Stage) -> RunConfig:
    """Replace what decides the draw alone by what the folder, if there is one, was made with."""
    if not (config.output_path / "config.yaml").exists():
        return config
    of_the_draw = (_OF_A_SELECTION - _OF_THE_MACHINE) | ROUND_FIELDS
    if until == "cluster":
        of_the_draw -= {"seed"}
        if config.clusters is None:  # their number follows from these
            of_the_draw -= {"budget", "budget_unit", "rounds"}
    try:
        saved = saved_config(config.output_path)
    except (ConfigError, DamagedError):
        # The command that the folder was made with writes it again; another one says what is wrong.
        if not is_made_with(config):
            raise
        return config
    return config.model_copy(update={name: getattr(saved, name) for name in of_the_draw})


def make_pool(
    store: Store,
    config: RunConfig,
    quality: Float64 | None,
    without: Excluded = NOTHING,
    engine: Engine | None = None,
) -> Pool:
    """Make the pool less what no method selects: repeats of the target, worse answers, `without`.

    What is trained on already stands beside it.
    """
    others = np.union1d(other_responses(store, config, engine), without.ids)
    if config.target is None:
        pool = pool_from_store(store, quality=quality, threads=config.threads)
        return _beside(pool.without(others), pool, without)
    target = PoolTarget.read(store, config, engine)
    pool = pool_from_store(
        store,
        quality=quality,
        threads=config.threads,
        target=lambda: Target(target.vectors, target.rows.tasks),
        gradients=lambda: _influences(store, config, target),
    )
    return _beside(pool.without(np.union1d(others, target.copies)), pool, without)


def _beside(pool: Pool, everyone: Pool, without: Excluded) -> Pool:
    if not len(without.already):
        return pool
    return replace(pool, already=everyone.only(without.already))


def _influences(store: Store, config: RunConfig, target: PoolTarget) -> Influences:
    """Return what finds the influence of the store's rows, by gradients of ``model``."""

    def influences(warm_up: Int64, rows: Int64, *, seed: int, epochs: int, dims: int) -> Float64:
        from pyids.models.influence import Influence

        return Influence(
            config.round_model,
            device=device(config),
            dtype=config.dtype,
            max_length=config.max_length,
            batch_size=config.batch_size,
            lora_rank=config.lora_rank,
            epochs=epochs,
            dims=dims,
            seed=seed,
        ).scores(
            [row.messages for row in store.read_rows(warm_up)],
            [row.messages for row in store.read_rows(rows)],
            target.rows.conversations,
        )

    return influences


def excluded_rows(
    store: Store,
    config: RunConfig,
    folder_config: RunConfig,
    target: Path,
    engine: Engine | None = None,
) -> Excluded:
    """Find what must not be selected; listed beside `target` where it is not what the run excludes.

    On `engine`, or on one that is made for it.

    Raises
    ------
    ConfigError
        The folder's configuration names files, and this user has not.
    """
    fields, places = ExclusionOptions.model_fields, {}
    if any(getattr(config, field) != getattr(folder_config, field) for field in fields):
        listing = _listing(target)
        try:
            listing.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"{listing.parent}: cannot be written ({error.strerror}): choose another place"
            ) from None
        places = {"folder": store.scratch / "excluded", "listing": listing}
    elif stands(store, config):
        return excluded(store, config)
    elif not is_ours(store.path, named(with_absolute_paths(folder_config))):
        raise ConfigError(
            f"{store.path}: its config.yaml names rows to exclude, and you have not: give --exclude"
        )
    with engine_of(config) if engine is None else nullcontext(engine) as engine:
        return exclude(store, config, engine, **places)


def _listing(target: Path) -> Path:
    """Return the file beside a selection that lists what was excluded from it."""
    return target.with_name(f"excluded-{target.stem.removeprefix('selected-')}.jsonl")


def _check_to(path: Path, config: RunConfig) -> None:
    """Check that nothing is lost by what is written there, before the work for it."""
    inputs = inputs_of(config.model_dump())
    check_export(path, "jsonl", inputs, config.output_path)
    check_no_input(_listing(path), inputs)


def _rows_within(
    store: Store, config: RunConfig, pool: Pool, choose: Choose
) -> tuple[Int64, dict[str, Any]]:
    """Select what the budget allows, in its unit and within the bounds of groups.

    Returns the ids, and what the manifest says of the budget.
    """
    if config.unit == "rows" and config.group_by is None:
        budget = config.budget_rows(store.kept)
        if budget > len(pool):
            raise too_few(config, budget, len(pool), "rows")
        chosen = choose(pool, budget)
        return chosen, {"unit": "rows", "total": budget, "drawn": len(chosen)}
    total = budget_of(store, config).total
    places = np.searchsorted(_kept(store), pool.row_ids)
    units = np.ones(len(pool), np.int64)
    if config.unit != "rows":
        units = np.concatenate([tokens_of(store, s) for s in store.shards])[places]
    if total > (most := int(units.sum())):
        raise too_few(config, total, most, words(config.unit))

    def of(chosen: Int64) -> NDArray[np.intp]:
        return np.searchsorted(pool.row_ids, chosen)

    facts: dict[str, Any] = {"unit": config.unit, "total": total}
    if config.group_by is None:
        chosen = choose_units(choose, pool, units, total, config.seed)
        return chosen, facts | {"drawn": int(units[of(chosen)].sum())}
    names = names_of(store, config)
    of_all = np.concatenate([groups_of(store, s, names) for s in store.shards])
    groups, trained = of_all[places], None
    if pool.already is not None:
        trained = of_all[np.searchsorted(_kept(store), pool.already.row_ids)]
    held = np.bincount(groups, weights=units, minlength=len(names)).astype(np.int64)
    bounds = bounds_of(names, config, total, held)
    chosen = choose_groups(choose, pool, units, groups, bounds, total, config.seed, trained=trained)
    at = of(chosen)
    drawn = np.bincount(groups[at], weights=units[at], minlength=len(names)).astype(np.int64)
    facts |= {"drawn": int(drawn.sum()), "groups": describe_groups(bounds, drawn, held)}
    return chosen, facts


def _kept(store: Store) -> Int64:
    return join(map(store.row_ids, store.shards), store.scratch, store.kept, np.int64)


def _select(
    open_folder: Callable[[RunConfig, Stage], Store],
    folder_config: RunConfig,
    config: RunConfig,
    method: str,
    path: str | Path | None,
    settings: Mapping[str, Any],
) -> Result:
    place = None if path is None else place_of(path, "jsonl")
    if place is not None:
        _check_to(place, config)
    chosen = check_method(config, method, settings)
    until = _needed(chosen, config)
    with open_folder(folder_config, until) as store, engine_of(config) as engine:
        count_beside(store, config)
        rated = "quality" in (*chosen.needs, *chosen.uses) and config.quality is not None
        quality = None
        if rated:
            quality = rate.quality(store, config, engine)
        name = method.replace(":", "-")
        target = place or store.path / f"selected-{name}.jsonl"
        without = excluded_rows(store, config, folder_config, target, engine)
        pool = make_pool(store, config, quality, without, engine)
        if pool.already is not None and "already" not in chosen.uses:
            logger.info(
                "%s shares nothing among clusters: the %d rows that are trained on already are not "
                "drawn again, and charge none",
                *(method, len(pool.already)),
            )
        engine.release()  # a method may need the place
        draw = partial(chosen, seed=config.seed, **settings)
        row_ids, budget = _rows_within(store, config, pool, draw)
        clusters = None
        if until == "cluster":
            clusters = pool.labels[np.searchsorted(pool.row_ids, row_ids)]
        logger.info("selected %d of %d rows by %s", len(row_ids), store.kept, method)
        selected = Selected(row_ids=row_ids, clusters=clusters)
        asked = yaml.safe_load(with_absolute_paths(config).to_yaml())
        how = How(method, settings, asked, without.facts)
        written = export(store, selected, target, how=how, own=place is None, engine=engine)
        write_record(store, config, how, budget, written)
        chosen_rows = selected.sorted()
        return Result(written, store.path, chosen_rows.row_ids, chosen_rows.clusters)
