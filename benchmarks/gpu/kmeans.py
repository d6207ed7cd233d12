"""k-means: assignment, update and whole fits, on text-like and on isotropic rows."""

from __future__ import annotations

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


def wrong_labels(x: torch.Tensor, centers: torch.Tensor, labels: Any) -> str:
    """How many of up to 16,384 labels are not those of a float64 argmin."""
    labels, centers = torch.as_tensor(labels, device=x.device).reshape(-1), centers.double()
    rows, wrong = torch.arange(0, len(x), max(1, len(x) // 16384), device=x.device), 0
    for part in rows.split(2048):
        exact = "donot_use_mm_for_euclid_dist"
        every = torch.cdist(x[part].double(), centers, compute_mode=exact)
        taken = every.gather(1, labels[part].long().clamp(min=0)[:, None])[:, 0]
        wrong += int((taken > every.amin(1) * (1 + 1e-12)).sum())
    return f"{wrong}/{len(rows)} wrong"


def flash_assign(x: torch.Tensor, centers: torch.Tensor, dtype: torch.dtype) -> Any:
    from flash_kmeans.assign_euclid_triton import euclid_assign_triton

    values, c = x.to(dtype)[None], centers.to(dtype)[None]
    return partial(euclid_assign_triton, values, c, (values**2).sum(-1).float())


def faiss_gpu(x: torch.Tensor, centers: torch.Tensor) -> Any:
    import faiss

    if not hasattr(faiss, "GpuIndexFlatL2"):
        raise ModuleNotFoundError("faiss without GPU", name="faiss-gpu")
    index, host = faiss.GpuIndexFlatL2(faiss.StandardGpuResources(), x.shape[1]), x.cpu().numpy()
    index.add(centers.cpu().numpy())
    return lambda: index.search(host, 1)[1][:, 0]


def bench_assign(bench: Bench, kernels: Any) -> None:
    for turn, shape in enumerate([(150, 70, 40)] if bench.dry else SHAPES):
        for kind in ("text-like", "isotropic")[: 2 if turn < 2 else 1]:
            assign_shape(bench, kernels, kind, *shape, first=turn == 0 and kind == "text-like")


def assign_shape(
    bench: Bench, kernels: Any, kind: str, n: int, k: int, d: int, *, first: bool
) -> None:
    assign, x = kernels.assign, rows_of(kind, n, d, bench.device)
    centers = x[torch.randperm(n, device=bench.device)[:k]]
    # Centers after an update: what all passes of a fit but the first meet.
    labels, centers, _, _ = kernels.lloyd.fit(
        x, centers, max_iter=1, tol=0.0, precision="half", devices=[bench.device]
    )
    labels, centers = (torch.from_numpy(a).to(bench.device) for a in (labels, centers))
    prepared = assign.prepare_centers(centers, assign.shift_of(centers))
    bad = torch.full((), assign.NONE_BAD, dtype=torch.int64, device=bench.device)
    rows, scratch = assign.prepare_rows(x, prepared, bad), assign.Scratch.of(n, bench.device)
    shape, ours = f"{n}x{d} k={k} {kind}", dict[str, Record]()
    for precision in ("exact", "half"):
        run = partial(assign.nearest, rows, prepared, labels, scratch, precision=precision)
        run()
        error, note = wrong_labels(x, centers, labels), ""
        if precision == "exact":
            stages = zip(assign.STAGES, scratch.lengths(), strict=True)
            note = ", ".join(f"{stage} {count / n:.2%}" for stage, count in stages)
        wrong = precision == "exact" and not error.startswith("0/")
        floor = bench.product_ms(2.0 * n * k * d)
        more = {"error": error, "note": note, "wrong": wrong}
        ours[precision] = bench.ours(shape, f"ours {precision}", run, floor, **more)
        if first:
            bench.sweep_launches(ours[precision], assign.NEAREST_LAUNCHES, run)
    check = partial(wrong_labels, x, centers)
    if first:
        prepare = partial(assign.prepare_rows, x, prepared, bad)
        bench.ours(shape, "ours, rows once a fit", prepare, bench.bytes_ms(6.0 * n * d))
        each = partial(assign.prepare_centers, centers, prepared.shift)
        bench.ours(shape, "ours, centers each pass", each)
        bench.anchor(
            ours["exact"], "faiss-gpu, rows on host", partial(faiss_gpu, x, centers), check
        )
    for name, dtype in (("half", torch.float16), ("exact", torch.float32)):
        make = partial(flash_assign, x, centers, dtype)
        bench.anchor(ours[name], f"flash-kmeans {str(dtype)[6:]}", make, check)


def bench_update(bench: Bench, kernels: Any) -> None:
    for turn, (n, k, d) in enumerate([(150, 7, 40)] if bench.dry else SHAPES):
        update, x = kernels.update, rows_of("text-like", n, d, bench.device, 1)
        labels = torch.randint(0, k, (n,), device=bench.device).int()
        scale = update.FixedScale.of(update.largest_values(x), 1.0, n)
        sums = update.Sums.zeros(k, d, bench.device)

        def add(sums: Any = sums, given: Any = (x, labels, None, scale), **launch: Any) -> Any:
            sums.zero_()
            kernels.update.add_rows(*given, sums, **launch)
            return sums.sums.clone()

        want = torch.zeros(k, d, dtype=torch.float64, device=bench.device)
        want.index_add_(0, labels.long(), x.double())
        off = float((add().double() / scale.columns - want).abs().max())
        same = torch.equal(add(), add())
        error, wrong = f"max error {off:.0e}, same bits twice: {same}", not (off < 1e-9 and same)
        shape, floor = f"{n}x{d} k={k}", bench.bytes_ms(4.0 * n * d + 4 * n + 8 * k * d)
        ours = bench.ours(shape, "ours, sort included", add, floor, error=error, wrong=wrong)
        if turn == 0:
            bench.sweep_launches(ours, update.LAUNCHES, add)
        few = torch.rand(n, device=bench.device) < 0.05
        moved = torch.where(few, (labels + 1) % k, labels)
        scratch = torch.empty(n + 4, dtype=torch.int32, device=bench.device)
        move = partial(update.move_rows, x, labels, moved, None, scale, sums, scratch)
        bench.ours(shape, "ours, the 5% that moved", move, bench.bytes_ms(0.2 * n * d + 8 * n))
        bench.anchor(ours, "flash-kmeans", partial(flash_update, x, labels, k))
        zeros, index = torch.zeros(k, d, device=bench.device), labels.long()
        bench.anchor(
            ours, "torch index_add", lambda a=(0, index, x), z=zeros: partial(z.index_add, *a)
        )


def flash_update(x: torch.Tensor, labels: torch.Tensor, k: int) -> Any:
    from flash_kmeans import centroid_update_triton as flash

    old = torch.zeros(1, k, x.shape[1], device=x.device)
    return partial(flash.triton_centroid_update_sorted_euclid, x[None], labels[None], old)


def flash_fit(x: torch.Tensor, start: torch.Tensor, passes: int, dtype: torch.dtype) -> Any:
    from flash_kmeans import batch_kmeans_Euclid

    options = {"max_iters": passes, "tol": 0.0, "init_centroids": start.to(dtype)[None]}
    return partial(batch_kmeans_Euclid, x.to(dtype)[None], len(start), **options)


def cuml_fit(x: torch.Tensor, start: torch.Tensor, passes: int) -> Any:
    from cuml.cluster import KMeans

    model = KMeans(len(start), init=start, n_init=1, max_iter=passes, tol=0.0)
    return partial(model.fit, x)


def bench_lloyd(bench: Bench, kernels: Any) -> None:
    shapes = [(1 << 20, 1024, 384, 10), (1 << 20, 4096, 768, 10)]
    for turn, (n, k, d, passes) in enumerate([(120, 6, 16, 2)] if bench.dry else shapes):
        x = rows_of("text-like", n, d, bench.device, 3)
        start = x[:k].clone()
        fit = partial(kernels.lloyd.fit, max_iter=passes, tol=0.0, devices=[bench.device])
        labels, centers, _, n_iter = fit(x, start)
        error = wrong_labels(x, torch.from_numpy(centers).to(x.device), labels)
        shape, wrong = f"{n}x{d} k={k}, {n_iter} it", not error.startswith("0/")
        floor = (n_iter + 1) * bench.product_ms(2.0 * n * k * d)
        run = partial(fit, x, start)
        ours = bench.ours(shape, "ours exact", run, floor, error=error, wrong=wrong)
        for dtype in (torch.float32, torch.float16):
            make = partial(flash_fit, x, start, passes, dtype)
            bench.anchor(ours, f"flash-kmeans {str(dtype)[6:]}", make)
        bench.anchor(ours, "cuML float32", partial(cuml_fit, x, start, passes))
        if turn == 0:
            host = x.cpu().numpy()
            run = partial(fit, host, start, memory_bytes=host.nbytes)
            there = run()
            same = bool((there[0] == labels).all() and (there[1] == centers).all())
            # once to find the columns' largest values, then once a pass
            floor = (n_iter + 2) * host.nbytes / bench.limits["upload_gb_s"] / 1e6
            more = {"error": f"same bits as resident: {same}", "wrong": not same}
            bench.ours(f"{shape}, streamed", "ours (floor: upload)", run, floor, **more)
