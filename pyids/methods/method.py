"""What a selection method is, and the checks that all of them share."""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass
from types import UnionType
from typing import Any, Literal, Protocol, Union, get_args, get_origin, get_type_hints, is_typeddict

import numpy as np
from pydantic import BaseModel, ConfigDict, PydanticUserError, TypeAdapter, ValidationError

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
        """Check that the method has these options, of the types that it wants, and needs no other.

        Raises
        ------
        ConfigError
            One is unknown or missing, or is not what the annotation of the function's parameter
            says.
        """
        known = self.options
        if unknown := sorted(set(options) - set(known)):
            takes = f"it takes {', '.join(known)}" if known else "it takes none"
            raise ConfigError(f"method {self.name!r} has no option {unknown[0]!r}: {takes}")
        for name, default in known.items():
            if default is inspect.Parameter.empty and name not in options:
                raise ConfigError(f"method {self.name!r} needs the option {name!r}: give it")
        types = _annotations(self.select)
        for name, value in options.items():
            if name in types and not _fits(value, types[name]):
                shown = "null" if value is None else repr(value)
                shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
                raise ConfigError(
                    f"method {self.name!r}: option {name!r} is {shown}: give {_wanted(types[name])}"
                )

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


def _annotations(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the types of a function's parameters; none where they cannot be told."""
    try:
        return get_type_hints(function)
    except (NameError, TypeError, AttributeError, SyntaxError):
        return {}  # of a method from elsewhere: names for a type checker alone, or no function


def _fits(value: object, kind: Any) -> bool:
    """Whether a value is of a type, without being cast; a type that nobody can check fits all."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and math.isnan(value):
        return False
    try:
        # As pydantic has it: 1 is a float, True is no int, and lists are looked into.
        types = TypeAdapter(kind, config=None if _has_config(kind) else _ANY_CLASS)
        types.validate_python(value, strict=True)
    except ValidationError:
        return False
    except PydanticUserError:
        return True
    return True


_ANY_CLASS = ConfigDict(arbitrary_types_allowed=True)


def _has_config(kind: Any) -> bool:
    """Whether a type brings a configuration of pydantic, beside which none may be given."""
    return isinstance(kind, type) and (
        issubclass(kind, BaseModel) or is_dataclass(kind) or is_typeddict(kind)
    )


_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number, such as 0.5",
    str: "text (in quotes where it could be a number, a date or true)",
    type(None): "null",
}


def _wanted(kind: Any) -> str:
    """Say what an annotation wants."""
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(map(_wanted, get_args(kind)))
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    return _WORDS.get(kind, f"a value of the type {inspect.formatannotation(kind)}")


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
