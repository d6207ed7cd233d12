"""Loss of every token without logits in memory, beside torch, Liger and cut-cross-entropy."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from harness import Bench, Record


def bench_loss(bench: Bench, kernels: Any) -> None:
    shapes = [(16384, 4096, 128256), (8192, 576, 49152), (8192, 2048, 151936)]
    for turn, (t, h, v) in enumerate([(40, 48, 300)] if bench.dry else shapes):
        loss_shape(bench, kernels.loss, t, h, v, sweep=turn == 0)


def loss_shape(bench: Bench, loss: Any, t: int, h: int, v: int, *, sweep: bool) -> None:
    dtype = torch.float16 if bench.dry else torch.bfloat16
    generator = torch.Generator(bench.device).manual_seed(4)
    hidden = torch.randn(t, h, generator=generator, device=bench.device).to(dtype)
    lm_head = torch.randn(v, h, generator=generator, device=bench.device)
    lm_head = (lm_head * (2.0 / h**0.5)).to(dtype)
    targets = torch.randint(0, v, (t,), generator=generator, device=bench.device)
    options = {"bias": None, "softcap": None, "ignore_index": -100}
    some = torch.arange(0, t, max(1, t // 256), device=bench.device)[:256]
    logits = hidden[some].double() @ lm_head.double().T
    truth = torch.nn.functional.cross_entropy(logits, targets[some], reduction="none")
    naive = torch.nn.functional.cross_entropy(
        (hidden[some] @ lm_head.T).float(), targets[some], reduction="none"
    )
    allowed = max(1e-4, float((naive - truth).abs().max()))
    del logits

    def error(nll: torch.Tensor) -> float:
        return float((nll[some].double() - truth).abs().max())

    shape = f"{t}x{h}x{v} {str(dtype)[6:]}"
    best: Record | None = None
    ways = {"ours fused": loss.token_nll, "ours blocked": loss.blocked_token_nll}
    for who, function in ways.items():
        run = partial(function, hidden, lm_head, targets, **options)
        worst = error(run())
        record = bench.ours(
            shape,
            who,
            run,
            floor_ms=bench.product_ms(2.0 * t * h * v),
            error=f"max error {worst:.1e} (naive {allowed:.1e})",
            wrong=not worst <= allowed,
            note=f"transient {bench.transient_mb(run):.0f} MB",
        )
        if sweep and function is loss.token_nll:
            bench.sweep_launches(record, loss.LAUNCHES, run)
        if best is None or (record.ms or 0) < (best.ms or 0):
            best = record
    assert best is not None
    loss_anchors(
        bench, best, hidden, lm_head, targets, lambda nll: f"max error {error(nll.reshape(-1)):.1e}"
    )


def loss_anchors(
    bench: Bench,
    ours: Record,
    hidden: torch.Tensor,
    lm_head: torch.Tensor,
    targets: torch.Tensor,
    check: Callable[[torch.Tensor], str],
) -> None:
    def chunked() -> Callable[[], torch.Tensor]:
        entropy = partial(torch.nn.functional.cross_entropy, reduction="none")
        parts = range(0, len(hidden), 512)
        return lambda: torch.cat(
            [
                entropy((hidden[i : i + 512] @ lm_head.T).float(), targets[i : i + 512])
                for i in parts
            ]
        )

    def liger_cute() -> Callable[[], torch.Tensor]:
        from liger_kernel.ops.cutedsl.ops.fused_scaled_cross_entropy_sm90 import (
            LigerFusedScaledCrossEntropySM90Function as Fused,
        )

        return lambda: Fused.apply(hidden, lm_head, targets, 1.0, -100, 1, False)

    def liger_triton() -> Callable[[], torch.Tensor]:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        fused = LigerFusedLinearCrossEntropyLoss(reduction="none")
        return lambda: fused(lm_head, hidden, targets)

    def cut_cross_entropy() -> Callable[[], torch.Tensor]:
        from cut_cross_entropy import linear_cross_entropy

        return lambda: linear_cross_entropy(hidden, lm_head, targets, reduction="none")

    bench.anchor(ours, "chunked torch", chunked, check)
    if not bench.dry:
        bench.anchor(ours, "liger scaled CE, CuTe", liger_cute, check)
        bench.anchor(ours, "liger, Triton", liger_triton, check)
        bench.anchor(ours, "cut-cross-entropy", cut_cross_entropy, check)
