"""Facility location: rows that together resemble every row of the pool."""

from __future__ import annotations

from pyids._typing import Int64
from pyids.methods.greedy import facility_location
from pyids.methods.method import method
from pyids.methods.pool import Pool


@method(
    needs=("embeddings",),
    source="Nemhauser et al. 1978; Minoux 1978; Mirzasoleiman et al., arXiv 1409.7938",
    cost="O(N^2 D) time (N m D with `served` = m), about 20 N bytes and `list_bytes`",
    guarantee="at least 1 - 1/e of the best value; stochastic: 1 - 1/e - epsilon, expected",
)
def select(
    pool: Pool,
    budget: int,
    *,
    seed: int,
    epsilon: float = 0.0,
    served: int | None = None,
    list_bytes: int = 1 << 29,
) -> Int64:
    """Take the rows that represent the pool best: greedy facility location on the cosine.

    In the order of picking: any prefix is the selection of a smaller budget. Equal gains go to the
    lower row.

    Parameters
    ----------
    epsilon
        0: lazy greedy, exactly the picks of the plain one. Above 0: stochastic greedy, whose
        candidates are ``N / budget * log(1 / epsilon)`` random rows a pick. Drawing them takes
        O(N) a pick on one thread.
    served
        Represent this many random rows instead of all: the value is then estimated, with an error
        of the order ``1 / sqrt(served)``. For pools above some hundred thousand rows.
    list_bytes
        About the most memory for lists of pairs that still matter: time, not the result.
    """
    return facility_location(
        pool.embeddings,
        budget,
        epsilon=epsilon,
        served=served,
        seed=seed,
        row_ids=pool.row_ids,
        list_bytes=list_bytes,
        threads=pool.threads,
    ).rows
