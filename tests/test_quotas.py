"""Quotas within caps and floors, against exact fractions; and what is said where there are none."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyids.config import make_config
from pyids.errors import ConfigError
from pyids.quotas import bounded_quotas, check_bounds, round_bounds, share_of

SHARE = st.one_of(st.just(0.0), st.floats(1e-9, 1e9), st.integers(1, 10).map(float))


@st.composite
def problems(draw):
    groups = draw(st.integers(1, 7))
    lower = draw(st.lists(st.integers(0, 50), min_size=groups, max_size=groups))
    upper = [low + draw(st.integers(0, 60)) for low in lower]
    shares = draw(st.lists(SHARE, min_size=groups, max_size=groups))
    return draw(st.integers(sum(lower), sum(upper))), shares, lower, upper


def exact_parts(budget, shares, lower, upper):
    """The definition: bisection for the factor, in exact fractions."""
    exact = [Fraction(s) for s in shares]

    def parts(t):
        return [min(max(t * s, Fraction(a)), Fraction(b))
                for s, a, b in zip(exact, lower, upper, strict=True)]  # fmt: skip

    low, high = Fraction(0), Fraction(1)
    while sum(parts(high)) < budget:
        high *= 2
        if high > 10**15:
            return None  # only groups without a share are left
    for _ in range(300):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(parts(middle)) < budget else (low, middle)
    return parts(high)


@settings(max_examples=400, deadline=None)
@given(problems())
def test_quotas_sum_to_the_budget_and_are_the_rounded_exact_parts(problem):
    budget, shares, lower, upper = problem
    quotas = bounded_quotas(*problem)
    assert sum(quotas) == budget
    assert all(a <= q <= b for q, a, b in zip(quotas, lower, upper, strict=True))
    if (parts := exact_parts(*problem)) is None:
        with_share = [g for g, share in enumerate(shares) if share]
        assert all(quotas[g] == upper[g] for g in with_share)
        return
    small = Fraction(1, 10**6)
    assert all(abs(q - p) < 1 + small for q, p in zip(quotas, parts, strict=True))
    # Largest remainders: who was rounded up had at least the remainder of who was not.
    rounded = [(p - int(p), q > p) for q, p in zip(quotas, parts, strict=True) if p != int(p)]
    ups = [r for r, up in rounded if up]
    downs = [r for r, up in rounded if not up]
    if ups and downs:
        assert min(ups) >= max(downs) - small


def test_shares_are_exact():
    assert share_of("30%", 10, up=False) == 3
    assert share_of("0.1%", 1000, up=True) == 1
    assert share_of("33.3%", 10, up=False) == 3
    assert share_of("33.3%", 10, up=True) == 4
    assert share_of(7, 10, up=True) == 7


@pytest.mark.parametrize(
    ("lower", "upper", "capacity", "said", "words"),
    [
        (
            [60, 50], [100, 100], [500, 500], {"floor": {"a": "60%", "b": "50%"}},
            "the floors come to 60 (a 60%) + 50 (b 50%) = 110 rows, 10 above the budget of 100",
        ),
        (
            [0, 0], [30, 100], [500, 40], {"cap": {"a": "30%"}},
            "allow 30 (a, cap 30%) + 40 (b) = 70 rows, 30 below the budget of 100",
        ),
        (
            [20, 0], [100, 100], [10, 400], {"floor": {"a": "20%"}},
            "group 'a': the floor 20% is 20 of 100 rows, and the pool has 10",
        ),
        (
            [200, 0], [100, 100], [500, 400], {"floor": {"a": 200}},
            "the floors come to 200 (a 200) = 200 rows, 100 above the budget of 100",
        ),
        (
            [20, 0], [10, 100], [100, 400], {"floor": {"a": "20%"}, "cap": {"a": 10}},
            "the floor 20% (20 rows) is above the cap 10 (10 rows)",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_answered_with_the_numbers(lower, upper, capacity, said, words):
    with pytest.raises(ConfigError) as caught:
        check_bounds(100, "rows", ["a", "b"], lower, upper, capacity, said)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_rounds_keep_the_bounds_of_the_whole(data):
    """Whatever a round prefers, all rounds together are within caps and floors."""
    groups, rounds = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5))
    capacity = [data.draw(st.integers(0, 40)) for _ in range(groups)]
    caps = [data.draw(st.integers(0, 50)) for _ in range(groups)]
    floors = [data.draw(st.integers(0, min(c, u))) for c, u in zip(capacity, caps, strict=True)]
    most = sum(map(min, caps, capacity))
    if most < rounds:
        return
    budget = data.draw(st.integers(max(rounds, sum(floors)), most)) if most >= sum(floors) else 0
    spent = [0] * groups
    for n in range(rounds):
        target = budget * (n + 1) // rounds - budget * n // rounds
        later = budget - budget * (n + 1) // rounds
        left = [c - s for c, s in zip(capacity, spent, strict=True)]
        lower, upper = round_bounds(n, rounds, target, later, spent, left, floors, caps)
        shares = [data.draw(SHARE) for _ in range(groups)]
        quotas = bounded_quotas(target, shares, lower, upper)
        spent = [s + q for s, q in zip(spent, quotas, strict=True)]
    assert sum(spent) == budget
    assert all(f <= s <= min(u, c)
               for f, s, u, c in zip(floors, spent, caps, capacity, strict=True))  # fmt: skip


@pytest.mark.parametrize(
    ("given", "budget", "unit"),
    [
        ({"budget": "20M-tokens"}, 20_000_000, "response-tokens"),
        ({"budget": "1.5K-tokens", "budget_unit": "tokens"}, 1500, "tokens"),
        ({"budget": "5%", "budget_unit": "tokens"}, "5%", "tokens"),
        ({"budget": "5%-tokens"}, "5%", "response-tokens"),
        ({"budget": "10K"}, 10_000, "rows"),
        ({"budget": "300-rows"}, 300, "rows"),
    ],
)
def test_units_of_a_budget(given, budget, unit):
    config = make_config(data="pool.jsonl", **given)
    assert (config.budget, config.unit) == (budget, unit)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"budget": "20M-tokens", "budget_unit": "rows"}, "is not in rows"),
        ({"budget": "1.0005K"}, "is not a number"),
        ({"cap": ["code=30%"]}, "--cap belongs to --group-by"),
        ({"group_by": "source"}, "--group-by alone changes nothing"),
        ({"group_by": "source", "cap": ["code"]}, "'code' is no NAME=AMOUNT"),
        ({"group_by": "source", "cap": ["code=130%"]}, "code=130%: neither a share"),
        ({"group_by": "source", "cap": ["a=1", "a=2"]}, "group 'a' is given twice"),
        ({"group_by": "source", "proportional_to": "no.yaml"}, "no.yaml: cannot be read"),
        ({"group_by": "source", "proportional_to": {"a": -1}}, "give it 0 or more"),
        ({"group_by": "source", "proportional_to": {"a": 0}}, "every group has 0"),
        ({"exclude_ngram": 8}, "--exclude-ngram belongs to --exclude"),
    ],
)
def test_a_bad_budget_is_named_in_one_line(options, words):
    with pytest.raises(ConfigError) as caught:
        make_config(**{"data": "pool.jsonl", "budget": 100, **options})
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
