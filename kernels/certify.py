"""What becomes of rows whose nearest center the half-precision scores leave open.

    duel      the two candidates' float64 distances      rows with two candidates
    collect   float16 again, all candidates written down  rows with three or more
    choose    the candidates' float64 distances
    rescore   high and low parts, three products          rows with more than SLOTS candidates
    settle    float64 distances to all centers            what rescore leaves open

Each stage works on a list that the one before made on the device; lists are in no order, what
becomes of a row does not depend on its place. Distances are summed in the C++ core's order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .common import Launch, append, has_tma, inverse, programs
from .distance import choose, settle
from .half import Centers, Rows

# Candidates of a row that are written down. Rows seen in practice have at most five.
SLOTS = 8
# What `Scratch.counts` counts.
STAGES = ("two candidates", "more", "rescored", "settled")
COLLECT_LAUNCH = Launch({"BLOCK_N": 64, "BLOCK_K": 128, "BLOCK_D": 64}, num_warps=4, num_stages=2)
RESCORE_LAUNCH = Launch({"BLOCK_N": 64, "BLOCK_K": 64, "BLOCK_D": 64}, num_warps=4, num_stages=2)


@dataclass(frozen=True)
class Scratch:
    """Lists of rows to look at again, and their lengths, kept between calls.

    Attributes
    ----------
    pairs : (N, 3) int32
        A row and its two candidates.
    several : (N,) int32
        Rows with more candidates; floors (N,) float32: the score that one must reach;
        numbers (N,) and candidates (N, SLOTS) int32: how many were found, and which.
    rest, last : (N,) int32
        Rows to rescore and to settle.
    counts : (3,) int64
        Lengths of `pairs` (low 32 bits) and `several` (high), of `rest`, of `last`.
    """

    pairs: Tensor
    several: Tensor
    floors: Tensor
    numbers: Tensor
    candidates: Tensor
    rest: Tensor
    last: Tensor
    counts: Tensor

    @classmethod
    def of(cls, n: int, device: torch.device) -> Scratch:
        """Make room for n rows."""

        def empty(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.empty(max(1, n), *shape, dtype=dtype, device=device)

        floors = empty(dtype=torch.float32)
        counts = torch.zeros(3, dtype=torch.int64, device=device)
        return cls(empty(3), empty(), floors, empty(), empty(SLOTS), empty(), empty(), counts)

    def lengths(self) -> list[int]:
        """Return how many rows each of STAGES was given; waits for the device."""
        both, rest, last = self.counts.tolist()
        return [both & 0xFFFFFFFF, both >> 32, rest, last]


@triton.jit
def append_open(
    rows,
    two,
    more,
    rest,
    first_label,
    second_label,
    floor,
    pair_ptr,
    several_ptr,
    floor_ptr,
    number_ptr,
    rest_ptr,
    count_ptr,
):
    """List rows with two candidates, with more, and those that scores say nothing of."""
    two_here = two.to(tl.int32)
    more_here = more.to(tl.int32)
    number = tl.sum(two_here, 0).to(tl.int64) + (tl.sum(more_here, 0).to(tl.int64) << 32)
    if number > 0:
        # Both lists grow by one addition: its way to memory and back is all that is waited for.
        start = tl.atomic_add(count_ptr, number, sem="relaxed")
        place = (start & 4294967295) + tl.cumsum(two_here, 0) - 1
        tl.store(pair_ptr + 3 * place, rows, mask=two)
        tl.store(pair_ptr + 3 * place + 1, first_label, mask=two)
        tl.store(pair_ptr + 3 * place + 2, second_label, mask=two)
        place = (start >> 32) + tl.cumsum(more_here, 0) - 1
        tl.store(several_ptr + place, rows, mask=more)
        tl.store(floor_ptr + place, floor, mask=more)
        tl.store(number_ptr + place, tl.zeros_like(more_here), mask=more)
    append(rows, rest, rest_ptr, count_ptr + 1)


@triton.jit
def score_bound(error, length, limits_ptr, unit, D: tl.constexpr):
    """B_i t: a score in units of 1 / t is off by at most that times r_j (docs/kernels.md)."""
    reach = tl.load(limits_ptr)
    rho = tl.load(limits_ptr + 1)
    pack = 256 * 1.1920929e-07
    far = (length + error) * (1.0 + rho)
    bound = error + (length + error) * rho + (D * 1.1920929e-07 + 2.4e-07 + pack) * far
    bound += (1.2e-07 + 0.5 * pack) * reach
    # 1.03: this arithmetic, that of length and error, and `pack` of the bound itself
    return 1.03 * bound * unit


@triton.jit
def _collect_kernel(
    x_ptr,
    c,
    half_norm_ptr,
    reach_ptr,
    scale_ptr,
    error_ptr,
    length_ptr,
    unit_ptr,
    limits_ptr,
    list_ptr,
    floor_ptr,
    number_ptr,
    candidate_ptr,
    count_ptr,
    K,
    D: tl.constexpr,
    SLOTS: tl.constexpr,
    USE_TMA: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    count = (tl.load(count_ptr) >> 32).to(tl.int32)
    tiles = tl.cdiv(K, BLOCK_K)
    # A short list fills the device too: a block of rows is dealt out a tile of centers at a time.
    for item in tl.range(tl.program_id(0), tl.cdiv(count, BLOCK_N) * tiles, tl.num_programs(0)):
        place = (item // tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
        k0 = (item % tiles) * BLOCK_K
        k = k0 + tl.arange(0, BLOCK_K)
        inside = place < count
        rows = tl.load(list_ptr + place, mask=inside, other=0).to(tl.int64)
        product = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
        # Not pipelined: what a copy into shared memory brings is not fenced from the tensor cores
        # by Triton 3.6, what comes through registers or the copy engine is.
        for d0 in tl.range(0, D, BLOCK_D, num_stages=1):
            d = d0 + tl.arange(0, BLOCK_D)
            mask = inside[:, None] & (d < D)[None, :]
            x_tile = tl.load(x_ptr + rows[:, None] * D + d[None, :], mask=mask, other=0.0)
            if USE_TMA:
                c_tile = c.load([k0, d0])
            else:
                c_rows = c + k.to(tl.int64)[:, None] * D
                c_tile = tl.load(c_rows + d[None, :], mask=(d < D)[None, :], other=0.0)
            product = tl.dot(x_tile, c_tile.T, product)
        back = inverse(tl.load(scale_ptr + rows, mask=inside, other=1.0))
        error = tl.load(error_ptr + rows, mask=inside, other=0.0)
        length = tl.load(length_ptr + rows, mask=inside, other=0.0)
        bound = score_bound(error, length, limits_ptr, tl.load(unit_ptr), D)
        most = product * back[:, None] + tl.load(half_norm_ptr + k)[None, :]
        most = tl.fma(bound[:, None], tl.load(reach_ptr + k)[None, :], most)
        floor = tl.load(floor_ptr + place, mask=inside, other=float("inf"))
        column = tl.where((most >= floor[:, None]) & (k < K)[None, :], k[None, :], -1)
        found = tl.sum((column >= 0).to(tl.int32), 1)
        slot = tl.atomic_add(number_ptr + place, found, mask=inside & (found > 0), sem="relaxed")
        # Few rows have one in this tile, hardly any has two: one a turn, the highest first.
        below = tl.full([BLOCK_N], 2147483647, tl.int32)
        for _ in tl.range(0, tl.minimum(tl.max(found, 0), SLOTS)):
            below = tl.max(tl.where(column < below[:, None], column, -1), 1)
            target = candidate_ptr + place.to(tl.int64) * SLOTS + slot
            tl.store(target, below, mask=inside & (below >= 0) & (slot < SLOTS))
            slot += 1


@triton.jit
def _fold(score, k0, best, second, label, BLOCK_K: tl.constexpr):
    """Take a tile of scores into each row's least, second least and label."""
    columns = tl.arange(0, BLOCK_K)
    tile_best = tl.min(score, 1)
    # Ties within a tile go to the lowest column here, ties between tiles to the first tile below.
    tile_label = tl.min(tl.where(score == tile_best[:, None], columns[None, :], BLOCK_K), 1)
    others = tl.where(columns[None, :] == tile_label[:, None], float("inf"), score)
    tile_second = tl.min(others, 1)
    second = tl.minimum(tl.minimum(second, tile_second), tl.maximum(best, tile_best))
    label = tl.where(tile_best < best, k0 + tile_label, label)
    best = tl.minimum(best, tile_best)
    return best, second, label


@triton.jit
def _rescore_kernel(
    x_ptr,
    shift_ptr,
    high,
    low,
    half_norm_ptr,
    scale_ptr,
    length_ptr,
    unit_ptr,
    limits_ptr,
    label_ptr,
    from_ptr,
    to_ptr,
    count_ptr,
    K,
    D,
    PADDED,
    stride_xn,
    ROOT_D: tl.constexpr,
    USE_TMA: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    count = tl.load(count_ptr + 1).to(tl.int32)
    unit = tl.load(unit_ptr)
    for block in tl.range(tl.program_id(0), tl.cdiv(count, BLOCK_N), tl.num_programs(0)):
        place = block * BLOCK_N + tl.arange(0, BLOCK_N)
        inside = place < count
        rows = tl.load(from_ptr + place, mask=inside, other=0).to(tl.int64)
        scale = tl.load(scale_ptr + rows, mask=inside, other=1.0)
        best = tl.full([BLOCK_N], float("inf"), tl.float32)
        second = tl.full([BLOCK_N], float("inf"), tl.float32)
        label = tl.zeros([BLOCK_N], tl.int32)
        for k0 in tl.range(0, K, BLOCK_K):
            k = (k0 + tl.arange(0, BLOCK_K)).to(tl.int64)
            total = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
            cross = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
            for d0 in tl.range(0, D, BLOCK_D):
                d = d0 + tl.arange(0, BLOCK_D)
                mask = inside[:, None] & (d < D)[None, :]
                x = tl.load(x_ptr + rows[:, None] * stride_xn + d[None, :], mask=mask, other=0.0)
                shift = tl.load(shift_ptr + d, mask=d < D, other=0.0)
                y = tl.where(mask, (x - shift[None, :]).to(tl.float32), 0.0) * scale[:, None]
                x_high = y.to(tl.float16)
                x_low = ((y - x_high.to(tl.float32)) * 2048.0).to(tl.float16)
                if USE_TMA:
                    c_high = high.load([k0, d0])
                    c_low = low.load([k0, d0])
                else:
                    tile = k[:, None] * PADDED + d[None, :]
                    c_high = tl.load(high + tile, mask=(d < PADDED)[None, :], other=0.0)
                    c_low = tl.load(low + tile, mask=(d < PADDED)[None, :], other=0.0)
                # A block's products are summed on their own, so that the error of the long sum
                # grows with the number of blocks and not of terms.
                total += tl.dot(x_high, c_high.T)
                cross = tl.dot(x_high, c_low.T, cross)
                cross = tl.dot(x_low, c_high.T, cross)
            half_norm = tl.where(k < K, -tl.load(half_norm_ptr + k), float("inf"))
            score = half_norm[None, :] * scale[:, None] - (total + cross * 0.00048828125)
            best, second, label = _fold(score, k0, best, second, label, BLOCK_K)
        length = tl.load(length_ptr + rows, mask=inside, other=0.0)
        reach = tl.load(limits_ptr)
        tallest = tl.load(limits_ptr + 2)
        relative = 2.0e-06 + (BLOCK_D + D / BLOCK_D + D * 0.002) * 1.1920929e-07
        bound = (relative * length * reach * unit + 2.4e-07 * tallest) * scale
        bound += 2.9103830e-11 * ROOT_D * (reach * unit + length * scale)
        bound *= 1.01
        certain = (second - best) > 2.0 * bound
        tl.store(label_ptr + rows, label, mask=inside & certain)
        append(rows.to(tl.int32), inside & (certain == 0), to_ptr, count_ptr + 2)


# ---- launches ------------------------------------------------------------------------------------


def recheck(rows: Rows, centers: Centers, labels: Tensor, scratch: Scratch) -> None:
    """Settle the rows on the lists that `nearest` made; no host synchronisation."""
    (_, d), k, padded = rows.x.shape, len(centers.c), rows.half.shape[1]
    tma = has_tma(rows.x.device)

    def tile(matrix: Tensor, launch: Launch) -> Any:
        blocks = launch.blocks
        block = [blocks["BLOCK_K"], blocks["BLOCK_D"]]
        return TensorDescriptor.from_tensor(matrix, block) if tma else matrix

    lists = (scratch.numbers, scratch.rest, scratch.counts)
    choose(rows.x, centers.c, labels, scratch.pairs, scratch.pairs[:, 1:], *lists, counted=False)
    _collect_kernel[(programs(rows.x.device, 2),)](
        rows.half,
        tile(centers.high, COLLECT_LAUNCH),
        centers.half_norm,
        centers.reach,
        rows.scale,
        rows.error,
        rows.length,
        centers.unit,
        centers.limits,
        scratch.several,
        scratch.floors,
        scratch.numbers,
        scratch.candidates,
        scratch.counts,
        k,
        D=padded,
        SLOTS=SLOTS,
        USE_TMA=tma,
        **COLLECT_LAUNCH.options(),
    )
    several = scratch.several[:, None]
    choose(rows.x, centers.c, labels, several, scratch.candidates, *lists, counted=True)
    _rescore_kernel[(programs(rows.x.device, 2),)](
        rows.x,
        centers.shift,
        tile(centers.high, RESCORE_LAUNCH),
        tile(centers.low, RESCORE_LAUNCH),
        centers.half_norm,
        rows.scale,
        rows.length,
        centers.unit,
        centers.limits,
        labels,
        scratch.rest,
        scratch.last,
        scratch.counts,
        k,
        d,
        padded,
        rows.x.stride(0),
        ROOT_D=d**0.5,
        USE_TMA=tma,
        **RESCORE_LAUNCH.options(),
    )
    settle(rows.x, centers.c, labels, scratch.last, scratch.counts)
