"""Servers that speak Responses, each in its own way: what they leave out is put in, so that the stream is whole, adds
up to the response in its last event, and says what the server said."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from requests.endings import FILTERED, LIMITS, ending_of
from requests.events import Event
from requests.responses import output_text
from requests.sse import frames
from tests.fake_backend import call, native_events, reasoning, refusal, responses_usage, sse
from tests.stream_grammar import NEVER_NULL, check_stream, fold, parse_sse
from tests.streams import Json, builder
from tests.test_json import any_value
from tests.test_laws import law
from tests.translated import listed, native_translator

SEARCH = {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search", "query": "x"}}
PARTS: dict[str, tuple[Any, ...]] = {
    "a text": ("Hello there.",),
    "nothing": (),
    "thought, text and calls": (
        reasoning("Hm. So."),
        "Hello there.",
        call("now", '{"zone": "UTC"}'),
        call("get", "{}"),
    ),
    "a refusal": (refusal("I will not."),),
    "a call alone": (call("now", '{"zone": "UTC"}'),),
    "two texts": ("One two.", call("get", "{}"), "Three four."),
}


def stream_of(*parts: Any) -> list[Json]:
    events: list[Json] = copy.deepcopy(native_events(*parts, usage=responses_usage(7, 3, cached=2, reasoning=1)))
    return events


def read(events: list[Json], emits: str = "frames", cuts: tuple[int, ...] = ()) -> list[Any]:
    """The events that become of a stream that arrives in reads which end behind these events."""
    made = builder(emits=emits)
    translator = native_translator(made)
    out: list[Any] = []
    for start, end in zip((0, *cuts), (*cuts, len(events)), strict=True):
        spelled = [b"data: %b\n\n" % json.dumps(event).encode() for event in events[start:end]]
        out += listed(translator.feed(b"".join(spelled)))
        assert translator.failure is None, translator.failure
    assert made.ended
    return [*out, made.end()]


def whole(out: list[Any]) -> list[Event]:
    """The events, if they are a whole stream that adds up to its last response."""
    events = [event for _, event in parse_sse(frames(out))]
    check_stream(events, prefixes=False)
    assert fold(events) == events[-1]["response"]
    return events


def said(events: list[Any]) -> Any:
    """What a response says, whatever its ids are."""
    output = events[-1]["response"]["output"]
    calls = [(item["name"], item["arguments"]) for item in output if item["type"] == "function_call"]
    thoughts = [
        part["text"]
        for item in output
        if item["type"] == "reasoning"
        for part in item.get("content") or item["summary"]
    ]
    refusals = [
        part["refusal"]
        for item in output
        if item["type"] == "message"
        for part in item["content"]
        if part["type"] == "refusal"
    ]
    return output_text(output), calls, thoughts, refusals, [item["type"] for item in output]


streams = st.sampled_from([*PARTS.values()])


@st.composite
def cuts_of(draw: st.DrawFn, events: list[Json]) -> tuple[int, ...]:
    return tuple(sorted(draw(st.lists(st.integers(0, len(events)), max_size=5))))


# ── what a server does to its stream, and does not change what it says ───────────────────────────────────────────────

ENDINGS: dict[str, Callable[[Json], Any]] = {
    "as it should be": lambda response: response,
    "no items": lambda response: response | {"output": []},
    "null": lambda response: response | {"output": None},
    "no output": lambda response: {key: value for key, value in response.items() if key != "output"},
    "no response": lambda response: None,
    "an output that is none": lambda response: response | {"output": "x"},
    "items that say nothing": lambda response: response | {"output": [*map(emptied, response["output"])]},
    "items with other ids": lambda response: (
        response | {"output": [item | {"id": f"other_{n}"} for n, item in enumerate(response["output"])]}
    ),
    "the first item alone": lambda response: response | {"output": response["output"][:1]},
    "the last item alone": lambda response: response | {"output": response["output"][-1:]},
    "no status": lambda response: {key: value for key, value in response.items() if key != "status"},
    "a status of its beginning": lambda response: response | {"status": "in_progress"},
    "the id alone": lambda response: {"id": response["id"]},
}


def emptied(item: Json) -> Json:
    return item | {key: type(item[key])() for key in ("content", "arguments", "summary") if key in item}


@law
@given(streams, st.sampled_from([*ENDINGS.values()]), st.data())
def test_the_items_that_were_streamed_are_the_output(
    parts: tuple[Any, ...], ending: Callable[[Json], Any], data: st.DataObject
) -> None:
    sent = stream_of(*parts)
    expected = said(whole(read(stream_of(*parts))))
    sent[-1]["response"] = ending(sent[-1]["response"])
    events = whole(read(sent, cuts=data.draw(cuts_of(sent))))
    assert said(events)[:-1] == expected[:-1]
    assert events[-1]["response"]["status"] == "completed"


@law
@given(streams, st.sampled_from(["response.done", "response.completed"]))
def test_the_output_that_was_never_streamed_is_put_in(parts: tuple[Any, ...], end: str) -> None:
    sent = stream_of(*parts)
    expected = said(whole(read(sent)))
    last = sent[-1] | {"type": end}
    for events in ([last], [sent[0], last], [*sent[:2], last]):
        assert said(whole(read(events))) == expected


@law
@given(streams, st.data())
def test_events_that_a_server_leaves_out_are_put_in(parts: tuple[Any, ...], data: st.DataObject) -> None:
    sent = stream_of(*parts)
    expected = said(whole(read(sent)))
    may_go = [
        place for place, event in enumerate(sent[:-1]) if not event["type"].endswith(".delta") and is_spare(event)
    ]
    left_out = data.draw(st.lists(st.sampled_from(may_go), unique=True)) if may_go else []
    kept = [event for place, event in enumerate(sent) if place not in left_out]
    if data.draw(st.booleans()):
        kept[-1]["response"]["output"] = []
    assert said(whole(read(kept, cuts=data.draw(cuts_of(kept))))) == expected


def cited(number: int) -> Json:
    return {"type": "url_citation", "url": f"https://a.b/{number}", "title": "A", "start_index": 0, "end_index": 1}


@law
@given(st.integers(0, 3), st.integers(0, 3), st.sampled_from(["text.done", "begin"]), st.data())
def test_annotations_that_are_named_only_in_a_whole_part_are_streamed(
    streamed: int, more: int, where: str, data: st.DataObject
) -> None:
    notes = [cited(number) for number in range(streamed + more)]
    events = stream_of("Hello there.")
    (end,) = [index for index, event in enumerate(events) if event["type"] == "response.output_text.done"]
    done, item = events[end + 1]["part"], events[end + 2]["item"]
    done["annotations"] = item["content"][0]["annotations"] = notes
    events[-1]["response"]["output"] = [item]
    # Those that are streamed come before their text ends, or right as its part begins.
    at = end if where == "text.done" else end - 2
    names = {key: events[end][key] for key in ("item_id", "output_index", "content_index")}
    events[at:at] = [
        {"type": "response.output_text.annotation.added", **names, "annotation_index": index, "annotation": note}
        for index, note in enumerate(notes[:streamed])
    ]
    for number, event in enumerate(events):
        event["sequence_number"] = number
    out = whole(read(events, data.draw(st.sampled_from(["frames", "events"])), data.draw(cuts_of(events))))
    assert out[-1]["response"]["output"][0]["content"][0]["annotations"] == notes
    added = [event for event in out if event["type"] == "response.output_text.annotation.added"]
    assert [(event["annotation_index"], event["annotation"]) for event in added] == [*enumerate(notes)]


def is_spare(event: Json) -> bool:
    """Whether something else holds the same: of a call, only its item has the name."""
    return event.get("item", {}).get("type") != "function_call" or event["type"] != "response.output_item.added"


@law
@given(streams, st.sampled_from(["added", "done"]))
def test_a_call_is_known_by_either_end_of_its_item(parts: tuple[Any, ...], left_out: str) -> None:
    sent = stream_of(*parts)
    expected = said(whole(read(sent)))
    kept = [event for event in sent if event["type"] != f"response.output_item.{left_out}"]
    kept[-1]["response"]["output"] = []
    found = said(whole(read(kept)))
    assert (sorted(found[1]), found[0]) == (sorted(expected[1]), expected[0])


@law
@given(streams, st.booleans(), st.data())
def test_deltas_that_a_server_leaves_out_are_put_in(
    parts: tuple[Any, ...], all_of_them: bool, data: st.DataObject
) -> None:
    """LangChain reads arguments from the deltas alone; some servers send only the ends."""
    sent = stream_of(*parts)
    expected = said(whole(read(sent)))
    kept = [event for event in sent if not event["type"].endswith(".delta")]
    if all_of_them:
        kept = [event for event in kept if not event["type"].endswith((".delta", "text.done", "arguments.done"))]
    if data.draw(st.booleans()):
        kept[-1]["response"]["output"] = []
    assert said(whole(read(kept))) == expected


KEYS = ["item_id", "output_index", "content_index", "sequence_number", "logprobs", "item.status", "part.annotations"]
KEYS += ["part.logprobs", "item.content", "item.role", "item.summary", "response.status", "response.usage"]


@law
@given(streams, st.lists(st.sampled_from(KEYS), unique=True, max_size=4), st.data())
def test_keys_that_a_server_leaves_out_are_put_in(
    parts: tuple[Any, ...], left_out: list[str], data: st.DataObject
) -> None:
    sent = stream_of(*parts)
    expected = said(whole(read(sent)))
    for event in sent:
        for key in left_out:
            inner, _, last = key.rpartition(".")
            (event.get(inner, {}) if inner else event).pop(last, None)
    events = whole(read(sent, cuts=data.draw(cuts_of(sent))))
    assert said(events) == expected


@law
@given(streams, st.sampled_from(["zero", "from one", "none", "texts", "jumps"]), st.booleans())
def test_however_a_server_counts_its_items_ours_are_counted_from_zero(
    parts: tuple[Any, ...], way: str, empty: bool
) -> None:
    sent = stream_of(*parts)
    expected = said(whole(read(sent)))
    ways: dict[str, Callable[[int], Any]] = {
        "zero": lambda index: 0,
        "from one": lambda index: index + 1,
        "none": lambda index: None,
        "texts": str,
        "jumps": lambda index: 3 * index,
    }
    for event in sent:
        if "output_index" in event:
            event["output_index"] = ways[way](event["output_index"])
    if empty:
        sent[-1]["response"]["output"] = []
    assert said(whole(read(sent))) == expected


@law
@given(streams)
def test_another_id_in_every_event_is_one_to_our_clients(parts: tuple[Any, ...]) -> None:
    """As GitHub's Copilot does it."""
    sent = stream_of(*parts)
    expected = said(whole(read(sent)))
    for number, event in enumerate(sent):
        if "item_id" in event:
            event["item_id"] = f"id_{number}"
        if "item" in event:
            event["item"] = event["item"] | {"id": f"id_{number}"}
    for number, item in enumerate(sent[-1]["response"]["output"]):
        item["id"] = f"last_{number}"
    assert said(whole(read(sent))) == expected


@law
@given(streams, st.data())
def test_events_that_nobody_knows_pass_wherever_they_stand(parts: tuple[Any, ...], data: st.DataObject) -> None:
    sent = stream_of(*parts)
    expected = said(whole(read(sent)))
    strange = [
        {"type": "keepalive", "sequence_number": 3},
        {"type": "codex.rate_limits", "plan": "pro", "deep": {"x": None}},
    ]
    for event in strange:
        sent.insert(data.draw(st.integers(0, len(sent) - 1)), event)
    out = read(sent, cuts=data.draw(cuts_of(sent)))
    events = [event for _, event in parse_sse(frames(out))]
    assert [event["sequence_number"] for event in events] == [*range(len(events))]
    assert events[0]["type"] == "response.created"
    for event in strange:
        number = next(ours["sequence_number"] for ours in events if ours["type"] == event["type"])
        assert event | {"sequence_number": number} in events
    known = [event for event in events if event["type"].startswith("response.")]
    known = [event | {"sequence_number": number} for number, event in enumerate(known)]
    check_stream(known, prefixes=False)
    assert said(known) == expected


@law
@given(
    streams,
    st.sampled_from(["keepalive", "response.output_text.delta", "error", "response.failed", "nonsense"]),
    st.data(),
)
def test_what_comes_behind_the_end_changes_nothing(parts: tuple[Any, ...], behind: str, data: st.DataObject) -> None:
    sent = stream_of(*parts)
    expected = whole(read(sent))
    late = [sent[-1], {"type": behind, "delta": "late", "error": {"message": "late"}, "response": {"status": "failed"}}]
    sent += late
    made = [event for _, event in parse_sse(frames(read(sent, cuts=data.draw(cuts_of(sent)))))]
    assert said(made) == said(expected)
    assert made[-1]["type"] == "response.completed"


# ── values of any type ───────────────────────────────────────────────────────────────────────────────────────────────

NEEDED = {
    "type",
    "delta",
    "text",
    "refusal",
    "arguments",
    "item",
    "part",
    "content",
    "output",
    "response",
    "name",
    "status",
}
NEEDED |= {"item_id", "output_index", "content_index", "summary", "summary_index", "id", "error"}
Path = tuple[str | int, ...]


def dispensable(value: Any, path: Path = ()) -> Iterator[Path]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in inner:
        at = (*path, key)
        if not all(step in NEEDED or isinstance(step, int) for step in at):
            yield at
        yield from dispensable(below, at)


# Of no two events it is the same object.
RICH: list[Json] = json.loads(
    json.dumps(stream_of(reasoning("Hm. So."), "Hello there.", call("now", '{"zone": "UTC"}')))
)


@law
@given(st.sampled_from([*dispensable(RICH)]), any_value, st.sampled_from(["frames", "events", "nothing"]))
@example((10, "part", "annotations"), [{}], "frames")
@example((10, "part", "logprobs"), [{}], "frames")
@example((11, "logprobs"), [{}], "frames")
@example((13, "logprobs"), [{}], "frames")
@example((14, "part", "logprobs"), [{}], "frames")
@example((15, "item", "content", 0, "logprobs"), [{}], "events")
@example((9, "item", "role"), "user", "frames")
@example((15, "item", "role"), "user", "frames")
@example((0, "response", "instructions"), [], "frames")
def test_any_value_in_a_field_that_says_nothing_changes_nothing(path: Path, new: Any, emits: str) -> None:
    sent = copy.deepcopy(RICH)
    inner: Any = sent
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = new
    out = read(sent, emits)
    expected = said(whole(read(RICH)))
    assert said(out) == expected
    if emits != "nothing" and path[0] < len(RICH) - 1:  # At the end a server may say more than it has streamed.
        whole(out)


@law
@given(st.sampled_from(["item_id", "output_index", "content_index", "item.id", "item.status", "part.type"]), any_value)
def test_any_value_in_one_place_of_an_event_makes_the_stream_no_less_whole(key: str, new: Any) -> None:
    if key == "part.type" and isinstance(new, str):
        return  # A kind of part that nobody knows yet.
    for number, event in enumerate(RICH[:-1]):
        inner, _, last = key.rpartition(".")
        if last in (event.get(inner, {}) if inner else event):
            changed = copy.deepcopy(event)
            (changed[inner] if inner else changed)[last] = new
            whole(read([*RICH[:number], changed, *RICH[number + 1 :]]))


@law
@given(any_value, st.sampled_from(["item", "part", "response", "delta", "text", "arguments", "output_index"]))
def test_whatever_an_event_holds_it_is_no_more_than_passed_over(value: Any, key: str) -> None:
    for type in sorted({event["type"] for event in RICH}):
        sent = [*RICH[:6], {"type": type, key: value}, *RICH[6:]]
        events = [event for _, event in parse_sse(frames(read(sent)))]
        assert [event["sequence_number"] for event in events] == [*range(len(events))]


@law
@given(
    st.dictionaries(st.sampled_from(["output", "usage", "error", "status", "model", "tools", "text", "id"]), any_value)
)
def test_whatever_a_whole_response_holds_it_becomes_a_whole_stream(response: Json) -> None:
    made = builder()
    check_stream([*made.adopt_whole(response), made.end()], prefixes=False)


# ── halves of characters ─────────────────────────────────────────────────────────────────────────────────────────────


@law
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), st.booleans(), st.data())
def test_a_character_that_is_cut_in_two_deltas_is_joined(text: str, in_bytes: bool, data: st.DataObject) -> None:
    if in_bytes:
        units = [bytes([byte]).decode(errors="surrogateescape") for byte in text.encode()]
    else:
        spelled = text.encode("utf-16-le")
        units = [chr(int.from_bytes(spelled[at : at + 2], "little")) for at in range(0, len(spelled), 2)]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(units)), max_size=5)))
    pieces = ["".join(units[start:end]) for start, end in zip([0, *cuts], [*cuts, len(units)], strict=True)]
    opening = stream_of("x")[:4]
    where = {"item_id": opening[2]["item"]["id"], "output_index": 0, "content_index": 0, "logprobs": []}
    deltas = [
        {"type": "response.output_text.delta", "sequence_number": 4 + number, **where, "delta": piece}
        for number, piece in enumerate(pieces)
    ]
    end = {"type": "response.completed", "response": {"id": "x", "status": "completed"}}
    made = builder(emits="frames")
    translator = native_translator(made)
    out: list[Any] = []
    for event in [*opening, *deltas, end]:
        data_ = json.dumps(event, ensure_ascii=not in_bytes).encode(errors="surrogateescape")
        out += listed(translator.feed(b"data: %b\n\n" % data_))
        assert translator.failure is None
    assert said(whole([*out, made.end()]))[0] == text


def test_half_a_character_in_an_item_is_marked() -> None:
    sent = stream_of("Hello")
    for event in sent:
        if event["type"].endswith((".delta", "text.done")):
            event.update({key: "a\ud83d" for key in ("delta", "text") if key in event})
        if "part" in event and event["part"]["text"]:
            event["part"]["text"] = "a\ud83d"
    sent[-1]["response"]["output"] = []
    sent[-2]["item"]["content"] = None
    assert said(whole(read(sent)))[0] == "a\ufffd"


# ── what is known of some servers ────────────────────────────────────────────────────────────────────────────────────


def test_integers_of_any_size_stay_integers() -> None:
    tool = {"type": "tool_search_call", "id": "ts_1", "call_id": "c1", "execution": "client", "status": "completed"}
    tool["arguments"] = cast(Any, {"seed": 2**64 + 1, "long": 10**400})
    sent = stream_of()
    sent.insert(2, {"type": "response.output_item.done", "output_index": 0, "item": tool})
    out = read(sent)
    assert out[-1]["response"]["output"][0]["arguments"] == tool["arguments"]
    last = frames(out).rstrip().rpartition(b"\ndata: ")[2]
    assert json.loads(last)["response"]["output"][0]["arguments"] == tool["arguments"]


@pytest.mark.parametrize(
    "usage", [{"input_tokens": 7}, {"prompt_tokens": 7, "completion_tokens": 0}, {"input_tokens": "7"}]
)
def test_the_usage_is_whole(usage: Json) -> None:
    sent = stream_of("Hi")
    sent[-1]["response"]["usage"] = usage | {"input_tokens_details": None}
    usage = whole(read(sent))[-1]["response"]["usage"]
    assert (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]) == (7, 0, 7)
    assert usage["input_tokens_details"] == {"cached_tokens": 0, "cache_write_tokens": 0}
    assert usage["output_tokens_details"] == {"reasoning_tokens": 0}


def test_an_event_that_is_named_outside_of_its_data_is_known() -> None:
    """Its data has no type."""
    sent = stream_of("Hello there.")
    named = b"".join(
        sse({key: value for key, value in event.items() if key != "type"}, event["type"]) for event in sent
    )
    made = builder()
    translator = native_translator(made)
    out = listed(translator.feed(named))
    assert translator.failure is None
    assert said(whole([*out, made.end()]))[0] == "Hello there."


@pytest.mark.parametrize(
    ("type", "status"),
    [
        ("response.incomplete", "incomplete"),
        ("response.failed", "failed"),
        ("response.cancelled", "cancelled"),
        ("response.canceled", "cancelled"),
        ("response.done", "completed"),
    ],
)
def test_an_end_is_what_its_name_says(type: str, status: str) -> None:
    sent = stream_of("Hello there.")[:-1]
    events = whole(read([*sent, {"type": type}]))
    assert events[-1]["response"]["status"] == status
    assert said(events)[0] == "Hello there."
    cut = sent[:-3]
    response = whole(read([*cut, {"type": type, "response": {"id": "x"}}]))[-1]["response"]
    assert output_text(response["output"]) == "Hello there."
    (item,) = response["output"]
    assert item["status"] == ("completed" if status == "completed" else "incomplete")


def test_a_call_that_fails_in_its_middle_is_not_closed() -> None:
    sent = stream_of(call("now", '{"zone": "UTC"}'))
    cut = [event for event in sent[:-1] if not event["type"].endswith(".done")]
    events = whole(read([*cut, {"type": "response.failed", "response": {"error": {"code": "x", "message": "no"}}}]))
    assert not [event for event in events if event["type"].endswith(".done")], "a client might run it"
    assert events[-1]["response"]["output"][0]["status"] == "incomplete"


def test_reasoning_keeps_its_older_name_only_at_its_server() -> None:
    sent = stream_of(reasoning("Hm."))
    for event in sent:
        event["type"] = event["type"].replace("reasoning_text", "reasoning")
    assert said(whole(read(sent)))[2] == ["Hm."]


@pytest.mark.parametrize("reason", [*LIMITS.split(), *FILTERED.split()])
def test_the_reason_of_a_cut_is_one_that_clients_know(reason: str) -> None:
    sent = native_events("Once upon", incomplete=reason)
    last = whole(read(sent))[-1]["response"]
    assert last["incomplete_details"]["reason"] == ending_of(reason)
    assert last["incomplete_details"]["reason"] in ("max_output_tokens", "content_filter")


def test_a_reason_that_nobody_knows_stays() -> None:
    sent = native_events("Once upon", incomplete="boredom")
    assert whole(read(sent))[-1]["response"]["incomplete_details"] == {"reason": "boredom"}


@pytest.mark.parametrize("emits", ["frames", "events"])
@pytest.mark.parametrize("key", NEVER_NULL)
@pytest.mark.parametrize("parts", PARTS)
def test_what_clients_know_as_absent_is_never_null(parts: str, key: str, emits: str) -> None:
    """Servers in Python write each field of theirs (vLLM: `phase`)."""
    sent = stream_of(*PARTS[parts])
    for event in sent:
        for holder in (event.get("item"), event.get("part"), *event.get("response", {}).get("output", ())):
            if isinstance(holder, dict):
                holder.setdefault(key, None)
    assert said(whole(read(sent, emits))) == said(whole(read(stream_of(*PARTS[parts]))))
