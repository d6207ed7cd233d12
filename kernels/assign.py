"""Nearest center of every point, without the N x K distances ever being in memory.

    label_i = argmin_j |x_i - c_j|^2 = argmax_j (x_i - m) . (c_j - m) - |c_j - m|^2 / 2

for any shift m. Subtracting one near the data's mean takes nothing from the distances and most from
what is rounded. `nearest` multiplies rows and centers in float16 (half.py) on the tensor cores and
adds to every score the bound on its error: a label is certain if no other score comes within twice
its bound of the best. In precision "exact" what is left open goes on lists, made on the device, and
certify.py settles it by float64 distances, so that the labels are those of a float64 argmin, ties
to the lowest index, at about the price of half precision. Rows with a NaN or an infinity get label
-1, and the first is reported.

A score is kept with its column in its lowest bits: a maximum is one instruction, with the column
and all. What those bits were is part of the bound. "half" gives the best such score:
among equal ones (above zero) the lowest index.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .certify import STAGES, Scratch, append_open, recheck, score_bound
from .common import _INTERPRETED, Launch, has_tma, inverse, tiles
from .distance import distances
from .half import Centers, Rows, prepare_centers, prepare_rows, shift_of, unit_of

__all__ = [
    "NEAREST_LAUNCHES", "NONE_BAD", "STAGES", "Centers", "Rows", "Scratch", "distances", "nearest",
    "prepare_centers", "prepare_rows", "shift_of", "unit_of",
]  # fmt: skip

# rows past which there is none
NONE_BAD = 2**63 - 1


# ---- the best scores of a row --------------------------------------------------------------------


@triton.jit
def _pack(score, BLOCK_K: tl.constexpr, PLAIN: tl.constexpr):
    """Put the column into the lowest byte; the lower of two columns with one score is larger."""
    columns = (255 - tl.arange(0, BLOCK_K))[None, :]
    bits = score.to(tl.int32, bitcast=True)
    if PLAIN:
        packed = (bits & -256) | columns
    else:
        # One byte permutation an element; of the line above the compiler makes two instructions.
        packed = tl.inline_asm_elementwise(
            "prmt.b32 $0, $4, $8, 0x3214; prmt.b32 $1, $5, $8, 0x3215;"
            "prmt.b32 $2, $6, $8, 0x3216; prmt.b32 $3, $7, $8, 0x3217;",
            "=r,=r,=r,=r,r,r,r,r,r",
            [bits, columns.to(tl.uint8)],
            dtype=tl.int32,
            is_pure=True,
            pack=4,
        )
    return packed.to(tl.float32, bitcast=True)


@triton.jit
def _without_column(packed):
    return (packed.to(tl.int32, bitcast=True) & -256).to(tl.float32, bitcast=True)


@triton.jit
def _column(packed):
    return 255 - (packed.to(tl.int32, bitcast=True) & 255)


@triton.jit
def _take_tile(packed, k0, first, first_tile):
    """Take a tile into the best of each row; of equal scores that of the first tile stays."""
    tile_first = tl.max(packed, 1)
    better = _without_column(tile_first) > _without_column(first)
    return tl.where(better, tile_first, first), tl.where(better, k0, first_tile)


@triton.jit
def _two_of_four(a1, a2, b1, b2):
    return tl.maximum(a1, b1), tl.maximum(tl.minimum(a1, b1), tl.maximum(a2, b2))


@triton.jit
def _three_of_six(a1, a2, a3, b1, b2, b3):
    low = tl.minimum(a1, b1)
    high = tl.maximum(a2, b2)
    third = tl.maximum(tl.minimum(low, high), tl.maximum(a3, b3))
    return tl.maximum(a1, b1), tl.maximum(low, high), third


@triton.jit
def _best_three(packed, N: tl.constexpr, K: tl.constexpr, PLAIN: tl.constexpr):
    """Best, second best, and a third that no other column is above."""
    if PLAIN:
        # The interpreter would run a reduction of our own an element at a time.
        first = tl.max(packed, 1)
        left = tl.where(packed == first[:, None], float("-inf"), packed)
        second = tl.max(left, 1)
        third = tl.max(tl.where(left == second[:, None], float("-inf"), left), 1)
        return first, second, third
    else:
        # Columns 8 i + 2 r and the next, one r at a time, are in one thread's registers: the best
        # two of each r, then the best three of those. The second of each r stands for its third as
        # well, which it is not below.
        a, b = tl.split(tl.reshape(packed, [N, K // 2, 2]))
        high = tl.reshape(tl.maximum(a, b), [N, K // 8, 4])
        low = tl.reshape(tl.minimum(a, b), [N, K // 8, 4])
        high, low = tl.reduce((high, low), 1, _two_of_four)
        return tl.reduce((high, low, low), 1, _three_of_six)


@triton.jit
def _nearest_kernel(
    x,
    c,
    half_norm_ptr,
    reach_ptr,
    scale_ptr,
    error_ptr,
    length_ptr,
    unit_ptr,
    limits_ptr,
    label_ptr,
    pair_ptr,
    several_ptr,
    floor_ptr,
    number_ptr,
    rest_ptr,
    count_ptr,
    N,
    K,
    D: tl.constexpr,
    CERTIFY: tl.constexpr,
    USE_TMA: tl.constexpr,
    PLAIN: tl.constexpr,
    FLATTEN: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    # D is the padded width. Rows past N and columns past D come as zeros; centers past K have a
    # score that is far below all, so that no tile but the rows' ends needs a mask.
    n0 = tl.program_id(0) * BLOCK_N
    rows = n0 + tl.arange(0, BLOCK_N)
    inside = rows < N
    back = inverse(tl.load(scale_ptr + rows, mask=inside, other=1.0))
    if CERTIFY:
        error = tl.load(error_ptr + rows, mask=inside, other=0.0)
        length = tl.load(length_ptr + rows, mask=inside, other=0.0)
        unit = tl.load(unit_ptr)
        bound = score_bound(error, length, limits_ptr, unit, D)
    first = tl.full([BLOCK_N], float("-inf"), tl.float32)
    second = first
    third = first
    first_tile = tl.zeros([BLOCK_N], tl.int32)
    second_tile = first_tile
    if not USE_TMA:
        x_rows = x + rows.to(tl.int64)[:, None] * D
    for k0 in tl.range(0, K, BLOCK_K, flatten=FLATTEN):
        product = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
        for d0 in tl.range(0, D, BLOCK_D):
            if USE_TMA:
                x_tile = x.load([n0, d0])
                c_tile = c.load([k0, d0])
            else:
                d = d0 + tl.arange(0, BLOCK_D)
                k = k0 + tl.arange(0, BLOCK_K)
                x_tile = tl.load(
                    x_rows + d[None, :], mask=inside[:, None] & (d < D)[None, :], other=0.0
                )
                c_tile = tl.load(
                    c + k.to(tl.int64)[:, None] * D + d[None, :], mask=(d < D)[None, :], other=0.0
                )
            product = tl.dot(x_tile, c_tile.T, product)
        k = k0 + tl.arange(0, BLOCK_K)
        half_norm = tl.load(half_norm_ptr + k)
        score = product * back[:, None] + half_norm[None, :]
        if CERTIFY:
            # No true score is above this one, nor below it by more than twice bound * reach. An
            # fma, or the compiler lays `bound * reach` out otherwise than the product.
            score = tl.fma(bound[:, None], tl.load(reach_ptr + k)[None, :], score)
        packed = _pack(score, BLOCK_K, PLAIN)
        if CERTIFY:
            tile_first, tile_second, tile_third = _best_three(packed, BLOCK_N, BLOCK_K, PLAIN)
            # Of the loser of the bests and the winner of the seconds, the better is second.
            behind = tl.minimum(first, tile_first)
            behind_tile = tl.where(tile_first > first, first_tile, k0)
            other = tl.maximum(second, tile_second)
            other_tile = tl.where(tile_second > second, k0, second_tile)
            third = tl.maximum(tl.minimum(behind, other), tl.maximum(third, tile_third))
            second = tl.maximum(behind, other)
            second_tile = tl.where(other > behind, other_tile, behind_tile)
            first_tile = tl.where(tile_first > first, k0, first_tile)
            first = tl.maximum(first, tile_first)
        else:
            first, first_tile = _take_tile(packed, k0, first, first_tile)
    label = tl.minimum(first_tile + _column(first), K - 1)
    finite = inside
    if not CERTIFY:
        error = tl.load(error_ptr + rows, mask=inside, other=0.0)
    finite = inside & (error == error)
    tl.store(label_ptr + rows, tl.where(finite, label, -1), mask=inside)
    if CERTIFY:
        reach = tl.load(limits_ptr)
        gap = 2.0 * bound * tl.load(reach_ptr + label) + 1e-36
        # Beyond this, scores may have left float32; NaN is not below either.
        sound = (bound + (length + error + reach) * unit) * reach < 1e37
        left = finite & ((sound & ((first - second) > gap)) == 0)
        floor = first - gap
        two = left & sound & (third < floor)
        append_open(
            rows,
            two,
            left & sound & (third >= floor),
            left & (sound == 0),
            label,
            tl.minimum(second_tile + _column(second), K - 1),
            floor,
            pair_ptr,
            several_ptr,
            floor_ptr,
            number_ptr,
            rest_ptr,
            count_ptr,
        )


# ---- launches ------------------------------------------------------------------------------------

# The first is what is launched. `make bench-gpu` times them all and prints the order: the table is
# set from its output, never at run time, so that a label never depends on a timing.
NEAREST_LAUNCHES: tuple[Launch, ...] = (
    Launch(tiles(N=128, K=256, D=64, flatten=True), num_warps=8, num_stages=3),
    Launch(tiles(N=128, K=256, D=64, flatten=True), num_warps=8, num_stages=4),
    Launch(tiles(N=128, K=256, D=64, flatten=False), num_warps=8, num_stages=4),
    Launch(tiles(N=128, K=128, D=64, flatten=True), num_warps=4, num_stages=3),
    Launch(tiles(N=128, K=128, D=64, flatten=False), num_warps=4, num_stages=3),
    Launch(tiles(N=128, K=128, D=64, flatten=False), num_warps=8, num_stages=3),
    Launch(tiles(N=256, K=128, D=64, flatten=True), num_warps=8, num_stages=4),
    Launch(tiles(N=64, K=256, D=64, flatten=True), num_warps=4, num_stages=3),
)
_SMALL = Launch(tiles(N=64, K=64, D=32, flatten=False), num_warps=4, num_stages=3)


def nearest_launch(device: torch.device, k: int, padded: int) -> Launch:
    """Return the tiles for a device and a shape."""
    if not has_tma(device) or k <= 64 or padded <= 32 or device.type == "cpu":
        return _SMALL
    return NEAREST_LAUNCHES[0]


def nearest(
    rows: Rows,
    centers: Centers,
    labels: Tensor,
    scratch: Scratch,
    *,
    precision: str = "exact",
    launch: Launch | None = None,
) -> None:
    """Write the label of every row into `labels` (N,) int32; no host synchronisation.

    After an "exact" pass ``scratch.lengths()`` tells how many rows each stage had to look at.
    """
    n, k, padded = len(rows.x), len(centers.c), rows.half.shape[1]
    if n == 0:
        return
    device = rows.x.device
    with torch.cuda.device_of(rows.x):
        launch = launch or nearest_launch(device, k, padded)
        blocks = launch.blocks
        x: Tensor | TensorDescriptor = rows.half
        c: Tensor | TensorDescriptor = centers.high
        tma = has_tma(device)
        if tma:
            x = TensorDescriptor.from_tensor(rows.half, [blocks["BLOCK_N"], blocks["BLOCK_D"]])
            c = TensorDescriptor.from_tensor(centers.high, [blocks["BLOCK_K"], blocks["BLOCK_D"]])
        scratch.counts.zero_()
        _nearest_kernel[(triton.cdiv(n, blocks["BLOCK_N"]),)](
            x,
            c,
            centers.half_norm,
            centers.reach,
            rows.scale,
            rows.error,
            rows.length,
            centers.unit,
            centers.limits,
            labels,
            scratch.pairs,
            scratch.several,
            scratch.floors,
            scratch.numbers,
            scratch.rest,
            scratch.counts,
            n,
            k,
            D=padded,
            CERTIFY=precision == "exact",
            USE_TMA=tma,
            PLAIN=_INTERPRETED.value,
            **launch.options(),
        )
        if precision == "exact":
            recheck(rows, centers, labels, scratch)
