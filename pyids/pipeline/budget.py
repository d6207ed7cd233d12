"""How much a run selects: its budget in rows or tokens, and the bounds of its groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from pyids._typing import Int64
from pyids.config import RunConfig
from pyids.errors import ConfigError
from pyids.parsing import check_rounds
from pyids.pipeline.counts import group_names, tokens_of
from pyids.quotas import check_bounds, share_of
from pyids.store.folder import Store


@dataclass(frozen=True)
class Budget:
    """What is to be selected.

    Attributes
    ----------
    unit
        What `total` counts: rows, tokens or response-tokens.
    total
        How many.
    rows
        Rows that this comes to: exactly, or as expected from the mean row.
    """

    unit: str
    total: int
    rows: int

    def __str__(self) -> str:
        """Say how much it is."""
        about = "" if self.unit == "rows" else f" (about {self.rows:,} rows)"
        return f"{self.total:,} {words(self.unit)}{about}"


def words(unit: str) -> str:
    """Return the name of a unit for a sentence."""
    return unit.replace("-", " ")


def budget_of(store: Store, config: RunConfig) -> Budget:
    """Return the budget for the rows of a run folder; tokens have been counted, if it counts them.

    Raises
    ------
    ConfigError
        It is above the pool, or less than a row a round.
    """
    if config.unit == "rows":
        rows = config.budget_rows(store.kept)
        return Budget("rows", rows, rows)
    tokens = sum(int(tokens_of(store, shard).sum()) for shard in store.shards)
    return token_budget(config, store.kept, tokens)


def token_budget(config: RunConfig, rows: int, tokens: int) -> Budget:
    """Return the budget for a pool of so many rows and tokens; see `budget_of`."""
    unit = words(config.unit)
    if isinstance(config.budget, int):
        total = config.budget
    else:
        total = int(Fraction(config.budget.rstrip("%")) * tokens / 100)
    if total > tokens:
        raise ConfigError(
            f"budget {total} {unit} is above the {tokens} of the pool's {rows} rows: lower "
            "--budget, or give it as a share such as 5%"
        )
    check_rounds(f"budget {config.budget} of {tokens} {unit}", total, config.rounds)
    return Budget(config.unit, total, max(1, total * rows // tokens))


@dataclass(frozen=True)
class Bounds:
    """The groups of a pool, and how much of the budget each may have.

    Attributes
    ----------
    names
        G of them, sorted.
    floors, caps
        int lists (G,), in units of the budget.
    mix
        Wanted proportions (G,); None: those of what is drawn without bounds.
    """

    names: tuple[str, ...]
    floors: list[int]
    caps: list[int]
    mix: list[float] | None = None


def describe_groups(bounds: Bounds, drawn: Int64, held: Int64) -> dict[str, dict[str, int]]:
    """Return what a manifest says of groups: units that each gave and holds (G,), its bounds."""
    return {
        name: {"drawn": int(had), "held": int(has), "floor": low, "cap": up}
        for name, had, has, low, up in zip(
            bounds.names, drawn, held, bounds.floors, bounds.caps, strict=True
        )
    }


def bounds_of(names: Sequence[str], config: RunConfig, total: int, capacity: Int64) -> Bounds:
    """Return the bounds of groups, checked against what they hold.

    Parameters
    ----------
    names
        The groups of the pool.
    config
        Caps, floors and mix.
    total
        The budget.
    capacity
        int64 (G,): units of the budget that may be drawn of each group.

    Raises
    ------
    ConfigError
        A group is named that the pool does not have, or no quotas are within the bounds.
    """
    said: dict[str, dict[str, int | str]] = {"cap": config.cap or {}, "floor": config.floor or {}}
    mix = config.proportional_to
    if mix == "equal":
        mix = dict.fromkeys(names, 1.0)
    for option, given in (
        ("cap", list(said["cap"])),
        ("floor", list(said["floor"])),
        ("proportional-to", list(mix or {})),
    ):
        for name in given:
            if name not in names:
                shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
                raise ConfigError(
                    f"--{option} names the group {name!r}, which is no value of "
                    f"{config.group_by!r} in the pool (it has: {shown}): mend the name"
                )
    floors = [share_of(said["floor"].get(name, 0), total, up=True) for name in names]
    caps = [share_of(said["cap"].get(name, total), total, up=False) for name in names]
    if mix is not None:  # who has no part in the mix has nothing, but for a floor
        caps = [
            cap if mix.get(name) else floor
            for name, cap, floor in zip(names, caps, floors, strict=True)
        ]
    unit = words(config.unit)
    check_bounds(total, unit, names, floors, caps, capacity.tolist(), said)
    return Bounds(
        tuple(names), floors, caps, None if mix is None else [mix.get(n, 0.0) for n in names]
    )


def names_of(store: Store, config: RunConfig) -> tuple[str, ...]:
    """Return the groups of a run folder; one without a name where rows are not grouped."""
    return group_names(store) if config.group_by is not None else ("",)
