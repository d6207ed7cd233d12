"""Arrays in files, mapped without keeping their files open.

`numpy.memmap` holds a descriptor for as long as an array lives, so that a pool of a thousand shards
meets the usual limit of 1,024. A mapping needs none: Arrow closes the file once it is mapped, and
unmaps it with the last array that looks into it.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, overload

import numpy as np
from numpy.typing import NDArray

# Shards that are mapped at a time while they are gone through one after the other.
MAPPED_SHARDS = 64
# Shards that may be mapped all at once: Linux maps some 65,000 files a process.
MOST_MAPPED = 20_000


def npy_header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read the header of a ``.npy`` file: shape, whether columns lie together, dtype.

    The file is left where its numbers begin.

    Raises
    ------
    ValueError
        It is no such file, of an unknown version, or holds pickled objects, which are not loaded.
    """
    version = np.lib.format.read_magic(file)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
        raise ValueError(f"version {version} of the format")
    shape, by_columns, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("it holds objects")
    return shape, by_columns, dtype


def map_npy(path: Path) -> NDArray[Any]:
    """Map an array from ``.npy``, read-only, never a pickled one; no descriptor stays open.

    Raises
    ------
    ValueError
        It is no ``.npy`` file of numbers, or shorter than it says.
    """
    import pyarrow as pa

    with path.open("rb") as file:
        shape, fortran, dtype = npy_header(file)
        offset = file.tell()
    count = int(np.prod(shape))
    if not count:  # what is empty cannot be mapped
        return np.empty(shape, dtype)
    with pa.memory_map(str(path)) as file:
        buffer = file.read_buffer()
    array = np.frombuffer(buffer, dtype, count, offset)
    return array.reshape(shape, order="F" if fortran else "C")


class ShardArrays(Sequence[NDArray[Any]]):
    """One array a shard, in order, each mapped when it is asked for.

    Parameters
    ----------
    open_shard : callable
        Gives the array of shard i.
    n_shards : int
        How many there are.
    """

    def __init__(self, open_shard: Callable[[int], NDArray[Any]], n_shards: int) -> None:
        self._open = open_shard
        self._n_shards = n_shards
        self._mapped: OrderedDict[int, NDArray[Any]] = OrderedDict()

    def __len__(self) -> int:
        return self._n_shards

    @overload
    def __getitem__(self, i: int) -> NDArray[Any]: ...

    @overload
    def __getitem__(self, i: slice) -> list[NDArray[Any]]: ...

    def __getitem__(self, i: int | slice) -> NDArray[Any] | list[NDArray[Any]]:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(self._n_shards))]
        if i < 0:
            i += self._n_shards
        if not 0 <= i < self._n_shards:
            raise IndexError(i)
        if i not in self._mapped:
            self._mapped[i] = self._open(i)
            if len(self._mapped) > MAPPED_SHARDS:
                self._mapped.popitem(last=False)
        self._mapped.move_to_end(i)
        return self._mapped[i]

    def all(self, scratch: Path) -> list[NDArray[Any]]:
        """Map all of them at once; of very many, those of one shape are copied to a file first.

        Parameters
        ----------
        scratch : Path
            The folder of that file.
        """
        if self._n_shards <= MOST_MAPPED:
            return list(self)
        n_rows = sum(len(array) for array in self)
        return [join(self, scratch, n_rows, self[0].dtype)]

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return (self[i] for i in range(self._n_shards))


def join(arrays: Iterable[NDArray[Any]], folder: Path, n_rows: int, dtype: Any) -> NDArray[Any]:
    """Lay arrays of `n_rows` in all end to end in a file of `folder`, and map it.

    The file has no name any more: it goes with the array.
    """
    from pyids.store.files import create_npy

    folder.mkdir(exist_ok=True)
    path = folder / f"joined-{secrets.token_hex(4)}.npy"
    whole: NDArray[Any] | None = None
    start = 0
    try:
        for array in arrays:
            if whole is None:
                whole = create_npy(path, (n_rows, *array.shape[1:]), dtype)
            whole[start : start + len(array)] = array
            start += len(array)
        if whole is None:
            return np.empty(n_rows, dtype)
        del whole
        return map_npy(path)
    finally:
        path.unlink(missing_ok=True)
