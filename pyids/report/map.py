"""Vectors as points of a plane."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pyids._typing import Float64, Int64
from pyids.errors import ConfigError
from pyids.store.folder import Store
from pyids.store.ledger import load_npy

Projection: TypeAlias = Literal["pca", "umap"]

# Rows that the axes are fitted to; with more dimensions than this, a decomposition of more rows
# would take longer than the rest of the report.
_FITTED_ROWS = 3000
_FITTED_VALUES = 2_000_000


def vectors_of(store: Store, row_ids: Int64) -> NDArray[np.float32] | None:
    """Return the vectors of rows, float32 (n, D), shard by shard; None where there are none yet.

    Parameters
    ----------
    store
        The run folder.
    row_ids
        int64 (n,), ascending, of rows that stay.
    """
    found: NDArray[np.float32] | None = None
    for shard in store.shards:
        first, last = np.searchsorted(row_ids, [shard.row_ids.start, shard.row_ids.stop])
        if first == last:
            continue
        if not (path := store.artifact("embeddings", shard)).exists():
            return None
        vectors: NDArray[Any] = load_npy(path)
        at = np.searchsorted(load_npy(store.artifact("keep", shard)), row_ids[first:last])
        if found is None:
            found = np.empty((len(row_ids), vectors.shape[1]), dtype=np.float32)
        found[first:last] = vectors[at]
    return found


def project(
    vectors: NDArray[np.float32], method: Projection = "pca", seed: int = 0
) -> tuple[Float64, float | None]:
    """Bring vectors into the plane.

    Parameters
    ----------
    vectors
        float32 (n, D).
    method
        ``pca``: the two directions of the largest variance, fitted to evenly spaced rows if there
        are many; the larger loading of each is positive. ``umap``: needs the package umap-learn.
    seed
        Of UMAP.

    Returns
    -------
    points : float64 (n, 2)
        In the square from -1 to 1, to three decimals: what is left of rounding in the last bits,
        which may differ between machines, is not seen.
    explained : float or None
        Share of the variance that the plane shows; None for UMAP.

    Raises
    ------
    ConfigError
        The package of the projection is not installed.
    """
    if method == "umap":
        return _fitted(_umap(vectors, seed)), None
    values = vectors.astype(np.float64)
    values = np.nan_to_num(values - values.mean(axis=0))
    rows = min(_FITTED_ROWS, max(16, _FITTED_VALUES // max(1, values.shape[1])))
    sample = values[:: max(1, -(-len(values) // rows))]
    _, singular, axes = np.linalg.svd(sample, full_matrices=False)
    axes = np.vstack([axes[:2], np.zeros((max(0, 2 - len(axes)), values.shape[1]))])
    signs = np.sign(axes[np.arange(2), np.abs(axes).argmax(axis=1)])
    total = float(np.square(singular).sum())
    explained = float(np.square(singular[:2]).sum()) / total if total > 0 else 1.0
    return _fitted(values @ (axes * signs[:, None]).T), explained


def _fitted(points: Float64) -> Float64:
    """Move and scale points into the square from -1 to 1; both axes alike."""
    if not len(points):
        return points
    low, high = points.min(axis=0), points.max(axis=0)
    extent = float((high - low).max()) or 1.0
    fitted: Float64 = np.round((points - (low + high) / 2) * (2 / extent), 3)
    return fitted


def _umap(vectors: NDArray[np.float32], seed: int) -> Float64:
    try:
        from umap import UMAP
    except ImportError:
        raise ConfigError(
            "--projection umap needs the package umap-learn: pip install umap-learn, or leave it "
            "out for PCA"
        ) from None
    neighbors = min(15, len(vectors) - 1)
    if neighbors < 2:
        return np.zeros((len(vectors), 2))
    reducer = UMAP(n_neighbors=neighbors, random_state=seed % 2**32, n_jobs=1)
    return np.asarray(reducer.fit_transform(vectors), dtype=np.float64)
