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


def bounds(held_out: str, budget: int, seeds: Sequence[int]) -> list[Cell]:
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
    grid = bounds("test", budget, (0, 1))
    for pool in ("clean", "test-garbage"):
        grid += cells(entries, pool, "test", budget, range(5))
    return grid


def full(budget: int) -> list[Cell]:
    """Return every method and scorer that needs no service, rounds and clusters, on test rows."""
    entries = STATIC | ITERATIVE
    for scorer in ("alignment", "relevance", "learnability", "relative-learnability",
                   "centred-learnability", "loss", "ifd", "perplexity"):  # fmt: skip
        entries[f"iterative, {scorer}"] = ("iterative", {"scorer": scorer})
    for rule in ("paper", "bandit", "none"):
        entries[f"iterative, {rule}"] = ("iterative", {"weight_rule": rule})
    entries["iterative, 1 candidate"] = ("iterative", {"candidates": 1})
    for rounds in (1, 2, 5):
        entries[f"iterative, {rounds} rounds"] = ("iterative", {"rounds": rounds})
    for clusters in (64, 1024):
        entries[f"iterative, K = {clusters}"] = ("iterative", {"clusters": clusters})
    grid = bounds("test", budget, (0, 1, 2))
    for pool in ("clean", "test-garbage"):
        grid += cells(entries, pool, "test", budget, range(5))
    return grid


def gpu(budget: int) -> list[Cell]:
    """Return the grid for a larger model on a GPU: ten methods, five seeds."""
    entries = {name: STATIC[name] for name in (*CORE, "k-center", "clusterclip")} | ITERATIVE
    entries["iterative, learnability"] = ("iterative", {"scorer": "learnability"})
    grid = bounds("test", budget, (0, 1))
    for pool in ("clean", "test-garbage"):
        grid += cells(entries, pool, "test", budget, range(5))
    return grid


GRIDS: dict[str, Callable[[int], list[Cell]]] = {"core": core, "full": full, "gpu": gpu}
