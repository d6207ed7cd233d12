"""Checks of arguments: errors that name the argument, the position and what it must be."""

from __future__ import annotations

import operator
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Int64: TypeAlias = NDArray[np.int64]


def describe(array: NDArray[Any]) -> str:
    """Say of an array what a message needs."""
    return f"{array.dtype} of shape {array.shape}"


def check(name: str, values: NDArray[Any], good: NDArray[np.bool_], must: str) -> None:
    """Raise for the first value that is not good: what it `must` be."""
    if not good.all():
        i = int(np.argmin(good))
        raise ValueError(f"{name}[{i}] is {values[i]}: {must}")


def integers(name: str, values: ArrayLike, length: int | None = None) -> Int64:
    """Return values as int64 (N,); no float, and nothing that would wrap, is cast."""
    array = np.asarray(values)
    if array.size == 0:
        array = array.astype(np.int64)  # np.asarray([]) is float64
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError(f"{name} must be 1-D integers, not {describe(array)}")
    if length is not None and len(array) != length:
        raise ValueError(f"{name} has {len(array)} values for {length} rows")
    if array.dtype == np.uint64:
        check(name, array, array < 2**63, "must be less than 2**63")
    return np.ascontiguousarray(array, np.int64)


def unsigned_seed(seed: int) -> int:
    """Return a seed that fits the core's 64 bits."""
    seed = operator.index(seed)
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed is {seed}: must lie in [0, 2**64)")
    return seed


def threads(n_threads: int | None, name: str = "n_threads") -> int:
    """Return what the core takes: 0 stands for one per core."""
    if n_threads is None:
        return 0
    n_threads = operator.index(n_threads)
    if n_threads < 1:
        raise ValueError(f"{name} is {n_threads}: must be at least 1")
    return n_threads


def floats(name: str, values: ArrayLike, length: int) -> NDArray[np.float32 | np.float64]:
    """Return values as float32 or float64 (N,)."""
    array = np.asarray(values)
    if array.ndim != 1 or array.dtype.kind not in "iuf":
        raise ValueError(f"{name} must be 1-D numbers, not {describe(array)}")
    if len(array) != length:
        raise ValueError(f"{name} has {len(array)} values for {length} rows")
    dtype = np.float32 if array.dtype in (np.float16, np.float32) else np.float64
    return np.ascontiguousarray(array, dtype)


def excluded_rows(exclude: ArrayLike, n_rows: int) -> NDArray[np.bool_] | Int64:
    """Return what says which rows are excluded: a mask (N,), or ascending row ids."""
    array = np.asarray(exclude)
    if array.dtype == np.bool_:
        if array.shape != (n_rows,):
            raise ValueError(f"exclude is a mask of shape {array.shape} for {n_rows} rows")
        return np.ascontiguousarray(array)
    ids = integers("exclude", array)
    descents = np.flatnonzero(ids[1:] < ids[:-1])
    if len(descents):
        i = int(descents[0]) + 1
        raise ValueError(f"exclude[{i}] is {ids[i]}, less than the row id before: must ascend")
    return ids
