"""Calls that a backend writes several of at once: a client sees one after the other, each whole, in the backend's
order."""

from __future__ import annotations

import os
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from requests.tools import ToolBook, arguments_of
from requests.whole_json import WholeJSON
from tests.conftest import Running
from tests.fake_backend import FakeBackend, call, chat, event_stream, interleaved, native_events
from tests.sdk import strict_client, wire_events
from tests.stream_grammar import check_stream, fold
from tests.streams import builder, calls, decoded, ends
from tests.streams import call as delta

Json = dict[str, Any]

MANY = int(os.environ.get("LAW_EXAMPLES", "0"))
law = settings(max_examples=MANY or 150, derandomize=not MANY, database=None, deadline=None)

values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=6) | st.sampled_from(['"}', "{", "\\", '\\"}']),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
objects = st.dictionaries(st.text(max_size=3), values, max_size=3)


@st.composite
def cut(draw: st.DrawFn, text: str) -> list[str]:
    places = sorted(draw(st.lists(st.integers(0, len(text)), max_size=5)))
    return [text[start:end] for start, end in zip([0, *places], [*places, len(text)], strict=True)]


@st.composite
def answers(draw: st.DrawFn) -> tuple[list[tuple[str, str]], list[Json]]:
    """Calls as (id, arguments), in the order in which they begin, and deltas of them in any order."""
    made = [
        (f"c{number}", draw(st.sampled_from([orjson.dumps, _spaced]))(draw(objects)).decode())
        for number in range(draw(st.integers(1, 4)))
    ]
    queues = []
    for number, (call_id, arguments) in enumerate(made):
        first, *rest = draw(cut(arguments))
        opening = draw(st.sampled_from(["", first]))
        rest = rest if opening == first else [first, *rest]
        queues.append([delta(number, call_id, "f", opening), *(delta(number, arguments=piece) for piece in rest)])
    order = draw(st.permutations([number for number, queue in enumerate(queues) for _ in queue]))
    deltas = [(number, queues[number].pop(0)) for number in order]
    begun = list(dict.fromkeys(number for number, _ in deltas))
    chunks: list[list[Json]] = [[]]
    for _, one in deltas:
        if draw(st.booleans()):
            chunks.append([])
        chunks[-1].append(one)
    return [made[number] for number in begun], [calls(*some) for some in chunks if some]


def _spaced(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2)


@law
@given(answers(), st.sampled_from(["function", "custom", "shell"]), st.booleans())
def test_however_deltas_are_mixed_the_calls_of_a_client_are_not(
    answer: tuple[list[tuple[str, str]], list[Json]], kind: str, forbids: bool
) -> None:
    """The grammar has no call begin before another has ended; and what comes is what the backend wrote."""
    wanted, chunks = answer
    made = builder()
    tool = {"function": {"type": "function", "name": "f"}, "custom": {"type": "custom", "name": "f"}, "shell": SHELL}
    book = ToolBook([tool[kind]])
    made.offer(book, allowed=frozenset() if forbids else None)
    name = "shell" if kind == "shell" else "f"
    events = made.start()
    for one in decoded(*chunks):
        for tool_call in one.choices[0].delta.tool_calls:
            if tool_call.function is not None and tool_call.function.name:
                tool_call.function.name = name
        events += made.chunk(one)
    events += [*made.finish(), made.end()]
    check_stream(events)
    response = events[-1]["response"]
    assert fold(events) == response
    output = response["output"]
    assert [item["call_id"] for item in output] == ([] if forbids else [call_id for call_id, _ in wanted])
    if kind == "function" and not forbids:
        assert [item["arguments"] for item in output] == [arguments for _, arguments in wanted]


SHELL = {"type": "shell"}


@law
@given(objects, st.data())
def test_a_text_is_closed_where_its_json_is_whole(value: Json, data: st.DataObject) -> None:
    text = orjson.dumps(value).decode()
    read, fed = WholeJSON(), ""
    for piece in data.draw(cut(text + " \n")):
        read.feed(piece)
        fed += piece
        assert read.is_closed == (bool(fed) and arguments_of(fed) is not None and fed.rstrip()[-1:] == "}")
    read.feed("x")
    assert not read.is_closed


def seen(*chunks: Json) -> list[list[str]]:
    """The types of the events of each chunk, of items alone."""
    made = builder()
    made.start()
    return [[event["type"].rpartition(".")[2] for event in made.chunk(one)] for one in decoded(*chunks)]


def test_a_call_is_closed_when_the_next_begins_and_not_at_the_end() -> None:
    assert seen(
        calls(delta(0, "c1", "f", "")),
        calls(delta(0, arguments='{"x"')),
        calls(delta(0, arguments=":1}")),
        calls(delta(1, "c2", "f", "")),
        calls(delta(1, arguments='{"y":2}')),
        ends(),
    ) == [["added"], ["delta"], ["delta"], ["done", "done", "added"], ["delta"], []]


def test_a_call_behind_one_that_is_not_whole_comes_when_that_is() -> None:
    assert seen(
        calls(delta(0, "c1", "f", '{"x"')),
        calls(delta(1, "c2", "f", '{"y":')),
        calls(delta(2, "c3", "f", "{}")),
        calls(delta(0, arguments=":")),
        calls(delta(0, arguments="1}")),
        calls(delta(1, arguments="2}")),
        calls(delta(2, arguments=" ")),
    ) == [
        ["added", "delta"],
        [],
        [],
        ["delta"],
        ["delta", "done", "done", "added", "delta"],
        ["delta", "done", "done", "added", "delta"],
        ["delta"],
    ]


def test_what_follows_a_call_that_has_ended_is_not_a_part_of_the_next() -> None:
    made = builder()
    made.start()
    for one in decoded(
        calls(delta(0, "c1", "f", '{"x":1}')),
        calls(delta(1, "c2", "f", '{"y"')),
        calls(delta(0, arguments="\n")),
        calls(delta(0, "c1", "f", '{"x":1}')),
        calls(delta(1, arguments=":2}")),
        ends(),
    ):
        made.chunk(one)
    made.finish()
    assert [item["arguments"] for item in made.response["output"]] == ['{"x":1}', '{"y":2}']


@pytest.mark.heavy
def test_many_brackets_are_read_once_each() -> None:
    """A long call that another waits for: each piece of it may be its end."""
    made = builder()
    made.start()
    many = 30_000
    pieces = ['{"a":[', *["{},"] * many, "{}]}"]
    for one in decoded(calls(delta(0, "c1", "f", "")), calls(delta(1, "c2", "f", "{}"))):
        made.chunk(one)
    for one in decoded(*(calls(delta(0, arguments=piece)) for piece in pieces)):
        made.chunk(one)
    made.finish()
    assert [len(item["arguments"]) for item in made.response["output"]] == [6 + 3 * many + 4, 2]


# ── a server that speaks Responses, and writes several at once ───────────────────────────────────────────────────────


@st.composite
def mixed(draw: st.DrawFn) -> tuple[list[Json], list[Json]]:
    """The events of a native answer with several calls, those of each item in their order, and its output. Items begin
    in their order."""
    parts = [call("f", draw(objects), fragments=draw(st.integers(1, 3))) for _ in range(draw(st.integers(1, 4)))]
    if draw(st.booleans()):
        parts.append("Well.")
    events = native_events(*parts)
    head, body, end = events[:2], events[2:-1], events[-1]
    queues = [[event for event in body if event["output_index"] == index] for index in range(len(parts))]
    chosen: list[Json] = []
    begun = 0
    while any(queues):
        index = draw(st.sampled_from([index for index in range(min(begun + 1, len(queues))) if queues[index]]))
        begun = max(begun, index + 1)
        chosen.append(queues[index].pop(0))
    lost = draw(st.integers(0, 2))
    if lost:  # A server that ends some with the answer alone.
        chosen = [event for event in chosen if event["type"] != "response.output_item.done" or draw(st.booleans())]
    return [*head, *chosen, end], end["response"]["output"]


@law
@given(mixed())
def test_native_calls_do_not_begin_before_another_has_ended(answer: tuple[list[Json], list[Json]]) -> None:
    given_, output = answer
    made = builder()
    events = [event for one in given_ for event in made.adopt(one)]
    events.append(made.end())
    check_stream(events)
    assert fold(events) == events[-1]["response"]
    made_of = [(item["type"], item.get("call_id"), item.get("arguments")) for item in events[-1]["response"]["output"]]
    assert sorted(made_of, key=str) == sorted(
        [(item["type"], item.get("call_id"), item.get("arguments")) for item in output], key=str
    )
    calls_made = [call_id for _, call_id, _ in made_of if call_id]
    assert calls_made == [item["call_id"] for item in output if "call_id" in item], "the order is the backend's"


async def test_native_calls_of_a_stream_come_one_after_the_other(
    served_natively: Running, backend: FakeBackend
) -> None:
    events = native_events(call("f", {"x": 1}, fragments=3), call("g", {"y": 2}, fragments=3), "Well.")
    first = [event for event in events[2:-1] if event["output_index"] == 0]
    second = [event for event in events[2:-1] if event["output_index"] == 1]
    rest = [event for event in events[2:-1] if event["output_index"] == 2]
    both = [event for pair in zip(first, second, strict=True) for event in pair]
    for late in (both, [*first[:-1], *second[:-1], first[-1], second[-1]]):
        backend.script(event_stream([*events[:2], *late, *rest, events[-1]]))
        given_ = await wire_events(served_natively)
        check_stream(given_)
        assert [item.get("name") for item in given_[-1]["response"]["output"]] == ["f", "g", None]


@pytest.mark.parametrize("kind", ["interleaved", "one after the other"])
async def test_a_strict_client_reads_both_calls_of_a_stream(kind: str, served: Running, backend: FakeBackend) -> None:
    parts = [call("f", {"x": 1}, fragments=4), call("g", {"y": 2}, fragments=4)]
    answer = chat(interleaved(*parts)) if kind == "interleaved" else chat(*parts)
    backend.script(answer, answer)
    tools = [{"type": "function", "name": name, "parameters": {"type": "object"}} for name in "fg"]
    check_stream(await wire_events(served, tools=tools))
    async with strict_client(served).responses.stream(model="test-model", input="Hi", tools=tools) as stream:
        made = [item async for event in stream if event.type == "response.output_item.done" for item in [event.item]]
    assert [(item.name, orjson.loads(item.arguments)) for item in made] == [("f", {"x": 1}), ("g", {"y": 2})]
