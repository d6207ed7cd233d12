"""Sums of the points of each cluster, exactly, so that they are the same bits in any order.

    S_j = sum over i in cluster j of w_i x_i          M_j = sum of w_i

Each term is scaled by a power of two of its column, rounded once to an integer, and added to an
int64 (`FixedScale`, the C++ core's formula). Integer sums do not depend on the order, so atomics
are welcome, shards and devices merge in any order, and a later pass may add only the rows that
moved: `add_rows` sums all rows, sorted by label; `move_rows` takes moved rows from one sum to
another.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import Launch, fixed, next_power_of_2, power_of_2, programs

# CHUNK: rows that one program sums before it adds them to its cluster's sum, one atomic a column.
# The first is what is launched; `make bench-gpu` times them all and prints the order.
LAUNCHES: tuple[Launch, ...] = (
    Launch({"CHUNK": 128, "BLOCK_N": 8, "BLOCK_D": 256}, num_warps=4),
    Launch({"CHUNK": 256, "BLOCK_N": 8, "BLOCK_D": 256}, num_warps=4),
    Launch({"CHUNK": 256, "BLOCK_N": 16, "BLOCK_D": 128}, num_warps=4),
    Launch({"CHUNK": 128, "BLOCK_N": 16, "BLOCK_D": 128}, num_warps=4),
    Launch({"CHUNK": 128, "BLOCK_N": 16, "BLOCK_D": 256}, num_warps=8),
    Launch({"CHUNK": 64, "BLOCK_N": 16, "BLOCK_D": 128}, num_warps=4),
)


@dataclass(frozen=True)
class FixedScale:
    """Powers of two that make sums exact: columns (D,) and mass (), float64."""

    columns: Tensor
    mass: Tensor

    @classmethod
    def of(cls, largest: Tensor, largest_weight: Tensor | float, n_rows: int) -> FixedScale:
        """Choose them from the columns' largest magnitudes (D,), the largest weight and N.

        A term stays below 2^50, so that it can be rounded by adding 1.5 * 2^52, and N of them below
        2^61.
        """
        weight = torch.as_tensor(largest_weight, dtype=torch.float64, device=largest.device)
        terms = max(2.0**11, float(n_rows)) * 2.0**-61

        def scale(value: Tensor) -> Tensor:
            exponent = (-torch.frexp(value * terms).exponent).clamp(max=1000)
            return torch.where(value > 0, power_of_2(exponent, torch.float64), 1.0)

        return cls(scale(largest.double() * weight), scale(weight))


@dataclass(frozen=True)
class Sums:
    """Integers: sums (K, D) in units of 1 / scale.columns, mass (K,) of 1 / scale.mass."""

    sums: Tensor
    mass: Tensor

    @classmethod
    def zeros(cls, k: int, d: int, device: torch.device) -> Sums:
        """Start with nothing."""
        sums = torch.zeros(k, d, dtype=torch.int64, device=device)
        return cls(sums, torch.zeros(k, dtype=torch.int64, device=device))

    def zero_(self) -> None:
        """Start again with nothing."""
        self.sums.zero_()
        self.mass.zero_()


@triton.jit
def _add_kernel(
    x_ptr,
    weight_ptr,
    column_ptr,
    unit_ptr,
    order_ptr,
    bounds_ptr,
    first_chunk_ptr,
    owner_ptr,
    sums_ptr,
    mass_ptr,
    K,
    D,
    stride_xn,
    WEIGHTED: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    item = tl.program_id(0)
    k = tl.load(owner_ptr + item)
    used = k < K
    k = tl.where(used, k, 0)
    start = tl.load(bounds_ptr + k) + (item - tl.load(first_chunk_ptr + k)) * CHUNK
    end = tl.minimum(start + CHUNK, tl.load(bounds_ptr + k + 1))
    end = tl.where(used, end, start)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    column = tl.load(column_ptr + d, mask=d < D, other=0.0)
    total = tl.zeros([BLOCK_N, BLOCK_D], tl.int64)
    mass = tl.zeros([BLOCK_N], tl.int64)
    for n0 in tl.range(start, end, BLOCK_N, num_stages=3):
        n = n0 + tl.arange(0, BLOCK_N)
        rows = tl.load(order_ptr + n, mask=n < end, other=0).to(tl.int64)
        x = tl.load(
            x_ptr + rows[:, None] * stride_xn + d[None, :],
            mask=(n < end)[:, None] & (d < D)[None, :],
            other=0.0,
        ).to(tl.float64)
        if WEIGHTED:
            weight = tl.load(weight_ptr + rows, mask=n < end, other=0.0)
            x = x * weight[:, None]
            mass += fixed(weight * tl.load(unit_ptr))
        total += fixed(x * column[None, :])
    if not WEIGHTED:
        unit = tl.load(unit_ptr) + tl.zeros([BLOCK_N], tl.float64)
        lane = tl.arange(0, BLOCK_N)
        number = tl.maximum(end - start, 0)
        mass = tl.where(lane == 0, fixed(unit) * number, 0)
    k = k.to(tl.int64)
    width = tl.where(end > start, D, 0)
    tl.atomic_add(sums_ptr + k * D + d, tl.sum(total, 0), mask=d < width, sem="relaxed")
    if tl.program_id(1) == 0:
        tl.atomic_add(mass_ptr + k, tl.sum(mass, 0), sem="relaxed")


@triton.jit
def _moved_kernel(old_ptr, new_ptr, list_ptr, count_ptr, N, BLOCK_N: tl.constexpr):
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    old = tl.load(old_ptr + rows, mask=rows < N, other=0)
    new = tl.load(new_ptr + rows, mask=rows < N, other=0)
    moved = old != new
    here = moved.to(tl.int32)
    number = tl.sum(here, 0)
    if number > 0:
        start = tl.atomic_add(count_ptr, number, sem="relaxed")
        tl.store(list_ptr + start + tl.cumsum(here, 0) - 1, rows, mask=moved)


@triton.jit
def _move_kernel(
    x_ptr,
    weight_ptr,
    column_ptr,
    unit_ptr,
    old_ptr,
    new_ptr,
    list_ptr,
    count_ptr,
    sums_ptr,
    mass_ptr,
    D,
    stride_xn,
    WEIGHTED: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    count = tl.load(count_ptr)
    unit = tl.load(unit_ptr)
    for place in tl.range(tl.program_id(0), count, tl.num_programs(0)):
        row = tl.load(list_ptr + place).to(tl.int64)
        old = tl.load(old_ptr + row).to(tl.int64)
        new = tl.load(new_ptr + row).to(tl.int64)
        weight = tl.full([], 1.0, tl.float64)
        if WEIGHTED:
            weight = tl.load(weight_ptr + row)
        for d0 in tl.range(0, D, BLOCK_D):
            d = d0 + tl.arange(0, BLOCK_D)
            column = tl.load(column_ptr + d, mask=d < D, other=0.0)
            x = tl.load(x_ptr + row * stride_xn + d, mask=d < D, other=0.0).to(tl.float64)
            if WEIGHTED:
                x = x * weight
            term = fixed(x * column)
            # A label of -1 is no cluster: of a row that was not yet, or is not finite.
            tl.atomic_add(
                sums_ptr + old * D + d, -term, mask=d < tl.where(old >= 0, D, 0), sem="relaxed"
            )
            tl.atomic_add(
                sums_ptr + new * D + d, term, mask=d < tl.where(new >= 0, D, 0), sem="relaxed"
            )
        mass = fixed(weight * unit)
        tl.atomic_add(mass_ptr + old, -mass, mask=old >= 0, sem="relaxed")
        tl.atomic_add(mass_ptr + new, mass, mask=new >= 0, sem="relaxed")


def add_rows(
    x: Tensor,
    labels: Tensor,
    weights: Tensor | None,
    scale: FixedScale,
    sums: Sums,
    *,
    launch: Launch = LAUNCHES[0],
) -> None:
    """Add every row of x (N, D) to its cluster's sum; rows labeled -1 to none. No host sync.

    weights: (N,) float64 or None.
    """
    n, d = x.shape
    k = len(sums.mass)
    if n == 0 or d == 0:
        return
    # A radix sort takes a pass a byte: narrow keys are sorted in half the time.
    keys = labels.to(torch.int16) if k < 2**15 else labels
    ordered, order = keys.sort(stable=True)
    clusters = torch.arange(k + 1, dtype=ordered.dtype, device=x.device)
    bounds = torch.searchsorted(ordered, clusters)
    first_chunk = torch.zeros(k + 1, dtype=torch.int64, device=x.device)
    chunk = launch.blocks["CHUNK"]
    torch.cumsum((bounds.diff() + chunk - 1) // chunk, 0, out=first_chunk[1:])
    # Not known without asking the device: how many chunks there are. Never more than this.
    items = triton.cdiv(n, chunk) + min(n, k)
    owner = torch.searchsorted(
        first_chunk[1:], torch.arange(items, device=x.device), right=True, out_int32=True
    )
    block_d = min(launch.blocks["BLOCK_D"], max(16, next_power_of_2(d)))
    with torch.cuda.device_of(x):
        _add_kernel[(items, triton.cdiv(d, block_d))](
            x,
            scale.mass if weights is None else weights,
            scale.columns,
            scale.mass,
            order,
            bounds,
            first_chunk,
            owner,
            sums.sums,
            sums.mass,
            k,
            d,
            x.stride(0),
            WEIGHTED=weights is not None,
            CHUNK=chunk,
            BLOCK_N=launch.blocks["BLOCK_N"],
            BLOCK_D=block_d,
            num_warps=launch.num_warps,
            enable_fp_fusion=False,
        )


def move_rows(
    x: Tensor,
    old: Tensor,
    new: Tensor,
    weights: Tensor | None,
    scale: FixedScale,
    sums: Sums,
    scratch: Tensor,
) -> None:
    """Take the rows whose label changed out of the old sums and into the new. No host sync.

    scratch: (N + 4,) int32; the first element receives how many rows moved.
    """
    n, d = x.shape
    if n == 0 or d == 0:
        return
    # The list begins at 16 bytes, as all that kernels read: for another start they would be
    # compiled again.
    count, moved = scratch[:1], scratch[4:]
    count.zero_()
    with torch.cuda.device_of(x):
        _moved_kernel[(triton.cdiv(n, 1024),)](
            old, new, moved, count, n, BLOCK_N=1024, enable_fp_fusion=False
        )
        _move_kernel[(programs(x.device, 8),)](
            x,
            scale.mass if weights is None else weights,
            scale.columns,
            scale.mass,
            old,
            new,
            moved,
            count,
            sums.sums,
            sums.mass,
            d,
            x.stride(0),
            WEIGHTED=weights is not None,
            BLOCK_D=min(1024, max(16, next_power_of_2(d))),
            num_warps=4,
            enable_fp_fusion=False,
        )


def means(sums: Sums, scale: FixedScale, centers: Tensor) -> Tensor:
    """Sum / mass of each cluster, (K, D) float64; a cluster without mass keeps its center."""
    weight = sums.mass.double() / scale.mass
    mean = sums.sums.double() / scale.columns / torch.where(weight > 0, weight, 1.0)[:, None]
    return torch.where((sums.mass > 0)[:, None], mean, centers.double())


def largest_values(x: Tensor) -> Tensor:
    """Largest magnitude of each column, (D,) float64."""
    if len(x) == 0:
        return x.new_zeros(x.shape[1], dtype=torch.float64)
    return torch.linalg.vector_norm(x, torch.inf, dim=0).double()
