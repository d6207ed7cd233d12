"""What a selection method is, and the checks that all of them share."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from pyids._typing import Int64
from pyids.errors import ConfigError
from pyids.methods.pool import Pool


class Select(Protocol):
    """The function that a method consists of.

    It returns positions in the pool (0 to N - 1), exactly `budget` distinct ones; `Method` hands it
    a budget of 1 to N - 1 and turns the positions into row ids.
    """

    def __call__(self, pool: Pool, budget: int, *, seed: int, **options: Any) -> Int64:
        """Return `budget` positions."""
        ...


@dataclass(frozen=True)
class Method:
    """A way to select rows, under a name.

    Attributes
    ----------
    name : str
        What it was found by, as on the command line.
    select : callable
        See `Select`.
    needs : tuple of str
        What the pool must know: embeddings, labels, centroids, quality, lengths, target,
        gradients.
    uses : tuple of str
        What it takes into account if the pool knows it.
    source : str
        Where it comes from.
    cost : str
        Time and memory beyond the pool's, in N rows, D dimensions, K clusters, budget b.
    guarantee : str
        What is proved about the result; empty where nothing is.
    """

    name: str
    select: Callable[..., Int64]
    needs: tuple[str, ...]
    source: str
    cost: str
    guarantee: str
    uses: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return (inspect.getdoc(self.select) or self.name).partition("\n")[0]

    @property
    def options(self) -> dict[str, Any]:
        """Keyword options and their defaults (``inspect.Parameter.empty`` where there is none)."""
        parameters = inspect.signature(self.select).parameters.values()
        return {
            p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "seed"
        }

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Check that the method has these options, and needs no other.

        Raises
        ------
        ConfigError
            One is unknown or missing.
        """
        known = self.options
        if unknown := sorted(set(options) - set(known)):
            takes = f"it takes {', '.join(known)}" if known else "it takes none"
            raise ConfigError(f"method {self.name!r} has no option {unknown[0]!r}: {takes}")
        for name, default in known.items():
            if default is inspect.Parameter.empty and name not in options:
                raise ConfigError(f"method {self.name!r} needs the option {name!r}: give it")

    def __call__(self, pool: Pool, budget: int, *, seed: int = 0, **options: Any) -> Int64:
        """Select exactly ``min(budget, N)`` distinct rows.

        Returns
        -------
        int64 array
            Row ids: in the order of picking for a method that picks one after the other or by rank,
            ascending for one that draws, and for any if the budget takes all rows. The same for any
            number of threads and shards.

        Raises
        ------
        ConfigError
            The pool lacks something that the method needs, an option is unknown or missing, or the
            method returned something else than `budget` distinct positions.
        ValueError
            The budget is negative.
        """
        budget = operator.index(budget)
        if budget < 0:
            raise ValueError(f"budget is {budget}: must not be negative")
        self.check_options(options)
        if budget == 0 or budget >= len(pool):
            return pool.row_ids[:budget].copy()
        for need in self.needs:
            if not pool.knows(need):
                getattr(pool, need)  # raises, and says what to do
        positions = np.asarray(self.select(pool, budget, seed=seed, **options))
        if positions.shape != (budget,) or not np.issubdtype(positions.dtype, np.integer):
            raise ConfigError(
                f"method {self.name!r} returned {positions.dtype}{positions.shape}, not {budget} "
                "positions in the pool: let it return as many as `budget` says"
            )
        if len(np.unique(positions)) != budget or positions.min() < 0:
            raise ConfigError(
                f"method {self.name!r} returned a position twice, or a negative one: let it return "
                "distinct positions, 0 to N - 1"
            )
        if positions.max() >= len(pool):
            raise ConfigError(
                f"method {self.name!r} returned position {positions.max()} of a pool of "
                f"{len(pool)} rows: let it return positions in the pool, not row ids"
            )
        return pool.row_ids[positions]


def method(
    *,
    needs: tuple[str, ...] = (),
    source: str = "",
    cost: str = "",
    guarantee: str = "",
    uses: tuple[str, ...] = (),
) -> Callable[[Callable[..., Int64]], Method]:
    """Turn a `Select` function into a `Method`; the first line of its docstring is its summary.

    It is called what it was found by: its name in `pyids.registry`, its entry point's, or
    ``module:function``.
    """

    def decorate(select: Callable[..., Int64]) -> Method:
        place = f"{select.__module__}:{getattr(select, '__name__', 'select')}"
        return Method(place, select, needs, source, cost, guarantee, uses)

    return decorate
