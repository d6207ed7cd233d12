"""Reading the pool into the run folder, once: validated, digested, sharded.

Each split of the input is one task (`read_split`), which streams its rows into shards; then exact
duplicates are found over all shards (`pyids.data.exact_dedup`). Memory is bounded by a row group,
whatever the size of the input.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from pyids.chat.format_map import PREFIX as MAP_PREFIX
from pyids.chat.formats import BadRow, UnusableRow
from pyids.data.diagnose import summarize
from pyids.data.exact_dedup import drop_duplicates
from pyids.data.fingerprints import fingerprint_sources
from pyids.data.left_out import leave_out, recorded
from pyids.data.look import Look
from pyids.data.readers import Problem, Reader
from pyids.data.shard_writer import ShardWriter, split_name
from pyids.data.sources import Source
from pyids.data.splits import Split, plan_splits
from pyids.engine import Engine, LocalEngine
from pyids.errors import DataError
from pyids.store.files import write_sealed
from pyids.store.folder import Store
from pyids.store.ledger import begin, read_entry, write_entry

GROUPS_PER_SHARD = 8


# Above so many bytes of input the shards double, for a process maps only some 65,000 files.
BYTES_BEFORE_DOUBLING = 64 << 30


MAX_ERRORS = 20


# To be raised when the same input would be read differently.
_READER_VERSION = 4


Progress = Callable[[int, int, int], None]


@dataclass(frozen=True)
class Intake:
    """What was read.

    Attributes
    ----------
    rows : int
        Rows in the input, or of it up to the limit.
    kept, skipped, duplicates : int
        Rows that stay, that are unusable, that repeat an earlier row; they add up to `rows`.
    formats : dict
        Chat format -> number of rows of it.
    unused : dict
        Column that looks like part of the prompt and does not reach the model -> rows with it.
    unusable : str
        Where the first unusable row stands and why it is one; "" where there is none.
    """

    rows: int
    kept: int
    skipped: int
    duplicates: int
    formats: dict[str, int]
    unused: dict[str, int] = field(default_factory=dict)
    unusable: str = field(default="", compare=False)


def describe(intake: Intake) -> str:
    """Say in one line what was read, and in one more each what is left out."""
    formats = ", ".join(f"{_name(name)} ({rows})" for name, rows in intake.formats.items())
    unused = [
        f"column {column!r} of {rows} rows looks like part of the prompt and does not reach the "
        f"model: name it with --format-map (prompt=COLUMN+{column},response=COLUMN) if it should"
        for column, rows in intake.unused.items()
    ]
    return "\n".join(
        [
            f"read {intake.rows} rows of {formats}: {intake.kept} stay, {intake.skipped} are "
            f"unusable, {intake.duplicates} repeat another",
            *([f"the first unusable row: {intake.unusable}"] if intake.unusable else []),
            *unused,
        ]
    )


def _name(format: str) -> str:
    return "the format map" if format.startswith(MAP_PREFIX) else format


def ingest(
    store: Store,
    sources: Sequence[Source],
    *,
    engine: Engine | None = None,
    limit: int | None = None,
    strict: bool = False,
    keep_duplicates: bool = False,
    progress: Progress | None = None,
) -> Intake:
    """Read the sources into ``rows/`` and decide which rows stay; skip what is done already.

    Parameters
    ----------
    store : Store
        The run folder.
    sources : sequence of Source
        From `open_sources`.
    engine : Engine, optional
        Where the splits are read; default: this process.
    limit : int, optional
        Read only the first so many rows.
    strict : bool, default False
        Unusable rows (empty response or prompt) are errors, instead of being listed in
        ``skipped.jsonl``.
    keep_duplicates : bool, default False
        Rows that repeat an earlier one stay; ``duplicates.jsonl`` lists them all the same.
    progress : callable, optional
        Called with (rows read, bytes read, bytes of all sources) after each split.

    Returns
    -------
    Intake

    Raises
    ------
    DataError
        The first `MAX_ERRORS` errors of the data: file, line or row, column, remedy, those of one
        kind in one line; or not one row can be used.
    """
    _read(store, sources, engine or LocalEngine(), limit, strict, progress, records=True)
    return _after_reading(store, keep_duplicates, engine)


def _after_reading(store: Store, keep_duplicates: bool, engine: Engine | None = None) -> Intake:
    left_out = recorded(store)
    drop_duplicates(store, keep_duplicates=keep_duplicates, engine=engine, left_out=left_out)
    leave_out(store)
    counts = (store.rows_read, store.kept, store.skipped, store.duplicates)
    index = store.index
    if not store.kept:
        raise DataError(
            "not one row can be used: mend the data, or name its columns with --format-map; the "
            f"first: {index['unusable']}"
        )
    return Intake(*counts, index["formats"], index["unused"], index["unusable"])


def check(
    sources: Sequence[Source],
    *,
    engine: Engine | None = None,
    limit: int | None = None,
    strict: bool = False,
    keep_duplicates: bool = False,
    progress: Progress | None = None,
    look: Callable[[Store], None] | None = None,
    records: bool = False,
) -> Intake:
    """Do all that `ingest` checks and counts, and leave nothing behind.

    The digests of the rows, 16 bytes each, stand in a temporary folder meanwhile, with `records`
    the rows, too; `look` may look at which rows stay.
    """
    with tempfile.TemporaryDirectory(prefix="pyids-check-") as folder, Store.open(folder) as store:
        _read(store, sources, engine or LocalEngine(), limit, strict, progress, records=records)
        intake = _after_reading(store, keep_duplicates)
        if look is not None:
            look(store)
        return intake


@dataclass(frozen=True)
class _Task:
    """What `read_split` needs: paths and numbers."""

    split: Split
    folder: str
    xxh3: str
    max_rows: int | None
    groups_per_shard: int
    strict: bool
    records: bool

    @property
    def entry(self) -> str:
        """Name of its ledger entry."""
        return f"{split_name(self.split.number)}.json"

    @property
    def inputs(self) -> dict[str, Any]:
        split, source = self.split, self.split.source
        return {
            "reader": _READER_VERSION,
            "file": self.xxh3,
            "range": [split.start, split.stop],
            "kind": source.kind,
            "format": source.format,
            "without": source.vectors,
            "max_row_bytes": source.max_row_bytes,
            "max_rows": self.max_rows,
            "groups_per_shard": self.groups_per_shard,
            "strict": self.strict,
        }


def _read(
    store: Store,
    sources: Sequence[Source],
    engine: Engine,
    limit: int | None,
    strict: bool,
    progress: Progress | None,
    *,
    records: bool,
) -> None:
    """Read the splits in order; write ``rows/index.json`` when all are whole."""
    rows_folder = store.path / "rows"
    rows_folder.mkdir(exist_ok=True)
    inputs = fingerprint_sources(sources, store, limit=limit)
    splits = plan_splits(sources)
    total_bytes = sum(split.bytes for split in splits)
    tasks = [
        _Task(
            split=split,
            folder=str(rows_folder),
            xxh3=inputs[split.source_number]["xxh3"],
            max_rows=limit,
            groups_per_shard=groups_per_shard(total_bytes),
            strict=strict,
            records=records,
        )
        for split in splits
    ]
    if any(read_entry(rows_folder / task.entry, task.inputs) is None for task in tasks):
        begin(rows_folder / "index.json")  # which would vouch for other rows
    found = _Found(sources)
    bytes_read = 0
    for task, report in zip(tasks, engine.map(read_split, tasks), strict=False):
        if limit is not None and found.rows + report["rows"] > limit:
            # The splits are read side by side, each as if it were the first; the one in which the
            # limit falls is read again, up to it.
            report = read_split(replace(task, max_rows=limit - found.rows))
        found.add(task, report)
        if len(found.errors) >= MAX_ERRORS:
            break
        bytes_read += task.split.bytes
        if progress is not None:
            progress(found.rows, bytes_read, total_bytes)
        if limit is not None and found.rows >= limit:
            break
    if found.errors:
        raise DataError("\n".join(summarize(found.errors, MAX_ERRORS)))
    if not found.rows:
        raise DataError(f"{', '.join(s.path for s in sources[:3])}: no rows: check the data")
    write_sealed(rows_folder / "index.json", found.index(limit))
    store.forget()
    _remove_strays(rows_folder, {*found.files, "index.json"})


class _Found:
    """What the splits, taken in their order, add up to."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = sources
        self.rows = 0
        self.errors: list[str] = []
        self.unusable = ""
        self.files: dict[str, Any] = {}
        self._shards: list[dict[str, Any]] = []
        self._counts = {"formats": Counter[str](), "unused": Counter[str]()}
        self._first_lines = [0] * len(sources)

    def add(self, task: _Task, report: dict[str, Any]) -> None:
        """Add the report of the next split."""
        number = task.split.source_number
        source, first_line = self.sources[number], self._first_lines[number]
        where = f"{source.path} {source.unit}"
        self.errors += [f"{where} {first_line + line}: {text}" for line, text in report["problems"]]
        if report["unusable"] is not None and not self.unusable:
            line, text = report["unusable"]
            self.unusable = f"{where} {first_line + line}: {text}"
        for name, shard_rows in report["shards"]:
            shard = {"name": name, "first_row_id": self.rows, "rows": shard_rows}
            self._shards.append({**shard, "source": number, "first_line": first_line})
            self.rows += shard_rows
        self._first_lines[number] += report["lines"]
        beside = PurePosixPath(task.entry).parent
        self.files.update({str(beside / name): facts for name, facts in report["files"].items()})
        for name, count in self._counts.items():
            count.update(report[name])

    def index(self, limit: int | None) -> dict[str, Any]:
        """Return what ``rows/index.json`` says."""
        return {
            "rows": self.rows,
            "limit": limit,
            "sources": [asdict(source) for source in self.sources],
            "shards": self._shards,
            "files": self.files,
            "unusable": self.unusable,
            **{name: dict(count.most_common()) for name, count in self._counts.items()},
        }


def groups_per_shard(total_bytes: int) -> int:
    """How many row groups make a shard of so large an input."""
    groups = GROUPS_PER_SHARD
    while total_bytes > BYTES_BEFORE_DOUBLING:
        groups, total_bytes = 2 * groups, total_bytes // 2
    return groups


def _remove_strays(folder: Path, known: set[str]) -> None:
    """Remove shards that another limit or format left behind, and their ledger entries."""
    entries = {f"{name.partition('-')[0]}.json" for name in known if name.endswith(".parquet")}
    known |= entries
    for file in [*folder.rglob("*.parquet"), *folder.rglob("*.json")]:
        if file.relative_to(folder).as_posix() not in known:
            file.unlink()


def read_split(task: _Task) -> dict[str, Any]:
    """Read a split into its shards; idempotent.

    Returns
    -------
    dict
        ``rows``; ``lines`` passed; ``shards``: [name, rows]; ``files``; ``problems``: [line, text],
        and when there are any, nothing else counts.
    """
    split, source = task.split, task.split.source
    folder = Path(task.folder)
    entry = folder / task.entry
    if (done := read_entry(entry, task.inputs)) is not None:
        return {**done, "problems": []}
    begin(entry)
    reader = Reader(
        *(source.path, source.kind, source.compression, split.start, split.stop),
        drop=source.vectors,
        max_row_bytes=source.max_row_bytes,
    )
    writer = ShardWriter(folder, split_name(split.number), task.groups_per_shard, task.records)
    problems: list[tuple[int, str]] = []
    unusable: tuple[int, str] | None = None
    look = Look(source.format)
    with writer:
        for line, raw, record in reader:
            if isinstance(record, Problem):
                problems.append((record.line, record.text))
            else:
                key = problem = None
                try:
                    key = look.digest(record)
                except BadRow as error:
                    problems.append((line, str(error)))
                except UnusableRow as error:
                    problem = str(error)
                    unusable = unusable or (line, problem)
                    if task.strict:
                        problems.append((line, f"{problem} (an error because of --strict)"))
                writer.add(raw, line, key, problem)
            if len(problems) >= MAX_ERRORS or writer.rows == task.max_rows:
                break
    report = {
        "rows": writer.rows,
        "lines": reader.lines,
        "shards": [
            [path.relative_to(folder).with_suffix("").as_posix(), rows]
            for path, rows in writer.shards
        ],
        "formats": dict(look.formats),
        "unused": dict(look.unused),
        "unusable": unusable,
    }
    if problems:
        return {**report, "files": {}, "problems": problems}
    paths = [path for path, _ in writer.shards]
    return {**write_entry(entry, paths, task.inputs, **report), "problems": []}
