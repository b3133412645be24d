"""The checker accepts the good streams, and catches every broken one for the reason that was broken."""

from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fake_backend import (
    call,
    chat_usage,
    native_events,
    reasoning,
    refusal,
    sse,
    with_logprobs,
)
from tests.fixtures import recorded, recordings
from tests.response_grammar import RESPONSE_KEYS
from tests.stream_grammar import check_stream, fold, parse_sse

Json = dict[str, Any]


# ── good streams ─────────────────────────────────────────────────────────────


def numbered(events: list[Json], first: int = 0) -> list[Json]:
    """The same events, counted from `first`."""
    copies = copied(events)
    for number, event in enumerate(copies, first):
        event["sequence_number"] = number
    return copies


def copied(events: list[Json]) -> list[Json]:
    """Copies that share nothing, as if they had come over the wire."""
    return orjson.loads(orjson.dumps(events))


def around(*events: Json, output: list[Json], ends: str = "completed", **fields: Any) -> list[Json]:
    """A whole stream around these events."""
    empty = native_events()
    terminal = {**empty[-1], "type": f"response.{ends}"}
    terminal["response"] = terminal["response"] | {"output": output, "status": ends} | fields
    return numbered([*empty[:2], *events, terminal])


def two_calls(*, at_once: bool = False) -> list[Json]:
    """One after the other; or both open at once, which no client reads."""
    one = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "a"}
    two = {"type": "function_call", "id": "fc_2", "call_id": "call_2", "name": "b"}
    at = [{"item_id": "fc_1", "output_index": 0}, {"item_id": "fc_2", "output_index": 1}]
    name = "response.function_call_arguments"
    done = [item | {"arguments": "{}", "status": "completed"} for item in (one, two)]
    lives = [
        [
            added(n, item | {"arguments": "", "status": "in_progress"}),
            *({"type": f"{name}.delta", **at[n], "delta": delta} for delta in "{}"),
            {"type": f"{name}.done", **at[n], "arguments": "{}", "name": "ab"[n]},
            {"type": "response.output_item.done", "output_index": n, "item": done[n]},
        ]
        for n, item in enumerate((one, two))
    ]
    events = [event for both in zip(*lives, strict=True) for event in both] if at_once else [*lives[0], *lives[1]]
    return around(*events, output=done)


def summary_and_content() -> list[Json]:
    item = {"type": "reasoning", "id": "rs_1", "status": "in_progress", "summary": []}
    at = {"item_id": "rs_1", "output_index": 0}
    summary, content = {"type": "summary_text", "text": "Sum."}, {"type": "reasoning_text", "text": "Hm."}
    done = {**item, "status": "completed", "summary": [summary, summary], "content": [content]}
    done["encrypted_content"] = "gAAA"
    return around(
        added(0, item),
        *(event for n in (0, 1) for event in part_events("reasoning_summary", summary, at | {"summary_index": n})),
        *part_events("reasoning_text", content, at | {"content_index": 0}),
        {"type": "response.output_item.done", "output_index": 0, "item": done},
        output=[done],
    )


def custom_tool() -> list[Json]:
    item = {"type": "custom_tool_call", "id": "ctc_1", "call_id": "call_1", "name": "shell", "input": ""}
    at = {"item_id": "ctc_1", "output_index": 0}
    name = "response.custom_tool_call_input"
    done = item | {"input": "ls -l"}
    return around(
        added(0, item),
        {"type": f"{name}.delta", **at, "delta": "ls "},
        {"type": f"{name}.delta", **at, "delta": "-l"},
        {"type": f"{name}.done", **at, "input": "ls -l"},
        {"type": "response.output_item.done", "output_index": 0, "item": done},
        output=[done],
    )


def annotated() -> list[Json]:
    item = {"type": "message", "id": "msg_1", "role": "assistant", "status": "in_progress", "content": []}
    at = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    cited = {"type": "url_citation", "url": "u", "title": "t", "start_index": 0, "end_index": 1}
    part = {"type": "output_text", "text": "Hi", "annotations": []}
    events = part_events("output_text", part, at)
    annotation = {
        "type": "response.output_text.annotation.added",
        **at,
        "annotation_index": 0,
        "annotation": cited,
    }
    part = part | {"annotations": [cited]}
    done = item | {"status": "completed", "content": [part]}
    return around(
        added(0, item),
        *events[:-1],
        annotation,
        events[-1] | {"part": part},
        {"type": "response.output_item.done", "output_index": 0, "item": done},
        output=[done],
        output_text="Hi",
    )


def hosted_tool() -> list[Json]:
    item = {"type": "web_search_call", "id": "ws_1", "status": "in_progress", "action": {"type": "search"}}
    at = {"item_id": "ws_1", "output_index": 0}
    done = item | {"status": "completed"}
    return around(
        added(0, item),
        {"type": "response.web_search_call.searching", **at},
        {"type": "response.output_item.done", "output_index": 0, "item": done},
        output=[done],
    )


def added(index: int, item: Json) -> Json:
    return {"type": "response.output_item.added", "output_index": index, "item": item}


def part_events(kind: str, part: Json, at: Json) -> list[Json]:
    """added, two deltas, .done and done of one part."""
    name = "reasoning_summary_part" if kind == "reasoning_summary" else "content_part"
    text = "reasoning_summary_text" if kind == "reasoning_summary" else kind
    logprobs = {"logprobs": []} if kind == "output_text" else {}
    said = [part["text"][:1], part["text"][1:]]
    return [
        {"type": f"response.{name}.added", **at, "part": part | {"text": ""}},
        *({"type": f"response.{text}.delta", **at, "delta": delta, **logprobs} for delta in said),
        {"type": f"response.{text}.done", **at, "text": part["text"], **logprobs},
        {"type": f"response.{name}.done", **at, "part": part},
    ]


def queued() -> list[Json]:
    events = native_events("Hi")
    waiting = events[0]["response"] | {"status": "queued", "background": True}
    opening = [{"type": f"response.{name}", "response": waiting} for name in ("created", "queued")]
    return numbered([*opening, *events[1:]])


def cancelled_in_the_queue() -> list[Json]:
    events = queued()[:2]
    response = events[0]["response"] | {"status": "cancelled"}
    return numbered([*events, {"type": "response.failed", "response": response}])


def failed(after: int, *, keeps: bool) -> list[Json]:
    """A stream that fails after so many events of its message, which it keeps or not."""
    done, *_, message = native_events(reasoning("Hm."), "Hello there")[-1]["response"]["output"]
    events = native_events(reasoning("Hm."), "Hello there")
    opened = next(n for n, event in enumerate(events) if event.get("item", {}).get("type") == "message")
    events = events[: opened + after]
    said = "".join(event.get("delta", "") for event in events[opened:])
    partial = message | {"status": "incomplete"}
    partial["content"] = [message["content"][0] | {"text": said}] if after > 1 else []
    facts = {"code": "server_error", "message": "boom", "param": None}
    error = {"type": "error", **facts, "error": {"type": "server_error", **facts}}
    output = [done, partial] if keeps and after else [done]
    return numbered(around(*events[2:], error, output=output, ends="failed", completed_at=None, error=facts))


def failed_in_a_call() -> list[Json]:
    events = native_events(call("a", {"x": 1}))
    opened = next(n for n, event in enumerate(events) if event["type"].endswith("arguments.delta"))
    item = events[opened - 1]["item"] | {"status": "incomplete", "arguments": events[opened]["delta"]}
    facts = {"completed_at": None, "error": {"code": "server_error", "message": "boom"}}
    return around(*events[2 : opened + 1], output=[item], ends="failed", **facts)


GOOD: dict[str, list[Json]] = {
    "text": native_events("Hello there"),
    "logprobs": native_events(with_logprobs("Hello there")),
    "a refusal": native_events(refusal("No.")),
    "everything": native_events(reasoning("Hm."), "Let me see.", call("a", {"x": 1}), call("b"), "So."),
    "a call without arguments": native_events(call("a", "")),
    "nothing": native_events(),
    "no usage": native_events("Hi", usage=None),
    "the three counts": native_events("Hi", usage={"input_tokens": 7, "output_tokens": 3, "total_tokens": 10}),
    "incomplete": native_events("Hello there", incomplete="max_output_tokens"),
    "an incomplete call": native_events(call("a", '{"x'), incomplete="max_output_tokens"),
    "counted from 5": numbered(native_events("Hi"), 5),
    "two calls": two_calls(),
    "summaries and content": summary_and_content(),
    "a custom tool": custom_tool(),
    "annotations": annotated(),
    "a hosted tool": hosted_tool(),
    "queued": queued(),
    "cancelled in the queue": cancelled_in_the_queue(),
    "failed at once": failed(0, keeps=False),
    "failed with an open item": failed(1, keeps=True),
    "failed in the middle of a text": failed(3, keeps=True),
    "failed in the middle of a call": failed_in_a_call(),
    "failed, and the open item is gone": failed(3, keeps=False),
}


@pytest.mark.parametrize("events", GOOD.values(), ids=GOOD.keys())
def test_a_good_stream_passes(events):
    check_stream(events)


@pytest.mark.parametrize(
    "events", [events for name, events in GOOD.items() if "gone" not in name and "queue" not in name]
)
def test_folding_a_stream_gives_its_response(events):
    assert fold(events) == events[-1]["response"]


def test_folding_does_not_look_at_the_last_output():
    events = native_events("Hello there")
    events[-1]["response"] = events[-1]["response"] | {"output": []}
    assert fold(events)["output"][0]["content"][0]["text"] == "Hello there"


said = st.text(max_size=30)
parts = st.lists(
    st.one_of(
        said,
        st.builds(with_logprobs, said),
        st.builds(reasoning, said),
        st.builds(refusal, said),
        st.builds(call, st.just("f"), said, fragments=st.integers(0, 4)),
    ),
    max_size=5,
)


@given(parts, st.sampled_from([None, "max_output_tokens"]))
def test_any_response_streamed_passes_and_folds(parts, incomplete):
    events = native_events(*parts, incomplete=incomplete)
    check_stream(events)
    assert fold(events) == events[-1]["response"]


def test_ids_of_other_forms_pass_when_they_are_not_looked_at():
    text = orjson.dumps(native_events("Hi", call("f"))).replace(b"msg_", b"m-").replace(b"fc_", b"f-")
    events = orjson.loads(text)
    check_stream(events, prefixes=False)
    with pytest.raises(AssertionError, match="without msg_"):
        check_stream(events)


@pytest.mark.parametrize("name", recordings(path="/v1/responses", stream=True))
def test_what_llama_cpp_streams_natively_is_no_proper_stream(name):
    events = [event for _, event in parse_sse(recorded(name).body)]
    with pytest.raises(AssertionError, match=r"event 0, response\.created: sequence_number is None"):
        check_stream(events)


# ── broken streams ───────────────────────────────────────────────────────────

Break = Callable[[list[Json]], Any]


def at(events: list[Json], type_: str, nth: int = 0) -> Json:
    """The nth event of that type."""
    return [event for event in events if event["type"] == f"response.{type_}"][nth]


def put(type_: str, *path_and_value: Any, nth: int = 0) -> Break:
    """Set a value in an event: put("output_text.done", "text", "x")."""
    *path, last, value = path_and_value

    def break_(events: list[Json]) -> None:
        target = at(events, type_, nth)
        for key in path:
            target = target[key]
        target[last] = value

    return break_


def drop(type_: str, *path: Any, nth: int = 0) -> Break:
    """Take an event away, or a key of it."""

    def break_(events: list[Json]) -> list[Json] | None:
        target = at(events, type_, nth)
        if not path:
            return numbered([event for event in events if event is not target])
        for key in path[:-1]:
            target = target[key]
        del target[path[-1]]
        return None

    return break_


def twice(type_: str, nth: int = 0) -> Break:
    def break_(events: list[Json]) -> list[Json]:
        index = events.index(at(events, type_, nth))
        return numbered([*events[: index + 1], *events[index:]])

    return break_


def move(type_: str, before: str, nth: int = 0) -> Break:
    """Move an event before the first one of another type."""

    def break_(events: list[Json]) -> list[Json]:
        moved = at(events, type_, nth)
        rest = [event for event in events if event is not moved]
        index = rest.index(at(rest, before))
        return numbered([*rest[:index], moved, *rest[index:]])

    return break_


def insert(event: Json, before: str) -> Break:
    def break_(events: list[Json]) -> list[Json]:
        index = events.index(at(events, before))
        return numbered([*events[:index], event, *events[index:]])

    return break_


def everywhere(type_: str, key: str, value: Any) -> Break:
    """Set a key of an item in its done event and in the terminal output alike."""

    def break_(events: list[Json]) -> None:
        item = at(events, type_)["item"]
        for other in events[-1]["response"]["output"]:
            if other["id"] == item["id"]:
                other[key] = value
        item[key] = value

    return break_


def last(n: int) -> Break:
    return lambda events: events[:-n]


ITEM = "output_item.added"
DONE = "output_item.done"
PART = "content_part.added"
TEXT = "output_text.delta"
ARGUMENTS = "function_call_arguments"
FINAL = ("completed", "response")
DELTA = {
    "type": "response.output_text.delta",
    "item_id": "msg_native0",
    "output_index": 0,
    "content_index": 0,
}

INPUT_DELTA = {
    "type": "response.custom_tool_call_input.delta",
    "item_id": "ctc_1",
    "output_index": 0,
    "delta": "",
}

# (what is broken, in which good stream, how, what the checker says)
BROKEN: list[tuple[str, str, Break, str]] = [
    # order and number
    ("no event at all", "text", lambda events: [], "no terminal event"),
    ("an event without a type", "text", lambda events: [{}], "event 0, None: no type"),
    ("no created", "text", drop("created"), "event 0, response.in_progress: it comes after"),
    ("created twice", "text", twice("created"), "event 1, response.created: it comes after"),
    (
        "no in_progress",
        "text",
        drop("in_progress"),
        "output_item.added: it comes before response.in_progress",
    ),
    ("in_progress twice", "text", twice("in_progress"), "in_progress: it comes after"),
    ("queued after in_progress", "queued", move("in_progress", "queued"), "queued: it comes after"),
    ("queued twice", "queued", twice("queued"), "queued: it comes after"),
    ("completed before in_progress", "nothing", drop("in_progress"), "it comes before response.in_progress"),
    (
        "no terminal event",
        "text",
        last(1),
        r"no terminal event; the last of \d+ is response.output_item.done",
    ),
    ("two terminal events", "text", twice("completed"), "after the terminal response.completed"),
    (
        "a delta after the end",
        "text",
        lambda e: numbered([*e, e[4]]),
        "after the terminal response.completed",
    ),
    ("a gap in the numbers", "text", put(TEXT, "sequence_number", 99), "sequence_number is 99, not"),
    ("a number twice", "text", put("in_progress", "sequence_number", 0), "sequence_number is 0, not 1"),
    ("no number", "text", drop(TEXT, "sequence_number"), "sequence_number is None"),
    ("an unknown event", "text", put(TEXT, "type", "response.nomyo.delta"), "no client knows this event"),
    ("a prefixed event", "text", put(TEXT, "type", "nomyo:delta"), "no client knows this event"),
    # the response's snapshots
    ("no response", "text", drop("created", "response"), "no response"),
    ("another id", "text", put(*FINAL, "id", "resp_x"), "response.id was 'resp_native', and is 'resp_x'"),
    ("an empty id", "text", put("created", "response", "id", ""), "response.id is empty"),
    ("another created_at", "text", put(*FINAL, "created_at", 1), "response.created_at was"),
    ("a float created_at", "text", put("created", "response", "created_at", 1.5), "created_at is 1.5"),
    ("a bool as number", "text", put("created", "response", "top_logprobs", True), "top_logprobs is True"),
    ("another object", "text", put("created", "response", "object", "thing"), "object is 'thing'"),
    ("no format", "text", put("created", "response", "text", {}), "no format"),
    ("created with output", "text", put("created", "response", "output", [{}]), "output is not empty yet"),
    ("in_progress with output", "text", put("in_progress", "response", "output", [{}]), "not empty yet"),
    (
        "created as completed",
        "text",
        put("created", "response", "status", "completed"),
        "status is 'completed'",
    ),
    ("queued as in_progress", "queued", put("queued", "response", "status", "in_progress"), "status is"),
    ("completed as failed", "text", put(*FINAL, "status", "failed"), "status is 'failed'"),
    (
        "incomplete as completed",
        "incomplete",
        put("incomplete", "response", "status", "completed"),
        "status is",
    ),
    ("no reason", "incomplete", put("incomplete", "response", "incomplete_details", None), "details is None"),
    (
        "an empty reason",
        "incomplete",
        put("incomplete", "response", "incomplete_details", {"reason": ""}),
        "''",
    ),
    ("a reason to complete", "text", put(*FINAL, "incomplete_details", {"reason": "x"}), "details is {"),
    ("an error on completed", "text", put(*FINAL, "error", {"code": "x", "message": "y"}), "error is {"),
    ("failed without an error", "failed at once", put("failed", "response", "error", None), "error is None"),
    (
        "an error without code",
        "failed at once",
        put("failed", "response", "error", "code", None),
        "'code': None",
    ),
    ("usage without a count", "text", drop(*FINAL, "usage", "total_tokens"), "total_tokens is None"),
    ("a null count", "the three counts", put(*FINAL, "usage", "input_tokens", None), "input_tokens is None"),
    ("one detail object", "text", drop(*FINAL, "usage", "input_tokens_details"), "and not the other one"),
    ("hollow details", "text", put(*FINAL, "usage", "output_tokens_details", {}), "reasoning_tokens is None"),
    ("a chat usage", "text", put(*FINAL, "usage", chat_usage()), "input_tokens is None"),
    ("another output_text", "text", put(*FINAL, "output_text", "x"), "output_text is 'x', not 'Hello there'"),
    # items
    ("no item", "text", put(ITEM, "item", None), "item is None"),
    ("an item index too high", "text", put(ITEM, "output_index", 1), "output_index is 1, not 0"),
    ("an item index twice", "everything", put(ITEM, "output_index", 0, nth=1), "output_index is 0, not 1"),
    ("no item added", "text", drop(ITEM), "output_index is 0, of 0 items"),
    (
        "an id without prefix",
        "text",
        put(ITEM, "item", "id", "x"),
        "the id of a message is 'x', without msg_",
    ),
    ("an empty item id", "text", put(ITEM, "item", "id", ""), "the item's id is ''"),
    ("no item id", "everything", drop(ITEM, "item", "id", nth=2), "the item's id is None"),
    ("an id twice", "two calls", put(ITEM, "item", "id", "fc_1", nth=1), "the id 'fc_1' is taken"),
    ("no item type", "text", drop(ITEM, "item", "type"), "the item's type is None"),
    (
        "a finished start",
        "text",
        put(ITEM, "item", "status", "completed"),
        "the item's status is 'completed'",
    ),
    (
        "no status",
        "text",
        drop(ITEM, "item", "status"),
        "the item's status is 'absent'|the item's status is None",
    ),
    ("no role", "text", drop(ITEM, "item", "role"), "the role is None"),
    ("content at the start", "text", put(ITEM, "item", "content", [{}]), r"content is \[\{\}\], not \[\]"),
    ("no content at the start", "text", drop(ITEM, "item", "content"), "content is None"),
    (
        "arguments at the start",
        "everything",
        put(ITEM, "item", "arguments", "{}", nth=2),
        "arguments is '{}'",
    ),
    ("no arguments at the start", "everything", drop(ITEM, "item", "arguments", nth=2), "arguments is None"),
    ("no call_id", "everything", drop(ITEM, "item", "call_id", nth=2), "call_id is None"),
    ("no name", "everything", put(ITEM, "item", "name", "", nth=2), "name is ''"),
    ("no summary at the start", "everything", drop(ITEM, "item", "summary"), "summary is None"),
    ("input at the start", "a custom tool", put(ITEM, "item", "input", "ls"), "input is 'ls'"),
    ("a null phase", "text", put(ITEM, "item", "phase", None), r"\['phase'\] may be absent, and not null"),
    (
        "null encryption",
        "everything",
        put(DONE, "item", "encrypted_content", None),
        "may be absent, and not null",
    ),
    ("an item done twice", "text", twice(DONE), "item 0 is done"),
    ("no item done", "text", drop(DONE), "item 0 is still open"),
    ("another item id", "text", put(DONE, "item", "id", "msg_x"), "id was 'msg_native0', and is 'msg_x'"),
    ("another item type", "text", put(DONE, "item", "type", "reasoning"), "type was 'message'"),
    ("another call_id", "everything", put(DONE, "item", "call_id", "x", nth=2), "call_id was 'call_1'"),
    ("another name", "everything", put(DONE, "item", "name", "x", nth=2), "name was 'a', and is 'x'"),
    ("done in progress", "text", put(DONE, "item", "status", "in_progress"), "status is 'in_progress'"),
    ("done without status", "text", drop(DONE, "item", "status"), "status is None"),
    (
        "reasoning in progress",
        "summaries and content",
        put(DONE, "item", "status", "in_progress"),
        "the item's status is 'in_progress'",
    ),
    (
        "an incomplete item",
        "text",
        everywhere(DONE, "status", "incomplete"),
        "incomplete item in a completed",
    ),
    (
        "other content",
        "text",
        put(DONE, "item", "content", 0, "text", "x"),
        r"content: \[0\].text is 'x', not 'He",
    ),
    ("content forgotten", "text", put(DONE, "item", "content", []), r"content:  is \[\], not"),
    ("another summary", "summaries and content", put(DONE, "item", "summary", []), r"summary:  is \[\], not"),
    ("other arguments", "everything", put(DONE, "item", "arguments", "{", nth=2), "arguments is '{', not"),
    ("other input", "a custom tool", put(DONE, "item", "input", "rm"), "input is 'rm', not 'ls -l'"),
    ("output forgotten", "text", put(*FINAL, "output", []), r"output is not the done items:  is \[\]"),
    (
        "output in another order",
        "everything",
        lambda e: e[-1]["response"]["output"].reverse(),
        "not the done items",
    ),
    (
        "other output",
        "text",
        put(*FINAL, "output", 0, "content", 0, "text", "x"),
        r"\[0\].content\[0\].text is 'x'",
    ),
    (
        "an event of another item",
        "text",
        put(TEXT, "item_id", "msg_x"),
        "item_id is 'msg_x', not 'msg_native0'",
    ),
    ("an event of no item", "text", put(TEXT, "output_index", 7), "output_index is 7, of 1 items"),
    (
        "a bystander of no item",
        "a hosted tool",
        put("web_search_call.searching", "output_index", 1),
        "index is 1",
    ),
    ("no summary at the end", "everything", drop(DONE, "item", "summary"), "no summary"),
    ("thoughts at the start", "everything", put(ITEM, "item", "content", [{}]), r"content is \[\{\}\]"),
    # parts
    ("no part added", "text", drop(PART), "content_index is 0, of 0 parts"),
    ("a part index too high", "text", put(PART, "content_index", 1), "content_index is 1, not 0"),
    ("a part with text", "text", put(PART, "part", "text", "H"), "the part's text is 'H', not ''"),
    ("a part without text", "text", drop(PART, "part", "text"), "the part's text is None"),
    (
        "a part of another kind",
        "text",
        put(PART, "part", "type", "reasoning_text"),
        "type is 'reasoning_text'",
    ),
    ("a part in a call", "everything", put(PART, "output_index", 2), "it is not for a|output_index is 2"),
    ("no annotations", "text", drop(PART, "part", "annotations"), r"annotations is None, not \[\]"),
    ("null logprobs", "text", put(PART, "part", "logprobs", None), r"logprobs is None, not \[\]"),
    ("a delta before its part", "text", move(TEXT, PART), "content_index is 0, of 0 parts"),
    (
        "a delta of another kind",
        "text",
        put(TEXT, "type", "response.refusal.delta"),
        "the part is a output_text",
    ),
    ("a delta for a call", "everything", put(TEXT, "output_index", 0), "item_id is|item 0 is done"),
    ("a delta without text", "text", put(TEXT, "delta", None), "delta is None"),
    ("a delta without logprobs", "text", drop(TEXT, "logprobs"), "logprobs is None, not a list"),
    ("a done without logprobs", "text", drop("output_text.done", "logprobs"), "logprobs is None, not a list"),
    ("a delta is lost", "text", drop(TEXT), "text is 'Hello there', the deltas join to ' there'"),
    ("deltas exchanged", "text", move(TEXT, TEXT, nth=1), "the deltas join to ' thereHello'"),
    (
        "another text",
        "text",
        put("output_text.done", "text", "x"),
        "text is 'x', the deltas join to 'Hello there'",
    ),
    (
        "a delta after .done",
        "text",
        move("output_text.done", TEXT),
        "text is 'Hello there', the deltas join to ''",
    ),
    (
        "a late delta",
        "text",
        insert(DELTA | {"delta": "x", "logprobs": []}, "content_part.done"),
        "after its .done",
    ),
    ("a second .done", "text", twice("output_text.done"), "a second .done"),
    ("no .done", "text", drop("output_text.done"), "response.output_text.done did not come"),
    ("part.done before .done", "text", move("content_part.done", "output_text.done"), "done did not come"),
    ("no part.done", "text", drop("content_part.done"), "content part 0 is still open"),
    ("part.done twice", "text", twice("content_part.done"), "the part at content_index 0 is done"),
    ("item done before part.done", "text", move(DONE, "content_part.done"), "content part 0 is still open"),
    (
        "another part text",
        "text",
        put("content_part.done", "part", "text", "x"),
        "text is 'x', not 'Hello there'",
    ),
    ("another part type", "text", put("content_part.done", "part", "type", "refusal"), "and is 'refusal'"),
    ("lost logprobs", "logprobs", put("output_text.done", "logprobs", []), "not those of the deltas"),
    (
        "lost part logprobs",
        "logprobs",
        put("content_part.done", "part", "logprobs", []),
        "not those of the deltas",
    ),
    ("another refusal", "a refusal", put("refusal.done", "refusal", "x"), "refusal is 'x'"),
    ("another thought", "everything", put("reasoning_text.done", "text", "x"), "the deltas join to 'Hm.'"),
    ("no thought part", "everything", drop(PART), "content_index is 0, of 0 parts"),
    (
        "an annotation too high",
        "annotations",
        put("output_text.annotation.added", "annotation_index", 1),
        "not 0",
    ),
    ("an annotation is lost", "annotations", drop("output_text.annotation.added"), "annotations is "),
    (
        "no summary part",
        "summaries and content",
        drop("reasoning_summary_part.added"),
        "summary_index is 0, of 0",
    ),
    (
        "a summary index twice",
        "summaries and content",
        put("reasoning_summary_part.added", "summary_index", 0, nth=1),
        "summary_index is 0, not 1",
    ),
    (
        "another summary text",
        "summaries and content",
        put("reasoning_summary_text.done", "text", "x"),
        "the deltas join to 'Sum.'",
    ),
    (
        "no summary part.done",
        "summaries and content",
        drop("reasoning_summary_part.done"),
        "summary part 0 is still open",
    ),
    # arguments
    ("arguments without deltas", "two calls", drop(f"{ARGUMENTS}.delta"), "the deltas join to '}'"),
    (
        "no arguments.done",
        "everything",
        drop(f"{ARGUMENTS}.done"),
        "function_call_arguments.done did not come",
    ),
    ("arguments.done twice", "everything", twice(f"{ARGUMENTS}.done"), "a second .done"),
    (
        "a late fragment",
        "everything",
        move(f"{ARGUMENTS}.done", f"{ARGUMENTS}.delta"),
        "the deltas join to ''",
    ),
    (
        "other arguments.done",
        "everything",
        put(f"{ARGUMENTS}.done", "arguments", "{}"),
        "arguments is '{}', the d",
    ),
    ("a renamed call", "two calls", put(f"{ARGUMENTS}.done", "name", "x"), "name is 'x', not 'a'"),
    (
        "fragments mixed up",
        "two calls",
        put(f"{ARGUMENTS}.delta", "item_id", "fc_2"),
        "item_id is 'fc_2'",
    ),
    ("two calls at once", "two calls", lambda _: two_calls(at_once=True), r"the calls \[0\] are still open"),
    ("arguments of a message", "text", put(TEXT, "type", f"response.{ARGUMENTS}.delta"), "not for a message"),
    ("another input.done", "a custom tool", put("custom_tool_call_input.done", "input", "x"), "input is 'x'"),
    ("a fragment after .done", "a custom tool", insert(INPUT_DELTA, DONE), "a delta after its .done"),
    (
        "an open call says more",
        "failed in the middle of a call",
        put("failed", "response", "output", 0, "arguments", '{"x":1}'),
        "is not what the deltas said",
    ),
    # failure
    ("no message", "failed at once", lambda e: e[-2]["error"].update(message=None), "the message is None"),
    ("an error and no end", "failed at once", last(1), "no terminal event; the last of .* is error"),
    (
        "an error in the middle",
        "failed at once",
        lambda events: numbered([*events[:2], events[-2], *events[2:]]),
        "only response.failed may follow",
    ),
    ("an error first", "failed at once", lambda events: numbered(events[-2:]), "error: it comes before"),
    (
        "only a failure",
        "failed at once",
        lambda events: numbered(events[-1:]),
        "it comes before response.created",
    ),
    ("a flat error", "failed at once", lambda events: events[-2].pop("error"), "no nested error"),
    (
        "a nested error",
        "failed at once",
        lambda events: events[-2].pop("message"),
        r"event misses \['message'\]",
    ),
    ("no param", "failed at once", lambda e: e[-2]["error"].pop("param"), r"its error misses \['param'\]"),
    ("a code that is a number", "failed at once", lambda e: e[-2].update(code=500), "code is 500"),
    ("two messages", "failed at once", lambda e: e[-2].update(message="x"), "flat and nested message differ"),
    (
        "a done item is lost",
        "failed at once",
        put("failed", "response", "output", []),
        "the done item 'rs_native0'",
    ),
    (
        "an open item as done",
        "failed in the middle of a text",
        put("failed", "response", "output", 1, "status", "completed"),
        "an open item is 'completed'",
    ),
    (
        "an open item says more",
        "failed in the middle of a text",
        put("failed", "response", "output", 1, "content", 0, "text", "Hello there"),
        r"content \['Hello there'\] is not what the deltas said: \['Hello'\]",
    ),
    (
        "a failed item changed",
        "failed at once",
        put("failed", "response", "output", 0, "content", []),
        "item 'rs_native0': .content is",
    ),
    (
        "an item from nowhere",
        "failed at once",
        lambda events: events[-1]["response"]["output"].append({"id": "msg_x", "type": "message"}),
        "the output has the items",
    ),
]


def test_each_breakage_has_a_name_of_its_own():
    names = [name for name, *_ in BROKEN]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(("good", "break_", "says"), [row[1:] for row in BROKEN], ids=[row[0] for row in BROKEN])
def test_a_broken_stream_is_caught(good, break_, says):
    events = copied(GOOD[good])
    broken = break_(events)
    with pytest.raises(AssertionError, match=says):
        check_stream(broken if isinstance(broken, list) else events)


@pytest.mark.parametrize("key", RESPONSE_KEYS)
@pytest.mark.parametrize("where", ["created", "in_progress", "completed"])
def test_every_snapshot_needs_every_key(key, where):
    events = copied(GOOD["text"])
    del at(events, where)["response"][key]
    with pytest.raises(AssertionError, match=rf"response.{where}: the response misses \['{key}'\]"):
        check_stream(events)


@pytest.mark.parametrize(
    "key", [key for key, types in RESPONSE_KEYS.items() if type(None) not in types and object not in types]
)
def test_what_may_not_be_null_is_caught(key):
    events = copied(GOOD["text"])
    events[0]["response"][key] = None
    with pytest.raises(AssertionError, match=rf"response.{key} is None"):
        check_stream(events)


# ── the wire ─────────────────────────────────────────────────────────────────


def test_frames_are_read_and_comments_skipped():
    events = native_events("Hello\n\nthere")
    wire = b": ping\n\n".join(sse(event, event["type"]) for event in events)
    assert parse_sse(wire) == [(event["type"], event) for event in events]
    assert parse_sse(b"") == []


@pytest.mark.parametrize("name", recordings(path="/v1/responses", stream=True))
def test_recorded_native_streams_are_read(name):
    pairs = parse_sse(recorded(name).body)
    assert pairs[0][0] == "response.created"
    assert pairs[-1][0] == "response.completed"


@pytest.mark.parametrize(
    ("wire", "says"),
    [
        (b'event: a\r\ndata: {"type":"a"}\r\n\r\n', "a CR"),
        (b'event: a\ndata: {"type":"a"}\n', "not complete"),
        (b'event: a\ndata: {"type":"b"}\n\n', "event: is 'a', type is 'b'"),
        (b'data: {"type":"a"}\n\n', "not an event: and a data: line"),
        (b'id: 1\nevent: a\ndata: {"type":"a"}\n\n', "not an event: and a data: line"),
        (b'event: a\ndata: {"type":\ndata: "a"}\n\n', "not an event: and a data: line"),
        (b"event: done\ndata: [DONE]\n\n", "is not sent"),
        (b"data: [DONE]\n\n", "not an event: and a data: line"),
        (b"event: a\ndata: []\n\n", "not an object"),
    ],
)
def test_a_badly_written_wire_is_caught(wire, says):
    with pytest.raises(AssertionError, match=says):
        parse_sse(wire)
