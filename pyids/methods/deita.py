"""Deita: best first, but none too near one that was taken."""

from __future__ import annotations

import warnings

import numpy as np

from pyids._typing import Int64
from pyids.errors import PyidsWarning
from pyids.methods.method import method
from pyids.methods.pool import Pool
from pyids.neighbors import filter_near


@method(
    needs=("embeddings", "quality"),
    source="Liu et al., What Makes Good Data for Alignment?, arXiv 2312.15685",
    cost="O(rows looked at x b D) time, 4 b D bytes",
    guarantee="no two rows above the threshold, if the pool has enough of them",
)
def select(pool: Pool, budget: int, *, seed: int, threshold: float = 0.9) -> Int64:
    """Take the best rows first, skipping those too near a row already taken.

    In descending order of quality; equal quality in row order. Nothing is drawn. Where too few rows
    pass, the best of the skipped ones fill the budget, with a warning.

    Parameters
    ----------
    threshold
        A row is skipped when its cosine to a taken row exceeds this.
    """
    order = np.argsort(-pool.quality, kind="stable")
    rows = filter_near(
        pool.embeddings, order, budget, threshold=threshold, threads=pool.threads
    ).rows
    if len(rows) < budget:
        warnings.warn(
            f"only {len(rows)} of {len(pool)} rows pass the filter at threshold {threshold}: the "
            f"best {budget - len(rows)} of the others fill the budget",
            PyidsWarning,
            stacklevel=2,
        )
        skipped = order[~np.isin(order, rows)]
        rows = np.concatenate([rows, skipped[: budget - len(rows)]])
    return rows
