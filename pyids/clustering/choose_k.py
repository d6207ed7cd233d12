"""``--clusters auto``: how many clusters, with the evidence.

Two criteria over one geometric grid of k: the silhouette, which the paper found to go with the
downstream result (arXiv 2409.11378, section 4.3), and the elbow of the inertia. Both are computed
before any training, on a random sample of the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pyids.clustering.extent import Metric
from pyids.clustering.kmeans import KMeans
from pyids.clustering.nearest import simplified_silhouette
from pyids.errors import ConfigError
from pyids.neighbors import take_rows
from pyids.sampling import sample_by_cluster

Criterion: TypeAlias = Literal["silhouette", "elbow"]


@dataclass(frozen=True)
class Choice:
    """The number of clusters that was chosen, and why.

    Attributes
    ----------
    k : int
        What `criterion` chose.
    evidence : dict
        A JSON value: ``criterion``, ``rows`` (of the sample), ``silhouette_k``, ``elbow_k`` and
        ``grid``, a list of ``{"k", "silhouette", "inertia"}``; inertia is a mean a row.
    """

    k: int
    evidence: dict[str, Any]


def choose_k(
    shards: Sequence[NDArray[Any]],
    *,
    criterion: Criterion = "silhouette",
    grid: Sequence[int] | None = None,
    sample_rows: int = 32_768,
    metric: Metric = "euclidean",
    iterations: int = 25,
    seed: int = 0,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Choice:
    """Choose the number of clusters from the data.

    Each k of the grid is clustered once on the same sample. The silhouette is the simplified one:
    with a the distance of a row to its own center and b that to the nearest other center, the mean
    of ``(b - a) / max(a, b)`` (0 where both are 0). Cost: k-means and one N_s x k table of
    distances for each k of the grid, ``O(N_s D sum(grid) (iterations + 1))`` time and 4 N_s D bytes
    for a sample of N_s rows; for the default grid ``sum(grid) < N_s / 8``.

    Parameters
    ----------
    shards : sequence of (N_s, D) arrays
        The vectors.
    criterion : {"silhouette", "elbow"}
        Largest silhouette, or the k whose inertia lies farthest below the line from the first to
        the last point of the grid, over log k; the lower k on ties.
    grid : sequence of int, optional
        Ascending, each 2 to the number of sampled rows; `default_grid` unless given.
    sample_rows : int
        Rows of the sample, keyed by (seed, position); all rows if there are no more.
    metric, iterations, seed, threads
        Of the k-means.
    progress : callable, optional
        Called with the number of grid points done and in all.

    Raises
    ------
    ConfigError
        There is no such criterion, there are fewer than 4 rows, or the grid does not fit.
    """
    if criterion not in ("silhouette", "elbow"):
        raise ConfigError(f"criterion {criterion!r} is neither silhouette nor elbow: choose one")
    n = sum(len(shard) for shard in shards)
    if n < 4:
        raise ConfigError(f"{n} rows are too few to choose a number of clusters: give --clusters")
    drawn = sample_by_cluster(np.zeros(n, np.int32), [min(n, sample_rows)], seed=seed)
    sample = take_rows(shards, drawn)
    ks = list(default_grid(len(sample)) if grid is None else grid)
    if not ks or min(ks) < 2 or max(ks) > len(sample) or ks != sorted(set(ks)):
        raise ConfigError(
            f"the grid {ks} must be ascending: give numbers of clusters, 2 to {len(sample)} (the "
            "sampled rows)"
        )
    points = []
    for done, k in enumerate(ks, 1):
        kmeans = KMeans(k, metric=metric, max_iter=iterations, random_state=seed, n_threads=threads)
        kmeans.fit(sample)
        silhouettes = simplified_silhouette(
            sample, kmeans.cluster_centers_, metric=metric, n_threads=threads
        )
        value = float(silhouettes.mean())
        points.append({"k": k, "silhouette": value, "inertia": kmeans.inertia_ / len(sample)})
        if progress is not None:
            progress(done, len(ks))
    by_silhouette = ks[int(np.argmax([p["silhouette"] for p in points]))]
    by_elbow = ks[elbow(ks, [p["inertia"] for p in points])]
    return Choice(
        by_silhouette if criterion == "silhouette" else by_elbow,
        {
            "criterion": criterion,
            "rows": len(sample),
            "silhouette_k": by_silhouette,
            "elbow_k": by_elbow,
            "grid": points,
        },
    )


def default_grid(n_rows: int) -> list[int]:
    """Powers of two from 2 with at least 16 rows a cluster on average (at least the first)."""
    grid = [2]
    while grid[-1] * 2 * 16 <= n_rows:
        grid.append(grid[-1] * 2)
    return grid


def elbow(ks: Sequence[int], inertias: Sequence[float]) -> int:
    """Return the position of the point farthest below the chord of inertia over log k."""
    x, y = np.log(np.asarray(ks, np.float64)), np.asarray(inertias, np.float64)
    if len(x) < 3 or y[0] == y[-1]:
        return 0
    chord = y[0] + (y[-1] - y[0]) * (x - x[0]) / (x[-1] - x[0])
    return int(np.argmax(chord - y))
