"""The paper's own axes: the number of clusters beside its silhouette, and the number of rounds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pyids.clustering.choose_k import choose_k

from .table import Result, gap, interval, share_closed

# What the trials of an axis vary.
PLAIN = "iterative"


def axes(folder: Path, results: Sequence[Result], clusters: int) -> dict[str, list[dict[str, Any]]]:
    """Return the share closed by k and by rounds, over the seeds that all values of an axis have.

    Parameters
    ----------
    folder
        Of the prepared pools.
    results
        Trials of one pool, and the ends of the gap.
    clusters
        The k of trials that name none.
    """
    base, reference = gap(results)
    found: dict[str, dict[int, dict[int, float]]] = {"clusters": {}, "rounds": {}}
    plain = {"clusters": clusters, "rounds": 3}
    for one in results:
        trial = one["trial"]
        if not trial["label"].startswith("iterative"):
            continue
        for axis, usual in plain.items():
            mine = trial["label"] == PLAIN
            if mine or trial["options"].keys() & plain.keys() == {axis}:
                value = trial["options"].get(axis, usual)
                share = share_closed(one, base, reference)
                found[axis].setdefault(value, {})[trial["seed"]] = share
    tables = {}
    for axis, by_value in found.items():
        if len(by_value) < 2:
            continue
        seeds = set.intersection(*(set(shares) for shares in by_value.values()))
        tables[axis] = [
            {
                axis: value,
                "seeds": sorted(seeds),
                **dict(zip(("share", "half_width"), interval([by_value[value][s] for s in seeds]),
                           strict=True)),
            }
            for value in sorted(by_value)
        ]  # fmt: skip
    if "clusters" in tables:
        pool = next(one["trial"]["pool"] for one in results if one["trial"]["label"] == PLAIN)
        ks = [row["clusters"] for row in tables["clusters"]]
        vectors = np.load(folder / f"{pool}.npy", mmap_mode="r")
        grid = choose_k([vectors], grid=ks, threads=2).evidence["grid"]
        for row, evidence in zip(tables["clusters"], grid, strict=True):
            row["silhouette"] = evidence["silhouette"]
    return tables
