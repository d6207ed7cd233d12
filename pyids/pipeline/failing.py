"""Rows on which a stage fails each time are left out, if the user asks for it: `skip_failing`."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pyids.config import RunConfig
from pyids.data.left_out import entry_for, leave_out, read_record, reason_of, recorded, write_record
from pyids.engine import Engine
from pyids.engine.failing import Failed
from pyids.errors import PyidsError
from pyids.pipeline.grow import growth_of
from pyids.store.folder import Shard, Store
from pyids.store.rounds import has_drawn
from pyids.terminal import printable

logger = logging.getLogger("pyids")


def do_stages(
    store: Store,
    config: RunConfig,
    engine: Engine,
    stages: Sequence[tuple[str, Callable[[], object]]],
) -> None:
    """Do stages after the reading, in order; with ``skip_failing`` without shards that fail.

    What a stage has made of other shards stands, so that it is not done again when the stages begin
    anew without those.

    Parameters
    ----------
    stages
        Names and functions; a function may be called again.

    Raises
    ------
    PyidsError
        More than half of the rows would be left out, or what was made of them stands already.
    """
    if config.skip_failing:
        engine.find_all_failing()
    before = read_record(store)
    at = 0
    while at < len(stages):
        name, stage = stages[at]
        try:
            stage()
        except Exception as error:
            failed = [one for one in engine.failed if one.shards]
            ours = config.skip_failing and failed and failed[0].error is error
            if not (ours and _leave_out(store, name, failed, before)):
                raise
            at = 0
        else:
            at += 1


def _leave_out(
    store: Store, stage: str, failed: Sequence[Failed], before: Sequence[Mapping[str, Any]]
) -> bool:
    """Leave the shards of failed tasks out; False: they are, and their rows are not the reason."""
    counts = recorded(store)
    known, by_name = {one["shard"] for one in counts}, {one.name: one for one in store.shards}
    new: dict[Shard, Failed] = {}
    for one in failed:
        shards = [by_name[shard.name] for shard in one.shards]
        new |= {shard: one for shard in shards if shard.name not in known}
    if not new:
        return False
    first, error = next(iter(new.items()))
    if (stands := _what_stands(store, new)) is not None:
        raise PyidsError(
            f"{_named(first)}: the stage {stage} fails on it ({_reason(error)}), and its rows "
            f"cannot be left out any more, because {stands}: mend what fails, or begin anew in "
            "another --output-dir"
        ) from error.error
    lost = sum(shard.rows for shard in new) + sum(one["rows"] for one in counts)
    if 2 * lost > store.rows_read:
        write_record(store, before)
        raise PyidsError(
            f"the stage {stage} fails on shards with more than half of the rows, such as "
            f"{_named(first)} ({_reason(error)}): mend it, for it is rather that than the rows; "
            "none are left out"
        ) from error.error
    names = {shard.name for shard in new}
    record = [one for one in read_record(store) if one["shard"] not in names]
    for shard, one in new.items():
        entry = entry_for(store, shard, stage, one.reason)
        record.append(entry)
        logger.warning("%s: %s: %s", _named(shard), reason_of(entry), _text(one))
    order = {shard.name: number for number, shard in enumerate(store.shards)}
    write_record(store, sorted(record, key=lambda one: order.get(one["shard"], len(order))))
    store.deduplicated = False
    leave_out(store)
    shutil.rmtree(store.scratch, ignore_errors=True)
    return True


def _what_stands(store: Store, shards: Mapping[Shard, Failed]) -> str | None:
    """Say what has been made of the rows of shards that cannot be made without them."""
    if has_drawn(store.path) and any(
        store.artifact("labels", shard, ".json").exists() for shard in shards
    ):
        return "rounds have drawn from them"
    base = set((growth_of(store) or {}).get("base", []))
    if any(shard.name in base for shard in shards):
        return "the clusters were made from them"
    return None


def _named(shard: Shard) -> str:
    return f"shard {shard.name} (rows {shard.row_ids[0]} to {shard.row_ids[-1]})"


def _reason(failed: Failed) -> str:
    """Say why a task failed, with what its exception says."""
    return failed.reason if _is_said(failed) else f"{failed.reason}: {_text(failed)}"


def _text(failed: Failed) -> str:
    if _is_said(failed):
        return "skipped.jsonl lists them"
    return f"{printable(str(failed.error).partition(chr(10))[0], one_line=True):.200}"


def _is_said(failed: Failed) -> bool:
    """Whether the reason says all."""
    return isinstance(failed.error, PyidsError)
