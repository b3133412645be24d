"""The circuit breaker: closed, open, half-open, on a clock that the tests turn."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.fleet.breaker import Breaker


def opened(at: float = 0.0) -> Breaker:
    """A breaker that has just opened, until 2 s later."""
    breaker = Breaker(3, 2.0, 60.0)
    for _ in range(3):
        breaker.begin(at)
        breaker.failure(at)
    return breaker


def test_it_opens_after_so_many_failures_in_a_row_and_no_sooner() -> None:
    breaker = Breaker(3, 2.0, 60.0)
    for count in range(3):
        assert (breaker.state(0.0), breaker.allows(0.0), breaker.failures) == ("closed", True, count)
        breaker.begin(0.0)
        breaker.failure(0.0)
    assert (breaker.state(0.0), breaker.allows(0.0), breaker.until) == ("open", False, 2.0)


def test_a_success_starts_the_count_anew() -> None:
    breaker = Breaker(3, 2.0, 60.0)
    for _ in range(5):
        breaker.failure(0.0)
        breaker.failure(0.0)
        breaker.success()
    assert breaker.state(0.0) == "closed"
    assert breaker.failures == 0


def test_after_the_cool_down_one_probe_at_a_time() -> None:
    breaker = opened()
    assert not breaker.allows(1.9)
    assert breaker.state(2.0) == "half_open"
    assert breaker.allows(2.0)
    breaker.begin(2.0)
    assert not breaker.allows(2.0)
    assert not breaker.allows(100.0), "a probe that takes long is still the only one"


def test_a_probe_that_is_answered_closes_it() -> None:
    breaker = opened()
    breaker.begin(2.0)
    breaker.success()
    assert (breaker.state(2.1), breaker.until, breaker.failures) == ("closed", None, 0)
    breaker.begin(2.1)
    assert breaker.allows(2.1), "any number while closed"


def test_a_probe_that_ends_without_an_answer_makes_way_for_the_next() -> None:
    breaker = opened()
    breaker.begin(2.0)
    breaker.abandoned()
    assert breaker.state(2.0) == "half_open"
    assert breaker.allows(2.0)


def test_each_probe_that_fails_doubles_the_cool_down_up_to_its_limit() -> None:
    breaker, now, waits = opened(), 0.0, []
    for _ in range(7):
        assert breaker.until is not None
        waits.append(breaker.until - now)
        now = breaker.until
        breaker.begin(now)
        breaker.failure(now)
    assert waits == [2, 4, 8, 16, 32, 60, 60]


def test_the_cool_down_begins_anew_after_a_success() -> None:
    breaker = opened()
    breaker.begin(2.0)
    breaker.failure(2.0)
    breaker.begin(6.0)
    breaker.success()
    for _ in range(3):
        breaker.failure(10.0)
    assert breaker.until == 12.0


def test_failures_that_were_under_way_when_it_opened_do_not_lengthen_it() -> None:
    breaker = opened()
    for _ in range(16):
        breaker.failure(0.5)
    assert breaker.until == 2.0


def test_requests_that_are_sent_while_it_is_open_do_not_lengthen_it() -> None:
    """Where no endpoint is well, requests are sent all the same: they are no probes."""
    breaker = opened()
    for tenth in range(19):
        breaker.begin(tenth / 10)
        breaker.failure(tenth / 10)
    assert breaker.until == 2.0
    breaker.begin(2.0)
    breaker.failure(2.0)
    assert breaker.until == 6.0, "the first probe, and the first doubling"


def test_a_request_that_is_sent_while_it_is_open_and_answered_closes_it() -> None:
    breaker = opened()
    breaker.begin(1.0)
    breaker.success()
    assert breaker.state(1.0) == "closed"


@pytest.mark.parametrize(("asked_s", "until"), [(0.5, 2.0), (7.0, 7.0), (1e9, 60.0)])
def test_retry_after_is_waited_for_within_limits(asked_s: float, until: float) -> None:
    breaker = Breaker(3, 2.0, 60.0)
    breaker.failure(0.0, asked_s)
    assert breaker.until == until, "who asks for time gets it after one failure"


def test_retry_after_while_open_only_lengthens_it() -> None:
    breaker = opened()
    breaker.failure(1.0, 0.5)
    assert breaker.until == 2.0
    breaker.failure(1.0, 9.0)
    assert breaker.until == 10.0


def test_it_wants_to_be_probed_while_half_open_unless_it_hangs() -> None:
    assert not Breaker(3, 2.0, 60.0).wants_probe(0.0)
    breaker = opened()
    assert not breaker.wants_probe(1.0)
    assert breaker.wants_probe(2.0)
    breaker.begin(2.0)
    assert not breaker.wants_probe(2.0), "there is one"
    breaker.failure(2.0, hung=True)
    assert breaker.allows(6.0)
    assert not breaker.wants_probe(6.0), "a client would wait as long as the last"


EVENTS = st.lists(
    st.tuples(st.sampled_from(("send", "force", "success", "failure", "abandoned")), st.floats(0, 5)), max_size=60
)


@given(EVENTS, st.integers(1, 4))
def test_the_laws(events: list[tuple[str, float]], threshold: int) -> None:
    """Requests end in the order in which they were sent; "force" sends one whatever the breaker says."""
    breaker, now, running, row = Breaker(threshold, 2.0, 60.0), 0.0, 0, 0
    for what, passed in events:
        now += passed
        before, until = breaker.state(now), breaker.until
        if what in ("send", "force"):
            allowed = breaker.allows(now)
            assert allowed or before != "closed"
            assert not (allowed and before == "open"), "an open breaker lets nothing through"
            if allowed or what == "force":
                breaker.begin(now)
                running += 1
                assert breaker.state(now) == before, "sending changes no state"
                assert before != "half_open" or not breaker.allows(now), "one probe at a time"
        elif running:
            running -= 1
            if what == "success":
                breaker.success()
                row = 0
                assert breaker.state(now) == "closed"
            elif what == "failure":
                breaker.failure(now)
                row += 1
                assert (breaker.state(now) == "closed") == (before == "closed" and row < threshold)
                if before == "open":
                    assert breaker.until == until, "it was open, and says nothing new"
            else:
                breaker.abandoned()
                assert breaker.state(now) == before
        assert breaker.failures == row
        if breaker.until is not None:
            assert breaker.until <= now + 60.0, "the cool-down has a limit"
            if not running:
                assert breaker.allows(breaker.until), "nobody is left out for ever"
