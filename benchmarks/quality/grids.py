"""Which cells a grid holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
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
# Defaults, but for fewer probes: there are 256 clusters for a budget of 1%. Scorer and candidates
# are named so that a cell keeps its meaning when the defaults change.
ROUNDS = {"scorer": "sound-learnability", "probes": 4, "candidates": 3}
ITERATIVE: dict[str, Entry] = {"iterative": ("iterative", ROUNDS)}
# What stands beside it in the core grid.
CORE = ("random", "longest", "km-random", "kmq (length)", "deita (length)", "qdit (length)")
# Lower seeds were used by a first table (docs/log.md).
FIRST_SEED = 10


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
    """Return the core grid: test rows and seeds that nothing was chosen on, both pools."""
    entries = {name: STATIC[name] for name in CORE} | ITERATIVE
    grid = bounds("test", budget, (FIRST_SEED,))
    for seed in range(FIRST_SEED, FIRST_SEED + 4):
        grid += cells(entries, "test-garbage", "test", budget, (seed,))
        if seed < FIRST_SEED + 3:
            grid += cells(entries, "clean", "test", budget, (seed,))
    return grid


def at_equal_tokens(grid: Sequence[Cell], results: Sequence[dict[str, Any]]) -> list[Cell]:
    """Return a grid's cells with budgets that give all methods the response tokens of random rows.

    Rows become tokens by what the same method selected at equal rows, over all seeds.
    """
    tokens: dict[tuple[str, str], list[float]] = {}
    for one in results:
        if "response_tokens" in one:
            key = one["cell"]["pool"], one["cell"]["label"]
            tokens.setdefault(key, []).append(one["response_tokens"] / one["rows"])
    matched = []
    for cell in grid:
        key = cell.pool, cell.label
        if cell.method in ("base", "reference", "random"):
            matched.append(cell)
        elif key in tokens and (cell.pool, "random") in tokens:
            random = sum(tokens[cell.pool, "random"]) / len(tokens[cell.pool, "random"])
            own = sum(tokens[key]) / len(tokens[key])
            matched.append(replace(cell, budget=max(3, round(cell.budget * random / own))))
    return matched


def full(budget: int) -> list[Cell]:
    """Return every method and scorer that needs no service, rounds and clusters, on test rows."""
    entries = STATIC | ITERATIVE
    for scorer in ("alignment", "relevance", "learnability", "relative-learnability",
                   "centred-learnability", "loss", "ifd", "perplexity"):  # fmt: skip
        entries[f"iterative, {scorer}"] = ("iterative", ROUNDS | {"scorer": scorer})
    for rule in ("paper", "bandit", "none"):
        entries[f"iterative, {rule}"] = ("iterative", ROUNDS | {"weight_rule": rule})
    for candidates in (1, 5):
        label = f"iterative, {candidates} candidate{'s' * (candidates > 1)}"
        entries[label] = ("iterative", ROUNDS | {"candidates": candidates})
    for rounds in (1, 2, 5):
        entries[f"iterative, {rounds} rounds"] = ("iterative", ROUNDS | {"rounds": rounds})
    for clusters, probes in ((64, 16), (1024, 1)):  # as many probe rows in all
        options = ROUNDS | {"clusters": clusters, "probes": probes}
        entries[f"iterative, K = {clusters}"] = ("iterative", options)
    grid = bounds("test", budget, range(FIRST_SEED, FIRST_SEED + 3))
    for pool in ("clean", "test-garbage"):
        grid += cells(entries, pool, "test", budget, range(FIRST_SEED, FIRST_SEED + 5))
    return grid


def gpu(budget: int) -> list[Cell]:
    """Return the grid for a larger model on a GPU: ten methods, five seeds."""
    entries = {name: STATIC[name] for name in (*CORE, "k-center")} | ITERATIVE
    entries["iterative, learnability"] = ("iterative", ROUNDS | {"scorer": "learnability"})
    grid = bounds("test", budget, (FIRST_SEED, FIRST_SEED + 1))
    for pool in ("clean", "test-garbage"):
        grid += cells(entries, pool, "test", budget, range(FIRST_SEED, FIRST_SEED + 5))
    return grid


GRIDS: dict[str, Callable[[int], list[Cell]]] = {"core": core, "full": full, "gpu": gpu}
