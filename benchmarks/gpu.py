"""The Triton kernels beside their anchors and the chip's own limits, in one run of under 8 minutes.

    python benchmarks/gpu.py [--only assign,loss] [--no-sweep] [--output DIR]
    python benchmarks/gpu.py --dry-run       every op on tiny shapes, in Triton's interpreter
    python benchmarks/gpu.py --compile 90    every kernel for a chip that need not be here

Needs the checkout, torch and triton; nothing is built. Anchors are timed where their packages are
found: flash-kmeans, flashlib, fastkmeans, sentence-transformers, liger-kernel, cut-cross-entropy.

Each op is checked against float64 on this device before it is timed. A time is the median of
repetitions between device events; a floor is the op's bytes or operations over the copy bandwidth
or the matrix rate measured here, now; a ratio is the anchor's time over ours, on the same tensors
in the same run. A sweep times every entry of a kernel's launch table: if another is ahead of the
first, move it there. Exit code 1 means that a result was wrong.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BUDGET_S = 440.0

if __name__ == "__main__" and {"--dry-run", "--compile"} & set(sys.argv):
    # Before triton is imported: it decides then whether it interprets.
    os.environ["TRITON_INTERPRET"] = "1" if "--dry-run" in sys.argv else "0"

import torch  # noqa: E402  TRITON_INTERPRET comes first


def load_kernels() -> Any:
    """Load kernels/ of this checkout as a package: no wheel, no C++ core."""
    path = ROOT / "kernels" / "__init__.py"
    spec = importlib.util.spec_from_file_location(
        "pyids_kernels", path, submodule_search_locations=[str(path.parent)]
    )
    assert spec is not None
    assert spec.loader is not None
    package = sys.modules["pyids_kernels"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
    for name in ("assign", "common", "lloyd", "loss", "pool", "update"):
        importlib.import_module(f"pyids_kernels.{name}")
    return package


# ---- measuring -----------------------------------------------------------------------------------


@dataclass
class Record:
    """One measured thing."""

    op: str
    shape: str
    who: str
    ms: float | None = None
    floor_ms: float | None = None
    ratio_to_ours: float | None = None
    error: str = ""
    note: str = ""
    launches: dict[str, float] = field(default_factory=dict)

    def row(self) -> str:
        """Return the table's line."""
        floor = ratio = time_ = ""
        if self.ms is not None:
            time_ = f"{self.ms:10.3f}"
            if self.floor_ms:
                floor = f"{self.floor_ms / self.ms:6.2f}"
        if self.ratio_to_ours is not None:
            ratio = f"{self.ratio_to_ours:6.2f}x"
        tail = "; ".join(part for part in (self.error, self.note) if part)
        return (
            f"{self.op:12} {self.shape:26} {self.who:30} {time_:>10} {floor:>6} {ratio:>7}  {tail}"
        )


HEADER = f"{'op':12} {'shape':26} {'who':30} {'ms':>10} {'floor':>6} {'ours':>7}  errors and notes"


class Bench:
    """Where records go, and how time is taken."""

    def __init__(self, device: torch.device, dry: bool, sweep: bool) -> None:
        self.device, self.dry, self.sweep = device, dry, sweep
        self.records: list[Record] = []
        self.wrong: list[str] = []
        self.start = time.monotonic()
        self.copy_tb_s = self.half_tflops = self.tf32_tflops = 0.0
        self.upload_gb_s = 0.0
        self.wash = torch.empty(0 if dry else 1 << 27, dtype=torch.uint8, device=device)

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.start

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def median_ms(self, function: Callable[[], Any], *, target_ms: float = 250.0) -> float:
        """Median time of one call, after warming up."""
        function()
        if self.device.type != "cuda":
            begin = time.perf_counter()
            function()
            return 1e3 * (time.perf_counter() - begin)
        once = statistics.median(self._events_ms(function, 3))
        repetitions = int(min(50, max(5, target_ms / max(once, 1e-3))))
        return statistics.median(self._events_ms(function, repetitions))

    def _events_ms(self, function: Callable[[], Any], repetitions: int) -> list[float]:
        events = [
            [torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repetitions)
        ]
        # The device sleeps while the host queues the first calls, or a short call's time would be
        # the host's; and the L2 cache is washed out before each.
        torch.cuda._sleep(20_000_000)
        for begin, end in events:
            self.wash.zero_()
            begin.record()
            function()
            end.record()
        torch.cuda.synchronize()
        return [begin.elapsed_time(end) for begin, end in events]

    def transient_mb(self, function: Callable[[], Any]) -> float:
        """Memory that a call takes beyond its inputs, at its peak."""
        if self.device.type != "cuda":
            return 0.0
        self.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = function()
        self.synchronize()
        del result
        return (torch.cuda.max_memory_allocated() - before) / 1e6

    def add(self, record: Record) -> Record:
        self.records.append(record)
        print(record.row(), flush=True)
        return record

    def ours(
        self, op: str, shape: str, who: str, function: Callable[[], Any], **more: Any
    ) -> Record:
        return self.add(Record(op, shape, who, self.median_ms(function), **more))

    def anchor(
        self, ours: Record, who: str, make: Callable[[], Callable[[], Any]], check: Any = None
    ) -> None:
        """Time an anchor on the same tensors; one that is absent or fails is listed as such."""
        record = Record(ours.op, ours.shape, who)
        try:
            function = make()
            record.error = check(function()) if check else ""
            record.ms = self.median_ms(function)
        except ModuleNotFoundError as missing:
            record.note = f"not installed: {missing.name}"
        except Exception as failure:  # noqa: BLE001  an anchor's failure is a result of the run
            record.note = f"failed: {type(failure).__name__}: {str(failure).splitlines()[:1]}"[:120]
        if record.ms is not None and ours.ms:
            record.ratio_to_ours = record.ms / ours.ms
        self.add(record)

    def claim(self, right: bool, what: str) -> str:
        """Note a wrong result."""
        if not right:
            self.wrong.append(what)
        return "" if right else f"WRONG: {what}"

    def sweep_launches(self, record: Record, table: Any, run: Callable[..., Any]) -> None:
        """Time run(launch=...) for every entry of a launch table and say which is ahead."""
        if not self.sweep or self.elapsed_s > BUDGET_S:
            return
        for launch in table[:2] if self.dry else table:
            try:
                record.launches[launch.describe()] = self.median_ms(
                    partial(run, launch=launch), target_ms=100.0
                )
            except Exception as failure:  # noqa: BLE001  too large for this chip, say
                print(f"    {launch.describe()}: {type(failure).__name__}", flush=True)
        for name, ms in sorted(record.launches.items(), key=lambda item: item[1]):
            print(f"    {name:44} {ms:10.3f} ms", flush=True)

    def measure_limits(self) -> None:
        """Copy bandwidth, matrix rates and upload bandwidth of this machine."""
        small = self.dry
        source = torch.empty(1 << (16 if small else 31), dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        self.copy_tb_s = 2 * len(source) / self.median_ms(partial(target.copy_, source)) / 1e9
        host = torch.empty(1 << (16 if small else 28), dtype=torch.uint8)
        if self.device.type == "cuda":
            host = host.pin_memory()
        there = source[: len(host)]
        upload = self.median_ms(partial(there.copy_, host, non_blocking=True))
        self.upload_gb_s = len(host) / upload / 1e6
        del source, target, host, there
        n = 64 if small else 8192
        a = torch.randn(n, n, device=self.device)
        b = torch.randn(n, n, device=self.device)
        half_a, half_b = a.bfloat16(), b.bfloat16()
        self.half_tflops = 2 * n**3 / self.median_ms(lambda: half_a @ half_b) / 1e9
        with allow_tf32():
            self.tf32_tflops = 2 * n**3 / self.median_ms(lambda: a @ b) / 1e9
        print(
            f"limits: copy {self.copy_tb_s:.2f} TB/s, bf16 {self.half_tflops:.0f} TFLOP/s,"
            f" tf32 {self.tf32_tflops:.0f} TFLOP/s, upload {self.upload_gb_s:.1f} GB/s",
            flush=True,
        )

    def bytes_ms(self, n_bytes: float) -> float:
        return n_bytes / self.copy_tb_s / 1e9

    def half_ms(self, operations: float) -> float:
        return operations / self.half_tflops / 1e9


@contextmanager
def allow_tf32() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


MODES = ("mean", "weighted_mean", "last_token", "cls")

# ---- pooling -------------------------------------------------------------------------------------


def naive_pool(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    kept = mask[:, :, None].to(hidden.dtype)
    total = (hidden * kept).sum(1, dtype=torch.float32) / kept.sum(1, dtype=torch.float32)
    return torch.nn.functional.normalize(total, dim=1)


def bench_pool(bench: Bench, kernels: Any) -> None:
    shapes = [(256, 512, 1024), (1024, 128, 384), (16, 4096, 4096)]
    for b, t, h in [(3, 20, 32)] if bench.dry else shapes:
        dtype = torch.float32 if bench.dry else torch.bfloat16
        hidden = torch.randn(b, t, h, device=bench.device).to(dtype)
        lengths = torch.randint(t // 4, t + 1, (b, 1), device=bench.device)
        full = torch.ones(b, t, dtype=torch.int64, device=bench.device)
        ragged = (torch.arange(t, device=bench.device)[None] < lengths).long()
        pool_padded(bench, kernels, hidden, full, "full", MODES)
        pool_padded(bench, kernels, hidden, ragged, "ragged", MODES[:1])
        pool_packed(bench, kernels, hidden, lengths[:, 0])
        if h in (1024, 32):
            run = partial(kernels.pool.pool, hidden, full, mode="mean", normalize=True)
            bench.sweep_launches(bench.records[-1], kernels.pool.LAUNCHES, run)


def pool_padded(
    bench: Bench,
    kernels: Any,
    hidden: torch.Tensor,
    mask: torch.Tensor,
    name: str,
    modes: tuple[str, ...],
) -> None:
    b, t, h = hidden.shape
    shape = f"{b}x{t}x{h} {str(hidden.dtype)[6:]} {name}"
    floor = bench.bytes_ms(int(mask.sum()) * h * hidden.element_size() + 4 * b * h)
    for mode in modes:
        run = partial(kernels.pool.pool, hidden, mask, mode=mode, normalize=True)
        if mode != "mean":
            limit = floor if mode == "weighted_mean" else None
            bench.ours("pool", shape, f"ours {mode}", run, floor_ms=limit)
            continue
        worst = float((run().double() - naive_pool(hidden.double(), mask)).abs().max())
        error = f"max error {worst:.1e} " + bench.claim(worst < 1e-6, f"pool {shape}")
        record = bench.ours("pool", shape, "ours mean", run, floor_ms=floor, error=error)
        pool_anchors(bench, record, hidden, mask)


def pool_packed(bench: Bench, kernels: Any, hidden: torch.Tensor, lengths: torch.Tensor) -> None:
    b, t, h = hidden.shape
    bounds = torch.cumsum(torch.cat([lengths.new_zeros(1), lengths]), 0)
    packed = hidden.view(-1, h)[: int(bounds[-1])].contiguous()
    record = bench.ours(
        "pool",
        f"{b}x{t}x{h} {str(hidden.dtype)[6:]} packed",
        "ours mean",
        partial(kernels.pool.pool_packed, packed, bounds, mode="mean", normalize=True),
        floor_ms=bench.bytes_ms(packed.numel() * packed.element_size() + 4 * b * h),
    )
    index = torch.arange(len(packed), device=bench.device)
    bag = partial(torch.nn.functional.embedding_bag, index, packed, bounds[:-1], mode="mean")
    bench.anchor(record, "torch embedding_bag", lambda: bag)


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
    if bench.device.type == "cuda":
        compiled = torch.compile(naive_pool)
        bench.anchor(ours, "torch.compile", lambda: lambda: compiled(hidden, mask))


# ---- k-means -------------------------------------------------------------------------------------


def text_like(n: int, d: int, device: torch.device, seed: int) -> torch.Tensor:
    """Unit vectors with a common mean (cosine about 0.8 between them), as texts have."""
    generator = torch.Generator(device).manual_seed(seed)
    x = torch.randn(n, d, generator=generator, device=device)
    x += 2.0
    return torch.nn.functional.normalize(x, dim=1)


def wrong_labels(x: torch.Tensor, centers: torch.Tensor, labels: torch.Tensor) -> str:
    """How many of up to 16,384 labels are not those of a float64 argmin."""
    rows = torch.arange(0, len(x), max(1, len(x) // 16384), device=x.device)
    wrong = 0
    for part in torch.split(rows, 2048):
        every = torch.cdist(
            x[part].double(), centers.double(), compute_mode="donot_use_mm_for_euclid_dist"
        )
        taken = every.gather(1, labels.reshape(-1)[part].long().clamp(min=0)[:, None])[:, 0]
        wrong += int((taken > every.amin(1) * (1 + 1e-12)).sum())
    return f"{wrong}/{len(rows)} wrong"


def bench_assign(bench: Bench, kernels: Any) -> None:
    assign = kernels.assign
    shapes = [(1 << 20, 4096, 768), (1 << 20, 1024, 384), (1 << 20, 4096, 1024)]
    for turn, (n, k, d) in enumerate([(150, 70, 40)] if bench.dry else shapes):
        x = text_like(n, d, bench.device, 0)
        centers = x[torch.randperm(n, device=bench.device)[:k]]
        first, _ = assign.assign(x, centers, precision="half")
        sums, counts, _ = kernels.update.update(x, first, k, sample_weight=None, centers=centers)
        centers = (sums / counts.clamp(min=1)[:, None]).float()
        prepared = assign.prepare_centers(centers, assign.shift_of(centers))
        bad = torch.full((), assign.NONE_BAD, dtype=torch.int64, device=bench.device)
        rows = assign.prepare_rows(x, prepared, bad)
        labels = torch.empty(n, dtype=torch.int32, device=bench.device)
        scratch = assign.Scratch.of(n, bench.device)
        shape = f"{n}x{d} k={k}"
        operations = 2.0 * n * k * d
        ours: dict[str, Record] = {}
        for precision in ("half", "exact", "tf32"):
            run = partial(assign.nearest, rows, prepared, labels, scratch, precision=precision)
            run()
            error = wrong_labels(x, centers, labels)
            again = scratch.counts.tolist()
            note = ""
            if precision == "exact":
                bench.claim(error.startswith("0/"), f"assign {shape}: {error}")
                note = f"looked at again: {again[0] / n:.2%}, settled in float64: {again[1]}"
            rate = bench.tf32_tflops if precision == "tf32" else bench.half_tflops
            ours[precision] = bench.ours(
                "assign",
                shape,
                f"ours {precision}",
                run,
                floor_ms=operations / rate / 1e9,
                error=error,
                note=note,
            )
            if precision != "tf32" and turn == 0:
                bench.sweep_launches(ours[precision], assign.NEAREST_LAUNCHES, run)
        prepare = partial(assign.prepare_rows, x, prepared, bad)
        item = x.element_size()
        bench.ours(
            "assign",
            shape,
            "ours, rows once a fit",
            prepare,
            floor_ms=bench.bytes_ms(n * d * (item + 2)),
        )
        bench.ours(
            "assign",
            shape,
            "ours centers each pass",
            partial(assign.prepare_centers, centers, prepared.shift),
        )
        bench.ours(
            "assign",
            shape,
            "ours, whole call, distances too",
            partial(assign.assign, x, centers, precision="exact"),
        )
        assign_anchors(bench, ours, x, centers)


def assign_anchors(
    bench: Bench, ours: dict[str, Record], x: torch.Tensor, centers: torch.Tensor
) -> None:
    def check(labels: torch.Tensor) -> str:
        return wrong_labels(x, centers, labels)

    def chunked(dtype: torch.dtype) -> Callable[[], torch.Tensor]:
        values, transposed = x.to(dtype), centers.to(dtype).T.contiguous()
        norms = centers.square().sum(1)

        def run() -> torch.Tensor:
            step = max(1, (1 << 28) // len(centers))
            parts = [
                (norms - 2.0 * (values[i : i + step] @ transposed).float()).argmin(1)
                for i in range(0, len(values), step)
            ]
            return torch.cat(parts)

        return run

    bench.anchor(ours["exact"], "chunked torch float32", lambda: chunked(torch.float32), check)
    bench.anchor(ours["half"], "chunked torch bfloat16", lambda: chunked(torch.bfloat16), check)

    def flash_kmeans(dtype: torch.dtype) -> Callable[[], torch.Tensor]:
        from flash_kmeans.assign_euclid_triton import euclid_assign_triton

        values, c = x.to(dtype)[None], centers.to(dtype)[None]
        squares = (values**2).sum(-1).float()
        return lambda: euclid_assign_triton(values, c, squares)

    def flashlib(dtype: torch.dtype, module: str, name: str) -> Callable[[], torch.Tensor]:
        function = getattr(importlib.import_module(f"flashlib.primitives.kmeans.{module}"), name)
        values, c = x.to(dtype)[None], centers.to(dtype)[None]
        return lambda: function(values, c)

    def fastkmeans() -> Callable[[], torch.Tensor]:
        from fastkmeans.triton_kernels import triton_kmeans

        values, c = x.half(), centers.half()
        squares, norms = x.square().sum(1), centers.square().sum(1)
        best = torch.empty(len(x), dtype=torch.int64, device=x.device)

        def run() -> torch.Tensor:
            triton_kmeans(values, squares, c, norms, best)
            return best

        return run

    half, exact = ours["half"], ours["exact"]
    bench.anchor(half, "flash-kmeans float16", lambda: flash_kmeans(torch.float16), check)
    bench.anchor(exact, "flash-kmeans float32", lambda: flash_kmeans(torch.float32), check)
    triton_name, cute_name = "euclid_assign_triton", "cutedsl_assign_euclid"
    bench.anchor(
        half,
        "flashlib triton float16",
        lambda: flashlib(torch.float16, "triton.assign", triton_name),
        check,
    )
    bench.anchor(
        half,
        "flashlib cute float16",
        lambda: flashlib(torch.float16, "cutedsl.assign", cute_name),
        check,
    )
    bench.anchor(half, "fastkmeans float16", fastkmeans, check)


def bench_update(bench: Bench, kernels: Any) -> None:
    shapes = [(1 << 20, 4096, 768), (1 << 20, 1024, 384), (1 << 20, 4096, 1024)]
    for n, k, d in [(150, 7, 40)] if bench.dry else shapes:
        update_shape(bench, kernels.update, n, k, d)


def update_shape(bench: Bench, update: Any, n: int, k: int, d: int) -> None:
    x = text_like(n, d, bench.device, 1)
    generator = torch.Generator(bench.device).manual_seed(2)
    labels = torch.randint(0, k, (n,), generator=generator, device=bench.device).int()
    scale = update.FixedScale.of(update.largest_values(x), 1.0, n)
    sums = update.Sums.zeros(k, d, bench.device)

    def run(**launch: Any) -> None:
        sums.zero_()
        update.add_rows(x, labels, None, scale, sums, **launch)

    run()
    first = sums.sums.clone()
    run()
    want = torch.zeros(k, d, dtype=torch.float64, device=bench.device)
    want.index_add_(0, labels.long(), x.double())
    worst = float((sums.sums.double() / scale.columns - want).abs().max())
    same = torch.equal(first, sums.sums)
    right = worst < 1e-9 and same
    shape = f"{n}x{d} k={k} float32"
    error = f"max error {worst:.0e}, same bits twice: {same} "
    error += bench.claim(right, f"update {shape}")
    floor = bench.bytes_ms(4 * n * d + 4 * n + 8 * k * d)
    ours = bench.ours(
        "update", shape, "ours, all rows, sort included", run, floor_ms=floor, error=error
    )
    if d in (768, 40):
        bench.sweep_launches(ours, update.LAUNCHES, run)
    moved = torch.where(
        torch.rand(n, generator=generator, device=bench.device) < 0.05, (labels + 1) % k, labels
    )
    scratch = torch.empty(n + 1, dtype=torch.int32, device=bench.device)
    bench.ours(
        "update",
        shape,
        "ours, the 5% that moved",
        lambda: update.move_rows(x, labels, moved, None, scale, sums, scratch),
        floor_ms=bench.bytes_ms(0.05 * 4 * n * d + 8 * n),
    )
    old = torch.zeros(1, k, d, device=bench.device)

    def flash_kmeans() -> Callable[[], Any]:
        from flash_kmeans.centroid_update_triton import triton_centroid_update_sorted_euclid

        return lambda: triton_centroid_update_sorted_euclid(x[None], labels[None], old)

    def flashlib() -> Callable[[], Any]:
        from flashlib.primitives.kmeans.triton.update import (
            triton_centroid_update_sorted_euclid,
        )

        return lambda: triton_centroid_update_sorted_euclid(x[None], labels[None], old)

    def index_add() -> Callable[[], Any]:
        return lambda: torch.zeros_like(old[0]).index_add_(0, labels.long(), x)

    bench.anchor(ours, "flash-kmeans", flash_kmeans)
    bench.anchor(ours, "flashlib", flashlib)
    bench.anchor(ours, "torch index_add", index_add)


def bench_lloyd(bench: Bench, kernels: Any) -> None:
    n, k, d, passes = (120, 6, 16, 2) if bench.dry else (1 << 20, 1024, 384, 10)
    x = text_like(n, d, bench.device, 3)
    start = x[:k].clone()
    fit = kernels.lloyd.fit
    options = {"max_iter": passes, "tol": 0.0, "devices": [bench.device]}
    labels, centers, _, n_iter = fit(x, start, **options)
    error = wrong_labels(x, torch.from_numpy(centers).to(x), torch.from_numpy(labels).to(x.device))
    bench.claim(error.startswith("0/"), f"lloyd: {error}")
    shape = f"{n}x{d} k={k}, {n_iter} it"
    ours = bench.ours(
        "lloyd",
        shape,
        "ours exact",
        lambda: fit(x, start, **options),
        floor_ms=(n_iter + 1) * bench.half_ms(2.0 * n * k * d),
        error=error,
    )

    def flash_kmeans() -> Callable[[], Any]:
        from flash_kmeans import batch_kmeans_Euclid

        return lambda: batch_kmeans_Euclid(
            x[None], k, max_iters=passes, tol=0.0, init_centroids=start[None]
        )

    bench.anchor(ours, "flash-kmeans float32", flash_kmeans)

    def flashlib() -> Callable[[], Any]:
        from flashlib.primitives.kmeans import flash_kmeans as run

        return lambda: run(x, k, max_iters=passes, tol=0.0, init_centroids=start)

    bench.anchor(ours, "flashlib float32", flashlib)
    host = x.cpu().numpy()
    rows_bytes = host.nbytes
    streamed = partial(fit, host, start, memory_bytes=rows_bytes, **options)
    there = streamed()
    same = bool((there[0] == labels).all() and (there[1] == centers).all())
    bench.ours(
        "lloyd",
        f"{n}x{d} k={k}, streamed",
        "ours exact",
        streamed,
        # once to find the columns' largest values, then once a pass
        floor_ms=(n_iter + 2) * rows_bytes / max(bench.upload_gb_s, 1e-9) / 1e6,
        error=bench.claim(same, "lloyd: streamed rows gave other bits"),
        note="floor: the upload",
    )


# ---- loss ----------------------------------------------------------------------------------------


def bench_loss(bench: Bench, kernels: Any) -> None:
    shapes = [(16384, 4096, 128256), (8192, 576, 49152), (8192, 2048, 151936)]
    for turn, (t, h, v) in enumerate([(40, 48, 300)] if bench.dry else shapes):
        loss_shape(bench, kernels.loss, t, h, v, sweep=turn == 0)


def loss_shape(bench: Bench, loss: Any, t: int, h: int, v: int, *, sweep: bool) -> None:
    dtype = torch.float16 if bench.dry else torch.bfloat16
    generator = torch.Generator(bench.device).manual_seed(4)
    hidden = torch.randn(t, h, generator=generator, device=bench.device).to(dtype)
    lm_head = (torch.randn(v, h, generator=generator, device=bench.device) * (2.0 / h**0.5)).to(
        dtype
    )
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

    def check(nll: torch.Tensor) -> str:
        return f"max error {float((nll[some].double() - truth).abs().max()):.1e}"

    shape = f"{t}x{h}x{v} {str(dtype)[6:]}"
    best: Record | None = None
    for who, function in (
        ("ours fused", loss.token_nll),
        ("ours blocked", loss.blocked_token_nll),
    ):
        run = partial(function, hidden, lm_head, targets, **options)
        worst = float((run()[some].double() - truth).abs().max())
        error = f"max error {worst:.1e} (naive {allowed:.1e}) "
        error += bench.claim(worst <= allowed, f"loss {shape} {who}")
        record = bench.ours(
            "loss",
            shape,
            who,
            run,
            floor_ms=bench.half_ms(2.0 * t * h * v),
            error=error,
            note=f"transient {bench.transient_mb(run):.0f} MB",
        )
        if who == "ours fused" and sweep:
            bench.sweep_launches(record, loss.LAUNCHES, run)
        if best is None or (record.ms or 0) < (best.ms or 0):
            best = record
    assert best is not None
    loss_anchors(bench, best, hidden, lm_head, targets, check)
    reduce_examples(bench, loss, t, targets)


def loss_anchors(
    bench: Bench,
    ours: Record,
    hidden: torch.Tensor,
    lm_head: torch.Tensor,
    targets: torch.Tensor,
    check: Callable[[torch.Tensor], str],
) -> None:
    def chunked() -> Callable[[], torch.Tensor]:
        def run() -> torch.Tensor:
            parts = [
                torch.nn.functional.cross_entropy(
                    (hidden[i : i + 512] @ lm_head.T).float(),
                    targets[i : i + 512],
                    reduction="none",
                )
                for i in range(0, len(hidden), 512)
            ]
            return torch.cat(parts)

        return run

    def liger() -> Callable[[], torch.Tensor]:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        # It only takes a mean: the error is not comparable.
        fused = LigerFusedLinearCrossEntropyLoss(reduction="mean")

        def run() -> torch.Tensor:
            with torch.no_grad():
                return fused(lm_head, hidden, targets)

        return run

    def cut_cross_entropy() -> Callable[[], torch.Tensor]:
        from cut_cross_entropy import linear_cross_entropy

        def run() -> torch.Tensor:
            with torch.no_grad():
                return linear_cross_entropy(hidden, lm_head, targets, reduction="none")

        return run

    bench.anchor(ours, "chunked torch", chunked, check)
    if bench.device.type == "cuda":
        bench.anchor(ours, "liger-kernel", liger)
        bench.anchor(ours, "cut-cross-entropy", cut_cross_entropy, check)


def reduce_examples(bench: Bench, loss: Any, t: int, targets: torch.Tensor) -> None:
    nll = torch.rand(t, device=bench.device)
    bounds = torch.arange(0, t + 1, max(1, t // 64), device=bench.device)
    bounds[-1] = t
    labels = torch.randint(0, 16, (len(bounds) - 1,), device=bench.device)

    def run() -> Any:
        mean, count = loss.example_nll(nll, targets, bounds, ignore_index=-100)
        return loss.cluster_nll(mean, labels, 16, example_count=count)

    total, _ = run()
    again, _ = run()
    same = torch.equal(total, again)
    bench.ours(
        "loss",
        f"{t} tokens, {len(labels)} examples",
        "ours, by example and cluster",
        run,
        error=bench.claim(same, "loss: cluster sums differ between runs"),
    )


# ---- compiling for a chip that is not here -------------------------------------------------------


class ElsewhereDriver:
    """As much of a Triton driver as compiling needs."""

    def __init__(self, capability: int) -> None:
        from triton.backends.compiler import GPUTarget

        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_all(capability: int) -> int:
    """Compile what each function launches, and print what the machine code takes."""
    import triton
    from triton.runtime.jit import JITFunction

    triton.runtime.driver.set_active(ElsewhereDriver(capability))
    kernels = load_kernels()
    if capability < 90:
        kernels.assign.has_tma = kernels.loss.has_tma = lambda device: False
    tools = Path(triton.__path__[0]) / "backends" / "nvidia" / "bin"
    compile_, seen, slow = JITFunction.run, set(), []

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = compile_(self, *args, grid=grid, warmup=True, **options)
        if kernel.hash in seen:
            return kernel
        seen.add(kernel.hash)
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(kernel.asm["cubin"])
            file.flush()
            dump = [str(tools / "cuobjdump"), "--dump-resource-usage", "--dump-sass", file.name]
            text = subprocess.run(dump, capture_output=True, text=True, check=True).stdout
        registers, stack = map(int, re.findall(r"REG:(\d+) STACK:(\d+)", text)[0])
        product = next((name for name in ("HGMMA", "HMMA") if f" {name}." in text), "-")
        loads = next((name for name in ("UTMALDG", "LDGSTS") if name in text), "LDG")
        shared = kernel.metadata.shared // 1024
        print(
            f"{self.__name__:24} warps={kernel.metadata.num_warps} registers={registers:3}"
            f" stack={stack:3} shared={shared:3}K {product:5} {loads}",
            flush=True,
        )
        if self.__name__ in ("_nearest_kernel", "_part_kernel") and product == "-":
            slow.append(self.__name__)
        return kernel

    JITFunction.run = compile_only  # type: ignore[method-assign]  # launches become compilations
    x, centers = torch.randn(512, 768), torch.randn(300, 768)
    print(f"triton {triton.__version__}, compute capability {capability / 10}")
    with torch.no_grad():
        hidden = torch.zeros(4, 512, 1024, dtype=torch.bfloat16)
        mask = torch.ones(4, 512, dtype=torch.int64)
        for mode in ("mean", "weighted_mean", "cls"):
            kernels.pool.pool(hidden, mask, mode=mode, normalize=True)
        kernels.pool.pool(hidden.repeat(64, 1, 1), mask.repeat(64, 1), mode="mean", normalize=True)
        prepared = kernels.assign.prepare_centers(centers, kernels.assign.shift_of(centers))
        bad = torch.full((), kernels.assign.NONE_BAD)
        rows = kernels.assign.prepare_rows(x, prepared, bad)
        labels = torch.zeros(512, dtype=torch.int32)
        scratch = kernels.assign.Scratch.of(512, x.device)
        for launch in kernels.assign.NEAREST_LAUNCHES[:1]:
            for precision in ("exact", "half"):
                kernels.assign.nearest(
                    rows, prepared, labels, scratch, precision=precision, launch=launch
                )
        kernels.assign.nearest(rows, prepared, labels, scratch, precision="tf32")
        kernels.assign.distances(x, centers, labels)
        scale = kernels.update.FixedScale.of(kernels.update.largest_values(x), 1.0, 512)
        sums = kernels.update.Sums.zeros(300, 768, x.device)
        kernels.update.add_rows(x, labels, None, scale, sums)
        moved = torch.zeros(513, dtype=torch.int32)
        kernels.update.move_rows(x, labels, labels, None, scale, sums, moved)
        states, head = torch.zeros(2, 256, 1024, dtype=torch.bfloat16)
        targets = torch.zeros(256, dtype=torch.int64)
        for launch in kernels.loss.LAUNCHES[:1]:
            kernels.loss.token_nll(
                states, head, targets, bias=None, softcap=None, ignore_index=-100, launch=launch
            )
        shared = {"bias": None, "softcap": None, "ignore_index": -100}
        kernels.loss.blocked_token_nll(states, head, targets, **shared)
        nll = torch.zeros(256)
        bounds = torch.tensor([0, 100, 256])
        mean, count = kernels.loss.example_nll(nll, targets, bounds, ignore_index=-100)
        kernels.loss.cluster_nll(
            torch.zeros_like(mean), torch.zeros(2, dtype=torch.int64), 3, example_count=count
        )
    print(f"{len(seen)} kernels compiled")
    if slow:
        print(f"no tensor cores in {', '.join(sorted(set(slow)))}")
    return 1 if slow else 0


# ---- all of it -----------------------------------------------------------------------------------

OPS = {
    "pool": bench_pool,
    "assign": bench_assign,
    "update": bench_update,
    "loss": bench_loss,
    "lloyd": bench_lloyd,
}


def versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for name in (
        "torch",
        "triton",
        "numpy",
        "flash-kmeans",
        "flashlib",
        "fastkmeans",
        "sentence-transformers",
        "liger-kernel",
        "cut-cross-entropy",
    ):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes, interpreted")
    parser.add_argument("--compile", type=int, metavar="CAPABILITY", help="90 for Hopper")
    parser.add_argument("--only", default=",".join(OPS), help="ops, separated by commas")
    parser.add_argument("--no-sweep", action="store_true", help="only the launches in use")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    if options.compile:
        return compile_all(options.compile)
    if not options.dry_run and not torch.cuda.is_available():
        print("no CUDA device: use --dry-run, or a machine with one", file=sys.stderr)
        return 2
    device = torch.device("cpu" if options.dry_run else "cuda")
    torch.manual_seed(0)
    kernels = load_kernels()
    bench = Bench(device, options.dry_run, not options.no_sweep)
    name = "interpreter" if options.dry_run else torch.cuda.get_device_name()
    print(f"{name}, {', '.join(f'{k} {v}' for k, v in versions().items())}")
    bench.measure_limits()
    print(HEADER)
    for op in options.only.split(","):
        if bench.elapsed_s > BUDGET_S:
            print(f"{op}: not run, {BUDGET_S:.0f} s are over")
            continue
        with torch.inference_mode():
            OPS[op](bench, kernels)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    report = {
        "device": name,
        "versions": versions(),
        "limits": {
            "copy_tb_s": bench.copy_tb_s,
            "bf16_tflops": bench.half_tflops,
            "tf32_tflops": bench.tf32_tflops,
            "upload_gb_s": bench.upload_gb_s,
        },
        "seconds": bench.elapsed_s,
        "wrong": bench.wrong,
        "records": [asdict(record) for record in bench.records],
    }
    if not options.dry_run or options.output != ROOT / "benchmarks" / "results":
        options.output.mkdir(parents=True, exist_ok=True)
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        path = options.output / f"gpu-{slug}.json"
        path.write_text(json.dumps(report, indent=1) + "\n")
        print(f"written: {path}")
    print(f"{bench.elapsed_s:.0f} s; " + ("; ".join(bench.wrong) or "nothing wrong"))
    return 1 if bench.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
