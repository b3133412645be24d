"""What comes whole, or from a backend that speaks Responses, has the events of a stream too: completions, native
answers, replays."""

from __future__ import annotations

from typing import Any

import pytest

from core.errors import (
    BackendCut,
)
from requests.events import Event, ResponseBuilder, replay, unfinished
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
    closes,
    decoded,
    ends,
    judged,
    opens,
    reasoning,
    refused,
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


# ── whole items: a completion, the cache, a native answer ────────────────────────────────────────────────────────────

WHOLE_ITEMS: dict[str, tuple[Json, list[str]]] = {
    "a text": (said("hi"), text(0)),
    "an empty text": (said(""), text(0, 0)),
    "a message that says nothing": (said(), ["0 output_item.added", "0 output_item.done"]),
    "texts": (said("a", "b"), text_events(0, ("output_text", 1), ("output_text", 1))),
    "a refusal": (refused("No.", before="Well."), text_events(0, ("output_text", 1), ("refusal", 1))),
    "reasoning": (thought("Hm."), reasoning(0)),
    "reasoning without content": ({"type": "reasoning", "summary": []}, ["0 output_item.added", "0 output_item.done"]),
    "a call": (called("c1"), opens(0, 1) + closes(0)),
    "a summary": (
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Sum."}], "encrypted_content": "gAAA"},
        [
            "0 output_item.added",
            *[f"0 reasoning_summary_{event}" for event in ("part.added", "text.delta", "text.done", "part.done")],
            "0 output_item.done",
        ],
    ),
    "a custom tool's call": (
        {"type": "custom_tool_call", "status": "completed", "call_id": "c1", "name": "sh", "input": "ls"},
        [
            "0 output_item.added",
            "0 custom_tool_call_input.delta",
            "0 custom_tool_call_input.done",
            "0 output_item.done",
        ],
    ),
    "a custom tool's call without a text": (
        {"type": "custom_tool_call", "status": "completed", "call_id": "c1", "name": "sh", "input": ""},
        ["0 output_item.added", "0 custom_tool_call_input.done", "0 output_item.done"],
    ),
    "a shell's call": (
        {
            "type": "shell_call",
            "status": "completed",
            "call_id": "c1",
            "action": {"commands": ["ls"], "timeout_ms": None, "max_output_length": None},
        },
        ["0 output_item.added", "0 output_item.done"],
    ),
    "a local shell's call": (
        {
            "type": "local_shell_call",
            "status": "completed",
            "call_id": "c1",
            "action": {"type": "exec", "command": ["ls"], "env": {}},
        },
        ["0 output_item.added", "0 output_item.done"],
    ),
    "a patch": (
        {
            "type": "apply_patch_call",
            "status": "completed",
            "call_id": "c1",
            "operation": {"type": "delete_file", "path": "a.txt"},
        },
        ["0 output_item.added", "0 output_item.done"],
    ),
    "a search for tools": (
        {
            "type": "tool_search_call",
            "status": "completed",
            "call_id": "c1",
            "execution": "client",
            "arguments": {"query": "files"},
        },
        ["0 output_item.added", "0 output_item.done"],
    ),
    "a compaction": (
        {"type": "compaction", "encrypted_content": "gAAA"},
        ["0 output_item.added", "0 compaction.compacting", "0 output_item.done"],
    ),
    "a hosted tool's call": (
        {
            "type": "web_search_call",
            "status": "completed",
            "action": {"type": "search", "query": "x", "queries": ["x"]},
        },
        [
            "0 output_item.added",
            *(f"0 web_search_call.{state}" for state in ("in_progress", "searching", "completed")),
            "0 output_item.done",
        ],
    ),
}


@pytest.mark.parametrize(("item", "between"), WHOLE_ITEMS.values(), ids=WHOLE_ITEMS)
def test_a_whole_item_has_the_events_of_a_streamed_one(item: Json, between: list[str]) -> None:
    made = builder()
    events = [*made.start(), *made.item(item), *made.finish(), made.end()]
    assert shape(judged(events)) == ["created", "in_progress", *between, "completed"]
    assert bare(events[-1]["response"]["output"]) == bare([item])


def test_annotations_have_their_events() -> None:
    cited = {"type": "url_citation", "url": "http://x", "title": "X", "start_index": 0, "end_index": 1}
    part = {"type": "output_text", "text": "hi", "annotations": [cited, cited], "logprobs": []}
    made = builder()
    events = judged([*made.start(), *made.item(said() | {"content": [part]}), *made.finish(), made.end()])
    notes = [event for event in events if event["type"] == "response.output_text.annotation.added"]
    assert [(note["annotation_index"], note["annotation"]) for note in notes] == [(0, cited), (1, cited)]


def test_a_part_that_has_no_events_is_kept_without_any() -> None:
    parts = [{"type": "output_audio", "data": "AA==", "transcript": "hi"}]
    made = builder()
    events = [*made.start(), *made.item(said() | {"content": parts}), *made.finish(), made.end()]
    assert shape(events) == ["created", "in_progress", "0 output_item.added", "0 output_item.done", "completed"]
    assert events[-1]["response"]["output"][0]["content"] == parts


def test_the_call_ids_of_whole_items_are_free_too() -> None:
    made = builder(taken=("0",))
    events = [*made.start(), *made.item(called("0")), *made.item(called("1")), *made.finish(), made.end()]
    first, second = call_ids(judged(events))
    assert first.startswith("call_")
    assert second == "1"


@pytest.mark.parametrize("reason", ["length", "content_filter"])
def test_a_whole_completion_is_cut_off_at_its_last_item(reason: str) -> None:
    made = builder()
    items = [{key: value for key, value in item.items() if key != "status"} for item in (said("a"), called("c1"))]
    usage = {"prompt_tokens": 3, "completion_tokens": 5, "prompt_tokens_details": None}
    events = [*made.start(), *made.completion(items, finish_reason=reason, usage=usage), made.end()]
    judged(events)
    response = events[-1]["response"]
    assert [item["status"] for item in response["output"]] == ["completed", "incomplete"]
    assert (response["status"], events[-1]["type"]) == ("incomplete", "response.incomplete")
    assert response["usage"] == COUNTED


# ── native events ────────────────────────────────────────────────────────────────────────────────────────────────────


def native(type_: str, response: Json | None = None, **fields: Any) -> Event:
    return {"type": f"response.{type_}", "sequence_number": 70, **fields} | ({"response": response} if response else {})


UPSTREAM = {
    "id": "resp_theirs",
    "object": "response",
    "created_at": 1,
    "model": "gpt-4.1-2025-04-14",
    "status": "in_progress",
    "store": False,
    "background": False,
    "previous_response_id": None,
    "output": [],
    "temperature": 0.7,
    "billing": {"payer": "developer"},
}


def adopted(*events: Event, **request: Any) -> tuple[ResponseBuilder, list[Event]]:
    made = builder(**request)
    return made, [ours for event in events for ours in made.adopt(event)]


def test_native_events_get_our_id_and_numbers_and_keep_all_else() -> None:
    made, events = adopted(
        native("created", UPSTREAM),
        native("in_progress", UPSTREAM),
        native("moon_phase.changed", phase="full", nested={"id": "theirs"}),
        previous_response_id="resp_0",
        temperature=0.2,
    )
    assert [event["sequence_number"] for event in events] == [0, 1, 2]
    response = events[0]["response"]
    ours = {"id": "resp_1", "created_at": 1700000000, "previous_response_id": "resp_0", "store": True}
    assert {key: response[key] for key in ours} == ours, "what the backend has no say in"
    assert (response["temperature"], response["billing"]) == (0.7, {"payer": "developer"}), "what it has a say in"
    assert response["model"] == UPSTREAM["model"], "its snapshot"
    assert response["top_logprobs"] == 0, "what it left out"
    assert events[2] == {
        "type": "response.moon_phase.changed",
        "sequence_number": 2,
        "phase": "full",
        "nested": {"id": "theirs"},
    }, "an unknown event is passed untouched"
    assert made.started
    assert not made.ended


@pytest.mark.parametrize("status", ["completed", "incomplete", "failed"])
def test_the_native_terminal_event_only_ends_the_response(status: str) -> None:
    extra = {"incomplete": {"incomplete_details": {"reason": "max_output_tokens"}}}.get(status, {})
    extra |= {"failed": {"error": {"code": "server_error", "message": "x"}}}.get(status, {})
    item = said("hi") | {"id": "msg_theirs"}
    item["content"][0] |= {"annotations": [], "logprobs": []}
    made, events = adopted(
        native("created", UPSTREAM),
        native("in_progress", UPSTREAM),
        native(status, {**UPSTREAM, "status": status, "output": [], **extra}),
    )
    assert shape(events) == ["created", "in_progress"]
    assert made.ended
    assert shape([made.end()]) == [status]
    assert made.response["status"] == status


def test_a_native_stream_that_breaks_off_keeps_its_finished_items() -> None:
    item = {"type": "web_search_call", "id": "ws_1", "status": "completed"}
    made, events = adopted(
        native("created", UPSTREAM),
        native("in_progress", UPSTREAM),
        native("output_item.added", output_index=0, item={**item, "status": "in_progress"}),
        native("output_item.done", output_index=0, item=item),
        native("output_item.added", output_index=1, item={**said(), "id": "msg_1", "status": "in_progress"}),
    )
    events += [*made.fail(BackendCut("x")), made.end()]
    check_stream(events)
    assert events[-1]["response"]["output"] == [item]


def test_a_whole_native_response_has_the_events_of_a_streamed_one() -> None:
    made = builder(previous_response_id="resp_0")
    output = [
        thought("Hm.") | {"id": "rs_theirs"},
        said("hi") | {"id": "msg_theirs"},
        called("c1") | {"id": "fc_theirs"},
    ]
    usage = {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}
    events = made.adopt_whole({**UPSTREAM, "status": "completed", "completed_at": 2, "output": output, "usage": usage})
    events.append(made.end())
    check_stream(events)
    assert shape(events) == ["created", "in_progress", *reasoning(0), *text(1), *opens(2, 1), *closes(2), "completed"]
    response = events[-1]["response"]
    assert [item["id"] for item in response["output"]] == ["rs_theirs", "msg_theirs", "fc_theirs"], (
        "items keep their ids"
    )
    assert (response["id"], response["previous_response_id"]) == ("resp_1", "resp_0")
    assert response["usage"] == {
        **usage,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 0},
    }


@pytest.mark.parametrize("status", ["incomplete", "failed"])
def test_a_whole_native_response_that_was_not_completed_ends_as_it_did(status: str) -> None:
    made = builder()
    details = {"incomplete": {"reason": "max_output_tokens"}}.get(status)
    error = {"failed": {"code": "server_error", "message": "x"}}.get(status)
    whole = {**UPSTREAM, "status": status, "incomplete_details": details, "error": error}
    item = said("h", status="incomplete") | {"id": "msg_theirs"}
    events = [*made.adopt_whole({**whole, "output": [item]}), made.end()]
    check_stream(events)
    assert shape(events)[-1] == status
    assert events[-1]["response"]["output"][0]["status"] == "incomplete"


def test_a_native_answer_in_the_background_begins_once() -> None:
    whole = {**UPSTREAM, "status": "completed", "output": [said("hi") | {"id": "msg_1"}]}
    streamed_ = [
        native("created", UPSTREAM),
        native("in_progress", UPSTREAM),
        native("completed", whole | {"output": []}),
    ]
    for answer in ("whole", "streamed"):
        made = builder("queued", background=True)
        events = [*made.start(), *made.progress()]
        if answer == "whole":
            events += made.adopt_whole(whole)
        else:
            events += [ours for event in streamed_ for ours in made.adopt(event)]
        events.append(made.end())
        check_stream(events)
        assert shape(events)[:3] == ["created", "queued", "in_progress"], answer


# ── replay ───────────────────────────────────────────────────────────────────────────────────────────────────────────

ENDED: dict[str, list[Json]] = {
    "completed": [thinks("Hm."), says("Look:"), calls(call(0, "c1", "f", "{}")), ends(), USAGE],
    "incomplete": [says("Hel"), ends("length"), USAGE],
    "empty": [ends()],
}


@pytest.mark.parametrize("chunks", ENDED.values(), ids=ENDED)
def test_a_finished_response_can_be_replayed(chunks: list[Json]) -> None:
    response = streamed(*chunks)[-1]["response"]
    made = ResponseBuilder(unfinished(response))
    events = [*replay(made, response), made.end()]
    assert judged(events)[-1]["response"] == response
    assert shape(events)[:2] == ["created", "in_progress"]
    assert events[0]["response"]["completed_at"] is None, "it begins as it began"


def test_a_replay_under_another_id_is_the_other_response() -> None:
    response = streamed(says("hi"), ends(), USAGE)[-1]["response"]
    made = builder(metadata={"k": "v"})
    events = [*replay(made, {**response, "id": "resp_cached", "metadata": {}}), made.end()]
    replayed = judged(events)[-1]["response"]
    assert (replayed["id"], replayed["metadata"]) == ("resp_1", {"k": "v"})
    assert (replayed["output"], replayed["usage"]) == (response["output"], COUNTED)


def test_a_failed_or_cancelled_response_can_be_replayed() -> None:
    for stop in ("failed", "cancelled"):
        made = builder()
        made.start()
        for given in decoded(says("Hel"), calls(call(0, "c1", "f", '{"a"'))):
            made.chunk(given)
        made.fail(BackendCut("x")) if stop == "failed" else made.cancel()
        response = made.end()["response"]
        again = ResponseBuilder(unfinished(response))
        events = [*replay(again, response), again.end()]
        check_stream(events)
        assert events[-1]["response"] == response, f"{stop}: the replay ends otherwise"
