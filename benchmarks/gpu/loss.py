"""Loss of every token without logits in memory, beside torch, Liger and cut-cross-entropy."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from harness import Bench

entropy = partial(torch.nn.functional.cross_entropy, reduction="none")


def matmul(hidden: torch.Tensor, lm_head: torch.Tensor, targets: torch.Tensor) -> Any:
    """The vendor's product alone, logits in memory: what no fused loss has to do more than."""
    return lambda: hidden @ lm_head.T


def chunked(hidden: torch.Tensor, lm_head: torch.Tensor, targets: torch.Tensor) -> Any:
    parts = list(zip(hidden.split(512), targets.split(512), strict=True))
    return lambda: torch.cat([entropy((x @ lm_head.T).float(), t) for x, t in parts])


def liger_cute(hidden: torch.Tensor, lm_head: torch.Tensor, targets: torch.Tensor) -> Any:
    from liger_kernel.ops.cutedsl.ops import fused_scaled_cross_entropy_sm90 as liger

    fused = liger.LigerFusedScaledCrossEntropySM90Function
    return lambda: fused.apply(hidden, lm_head, targets, 1.0, -100, 1, False)


def liger_triton(hidden: torch.Tensor, lm_head: torch.Tensor, targets: torch.Tensor) -> Any:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    return partial(LigerFusedLinearCrossEntropyLoss(reduction="none"), lm_head, hidden, targets)


def cut_cross_entropy(hidden: torch.Tensor, lm_head: torch.Tensor, targets: torch.Tensor) -> Any:
    from cut_cross_entropy import linear_cross_entropy

    return partial(linear_cross_entropy, hidden, lm_head, targets, reduction="none")


def bench_loss(bench: Bench, kernels: Any) -> None:
    shapes = [(16384, 4096, 128256), (8192, 576, 49152), (8192, 2048, 151936)]
    for turn, (t, h, v) in enumerate([(40, 48, 300)] if bench.dry else shapes):
        dtype = torch.float16 if bench.dry else torch.bfloat16
        draw = partial(torch.randn, device=bench.device)
        hidden, lm_head = draw(t, h).to(dtype), (draw(v, h) * (2.0 / h**0.5)).to(dtype)
        targets = torch.randint(0, v, (t,), device=bench.device)
        some = torch.arange(0, t, max(1, t // 256), device=bench.device)[:256]
        truth = entropy(hidden[some].double() @ lm_head.double().T, targets[some])
        naive = entropy((hidden[some] @ lm_head.T).float(), targets[some])

        def off(nll: torch.Tensor, some: Any = some, truth: Any = truth) -> float:
            return float((nll.reshape(-1)[some].double() - truth).abs().max())

        def check(nll: torch.Tensor, off: Any = off) -> str:
            return f"max error {off(nll):.1e}"

        allowed = max(1e-4, float((naive - truth).abs().max()))
        options = {"bias": None, "softcap": None, "ignore_index": -100}
        run = partial(kernels.loss.token_nll, hidden, lm_head, targets, **options)
        nll, floor = run(), bench.product_ms(2.0 * t * h * v)
        error, wrong = f"{check(nll)} (naive {allowed:.1e})", not off(nll) <= allowed
        ours = bench.ours(f"{t}x{h}x{v}", "ours token_nll", run, floor, error=error, wrong=wrong)
        if turn == 0:
            bench.sweep_launches(ours, kernels.loss.LAUNCHES, run)
        given = (hidden, lm_head, targets)
        for make in (matmul, chunked, liger_cute, liger_triton, cut_cross_entropy)[
            : 2 if bench.dry else 5
        ]:
            bench.anchor(
                ours, make.__name__, partial(make, *given), None if make is matmul else check
            )
