"""Sliding counters: the laws of two weighted buckets."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.sliding import CURRENT, PREVIOUS, SlidingCounter

PERIOD_S = 60.0
LIMIT = 20
amounts = st.integers(0, LIMIT + 5)
# Steps of time that stay in a bucket, leave it, and leave it far behind.
steps_s = st.one_of(st.just(0.0), st.floats(0, 10), st.floats(0, 3 * PERIOD_S))
demands = st.lists(st.tuples(steps_s, amounts), max_size=60)
starts_s = st.floats(0, 10_000)


def admitted(demand: list[tuple[float, int]], start_s: float, limit: int = LIMIT) -> list[tuple[float, int]]:
    """When how much was taken, of what was wanted."""
    counter, now, taken = SlidingCounter(PERIOD_S), start_s, []
    for step_s, amount in demand:
        now += step_s
        if counter.take(amount, limit, now):
            taken.append((now, amount))
    return taken


def weighted(taken: list[tuple[float, int]], now: float) -> float:
    """What counts of what was taken, computed from all of it."""
    bucket = int(now / PERIOD_S)
    share = 1 - (now / PERIOD_S - bucket)
    buckets = {0: 1.0, 1: share}
    return sum(amount * buckets.get(bucket - int(at / PERIOD_S), 0.0) for at, amount in taken)


@given(demands, starts_s)
def test_no_window_admits_more_than_its_limit(demand: list[tuple[float, int]], start_s: float) -> None:
    """No bucket, no weighted window at any time, and no stretch of a period, wherever it lies, more than twice."""
    taken = admitted(demand, start_s)
    for number, (at, _) in enumerate(taken):
        before = taken[: number + 1]
        assert weighted(before, at) <= LIMIT + 1e-6
        assert sum(amount for then, amount in before if int(then / PERIOD_S) == int(at / PERIOD_S)) <= LIMIT
        assert sum(amount for then, amount in before if at - then < PERIOD_S) <= 2 * LIMIT


@given(demands, starts_s)
def test_what_counts_is_what_two_weighted_buckets_hold(demand: list[tuple[float, int]], start_s: float) -> None:
    counter, now, taken = SlidingCounter(PERIOD_S), start_s, []
    for step_s, amount in demand:
        now += step_s
        assert counter.count(now) == pytest.approx(weighted(taken, now), abs=1e-6)
        counter.add(amount, now)
        taken.append((now, amount))


@given(demands, starts_s, st.integers(0, LIMIT))
def test_who_waits_as_long_as_advised_gets_it_and_not_much_sooner(
    demand: list[tuple[float, int]], start_s: float, amount: int
) -> None:
    counter, now = SlidingCounter(PERIOD_S), start_s
    for step_s, wanted in demand:
        now += step_s
        counter.add(wanted, now)
    wait_s = counter.wait_s(amount, LIMIT, now)
    if wait_s == 0:
        assert counter.count(now) + amount <= LIMIT
    else:
        assert counter.count(now + max(wait_s - 0.01, 0)) + amount > LIMIT - 0.1
    assert counter.take(amount, LIMIT, now + wait_s)


@given(demands, starts_s)
def test_behind_the_reset_nothing_counts(demand: list[tuple[float, int]], start_s: float) -> None:
    counter, now = SlidingCounter(PERIOD_S), start_s
    for step_s, amount in demand:
        now += step_s
        counter.add(amount, now)
    assert counter.reset_s(now) <= 2 * PERIOD_S
    assert counter.count(now + counter.reset_s(now) + 0.001) == 0


def test_more_than_the_limit_is_never_to_be_had() -> None:
    assert SlidingCounter(PERIOD_S).wait_s(LIMIT + 1, LIMIT, 0.0) == math.inf
    assert not SlidingCounter(PERIOD_S).take(LIMIT + 1, LIMIT, 0.0)


@given(
    st.lists(st.tuples(steps_s, amounts, st.integers(0, 10), st.integers(0, LIMIT + 5)), max_size=40),
    starts_s,
)
def test_refunds_never_make_it_negative_nor_more_than_without_them(
    demand: list[tuple[float, int, int, int]], start_s: float
) -> None:
    """Whatever is given back, of whichever bucket, and however often."""
    cells, plain_cells = [0, 0, 0], [0, 0, 0]
    counter, plain = SlidingCounter(PERIOD_S, cells), SlidingCounter(PERIOD_S, plain_cells)
    now, buckets = start_s, [0]
    for step_s, amount, which, refund in demand:
        now += step_s
        buckets.append(counter.add(amount, now))
        plain.add(amount, now)
        counter.give_back(refund, buckets[-1 - which % len(buckets)], now)
        assert min(cells[CURRENT], cells[PREVIOUS]) >= 0
        assert counter.count(now) <= plain.count(now)


@given(demands, starts_s, steps_s)
def test_what_is_given_back_whole_leaves_nothing(
    demand: list[tuple[float, int]], start_s: float, later_s: float
) -> None:
    counter, now, taken = SlidingCounter(PERIOD_S), start_s, []
    for step_s, amount in demand:
        now += step_s
        taken.append((amount, counter.add(amount, now)))
    for amount, bucket in taken:
        counter.give_back(amount, bucket, now + later_s)
    assert counter.count(now + later_s) == 0


@given(st.integers(1, 50), st.integers(3, 20))
def test_a_steady_demand_gets_all_of_the_limit(limit: int, periods: int) -> None:
    """Twice the limit is wanted, evenly: what is admitted is the limit, in each period but the first."""
    wanted = [(PERIOD_S / (2 * limit), 1)] * (2 * limit * periods)
    taken = admitted(wanted, 0.0, limit)
    by_period = [sum(first <= at < then for at, _ in taken) for first, then in pairwise(range(0, 60 * periods, 60))]
    assert limit * 0.8 - 2 <= sum(by_period[1:]) / len(by_period[1:]) <= limit
