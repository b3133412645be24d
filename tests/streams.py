"""Streams in few words: chunks of a backend, the builder that they are fed to, and what is expected of it.

events = judged(streamed(says("Hel"), says("lo"), ends()))
assert shape(events) == ["created", "in_progress", *text(0, deltas=2), "completed"]
assert bare(events[-1]["response"]["output"]) == [said("Hello")]
"""

from __future__ import annotations

from typing import Any

import orjson

from requests.chat import decode_chunk
from requests.chat_types import ChatChunk
from requests.events import Event, ResponseBuilder
from requests.responses import response_resource
from tests.sdk import EVENT_CLASSES
from tests.stream_grammar import check_stream, fold
from tests.translated import EMISSIONS

Json = dict[str, Any]


def builder(
    status: str = "in_progress", taken: tuple[str, ...] = (), emits: str = "events", **request: Any
) -> ResponseBuilder:
    """A builder for a request; `emits` is a key of `EMISSIONS`."""
    resource = response_resource({"model": "m", **request}, response_id="resp_1", created_at=1700000000, status=status)
    return ResponseBuilder(resource, EMISSIONS[emits], taken_call_ids=taken)


def judged(events: list[Event]) -> list[Event]:
    """The same events, if everybody can read them."""
    check_stream(events)
    assert fold(events) == events[-1]["response"], "the deltas make another response than the last event"
    for event in events:
        read = EVENT_CLASSES[event["type"]].model_validate(event, strict=True)
        assert read.to_dict() == event, f"the SDK sees another {event['type']} than we sent"
    return events


def shape(events: list[Event]) -> list[str]:
    """The events' types, each behind the output index of its item."""
    return [f"{event.get('output_index', '')} {event['type'].removeprefix('response.')}".strip() for event in events]


def bare(output: list[Json]) -> list[Json]:
    """The items without their ids, and without the empty lists that every text has."""

    def part(part: Json) -> Json:
        return {key: value for key, value in part.items() if value != []}

    items = [{key: value for key, value in item.items() if key != "id"} for item in output]
    return [item | {"content": [*map(part, item["content"])]} if "content" in item else item for item in items]


def call_ids(events: list[Event]) -> list[str]:
    return [item["call_id"] for item in events[-1]["response"]["output"]]


# ── chunks, in few words ─────────────────────────────────────────────────────────────────────────────────────────────


def chunk(delta: Json, **choice: Any) -> Json:
    return {"choices": [{"index": 0, "delta": delta, **choice}]}


def says(text: str, **more: Any) -> Json:
    return chunk({"content": text, **more})


def thinks(text: str) -> Json:
    return chunk({"reasoning_content": text})


def refuses(text: str) -> Json:
    return chunk({"refusal": text})


def calls(*deltas: Json) -> Json:
    return chunk({"tool_calls": list(deltas)})


def call(index: int | None, id: str | None = None, name: str | None = None, arguments: Any = None) -> Json:
    """A delta of a call. What is None is left out."""
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    delta = {"index": index, "id": id, "function": function or None}
    return {key: value for key, value in delta.items() if value is not None}


def ends(reason: str = "stop") -> Json:
    return chunk({}, finish_reason=reason)


USAGE = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 5}}
COUNTED = {
    "input_tokens": 3,
    "output_tokens": 5,
    "total_tokens": 8,
    "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
    "output_tokens_details": {"reasoning_tokens": 0},
}


def decoded(*chunks: Json) -> list[ChatChunk]:
    return [decode_chunk(orjson.dumps(chunk)) for chunk in chunks]


def streamed(*chunks: Json, taken: tuple[str, ...] = ()) -> list[Event]:
    made = builder(taken=taken)
    events = made.start()
    for given in decoded(*chunks):
        events += made.chunk(given)
    return [*events, *made.finish(), made.end()]


# ── the events of an item, and the item, in few words ────────────────────────────────────────────────────────────────


def text_events(index: int, *parts: tuple[str, int]) -> list[str]:
    """An item that has parts, each with its kind and the number of its deltas."""
    events = ["output_item.added"]
    for kind, deltas in parts:
        events += ["content_part.added", *[f"{kind}.delta"] * deltas, f"{kind}.done", "content_part.done"]
    return [f"{index} {event}" for event in [*events, "output_item.done"]]


def text(index: int, deltas: int = 1) -> list[str]:
    return text_events(index, ("output_text", deltas))


def reasoning(index: int, deltas: int = 1) -> list[str]:
    return text_events(index, ("reasoning_text", deltas))


def refusal(index: int, deltas: int = 1) -> list[str]:
    return text_events(index, ("refusal", deltas))


def opens(index: int, deltas: int = 0) -> list[str]:
    return [f"{index} output_item.added", *grows(index, deltas)]


def grows(index: int, deltas: int = 1) -> list[str]:
    return [f"{index} function_call_arguments.delta"] * deltas


def closes(index: int) -> list[str]:
    return [f"{index} function_call_arguments.done", f"{index} output_item.done"]


def said(*texts: str, status: str = "completed") -> Json:
    parts = [{"type": "output_text", "text": text} for text in texts]
    return {"type": "message", "status": status, "role": "assistant", "content": parts}


def refused(*texts: str, before: str | None = None, status: str = "completed") -> Json:
    item = said(*([before] if before else []), status=status)
    return item | {"content": item["content"] + [{"type": "refusal", "refusal": text} for text in texts]}


def thought(text: str) -> Json:
    return {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": text}]}


def called(call_id: str, name: str = "f", arguments: str = "{}", status: str = "completed") -> Json:
    return {"type": "function_call", "status": status, "call_id": call_id, "name": name, "arguments": arguments}
