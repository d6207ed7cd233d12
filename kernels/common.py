"""What the kernels share: the interpreter's gaps, rounding to integers, devices, launch options."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction

# Of Triton, for what its compilers do differently.
VERSION = tuple(int(part) for part in triton.__version__.split(".")[:2])


@triton.jit
def _probe() -> None:
    pass


# Whether TRITON_INTERPRET was set when triton.jit ran: kernels are then plain Python on the CPU.
INTERPRETED = isinstance(_probe, InterpretedFunction)
# The same for use inside kernels.
_INTERPRETED = tl.constexpr(INTERPRETED)

if INTERPRETED:
    from triton.runtime import interpreter

    _patch_lang_tensor = interpreter._patch_lang_tensor

    def _patch_index(tensor: Any, *scope: Any) -> None:
        # Triton 3.6 makes a loop bound of an array of one element by int(array), which NumPy has
        # refused since 2.4; Triton 3.9 does what is done here. 3.4 has no list of what it patches.
        _patch_lang_tensor(tensor, *scope)
        set_attr = scope[0].set_attr if scope else setattr
        set_attr(tensor, "__index__", lambda self: int(np.asarray(self.handle.data).item()))

    interpreter._patch_lang_tensor = _patch_index


@triton.jit
def dot(a, b, acc):
    """Return acc + a @ b, summed in float32; float32 operands are not cut to tf32."""
    if _INTERPRETED:
        # There a bfloat16 is its bit pattern, and a product multiplies the patterns.
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc)
    else:
        return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def fixed(x):
    """Nearest integer to float64 values below 2^51, ties to even."""
    # Adding 1.5 * 2^52 leaves the rounded integer in the low bits, as in the C++ core. No
    # conversion from float64 to int64, of which the chip makes few a cycle.
    magic = 6755399441055744.0
    return (x + magic).to(tl.int64, bitcast=True) - 4843621399236968448


@triton.jit
def inverse(scale):
    """1 / scale of a power of two, exactly."""
    return (2130706432 - scale.to(tl.int32, bitcast=True)).to(tl.float32, bitcast=True)


@triton.jit
def append(rows, wanted, list_ptr, count_ptr):
    """Put the wanted rows at the end of a list; in which order programs come is left open."""
    here = wanted.to(tl.int32)
    number = tl.sum(here, 0)
    if number > 0:
        # The next kernel reads the list, and a kernel's end orders all that it wrote.
        start = tl.atomic_add(count_ptr, number.to(tl.int64), sem="relaxed").to(tl.int32)
        tl.store(list_ptr + start + tl.cumsum(here, 0) - 1, rows, mask=wanted)


@dataclass(frozen=True)
class Launch:
    """Tile sizes and launch options of one kernel; `blocks` are passed as they are named."""

    blocks: dict[str, int]
    num_warps: int = 4
    num_stages: int = 3

    def options(self) -> dict[str, Any]:
        """Return the keyword arguments of a launch."""
        # Said in so many words: the default is about to change, and the folds are made of them.
        fused = {"enable_fp_fusion": True}
        return {**self.blocks, "num_warps": self.num_warps, "num_stages": self.num_stages, **fused}

    def describe(self) -> str:
        """Return it on one line."""
        blocks = " ".join(
            f"{name.removeprefix('BLOCK_')}={size}" for name, size in self.blocks.items()
        )
        return f"{blocks} warps={self.num_warps} stages={self.num_stages}"

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


def tiles(*, flatten: bool, **sizes: int) -> dict[str, int]:
    """Return the blocks of a product: tiles(N=128, D=64, ...) names BLOCK_N, BLOCK_D ...

    `flatten` makes the loops over tiles and along them one, so that the next tile's first loads are
    under way while a tile ends.
    """
    return {f"BLOCK_{name}": size for name, size in sizes.items()} | {"FLATTEN": flatten}


@lru_cache
def capability(device: torch.device) -> tuple[int, int]:
    """Compute capability of a CUDA device; (0, 0) for the CPU, that is the interpreter."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)


@lru_cache
def multiprocessors(device: torch.device) -> int:
    """Multiprocessors of a CUDA device; one for the CPU, where programs run one after the other."""
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def programs(device: torch.device, each: int) -> int:
    """Programs of a kernel that loops over its work: `each` a multiprocessor; two on the CPU."""
    return each * multiprocessors(device) if device.type == "cuda" else 2


def has_tma(device: torch.device) -> bool:
    """Whether tiles can be fetched by the copy engine (Hopper and later), or are interpreted."""
    return capability(device)[0] >= 9 or device.type == "cpu"


def next_power_of_2(n: int) -> int:
    """Return the smallest power of two that is not below n, and at least 1."""
    return 1 << max(0, n - 1).bit_length()


def power_of_2(exponent: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return 2^exponent, exactly, which torch.ldexp does not promise; normal numbers only."""
    if dtype == torch.float64:
        return ((exponent.long() + 1023) << 52).view(torch.float64)
    return ((exponent.int() + 127) << 23).view(torch.float32)
