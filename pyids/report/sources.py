"""Where rows come from: their column ``source``, or the file that they were read from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from pyids._typing import Float64
from pyids.report.text import cut
from pyids.store.folder import Row

# Sources that are told apart while reading, and afterwards.
_MOST = 5000
_SHOWN = 40
_NAME_BYTES = 96
_OTHER = "other sources"


class SourceNames:
    """Numbers the sources as they come; the small ones are one in the end.

    Attributes
    ----------
    names
        Of each number.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self._number: dict[str, int] = {}

    def number(self, row: Row) -> int:
        """Return the number of a row's source."""
        value = row.record.get("source")
        if value is None:
            name = Path(row.path).name
        else:
            name = value if isinstance(value, str) else json.dumps(value)
        name = cut(name, _NAME_BYTES) or "(empty)"
        if name not in self._number and len(self.names) >= _MOST:
            name = _OTHER
        if name not in self._number:
            self._number[name] = len(self.names)
            self.names.append(name)
        return self._number[name]

    def merge_small(self, numbers: list[int], weights: Float64) -> list[int]:
        """Make one of all but the largest sources, numbered anew by size, and return new numbers.

        Parameters
        ----------
        numbers
            What `number` gave for each row.
        weights
            float64 (n,): how many rows of the pool each stands for.
        """
        sizes = np.bincount(numbers, weights=weights, minlength=len(self.names))
        order = sorted(range(len(self.names)), key=lambda k: (-sizes[k], self.names[k]))
        if len(order) > _SHOWN:
            kept = [k for k in order if self.names[k] != _OTHER][: _SHOWN - 1]
            names = [*(self.names[k] for k in kept), _OTHER]
        else:
            kept, names = order, [self.names[k] for k in order]
        new = {k: n for n, k in enumerate(kept)}
        self.names = names
        return [new.get(k, len(names) - 1) for k in numbers]
