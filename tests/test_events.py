"""The stream state machine: what a chat backend says, and the events that a client reads. Each row is a stream, and
each stream is judged by the grammar, by folding it, and by the official SDK."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from core.errors import (
    APIError,
    BackendCut,
    BackendRefused,
    BackendTimeout,
    InvalidRequest,
    ServerError,
    TooManyRequests,
)
from tests.stream_grammar import check_stream
from tests.streams import (
    COUNTED,
    USAGE,
    bare,
    builder,
    call,
    call_ids,
    called,
    calls,
    chunk,
    closes,
    decoded,
    ends,
    grows,
    judged,
    opens,
    reasoning,
    refusal,
    refused,
    refuses,
    said,
    says,
    shape,
    streamed,
    text,
    text_events,
    thinks,
    thought,
)

Json = dict[str, Any]


# ── streams ──────────────────────────────────────────────────────────────────────────────────────────────────────────

# The chunks, the events between the start and the end, and the output.
TEXTS: dict[str, tuple[list[Json], list[str], list[Json]]] = {
    "text": ([says("Hel"), says("lo"), ends()], text(0, 2), [said("Hello")]),
    "a role, nulls and empty deltas say nothing": (
        [
            says("", role="assistant"),
            chunk({"role": "assistant", "content": None, "tool_calls": None, "refusal": None}),
            {"choices": [{"index": 0, "delta": None}]},
            {"choices": None},
            says("hi"),
            chunk({"tool_calls": []}),
            ends(),
        ],
        text(0),
        [said("hi")],
    ),
    "text in the last chunk": ([chunk({"content": "hi"}, finish_reason="stop")], text(0), [said("hi")]),
    "no reason to finish": ([says("hi")], text(0), [said("hi")]),
    "an empty answer": ([ends()], [], []),
    "no chunk at all": ([], [], []),
    "reasoning before text": (
        [thinks("H"), thinks("m."), says("hi"), ends()],
        reasoning(0, 2) + text(1),
        [thought("Hm."), said("hi")],
    ),
    "reasoning under its other key": (
        [chunk({"reasoning": "Hm."}), says("hi"), ends()],
        reasoning(0) + text(1),
        [thought("Hm."), said("hi")],
    ),
    "reasoning under both keys is said once": (
        [chunk({"reasoning": "Hm.", "reasoning_content": "Hm."}), says("hi"), ends()],
        reasoning(0) + text(1),
        [thought("Hm."), said("hi")],
    ),
    "reasoning alone": ([thinks("Hm."), ends()], reasoning(0), [thought("Hm.")]),
    "reasoning between texts": (
        [says("a"), thinks("Hm."), says("b"), ends()],
        text(0) + reasoning(1) + text(2),
        [said("a"), thought("Hm."), said("b")],
    ),
    "reasoning and text in one chunk": (
        [chunk({"reasoning_content": "Hm.", "content": "hi"}), ends()],
        reasoning(0) + text(1),
        [thought("Hm."), said("hi")],
    ),
    "a refusal": ([refuses("I can"), refuses("not."), ends()], refusal(0, 2), [refused("I cannot.")]),
    "a refusal behind a text is a part of the same message": (
        [says("Well."), refuses("No."), ends()],
        text_events(0, ("output_text", 1), ("refusal", 1)),
        [refused("No.", before="Well.")],
    ),
    "other choices have no place": (
        [
            {"choices": [{"index": 1, "delta": {"content": "X"}}, {"index": 0, "delta": {"content": "a"}}]},
            {"choices": [{"index": 1, "delta": {}, "finish_reason": "length"}]},
            ends(),
        ],
        text(0),
        [said("a")],
    ),
    "usage has no choices": ([says("hi"), ends(), USAGE], text(0), [said("hi")]),
}

CALLS: dict[str, tuple[list[Json], list[str], list[Json]]] = {
    "a call in pieces": (
        [calls(call(0, "c1", "f", "")), calls(call(0, arguments='{"x"')), calls(call(0, arguments=":1}")), ends()],
        opens(0, 2) + closes(0),
        [called("c1", arguments='{"x":1}')],
    ),
    "a call at once": (
        [calls(call(0, "c1", "f", '{"x":1}')), ends()],
        opens(0, 1) + closes(0),
        [called("c1", arguments='{"x":1}')],
    ),
    "two calls in one chunk": (
        [calls(call(0, "c1", "f", "{}"), call(1, "c2", "g", "{}")), ends()],
        opens(0, 1) + closes(0) + opens(1, 1) + closes(1),
        [called("c1"), called("c2", "g")],
    ),
    "calls that are interleaved": (
        [
            calls(call(0, "c1", "f")),
            calls(call(1, "c2", "g")),
            calls(call(0, arguments='{"a":')),
            calls(call(1, arguments='{"b":')),
            calls(call(0, arguments="1}")),
            calls(call(1, arguments="2}")),
            ends(),
        ],
        [*opens(0), *grows(0), *grows(0), *closes(0), *opens(1, 1), *grows(1), *closes(1)],
        [called("c1", arguments='{"a":1}'), called("c2", "g", '{"b":2}')],
    ),
    "every call has the index 0": (
        [
            calls(call(0, "c1", "f", '{"a":')),
            calls(call(0, arguments="1}")),
            calls(call(0, "c2", "g", '{"b":2}')),
            ends(),
        ],
        [*opens(0, 2), *closes(0), *opens(1, 1), *closes(1)],
        [called("c1", arguments='{"a":1}'), called("c2", "g", '{"b":2}')],
    ),
    "no index, and ids": (
        [
            calls(call(None, "c1", "f", '{"a":')),
            calls(call(None, arguments="1}")),
            calls(call(None, "c2", "g", '{"b":')),
            calls(call(None, "c1", arguments=" ")),
            calls(call(None, "c2", arguments="2}")),
            ends(),
        ],
        [*opens(0, 2), *closes(0), *opens(1, 1), *grows(1), *closes(1)],
        [called("c1", arguments='{"a":1}'), called("c2", "g", '{"b":2}')],
    ),
    "the id again in every chunk": (
        [calls(call(0, "c1", "f", '{"a"')), calls(call(0, "c1", "f", ":1}")), ends()],
        opens(0, 2) + closes(0),
        [called("c1", arguments='{"a":1}')],
    ),
    "another id in every chunk, and no name": (
        [calls(call(0, "c1", "f", '{"a"')), calls(call(0, "c2", arguments=":1}")), ends()],
        opens(0, 2) + closes(0),
        [called("c1", arguments='{"a":1}')],
    ),
    "neither index nor id is the last call": (
        [calls(call(0, None, "f")), calls(call(1, "c2", "g")), calls(call(None, arguments="{}")), ends()],
        [*opens(0), *grows(0), *closes(0), *opens(1), *grows(1), *closes(1)],
        [called("new", "f"), called("c2", "g")],
    ),
    "an empty name in every chunk": (
        [calls(call(0, "c1", "f", '{"a"')), calls(call(0, "", "", ":1}")), ends()],
        opens(0, 2) + closes(0),
        [called("c1", arguments='{"a":1}')],
    ),
    "the name after the id": (
        [calls(call(0, "c1")), calls(call(0, name="f")), calls(call(0, arguments="{}")), ends()],
        opens(0, 1) + closes(0),
        [called("c1")],
    ),
    "arguments before the name wait for it": (
        [calls(call(0, "c1", arguments='{"a"')), calls(call(0, arguments=":")), calls(call(0, name="f")), ends()],
        opens(0, 1) + closes(0),
        [called("c1", arguments='{"a":')],
    ),
    "arguments as an object": (
        [calls(call(0, "c1", "f", {"x": 1})), ends()],
        opens(0, 1) + closes(0),
        [called("c1", arguments='{"x":1}')],
    ),
    "an empty object as arguments": ([calls(call(0, "c1", "f", {})), ends()], opens(0, 1) + closes(0), [called("c1")]),
    "no arguments are an empty object, as a delta too": (
        [calls(call(0, "c1", "f")), ends("tool_calls")],
        opens(0, 1) + closes(0),
        [called("c1")],
    ),
    "text before a call": (
        [says("Look:"), calls(call(0, "c1", "f", "{}")), ends()],
        text(0) + opens(1, 1) + closes(1),
        [said("Look:"), called("c1")],
    ),
    "text behind a call is an item of its own": (
        [says("Look:"), calls(call(0, "c1", "f", "{")), says("So."), calls(call(0, arguments="}")), ends()],
        [*text(0), *opens(1, 1), *text(2), *grows(1), *closes(1)],
        [said("Look:"), called("c1"), said("So.")],
    ),
    "text at the end, behind a call": (
        [calls(call(0, "c1", "f", "{}")), says("So."), ends()],
        [*opens(0, 1), *closes(0), *text(1)],
        [called("c1"), said("So.")],
    ),
    "reasoning, text and a call in one chunk": (
        [
            chunk({"reasoning_content": "Hm.", "content": "Look:", "tool_calls": [call(0, "c1", "f", "{}")]}),
            ends(),
        ],
        [*reasoning(0), *text(1), *opens(2, 1), *closes(2)],
        [thought("Hm."), said("Look:"), called("c1")],
    ),
    "reasoning behind a call": (
        [calls(call(0, "c1", "f", "{}")), thinks("Hm."), calls(call(1, "c2", "g", "{}")), ends()],
        [*opens(0, 1), *closes(0), *reasoning(1), *opens(2, 1), *closes(2)],
        [called("c1"), thought("Hm."), called("c2", "g")],
    ),
}


@pytest.mark.parametrize(("chunks", "between", "output"), [*TEXTS.values(), *CALLS.values()], ids=[*TEXTS, *CALLS])
def test_chunks_become_events(chunks: list[Json], between: list[str], output: list[Json]) -> None:
    events = judged(streamed(*chunks))
    assert shape(events) == ["created", "in_progress", *between, "completed"]
    assert [item | _new(item) for item in bare(events[-1]["response"]["output"])] == output


def _new(item: Json) -> Json:
    """A call id of our own, which is another one every time."""
    return {"call_id": "new"} if item.get("call_id", "").startswith("call_") else {}


LIMITS: dict[str, tuple[list[Json], list[Json]]] = {
    "a call that goes on behind a text": (
        [calls(call(0, "c1", "f", "{")), says("So."), calls(call(0, arguments='"a'))],
        [called("c1", arguments='{"a', status="incomplete"), said("So.")],
    ),
    "a text": ([says("Hel")], [said("Hel", status="incomplete")]),
    "a refusal": ([refuses("I ca")], [refused("I ca", status="incomplete")]),
    "reasoning, which has no status": ([thinks("Hm")], [thought("Hm")]),
    "nothing": ([], []),
    "the last of two calls": (
        [calls(call(0, "c1", "f", "{}")), calls(call(1, "c2", "g", '{"b":'))],
        [called("c1"), called("c2", "g", '{"b":', status="incomplete")],
    ),
    "a call that had no arguments yet": (
        [calls(call(0, "c1", "f", ""))],
        [called("c1", arguments="", status="incomplete")],
    ),
    "a text behind a call": (
        [calls(call(0, "c1", "f", "{}")), says("So")],
        [called("c1"), said("So", status="incomplete")],
    ),
    "a text behind reasoning": ([thinks("Hm."), says("So")], [thought("Hm."), said("So", status="incomplete")]),
}


@pytest.mark.parametrize(
    ("finish_reason", "reason"), [("length", "max_output_tokens"), ("content_filter", "content_filter")]
)
@pytest.mark.parametrize(("chunks", "output"), LIMITS.values(), ids=LIMITS)
def test_at_a_limit_the_last_item_was_cut_off_and_so_was_the_response(
    chunks: list[Json], output: list[Json], finish_reason: str, reason: str
) -> None:
    events = judged(streamed(*chunks, ends(finish_reason), USAGE))
    response = events[-1]["response"]
    assert (events[-1]["type"], response["status"]) == ("response.incomplete", "incomplete")
    assert response["incomplete_details"] == {"reason": reason}
    assert response["completed_at"] is None
    assert response["usage"] == COUNTED
    assert bare(response["output"]) == output


@pytest.mark.parametrize("reason", ["stop", "tool_calls", "function_call", "eos", ""])
def test_every_other_reason_completes_the_response(reason: str) -> None:
    response = judged(streamed(says("hi"), ends(reason)))[-1]["response"]
    assert (response["status"], response["incomplete_details"]) == ("completed", None)
    assert response["completed_at"] >= response["created_at"]


# ── ids, usage, logprobs ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_call_without_an_id_gets_one() -> None:
    events = judged(streamed(calls(call(0, None, "f", "{}")), calls(call(1, "", "g", "{}")), ends()))
    one, two = call_ids(events)
    assert one.startswith("call_")
    assert two.startswith("call_")
    assert one != two


def test_an_id_of_an_earlier_turn_is_not_used_again() -> None:
    first, second = call_ids(
        judged(streamed(calls(call(0, "0", "f", "{}")), calls(call(1, "1", "f", "{}")), ends(), taken=("0",)))
    )
    assert first.startswith("call_"), "the backend counts its calls from zero in every turn"
    assert second == "1", "an id that is free stays the backend's"


def test_an_id_is_not_used_twice_in_a_turn() -> None:
    one, two = call_ids(judged(streamed(calls(call(0, "c", "f", "{}"), call(1, "c", "g", "{}")), ends())))
    assert one == "c"
    assert two.startswith("call_")


def test_usage_is_the_last_that_was_given() -> None:
    so_far = {
        "choices": [{"index": 0, "delta": {"content": "i"}}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 1},
    }
    assert judged(streamed(says("h"), so_far, ends(), USAGE))[-1]["response"]["usage"] == COUNTED
    assert judged(streamed(says("h"), {**ends(), "usage": None}))[-1]["response"]["usage"] is None


def test_log_probabilities_go_with_their_deltas_and_into_the_part() -> None:
    def given(token: str) -> Json:
        return {"token": token, "logprob": -0.5, "bytes": [*token.encode()], "top_logprobs": []}

    one, two = (chunk({"content": token}, logprobs={"content": [given(token)]}) for token in ("a", "b"))
    events = judged(streamed(one, two, ends()))
    deltas = [event["logprobs"] for event in events if event["type"] == "response.output_text.delta"]
    assert deltas == [[given("a")], [given("b")]]
    (done,) = (event for event in events if event["type"] == "response.output_text.done")
    assert done["logprobs"] == [given("a"), given("b")]
    assert events[-1]["response"]["output"][0]["content"][0]["logprobs"] == [given("a"), given("b")]


# ── the life of a response ───────────────────────────────────────────────────────────────────────────────────────────


def test_a_turn_that_waits_is_queued_and_then_in_progress() -> None:
    made = builder("queued", background=True)
    events = made.start()
    assert shape(events) == ["created", "queued"]
    events += made.progress()
    for given in decoded(says("hi"), ends()):
        events += made.chunk(given)
    events += [*made.finish(), made.end()]
    assert shape(judged(events)) == ["created", "queued", "in_progress", *text(0), "completed"]
    statuses = [event["response"]["status"] for event in events if "response" in event]
    assert statuses == ["queued", "queued", "in_progress", "completed"]


def test_a_snapshot_is_complete_and_does_not_change_afterwards() -> None:
    made = builder(temperature=0.5, metadata={"k": "v"})
    events = made.start()
    before = orjson.dumps(events)
    for given in decoded(says("hi"), ends(), USAGE):
        made.chunk(given)
    made.finish()
    made.end()
    assert orjson.dumps(events) == before, "an event changed after it was made"
    assert events[0]["response"]["temperature"] == 0.5
    assert events[0]["response"]["output"] == []


def test_started_and_ended_are_asked_of_the_response() -> None:
    made = builder()
    assert (made.started, made.ended) == (False, False)
    made.start()
    assert (made.started, made.ended) == (True, False)
    made.finish()
    assert (made.started, made.ended) == (True, True)


PARTIAL: dict[str, tuple[list[Json], list[Json]]] = {
    "nothing yet": ([], []),
    "a text": ([says("Hel")], [said("Hel", status="incomplete")]),
    "a text and a refusal": (
        [says("Well."), refuses("I ca")],
        [refused("I ca", before="Well.", status="incomplete")],
    ),
    "reasoning": ([thinks("Hm")], [thought("Hm")]),
    "a text that was done": ([thinks("Hm."), says("Hel")], [thought("Hm."), said("Hel", status="incomplete")]),
    "calls": (
        [says("Look:"), calls(call(0, "c1", "f", "{}")), calls(call(1, "c2", "g", '{"b"'))],
        [said("Look:"), called("c1"), called("c2", "g", '{"b"', status="incomplete")],
    ),
    "a call that has no name yet": ([says("Look:"), calls(call(0, "c1"))], [said("Look:")]),
    "a call behind an open one, which nobody has seen": (
        [calls(call(0, "c1", "f", '{"a"')), calls(call(1, "c2", "g", '{"b"'))],
        [called("c1", arguments='{"a"', status="incomplete")],
    ),
    "a text behind a call that is whole": (
        [calls(call(0, "c1", "f", "{}")), says("So")],
        [called("c1"), said("So", status="incomplete")],
    ),
    "a text behind an open call": (
        [calls(call(0, "c1", "f", '{"a"')), says("So")],
        [called("c1", arguments='{"a"', status="incomplete"), said("So", status="incomplete")],
    ),
}


@pytest.mark.parametrize(("chunks", "output"), PARTIAL.values(), ids=PARTIAL)
def test_a_failed_response_keeps_what_there_is(chunks: list[Json], output: list[Json]) -> None:
    made = builder()
    events = made.start()
    for given in decoded(*chunks):
        events += made.chunk(given)
    before = shape(events)
    events += [*made.fail(BackendCut("The backend broke off its answer.")), made.end()]
    assert shape(judged(events)) == [*before, "error", "failed"], "what is open is not closed: nobody runs half a call"
    assert bare(events[-1]["response"]["output"]) == output
    assert events[-1]["response"]["completed_at"] is None


@pytest.mark.parametrize(("chunks", "output"), PARTIAL.values(), ids=PARTIAL)
def test_a_cancelled_response_keeps_what_there_is(chunks: list[Json], output: list[Json]) -> None:
    made = builder()
    events = made.start()
    for given in decoded(*chunks):
        events += made.chunk(given)
    made.cancel()
    events.append(made.end())
    judged(events)
    response = events[-1]["response"]
    assert (events[-1]["type"], response["status"]) == ("response.failed", "cancelled")
    assert response["error"] is None
    assert bare(response["output"]) == output


def test_a_queued_response_can_be_cancelled() -> None:
    made = builder("queued")
    events = made.start()
    made.cancel()
    events.append(made.end())
    assert shape(judged(events)) == ["created", "queued", "failed"]
    assert events[-1]["response"]["status"] == "cancelled"


def test_a_response_that_cannot_be_stored_fails_although_it_was_finished() -> None:
    made = builder()
    events = made.start()
    for given in decoded(
        says("hi"), calls(call(0, "c1", "f", "{}")), calls(call(1, "c2", "g", "{")), ends("length"), USAGE
    ):
        events += made.chunk(given)
    events += made.finish()
    events += [*made.fail(ServerError("The store is full.")), made.end()]
    judged(events)
    response = events[-1]["response"]
    assert (response["status"], response["incomplete_details"]) == ("failed", None)
    done = [said("hi"), called("c1"), called("c2", "g", "{", status="incomplete")]
    assert bare(response["output"]) == done, "its items stay as they were done"
    assert response["usage"] == COUNTED


# What a client reads: the error, its code in the error event, and its code in the response, which is one of OpenAI's.
FAILURES: dict[str, tuple[APIError, str | None, str]] = {
    "a backend that broke off": (BackendCut("x"), "backend_disconnected", "server_error"),
    "a backend that was silent": (BackendTimeout("x"), "backend_timeout", "server_error"),
    "a busy backend": (TooManyRequests("x"), "rate_limit_exceeded", "rate_limit_exceeded"),
    "a backend that refused": (BackendRefused("x"), None, "invalid_prompt"),
    "too long a context": (
        BackendRefused("x", code="context_length_exceeded", param="input"),
        "context_length_exceeded",
        "context_length_exceeded",
    ),
    "a wrong request": (InvalidRequest("x", param="input"), None, "invalid_prompt"),
    "ourselves": (ServerError("x"), "internal_error", "server_error"),
}


@pytest.mark.parametrize(("error", "code", "response_code"), FAILURES.values(), ids=FAILURES)
def test_an_error_is_encoded_flat_and_nested_and_in_the_response(
    error: APIError, code: str | None, response_code: str
) -> None:
    made = builder()
    events = [*made.start(), *made.fail(error), made.end()]
    # The SDK's types do not know the one code that Codex acts on.
    check_stream(events) if response_code == "context_length_exceeded" else judged(events)
    event = events[-2]
    flat = {"code": code, "message": "x", "param": error.param}
    assert event == {"type": "error", "sequence_number": 2, **flat, "error": {**flat, "type": error.type}}
    expected = {"code": response_code, "message": "x", "type": error.type, "param": error.param}
    assert events[-1]["response"]["error"] == expected


# ── what servers do to calls and texts ───────────────────────────────────────────────────────────────────────────────

A, B = '{"a":1}', '{"b":2}'
TWO_CALLS = {
    "other ids, one index": [call(0, "c1", "f", A), call(0, "c2", "g", B)],
    "other ids, one index, one name": [call(0, "c1", "f", A), call(0, "c2", "f", B)],
    "empty ids, one index": [call(0, "", "f", A), call(0, "", "g", B)],
    "empty ids, one index, one name": [call(0, "", "f", A), call(0, "", "f", B)],
    "no ids, one index": [call(0, None, "f", A), call(0, None, "g", B)],
    "empty ids, no index": [call(None, "", "f", A), call(None, "", "g", B)],
    "empty ids, one index, in pieces": [
        call(0, "", "f", '{"a"'),
        call(0, "", "", ":1}"),
        call(0, "", "g", '{"b"'),
        call(0, "", "", ":2}"),
    ],
}


@pytest.mark.parametrize("in_one_chunk", [True, False], ids=["in one chunk", "a chunk each"])
@pytest.mark.parametrize("deltas", TWO_CALLS.values(), ids=TWO_CALLS)
def test_two_calls_are_two_whatever_their_ids(deltas: list[Json], in_one_chunk: bool) -> None:
    chunks = [calls(*deltas)] if in_one_chunk else [calls(delta) for delta in deltas]
    events = judged(streamed(*chunks, ends("tool_calls")))
    assert [item["arguments"] for item in events[-1]["response"]["output"]] == [A, B]
    assert len(set(call_ids(events))) == 2


ONE_CALL = {
    "the name in every piece": [call(0, "", "f", '{"a"'), call(0, "", "f", ":1}")],
    "the name in every piece, the first one empty": [call(0, "", "f", ""), call(0, "", "f", A)],
    "the id in the first piece alone": [call(0, "c1", "f", '{"a"'), call(0, "", "f", ":1}")],
}


@pytest.mark.parametrize("deltas", ONE_CALL.values(), ids=ONE_CALL)
def test_the_pieces_of_a_call_are_one(deltas: list[Json]) -> None:
    events = judged(streamed(*[calls(delta) for delta in deltas], ends("tool_calls")))
    assert [item["arguments"] for item in events[-1]["response"]["output"]] == [A]


def test_a_call_that_was_never_named_is_not_emitted() -> None:
    """No client could run it, and servers refuse it in the history."""
    nameless = [calls(call(0, "c1", None, A)), calls(call(1, "c2", "", B)), calls(call(2, "c3"))]
    events = judged(streamed(says("Look:"), *nameless, ends("tool_calls")))
    assert bare(events[-1]["response"]["output"]) == [said("Look:")]
    events = judged(streamed(*nameless, calls(call(3, "c4", "g", B)), ends("length")))
    assert bare(events[-1]["response"]["output"]) == [called("c4", "g", B, status="incomplete")]


def test_a_call_without_a_name_in_a_whole_answer_is_not_emitted() -> None:
    made = builder()
    items = [
        {"type": "function_call", "call_id": "c1", "name": "", "arguments": A},
        {"type": "function_call", "call_id": "c2", "name": "g", "arguments": B},
    ]
    events = judged([*made.start(), *made.completion(items, finish_reason="tool_calls", usage=None), made.end()])
    assert bare(events[-1]["response"]["output"]) == [called("c2", "g", B)]


def test_text_may_come_in_parts() -> None:
    """As Mistral's servers send it."""

    def parts(*texts: str) -> Json:
        return chunk({"content": [{"type": "text", "text": text} for text in texts]})

    events = judged(streamed(parts("Hel"), parts("l", "o"), parts(), says("!"), ends()))
    assert bare(events[-1]["response"]["output"]) == [said("Hello!")]
