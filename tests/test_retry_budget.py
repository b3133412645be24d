"""The retry budget: a fleet that fails is not asked for much more work than a fleet that does not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.fleet.retry import RetryBudget

RESERVE, MOST = int(RetryBudget.RESERVE), int(RetryBudget.MOST)


def taken(budget: RetryBudget, tries: int) -> int:
    return sum(budget.take() for _ in range(tries))


def test_small_traffic_may_retry() -> None:
    budget = RetryBudget(0.2)
    budget.request()
    assert taken(budget, 3) == 3


def test_the_reserve_is_there_once() -> None:
    assert taken(RetryBudget(0.2), 1000) == RESERVE


@pytest.mark.parametrize(("ratio", "retries"), [(0.25, 25), (0.5, 50), (1.0, 100)])
def test_requests_pay_for_retries_by_the_ratio(ratio: float, retries: int) -> None:
    budget = RetryBudget(ratio)
    taken(budget, 1000)
    got = 0
    for _ in range(100):
        budget.request()
        got += taken(budget, 3)
    assert got == retries


def test_what_quiet_times_save_has_a_limit() -> None:
    budget = RetryBudget(0.5)
    for _ in range(10_000):
        budget.request()
    assert taken(budget, 10_000) == MOST


def test_without_a_budget_there_are_no_retries() -> None:
    budget = RetryBudget(0.0)
    for _ in range(1000):
        budget.request()
    assert taken(budget, 1000) == 0


@given(st.floats(0.01, 1.0), st.lists(st.booleans(), max_size=200))
def test_retries_are_never_more_than_the_ratio_and_the_reserve(ratio: float, steps: list[bool]) -> None:
    budget, requests, retries = RetryBudget(ratio), 0, 0
    for is_request in steps:
        if is_request:
            budget.request()
            requests += 1
        else:
            retries += budget.take()
        assert retries <= RESERVE + ratio * requests + 1e-9
