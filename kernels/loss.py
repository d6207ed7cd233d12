"""Hidden states x output matrix -> loss by token and by example; no logits in memory.

    z_tv  = x_t . w_v + b_v,   then  c tanh(z_tv / c)
    nll_t = log sum_v exp z_tv - z_t,target(t)

`token_nll` cuts the vocabulary into parts of PART columns, one program a block of tokens and a
part, each with a running maximum and sum in base 2 and, where the target falls into the part, its
logit from the float32 accumulator. `_merge_kernel` folds the parts in order. Parts do not depend on
how many tokens there are, and a row of a matrix product not on its neighbors, so a token's bits
depend on the token alone. Then one program an example adds up its tokens in order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .common import Launch, dot, has_tma, tiles

PART = 2048
# Blocks of tokens whose programs run at the same time as those of all parts.
GROUP = 32


@triton.jit
def _logits(product, bias, softcap, HAS_BIAS: tl.constexpr, HAS_SOFTCAP: tl.constexpr):
    """Logits of a tile."""
    z = product
    if HAS_BIAS:
        z = z + bias[None, :]
    if HAS_SOFTCAP:
        # tanh y = 1 - 2 / (1 + exp 2y), which saturates as it should
        z = softcap * (1.0 - 2.0 / (1.0 + tl.exp2(z * (2.0 * 1.4426950408889634 / softcap))))
    return z


@triton.jit
def _fold(z, top, total):
    """Take a tile of logits into each row's maximum (of logits in base 2) and sum of powers."""
    # The maximum is found before the scaling, which is then part of the subtraction: one fma.
    new_top = tl.maximum(top, tl.max(z, 1) * 1.4426950408889634)
    powers = tl.exp2(z * 1.4426950408889634 - new_top[:, None])
    return new_top, total * tl.exp2(top - new_top) + tl.sum(powers, 1)


@triton.jit
def _part_kernel(
    x,
    w,
    target_ptr,
    bias_ptr,
    top_ptr,
    total_ptr,
    logit_ptr,
    T,
    V,
    H,
    softcap,
    stride_xt,
    stride_wv,
    GROUP: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    USE_TMA: tl.constexpr,
    FLATTEN: tl.constexpr,
    PART: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    # Programs that run at the same time are GROUP blocks of tokens by all parts of the matrix: what
    # they read together stays in the L2 cache.
    pid = tl.program_id(0)
    parts = tl.cdiv(V, PART)
    group = pid // (GROUP * parts)
    group_blocks = tl.minimum(tl.cdiv(T, BLOCK_T) - group * GROUP, GROUP)
    place = pid - group * GROUP * parts
    t0 = (group * GROUP + place % group_blocks) * BLOCK_T
    part = place // group_blocks
    rows = t0 + tl.arange(0, BLOCK_T)
    inside = rows < T
    first = part * PART
    # Counted from the part's first column, a target fits 32 bits, and so does the comparison.
    target = (tl.load(target_ptr + rows, mask=inside, other=-1) - first).to(tl.int32)
    top = tl.full([BLOCK_T], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_T], tl.float32)
    logit = tl.zeros([BLOCK_T], tl.float32)
    for v0 in tl.range(first, tl.minimum(first + PART, V), BLOCK_V, flatten=FLATTEN):
        product = tl.zeros([BLOCK_T, BLOCK_V], tl.float32)
        for h0 in tl.range(0, H, BLOCK_H):
            if USE_TMA:
                x_tile = x.load([t0, h0])
                w_tile = w.load([v0, h0])
            else:
                h = h0 + tl.arange(0, BLOCK_H)
                v = v0 + tl.arange(0, BLOCK_V)
                x_tile = tl.load(
                    x + rows.to(tl.int64)[:, None] * stride_xt + h[None, :],
                    mask=inside[:, None] & (h < H)[None, :],
                    other=0.0,
                )
                w_tile = tl.load(
                    w + v.to(tl.int64)[:, None] * stride_wv + h[None, :],
                    mask=(v < V)[:, None] & (h < H)[None, :],
                    other=0.0,
                )
            product = dot(x_tile, w_tile.T, product)
        columns = v0 + tl.arange(0, BLOCK_V)
        bias = tl.zeros([BLOCK_V], tl.float32)
        if HAS_BIAS:
            bias = tl.load(bias_ptr + columns, mask=columns < V, other=0.0).to(tl.float32)
        z = _logits(product, bias, softcap, HAS_BIAS, HAS_SOFTCAP)
        here = (v0 - first + tl.arange(0, BLOCK_V))[None, :] == target[:, None]
        logit += tl.sum(tl.where(here, z, 0.0), 1)
        if v0 + BLOCK_V > V:
            z = tl.where((columns < V)[None, :], z, float("-inf"))
        top, total = _fold(z, top, total)
    place = part.to(tl.int64) * T + rows
    tl.store(top_ptr + place, top, mask=inside)
    tl.store(total_ptr + place, total, mask=inside)
    tl.store(logit_ptr + place, logit, mask=inside)


@triton.jit
def _merge_kernel(
    top_ptr, total_ptr, logit_ptr, kept_ptr, nll_ptr, T, parts, BLOCK_T: tl.constexpr
):
    rows = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    inside = rows < T
    top = tl.full([BLOCK_T], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_T], tl.float32)
    logit = tl.zeros([BLOCK_T], tl.float32)
    for part in tl.range(0, parts):
        place = part * T + rows
        part_top = tl.load(top_ptr + place, mask=inside, other=0.0)
        part_total = tl.load(total_ptr + place, mask=inside, other=1.0)
        logit += tl.load(logit_ptr + place, mask=inside, other=0.0)
        new_top = tl.maximum(top, part_top)
        total = total * tl.exp2(top - new_top) + part_total * tl.exp2(part_top - new_top)
        top = new_top
    nll = (top + tl.log2(total)) * 0.6931471805599453 - logit
    token = tl.load(kept_ptr + rows, mask=inside, other=0)
    tl.store(nll_ptr + token, nll, mask=inside)


@triton.jit
def _example_kernel(
    nll_ptr, target_ptr, bounds_ptr, mean_ptr, count_ptr, ignore_index, BLOCK_T: tl.constexpr
):
    b = tl.program_id(0)
    start = tl.load(bounds_ptr + b).to(tl.int64)
    end = tl.load(bounds_ptr + b + 1).to(tl.int64)
    total = tl.zeros([BLOCK_T], tl.float64)
    count = tl.zeros([BLOCK_T], tl.int64)
    for t0 in tl.range(start, end, BLOCK_T):
        t = t0 + tl.arange(0, BLOCK_T)
        target = tl.load(target_ptr + t, mask=t < end, other=ignore_index)
        kept = target != ignore_index
        total += tl.load(nll_ptr + t, mask=kept, other=0.0).to(tl.float64)
        count += kept.to(tl.int64)
    number = tl.sum(count, 0)
    mean = tl.sum(total, 0) / tl.maximum(number, 1).to(tl.float64)
    tl.store(mean_ptr + b, mean)
    tl.store(count_ptr + b, number)


# ---- launches ------------------------------------------------------------------------------------

# The first is what is launched; `make bench-gpu` times them all and prints the order.
LAUNCHES: tuple[Launch, ...] = (
    Launch(tiles(T=128, V=256, H=64, flatten=False), num_warps=8, num_stages=3),
    Launch(tiles(T=128, V=256, H=64, flatten=False), num_warps=8, num_stages=4),
    Launch(tiles(T=128, V=256, H=64, flatten=True), num_warps=8, num_stages=3),
    Launch(tiles(T=256, V=128, H=64, flatten=False), num_warps=8, num_stages=3),
    Launch(tiles(T=256, V=128, H=64, flatten=True), num_warps=8, num_stages=4),
    Launch(tiles(T=128, V=128, H=64, flatten=True), num_warps=4, num_stages=3),
    Launch(tiles(T=128, V=128, H=64, flatten=False), num_warps=8, num_stages=3),
)
_SMALL = Launch(tiles(T=64, V=64, H=32, flatten=False), num_warps=4, num_stages=3)
# An interpreted step costs the same whatever it holds.
_INTERPRETED = Launch(tiles(T=64, V=256, H=128, flatten=False))
_FLOAT32 = Launch(tiles(T=64, V=64, H=32, flatten=False), num_warps=8, num_stages=3)


def launch_for(device: torch.device, dtype: torch.dtype) -> Launch:
    """Return the tiles for a device and a dtype."""
    if device.type == "cpu":
        return _INTERPRETED
    if dtype == torch.float32:
        return _FLOAT32
    return LAUNCHES[0] if has_tma(device) else _SMALL


def _aligned(matrix: Tensor) -> bool:
    """Whether the copy engine can fetch tiles: rows and start on whole 16 bytes."""
    row_bytes = matrix.stride(0) * matrix.element_size()
    return matrix.stride(1) == 1 and row_bytes % 16 == 0 and matrix.data_ptr() % 16 == 0


def token_nll(
    hidden: Tensor,
    lm_head: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None,
    softcap: float | None,
    ignore_index: int,
    launch: Launch | None = None,
) -> Tensor:
    """Loss (T,) float32 of each token, 0 where ignored; hidden (T, H), lm_head (V, H)."""
    nll = torch.zeros(len(targets), dtype=torch.float32, device=hidden.device)
    kept = (targets != ignore_index).nonzero()[:, 0]
    if len(kept) == 0:
        return nll
    if len(kept) < len(targets):
        hidden, targets = hidden[kept], targets[kept]
    hidden = hidden if hidden.stride(-1) == 1 else hidden.contiguous()
    lm_head = lm_head if lm_head.stride(-1) == 1 else lm_head.contiguous()
    if lm_head.dtype != hidden.dtype:
        raise TypeError(f"lm_head is {lm_head.dtype}, hidden {hidden.dtype}: they must be the same")
    (t, h), v = hidden.shape, len(lm_head)
    launch = launch or launch_for(hidden.device, hidden.dtype)
    blocks = launch.blocks
    parts = triton.cdiv(v, PART)
    top, total, logit = hidden.new_empty(3, parts, t, dtype=torch.float32)
    tma = has_tma(hidden.device) and _aligned(hidden) and _aligned(lm_head)
    x: Tensor | TensorDescriptor = hidden
    w: Tensor | TensorDescriptor = lm_head
    if tma:
        x = TensorDescriptor.from_tensor(hidden, [blocks["BLOCK_T"], blocks["BLOCK_H"]])
        w = TensorDescriptor.from_tensor(lm_head, [blocks["BLOCK_V"], blocks["BLOCK_H"]])
    with torch.cuda.device_of(hidden):
        _part_kernel[(triton.cdiv(t, blocks["BLOCK_T"]) * parts,)](
            x,
            w,
            targets,
            nll if bias is None else bias,
            top,
            total,
            logit,
            t,
            v,
            h,
            softcap or 1.0,
            hidden.stride(0),
            lm_head.stride(0),
            GROUP=GROUP,
            HAS_BIAS=bias is not None,
            HAS_SOFTCAP=softcap is not None,
            USE_TMA=tma,
            PART=PART,
            **launch.options(),
        )
        _merge_kernel[(triton.cdiv(t, 128),)](
            top, total, logit, kept, nll, t, parts, BLOCK_T=128, enable_fp_fusion=True
        )
    return nll


def example_nll(
    token_nll: Tensor, targets: Tensor, cu_seqlens: Tensor, *, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """Mean (B,) float64 and number (B,) int64 of the losses of each example's tokens."""
    b = len(cu_seqlens) - 1
    mean = torch.empty(b, dtype=torch.float64, device=token_nll.device)
    count = torch.empty(b, dtype=torch.int64, device=token_nll.device)
    if b:
        with torch.cuda.device_of(token_nll):
            _example_kernel[(b,)](
                token_nll.contiguous(),
                targets.contiguous(),
                cu_seqlens.contiguous(),
                mean,
                count,
                ignore_index,
                BLOCK_T=256,
                num_warps=4,
                enable_fp_fusion=False,
            )
    return mean, count
