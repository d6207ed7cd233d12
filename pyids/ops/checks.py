"""What every op checks of its arguments."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np

from pyids.ops.dispatch import ANY_DTYPE, PoolMode, is_tensor


def as_float32(value: Any) -> Any:
    """Convert to float32, array or tensor."""
    return value.float() if is_tensor(value) else value.astype(np.float32)


# ---- validation ----------------------------------------------------------------------------------


def check_shape(name: str, value: Any, *sizes: int | None) -> None:
    """Raise unless `value` has these sizes; None stands for any."""
    if not isinstance(value, np.ndarray) and not is_tensor(value):
        raise TypeError(f"{name} must be an array or a tensor, not {type(value).__name__}")
    found = tuple(value.shape)
    if len(found) != len(sizes) or any(
        w not in (None, f) for w, f in zip(sizes, found, strict=True)
    ):
        wanted = ", ".join("any" if size is None else str(size) for size in sizes)
        raise ValueError(f"{name} has shape {found}, but ({wanted}) is needed")


def check_floats(name: str, value: Any) -> None:
    """Refuse a dtype that no op takes."""
    dtype = str(value.dtype).removeprefix("torch.")
    if dtype not in ANY_DTYPE:
        raise TypeError(f"{name} has dtype {dtype}, but one of {', '.join(ANY_DTYPE)} is needed")


def as_integers(name: str, value: Any) -> Any:
    """Return integers of 32 or 64 bits: torch and kernels wrap what they meet to a narrow type."""
    dtype = str(value.dtype).removeprefix("torch.")
    if not dtype.startswith(("int", "uint")):
        raise TypeError(f"{name} has dtype {dtype}, but integers are needed")
    if dtype in ("int32", "int64"):
        return value
    return value.long() if is_tensor(value) else value.astype(np.int64)


def check_range(name: str, value: Any, low: int, high: int, allowed: int | None = None) -> None:
    """Raise, naming the first offender, unless low <= value < high (or value == allowed)."""
    bad = (value < low) | (value >= high)
    if allowed is not None:
        bad = bad & (value != allowed)
    if bool(bad.any()):
        i = int(first_index(bad))
        raise ValueError(f"{name}[{i}] = {int(value[i])} is outside [{low}, {high})")


def check_finite(name: str, value: Any) -> None:
    """Raise, naming the first row, if there is a NaN or an infinity; a block of rows at a time."""
    step = max(
        1, (1 << 22) // max(1, value[:1].size if not is_tensor(value) else value[:1].numel())
    )
    for start in range(0, len(value), step):
        block = value[start : start + step]
        finite = block.isfinite() if is_tensor(block) else np.isfinite(block)
        if not bool(finite.all()):
            rows = finite if finite.ndim == 1 else finite.all(1)
            raise ValueError(
                f"{name}: row {start + int(first_index(~rows))} has a NaN or an infinity"
            )


def first_index(flags: Any) -> Any:
    """Return the index of the first true flag."""
    return flags.int().argmax() if is_tensor(flags) else flags.argmax()


def check_bounds(cu_seqlens: Any, total: int) -> Any:
    """Check ``cu_seqlens``: integers from 0 to `total` that never fall."""
    check_shape("cu_seqlens", cu_seqlens, None)
    cu_seqlens = as_integers("cu_seqlens", cu_seqlens)
    if len(cu_seqlens) == 0 or int(cu_seqlens[0]) != 0 or int(cu_seqlens[-1]) != total:
        raise ValueError(f"cu_seqlens must start at 0 and end at {total}, the number of tokens")
    falls = cu_seqlens[1:] < cu_seqlens[:-1]
    if bool(falls.any()):
        raise ValueError(f"cu_seqlens falls after position {int(first_index(falls))}")
    return cu_seqlens


def check_mode(mode: str) -> None:
    """Refuse a pooling mode that there is not."""
    if mode not in get_args(PoolMode):
        raise ValueError(f"mode={mode!r} is none of {', '.join(get_args(PoolMode))}")
