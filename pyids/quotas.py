"""Quotas of groups within caps and floors, by largest remainder, in whole numbers and fractions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np

from pyids._typing import Float64
from pyids.errors import ConfigError


def share_of(amount: int | str, budget: int, *, up: bool) -> int:
    """Turn an amount such as ``2000`` or ``"30%"`` into a part of the budget.

    Parameters
    ----------
    amount
        A whole number, or a share.
    budget
        The whole.
    up
        Whether a fraction is rounded up (for what must be had) or down (for what may be had).
    """
    if isinstance(amount, int):
        return amount
    part = Fraction(amount.rstrip("%")) * budget / 100
    return -(-part.numerator // part.denominator) if up else part.numerator // part.denominator


def bounded_quotas(
    budget: int, shares: Sequence[float], lower: Sequence[int], upper: Sequence[int]
) -> list[int]:
    """Share `budget` in proportion to `shares`, each part within its bounds, exactly.

    The parts are ``min(max(t * shares[g], lower[g]), upper[g])`` for the one `t` with which they
    come to the budget. What lies strictly between its bounds is rounded down, and what is left goes
    to the largest remainders, of equal ones to the lowest index. Groups of share zero have their
    floor, and more only when all others are full.

    Parameters
    ----------
    budget
        Units to hand out.
    shares
        Finite and not negative; taken as the exact fractions that they are.
    lower, upper
        ``0 <= lower[g] <= upper[g]``.

    Returns
    -------
    list of int
        Summing to `budget`, within the bounds.

    Raises
    ------
    ValueError
        No such quotas exist.

    Examples
    --------
    >>> bounded_quotas(100, [70, 20, 10], [0, 0, 15], [50, 100, 100])
    [50, 33, 17]
    """
    if not sum(lower) <= budget <= sum(upper):
        raise ValueError(f"{budget} is not within {sum(lower)} and {sum(upper)}")
    exact = [Fraction(share) for share in shares]
    at_most = sum(u if s else low for s, low, u in zip(exact, lower, upper, strict=True))
    if at_most < budget:  # the groups that have a share are full
        base = [u if s else low for s, low, u in zip(exact, lower, upper, strict=True)]
        room = [0 if s else u - low for s, low, u in zip(exact, lower, upper, strict=True)]
        more = bounded_quotas(budget - at_most, [float(r) for r in room], [0] * len(room), room)
        return [b + m for b, m in zip(base, more, strict=True)]
    parts = _parts(budget, exact, lower, upper)
    quotas = [part.numerator // part.denominator for part in parts]
    # A remainder is below 1 and its part below a whole bound: one more never passes the bound.
    remainders = [part - quota for part, quota in zip(parts, quotas, strict=True)]
    order = sorted(range(len(parts)), key=lambda g: (-remainders[g], g))
    for g in order[: budget - sum(quotas)]:
        quotas[g] += 1
    return quotas


def _parts(
    budget: int, shares: list[Fraction], lower: Sequence[int], upper: Sequence[int]
) -> list[Fraction]:
    """Return the exact parts of `bounded_quotas`; the sum of them grows with the factor `t`."""

    def clipped(t: Fraction) -> list[Fraction]:
        return [
            min(max(t * s, Fraction(low)), Fraction(up))
            for s, low, up in zip(shares, lower, upper, strict=True)
        ]

    bounds = zip(shares, lower, upper, strict=True)
    knots = sorted(
        {Fraction(b) / s for s, low, up in bounds if s for b in (low, up)} | {Fraction(0)}
    )
    first, last = 0, len(knots) - 1  # the sum at knots[first] is at most the budget
    while last - first > 1:
        middle = (first + last) // 2
        if sum(clipped(knots[middle])) <= budget:
            first = middle
        else:
            last = middle
    start, parts = knots[first], clipped(knots[first])
    if sum(clipped(knots[last])) <= budget:
        return clipped(knots[last])
    # Between two knots the parts that grow are those of the groups that are at no bound.
    moving = [s and low <= start * s < up for s, low, up in zip(shares, lower, upper, strict=True)]
    slope = sum(s for s, moves in zip(shares, moving, strict=True) if moves)
    if not slope:
        return parts
    return clipped(start + (budget - sum(parts)) / slope)


def check_bounds(
    budget: int,
    unit: str,
    names: Sequence[str],
    lower: Sequence[int],
    upper: Sequence[int],
    capacity: Sequence[int],
    said: Mapping[str, Mapping[str, int | str]],
) -> None:
    """Check that quotas within caps and floors exist.

    Parameters
    ----------
    budget, unit
        What is handed out, and what it counts.
    names, lower, upper, capacity
        The groups; in that unit their floors, their caps, and what they hold.
    said
        ``cap`` and ``floor`` as they were given, by group.

    Raises
    ------
    ConfigError
        They do not; shows the sums.
    """
    floors, caps = said.get("floor", {}), said.get("cap", {})
    for name, low, up, holds in zip(names, lower, upper, capacity, strict=True):
        if low > up and name in caps:
            raise ConfigError(
                f"group {name!r}: the floor {floors[name]} ({low} {unit}) is above the cap "
                f"{caps[name]} ({up} {unit}): raise --cap or lower --floor"
            )
        if low > holds:
            raise ConfigError(
                f"group {name!r}: the floor {floors[name]} is {low} of {budget} {unit}, and the "
                f"pool has {holds} that may be drawn: lower --floor or --budget"
            )
    if (least := sum(lower)) > budget:
        terms = " + ".join(
            f"{low} ({name} {floors[name]})"
            for name, low in zip(names, lower, strict=True)
            if name in floors
        )
        raise ConfigError(
            f"the floors come to {terms} = {least} {unit}, {least - budget} above the budget of "
            f"{budget}: lower --floor"
        )
    most = [min(up, holds) for up, holds in zip(upper, capacity, strict=True)]
    if sum(most) < budget:
        terms = " + ".join(
            f"{limit} ({name}{f', cap {caps[name]}' if name in caps and limit < holds else ''})"
            for name, limit, holds in zip(names, most, capacity, strict=True)
        )
        raise ConfigError(
            f"caps and rows of the groups allow {terms} = {sum(most)} {unit}, "
            f"{budget - sum(most)} below the budget of {budget}: raise --cap or lower --budget"
        )


def round_bounds(
    n: int,
    rounds: int,
    target: int,
    later: int,
    spent: Sequence[int],
    left: Sequence[int],
    floors: Sequence[int],
    caps: Sequence[int],
) -> tuple[list[int], list[int]]:
    """Return the bounds of each group in one round, so that those of all rounds can be kept.

    A round asks for its part of each floor and allows its part of each cap. It must leave floors
    that later rounds can still fill: what all groups lack of their floors is at most what later
    rounds draw. Where that, or the rows that are left, do not go with the parts of a round, the
    bounds of the whole hold alone.

    Parameters
    ----------
    n, rounds
        The round, from 0, and how many there are.
    target, later
        What this round draws, and what those after it do.
    spent, left
        What each group has had before, and has left.
    floors, caps
        Of all rounds together.

    Returns
    -------
    lower, upper : list of int
        ``sum(lower) <= target <= sum(upper)``, as far as the bounds of the whole allow.
    """
    groups = range(len(spent))
    lacking = [max(0, min(floors[g] - spent[g], left[g])) for g in groups]
    lower = [min(lacking[g], max(0, floors[g] * (n + 1) // rounds - spent[g])) for g in groups]
    if sum(lower) > target:
        lower = bounded_quotas(target, [float(x) for x in lower], [0] * len(lower), lower)
    must = min(target, sum(lacking) - later)
    if sum(lower) < must:
        room = [lacking[g] - lower[g] for g in groups]
        more = bounded_quotas(must - sum(lower), [float(x) for x in room], [0] * len(room), room)
        lower = [a + b for a, b in zip(lower, more, strict=True)]
    whole = [max(lower[g], min(caps[g] - spent[g], left[g])) for g in groups]
    parts = [min(whole[g], max(0, -(-caps[g] * (n + 1) // rounds) - spent[g])) for g in groups]
    parts = [max(a, b) for a, b in zip(parts, lower, strict=True)]
    return lower, parts if sum(parts) >= target else whole


# ---- what a cluster has had already --------------------------------------------------------------


def level(shares: Float64, charge: Float64, target: int) -> float:
    """Find the `t` with which ``sum(max(0, t * shares - charge))`` is the target.

    Cells come in as `t` passes ``charge / share``, those with the least first. 0 where no
    cell has a share.
    """
    there = shares > 0
    if not there.any():
        return 0.0
    share, charge = shares[there], charge[there]
    order = np.argsort(charge / share, kind="stable")
    t = (target + np.cumsum(charge[order])) / np.cumsum(share[order])
    # The cells that are in are those before the first whose threshold is not below the level.
    thresholds = np.append((charge / share)[order][1:], np.inf)
    return float(t[np.flatnonzero(t <= thresholds)[0]])
