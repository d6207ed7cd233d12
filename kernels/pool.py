"""Hidden states -> one vector a sequence: mean, weighted mean, last token, first token.

    mean:          v = sum_i x_i / L            over the L tokens whose mask is set
    weighted_mean: v = sum_i i x_i / sum_i i    i = 1 .. L, the rank among those tokens
    last_token:    v = x_L
    cls:           v = x_1
    then v / |v|, if asked for; no token gives zeros

One program a sequence (or, when there are fewer than multiprocessors, one a CHUNK of its tokens)
holds a BLOCK_T x BLOCK_H tile of float32 sums. Chunks are counted from the sequence's first token
and added in order, by one program or by many: the bits depend on nothing but the sequence's own
tokens.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import Launch, multiprocessors, next_power_of_2

MAX_HIDDEN = 32768
CHUNK = 256
_MASK_BLOCK = 8192
# Bytes of a tile, and how many are under way. The first is what is launched; `make bench-gpu` times
# them all and prints the order.
LAUNCHES: tuple[Launch, ...] = (
    Launch({"TILE_BYTES": 16384, "STAGES": 4}, num_warps=4),
    Launch({"TILE_BYTES": 16384, "STAGES": 6}, num_warps=4),
    Launch({"TILE_BYTES": 16384, "STAGES": 4}, num_warps=8),
    Launch({"TILE_BYTES": 32768, "STAGES": 3}, num_warps=8),
    Launch({"TILE_BYTES": 8192, "STAGES": 6}, num_warps=4),
)
_MODES = ("mean", "weighted_mean", "last_token", "cls")


@triton.jit
def _span(mask_ptr, b, T, stride_mb, LONG: tl.constexpr, BLOCK_M: tl.constexpr):
    """First token, one past the last, and number of the tokens of sequence b that count."""
    t = tl.arange(0, BLOCK_M)
    kept = tl.load(mask_ptr + b * stride_mb + t, mask=t < T, other=0) != 0
    lowest = tl.where(kept, t, 2147483647)
    highest = tl.where(kept, t, -1)
    count = kept.to(tl.int32)
    # Only where it must, because behind a loop with a state the compiler (3.6, 3.9) forgets that
    # rows are aligned and loads them word by word.
    if LONG:
        for t0 in tl.range(BLOCK_M, T, BLOCK_M):
            t = t0 + tl.arange(0, BLOCK_M)
            kept = tl.load(mask_ptr + b * stride_mb + t, mask=t < T, other=0) != 0
            lowest = tl.minimum(lowest, tl.where(kept, t, 2147483647))
            highest = tl.maximum(highest, tl.where(kept, t, -1))
            count += kept.to(tl.int32)
    length = tl.sum(count, 0).to(tl.int64)
    first = tl.min(lowest, 0).to(tl.int64)
    end = tl.max(highest, 0).to(tl.int64) + 1
    first = tl.where(length > 0, first, end)
    return first, end, length


@triton.jit
def _finish(
    total,
    length,
    out_ptr,
    b,
    H,
    WEIGHTED: tl.constexpr,
    NORMALIZE: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """Divide, normalize, store."""
    divisor = length.to(tl.float32)
    if WEIGHTED:
        divisor = (length * (length + 1) // 2).to(tl.float32)
    vector = total / tl.maximum(divisor, 1.0)
    if NORMALIZE:
        norm = tl.sqrt(tl.sum(vector * vector, 0))
        vector = vector / tl.where(norm == 0.0, 1.0, norm)
    h = tl.arange(0, BLOCK_H)
    tl.store(out_ptr + b * H + h, vector, mask=h < H)


@triton.jit
def _mean_kernel(
    x_ptr,
    mask_ptr,
    out_ptr,
    partial_ptr,
    T,
    H,
    stride_xb,
    stride_xt,
    stride_mb,
    LONG: tl.constexpr,
    WEIGHTED: tl.constexpr,
    NORMALIZE: tl.constexpr,
    SPLIT: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_M: tl.constexpr,
    STAGES: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    first, end, length = _span(mask_ptr, b, T, stride_mb, LONG, BLOCK_M)
    start = first
    stop = end
    if SPLIT:
        chunk = tl.program_id(1).to(tl.int64)
        row = b * tl.num_programs(1) + chunk
        start = first + chunk * CHUNK
        stop = tl.minimum(start + CHUNK, end)
    x_ptr += b * stride_xb
    h = tl.arange(0, BLOCK_H)
    offsets = tl.arange(0, BLOCK_T)
    in_row = (h < H)[None, :]
    total = tl.zeros([BLOCK_H], tl.float32)
    # One of the two loops is empty: the first is for tokens without gaps, the second looks at the
    # mask.
    whole = length == end - first
    for chunk in tl.range(start, tl.where(whole, stop, start), CHUNK):
        sums = tl.zeros([BLOCK_T, BLOCK_H], tl.float32)
        chunk_end = tl.minimum(chunk + CHUNK, stop)
        for t0 in tl.range(chunk, chunk_end, BLOCK_T, num_stages=STAGES):
            t = t0 + offsets
            tile = tl.load(
                x_ptr + t[:, None] * stride_xt + h[None, :],
                mask=(t < chunk_end)[:, None] & in_row,
                other=0.0,
            ).to(tl.float32)
            if WEIGHTED:
                tile = tile * (t - first + 1).to(tl.float32)[:, None]
            sums += tile
        total += tl.sum(sums, 0)
    gap_start = tl.where(whole, stop, start)
    rank = tl.zeros([], tl.int64)
    if WEIGHTED:
        for t0 in tl.range(tl.where(whole, start, first), start, BLOCK_T):
            t = t0 + offsets
            kept = tl.load(mask_ptr + b * stride_mb + t, mask=t < start, other=0) != 0
            rank += tl.sum(kept.to(tl.int32), 0).to(tl.int64)
    for chunk in tl.range(gap_start, stop, CHUNK):
        sums = tl.zeros([BLOCK_T, BLOCK_H], tl.float32)
        chunk_end = tl.minimum(chunk + CHUNK, stop)
        for t0 in tl.range(chunk, chunk_end, BLOCK_T):
            t = t0 + offsets
            kept = tl.load(mask_ptr + b * stride_mb + t, mask=t < chunk_end, other=0) != 0
            tile = tl.load(
                x_ptr + t[:, None] * stride_xt + h[None, :],
                mask=kept[:, None] & in_row,
                other=0.0,
            ).to(tl.float32)
            if WEIGHTED:
                ranks = rank + tl.cumsum(kept.to(tl.int32), 0)
                tile = tile * ranks.to(tl.float32)[:, None]
                rank += tl.sum(kept.to(tl.int32), 0).to(tl.int64)
            sums += tile
        total += tl.sum(sums, 0)
    if SPLIT:
        tl.store(partial_ptr + row * H + h, total, mask=h < tl.where(start < stop, H, 0))
    else:
        _finish(total, length, out_ptr, b, H, WEIGHTED, NORMALIZE, BLOCK_H)


@triton.jit
def _merge_kernel(
    mask_ptr,
    out_ptr,
    partial_ptr,
    T,
    H,
    chunks,
    stride_mb,
    LONG: tl.constexpr,
    WEIGHTED: tl.constexpr,
    NORMALIZE: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    first, end, length = _span(mask_ptr, b, T, stride_mb, LONG, BLOCK_M)
    h = tl.arange(0, BLOCK_H)
    total = tl.zeros([BLOCK_H], tl.float32)
    row = b * chunks
    for chunk in tl.range(0, tl.cdiv(end - first, CHUNK)):
        total += tl.load(partial_ptr + (row + chunk) * H + h, mask=h < H, other=0.0)
    _finish(total, length, out_ptr, b, H, WEIGHTED, NORMALIZE, BLOCK_H)


@triton.jit
def _pick_kernel(
    x_ptr,
    mask_ptr,
    out_ptr,
    T,
    H,
    stride_xb,
    stride_xt,
    stride_mb,
    LONG: tl.constexpr,
    LAST: tl.constexpr,
    NORMALIZE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    first, end, length = _span(mask_ptr, b, T, stride_mb, LONG, BLOCK_M)
    t = first
    if LAST:
        t = end - 1
    h = tl.arange(0, BLOCK_H)
    width = tl.where(length > 0, H, 0)
    row = tl.load(x_ptr + b * stride_xb + t * stride_xt + h, mask=h < width, other=0.0)
    one = tl.full([], 1, tl.int64)
    _finish(row.to(tl.float32), one, out_ptr, b, H, False, NORMALIZE, BLOCK_H)


def pool(
    hidden: Tensor,
    attention_mask: Tensor,
    *,
    mode: str,
    normalize: bool,
    launch: Launch = LAUNCHES[0],
) -> Tensor:
    """Pool padded states (B, T, H) under a mask (B, T) into (B, H) float32."""
    if attention_mask.dtype == torch.bool:
        attention_mask = attention_mask.view(torch.uint8)
    if attention_mask.stride(-1) != 1:
        attention_mask = attention_mask.contiguous()
    if mode not in _MODES:
        raise ValueError(f"mode={mode!r} is none of {', '.join(_MODES)}")
    if hidden.stride(-1) != 1:
        hidden = hidden.contiguous()
    b, t, h = hidden.shape
    out = hidden.new_empty(b, h, dtype=torch.float32)
    if b == 0 or h == 0 or t == 0:
        return out.zero_()
    block_h = next_power_of_2(h)
    shared = {
        "LONG": t > _MASK_BLOCK,
        "NORMALIZE": normalize,
        "BLOCK_H": block_h,
        "BLOCK_M": min(_MASK_BLOCK, max(16, next_power_of_2(t))),
        "enable_fp_fusion": True,
    }
    strides = (hidden.stride(0), hidden.stride(1), attention_mask.stride(0))
    with torch.cuda.device_of(hidden):
        if mode in ("last_token", "cls"):
            last = mode == "last_token"
            _pick_kernel[(b,)](
                hidden, attention_mask, out, t, h, *strides, LAST=last, **shared, num_warps=4
            )
            return out
        weighted = mode == "weighted_mean"
        row_bytes = block_h * hidden.element_size()
        block_t = max(1, min(32, launch.blocks["TILE_BYTES"] // row_bytes))
        chunks = triton.cdiv(t, CHUNK)
        # With a program for every multiprocessor, enough loads are under way.
        split = chunks > 1 and b < multiprocessors(hidden.device)
        partial = out.new_empty(b * chunks, h) if split else out
        _mean_kernel[(b, chunks if split else 1)](
            hidden,
            attention_mask,
            out,
            partial,
            t,
            h,
            *strides,
            WEIGHTED=weighted,
            SPLIT=split,
            CHUNK=CHUNK,
            BLOCK_T=block_t,
            STAGES=launch.blocks["STAGES"],
            num_warps=launch.num_warps if block_h <= 2048 else 8,
            **shared,
        )
        if split:
            _merge_kernel[(b,)](
                attention_mask,
                out,
                partial,
                t,
                h,
                chunks,
                strides[2],
                WEIGHTED=weighted,
                CHUNK=CHUNK,
                num_warps=4,
                **shared,
            )
    return out
