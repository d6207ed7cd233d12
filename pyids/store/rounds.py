"""What the rounds of a selection leave in the run folder: ``rounds/1/``, ``rounds/2/``, ...

A round is drawn once ``selected.npy`` stands, and told once ``weights.npy`` does: each is the last
file that its step writes. Rounds are counted from 0 here, folders from 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pyids._typing import Float64, Int64
from pyids.errors import ModelError
from pyids.store.files import atomic_write, read_json, write_json
from pyids.store.folder import Store
from pyids.store.ledger import load_npy, save_npy


def last_checkpoint(folder: Path) -> Path:
    """Return the folder of the last checkpoint that a run has trained.

    Raises
    ------
    ModelError
        It has trained none.
    """
    if not (trained := _checkpoints(folder)):
        raise ModelError(f"{folder}: this run has trained no checkpoint")
    return max(trained, key=lambda path: int(path.parent.name))


def has_checkpoint(folder: Path) -> bool:
    """Whether this is the folder of a run that has trained a checkpoint."""
    return bool(_checkpoints(folder))


def has_drawn(folder: Path) -> bool:
    """Whether this is the folder of a run that has drawn rows."""
    return (folder / "rounds" / "1" / "selected.npy").exists()


def _checkpoints(folder: Path) -> list[Path]:
    return [path.parent for path in (folder / "rounds").glob("*/checkpoint/checkpoint.json")]


class Rounds:
    """The rounds of one run folder.

    Parameters
    ----------
    store
        The run folder.
    sizes
        int64 (K,), rows of each cluster.
    first_weights
        float64 (K,) summing to 1, what the first round draws by; equal unless given.
    """

    def __init__(self, store: Store, sizes: Int64, first_weights: Float64 | None = None) -> None:
        self._folder = store.path / "rounds"
        self.first_weights = first_weights
        self.sizes = sizes
        self.n_clusters = len(sizes)

    def path(self, n: int, name: str) -> Path:
        """Path of a file of round `n`."""
        return self._folder / str(n + 1) / name

    @property
    def drawn(self) -> int:
        """How many rounds have been drawn."""
        return self._count("selected.npy")

    @property
    def told(self) -> int:
        """How many rounds have been told."""
        return self._count("weights.npy")

    def _count(self, name: str) -> int:
        n = 0
        while self.path(n, name).exists():
            n += 1
        return n

    # -- the draw --

    def save_draw(self, n: int, quotas: Int64, selected: Int64) -> None:
        """Keep what round `n` drew: rows of each cluster (K,), and their ids."""
        self._save(n, "quotas.npy", quotas)
        self._save(n, "selected.npy", selected)

    def save_candidates(self, n: int, table: Mapping[str, NDArray[Any]]) -> None:
        """Keep what round `n` saw of the rows that it could draw."""
        self._save_table(n, "candidates.parquet", table)

    def candidates(self, n: int) -> pa.Table:
        """Return what `save_candidates` kept."""
        return pq.read_table(self.path(n, "candidates.parquet"))

    def quotas(self, n: int) -> Int64:
        """Rows that round `n` drew from each cluster, int64 (K,)."""
        return self._load(n, "quotas.npy")

    def selected(self, n: int | None = None) -> Int64:
        """Ids of the rows that round `n` drew, or all rounds so far, ascending."""
        if n is not None:
            return self._load(n, "selected.npy")
        drawn = [self.selected(before) for before in range(self.drawn)]
        return np.sort(np.concatenate([*drawn, np.empty(0, dtype=np.int64)]))

    def left(self, n: int) -> Int64:
        """Rows of each cluster, int64 (K,), that no round before `n` drew."""
        return self.sizes - sum(map(self.quotas, range(n)), np.zeros_like(self.sizes))

    def save_probes(self, n: int, row_ids: Int64) -> None:
        """Keep the ids of the rows that round `n` scores."""
        self._save(n, "probes.npy", row_ids)

    def probes(self, n: int) -> Int64 | None:
        """Ids of the rows that round `n` scores, ascending; None before they are drawn."""
        return self._load(n, "probes.npy") if self.path(n, "probes.npy").exists() else None

    # -- the scores --

    def weights(self, n: int) -> Float64:
        """Weights of the clusters, float64 (K,) summing to 1, that round `n` draws by."""
        if n == 0 and self.first_weights is not None:
            return self.first_weights
        if n == 0:
            return np.full(self.n_clusters, 1 / self.n_clusters)
        return np.asarray(load_npy(self.path(n - 1, "weights.npy")))

    def summary(self, n: int) -> dict[str, Any]:
        """Return what the scores of round `n` came to."""
        summary: dict[str, Any] = read_json(self.path(n, "scores.json"))
        return summary

    def cluster_scores(self) -> Float64:
        """Scores of the clusters in the last told round, float64 (K,); NaN for unscored ones."""
        told = self.told
        if told == 0:
            return np.full(self.n_clusters, np.nan)
        return np.array(self.summary(told - 1)["cluster_scores"], dtype=np.float64)

    def save_told(
        self,
        n: int,
        table: Mapping[str, NDArray[Any]],
        summary: Mapping[str, Any],
        weights: Float64,
    ) -> None:
        """Keep what round `n` was told: a row of `table` a scored row, and the new weights."""
        self._save_table(n, "scores.parquet", table)
        write_json(self.path(n, "scores.json"), dict(summary))
        self._save(n, "weights.npy", weights)

    def _save_table(self, n: int, name: str, table: Mapping[str, NDArray[Any]]) -> None:
        path = self.path(n, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            pq.write_table(pa.table(dict(table)), temporary)

    def _save(self, n: int, name: str, array: NDArray[Any]) -> None:
        save_npy(self.path(n, name), array, {"round": n + 1})

    def _load(self, n: int, name: str) -> NDArray[Any]:
        return np.asarray(load_npy(self.path(n, name)))
