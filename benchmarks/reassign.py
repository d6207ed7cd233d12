"""What bounds across the passes of Lloyd's algorithm would save the assignment: a simulation.

    python benchmarks/reassign.py [--rows 65536] [--clusters 256] [--passes 20] [--embeddings x.npy]

A row keeps its label without a product if its distance to its own center (one distance, always
taken) is below what every other center can have come to. Two bounds are counted, each in passes:
rows times centers multiplied, over rows times centers.

    one bound   less by the largest move of any center (Hamerly, 2010)
    movers      the quarter of the centers that moved most is multiplied for every row, the bound is
                less by the largest move of the rest; only a row that fails takes those too
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent / "gpu"))
from kmeans import rows_of


def distances(x: torch.Tensor, centers: torch.Tensor) -> torch.Tensor:
    squares = x.square().sum(1)[:, None] + centers.square().sum(1) - 2 * x @ centers.T
    return squares.clamp(min=0).sqrt()


def simulate(x: torch.Tensor, k: int, passes: int) -> None:
    n = len(x)
    centers = x[torch.randperm(n)[:k]]
    bounds = {"one bound": torch.empty(n), "movers": torch.empty(n)}
    spent = {name: 0.0 for name in bounds}
    labels = torch.zeros(n, dtype=torch.int64)
    moves = torch.zeros(k)
    for turn in range(passes):
        order = moves.argsort(descending=True)
        most, rest = order[: k // 4], order[k // 4 :]
        moved = 0
        for rows in torch.arange(n).split(8192):
            every = distances(x[rows], centers)
            old = labels[rows]
            own = every.gather(1, old[:, None])[:, 0]
            others = every.scatter(1, old[:, None], torch.inf)
            new = every.argmin(1)
            second = every.scatter(1, new[:, None], torch.inf).amin(1)
            if turn == 0:
                for bound in bounds.values():
                    bound[rows] = second
            else:
                one = bounds["one bound"][rows] - moves.max()
                fails = own > one
                spent["one bound"] += float(fails.sum()) / n
                bounds["one bound"][rows] = torch.where(fails, second, one)
                far = bounds["movers"][rows] - moves[rest].max()
                near = others[:, most].amin(1)
                fails = torch.minimum(own, near) > far
                spent["movers"] += (0.25 + 0.75 * float(fails.float().mean())) * len(rows) / n
                # What goes to a mover has its old center behind it, and the second of the movers.
                left = torch.minimum(far, torch.where(new == old, near, own))
                two = others[:, most].topk(2, dim=1, largest=False).values[:, 1]
                left = torch.where(new == old, left, torch.minimum(left, two))
                bounds["movers"][rows] = torch.where(fails, second, left)
            moved += int((new != old).sum())
            labels[rows] = new
        if turn == 0:
            spent = {name: 1.0 for name in bounds}
        sums = torch.zeros(k, x.shape[1]).index_add_(0, labels, x)
        counts = labels.bincount(minlength=k)[:, None]
        means = torch.where(counts > 0, sums / counts.clamp(min=1), centers)
        moves = (means - centers).norm(dim=1) * (1 + 1e-5)
        centers = means
        if turn in (0, 1, 2, 4, 9, 14, passes - 1):
            figures = ", ".join(f"{name} {value:.2f}" for name, value in spent.items())
            print(f"pass {turn + 1:3}: moved {moved / n:6.2%}; passes spent: {figures}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=65536)
    parser.add_argument("--clusters", type=int, default=256)
    parser.add_argument("--passes", type=int, default=20)
    parser.add_argument("--embeddings", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    if options.embeddings:
        x = torch.from_numpy(np.load(options.embeddings).astype(np.float32))
    else:
        x = rows_of("text-like", options.rows, 384, torch.device("cpu"))
    simulate(x, options.clusters, options.passes)


if __name__ == "__main__":
    main()
