"""The ops in plain torch: what runs on a CPU, and the yardstick of the Triton kernels on a GPU.

Every function takes tensors that `pyids.ops` has validated, on any device, and returns tensors.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_TOKEN_BLOCK = 512


_VOCABULARY_BLOCK = 8192


# Exact sums are of integers in two limbs of so many steps.
_LIMB = 2.0**31


def pool(hidden: Tensor, attention_mask: Tensor, *, mode: str, normalize: bool) -> Tensor:
    """See `pyids.ops.pool`."""
    kept = attention_mask.bool()
    rank = kept.cumsum(1)  # 1 for the first token that counts
    length = rank[:, -1:] if kept.shape[1] else rank.new_zeros(len(kept), 1)
    if mode in ("last_token", "cls"):
        wanted = kept & (rank == (length if mode == "last_token" else 1))
        out = hidden.new_zeros(len(kept), hidden.shape[2], dtype=torch.float32)
        sequence, position = wanted.nonzero(as_tuple=True)
        out[sequence] = hidden[sequence, position].float()
    else:
        # Padding is replaced, not multiplied by zero: it may hold NaN.
        states = hidden.float().masked_fill(~kept[:, :, None], 0.0)
        if mode == "weighted_mean":
            states = states * rank[:, :, None]
            length = length * (length + 1) // 2
        out = states.sum(1) / length.clamp(min=1)
    return _normalized(out) if normalize else out


def _normalized(vectors: Tensor) -> Tensor:
    norm = vectors.norm(dim=1, keepdim=True)
    return vectors / torch.where(norm == 0, 1.0, norm)


def token_nll(
    hidden: Tensor,
    lm_head: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None,
    softcap: float | None,
    ignore_index: int,
) -> Tensor:
    """See `pyids.ops.token_nll`: a block of logits at a time, folded into a running logsumexp."""
    # Half-precision products are rounded to half precision on a CPU, and slow there.
    dtype = hidden.dtype if hidden.is_cuda else torch.float32
    nll = torch.zeros(len(targets), dtype=torch.float32, device=hidden.device)
    kept = (targets != ignore_index).nonzero()[:, 0]
    for rows in torch.split(kept, _TOKEN_BLOCK):
        states, wanted = hidden[rows].to(dtype), targets[rows]
        top = torch.full((len(rows),), -torch.inf, device=hidden.device)
        total, target_logit = torch.zeros_like(top), torch.zeros_like(top)
        for start in range(0, len(lm_head), _VOCABULARY_BLOCK):
            block = slice(start, start + _VOCABULARY_BLOCK)
            logits = (states @ lm_head[block].to(dtype).T).float()
            if bias is not None:
                logits += bias[block].float()
            if softcap is not None:
                logits = logits.div_(softcap).tanh_().mul_(softcap)
            column = wanted - start
            here = (column >= 0) & (column < logits.shape[1])
            picked = logits.gather(1, column.clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
            target_logit = torch.where(here, picked, target_logit)
            new_top = torch.maximum(top, logits.amax(1))
            total = total * (top - new_top).exp() + logits.sub_(new_top[:, None]).exp_().sum(1)
            top = new_top
        nll[rows] = top + total.log() - target_logit
    return nll


def example_nll(
    token_nll: Tensor, targets: Tensor, cu_seqlens: Tensor, *, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """See `pyids.ops.example_nll`: float64 sums, one token of every example at a time."""
    bounds = cu_seqlens.long()
    kept = targets != ignore_index
    # Each example is summed from its own start: a running total over the batch would leave traces
    # of the examples before it in the last bits.
    lengths = bounds.diff()
    longest = int(lengths.max()) if len(lengths) else 0
    count = torch.zeros(len(lengths), dtype=torch.int64, device=token_nll.device)
    total = torch.zeros(len(lengths), dtype=torch.float64, device=token_nll.device)
    for offset in range(longest):
        row = bounds[:-1] + offset
        here = row < bounds[1:]
        row = row.clamp(max=len(targets) - 1)
        here &= kept[row]
        count += here
        total += torch.where(here, token_nll[row].double(), 0.0)
    return total / count.clamp(min=1), count


def cluster_moments(
    values: Tensor, clusters: Tensor, n_clusters: int
) -> tuple[Tensor, Tensor, Tensor, float]:
    """See `pyids.ops.cluster_moments`."""
    clusters = clusters.long()
    values = values.double()
    count = torch.bincount(clusters, minlength=n_clusters)
    zeros = values.new_zeros(n_clusters)
    if not len(values):
        return count, zeros, zeros.clone(), 0.0
    center = float(values.min()) / 2 + float(values.max()) / 2
    deviations = values - center
    exponent = math.frexp(float(deviations.abs().max()))[1]
    scaled = torch.ldexp(deviations, deviations.new_full((), -exponent).int())

    def exact_sum(parts: Tensor, scale: int) -> Tensor:
        """Sum numbers of at most 1 as two int64 limbs of 31 bits."""
        high = torch.round(parts * _LIMB)
        low = torch.round((parts * _LIMB - high) * _LIMB)
        sums = [
            torch.zeros(n_clusters, dtype=torch.int64, device=values.device)
            .index_add_(0, clusters, limb.long())
            .double()
            for limb in (high, low)
        ]
        total = (sums[0] + sums[1] / _LIMB) / _LIMB
        return torch.ldexp(total, total.new_full((), scale).int())

    return count, exact_sum(scaled, exponent), exact_sum(scaled**2, 2 * exponent), center
