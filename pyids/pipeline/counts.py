"""What a budget counts by: the tokens of each row, and the group that it belongs to.

Two stages over the shards, ``tokens/`` and ``groups/``, each made where an option asks for it.
They follow from the rows alone, so they stand for the rows of ``keep/``; `tokens_of` and
`groups_of` give them for the rows that stay after near-duplicates went, too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from pyids._typing import Int64
from pyids.config import RunConfig
from pyids.engine import Engine, LocalEngine
from pyids.errors import DataError, ModelError
from pyids.progress import report
from pyids.store.files import atomic_write, fingerprint, write_npy
from pyids.store.folder import Row, Shard, Store
from pyids.store.ledger import begin, load_npy, load_sealed, read_entry, save_npy, write_entry

# What `--group-by` calls the name of a row's file.
BY_FILE = "file"

# Where the counts of a selection lie that counts otherwise than the folder's run does.
_elsewhere: WeakKeyDictionary[Store, Path] = WeakKeyDictionary()


# ---- tokens --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _CountTask:
    """What `_count_shard` needs: paths and names."""

    folder: str
    path: str
    shard: Shard
    model: str
    system: str
    inputs: dict[str, Any]

    @property
    def is_response(self) -> bool:
        return bool(self.inputs["unit"] == "response-tokens")


def _place(store: Store, kind: str, shard: Shard) -> Path:
    return _elsewhere.get(store, store.path) / kind / f"{shard.name}.npy"


def count_tokens(store: Store, config: RunConfig, engine: Engine | None = None) -> None:
    """Count the tokens of every row that stays, if the budget does: ``tokens/``, int64 (n,).

    Those of the whole conversation as the chat template of ``model`` renders it, or those that the
    assistant wrote in it, which are trained on; uncut, at least 1.

    Raises
    ------
    DataError
        The chat template refuses a row; names file and line.
    """
    if config.unit == "rows":
        return
    facts = _facts(config)
    tasks = [
        _CountTask(
            *(str(store.path), str(_place(store, "tokens", shard)), shard),
            *(config.model, config.system),
            {"rows": store.fingerprint(shard), **facts},
        )
        for shard in store.shards
    ]
    done = 0
    for n_rows in (engine or LocalEngine()).map(_count_shard, tasks):
        done += n_rows
        report("count tokens", done, store.kept)


def _facts(config: RunConfig) -> dict[str, Any]:
    """Collect what decides how many tokens a row has."""
    from pyids.models.hub import resolve_model

    revision = resolve_model(config.model).revision
    return {
        "unit": config.unit,
        "model": config.model,
        "revision": revision,
        "system": config.system,
    }


def _count_shard(task: _CountTask) -> int:
    """Count the tokens of the rows of one shard; return the number of rows."""
    store = Store(task.folder)
    path = Path(task.path)
    if (entry := read_entry(path.with_suffix(".json"), task.inputs)) is not None:
        return int(entry["rows"])
    from pyids.chat.template import encode

    tokenizer = _tokenizer(task.model, str(task.inputs["revision"]), task.system)
    counts = []
    for row in store.iter_rows(task.shard):
        try:
            encoded = encode(row.messages, tokenizer)
        except ModelError as error:
            raise DataError(f"{row.path} line {row.line}: {error}") from error
        count = encoded.response_mask.sum() if task.is_response else len(encoded.input_ids)
        counts.append(max(1, int(count)))
    save_npy(path, np.array(counts, np.int64), task.inputs)
    return len(counts)


@lru_cache(maxsize=1)
def _tokenizer(model: str, revision: str, system: str) -> Any:
    """Load the tokenizer of a model, once a process; a folder may come to hold another model."""
    from pyids.models.hub import resolve_model, tokenizer_folder
    from pyids.models.load import load_tokenizer

    ref = replace(resolve_model(model), system=system)
    return load_tokenizer(replace(ref, path=tokenizer_folder(ref)))


def tokens_of(store: Store, shard: Shard) -> Int64:
    """Tokens of a shard's rows that stay, int64 (n,)."""
    return _narrowed(store, shard, load_npy(_place(store, "tokens", shard)))


# ---- groups --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _GroupTask:
    """What `_group_shard` needs."""

    folder: str
    path: str
    shard: Shard
    column: str
    inputs: dict[str, Any]


def group_rows(store: Store, config: RunConfig, engine: Engine | None = None) -> None:
    """Find the group of every row that stays, if asked: ``groups/``, int32 (n,).

    A number says which of the names in the shard's ledger entry it is.

    Raises
    ------
    DataError
        A row has no such column, or null in it; names file and line.
    """
    if (column := config.group_by) is None:
        return
    tasks = [
        _GroupTask(
            *(str(store.path), str(_place(store, "groups", shard)), shard, column),
            {"rows": store.fingerprint(shard), "column": column},
        )
        for shard in store.shards
    ]
    done = 0
    for n_rows in (engine or LocalEngine()).map(_group_shard, tasks):
        done += n_rows
        report("group", done, store.kept)


def _group_shard(task: _GroupTask) -> int:
    store = Store(task.folder)
    path = Path(task.path)
    entry = path.with_suffix(".json")
    if (done := read_entry(entry, task.inputs)) is not None:
        return int(done["rows"])
    numbers: dict[str, int] = {}
    found = [
        numbers.setdefault(group_of_row(row, task.column), len(numbers))
        for row in store.iter_rows(task.shard)
    ]
    begin(entry)
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        write_npy(file, np.array(found, np.int32))
    write_entry(entry, [path], task.inputs, rows=len(found), names=list(numbers))
    return len(found)


def group_of_row(row: Row, column: str) -> str:
    """Return the name of the group that a row belongs to.

    Raises
    ------
    DataError
        It has none.
    """
    if column == BY_FILE:
        return PurePath(row.path).name
    value = row.record.get(column)
    if value is None:
        raise DataError(
            f"{row.path} line {row.line}: there is no group in column {column!r}: name another "
            "with --group-by, or write one in every row"
        )
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def group_names(store: Store) -> tuple[str, ...]:
    """Return the names of all groups, sorted."""
    names: set[str] = set()
    for shard in store.shards:
        names.update(load_sealed(_place(store, "groups", shard).with_suffix(".json"))["names"])
    return tuple(sorted(names))


def groups_of(store: Store, shard: Shard, names: Sequence[str]) -> NDArray[np.int32]:
    """Which of `names` the group of each of a shard's rows that stay is, int32 (n,)."""
    number = {name: n for n, name in enumerate(names)}
    own = load_sealed(_place(store, "groups", shard).with_suffix(".json"))["names"]
    codes = np.array([number[name] for name in own], np.int32)
    local = load_npy(_place(store, "groups", shard))
    return _narrowed(store, shard, codes[local] if len(local) else local)


def counted(store: Store, config: RunConfig) -> bool:
    """Whether what the budget counts by stands there, so that no model and no data is needed."""
    kinds = [
        *(["tokens"] if config.unit != "rows" else []),
        *(["groups"] if config.group_by is not None else []),
    ]
    return all(
        _place(store, kind, shard).with_suffix(".json").exists()
        for kind in kinds
        for shard in store.shards
    )


def count(store: Store, config: RunConfig, engine: Engine | None = None) -> None:
    """Do both stages, as far as options ask for them."""
    count_tokens(store, config, engine)
    group_rows(store, config, engine)


def count_beside(store: Store, config: RunConfig) -> None:
    """Do as `count` for a selection without rounds, which must not change what a run counted.

    Where the folder holds other counts than `config` asks for, or none, they are made in its cache.
    """
    facts: dict[str, Any] = {}
    if config.unit != "rows":
        facts["tokens"] = _facts(config)
    if config.group_by is not None:
        facts["groups"] = {"column": config.group_by}
    for kind, inputs in facts.items():
        for shard in store.shards:
            entry = _place(store, kind, shard).with_suffix(".json")
            if read_entry(entry, {"rows": store.fingerprint(shard), **inputs}) is None:
                folder = store.scratch if store.read_only else store.path / "quality" / "cache"
                _elsewhere[store] = folder / f"counts-{fingerprint(facts)[:16]}"
                return count(store, config)
    return None


def _narrowed(store: Store, shard: Shard, values: NDArray[Any]) -> NDArray[Any]:
    """Keep the values of rows that stay after near-duplicates went."""
    if not store.deduplicated:
        return values
    kept = load_npy(store.artifact("keep", shard))
    return np.asarray(values[np.searchsorted(kept, store.row_ids(shard))])
