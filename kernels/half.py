"""Rows and centers in half precision about a shift, with what the rounding lost measured.

`prepare_rows` writes (x - m) s_i in float16, s_i a power of two by row, and how much that lost;
`prepare_centers` writes (c - m) t, t one power of two, as a high and a low part. Formulas and the
bound that rests on them are in docs/kernels.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import next_power_of_2, power_of_2

# Centers are padded to a multiple of this with ones that no row is near.
CENTER_PADDING = 256
# Scores, in units of 1 / t, stay below a tenth of this or their row is not certified by them.
FAR_AWAY = 3.0e38


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
        # NaN and infinity alone: a float64 that is too large for float32 is neither.
        wide = x if x_ptr.dtype.element_ty == tl.float64 else x.to(tl.float32)
        strange |= ((wide - wide) != 0.0).to(tl.int32)
        shift = tl.load(shift_ptr + d, mask=d < D, other=0.0)
        y = tl.where(mask, (x - shift[None, :]).to(tl.float32), 0.0)
        largest = tl.maximum(largest, tl.abs(y))
    bad = tl.max(strange, 1) > 0
    # The largest value of a row becomes 2^13 to 2^14, far from what float16 cannot hold; a row that
    # lies almost on the shift is not blown up beyond what the centers' products leave room for.
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
    error = tl.where(error == error, error, float("inf"))
    tl.store(scale_ptr + rows, scale, mask=inside)
    tl.store(length_ptr + rows, length, mask=inside)
    tl.store(error_ptr + rows, tl.where(bad, float("nan"), error), mask=inside)
    first_bad = tl.min(tl.where(bad & inside, rows + first_row, 9223372036854775807), 0)
    if tl.sum((bad & inside).to(tl.int32), 0) > 0:
        tl.atomic_min(bad_ptr, first_bad, sem="relaxed")


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
    FAR: tl.constexpr,
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
    half_norm = (-0.5 * norm * unit.to(tl.float64)).to(tl.float32)
    tl.store(half_norm_ptr + k, tl.where(k < K, tl.maximum(half_norm, -FAR), -FAR))
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
        Power of two of the row; |x - shift - half / scale|, NaN for a row that is not finite,
        infinity for one that float32 cannot hold; |x - shift|.
    """

    x: Tensor
    half: Tensor
    scale: Tensor
    error: Tensor
    length: Tensor


@dataclass(frozen=True)
class Centers:
    """Centers on one device, as they are and in half precision.

    Attributes
    ----------
    c : (K, D)
        As given.
    shift : (D,) float32
        What is subtracted from rows and centers.
    unit : () float32
        A power of two.
    high, low : (padded K, padded D) float16
        (c - shift) unit is about high + low / 2048.
    half_norm : (padded K,) float32
        -|c - shift|^2 / 2 unit; -FAR_AWAY for padding.
    reach : (padded K,) float32
        r_j: at least |c - shift|, and such that `high` lost at most limits[1] r_j (unscaled).
    limits : (3,) float32
        Largest r_j; rho, the share of it that rounding `high` lost; largest half norm.
    """

    c: Tensor
    shift: Tensor
    unit: Tensor
    high: Tensor
    low: Tensor
    half_norm: Tensor
    reach: Tensor
    limits: Tensor


def _padded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def unit_of(centers: Tensor, shift: Tensor) -> Tensor:
    """Return the power of two that brings the centers' largest value to 2^12 .. 2^13."""
    largest = (centers.double() - shift.double()).abs().amax().clamp(1e-30, 1e30).float()
    return power_of_2(13 - torch.frexp(largest).exponent, torch.float32)


def prepare_centers(centers: Tensor, shift: Tensor) -> Centers:
    """Round centers (K, D) about `shift` (D,) to half precision; no host synchronisation."""
    k, d = centers.shape
    padded_k, padded_d = _padded(k, CENTER_PADDING), _padded(d, 8)
    centers = centers.contiguous()
    unit = unit_of(centers, shift)
    high = centers.new_empty(padded_k, padded_d, dtype=torch.float16)
    low = torch.empty_like(high)
    half_norm, length, error = (centers.new_empty(padded_k, dtype=torch.float32) for _ in range(3))
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
            FAR_AWAY,
            k,
            d,
            padded_d,
            BLOCK_K=8,
            BLOCK_D=min(128, next_power_of_2(padded_d)),
            enable_fp_fusion=True,
        )
    # A center that lies almost on the shift loses a larger share than others; what it lost counts
    # instead of its length, or all bounds would be as loose as its own.
    counted = length > length.amax() * 2.0**-10
    rho = torch.where(counted, error / length.clamp(min=1e-37), 0.0).amax().clamp(min=2.0**-20)
    reach = torch.maximum(length, error / rho * 1.000001)
    most = reach.amax()
    tallest = (0.5 * most.double().square() * unit).float()
    limits = torch.stack([most, rho, tallest])
    return Centers(centers, shift, unit, high, low, half_norm, reach, limits)


def prepare_rows(x: Tensor, centers: Centers, bad: Tensor, first_row: int = 0) -> Rows:
    """Round rows (N, D) about the centers' shift to half precision.

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
                enable_fp_fusion=True,
            )
    return Rows(x, half, scale, error, length)


def shift_of(centers: Tensor) -> Tensor:
    """Return the mean center, rounded to float32: near the data's mean, and cheap."""
    return centers.double().mean(0).clamp(-3e38, 3e38).float()
