"""Float64 distances from differences, in the C++ core's order of operations: what labels rest on.

    |x - c|^2 = sum_d (x_d - c_d)^2        16 sums, d modulo 16, then i with i + 8, + 4, + 2, + 1

Differences, squares and sums are each rounded to float64; no fused multiply-add, which rounds once
where this rounds twice.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import append, programs

_LAUNCH: dict[str, Any] = {"num_warps": 4, "enable_fp_fusion": False}


@triton.jit
def _tree_sum(lanes, ROWS: tl.constexpr):
    """Sum 16 lanes a row: i with i + 8, then + 4, + 2, + 1, the core's order (distance.hpp)."""
    lanes = tl.sum(tl.reshape(lanes, [ROWS, 2, 8]), 1)
    lanes = tl.sum(tl.reshape(lanes, [ROWS, 2, 4]), 1)
    lanes = tl.sum(tl.reshape(lanes, [ROWS, 2, 2]), 1)
    return tl.sum(lanes, 1)


@triton.jit
def _choose_kernel(
    x_ptr,
    c_ptr,
    label_ptr,
    list_ptr,
    number_ptr,
    candidate_ptr,
    rest_ptr,
    count_ptr,
    D,
    stride_xn,
    stride_list,
    stride_candidate,
    COUNTED: tl.constexpr,
    SLOTS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    # Every row has SLOTS candidates, or as many as were counted (the list's length is then the high
    # half of the first count).
    both = tl.load(count_ptr)
    count = ((both >> 32) if COUNTED else (both & 4294967295)).to(tl.int32)
    lane = tl.arange(0, 16)
    for block in tl.range(tl.program_id(0), tl.cdiv(count, BLOCK_N), tl.num_programs(0)):
        place = (block * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
        inside = place < count
        rows = tl.load(list_ptr + place * stride_list, mask=inside, other=0).to(tl.int64)
        number = tl.full([BLOCK_N], SLOTS, tl.int32)
        if COUNTED:
            number = tl.load(number_ptr + place, mask=inside, other=0)
        slots = tl.arange(0, SLOTS)
        used = inside[:, None] & (slots[None, :] < number[:, None])
        k = tl.load(
            candidate_ptr + place[:, None] * stride_candidate + slots[None, :], mask=used, other=0
        )
        x_rows = x_ptr + (rows * stride_xn)[:, None, None]
        c_rows = c_ptr + (k.to(tl.int64) * D)[:, :, None]
        lanes = tl.zeros([BLOCK_N, SLOTS, 16], tl.float64)
        for d0 in tl.range(0, D, 16):
            d = d0 + lane
            mask = used[:, :, None] & (d < D)[None, None, :]
            x_mask = inside[:, None, None] & (d < D)[None, None, :]
            x = tl.load(x_rows + d[None, None, :], mask=x_mask, other=0.0).to(tl.float64)
            c = tl.load(c_rows + d[None, None, :], mask=mask, other=0.0).to(tl.float64)
            difference = x - c
            lanes += difference * difference
        distance = _tree_sum(tl.reshape(lanes, [BLOCK_N * SLOTS, 16]), BLOCK_N * SLOTS)
        distance = tl.where(used, tl.reshape(distance, [BLOCK_N, SLOTS]), float("inf"))
        best = tl.min(distance, 1)
        tied = used & (distance == best[:, None])
        label = tl.min(tl.where(tied, k, 2147483647), 1)
        fits = number <= SLOTS
        tl.store(label_ptr + rows, label, mask=inside & fits)
        if COUNTED:
            append(rows.to(tl.int32), inside & (fits == 0), rest_ptr, count_ptr + 1)


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
    count = tl.load(count_ptr + 2).to(tl.int32)
    lane = tl.arange(0, 16)
    for place in tl.range(tl.program_id(0), count, tl.num_programs(0)):
        row = tl.load(list_ptr + place).to(tl.int64)
        x_row = x_ptr + row * stride_xn
        best = tl.full([1], float("inf"), tl.float64)
        label = tl.zeros([1], tl.int32)
        for k0 in tl.range(0, K, BLOCK_K):
            k = k0 + tl.arange(0, BLOCK_K)
            c_rows = c_ptr + k.to(tl.int64)[:, None] * D
            # In float32 first: most centers are too far for float64 to be needed.
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


# ---- launches ------------------------------------------------------------------------------------


def choose(
    x: Tensor,
    centers: Tensor,
    labels: Tensor,
    table: Tensor,
    candidates: Tensor,
    numbers: Tensor,
    rest: Tensor,
    counts: Tensor,
    *,
    counted: bool,
) -> None:
    """Label listed rows by the nearest of their candidates; those with too many go to `rest`.

    table: (N, any) int32, the rows; candidates: (N, slots) int32; numbers: (N,) int32, how many of
    them count if `counted`; counts: see `certify.Scratch`.
    """
    slots = candidates.shape[1]
    _choose_kernel[(programs(x.device, 8),)](
        x,
        centers,
        labels,
        table,
        numbers,
        candidates,
        rest,
        counts,
        x.shape[1],
        x.stride(0),
        table.stride(0),
        candidates.stride(0),
        COUNTED=counted,
        SLOTS=slots,
        BLOCK_N=32 // slots,
        **_LAUNCH,
    )


def settle(x: Tensor, centers: Tensor, labels: Tensor, rows: Tensor, counts: Tensor) -> None:
    """Label listed rows by the nearest of all centers; counts[2]: how many rows there are."""
    _settle_kernel[(programs(x.device, 4),)](
        x,
        centers,
        labels,
        rows,
        counts,
        len(centers),
        x.shape[1],
        x.stride(0),
        BLOCK_K=32,
        BLOCK_D=64,
        **_LAUNCH,
    )


def distances(x: Tensor, centers: Tensor, labels: Tensor) -> Tensor:
    """Squared distance of each row to the center of its label, (N,) float64; NaN for label -1.

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
                **_LAUNCH,
            )
    return out
