"""Which trials a grid holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from .axes import PLAIN
from .trials import SEEDLESS, Trial

# label: (method, options)
Entry = tuple[str, dict[str, Any]]

LENGTH = {"quality": "length"}
# Minus the log perplexity under the model that is trained.
FLUENCY = {"quality": "perplexity"}
STATIC: dict[str, Entry] = {
    "kmq (perplexity)": ("kmq", FLUENCY),
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
    "deita (perplexity)": ("deita", FLUENCY),
    "qdit (perplexity)": ("qdit", FLUENCY),
}
FURTHER: dict[str, Entry] = {
    "mig": ("mig", {}),
    "kmq (s-ifd)": ("kmq", {"quality": "s-ifd"}),
}
# What scorers, weight updates and axes vary: the defaults without candidate screening, and fewer
# probes, for there are 256 clusters for a budget of 1%. Options whose defaults were changed before
# are named, so that a trial keeps its meaning if they change again.
ROUNDS = {
    "scorer": "sound-learnability",
    "probes_per_cluster": 4,
    "oversample": 1,
    "min_weight": 0.02,
}
ITERATIVE: dict[str, Entry] = {PLAIN: ("iterative", ROUNDS)}
SCREENED: dict[str, Entry] = {"iterative, 5 candidates": ("iterative", ROUNDS | {"oversample": 5})}
# What stands beside it in the core grid.
CORE = ("random", "longest", "km-random", "kmq (length)", "deita (length)", "qdit (length)")
# Lower seeds were used by earlier tables (docs/log.md).
FIRST_SEED = 30
REFERENCE_SEED = 10
DESIGN_SEED = 60


def bounds(held_out: str, budget: int, seeds: Sequence[int]) -> list[Trial]:
    """Return the two ends of the gap: no training, and ten times the budget of clean rows."""
    return [
        Trial("clean", "base", 0, held_out, 0, label="base"),
        *(
            Trial("clean", "reference", seed, held_out, 10 * budget, label="reference")
            for seed in seeds
        ),
    ]


def trials(
    entries: dict[str, Entry], pool: str, held_out: str, budget: int, n_seeds: int
) -> list[Trial]:
    """Return one trial an entry and seed; two seeds of what selects the same rows with all."""
    return [
        Trial(pool, method, FIRST_SEED + n, held_out, budget, options, label)
        for n in range(n_seeds)
        for label, (method, options) in entries.items()
        if n < 2 or method not in SEEDLESS
    ]


def core(budget: int) -> list[Trial]:
    """Return the core grid: test rows and seeds that nothing was chosen on, both pools."""
    entries = {name: STATIC[name] for name in CORE} | ITERATIVE
    return [
        *bounds("test", budget, (REFERENCE_SEED,)),
        *trials(entries, "test-garbage", "test", budget, 4),
        *trials(entries, "clean", "test", budget, 4),
    ]


def clean(budget: int) -> list[Trial]:
    """Return more seeds of the clean pool, where methods differ little."""
    entries = {name: STATIC[name] for name in ("random", "km-random")} | ITERATIVE | SCREENED
    return [
        *bounds("test", budget, (REFERENCE_SEED,)),
        *trials(entries, "clean", "test", budget, 10),
    ]


def at_equal_tokens(grid: Sequence[Trial], results: Sequence[dict[str, Any]]) -> list[Trial]:
    """Return a grid's trials with budgets that give all methods the response tokens of random rows.

    Rows become tokens by what the same method selected at equal rows, over all seeds.
    """
    tokens: dict[tuple[str, str], list[float]] = {}
    for one in results:
        if "response_tokens" in one:
            key = one["trial"]["pool"], one["trial"]["label"]
            tokens.setdefault(key, []).append(one["response_tokens"] / one["rows"])
    matched = []
    for trial in grid:
        key = trial.pool, trial.label
        if trial.method in ("base", "reference", "random"):
            matched.append(trial)
        elif key in tokens and (trial.pool, "random") in tokens:
            random = sum(tokens[trial.pool, "random"]) / len(tokens[trial.pool, "random"])
            own = sum(tokens[key]) / len(tokens[key])
            matched.append(replace(trial, budget=max(3, round(trial.budget * random / own))))
    return matched


def full(budget: int) -> list[Trial]:
    """Return every method, scorer and weight update that needs no service, and the axes.

    Two seeds, but for the methods of the core grid, whose trials it shares, and for candidate
    screening; the axes and weight updates in the corrupted pool only.
    """
    scorers: dict[str, Entry] = {
        f"iterative, {scorer}": ("iterative", ROUNDS | {"scorer": scorer})
        for scorer in ("gradient-alignment", "pmi", "learnability", "relative-learnability",
                       "residual-learnability", "loss", "ifd")
    }  # fmt: skip
    others: dict[str, Entry] = {}
    for update in ("linear", "ucb", "none"):
        others[f"iterative, {update}"] = ("iterative", ROUNDS | {"weight_update": update})
    others["iterative, 3 candidates"] = ("iterative", ROUNDS | {"oversample": 3})
    for rounds in (1, 2, 5):
        label = f"iterative, {rounds} round{'s' * (rounds > 1)}"
        others[label] = ("iterative", ROUNDS | {"rounds": rounds})
    for clusters, probes in ((16, 64), (64, 16), (1024, 1)):  # as many probe rows in all
        options = ROUNDS | {"clusters": clusters, "probes_per_cluster": probes}
        others[f"iterative, K = {clusters}"] = ("iterative", options)
    grid = [
        *core(budget),
        *trials(SCREENED, "test-garbage", "test", budget, 4),
        *trials(SCREENED, "clean", "test", budget, 4),
        *trials(scorers | others | STATIC, "test-garbage", "test", budget, 2),
        *trials(STATIC | scorers, "clean", "test", budget, 2),
    ]
    grid.sort(key=lambda trial: trial.seed)
    return list({trial.name: trial for trial in grid}.values())


def further(budget: int) -> list[Trial]:
    """Return methods and qualities that came later, beside random rows and the clusters alone."""
    entries = {name: STATIC[name] for name in ("random", "km-random")} | FURTHER
    grid = [
        *trials(entries, "clean", "test", budget, 2),
        *trials(entries, "test-garbage", "test", budget, 2),
    ]
    return [*bounds("test", budget, (REFERENCE_SEED,)), *sorted(grid, key=lambda one: one.seed)]


def gpu(budget: int) -> list[Trial]:
    """Return the grid for a larger model on a GPU: ten methods, five seeds."""
    entries = {name: STATIC[name] for name in (*CORE, "k-center")} | ITERATIVE
    entries["iterative, learnability"] = ("iterative", ROUNDS | {"scorer": "learnability"})
    entries["iterative, pmi"] = ("iterative", ROUNDS | {"scorer": "pmi"})
    return [
        *bounds("test", budget, (REFERENCE_SEED, REFERENCE_SEED + 1)),
        *trials(entries, "clean", "test", budget, 5),
        *trials(entries, "test-garbage", "test", budget, 5),
    ]


def reader(budget: int, pools: Sequence[str] = ("clean", "test-garbage")) -> list[Trial]:
    """Return the grid for a small model that reads, seed by seed.

    Four seeds; eight of the default and of what lies closest to it.
    """
    entries: dict[str, Entry] = {
        "random": ("random", {}),
        **ITERATIVE,
        "km-random": STATIC["km-random"],
        "kmq (length)": STATIC["kmq (length)"],
        "random, balanced by source": ("uniform", {"column": "source"}),
        "longest": STATIC["longest"],
        "rds, general target": ("rds", {}),
    }
    closest = {name: entries[name] for name in ("random", PLAIN, "km-random")}
    grid = [trial for pool in pools for trial in trials(entries, pool, "test", budget, 4)]
    grid += [trial for pool in pools for trial in trials(closest, pool, "test", budget, 8)]
    grid = list({trial.name: trial for trial in grid}.values())
    return [*bounds("test", budget, (REFERENCE_SEED,)), *sorted(grid, key=lambda one: one.seed)]


def reader_half(budget: int) -> list[Trial]:
    """Return `reader` at half the budget, and so with half as far an end of the gap."""
    return reader(budget // 2)


def reader_second(budget: int) -> list[Trial]:
    """Return `reader` in a second pool, of other texts, on which nothing was chosen.

    Measured on all that the pool teaches: the eleven skills and the procedural tasks.
    """
    grid = reader(budget, ("second",))
    return [replace(trial, pool="second", held_out="second-both") for trial in grid]


def reader_designs(budget: int) -> list[Trial]:
    """Return what could be the default, on development rows and seeds of no other table."""
    scorers = ("learnability", "relative-learnability", "gradient-alignment", "pmi", "ifd", "loss")
    entries: dict[str, Entry] = {
        "random": ("random", {}),
        **ITERATIVE,
        **{f"iterative, {name}": ("iterative", ROUNDS | {"scorer": name}) for name in scorers},
        "iterative, no weights": ("iterative", ROUNDS | {"weight_update": "none"}),
        "iterative, equal allocation": ("iterative", ROUNDS | {"allocation": "equal"}),
        **SCREENED,
        "km-random": STATIC["km-random"],
        "kmq (length)": STATIC["kmq (length)"],
    }
    grid = [
        replace(trial, seed=trial.seed - FIRST_SEED + DESIGN_SEED)
        for pool in ("clean", "test-garbage")
        for trial in trials(entries, pool, "dev", budget, 3)
    ]
    return [*bounds("dev", budget, (REFERENCE_SEED,)), *sorted(grid, key=lambda one: one.seed)]


GRIDS: dict[str, Callable[[int], list[Trial]]] = {
    "core": core,
    "clean": clean,
    "full": full,
    "further": further,
    "gpu": gpu,
    "reader": reader,
    "reader-half": reader_half,
    "reader-second": reader_second,
    "reader-designs": reader_designs,
}
