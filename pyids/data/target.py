"""The target: some tens or hundreds of rows that show what the model is to become good at."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pyids.chat.formats import Message
from pyids.config import RunConfig
from pyids.data.ingest import ingest
from pyids.data.sources import open_sources
from pyids.data.vector_files import open_vectors, vector_paths
from pyids.errors import DataError
from pyids.store.folder import Row, Store


@dataclass(frozen=True)
class TargetRows:
    """The rows of the target, in the order of their files.

    Attributes
    ----------
    conversations : list of conversations
        Q of them.
    tasks : tuple of str
        The task of each: the file that it stands in, or its value in the column ``target_by``.
    places : tuple of str
        File and line of each, for messages.
    vectors : float64 (Q, D) or None
        Those of the column that holds the pool's vectors, or of ``target_embeddings_file``; None
        where an encoder makes them.
    """

    conversations: list[list[Message]]
    tasks: tuple[str, ...]
    places: tuple[str, ...]
    vectors: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.conversations)


def read_target(config: RunConfig) -> TargetRows:
    """Read the rows that ``target`` names: any format, several files, each a task.

    Raises
    ------
    DataError
        A file is not there or a row is unusable; a row has no column ``target_by``; vectors are
        missing or do not fit. Names file, line and remedy.
    """
    assert config.target is not None
    sources = open_sources(config.target, format=config.format)
    with tempfile.TemporaryDirectory(prefix="pyids-target-") as folder, Store.open(folder) as store:
        ingest(store, sources, strict=True, keep_duplicates=True)
        rows = [row for shard in store.shards for row in store.iter_rows(shard)]
    return TargetRows(
        [row.messages for row in rows],
        tuple(_task_of(row, config.target_by) for row in rows),
        tuple(f"{row.path} line {row.line}" for row in rows),
        _vectors(config, rows),
    )


def _task_of(row: Row, column: str | None) -> str:
    if column is None:
        return row.path
    value = row.record.get(column)
    if value is None:
        raise DataError(
            f"{row.path} line {row.line}: there is no task in column {column!r}: name another with "
            "--target-by, or write one in every row"
        )
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _vectors(config: RunConfig, rows: Sequence[Row]) -> NDArray[np.float64] | None:
    if (path := config.target_embeddings_file) is not None:
        vectors = open_vectors(path)
        if len(vectors) != len(rows):
            raise DataError(
                f"{path}: {len(vectors)} vectors for {len(rows)} target rows: give one a row, in "
                "their order (--target-embeddings-file)"
            )
        found = np.asarray(vectors.take(np.arange(len(vectors))), np.float64)
    elif (column := config.embeddings_column) is not None:
        found = np.array([_vector_of(row, column) for row in rows])
    elif config.embeddings_file is not None:
        raise DataError(
            "the vectors of the pool come from --embeddings-file, so those of the target must too: "
            "name them with --target-embeddings-file"
        )
    else:
        return None
    for row, vector in zip(rows, found, strict=True):
        if not np.isfinite(vector).all() or not vector.any():
            raise DataError(
                f"{row.path} line {row.line}: its vector is zero or not finite: embed it again"
            )
    return found


def _vector_of(row: Row, column: str) -> list[float]:
    value = row.record.get(column)
    if not isinstance(value, list) or not all(type(x) in (int, float) for x in value) or not value:
        raise DataError(
            f"{row.path} line {row.line}: column {column!r} holds no vector: give one to "
            "every row, or name a --target-embeddings-file"
        )
    return [float(x) for x in value]


def check_width(vectors: NDArray[np.float64], dim: int, where: str) -> None:
    """Refuse target vectors that are not as long as the pool's.

    Raises
    ------
    DataError
        With both lengths.
    """
    if vectors.shape[1] != dim:
        raise DataError(
            f"{where}: target vectors of {vectors.shape[1]} dimensions, those of the pool have "
            f"{dim}: embed both with the same encoder"
        )


def target_files(config: RunConfig) -> list[str]:
    """Return the files of the target: what its identity is taken from."""
    if config.target is None:
        return []
    files = [source.path for source in open_sources(config.target, format=config.format)]
    if config.target_embeddings_file is not None:
        files += vector_paths(config.target_embeddings_file)[0]
    return files
