"""What rounds have lost, put back where it was: nothing but what it was before.

Scores, checkpoints and screened candidates need a model to be made again. Here stands what is known
of them beside themselves: their ledger entries, and what the weights say that they were made from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyids._typing import Int64
from pyids.errors import ConfigError, DamagedError
from pyids.store.files import atomic_write, hash_file, read_sealed
from pyids.store.ledger import damaged_files, difference
from pyids.store.remedies import remedy
from pyids.store.rounds import RECORD, Rounds, write_table


def check_scores(rounds: Rounds) -> None:
    """Check that the scores of all told rounds stand, before more work follows from them.

    Raises
    ------
    DamagedError
        They do not; names the first file.
    """
    for n in range(rounds.told):
        if not rounds.holds_scores(n):
            path = _damaged(rounds.path(n, "scores.json"))
            raise DamagedError(f"{path}: missing or damaged: {remedy(path)}")


def _damaged(entry: Path) -> Path:
    """Name the file of an entry that is damaged, or the entry itself."""
    try:
        return next(damaged_files(entry, read_sealed(entry)))[0]
    except (FileNotFoundError, DamagedError, StopIteration):
        return entry


def check_model(rounds: Rounds, name: str) -> None:
    """Check that what rounds have trained and screened was made with the model of now.

    Raises
    ------
    ConfigError
        It was not; names a file of the model that differs.
    """
    for n in range(rounds.drawn + 1):
        for entry in ("candidates.json", "checkpoint.json"):
            try:
                had = read_sealed(rounds.path(n, entry)).get("model") or rounds.model
            except (FileNotFoundError, DamagedError):
                continue
            keys = sorted({*had, *rounds.model})
            other = next((key for key in keys if had.get(key) != rounds.model.get(key)), None)
            if other is not None:
                folder = rounds.path(n, "").parents[1]
                raise ConfigError(
                    f"{folder}: round {n + 1} used another model than {name} is now ({other} "
                    "differs): put it back, choose another --output-dir, or start over with "
                    f"`pyids clean {folder} --stage rounds`"
                )


def weights_made_from(rounds: Rounds, n: int) -> dict[str, Any] | None:
    """Say what the weights of round `n` were made from, if its scores are still that."""
    try:
        inputs = read_sealed(rounds.path(n, "weights.json"))["inputs"]
    except (FileNotFoundError, DamagedError):
        return None
    path = rounds.path(n, "scores.parquet")
    if "scores" not in inputs or difference(path, inputs["scores"]) is not None:
        return None
    return dict(inputs)


def restore_scores(
    rounds: Rounds, n: int, table: Mapping[str, NDArray[Any]], summary: Mapping[str, Any]
) -> None:
    """Write the scores of round `n` again, which must be those that it was told.

    Raises
    ------
    DamagedError
        They are others, or nothing says what they were.
    """
    path, known = rounds.path(n, "scores.parquet"), set(_hashes_of_scores(rounds, n))
    with atomic_write(path) as temporary:
        write_table(temporary, table)
        if hash_file(temporary) not in known:
            raise _other(path, "scored")
    rounds.save_summary(n, summary)


def _hashes_of_scores(rounds: Rounds, n: int) -> Iterator[str]:
    for name in ("scores.json", "weights.json"):
        try:
            entry = read_sealed(rounds.path(n, name))
        except (FileNotFoundError, DamagedError):
            continue
        facts = entry["files"].get("scores.parquet") or entry["inputs"].get("scores")
        if facts:
            yield facts["xxh3"]


def lost_checkpoint(rounds: Rounds, n: int) -> Path | None:
    """Name a file of the checkpoint that round `n` has trained which is no longer what it was."""
    if not rounds.stands(n, "checkpoint") or rounds.has_checkpoint(n):
        return None
    return _damaged(rounds.path(n, "checkpoint.json"))


def known_checkpoint(rounds: Rounds, n: int) -> dict[str, Any]:
    """Give size and hash of the files that the checkpoint of round `n` had, if they are known.

    Not of its record, which says how long the training took.
    """
    try:
        files = read_sealed(rounds.path(n, "checkpoint.json"))["files"]
    except (FileNotFoundError, DamagedError):
        return {}
    return {name: facts for name, facts in files.items() if name != f"checkpoint/{RECORD}"}


def restore_checkpoint(rounds: Rounds, n: int, known: Mapping[str, Any]) -> None:
    """Keep the hashes of a checkpoint that was trained again, which must be what it was.

    Raises
    ------
    DamagedError
        It is another one.
    """
    for name, facts in known.items():
        if difference(rounds.path(n, name), facts) is not None:
            raise _other(rounds.path(n, name), "trained")
    rounds.save_checkpoint(n)


def check_drawn(rounds: Rounds, n: int, selected: Int64) -> None:
    """Check that round `n` drew `selected`, from the candidates that were screened again.

    Raises
    ------
    DamagedError
        It drew others.
    """
    if not np.array_equal(selected, rounds.selected(n)):
        raise _other(rounds.path(n, "candidates.parquet"), "screened")


def _other(path: Path, how: str) -> DamagedError:
    return DamagedError(
        f"{path}: was missing or damaged, and what is {how} again is something else: {remedy(path)}"
    )
