"""Which cells a grid holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cells import Cell

# label: (method, options)
Entry = tuple[str, dict[str, Any]]

LENGTH = {"quality": "length"}
STATIC: dict[str, Entry] = {
    "random": ("random", {}),
    "longest": ("longest", {}),
    "length-stratified": ("length-stratified", {}),
    "k-center": ("k-center", {}),
    "km-closest": ("km-closest", {}),
    "km-median": ("km-median", {}),
    "km-random": ("km-random", {}),
    "kmq (length)": ("kmq", LENGTH),
    "deita (length)": ("deita", LENGTH),
    "facility-location": ("facility-location", {}),
    "qdit (length)": ("qdit", LENGTH),
    "clusterclip": ("clusterclip", {}),
    "novelselect": ("novelselect", {}),
}
ITERATIVE: dict[str, Entry] = {"iterative": ("iterative", {})}
# What stands beside the default in the core grid.
CORE = ("random", "longest", "km-random", "kmq (length)", "deita (length)", "qdit (length)")


def bounds(pool: str, held_out: str, budget: int, seeds: Sequence[int]) -> list[Cell]:
    """Return the two ends of the gap: no training, and ten times the budget of clean rows."""
    return [
        Cell("clean", "base", 0, held_out, 0, label="base"),
        *(
            Cell("clean", "reference", seed, held_out, 10 * budget, label="reference")
            for seed in seeds
        ),
    ]


def cells(
    entries: dict[str, Entry], pool: str, held_out: str, budget: int, seeds: Sequence[int]
) -> list[Cell]:
    """Return one cell an entry and seed."""
    return [
        Cell(pool, method, seed, held_out, budget, options, label)
        for seed in seeds
        for label, (method, options) in entries.items()
    ]


def core(budget: int) -> list[Cell]:
    """Return the core grid: test rows, fresh seeds, both pools."""
    entries = {name: STATIC[name] for name in CORE} | ITERATIVE
    grid = bounds("clean", "test", budget, (0, 1))
    for pool in ("clean", "test-garbage"):
        grid += cells(entries, pool, "test", budget, range(5))
    return grid


GRIDS: dict[str, Callable[[int], list[Cell]]] = {"core": core}
