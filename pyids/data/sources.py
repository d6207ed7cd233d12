"""What the user names as data: which files, and what each holds."""

from __future__ import annotations

import glob
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, cast

from pyids.chat.formats import (
    BadRow,
    UnusableRow,
    check_format,
    detect_format,
    list_columns,
    no_format,
    to_messages,
)
from pyids.data.columnar import open_arrow, open_parquet
from pyids.data.containers import HEAD_BYTES, check_head, head_of, open_bytes, size_of, sniff
from pyids.data.diagnose import what_lines, what_object, what_table
from pyids.data.folders import HELD_OUT, TRAIN, choose_split, files_of_folder, parse_name
from pyids.data.readers import (
    MAX_ROW_BYTES,
    UNREADABLE,
    Problem,
    Reader,
    is_lines,
)
from pyids.data.remote import is_remote, remote_files
from pyids.errors import ConfigError, DataError
from pyids.store.files import read_json

logger = logging.getLogger("pyids")


Kind = Literal["jsonl", "json", "csv", "tsv", "parquet", "arrow"]

_KINDS: dict[str, Kind] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".jsonlines": "jsonl",
    ".jl": "jsonl",
    ".json": "jsonl",  # or an array: its first byte tells
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
}
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd", ".bz2": "bz2", ".xz": "xz"}
_HUB_NAME = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(@(?P<config>[\w.-]+))?(:(?P<split>[\w.-]+))?")


# What benchmarks are called, and where the rows stand that are reported.
BENCHMARKS = {
    "arc-challenge": "allenai/ai2_arc@ARC-Challenge:test",
    "arc-easy": "allenai/ai2_arc@ARC-Easy:test",
    "gsm8k": "openai/gsm8k@main:test",
    "hellaswag": "Rowan/hellaswag:validation",
    "humaneval": "openai/openai_humaneval:test",
    "ifeval": "google/IFEval:train",
    "math-500": "HuggingFaceH4/MATH-500:test",
    "mbpp": "google-research-datasets/mbpp@full:test",
    "mmlu": "cais/mmlu@all:test",
    "mmlu-pro": "TIGER-Lab/MMLU-Pro:test",
    "truthfulqa": "truthfulqa/truthful_qa@generation:validation",
    "winogrande": "allenai/winogrande@winogrande_xl:validation",
}


@dataclass(frozen=True)
class Source:
    """One input file.

    Attributes
    ----------
    path : str
        The file.
    kind : str
        ``jsonl``, ``json`` (one array, or objects over several lines), ``csv``, ``tsv``,
        ``parquet`` or ``arrow``.
    compression : str or None
        ``gzip``, ``zstd``, ``bz2`` or ``xz``; or ``utf-16``, which is read like them.
    format : str
        Its chat format (`pyids.chat.formats`), or ``auto``: that of each row.
    columns : tuple of str
        Columns of its first row.
    vectors : str or None
        Column of precomputed vectors, which rows do not carry along.
    max_row_bytes : int
        The longest row.
    """

    path: str
    kind: Kind
    compression: str | None
    format: str = ""
    columns: tuple[str, ...] = ()
    vectors: str | None = None
    max_row_bytes: int = MAX_ROW_BYTES

    @property
    def unit(self) -> str:
        """What a position in the file counts: ``line`` or ``row``."""
        return "line" if self.kind in ("jsonl", "csv", "tsv") else "row"


def open_sources(
    data: Sequence[str | Path],
    *,
    format: str = "auto",
    vectors: str | None = None,
    max_row_bytes: int = MAX_ROW_BYTES,
    held_out: bool = False,
) -> list[Source]:
    """Find the files that `data` names and what each holds.

    Parameters
    ----------
    data : sequence of str
        Files (``.jsonl``, ``.json``, ``.csv``, ``.tsv``, each also ``.gz``, ``.zst``, ``.bz2`` or
        ``.xz``; ``.parquet``; ``.arrow``), folders (``FOLDER[@config][:split]``,
        `pyids.data.folders`) and globs of them (sorted by path), folders that
        ``datasets.save_to_disk`` wrote, and names on the hub (``owner/name[@config][:split]``;
        the split is ``train`` unless named).
    format : str, default "auto"
        Chat format of all of them (`pyids.chat.formats`); ``auto`` tells it of each row.
    vectors : str, optional
        Column of precomputed vectors.
    max_row_bytes : int
        The longest row: a small compressed file may hold one that no memory takes.
    held_out : bool
        Whether it is a benchmark: then of several splits ``test`` is meant, or ``validation``,
        unless one is named, and `BENCHMARKS` have short names.

    Returns
    -------
    list of Source
        In the order in which they are read, which is the order of the row ids.

    Raises
    ------
    DataError
        Nothing there, not a file, an unknown kind or format, an empty file, a missing column.
    ConfigError
        There is no such chat format.
    """
    try:
        check_format(format)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    try:
        prefer = HELD_OUT if held_out else TRAIN
        sources = [source for name in data for source in _find(str(name), prefer)]
    except PermissionError as error:
        raise DataError(f"{error.filename}: no permission to look there: ask its owner") from None
    if not sources:
        raise DataError("no data: name at least one file, folder or data set")
    return [
        _look_into(replace(source, vectors=vectors, max_row_bytes=max_row_bytes), format)
        for source in sources
    ]


def named_files(names: Sequence[str], *, held_out: bool = False) -> list[str]:
    """Return the files that `names` stand for, whatever their rows hold; see `open_sources`."""
    found = open_sources(names, format="text", held_out=held_out) if names else []
    return [source.path for source in found]


def _find(name: str, prefer: Sequence[str]) -> Iterator[Source]:
    path = Path(name)
    if is_remote(name):
        yield from _remote(name)
    elif (folder := parse_name(name)) is not None:
        yield from _in_folder(*folder, prefer)
    elif path.is_file():
        yield _source(path)
    elif path.exists():
        raise DataError(f"{name}: neither a file nor a folder: give a file that can be read again")
    elif glob.has_magic(name):
        files = [Path(file) for file in sorted(glob.glob(name, recursive=True))]
        known = [file for file in files if file.is_file() and _kind(file)]
        if not known:
            raise DataError(f"{name}: no data file matches: name files of {_endings()}")
        yield from map(_source, known)
    elif (hub := _HUB_NAME.fullmatch(name)) and not _kind(path):
        yield from _on_hub(hub["name"], hub["config"], hub["split"], prefer)
    elif prefer == HELD_OUT and name.lower() in BENCHMARKS:
        yield from _find(BENCHMARKS[name.lower()], prefer)
    else:
        raise DataError(f"{name}: no such file or folder: check the path")


def _in_folder(
    folder: Path, config: str | None, split: str | None, prefer: Sequence[str]
) -> Iterator[Source]:
    if (folder / "dataset_dict.json").is_file():
        splits = _of_dataset(folder / "dataset_dict.json", "splits")
        if not splits or not all(isinstance(name, str) and _is_plain(name) for name in splits):
            raise DataError(f"{folder}/dataset_dict.json: names no splits: save the data set again")
        chosen = choose_split(folder, splits, split, prefer)
        if left := [name for name in splits if name != chosen]:
            logger.info("%s: read the split %s; left out %s", folder, chosen, ", ".join(left))
        yield from _in_folder(folder / chosen, None, None, prefer)
        return
    if (folder / "state.json").is_file():
        for file in _of_dataset(folder / "state.json", "_data_files"):
            name = file.get("filename") if isinstance(file, dict) else None
            if not isinstance(name, str) or not _is_plain(name):
                raise DataError(
                    f"{folder}/state.json: names a file that is none of its folder: save the data "
                    "set again"
                )
            yield Source(str(folder / name), "arrow", None)
        return
    files = files_of_folder(folder, config, split, _kind, prefer)
    if not files:
        raise DataError(f"{folder}: a folder without data: name one with files of {_endings()}")
    yield from map(_source, files)


def _remote(name: str) -> Iterator[Source]:
    files = remote_files(name)
    # An address may end with a query; a folder holds more than data.
    known = [file for file in files if len(files) == 1 or _kind(Path(file))]
    if not known:
        raise DataError(f"{name}: no data file there: name one of {_endings()}")
    for file in known:
        yield _source_of(file, Path(file.partition("?")[0]))


def _of_dataset(file: Path, key: str) -> list[Any]:
    """Read a list out of what ``datasets.save_to_disk`` wrote."""
    try:
        content = read_json(file)
    except (OSError, ValueError):
        content = None
    values = content.get(key) if isinstance(content, dict) else None
    if not isinstance(values, list):
        raise DataError(f"{file}: holds no list {key!r}: save the data set again")
    return values


def _is_plain(name: str) -> bool:
    """Whether a name stays in its folder."""
    return name not in ("", ".", "..") and Path(name).name == name


def _on_hub(
    name: str, config: str | None, split: str | None, prefer: Sequence[str]
) -> Iterator[Source]:
    try:
        import datasets
    except ImportError:
        raise DataError(
            f"{name}: no such file; as a name on the hub it needs the package datasets: "
            "pip install 'pyids-select[train]'"
        ) from None
    try:
        if split is None and prefer == HELD_OUT:
            splits = datasets.get_dataset_split_names(name, config)
            split = choose_split(name, splits, None, prefer)
            logger.info("%s: read the split %s of %s", name, split, ", ".join(splits))
        dataset = datasets.load_dataset(name, config, split=split or "train")
    except DataError:
        raise
    except (OSError, ValueError) as error:
        # The second line of some names the configurations that there are.
        said = str(error).strip().splitlines()[:2] or [type(error).__name__]
        form = "" if config else f" (a configuration as {name}@CONFIG)"
        raise DataError(
            f"{name}: no such file, and the hub does not give it ({' '.join(said)}): check the "
            f"name{form} and the network, or give a local file"
        ) from None
    for file in dataset.cache_files:
        yield Source(file["filename"], "arrow", None)


def _kind(path: Path) -> Kind | None:
    suffix = path.suffix.lower()
    if suffix in _COMPRESSIONS:
        inner = _KINDS.get(Path(path.stem).suffix.lower())
        return inner if inner in ("jsonl", "csv", "tsv") else None
    return _KINDS.get(suffix)


def _endings() -> str:
    return ".jsonl .json .csv .tsv (also .gz, .zst, .bz2, .xz) .parquet .arrow"


def _source(path: Path) -> Source:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        shown = str(path).encode("utf-8", "backslashreplace").decode()
        raise DataError(f"{shown}: a file name that is no UTF-8: rename the file") from None
    return _source_of(str(path), path)


def _source_of(path: str, name: Path) -> Source:
    """Tell what a file is by its bytes, and by the ending of its name."""
    kind = _kind(name)
    if kind is None:
        raise DataError(f"{path}: the ending says nothing about what it holds: use {_endings()}")
    if size_of(path) == 0:
        raise DataError(f"{path}: the file is empty: leave it out, or get it again")
    try:
        is_kind, compression = sniff(path, head_of(path))
    except OSError:  # what cannot be read the reader says below
        return Source(path, kind, _COMPRESSIONS.get(name.suffix.lower()))
    if compression is not None and kind in ("parquet", "arrow"):
        raise DataError(f"{path}: it is {compression}, not {kind}: unpack it, or get it again")
    if compression is not None:
        with suppress(*UNREADABLE), open_bytes(path, compression) as file:
            check_head(path, file.read(HEAD_BYTES), unpacked=True)
    return Source(path, cast(Kind, is_kind or kind), compression)


def _look_into(source: Source, format: str) -> Source:
    """Fill in what only the content tells: array or lines, chat format, columns."""
    path = source.path
    if source.kind == "jsonl":
        with suppress(*UNREADABLE):  # what cannot be read the reader says below
            if not is_lines(path, source.compression):
                source = replace(source, kind="json")
    reader = Reader(
        *(source.path, source.kind, source.compression),
        drop=source.vectors,
        max_row_bytes=source.max_row_bytes,
    )
    empty = True
    first: dict[str, Any] | None = None
    line, alone = 1, True
    for number, raw, record in islice(reader, 100):
        if first is not None:
            alone = False
            break
        if isinstance(record, Problem):
            if empty and source.kind == "jsonl":
                _check_lines(path, raw)
            if record.ends_file:
                raise DataError(f"{path} {source.unit} {record.line}: {record.text}")
        else:
            line, first = number, record
        empty = False
    if empty:
        raise DataError(f"{path}: the file holds no rows: leave it out, or get it again")
    # Without one row that can be read, the reading itself reports the first errors.
    columns = tuple(first or ())
    if source.vectors and first is not None:
        _check_vectors(source, columns)
    if format == "auto" and first is not None:
        _check_form(source, line, first, alone=alone)
    return replace(source, format=format, columns=columns)


def _check_lines(path: str, raw: bytes) -> None:
    """Refuse a table that is named as JSON lines, by its first line."""
    if text := what_lines(path, raw[:HEAD_BYTES].decode(errors="replace")):
        raise DataError(f"{path}: {text}")


def _check_form(source: Source, line: int, first: dict[str, Any], *, alone: bool) -> None:
    """Refuse a file by its first row, where nothing tells how it holds a conversation."""
    path, found = source.path, detect_format(first)
    if (
        alone
        and source.kind in ("jsonl", "json")
        and not _is_read(first, found)
        and (text := what_object(path, first, known=found is not None))
    ):
        raise DataError(f"{path}: {text}")
    if found is None:
        if source.kind in ("csv", "tsv") and (text := what_table(path, list(first))):
            raise DataError(f"{path}: {text}")
        raise DataError(f"{path} {source.unit} {line}: {no_format(first)}")


def _is_read(record: dict[str, Any], format: str | None) -> bool:
    """Whether a row gives a conversation, or an empty one."""
    if format is None:
        return False
    try:
        to_messages(record, format)
    except BadRow:
        return False
    except UnusableRow:
        pass
    return True


def _check_vectors(source: Source, columns: tuple[str, ...]) -> None:
    if source.kind == "parquet":
        columns = tuple(open_parquet(source.path).schema_arrow.names)
    elif source.kind == "arrow":
        columns = tuple(open_arrow(source.path).schema.names)
    if source.vectors not in columns:
        raise DataError(
            f"{source.path}: there is no column {source.vectors!r} of vectors: name one of "
            f"{list_columns(columns)}"
        )
