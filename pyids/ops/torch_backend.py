"""The ops in plain torch: what runs on a CPU, and the yardstick of the Triton kernels on a GPU.

Every function takes tensors that `pyids.ops` has validated, on any device, and returns tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Scores are computed a block at a time; a block is at most this many float32 values (32 MB).
_BLOCK_ELEMENTS = 1 << 23


_TOKEN_BLOCK = 512


_VOCABULARY_BLOCK = 8192


# example means are summed as multiples of this, exactly, so that their order does not matter
_MEAN_QUANTUM = 2.0**-32


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


def pool_packed(hidden: Tensor, cu_seqlens: Tensor, *, mode: str, normalize: bool) -> Tensor:
    """See `pyids.ops.pool_packed`."""
    starts, ends = cu_seqlens[:-1].long(), cu_seqlens[1:].long()
    length = ends - starts
    filled = length > 0
    out = hidden.new_zeros(len(length), hidden.shape[1], dtype=torch.float32)
    if mode in ("last_token", "cls"):
        row = (ends - 1 if mode == "last_token" else starts)[filled]
        out[filled] = hidden[row].float()
    else:
        for b in filled.nonzero()[:, 0].tolist():
            states = hidden[starts[b] : ends[b]].float()
            total = length[b]
            if mode == "weighted_mean":
                rank = torch.arange(1, len(states) + 1, device=hidden.device)
                states, total = states * rank[:, None], rank.sum()
            out[b] = states.sum(0) / total
    return _normalized(out) if normalize else out


def _normalized(vectors: Tensor) -> Tensor:
    norm = vectors.norm(dim=1, keepdim=True)
    return vectors / torch.where(norm == 0, 1.0, norm)


def assign(x: Tensor, centers: Tensor, *, precision: str) -> tuple[Tensor, Tensor]:
    """See `pyids.ops.assign`.

    "exact": both sides are shifted by the mean center (distances do not notice, rounding does),
    scored in float32, and every pair whose score is within the rounding bound of the row's best
    is measured again in float64.
    """
    # The bound below is for float32, not for tf32.
    tf32, torch.backends.cuda.matmul.allow_tf32 = (
        torch.backends.cuda.matmul.allow_tf32,
        precision == "tf32",
    )
    try:
        return _assign(x, centers, precision)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = tf32


def _assign(x: Tensor, centers: Tensor, precision: str) -> tuple[Tensor, Tensor]:
    n, d = x.shape
    k = len(centers)
    shift = centers.double().mean(0)
    shifted = (centers.double() - shift).float()
    half = precision == "half"
    norms = shifted.double().square().sum(1).float()
    reach = float(norms.max().sqrt())
    labels = torch.empty(n, dtype=torch.int32, device=x.device)
    distances = torch.empty(n, dtype=torch.float32, device=x.device)
    step = max(1, min(n, _BLOCK_ELEMENTS // k))
    for start in range(0, n, step):
        rows = slice(start, min(start + step, n))
        points = (x[rows].double() - shift).float()
        if half:
            peak = float(points.abs().amax().clamp(min=1e-30))
            dot = (points / peak).half() @ (shifted.T / max(reach, 1e-30)).half()
            scores = norms - 2 * peak * max(reach, 1e-30) * dot.float()
        else:
            scores = torch.addmm(norms, points, shifted.T, alpha=-2)
        best, index = scores.min(1)
        if precision == "exact":
            # Of float32's unit roundoff: one for each product's sum step and operand, D + 4 in all,
            # on both scores compared, for |x||c| and |c|^2.
            length = points.double().square().sum(1).sqrt().float()
            bound = (d + 4) * 2.0**-23 * reach * (2 * length + reach)
            row, column = (scores <= (best + bound)[:, None]).nonzero(as_tuple=True)
            value = _pair_distances(x[rows], centers, row, column)
            distance = torch.full((len(points),), torch.inf, dtype=torch.float64, device=x.device)
            distance.scatter_reduce_(0, row, value, "amin")
            ties = torch.where(value == distance[row], column, k)
            index = torch.full((len(points),), k, device=x.device)
            index.scatter_reduce_(0, row, ties, "amin")
            distances[rows] = distance.float()
        else:
            every = torch.arange(len(points), device=x.device)
            distances[rows] = _pair_distances(x[rows], centers, every, index).float()
        labels[rows] = index.int()
    return labels, distances


def _pair_distances(x: Tensor, centers: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """|x[row] - centers[column]|^2 in float64, from differences: no cancellation."""
    out = torch.empty(len(row), dtype=torch.float64, device=x.device)
    step = max(1, _BLOCK_ELEMENTS // (2 * x.shape[1] + 1))
    for start in range(0, len(row), step):
        part = slice(start, start + step)
        difference = x[row[part]].double() - centers[column[part]].double()
        out[part] = difference.square().sum(1)
    return out


def update(
    x: Tensor,
    labels: Tensor,
    n_clusters: int,
    *,
    sample_weight: Tensor | None,
    centers: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `pyids.ops.update`: a stable sort by label, then one ordered float64 sum a cluster."""
    order = labels.sort(stable=True).indices
    sizes = labels.bincount(minlength=n_clusters)
    counts = torch.zeros(n_clusters, dtype=torch.float64, device=x.device)
    inertia = torch.zeros_like(counts)
    sums = counts.new_zeros(n_clusters, x.shape[1])
    for j, rows in enumerate(torch.split(order, sizes.tolist())):
        if len(rows) == 0:
            continue
        points = x[rows].double()
        weights = None if sample_weight is None else sample_weight[rows].double()[:, None]
        sums[j] = (points if weights is None else points * weights).sum(0)
        counts[j] = len(rows) if weights is None else weights.sum()
        about = sums[j] / counts[j].clamp(min=1e-300) if centers is None else centers[j].double()
        squares = (points - about).square()
        inertia[j] = (squares if weights is None else squares * weights).sum()
    return sums, counts, inertia


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


def cluster_nll(
    example_mean: Tensor, labels: Tensor, n_clusters: int, *, example_count: Tensor | None
) -> tuple[Tensor, Tensor]:
    """See `pyids.ops.cluster_nll`: integer sums, so that the order of the examples is no matter."""
    labels = labels.long()
    scored = torch.ones_like(labels) if example_count is None else (example_count > 0).long()
    quanta = (example_mean.double() / _MEAN_QUANTUM).round().long() * scored
    total = labels.new_zeros(n_clusters).index_add_(0, labels, quanta)
    count = labels.new_zeros(n_clusters).index_add_(0, labels, scored)
    return total.double() * _MEAN_QUANTUM, count
