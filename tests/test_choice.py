"""The chooser's order, its laws, and what it remembers of conversations."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.fleet.choice import CLEARLY_BUSIER, Affinity, Candidate, choose

RANDOM = random.Random(4)


def at(endpoint: str, in_flight: int = 0, max_concurrent: int = 4, **how: Any) -> Candidate:
    return Candidate(endpoint, "model", in_flight, max_concurrent, **{"loaded": True, **how})


def chosen(*candidates: Candidate, warm: str | None = None) -> str | None:
    """The endpoint that is chosen whichever comes first, and whatever chance says."""
    places = set()
    for turn in range(len(candidates)):
        for _ in range(8):
            choice = choose([*candidates[turn:], *candidates[:turn]], warm, RANDOM)
            places.add(choice and choice.endpoint)
    assert len(places) == 1, f"one of {places}, by chance or by place"
    return places.pop()


def shares(*candidates: Candidate, of: int = 4000) -> dict[str, float]:
    rng = random.Random(1)
    counts: Counter[str] = Counter()
    for _ in range(of):
        choice = choose(candidates, None, rng)
        assert choice
        counts[choice.endpoint] += 1
    return {endpoint: count / of for endpoint, count in counts.items()}


# ── the order ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_nobody_is_chosen_of_none() -> None:
    assert choose([], None, RANDOM) is None


def test_nobody_is_chosen_where_every_slot_is_taken() -> None:
    assert chosen(at("a", 4), at("b", 9), warm="a") is None


def test_the_lower_priority_number_comes_first_whatever_else_speaks_against_it() -> None:
    assert chosen(at("first", 3, loaded=False), at("second", priority=1), warm="second") == "first"


@pytest.mark.parametrize("cannot", [{"in_flight": 4}, {"healthy": False}, {"allowed": False}])
def test_a_tier_is_left_when_none_of_it_can_take_the_request(cannot: dict[str, Any]) -> None:
    assert chosen(at("first", **cannot), at("second", priority=1)) == "second"
    assert chosen(at("first", **cannot), at("also first", 3), at("second", priority=1)) == "also first"


def test_a_model_in_memory_comes_before_what_is_warm_and_what_is_idle() -> None:
    assert chosen(at("loaded", 3), at("cold", loaded=False), warm="cold") == "loaded"


def test_a_model_in_memory_without_a_free_slot_does_not_count() -> None:
    assert chosen(at("loaded", 4), at("cold", 3, loaded=False)) == "cold"


def test_what_is_warm_comes_before_what_is_idle() -> None:
    assert chosen(at("warm", 2), at("idle"), warm="warm") == "warm"


def test_what_is_warm_and_clearly_busier_is_passed_over() -> None:
    assert CLEARLY_BUSIER == 0.5
    assert chosen(at("warm", 3), at("idle"), warm="warm") == "idle"
    assert chosen(at("warm", 3), at("busy", 1), warm="warm") == "warm", "only a little busier"


@pytest.mark.parametrize("cannot", [{"in_flight": 4}, {"healthy": False}, {"allowed": False}, {"priority": 1}])
def test_what_is_warm_and_cannot_take_it_is_passed_over(cannot: dict[str, Any]) -> None:
    assert chosen(at("warm", **cannot), at("other"), warm="warm") == "other"


def test_an_endpoint_that_is_not_there_any_more_is_not_warm() -> None:
    assert chosen(at("a", 1), at("b"), warm="gone") == "b"


def test_the_least_busy_is_so_for_its_size_and_weight() -> None:
    assert chosen(at("small", 1, 2), at("large", 3, 16)) == "large"
    assert chosen(at("light", 1, 4), at("heavy", 2, 4, weight=3.0)) == "heavy"


def test_one_that_is_to_be_probed_gets_a_request_before_those_that_are_well() -> None:
    assert chosen(at("well"), at("probed", 1, probe=True, loaded=False), warm="well") == "probed"
    assert chosen(at("well"), at("full", 4, probe=True)) == "well"
    assert chosen(at("well"), at("later", priority=1, probe=True)) == "well", "its tier is not asked at all"


def test_where_all_fail_any_is_as_good_a_guess() -> None:
    assert chosen(at("a", 1, healthy=False), at("b", allowed=False)) == "b"


def test_who_is_well_and_full_is_waited_for() -> None:
    assert chosen(at("well", 4), at("down", healthy=False)) is None


def test_equals_are_chosen_at_random() -> None:
    assert shares(at("a"), at("b"), at("c"), at("busy", 1)) == pytest.approx(
        {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}, abs=0.03
    )


def test_idle_endpoints_get_shares_as_their_weights_say() -> None:
    assert shares(at("a", weight=3.0), at("b", weight=1.0)) == pytest.approx({"a": 0.75, "b": 0.25}, abs=0.03)


def test_busy_endpoints_get_shares_as_their_weights_say() -> None:
    in_flight: Counter[str] = Counter()
    for _ in range(40):
        choice = choose([at("a", in_flight["a"], 100, weight=3.0), at("b", in_flight["b"], 100)], None, RANDOM)
        assert choice
        in_flight[choice.endpoint] += 1
    assert in_flight == {"a": 30, "b": 10}


# ── the laws ─────────────────────────────────────────────────────────────────────────────────────────────────────────

NAMES = ("a", "b", "c", "d", "e")
FLEETS = st.integers(1, len(NAMES)).flatmap(
    lambda size: st.tuples(
        *(
            st.builds(
                Candidate,
                endpoint=st.just(name),
                model=st.just("model"),
                in_flight=st.integers(0, 4),
                max_concurrent=st.integers(1, 4),
                priority=st.integers(0, 2),
                weight=st.sampled_from((0.1, 1.0, 2.0)),
                loaded=st.booleans(),
                healthy=st.booleans(),
                allowed=st.booleans(),
            )
            for name in NAMES[:size]
        )
    )
)


@given(FLEETS, st.sampled_from((None, *NAMES)))
def test_the_law_of_the_choice(fleet: tuple[Candidate, ...], warm: str | None) -> None:
    choice = choose(fleet, warm, RANDOM)
    able = [one for one in fleet if one.is_well] or list(fleet)
    free = [one for one in able if one.in_flight < one.max_concurrent]
    assert (choice is None) == (not free), "somebody is chosen if, and only if, somebody can take it"
    if choice is None:
        return
    assert choice in free, "never above max_concurrent, never one that fails while another works"
    tier = [one for one in free if one.priority == min(one.priority for one in free)]
    assert choice in tier
    loaded = [one for one in tier if one.loaded] or tier
    assert choice in loaded
    least = min(one.load for one in loaded)
    assert choice.load == least or (choice.endpoint == warm and choice.load <= least + CLEARLY_BUSIER)


@given(st.lists(st.tuples(st.booleans(), st.sampled_from((None, "a", "b", "c"))), max_size=60))
def test_no_endpoint_ever_has_more_than_its_limit(steps: list[tuple[bool, str | None]]) -> None:
    limits = {"a": 1, "b": 2, "c": 3}
    running: list[str] = []
    for comes, warm in steps:
        if comes:
            choice = choose([at(name, running.count(name), limit) for name, limit in limits.items()], warm, RANDOM)
            assert (choice is None) == (len(running) == sum(limits.values()))
            running += [choice.endpoint] if choice else []
        elif running:
            running.pop(0)
        for name, limit in limits.items():
            assert running.count(name) <= limit, f"{name} is over its limit"


# ── affinity ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_place_is_remembered_until_another_takes_it() -> None:
    affinity = Affinity(max_entries=2, max_age_s=10.0)
    affinity.put("talk", "a", 0.0)
    assert affinity.get("talk", 1.0) == "a"
    affinity.put("talk", "b", 2.0)
    assert affinity.get("talk", 3.0) == "b"
    assert affinity.get("another", 3.0) is None


def test_a_place_is_forgotten_when_it_is_old() -> None:
    affinity = Affinity(max_entries=2, max_age_s=10.0)
    affinity.put("talk", "a", 0.0)
    assert affinity.get("talk", 10.0) == "a"
    assert affinity.get("talk", 10.1) is None
    affinity.put("talk", "a", 11.0)
    assert affinity.get("talk", 20.0) == "a"


def test_what_was_not_used_for_longest_is_forgotten_first() -> None:
    affinity = Affinity(max_entries=2, max_age_s=10.0)
    for name in ("old", "kept", "old", "new"):
        affinity.put(name, name, 0.0)
    assert [affinity.get(name, 0.0) for name in ("old", "kept", "new")] == ["old", None, "new"]


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from("xyz")), max_size=40))
def test_the_last_names_are_known_and_no_others(puts: list[tuple[str, str]]) -> None:
    affinity = Affinity(max_entries=3, max_age_s=100.0)
    last: dict[str, str] = {}
    for now, (name, endpoint) in enumerate(puts):
        affinity.put(name, endpoint, float(now))
        last.pop(name, None)
        last[name] = endpoint
    known = {name: place for name in "abcdef" if (place := affinity.get(name, float(len(puts))))}
    assert known == dict(list(last.items())[-3:])
