"""The stage of rating: the quality of every row, and the log weights that follow from it."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyids.config import RunConfig
from pyids.device import device, task_device
from pyids.engine import Engine
from pyids.errors import ConfigError
from pyids.store.arrays import join
from pyids.store.files import write_sealed
from pyids.store.folder import Store
from pyids.store.ledger import read_entry, save_npy

if TYPE_CHECKING:
    from pyids.scoring.signals import Signal


logger = logging.getLogger("pyids")


def rate(store: Store, config: RunConfig, engine: Engine | None = None) -> None:
    """Score the quality of every row: ``quality/``, log weights, one file a shard; a histogram."""
    if config.quality is None:
        return
    if rated(store, config):
        return
    inputs = _quality_inputs(store, config)
    from pyids.scoring.row_weights import histogram, log_weight_of

    values = quality(store, config, engine)
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


def quality(store: Store, config: RunConfig, engine: Engine | None = None) -> NDArray[np.float64]:
    """Quality of all rows that stay, float64 (N,); scores are cached by content."""
    from pyids.scoring.cache import store_quality

    assert config.quality is not None
    values = store_quality(
        store,
        config.quality,
        default_model=config.model,
        device=task_device(config),
        system=config.system,
        signal=_asked(store, config),
        half_width=config.rating_half_width,
        seed=config.seed,
        engine=engine,
        threads=config.threads,
    )
    if config.correct_ratings:
        from pyids.scoring.rating_noise import correct_ratings

        before = values
        try:
            labels = join(store.labels(), store.scratch, store.kept, np.int32)
            values = correct_ratings(before, store.embeddings(), labels)
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
