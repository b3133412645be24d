"""The parts of the benchmark that run nothing: the order of its rounds, its ratios, its requests, and the backend that
answers them."""

from __future__ import annotations

import asyncio
import hashlib
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.agent import agent_request, encoded
from benchmarks.mock_backend import BURST, JSON, MODELS, Connection
from benchmarks.results import COLUMNS, COSTS, MEMORY, RATE, Results, order_of
from benchmarks.scenarios import AGENT, CHAINED, CHAT, PLAIN, RESPONSES, STORED

FIGURES = ("cpu", "first_p50", "token_p50", "total_p50", "gap_p99", "per_s", "memory")
POSITIVE = st.floats(0.01, 100)


@given(st.integers(1, 20), st.integers(0, 50))
def test_every_round_has_every_row_once(count: int, number: int) -> None:
    assert sorted(order_of(range(count), number)) == list(range(count))


@given(st.integers(1, 20), st.integers(0, 20))
def test_of_two_rounds_one_goes_backwards(count: int, number: int) -> None:
    assert order_of(range(count), 2 * number) == order_of(range(count), 2 * number + 1)[::-1]


@given(st.integers(2, 20), st.integers(0, 20))
def test_no_round_is_in_the_order_of_the_one_before(count: int, number: int) -> None:
    if count > 2 or number % 2 == 0:  # Of two rows there are two orders.
        assert order_of(range(count), number) != order_of(range(count), number + 1)


@given(st.integers(1, 20))
def test_every_row_is_the_first_one_sometimes(count: int) -> None:
    assert {order_of(range(count), number)[0] for number in range(2 * count)} == set(range(count))


def results_of(rounds: dict[str, list[float]], scenario: str = PLAIN.name) -> Results:
    """The same figure for everything that is measured of a row."""
    results = Results()
    for row, figures in rounds.items():
        results.figures[row, scenario] = [dict.fromkeys(FIGURES, figure) for figure in figures]
    return results


@given(st.lists(st.tuples(POSITIVE, POSITIVE, POSITIVE), min_size=1, max_size=9))
def test_a_machine_that_is_slow_for_a_round_changes_no_ratio(rounds: list[tuple[float, float, float]]) -> None:
    column = COSTS[0]
    still = results_of({"ours": [mine for mine, _, _ in rounds], "base": [other for _, other, _ in rounds]})
    drifting = results_of(
        {"ours": [mine * slow for mine, _, slow in rounds], "base": [other * slow for _, other, slow in rounds]}
    )
    assert drifting.ratio("ours", "base", column) == pytest.approx(still.ratio("ours", "base", column))


@given(st.lists(POSITIVE, min_size=1, max_size=9))
def test_a_row_beside_itself_has_the_ratio_one_in_every_column(figures: list[float]) -> None:
    results = results_of({"ours": figures})
    measured = [column for column in COLUMNS if column.scenario in (PLAIN, None)]
    assert [results.ratio("ours", "ours", column) for column in measured] == [1] * len(measured)
    assert not list(results.worse({"ours": "ours"}, 0, 0))


def test_what_got_slower_is_named_with_its_rounds() -> None:
    results = results_of({"ours": [1.0, 2.2, 1.3], "base": [1.0, 2.0, 1.0]})
    found = {worse.column: worse for worse in results.worse({"ours": "base"}, 3, 3)}
    assert found[COSTS[0]].percent == pytest.approx(10)
    assert found[COSTS[0]].ratios == pytest.approx([1, 1.1, 1.3])
    assert found[COSTS[0]].best == 1, "each at its best was as good as the other"
    assert found.keys() == {COSTS[0], MEMORY}, "more answers a second is not worse"
    assert {worse.column for worse in results.worse({"base": "ours"}, 3, 3)} == {RATE}, "fewer is"
    assert not list(results.worse({"ours": "base"}, 11, 0))


def test_what_is_stored_has_a_limit_of_its_own() -> None:
    results = results_of({"ours": [1.08], "base": [1.0]}, STORED.name)
    columns = {worse.column.scenario for worse in results.worse({"ours": "base"}, 3, 10)}
    assert STORED not in columns
    assert STORED in {worse.column.scenario for worse in results.worse({"ours": "base"}, 3, 7)}


def test_a_row_that_failed_in_a_round_has_no_figures() -> None:
    results = results_of({"ours": [1.0, 1.0], "base": [1.0]})
    results.failures["base", PLAIN.name] = "cut off"
    assert results.middle("base", COSTS[0]) is results.ratio("ours", "base", COSTS[0]) is None
    assert not list(results.worse({"ours": "base"}, 0, 0))


# ── requests ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_agents_turn_is_427_kb_of_361_items_and_22_tools() -> None:
    body = agent_request(RESPONSES, "mock")
    assert len(body["input"]) == 361
    assert len(body["tools"]) == 22
    assert len(encoded(body)) == pytest.approx(427_000, rel=0.001)


def test_an_agents_turn_is_the_same_in_every_run() -> None:
    digest = hashlib.sha256(AGENT.body(RESPONSES, "mock")).hexdigest()
    assert digest == "05cdbedc8e0864c7175ac9a6060d72dcd8697408061e38d9e438fff94d533475", (
        "figures can no longer be compared with those of before"
    )


@pytest.mark.parametrize("path", [RESPONSES, CHAT])
def test_every_call_of_an_agents_turn_is_answered_behind_it(path: str) -> None:
    body = agent_request(path, "mock")
    if path == RESPONSES:
        calls = [item["call_id"] for item in body["input"] if item["type"] == "function_call"]
        outputs = [item["call_id"] for item in body["input"] if item["type"] == "function_call_output"]
        pairs = list(pairwise(item["type"] for item in body["input"]))
        assert sum(pair == ("function_call", "function_call_output") for pair in pairs) == len(calls)
    else:
        calls = [call["id"] for message in body["messages"] for call in message.get("tool_calls", ())]
        outputs = [message["tool_call_id"] for message in body["messages"] if message["role"] == "tool"]
    assert calls == outputs
    assert len(set(calls)) == len(calls) == 117


def test_the_turns_of_a_chain_name_the_one_before() -> None:
    assert b"previous_response_id" not in CHAINED.body(RESPONSES, "mock")
    assert b'"previous_response_id":"resp_1"' in CHAINED.body(RESPONSES, "mock", "resp_1")


class Sink(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data


def http(method: str, path: str, body: bytes = b"") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


REQUESTS = (
    (http("POST", CHAT, AGENT.body(CHAT, "mock")), BURST),
    (http("GET", "/v1/models"), MODELS),
    (http("POST", CHAT, PLAIN.body(CHAT, "mock")), JSON),
)


@given(st.lists(st.integers(0, sum(len(request) for request, _ in REQUESTS)), max_size=6))
def test_the_mock_backend_answers_requests_however_they_are_cut(cuts: list[int]) -> None:
    sent = b"".join(request for request, _ in REQUESTS)
    connection, sink = Connection(), Sink()
    connection.connection_made(sink)
    for begin, end in pairwise(sorted({0, *cuts, len(sent)})):
        connection.data_received(sent[begin:end])
    assert sink.written == b"".join(answer for _, answer in REQUESTS)
