"""Pooling: mean over tokens, padded and packed, beside torch and sentence-transformers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from harness import Bench, Record

MODES = ("mean", "weighted_mean", "last_token", "cls")


def naive_pool(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    kept = mask[:, :, None].to(hidden.dtype)
    total = (hidden * kept).sum(1, dtype=torch.float32) / kept.sum(1, dtype=torch.float32)
    return torch.nn.functional.normalize(total, dim=1)


def bench_pool(bench: Bench, kernels: Any) -> None:
    shapes = [(256, 512, 1024), (1024, 128, 384), (16, 4096, 4096)]
    for turn, (b, t, h) in enumerate([(3, 20, 32)] if bench.dry else shapes):
        dtype = torch.float32 if bench.dry else torch.bfloat16
        hidden = torch.randn(b, t, h, device=bench.device).to(dtype)
        lengths = torch.randint(t // 4, t + 1, (b, 1), device=bench.device)
        full = torch.ones(b, t, dtype=torch.int64, device=bench.device)
        ragged = (torch.arange(t, device=bench.device)[None] < lengths).long()
        record = padded(bench, kernels, hidden, full, "full", MODES if turn == 0 else MODES[:1])
        if turn == 0:
            run = partial(kernels.pool.pool, hidden, full, mode="mean", normalize=True)
            bench.sweep_launches(record, kernels.pool.LAUNCHES, run)
        padded(bench, kernels, hidden, ragged, "ragged", MODES[:1])
        packed(bench, kernels, hidden, lengths[:, 0])


def padded(
    bench: Bench,
    kernels: Any,
    hidden: torch.Tensor,
    mask: torch.Tensor,
    name: str,
    modes: tuple[str, ...],
) -> Record:
    b, t, h = hidden.shape
    shape = f"{b}x{t}x{h} {str(hidden.dtype)[6:]} {name}"
    floor = bench.bytes_ms(int(mask.sum()) * h * hidden.element_size() + 4 * b * h)
    for mode in reversed(modes):
        run = partial(kernels.pool.pool, hidden, mask, mode=mode, normalize=True)
        if mode != "mean":
            limit = floor if mode == "weighted_mean" else None
            bench.ours(shape, f"ours {mode}", run, floor_ms=limit)
            continue
        worst = float((run().double() - naive_pool(hidden.double(), mask)).abs().max())
        error = f"max error {worst:.1e}"
        record = bench.ours(
            shape, "ours mean", run, floor_ms=floor, error=error, wrong=not worst < 1e-6
        )
        pool_anchors(bench, record, hidden, mask)
    return record


def packed(bench: Bench, kernels: Any, hidden: torch.Tensor, lengths: torch.Tensor) -> None:
    b, t, h = hidden.shape
    bounds = torch.cumsum(torch.cat([lengths.new_zeros(1), lengths]), 0)
    states = hidden.view(-1, h)[: int(bounds[-1])].contiguous()
    bench.ours(
        f"{b}x{t}x{h} {str(hidden.dtype)[6:]} packed",
        "ours mean",
        partial(kernels.pool.pool_packed, states, bounds, mode="mean", normalize=True),
        floor_ms=bench.bytes_ms(states.numel() * states.element_size() + 4 * b * h),
    )


def pool_anchors(bench: Bench, ours: Record, hidden: torch.Tensor, mask: torch.Tensor) -> None:
    bench.anchor(ours, "torch", lambda: lambda: naive_pool(hidden, mask))

    def sentence_transformers() -> Callable[[], Any]:
        from sentence_transformers import models

        pooling = models.Pooling(hidden.shape[2], pooling_mode="mean")
        features = {"token_embeddings": hidden, "attention_mask": mask}
        return lambda: torch.nn.functional.normalize(
            pooling(dict(features))["sentence_embedding"], dim=1
        )

    bench.anchor(ours, "sentence-transformers", sentence_transformers)
