"""The errors and warnings that a user can meet."""

from __future__ import annotations

# Folders that are worked in here, and the places elsewhere that messages name instead of them: a
# command that a message advises is to be given for that place.
STAND_FOR: dict[str, str] = {}


def as_named(text: str) -> str:
    """Name in a text the places that folders here stand for."""
    for folder, place in STAND_FOR.items():
        text = text.replace(folder, place)
    return text


class PyidsError(Exception):
    """Something the user can mend; the message is one line that names the place and the remedy.

    The command line prints the message alone and exits with code 2.
    """

    def __init__(self, message: str = "", *more: object) -> None:
        super().__init__(as_named(message), *more)


class DataError(PyidsError):
    """The input data cannot be used as given: names the file, row, column and remedy."""


class DamagedError(DataError):
    """A file of a run folder is missing, or not what its ledger entry says; names it."""


class ConfigError(PyidsError):
    """An option, a combination of options or a run folder does not fit."""


class ModelError(PyidsError):
    """An encoder or language model cannot be found, loaded or used."""


class PyidsWarning(UserWarning):
    """A run goes on, but its user should know."""
