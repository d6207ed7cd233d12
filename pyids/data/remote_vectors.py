"""A ``.npy`` file in a bucket, read by ranges."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyids.data.remote import open_remote
from pyids.errors import DataError
from pyids.store.arrays import npy_header

# Rows that lie this near are read in one go, with what lies between.
_GAP_ROWS = 64


@dataclass
class RemoteArray:
    """A matrix in a file of a bucket.

    Attributes
    ----------
    path
        The file's address.
    shape, dtype
        Of the matrix.
    start
        Bytes before its first row.
    """

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    start: int
    _file: Any = field(default=None, repr=False)

    @classmethod
    def open(cls, path: str) -> RemoteArray:
        """Read the header.

        Raises
        ------
        ValueError, EOFError
            It is no ``.npy`` file of numbers whose rows lie one behind the other, or is cut off.
        """
        with open_remote(path) as file:
            shape, by_columns, dtype = npy_header(file)
            start, end = file.tell(), file.seek(0, 2)
        if by_columns and len(shape) > 1:
            raise ValueError("its columns lie one behind the other: save it in C order")
        if end - start < int(np.prod(shape)) * dtype.itemsize:
            raise EOFError("it ends too early")
        return cls(path, shape, dtype, start)

    @property
    def ndim(self) -> int:
        """Dimensions."""
        return len(self.shape)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}

    def __getitem__(self, positions: NDArray[np.int64]) -> NDArray[Any]:
        """Return rows by their ascending positions, (len(positions), D)."""
        width = self.shape[1] * self.dtype.itemsize
        if self._file is None:
            self._file = open_remote(self.path)
        taken = [np.empty((0, self.shape[1]), self.dtype)]
        try:
            for part in _near(positions):
                first, last = int(part[0]), int(part[-1])
                self._file.seek(self.start + first * width)
                content = self._file.read((last + 1 - first) * width)
                rows = np.frombuffer(content, self.dtype).reshape(-1, self.shape[1])
                taken.append(rows[part - first])
        except (OSError, ValueError) as error:
            raise DataError(f"{self.path}: cannot be read ({error}): check the address") from None
        return np.concatenate(taken)


def _near(positions: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Cut ascending positions where many rows lie between two."""
    if len(positions):
        yield from np.split(positions, np.flatnonzero(np.diff(positions) > _GAP_ROWS) + 1)
