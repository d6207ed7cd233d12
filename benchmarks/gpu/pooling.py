"""Pooling: mean over tokens, beside torch and sentence-transformers."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from harness import Bench


def naive_pool(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    kept = mask[:, :, None].to(hidden.dtype)
    total = (hidden * kept).sum(1, dtype=torch.float32) / kept.sum(1, dtype=torch.float32)
    return torch.nn.functional.normalize(total, dim=1)


def sentence_transformers(hidden: torch.Tensor, mask: torch.Tensor) -> Any:
    from sentence_transformers import models

    pooling = models.Pooling(hidden.shape[2], pooling_mode="mean")
    given = {"token_embeddings": hidden, "attention_mask": mask}
    unit = torch.nn.functional.normalize
    return lambda: unit(pooling(dict(given))["sentence_embedding"], dim=1)


def bench_pool(bench: Bench, kernels: Any) -> None:
    shapes = [(256, 512, 1024), (1024, 128, 384), (16, 4096, 4096)]
    for turn, (b, t, h) in enumerate([(3, 20, 32)] if bench.dry else shapes):
        hidden = torch.randn(b, t, h, device=bench.device)
        hidden = hidden if bench.dry else hidden.bfloat16()
        length = torch.randint(t // 4, t + 1, (b, 1), device=bench.device)
        kept = torch.arange(t, device=bench.device)[None] < length
        for name, mask in (("full", torch.ones_like(kept).long()), ("ragged", kept.long())):
            pool = partial(kernels.pool.pool, hidden, mask, normalize=True)
            run, shape = partial(pool, mode="mean"), f"{b}x{t}x{h} {name}"
            floor = bench.bytes_ms(int(mask.sum()) * h * hidden.element_size() + 4 * b * h)
            off = float((run().double() - naive_pool(hidden.double(), mask)).abs().max())
            error = f"max error {off:.1e}"
            ours = bench.ours(shape, "ours mean", run, floor, error=error, wrong=not off < 1e-6)
            bench.anchor(ours, "torch", lambda x=hidden, m=mask: partial(naive_pool, x, m))
            there = partial(sentence_transformers, hidden, mask)
            bench.anchor(ours, "sentence-transformers", there)
            if turn == 0 and name == "full":
                bench.sweep_launches(ours, kernels.pool.LAUNCHES, run)
                for mode in ("weighted_mean", "last_token", "cls"):
                    bench.ours(shape, f"ours {mode}", partial(pool, mode=mode))
