"""How many rows the half-precision scores leave open, counted by the kernels themselves.

    python benchmarks/certificate.py [--rows 262144] [--sample 8192] [--embeddings x.npy]

No GPU: centers come from one pass of Lloyd's algorithm over all rows in torch, then a sample of the
rows goes through the kernels in Triton's interpreter. Beside what they count stands what one bound
for all centers (that of the longest) would leave open, and what settling the rest should take on an
H100 at a million rows of 768 columns and 4,096 centers: an estimate, by the rates below.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

os.environ["TRITON_INTERPRET"] = "1"
sys.path.insert(0, str(Path(__file__).parent / "gpu"))

import torch
from harness import load_kernels
from kmeans import rows_of, wrong_labels

# kind of rows, D, K
CASES = [("isotropic", 384, 1024), ("isotropic", 768, 1024), ("text-like", 384, 1024)]
# An H100's memory, L2 cache and matrix rate; half of it where rows are gathered.
MEMORY_TB_S, HALF_TFLOPS = 3.0, 790.0 / 2


def centers_after_an_update(x: torch.Tensor, k: int) -> torch.Tensor:
    """Means of the rows nearest to k of the rows, scored in float32: near enough for this."""
    centers = x[torch.randperm(len(x))[:k]]
    shift = x.mean(0)
    moved, norms = centers - shift, (centers - shift).square().sum(1) / 2
    labels = torch.cat([(norms - (part - shift) @ moved.T).argmin(1) for part in x.split(16384)])
    sums = torch.zeros(k, x.shape[1], dtype=torch.float64).index_add_(0, labels, x.double())
    return (sums / labels.bincount(minlength=k).clamp(min=1)[:, None]).float()


def open_with_one_bound(rows: Any, centers: Any, k: int) -> float:
    """Share of rows left open if every center had the longest one's bound, column not packed."""
    high, unit = centers.high[:k].float(), float(centers.unit)
    reach, rho = (float(v) for v in centers.limits[:2])
    score = rows.half.float() @ high.T / rows.scale[:, None] + centers.half_norm[:k]
    top = score.topk(2, dim=1).values
    far = (rows.length + rows.error) * (1 + rho)
    bound = rows.error + (rows.length + rows.error) * rho
    bound += (rows.half.shape[1] * 2.0**-23 + 2.0**-22) * far + 2.0**-23 * reach
    return float((top[:, 0] - top[:, 1] <= 2.02 * bound * reach * unit).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=1 << 18)
    parser.add_argument("--sample", type=int, default=8192)
    parser.add_argument("--embeddings", type=Path, help="real rows (N, D), K = N / 256")
    options = parser.parse_args()
    assign = load_kernels().assign
    print(f"{'rows':10} {'D':>5} {'K':>5} {'one bound':>10} {'own bounds':>10}", end=" ")
    print(" ".join(f"{stage:>14}" for stage in assign.STAGES), " settling, 1M x 768, K 4096")
    cases = list(CASES)
    if options.embeddings:
        given = torch.from_numpy(np.load(options.embeddings).astype(np.float32))
        cases = [("given", given.shape[1], len(given) // 256), *cases]
    for kind, d, k in cases:
        torch.manual_seed(0)
        x = given if kind == "given" else rows_of(kind, options.rows, d, torch.device("cpu"))
        centers = centers_after_an_update(x, k)
        x = x[torch.randperm(len(x))[: options.sample]]
        prepared = assign.prepare_centers(centers, assign.shift_of(centers))
        rows = assign.prepare_rows(x, prepared, torch.full((), assign.NONE_BAD))
        labels = torch.empty(len(x), dtype=torch.int32)
        scratch = assign.Scratch.of(len(x), x.device)
        launch = assign.NEAREST_LAUNCHES[0]
        assign.nearest(rows, prepared, labels, scratch, launch=launch)
        counts = scratch.lengths()
        shares = [count / len(x) for count in counts]
        # Two candidates: a row and two centers are read, the centers from the L2 cache. More: the
        # half-precision product again.
        two = shares[0] * 2**20 * 3 * 4 * 768 / MEMORY_TB_S / 1e9
        more = shares[1] * 2**20 * 2.0 * 4096 * 768 / HALF_TFLOPS / 1e9
        print(
            f"{kind:10} {d:5} {k:5} {open_with_one_bound(rows, prepared, k):10.2%}"
            f" {sum(shares[:2]):10.2%} " + " ".join(f"{share:14.3%}" for share in shares) +
            f"  {two:.2f} + {more:.2f} ms; {wrong_labels(x, centers, labels)}",
            flush=True,
        )  # fmt: skip


if __name__ == "__main__":
    main()
