"""The scores that a trainer tells: read from its file, and checked before they count."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import orjson
from numpy.typing import NDArray

from pyids._typing import Float64, Int64
from pyids.errors import DamagedError, DataError

if TYPE_CHECKING:
    from pyids.store.rounds import Rounds

# Beyond these, squares of scores leave the range of float64.
_LARGEST, _SMALLEST = 1e100, 1e-100

# Bytes of a line, which may hold more of the row than its id and score.
_LONGEST_LINE = 64 << 20

_ENCODINGS = {
    b"\xef\xbb\xbf": "a byte order mark",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}


class ScoreFile(dict[int, float]):
    """Scores by row id, and the lines of a file that they stand on."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.lines: dict[int, int] = {}

    def where(self, row_id: int) -> str:
        """Say where the score of a row stands."""
        return f"{self.path} line {self.lines[row_id]}: "


def read_scores(path: Path) -> ScoreFile:
    """Read a trainer's scores: a JSON object ``{"_pyids_id": 7, "score": 0.5}`` a line, in UTF-8.

    Other columns are ignored; a score of null leaves its row out.

    Raises
    ------
    DataError
        The file cannot be read, a line is not such an object, a score is no finite number, or a row
        has two scores; names the line.
    """
    scores = ScoreFile(path)
    try:
        with path.open("rb") as file:
            _add_lines(scores, file)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}): check the path") from None
    if not scores:
        raise DataError(f"{path} holds no score: write one line a scored row")
    return scores


def _add_lines(scores: ScoreFile, file: BinaryIO) -> None:
    for number in itertools.count(1):
        if not (line := file.readline(_LONGEST_LINE)):
            return
        if len(line) == _LONGEST_LINE and not line.endswith(b"\n"):
            raise DataError(
                f"{scores.path} line {number}: longer than {_LONGEST_LINE >> 20} MB: write one "
                "object a line, of a scored row"
            )
        for mark, encoding in _ENCODINGS.items():
            if number == 1 and line.startswith(mark):
                raise DataError(
                    f"{scores.path} line 1: begins with {encoding}: write it as plain UTF-8"
                )
        if line.strip():
            _add(scores, line, number)


def _add(scores: ScoreFile, line: bytes, number: int) -> None:
    where = f"{scores.path} line {number}"
    try:
        row = orjson.loads(line)
        row_id, score = row["_pyids_id"], row["score"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        for word in (b"NaN", b"Infinity", b"nan", b"inf"):
            if word in line:
                raise DataError(
                    f"{where}: holds {word.decode()}, which is no JSON: write a finite number, or "
                    "null to leave the row out"
                ) from None
        raise DataError(
            f'{where}: not an object like {{"_pyids_id": 7, "score": 0.5}}: write one a scored row'
        ) from None
    if type(row_id) is not int or row_id >= 2**63:  # True is an int, too
        raise DataError(
            f"{where}: column '_pyids_id' is {_shown(row_id)}, not a row id: write it as it stands "
            "in the row that was scored"
        )
    if score is None:
        return
    if type(score) not in (int, float):
        raise DataError(
            f"{where}: column 'score' is {_shown(score)}: make it a number, or null to leave the "
            "row out"
        )
    if row_id in scores:
        raise DataError(
            f"{where}: column '_pyids_id': row {row_id} has a score on an earlier line: keep one "
            "of them"
        )
    scores[row_id] = float(score)
    scores.lines[row_id] = number


def _shown(value: object) -> str:
    return f"{orjson.dumps(value).decode():.40}"


def columns_of(scores: object, probes: Int64 | None) -> tuple[Int64, dict[str, Float64]]:
    """Return the ids of the scored rows, and what is known of each, ``score`` first.

    Parameters
    ----------
    scores
        What a scorer said of the probe rows, or a mapping from row id to score.
    probes
        int64 (B,), ids of the probe rows.

    Raises
    ------
    DataError
        No mapping, an empty one, an id that is no integer, or a score that is no finite number.
    """
    from pyids.scoring.probes import Scores

    if isinstance(scores, Scores):
        assert probes is not None, "a scorer scores the probe rows"
        usable = np.isfinite(scores.values)
        columns = {"score": scores.values, **scores.columns}
        return probes[usable], {name: x[usable] for name, x in columns.items()}
    row_ids, values = _numbers_of(scores)
    if not np.isfinite(values).all():
        first = np.flatnonzero(~np.isfinite(values))[0]
        raise DataError(
            f"the score of row {row_ids[first]} is {values[first]}: scores are finite numbers, "
            "so leave out rows that have none"
        )
    return row_ids, {"score": values}


def _numbers_of(scores: object) -> tuple[Int64, Float64]:
    """Return the ids and the scores of a mapping that anybody may have made."""
    if not isinstance(scores, Mapping):
        raise DataError(
            f"scores of type {type(scores).__name__}: give a mapping from row id to score, such as "
            "{7: 0.5}"
        )
    if not scores:
        raise DataError("no score was told: give that of at least one row")
    for row_id, score in scores.items():
        if isinstance(row_id, bool) or not isinstance(row_id, int | np.integer):
            raise DataError(f"the row id {row_id!r:.40} is no whole number: tell the ids asked for")
        if not -(2**63) <= row_id < 2**63:
            raise DataError(f"the row id {row_id!s:.40} is in no pool: tell the ids asked for")
        if isinstance(score, bool) or not isinstance(score, int | float | np.number):
            raise DataError(f"the score of row {row_id} is {score!r:.40}, no number: give a number")
    row_ids = np.fromiter(scores.keys(), dtype=np.int64, count=len(scores))
    return row_ids, np.fromiter(map(float, scores.values()), dtype=np.float64, count=len(scores))


def check_told(
    rounds: Rounds,
    n: int,
    scores: object,
    row_ids: Int64,
    columns: Mapping[str, Float64],
    clusters_of: Callable[[Int64], NDArray[np.int32]],
) -> tuple[Int64, dict[str, Float64], NDArray[np.int32]]:
    """Check what is told of round `n`, and put it in the order of the row ids.

    Parameters
    ----------
    rounds
        The rounds so far.
    n
        The present round, from 0.
    scores
        Where they come from: of a `ScoreFile`, messages name the line.
    row_ids, columns
        Ids of the scored rows, int64 (B,), and what is known of each, float64 (B,): ``score``.
    clusters_of
        Finds the clusters of rows of the pool.

    Returns
    -------
    tuple
        Row ids ascending, so that the order in which scores are told changes no bit; columns and
        clusters of these rows.

    Raises
    ------
    DataError
        A row is not in the pool, has been selected (its score says what was learnt by heart), or
        was to be scored in an earlier round and not in this one; a score is beyond 1e100.
    """
    where = scores.where if isinstance(scores, ScoreFile) else lambda row_id: ""
    order = np.argsort(row_ids, kind="stable")
    row_ids, columns = row_ids[order], {name: values[order] for name, values in columns.items()}
    _check_range(row_ids, columns["score"], where)
    try:
        clusters = clusters_of(row_ids)
    except DataError as error:
        if isinstance(scores, ScoreFile):
            for row_id in row_ids.tolist():
                try:
                    clusters_of(np.array([row_id]))
                except DamagedError:
                    raise  # of a file that is not the scores
                except DataError as first:
                    raise DataError(f"{where(row_id)}{first}") from None
        raise error
    if not isinstance(scores, Mapping):
        return row_ids, columns, clusters  # a scorer's own: of the probe rows
    drawn = row_ids[np.isin(row_ids, rounds.selected())].tolist()
    if drawn:
        raise DataError(
            f"{where(drawn[0])}row {drawn[0]} is one of those selected so far: score rows that no "
            "checkpoint was trained on (probes.jsonl holds them)"
        )
    if (probes := rounds.probes(n)) is not None:
        strange = row_ids[~np.isin(row_ids, probes)]
        for before in range(n):
            if (earlier := rounds.probes(before)) is None:
                continue
            of_then = strange[np.isin(strange, earlier)].tolist()
            if of_then:
                raise DataError(
                    f"{where(of_then[0])}row {of_then[0]} was to be scored in round {before + 1}, "
                    f"not in round {n + 1}: tell the scores of the rows in probes.jsonl"
                )
    return row_ids, columns, clusters


def _check_range(row_ids: Int64, values: Float64, where: Callable[[int], str]) -> None:
    large = np.flatnonzero(np.abs(values) > _LARGEST)
    if len(large):
        row_id = int(row_ids[large[0]])
        raise DataError(
            f"{where(row_id)}the score of row {row_id} is {values[large[0]]}: scores lie within "
            f"{_LARGEST:g} of 0: divide all by one number"
        )
    largest = float(np.abs(values).max(initial=0.0))
    if 0 < largest < _SMALLEST:
        row_id = int(row_ids[np.argmax(np.abs(values))])
        raise DataError(
            f"{where(row_id)}no score is further from 0 than {largest}: multiply all by one number"
        )
