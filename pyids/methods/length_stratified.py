"""Random rows, stratified by the length of the response."""

from __future__ import annotations

import numpy as np

from pyids._typing import Int64
from pyids.errors import ConfigError
from pyids.methods.draws import charged_quotas, draw, draw_evenly
from pyids.methods.method import method
from pyids.methods.pool import Pool


@method(
    needs=("lengths",),
    uses=("already",),
    source="Xia et al., Rethinking Data Selection at Scale, arXiv 2410.09335",
    cost="O(N log N)",
)
def select(pool: Pool, budget: int, *, seed: int, strata: int = 10, flat: bool = False) -> Int64:
    """Draw rows at random within strata of response length.

    Parameters
    ----------
    strata
        How many. By default they are quantiles (as near as can be equally many rows each, equal
        lengths in row order) and each gives its share: the lengths of the selection are those of
        the pool, without the luck of a plain draw.
    flat
        Strata of equal width on the logarithm of the length instead, which give equally many rows
        as far as they can: short and long responses are evenly represented.

    Raises
    ------
    ConfigError
        `strata` is below 1.
    """
    if strata < 1:
        raise ConfigError(f"strata is {strata}: give at least 1")
    n = len(pool)
    trained = np.empty(0, np.int64) if pool.already is None else pool.already.lengths
    if flat:
        logs = np.log1p(pool.lengths)
        edges = np.linspace(logs.min(), logs.max(), strata + 1)[1:-1]
        groups = np.searchsorted(edges, logs, "right").astype(np.int32)
        charge = np.bincount(np.searchsorted(edges, np.log1p(trained), "right"), minlength=strata)
        return draw_evenly(pool, groups, budget, seed, charge)
    order = np.argsort(pool.lengths, kind="stable")
    ranks = np.empty(n, np.int64)
    ranks[order] = np.arange(n)
    groups = (ranks * strata // n).astype(np.int32)
    places = np.minimum(np.searchsorted(pool.lengths[order], trained), n - 1)
    charge = np.bincount(places * strata // n, minlength=groups.max() + 1)
    sizes = np.bincount(groups)
    quotas = charged_quotas(budget, sizes + charge, charge, sizes, seed=seed)
    return draw(pool, groups, quotas, seed)
