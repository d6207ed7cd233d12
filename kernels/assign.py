"""Nearest centre of every point, without the N x K distances ever being in memory.

    label_i = argmin_j |x_i - c_j|^2 = argmin_j |c_j - m|^2 / 2 - (x_i - m) . (c_j - m)

for any shift m. Subtracting one near the data's mean takes nothing from the distances and most from
what is rounded. `prepare_rows` writes (x - m) s_i in float16, s_i a power of two by row, and how
much that lost; `prepare_centers` likewise. `nearest` multiplies these on the tensor cores and keeps
the best two scores of a row. In precision "exact" a row whose two best scores are closer than the
bound on their errors (docs/kernels.md) goes on a list, made on the device:

    nearest   fp16                                       every row
    rescore   fp16 high and low parts, 3 products        rows on the first list, a few per cent
    settle    float64, one fixed order of operations     rows on the second, a few in 10,000

so that the labels are those of a float64 argmin, ties to the lowest index, at about the price of
half precision. Rows with a NaN or an infinity get label -1, and the first is reported.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .common import Launch, has_tma, multiprocessors, next_power_of_2, power_of_2, tiles

# rows past which there is none
NONE_BAD = 2**63 - 1

# Centres are padded to a multiple of this with ones that no row is near.
CENTER_PADDING = 256


# ---- rows and centres in half precision ----------------------------------------------------------


@triton.jit
def _power_of_2(exponent):
    """2^exponent as float32, for -126 <= exponent <= 127."""
    return ((exponent + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _exponent(x):
    """Return e with 2^e <= x < 2^(e + 1) of a normal float32; -127 of 0, 128 of inf and NaN."""
    return ((x.to(tl.int32, bitcast=True) >> 23) & 255) - 127


@triton.jit
def _prepare_rows_kernel(
    x_ptr,
    shift_ptr,
    unit_ptr,
    half_ptr,
    scale_ptr,
    error_ptr,
    length_ptr,
    bad_ptr,
    first_row,
    N,
    D,
    PADDED,
    stride_xn,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    rows = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    inside = rows < N
    unit_exponent = _exponent(tl.load(unit_ptr))
    largest = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    strange = tl.zeros([BLOCK_N, BLOCK_D], tl.int32)
    for d0 in tl.range(0, D, BLOCK_D):
        d = d0 + tl.arange(0, BLOCK_D)
        mask = inside[:, None] & (d < D)[None, :]
        x = tl.load(x_ptr + rows[:, None] * stride_xn + d[None, :], mask=mask, other=0.0)
        wide = x.to(tl.float32)
        strange |= ((wide - wide) != 0.0).to(tl.int32)  # NaN and infinity alone
        shift = tl.load(shift_ptr + d, mask=d < D, other=0.0)
        y = tl.where(mask, (x - shift[None, :]).to(tl.float32), 0.0)
        largest = tl.maximum(largest, tl.abs(y))
    bad = tl.max(strange, 1) > 0
    # The largest value of a row becomes 2^13 to 2^14, far from what float16 cannot hold; a row that
    # lies almost on the shift is not blown up beyond what the centres' products leave room for.
    exponent = tl.minimum(13 - _exponent(tl.max(largest, 1)), 30 + unit_exponent)
    exponent = tl.minimum(tl.maximum(exponent, -100), 100)
    scale = _power_of_2(exponent)
    lost = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    square = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for d0 in tl.range(0, PADDED, BLOCK_D):
        d = d0 + tl.arange(0, BLOCK_D)
        mask = inside[:, None] & (d < D)[None, :]
        x = tl.load(x_ptr + rows[:, None] * stride_xn + d[None, :], mask=mask, other=0.0)
        shift = tl.load(shift_ptr + d, mask=d < D, other=0.0)
        y = tl.where(mask, (x - shift[None, :]).to(tl.float32), 0.0) * scale[:, None]
        half = y.to(tl.float16)
        rest = y - half.to(tl.float32)
        lost += rest * rest
        square += y * y
        tl.store(
            half_ptr + rows[:, None] * PADDED + d[None, :],
            half,
            mask=inside[:, None] & (d < PADDED)[None, :],
        )
    back = _power_of_2(-exponent)
    length = tl.sqrt(tl.sum(square, 1)) * back
    error = tl.sqrt(tl.sum(lost, 1)) * back
    tl.store(scale_ptr + rows, scale, mask=inside)
    tl.store(length_ptr + rows, length, mask=inside)
    tl.store(error_ptr + rows, tl.where(bad, float("nan"), error), mask=inside)
    first_bad = tl.min(tl.where(bad & inside, rows + first_row, 9223372036854775807), 0)
    if tl.sum((bad & inside).to(tl.int32), 0) > 0:
        tl.atomic_min(bad_ptr, first_bad)


@triton.jit
def _prepare_centers_kernel(
    c_ptr,
    shift_ptr,
    unit_ptr,
    high_ptr,
    low_ptr,
    half_norm_ptr,
    length_ptr,
    error_ptr,
    K,
    D,
    PADDED,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    k = (tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)).to(tl.int64)
    unit = tl.load(unit_ptr)
    square = tl.zeros([BLOCK_K, BLOCK_D], tl.float64)
    lost = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
    for d0 in tl.range(0, PADDED, BLOCK_D):
        d = d0 + tl.arange(0, BLOCK_D)
        mask = (k < K)[:, None] & (d < D)[None, :]
        c = tl.load(c_ptr + k[:, None] * D + d[None, :], mask=mask, other=0.0).to(tl.float64)
        shift = tl.load(shift_ptr + d, mask=d < D, other=0.0).to(tl.float64)
        y = tl.where(mask, c - shift[None, :], 0.0)
        square += y * y
        scaled = (y * unit.to(tl.float64)).to(tl.float32)
        high = scaled.to(tl.float16)
        rest = scaled - high.to(tl.float32)
        lost += rest * rest
        place = k[:, None] * PADDED + d[None, :]
        padded = (d < PADDED)[None, :]
        tl.store(high_ptr + place, high, mask=padded)
        tl.store(low_ptr + place, (rest * 2048.0).to(tl.float16), mask=padded)
    norm = tl.sum(square, 1)
    half_norm = (0.5 * norm * unit.to(tl.float64)).to(tl.float32)
    tl.store(half_norm_ptr + k, tl.where(k < K, half_norm, float("inf")))
    tl.store(length_ptr + k, tl.sqrt(norm).to(tl.float32))
    tl.store(error_ptr + k, tl.sqrt(tl.sum(lost, 1)) / unit)


@dataclass(frozen=True)
class Rows:
    """Points of one device, as they are and in half precision.

    Attributes
    ----------
    x : (N, D)
        As given.
    half : (N, padded D) float16
        (x - shift) scale, padded with zeros to whole 16 bytes.
    scale, error, length : (N,) float32
        Power of two of the row; |x - shift - half / scale|, NaN for a row that is not finite;
        |x - shift|.
    """

    x: Tensor
    half: Tensor
    scale: Tensor
    error: Tensor
    length: Tensor


@dataclass(frozen=True)
class Centers:
    """Centres on one device, as they are and in half precision.

    Attributes
    ----------
    c : (K, D)
        As given.
    shift : (D,) float32
        What is subtracted from rows and centres.
    unit : () float32
        A power of two.
    high, low : (padded K, padded D) float16
        (c - shift) unit is about high + low / 2048.
    half_norm : (padded K,) float32
        |c - shift|^2 / 2 unit; infinity for padding.
    limits : (3,) float32
        Largest |c - shift|, largest rounding loss of `high` (both unscaled), largest half norm.
    """

    c: Tensor
    shift: Tensor
    unit: Tensor
    high: Tensor
    low: Tensor
    half_norm: Tensor
    limits: Tensor


def _padded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def unit_of(centers: Tensor, shift: Tensor) -> Tensor:
    """Return the power of two that brings the centres' largest value to 2^12 .. 2^13."""
    largest = (centers.double() - shift.double()).abs().amax().clamp(1e-30, 1e30).float()
    return power_of_2(13 - torch.frexp(largest).exponent, torch.float32)


def prepare_centers(centers: Tensor, shift: Tensor) -> Centers:
    """Round centres (K, D) about `shift` (D,) to half precision; no host synchronisation."""
    k, d = centers.shape
    padded_k, padded_d = _padded(k, CENTER_PADDING), _padded(d, 8)
    centers = centers.contiguous()
    unit = unit_of(centers, shift)
    high = centers.new_empty(padded_k, padded_d, dtype=torch.float16)
    low = torch.empty_like(high)
    half_norm, length, error = centers.new_empty(3, padded_k, dtype=torch.float32)
    with torch.cuda.device_of(centers):
        _prepare_centers_kernel[(padded_k // 8,)](
            centers,
            shift,
            unit,
            high,
            low,
            half_norm,
            length,
            error,
            k,
            d,
            padded_d,
            BLOCK_K=8,
            BLOCK_D=min(128, next_power_of_2(padded_d)),
        )
    limits = torch.stack([length[:k].amax(), error[:k].amax(), half_norm[:k].amax()])
    return Centers(centers, shift, unit, high, low, half_norm, limits)


def prepare_rows(x: Tensor, centers: Centers, bad: Tensor, first_row: int = 0) -> Rows:
    """Round rows (N, D) about the centres' shift to half precision.

    `bad` () int64 is lowered to the number (counted from `first_row`) of the first row that holds a
    NaN or an infinity, if any does.
    """
    if x.stride(-1) != 1:
        x = x.contiguous()
    n, d = x.shape
    padded = _padded(d, 8)
    half = x.new_empty(n, padded, dtype=torch.float16)
    scale, error, length = (x.new_empty(n, dtype=torch.float32) for _ in range(3))
    block_d = min(1024, next_power_of_2(padded))
    block_n = max(1, 4096 // block_d)
    if n:
        with torch.cuda.device_of(x):
            _prepare_rows_kernel[(triton.cdiv(n, block_n),)](
                x,
                centers.shift,
                centers.unit,
                half,
                scale,
                error,
                length,
                bad,
                first_row,
                n,
                d,
                padded,
                x.stride(0),
                BLOCK_N=block_n,
                BLOCK_D=block_d,
            )
    return Rows(x, half, scale, error, length)


# ---- scores --------------------------------------------------------------------------------------


@triton.jit
def _append(rows, wanted, list_ptr, count_ptr):
    """Put the wanted rows at the end of a list; in which order programs come is left open."""
    here = wanted.to(tl.int32)
    number = tl.sum(here, 0)
    if number > 0:
        start = tl.atomic_add(count_ptr, number)
        tl.store(list_ptr + start + tl.cumsum(here, 0) - 1, rows, mask=wanted)


@triton.jit
def _fold(score, k0, best, second, label, BLOCK_K: tl.constexpr, CERTIFY: tl.constexpr):
    """Take a tile of scores into each row's best, second best and label."""
    columns = tl.arange(0, BLOCK_K)
    tile_best = tl.min(score, 1)
    # Ties within a tile go to the lowest column here, ties between tiles to the first tile below.
    tile_label = tl.min(tl.where(score == tile_best[:, None], columns[None, :], BLOCK_K), 1)
    if CERTIFY:
        others = tl.where(columns[None, :] == tile_label[:, None], float("inf"), score)
        tile_second = tl.min(others, 1)
        second = tl.minimum(tl.minimum(second, tile_second), tl.maximum(best, tile_best))
    label = tl.where(tile_best < best, k0 + tile_label, label)
    best = tl.minimum(best, tile_best)
    return best, second, label


@triton.jit
def _nearest_kernel(
    x,
    c,
    half_norm_ptr,
    scale_ptr,
    error_ptr,
    length_ptr,
    unit_ptr,
    limits_ptr,
    label_ptr,
    list_ptr,
    count_ptr,
    N,
    K,
    D: tl.constexpr,
    CERTIFY: tl.constexpr,
    USE_TMA: tl.constexpr,
    FLATTEN: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    # D is the padded width. Rows past N and columns past D come as zeros; centres past K have an
    # infinite norm, so that no tile but the rows' ends needs a mask.
    n0 = tl.program_id(0) * BLOCK_N
    rows = n0 + tl.arange(0, BLOCK_N)
    inside = rows < N
    scale = tl.load(scale_ptr + rows, mask=inside, other=1.0)
    best = tl.full([BLOCK_N], float("inf"), tl.float32)
    second = tl.full([BLOCK_N], float("inf"), tl.float32)
    label = tl.zeros([BLOCK_N], tl.int32)
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
        half_norm = tl.load(half_norm_ptr + k0 + tl.arange(0, BLOCK_K))
        score = half_norm[None, :] * scale[:, None] - product
        best, second, label = _fold(score, k0, best, second, label, BLOCK_K, CERTIFY)
    error = tl.load(error_ptr + rows, mask=inside, other=0.0)
    finite = error == error
    tl.store(label_ptr + rows, tl.where(finite, label, -1), mask=inside)
    if CERTIFY:
        # |score - true score| <= bound; docs/kernels.md derives it.
        length = tl.load(length_ptr + rows, mask=inside, other=0.0)
        reach = tl.load(limits_ptr)
        loss = tl.load(limits_ptr + 1)
        tallest = tl.load(limits_ptr + 2)
        unit = tl.load(unit_ptr)
        bound = error * (reach + loss) + length * loss
        bound += (D * 1.1920929e-07 + 2.4e-07) * (length + error) * (reach + loss)
        bound = 1.01 * (bound * unit + 2.4e-07 * tallest) * scale
        certain = (second - best) > 2.0 * bound
        _append(rows, inside & finite & (certain == 0), list_ptr, count_ptr)


@triton.jit
def _rescore_kernel(
    x_ptr,
    shift_ptr,
    high_ptr,
    low_ptr,
    half_norm_ptr,
    scale_ptr,
    length_ptr,
    unit_ptr,
    limits_ptr,
    label_ptr,
    from_ptr,
    from_count_ptr,
    to_ptr,
    to_count_ptr,
    K,
    D,
    PADDED,
    stride_xn,
    ROOT_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    count = tl.load(from_count_ptr)
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
                tile = k[:, None] * PADDED + d[None, :]
                c_high = tl.load(high_ptr + tile, mask=(d < PADDED)[None, :], other=0.0)
                c_low = tl.load(low_ptr + tile, mask=(d < PADDED)[None, :], other=0.0)
                # A block's products are summed on their own, so that the error of the long sum
                # grows with the number of blocks and not of terms.
                total += tl.dot(x_high, c_high.T)
                cross = tl.dot(x_high, c_low.T, cross)
                cross = tl.dot(x_low, c_high.T, cross)
            half_norm = tl.load(half_norm_ptr + k)
            score = half_norm[None, :] * scale[:, None] - (total + cross * 0.00048828125)
            best, second, label = _fold(score, k0, best, second, label, BLOCK_K, True)
        length = tl.load(length_ptr + rows, mask=inside, other=0.0)
        reach = tl.load(limits_ptr)
        tallest = tl.load(limits_ptr + 2)
        relative = 2.0e-06 + (BLOCK_D + D / BLOCK_D + D * 0.002) * 1.1920929e-07
        bound = (relative * length * reach * unit + 2.4e-07 * tallest) * scale
        bound += 2.9103830e-11 * ROOT_D * (reach * unit + length * scale)
        bound *= 1.01
        certain = (second - best) > 2.0 * bound
        tl.store(label_ptr + rows, label, mask=inside & certain)
        _append(rows.to(tl.int32), inside & (certain == 0), to_ptr, to_count_ptr)


@triton.jit
def _tree_sum(lanes, ROWS: tl.constexpr):
    """Sum 16 lanes a row: i with i + 8, then + 4, + 2, + 1, the core's order (distance.hpp)."""
    lanes = tl.sum(tl.reshape(lanes, [ROWS, 2, 8]), 1)
    lanes = tl.sum(tl.reshape(lanes, [ROWS, 2, 4]), 1)
    lanes = tl.sum(tl.reshape(lanes, [ROWS, 2, 2]), 1)
    return tl.sum(lanes, 1)


@triton.jit
def _settle_kernel(
    x_ptr,
    c_ptr,
    label_ptr,
    list_ptr,
    count_ptr,
    K,
    D,
    stride_xn,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    count = tl.load(count_ptr)
    lane = tl.arange(0, 16)
    for place in tl.range(tl.program_id(0), count, tl.num_programs(0)):
        row = tl.load(list_ptr + place).to(tl.int64)
        x_row = x_ptr + row * stride_xn
        best = tl.full([1], float("inf"), tl.float64)
        label = tl.full([1], 2147483647, tl.int32)
        for k0 in tl.range(0, K, BLOCK_K):
            k = k0 + tl.arange(0, BLOCK_K)
            c_rows = c_ptr + k.to(tl.int64)[:, None] * D
            # In float32 first: most centres are too far for float64 to be needed.
            rough = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
            for d0 in tl.range(0, D, BLOCK_D):
                d = d0 + tl.arange(0, BLOCK_D)
                x = tl.load(x_row + d, mask=d < D, other=0.0)
                c = tl.load(
                    c_rows + d[None, :], mask=(k < K)[:, None] & (d < D)[None, :], other=0.0
                )
                difference = (x[None, :] - c).to(tl.float32)
                rough += difference * difference
            rough_distance = tl.sum(rough, 1)
            slack = 1.0 + 4.0 * (D + 16) * 5.9604645e-08
            near = (rough_distance <= best.to(tl.float32) * slack) | (rough_distance > 1.0e37)
            near = near | (rough_distance < 1.0e-30)
            if tl.sum((near & (k < K)).to(tl.int32), 0) > 0:
                lanes = tl.zeros([BLOCK_K, 16], tl.float64)
                for d0 in tl.range(0, D, 16):
                    d = d0 + lane
                    x = tl.load(x_row + d, mask=d < D, other=0.0).to(tl.float64)
                    c = tl.load(
                        c_rows + d[None, :], mask=(k < K)[:, None] & (d < D)[None, :], other=0.0
                    ).to(tl.float64)
                    difference = x[None, :] - c
                    lanes += difference * difference
                distance = tl.where(k < K, _tree_sum(lanes, BLOCK_K), float("inf"))
                block_best = tl.min(distance, 0)
                block_label = tl.min(tl.where(distance == block_best, k, 2147483647), 0)
                label = tl.where(block_best < best, block_label, label)
                best = tl.minimum(best, block_best)
        tl.store(label_ptr + row + tl.zeros([1], tl.int32), label)


@triton.jit
def _distance_kernel(
    x_ptr,
    c_ptr,
    label_ptr,
    out_ptr,
    N,
    D,
    stride_xn,
    BLOCK_N: tl.constexpr,
):
    rows = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    inside = rows < N
    label = tl.load(label_ptr + rows, mask=inside, other=-1).to(tl.int64)
    known = label >= 0
    lane = tl.arange(0, 16)
    lanes = tl.zeros([BLOCK_N, 16], tl.float64)
    for d0 in tl.range(0, D, 16, num_stages=4):
        d = d0 + lane
        mask = known[:, None] & (d < D)[None, :]
        x = tl.load(x_ptr + rows[:, None] * stride_xn + d[None, :], mask=mask, other=0.0)
        c = tl.load(c_ptr + label[:, None] * D + d[None, :], mask=mask, other=0.0)
        difference = x.to(tl.float64) - c.to(tl.float64)
        lanes += difference * difference
    distance = tl.where(known, _tree_sum(lanes, BLOCK_N), float("nan"))
    tl.store(out_ptr + rows, distance, mask=inside)


@triton.jit
def _tf32_kernel(
    x_ptr,
    shift_ptr,
    c_ptr,
    half_norm_ptr,
    error_ptr,
    label_ptr,
    N,
    K,
    D,
    stride_xn,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    rows = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    inside = rows < N
    best = tl.full([BLOCK_N], float("inf"), tl.float32)
    second = best
    label = tl.zeros([BLOCK_N], tl.int32)
    for k0 in tl.range(0, K, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        product = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
        for d0 in tl.range(0, D, BLOCK_D):
            d = d0 + tl.arange(0, BLOCK_D)
            mask = inside[:, None] & (d < D)[None, :]
            x = tl.load(x_ptr + rows[:, None] * stride_xn + d[None, :], mask=mask, other=0.0)
            shift = tl.load(shift_ptr + d, mask=d < D, other=0.0)
            y = tl.where(mask, (x - shift[None, :]).to(tl.float32), 0.0)
            c = tl.load(
                c_ptr + k.to(tl.int64)[:, None] * D + d[None, :],
                mask=(k < K)[:, None] & (d < D)[None, :],
                other=0.0,
            )
            product = tl.dot(y, c.T, product, input_precision="tf32")
        half_norm = tl.load(half_norm_ptr + k, mask=k < K, other=float("inf"))
        score = half_norm[None, :] - product
        best, second, label = _fold(score, k0, best, second, label, BLOCK_K, False)
    error = tl.load(error_ptr + rows, mask=inside, other=0.0)
    tl.store(label_ptr + rows, tl.where(error == error, label, -1), mask=inside)


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
RESCORE_LAUNCH = Launch({"BLOCK_N": 64, "BLOCK_K": 64, "BLOCK_D": 64}, num_warps=4, num_stages=2)
TF32_LAUNCH = Launch({"BLOCK_N": 128, "BLOCK_K": 128, "BLOCK_D": 32}, num_warps=8, num_stages=3)


def nearest_launch(device: torch.device, k: int, padded: int) -> Launch:
    """Return the tiles for a device and a shape."""
    if not has_tma(device) or k <= 64 or padded <= 32 or device.type == "cpu":
        return _SMALL
    return NEAREST_LAUNCHES[0]


@dataclass(frozen=True)
class Scratch:
    """Lists of rows to look at again, and their lengths, kept between calls."""

    first: Tensor
    second: Tensor
    counts: Tensor

    @classmethod
    def of(cls, n: int, device: torch.device) -> Scratch:
        """Make room for n rows."""
        first, second = torch.empty(2, max(1, n), dtype=torch.int32, device=device)
        return cls(first, second, torch.zeros(2, dtype=torch.int32, device=device))


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

    After an "exact" pass ``scratch.counts`` holds how many rows were looked at again, and again.
    """
    n, k, padded = len(rows.x), len(centers.c), rows.half.shape[1]
    if n == 0:
        return
    device = rows.x.device
    with torch.cuda.device_of(rows.x):
        if precision == "tf32":
            _launch_tf32(rows, centers, labels)
            return
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
            rows.scale,
            rows.error,
            rows.length,
            centers.unit,
            centers.limits,
            labels,
            scratch.first,
            scratch.counts,
            n,
            k,
            D=padded,
            CERTIFY=precision == "exact",
            USE_TMA=tma,
            **launch.options(),
        )
        if precision == "exact":
            _launch_recheck(rows, centers, labels, scratch)


def _launch_recheck(rows: Rows, centers: Centers, labels: Tensor, scratch: Scratch) -> None:
    (_, d), k = rows.x.shape, len(centers.c)
    programs = multiprocessors(rows.x.device)
    _rescore_kernel[(2 * programs,)](
        rows.x,
        centers.shift,
        centers.high,
        centers.low,
        centers.half_norm,
        rows.scale,
        rows.length,
        centers.unit,
        centers.limits,
        labels,
        scratch.first,
        scratch.counts,
        scratch.second,
        scratch.counts[1:],
        k,
        d,
        rows.half.shape[1],
        rows.x.stride(0),
        ROOT_D=d**0.5,
        **RESCORE_LAUNCH.options(),
    )
    _settle_kernel[(4 * programs,)](
        rows.x,
        centers.c,
        labels,
        scratch.second,
        scratch.counts[1:],
        k,
        d,
        rows.x.stride(0),
        BLOCK_K=32,
        BLOCK_D=64,
        num_warps=4,
        # A fused multiply-add rounds once where the definition rounds twice.
        enable_fp_fusion=False,
    )


def _launch_tf32(rows: Rows, centers: Centers, labels: Tensor) -> None:
    (n, d), k = rows.x.shape, len(centers.c)
    shifted = ((centers.c.double() - centers.shift.double()) * centers.unit).float()
    _tf32_kernel[(triton.cdiv(n, TF32_LAUNCH.blocks["BLOCK_N"]),)](
        rows.x,
        centers.shift,
        shifted,
        centers.half_norm,
        rows.error,
        labels,
        n,
        k,
        d,
        rows.x.stride(0),
        **TF32_LAUNCH.options(),
    )


def distances(x: Tensor, centers: Tensor, labels: Tensor) -> Tensor:
    """Squared distance of each row to the centre of its label, (N,) float64; NaN for label -1.

    Differences, squares and sums are each rounded to float64, in the core's fixed order.
    """
    out = x.new_empty(len(x), dtype=torch.float64)
    if len(x):
        with torch.cuda.device_of(x):
            _distance_kernel[(triton.cdiv(len(x), 32),)](
                x,
                centers.contiguous(),
                labels,
                out,
                len(x),
                x.shape[1],
                x.stride(0),
                BLOCK_N=32,
                num_warps=4,
                enable_fp_fusion=False,
            )
    return out


def shift_of(centers: Tensor) -> Tensor:
    """Return the mean centre, rounded to float32: near the data's mean, and cheap."""
    return centers.double().mean(0).float()


def assign(x: Tensor, centers: Tensor, *, precision: str) -> tuple[Tensor, Tensor]:
    """Label every row of x (N, D) with its nearest centre of (K, D).

    Returns
    -------
    labels : (N,) int32
    distances : (N,) float64

    Raises
    ------
    ValueError
        A row of x is not finite; the first is named.
    """
    if x.stride(-1) != 1:
        x = x.contiguous()
    prepared = prepare_centers(centers, shift_of(centers))
    bad = torch.full((), NONE_BAD, dtype=torch.int64, device=x.device)
    rows = prepare_rows(x, prepared, bad)
    labels = torch.empty(len(x), dtype=torch.int32, device=x.device)
    nearest(rows, prepared, labels, Scratch.of(len(x), x.device), precision=precision)
    out = distances(x, prepared.c, labels)
    raise_if_bad(bad)
    return labels, out


def raise_if_bad(bad: Tensor) -> None:
    """Raise ValueError if a row was found that is not finite."""
    row = int(bad)
    if row != NONE_BAD:
        raise ValueError(f"x: row {row} has a NaN or an infinity")
