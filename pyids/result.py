"""What a selection came to."""

from __future__ import annotations

import html
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyids._typing import Float64, Int64

if TYPE_CHECKING:
    import datasets

# Names in a printed result stand for at most so many clusters.
_SHOWN_CLUSTERS = 5


@dataclass(frozen=True)
class Result:
    """The rows that were selected, and why.

    Attributes
    ----------
    path
        The exported rows.
    run_folder
        The run folder.
    ids : int64 array of shape (b,)
        Row ids, ascending: positions in the input.
    clusters : int32 array of shape (b,) or None
        The cluster of each; None for a method that needs no clusters.
    rounds : int64 array of shape (b,) or None
        The round that drew each, from 1; None without rounds.
    weights : float64 array of shape (R, K) or None
        The weights of the clusters that each round drew by; None without rounds.
    """

    path: Path
    run_folder: Path
    ids: Int64
    clusters: NDArray[np.integer[Any]] | None = None
    rounds: NDArray[np.integer[Any]] | None = None
    weights: Float64 | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def dataset(self) -> datasets.Dataset:
        """The selected rows as a ``datasets.Dataset``, read when it is first asked for."""
        from pyids.data.hub import to_dataset
        from pyids.store.folder import Store

        return to_dataset(Store(self.run_folder).read_rows(self.ids))

    @property
    def manifest(self) -> dict[str, Any] | None:
        """What a run, or a selection without rounds, was made of and with; None before its end."""
        path = self.run_folder / "manifest.json"
        if self.rounds is None:
            path = self.path.with_name(f"{self.path.stem}.manifest.json")
        if not path.exists():
            return None
        manifest: dict[str, Any] = json.loads(path.read_bytes())
        return manifest

    def _summary(self) -> list[tuple[str, str]]:
        lines = [("rows", f"{len(self.ids):,}"), ("file", str(self.path))]
        if self.clusters is not None:
            number, count = np.unique(self.clusters, return_counts=True)
            largest = np.argsort(-count, kind="stable")[:_SHOWN_CLUSTERS]
            shown = ", ".join(f"{number[j]}: {count[j]}" for j in largest)
            lines.append(("clusters", f"{len(number)}, with the most rows {shown}"))
        if self.rounds is not None:
            counts = np.bincount(self.rounds)[1:]
            lines.append(("rounds", ", ".join(f"{count} rows" for count in counts)))
        return [*lines, ("run folder", str(self.run_folder))]

    def __repr__(self) -> str:
        return "\n".join(["Selection", *(f"  {name:10}  {text}" for name, text in self._summary())])

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th>{name}</th><td>{html.escape(text)}</td></tr>"
            for name, text in self._summary()
        )
        return f"<table>{rows}</table>"
