"""k-means: assignment, update and whole fits, on text-like and on isotropic rows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from harness import Bench, Record

SHAPES = [(1 << 20, 4096, 768), (1 << 20, 1024, 384), (1 << 20, 4096, 1024)]


def rows_of(kind: str, n: int, d: int, device: torch.device, seed: int = 0) -> torch.Tensor:
    """Unit vectors with a common mean; isotropic about it, or text-like.

    Text-like rows lie about 1,000 topics of uneven sizes, and their directions' variances fall as
    those of embeddings of texts do (by about the power -0.8 of their rank); isotropic ones have no
    clusters at all, the worst case for telling centers apart.
    """
    generator = torch.Generator(device).manual_seed(seed)
    normal = partial(torch.randn, generator=generator, device=device)
    if kind == "isotropic":
        x = normal(n, d).add_(2.0)
    else:
        spread = torch.arange(1, d + 1, device=device) ** -0.4
        topics = normal(1000, d)
        of = (torch.rand(n, generator=generator, device=device) ** 2 * 1000).long()
        x = normal(n, d).add_(topics[of]).mul_(spread).add_(0.05)
    return torch.nn.functional.normalize(x, dim=1)


def centers_of(kernels: Any, x: torch.Tensor, k: int) -> torch.Tensor:
    """Centers after one update from k rows: what all passes of a fit but the first meet."""
    centers = x[torch.randperm(len(x), device=x.device)[:k]]
    labels, _ = kernels.assign.assign(x, centers, precision="half")
    sums, counts, _ = kernels.update.update(x, labels, k, sample_weight=None, centers=centers)
    return (sums / counts.clamp(min=1)[:, None]).float()


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
    for turn, (n, k, d) in enumerate([(150, 70, 40)] if bench.dry else SHAPES):
        for kind in ("text-like", "isotropic") if turn < 2 else ("text-like",):
            assign_shape(bench, kernels, kind, n, k, d, first=turn == 0 and kind == "text-like")


def assign_shape(
    bench: Bench, kernels: Any, kind: str, n: int, k: int, d: int, *, first: bool
) -> None:
    assign = kernels.assign
    x = rows_of(kind, n, d, bench.device)
    centers = centers_of(kernels, x, k)
    prepared = assign.prepare_centers(centers, assign.shift_of(centers))
    bad = torch.full((), assign.NONE_BAD, dtype=torch.int64, device=bench.device)
    rows = assign.prepare_rows(x, prepared, bad)
    labels = torch.empty(n, dtype=torch.int32, device=bench.device)
    scratch = assign.Scratch.of(n, bench.device)
    shape, ours = f"{n}x{d} k={k} {kind}", dict[str, Record]()
    for precision in ("exact", "half", "tf32") if first else ("exact", "half"):
        run = partial(assign.nearest, rows, prepared, labels, scratch, precision=precision)
        run()
        error, note = wrong_labels(x, centers, labels), ""
        if precision == "exact":
            counts = zip(assign.STAGES, scratch.lengths(), strict=True)
            note = ", ".join(f"{name} {count / n:.2%}" for name, count in counts)
        rate = "tf32_tflops" if precision == "tf32" else "bf16_tflops"
        ours[precision] = bench.ours(
            shape,
            f"ours {precision}",
            run,
            floor_ms=bench.product_ms(2.0 * n * k * d, rate),
            error=error,
            note=note,
            wrong=precision == "exact" and not error.startswith("0/"),
        )
        if first and precision != "tf32":
            bench.sweep_launches(ours[precision], assign.NEAREST_LAUNCHES, run)
    if kind == "text-like":
        prepare = partial(assign.prepare_rows, x, prepared, bad)
        floor = bench.bytes_ms(n * d * (x.element_size() + 2))
        bench.ours(shape, "ours, rows once a fit", prepare, floor_ms=floor)
        each = partial(assign.prepare_centers, centers, prepared.shift)
        bench.ours(shape, "ours, centers each pass", each)
    assign_anchors(bench, ours, x, centers, first)


def assign_anchors(
    bench: Bench, ours: dict[str, Record], x: torch.Tensor, centers: torch.Tensor, first: bool
) -> None:
    def check(labels: Any) -> str:
        return wrong_labels(x, centers, torch.as_tensor(labels, device=x.device))

    def chunked() -> Callable[[], torch.Tensor]:
        transposed, norms = centers.T.contiguous(), centers.square().sum(1)
        step = max(1, (1 << 28) // len(centers))

        def nearest(part: torch.Tensor) -> torch.Tensor:
            return (norms - 2.0 * (part @ transposed)).argmin(1)

        return lambda: torch.cat([nearest(part) for part in torch.split(x, step)])

    def flash_kmeans(dtype: torch.dtype) -> Callable[[], torch.Tensor]:
        from flash_kmeans.assign_euclid_triton import euclid_assign_triton

        values, c = x.to(dtype)[None], centers.to(dtype)[None]
        squares = (values**2).sum(-1).float()
        return lambda: euclid_assign_triton(values, c, squares)

    def faiss_gpu() -> Callable[[], Any]:
        import faiss

        if not hasattr(faiss, "GpuIndexFlatL2"):
            raise ModuleNotFoundError("faiss has no GPU here", name="faiss-gpu")
        index = faiss.GpuIndexFlatL2(faiss.StandardGpuResources(), x.shape[1])
        index.add(centers.cpu().numpy())
        host = x.cpu().numpy()
        return lambda: index.search(host, 1)[1][:, 0]

    if first:
        bench.anchor(ours["exact"], "chunked torch float32", chunked, check)
        bench.anchor(ours["exact"], "faiss-gpu flat, rows from host", faiss_gpu, check)
    half, single = torch.float16, torch.float32
    bench.anchor(ours["half"], "flash-kmeans float16", lambda: flash_kmeans(half), check)
    bench.anchor(ours["exact"], "flash-kmeans float32", lambda: flash_kmeans(single), check)


def bench_update(bench: Bench, kernels: Any) -> None:
    for turn, (n, k, d) in enumerate([(150, 7, 40)] if bench.dry else SHAPES):
        update_shape(bench, kernels.update, n, k, d, sweep=turn == 0)


def update_shape(bench: Bench, update: Any, n: int, k: int, d: int, *, sweep: bool) -> None:
    x = rows_of("text-like", n, d, bench.device, 1)
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
    shape = f"{n}x{d} k={k} float32"
    ours = bench.ours(
        shape,
        "ours, all rows, sort included",
        run,
        floor_ms=bench.bytes_ms(4 * n * d + 4 * n + 8 * k * d),
        error=f"max error {worst:.0e}, same bits twice: {same}",
        wrong=not (worst < 1e-9 and same),
    )
    if sweep:
        bench.sweep_launches(ours, update.LAUNCHES, run)
    few = torch.rand(n, generator=generator, device=bench.device) < 0.05
    moved = torch.where(few, (labels + 1) % k, labels)
    scratch = torch.empty(n + 4, dtype=torch.int32, device=bench.device)
    bench.ours(
        shape,
        "ours, the 5% that moved",
        lambda: update.move_rows(x, labels, moved, None, scale, sums, scratch),
        floor_ms=bench.bytes_ms(0.05 * 4 * n * d + 8 * n),
    )

    def flash_kmeans() -> Callable[[], Any]:
        from flash_kmeans.centroid_update_triton import triton_centroid_update_sorted_euclid

        old = torch.zeros(1, k, d, device=bench.device)
        return lambda: triton_centroid_update_sorted_euclid(x[None], labels[None], old)

    bench.anchor(ours, "flash-kmeans", flash_kmeans)
    zeros, index = torch.zeros(k, d, device=bench.device), labels.long()
    bench.anchor(ours, "torch index_add", lambda: lambda: zeros.zero_().index_add_(0, index, x))


def bench_lloyd(bench: Bench, kernels: Any) -> None:
    shapes = [(1 << 20, 1024, 384, 10), (1 << 20, 4096, 768, 10)]
    for turn, (n, k, d, passes) in enumerate([(120, 6, 16, 2)] if bench.dry else shapes):
        lloyd_shape(bench, kernels.lloyd.fit, n, k, d, passes, streamed=turn == 0)


def lloyd_shape(
    bench: Bench, fit: Any, n: int, k: int, d: int, passes: int, *, streamed: bool
) -> None:
    x = rows_of("text-like", n, d, bench.device, 3)
    start = x[:k].clone()
    options = {"max_iter": passes, "tol": 0.0, "devices": [bench.device]}
    labels, centers, _, n_iter = fit(x, start, **options)
    error = wrong_labels(x, torch.from_numpy(centers).to(x), torch.from_numpy(labels).to(x.device))
    shape = f"{n}x{d} k={k}, {n_iter} it"
    ours = bench.ours(
        shape,
        "ours exact",
        lambda: fit(x, start, **options),
        floor_ms=(n_iter + 1) * bench.product_ms(2.0 * n * k * d),
        error=error,
        wrong=not error.startswith("0/"),
    )

    def flash_kmeans(dtype: torch.dtype) -> Callable[[], Any]:
        from flash_kmeans import batch_kmeans_Euclid

        rows, first = x.to(dtype)[None], start.to(dtype)[None]
        return lambda: batch_kmeans_Euclid(rows, k, max_iters=passes, tol=0.0, init_centroids=first)

    def cuml() -> Callable[[], Any]:
        from cuml.cluster import KMeans

        model = KMeans(k, init=start, n_init=1, max_iter=passes, tol=0.0, output_type="cupy")
        return lambda: model.fit(x)

    bench.anchor(ours, "flash-kmeans float32", lambda: flash_kmeans(torch.float32))
    bench.anchor(ours, "flash-kmeans float16", lambda: flash_kmeans(torch.float16))
    bench.anchor(ours, "cuML float32", cuml)
    if streamed:
        host = x.cpu().numpy()
        run = partial(fit, host, start, memory_bytes=host.nbytes, **options)
        there = run()
        same = bool((there[0] == labels).all() and (there[1] == centers).all())
        bench.ours(
            f"{n}x{d} k={k}, streamed",
            "ours exact",
            run,
            # once to find the columns' largest values, then once a pass
            floor_ms=(n_iter + 2) * host.nbytes / bench.limits["upload_gb_s"] / 1e6,
            error=f"same bits as resident: {same}",
            note="floor: the upload",
            wrong=not same,
        )
