"""RDS+: the rows nearest to the target's."""

from __future__ import annotations

from pyids._typing import Int64
from pyids.methods.method import method
from pyids.methods.pool import Pool
from pyids.methods.whitening import fit_whitening
from pyids.nearest import round_robin


@method(
    needs=("embeddings", "target"),
    source="Ivison et al. (RDS+), arXiv 2503.01807; whitened: CRDS-W, arXiv 2602.13773",
    cost="O(N Q D) time for Q target rows, 64 MB of lists and N bytes",
    guarantee="the picks of the plain round-robin, exactly",
)
def select(
    pool: Pool, budget: int, *, seed: int, whiten: bool = False, components: int | None = None
) -> Int64:
    """Let the target's rows take turns: each takes the nearest row that is not taken yet.

    By the cosine of the vectors that `--encoder` makes: with a causal language model as encoder
    these are its hidden states, weighted by position, as published; a sentence encoder is cheaper.
    Nothing is drawn. In the order of picking; equal cosines go to the lower row.

    Parameters
    ----------
    whiten
        Give all directions of the pool's vectors the same variance first.
    components
        Whiten to this many directions, those of largest variance.
    """
    target = pool.target
    transform = fit_whitening(pool.embeddings, components) if whiten else None
    return round_robin(
        pool.embeddings, target.vectors, budget, tasks=target.tasks, transform=transform
    ).rows
