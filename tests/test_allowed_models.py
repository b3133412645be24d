"""Which models a key reaches: exactly those of which a name matches its patterns, by whichever name it asks."""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.fleet.endpoint import Endpoint
from backends.fleet.endpoints import Endpoints
from backends.kinds.server import ModelFacts
from cluster.alone import Alone
from core.config import Config
from core.config_checks import parse_config

NAMES = ["a", "a:latest", "ab", "b", "b:8b", "openai/a", "c"]
names = st.sampled_from(NAMES)
patterns = st.lists(st.sampled_from([*NAMES, "a*", "*b", "b:*", "openai/*", "?", "[ac]", "zz"]), max_size=3).map(tuple)
fleets = st.lists(
    st.tuples(
        st.sampled_from(["ollama", "openai-chat", "llama.cpp"]),
        st.dictionaries(names, st.lists(st.sampled_from(["x", "ax"]), max_size=1).map(tuple), max_size=4),
        st.dictionaries(st.sampled_from(["fast", "a", "b"]), names, max_size=2),
    ),
    min_size=1,
    max_size=3,
)


def fleet_of(rows: list[tuple[str, dict[str, tuple[str, ...]], dict[str, str]]]) -> Endpoints:
    """Endpoints that were asked what they have."""
    settings = [{"url": f"http://server:{number + 1}", "kind": kind} for number, (kind, _, _) in enumerate(rows)]
    config: Config = parse_config({"endpoints": settings})
    fleet = Endpoints(config, cluster := Alone(1), lambda: None)
    for one, (_, there, aliases) in zip(config.endpoints, rows, strict=True):
        endpoint = Endpoint(one, config.breaker, lambda: None, lambda lost: None, cluster.in_flight(one.url))
        endpoint.facts = {name: ModelFacts(aliases=its) for name, its in there.items()}
        endpoint.models = {name: name for name in there} | {name: of for name, of in aliases.items() if of in there}
        fleet[endpoint.key] = endpoint
    return fleet


def names_of(endpoint: Endpoint, there: str) -> set[str]:
    """All names of a model of an endpoint, and what it is called without the tag that is usual."""
    listed = {name for name, of in endpoint.models.items() if of == there}
    return {there, *listed, *endpoint.facts[there].aliases}


@given(fleets, patterns, st.sampled_from([*NAMES, "fast", "x", "ax", "openai/b", "b:latest", "never"]))
def test_a_key_reaches_the_models_of_which_a_name_matches_by_whichever_name_it_asks(
    rows: list[tuple[str, dict[str, tuple[str, ...]], dict[str, str]]], allowed: tuple[str, ...], asked: str
) -> None:
    fleet = fleet_of(rows)
    everything, reached = fleet.serving(asked), fleet.serving(asked, allowed)
    for endpoint, there in everything:
        is_named = any(fnmatchcase(name, one) for name in names_of(endpoint, there) for one in allowed)
        is_meant = any(endpoint.name_of(one) == there for one in allowed)
        assert ((endpoint, there) in reached) == (is_named or is_meant)
    assert {*reached} <= {*everything}
    assert fleet.serving(asked, ("*",)) == everything


@given(fleets, patterns)
def test_a_key_sees_what_it_may_ask_for(
    rows: list[tuple[str, dict[str, tuple[str, ...]], dict[str, str]]], allowed: tuple[str, ...]
) -> None:
    fleet = fleet_of(rows)
    assert fleet.models(allowed=allowed).keys() == {
        name
        for endpoint in fleet.values()
        for name, there in endpoint.models.items()
        if (endpoint, there) in fleet.serving(name, allowed)
    }


@pytest.mark.parametrize("allowed", [(), ("zz",)])
def test_a_key_that_may_use_nothing_reaches_nothing(allowed: tuple[str, ...]) -> None:
    fleet = fleet_of([("ollama", {"a:latest": ()}, {"fast": "a:latest"})])
    assert fleet.models(allowed=allowed) == {}
    assert not any(fleet.serving(name, allowed) for name in ("a", "a:latest", "fast"))
