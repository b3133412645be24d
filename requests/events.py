"""The one stream state machine: what a backend says, as the events of a Responses stream.

    start()          response.created, (queued,) in_progress
    chunk(chunk)     a chat chunk: items open, grow and close
    item(item)       a finished item at once: from a whole completion, from the cache
    finish(…)        what is open closes; the response is complete
    fail(error)      the response is failed, with what there is; nothing that is open closes
    cancel()         likewise, cancelled
    end()            the terminal event, which carries the whole response

Each method gives the events it made. `sequence_number` and `output_index` are made here and nowhere else. A message or a
reasoning item closes when something else begins; tool calls stay open to the end, for backends interleave them.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import orjson

from errors import APIError
from requests.chat import ChatChunk, ToolCallDelta
from requests.messages import Item
from requests.responses import (
    logprobs_chat_to_responses,
    new_id,
    usage_chat_to_responses,
    whole_item,
)

Event = dict[str, Any]

INCOMPLETE_REASONS = {"length": "max_output_tokens", "content_filter": "content_filter"}
# For calls that come without any: clients parse what they get, and some read the deltas alone.
NO_ARGUMENTS = "{}"
TERMINAL = frozenset({"completed", "incomplete", "failed", "cancelled"})
# What a backend that speaks Responses has no say in.
OURS = ("id", "object", "created_at", "model", "background", "store", "previous_response_id")
SET_AT_THE_END = ("usage", "error", "incomplete_details", "completed_at")
# A content part's type: the name of its events, and the key of its text in the part and in the .done event.
STREAMED_PARTS = {
    "output_text": ("response.output_text", "text"),
    "refusal": ("response.refusal", "refusal"),
    "reasoning_text": ("response.reasoning_text", "text"),
}


class ResponseBuilder:
    """Builds one response. `response` is its resource (`response_resource`), complete but for its output; the builder owns
    it from here on. `taken_call_ids` are the call ids of the conversation so far: a backend that counts its calls from
    zero in every turn gets new ones."""

    def __init__(self, response: dict[str, Any], *, taken_call_ids: Iterable[str] = ()) -> None:
        self.response = response
        self.sequence_number = 0
        self._output: list[Item | None] = []
        self._text: _Text | None = None
        self._calls: dict[int, _Call] = {}
        self._taken_call_ids = set(taken_call_ids)
        self._usage: dict[str, Any] | None = None
        self._finish_reason: str | None = None

    @property
    def started(self) -> bool:
        return self.sequence_number > 0

    @property
    def ended(self) -> bool:
        return self.response["status"] in TERMINAL

    # ── the life of the response ─────────────────────────────────────────────────────────────────────────────────────

    def start(self) -> list[Event]:
        """`response.created`, and `queued` for a turn that waits, else `in_progress`."""
        created = self.event("response.created", response=dict(self.response))
        if self.response["status"] == "queued":
            return [created, self.event("response.queued", response=dict(self.response))]
        return [created, *self.progress()]

    def begin(self) -> list[Event]:
        """`start`, unless that was long ago: a background turn starts before it has its turn."""
        return [] if self.started else self.start()

    def progress(self) -> list[Event]:
        """The turn is worked on."""
        self.response["status"] = "in_progress"
        return [self.event("response.in_progress", response=dict(self.response))]

    def finish(self) -> list[Event]:
        """The backend is done: closes what is open. At a limit the last item was cut off, and so was the response."""
        reason = INCOMPLETE_REASONS.get(self._finish_reason or "")
        events = self._close_text("incomplete" if reason else "completed")
        calls = list(self._calls.values())
        for call in calls:
            events += call.open(self)
        for call in calls:
            cut = reason and call.output_index == len(self._output) - 1
            events += call.close(self, "incomplete" if cut else "completed")
        self._calls.clear()
        self.response["output"] = list(self._output)
        self.response["usage"] = usage_chat_to_responses(self._usage)
        if reason:
            self.response["status"] = "incomplete"
            self.response["incomplete_details"] = {"reason": reason}
        else:
            self.response["status"] = "completed"
            self.response["completed_at"] = int(time.time())
        return events

    def fail(self, error: APIError) -> list[Event]:
        """Open items are not closed, so that no client runs half a call; the response holds them as incomplete."""
        self._stop("failed")
        self.response["error"] = error.to_response_error()
        described = error.to_dict()
        # Flat for OpenAI's types, nested for Open Responses' and for the SDKs, which raise on it.
        flat = {key: described[key] for key in ("code", "message", "param")}
        return [self.event("error", **flat, error=described)]

    def cancel(self) -> None:
        """The response is cancelled, and keeps what there is."""
        self._stop("cancelled")

    def take_end(self, response: dict[str, Any]) -> None:
        """Ends as another response did, whose items were given to `item`."""
        self.response["output"] = list(self._output)
        self.response["status"] = response["status"]
        self.response |= {key: response.get(key) for key in SET_AT_THE_END}

    def end(self) -> Event:
        """The last event. A cancelled response ends as `response.failed`: no client knows another name for it."""
        status = self.response["status"]
        return self.event(f"response.{'failed' if status == 'cancelled' else status}", response=self.response)

    def _stop(self, status: str) -> None:
        parts: list[_Text | _Call | None] = [self._text, *self._calls.values()]
        for part in parts:
            if part is not None and part.output_index >= 0:
                self._output[part.output_index] = part.item("incomplete")
        self.response["output"] = [item for item in self._output if item is not None]
        self.response["usage"] = usage_chat_to_responses(self._usage)
        self.response["status"] = status
        self.response["completed_at"] = None
        self.response["incomplete_details"] = None

    # ── chat chunks ──────────────────────────────────────────────────────────────────────────────────────────────────

    def chunk(self, chunk: ChatChunk) -> list[Event]:
        """The events of one chunk: mostly a single delta."""
        events: list[Event] = []
        if chunk.usage is not None:
            self._usage = chunk.usage.model_dump()
        for choice in chunk.choices or ():
            if choice.index:  # n > 1: the others have no place in a response
                continue
            if (delta := choice.delta) is not None:
                if thought := delta.reasoning_content or delta.reasoning:
                    self._grow(events, "reasoning", "reasoning_text", thought)
                if delta.content:
                    self._grow(
                        events,
                        "message",
                        "output_text",
                        delta.content,
                        choice.logprobs.content if choice.logprobs else None,
                    )
                if delta.refusal:
                    self._grow(events, "message", "refusal", delta.refusal)
                for call in delta.tool_calls or ():
                    self._grow_call(events, call)
            if choice.finish_reason:
                self._finish_reason = choice.finish_reason
        return events

    def _grow(
        self,
        events: list[Event],
        kind: str,
        part: str,
        delta: str,
        logprobs: list[dict[str, Any]] | None = None,
    ) -> None:
        if self._text is None or self._text.kind != kind:
            events += self._close_text()
            self._text = _Text(kind, self.add())
            events.append(self._text.added(self))
        self._text.grow(self, events, part, delta, logprobs)

    def _close_text(self, status: str = "completed") -> list[Event]:
        text, self._text = self._text, None
        return text.close(self, status) if text else []

    def _grow_call(self, events: list[Event], delta: ToolCallDelta) -> None:
        events += self._close_text()
        name = delta.function.name if delta.function else None
        key = delta.index if delta.index is not None else self._key_of(delta.id)
        call = self._calls.get(key)
        if call is not None and name and delta.id and delta.id != call.backend_id:
            # Some servers give every call the index 0.
            events += call.close(self, "completed")
            call = None
        if call is None:
            call = self._calls[key] = _Call(delta.id)
        if name and not call.name:
            call.name = name
            events += call.open(self)
        if arguments := delta.function and delta.function.arguments:
            call.grow(self, events, arguments if isinstance(arguments, str) else orjson.dumps(arguments).decode())

    def _key_of(self, call_id: str | None) -> int:
        """Without an index, a new id is a new call, and no id means the last one."""
        for key, call in self._calls.items():
            if call_id and call_id == call.backend_id:
                return key
        return len(self._calls) if call_id or not self._calls else len(self._calls) - 1

    # ── whole items ──────────────────────────────────────────────────────────────────────────────────────────────────

    def completion(self, items: list[Item], *, finish_reason: str | None, usage: dict[str, Any] | None) -> list[Event]:
        """A whole chat completion: the events that a stream of it would have had."""
        self._finish_reason = finish_reason
        self._usage = usage
        events: list[Event] = []
        for position, item in enumerate(items, 1):
            cut = position == len(items) and finish_reason in INCOMPLETE_REASONS
            events += self.item(item, "incomplete" if cut else "completed")
        return events + self.finish()

    def item(self, item: Item, status: str = "completed") -> list[Event]:
        """All events of one finished item."""
        item = whole_item(item, status)
        if item["type"] == "function_call":
            item["call_id"] = self.free_call_id(item["call_id"])
            if not item["arguments"] and item["status"] == "completed":
                item["arguments"] = NO_ARGUMENTS
        output_index = self.add()
        events = [self.event("response.output_item.added", output_index=output_index, item=_skeleton(item))]
        where = {"item_id": item["id"], "output_index": output_index}
        if item["type"] == "function_call":
            events += self._whole_arguments(where, item)
        elif item["type"] == "custom_tool_call":
            events.append(self.event("response.custom_tool_call_input.delta", **where, delta=item["input"]))
            events.append(self.event("response.custom_tool_call_input.done", **where, input=item["input"]))
        for index, part in enumerate(item.get("summary") or ()):
            events += self._whole_summary({**where, "summary_index": index}, part)
        for index, part in enumerate(item.get("content") or ()):
            events += self._whole_part({**where, "content_index": index}, part)
        return [*events, self.done(output_index, item)]

    def _whole_arguments(self, where: dict[str, Any], item: Item) -> list[Event]:
        name, arguments = item["name"], item["arguments"]
        delta = [self.event("response.function_call_arguments.delta", **where, delta=arguments)] if arguments else []
        return [*delta, self.event("response.function_call_arguments.done", **where, name=name, arguments=arguments)]

    def _whole_summary(self, where: dict[str, Any], part: dict[str, Any]) -> list[Event]:
        return [
            self.event("response.reasoning_summary_part.added", **where, part={**part, "text": ""}),
            self.event("response.reasoning_summary_text.delta", **where, delta=part["text"]),
            self.event("response.reasoning_summary_text.done", **where, text=part["text"]),
            self.event("response.reasoning_summary_part.done", **where, part=part),
        ]

    def _whole_part(self, where: dict[str, Any], part: dict[str, Any]) -> list[Event]:
        if part["type"] not in STREAMED_PARTS:
            return []
        name, key = STREAMED_PARTS[part["type"]]
        logprobs = {"logprobs": part["logprobs"]} if part["type"] == "output_text" else {}
        events = [self.event("response.content_part.added", **where, part=_empty_part(part["type"]))]
        if part[key]:
            events.append(self.event(f"{name}.delta", **where, delta=part[key], **logprobs))
        for index, annotation in enumerate(part.get("annotations") or ()):
            note = {"annotation_index": index, "annotation": annotation}
            events.append(self.event("response.output_text.annotation.added", **where, **note))
        events.append(self.event(f"{name}.done", **where, **{key: part[key]}, **logprobs))
        events.append(self.event("response.content_part.done", **where, part=part))
        return events

    # ── native events ────────────────────────────────────────────────────────────────────────────────────────────────

    def adopt(self, event: Event) -> list[Event]:
        """An event of a backend that speaks Responses, as one of ours: our id, our numbers, all else untouched. Those that carry
        the response only tell us how it stands: `begin` and `end` make ours."""
        response = event.get("response")
        if event["type"] == "response.created" and response is not None:
            self._adopt_response(response)
        events = self.begin()
        if response is not None:
            self._adopt_response(response)
            return events
        if event["type"] == "response.output_item.done":
            # Not every server counts its items (llama.cpp's own Responses).
            index = event.get("output_index", len(self._output))
            self._output += [None] * (index + 1 - len(self._output))
            self._output[index] = event["item"]
        events.append({**event, "sequence_number": self.sequence_number})
        self.sequence_number += 1
        return events

    def adopt_whole(self, response: dict[str, Any]) -> list[Event]:
        """A finished response of a backend that speaks Responses: the events that a stream of it would have had."""
        events = self.begin()
        for item in response["output"]:
            events += self.item(item)
        self._adopt_response({"status": "completed", **response, "output": list(self._output)})
        return events

    def _adopt_response(self, response: dict[str, Any]) -> None:
        ours = {key: self.response[key] for key in OURS}
        self.response = {**self.response, **response, **ours}

    # ── what the items are made with ─────────────────────────────────────────────────────────────────────────────────

    def event(self, type: str, **fields: Any) -> Event:
        event = {"type": type, "sequence_number": self.sequence_number, **fields}
        self.sequence_number += 1
        return event

    def add(self) -> int:
        """The output index of a new item."""
        self._output.append(None)
        return len(self._output) - 1

    def done(self, output_index: int, item: Item) -> Event:
        self._output[output_index] = item
        return self.event("response.output_item.done", output_index=output_index, item=item)

    def free_call_id(self, call_id: str | None) -> str:
        """The backend's id of a call, or a new one where it has none or has used it before."""
        if not call_id or call_id in self._taken_call_ids:
            call_id = new_id("call")
        self._taken_call_ids.add(call_id)
        return call_id


class _Text:
    """An open message or reasoning item. Its text is kept as fragments, joined when a part closes."""

    __slots__ = (
        "_delta",
        "_fragments",
        "_logprobs",
        "_part",
        "_parts",
        "_where",
        "id",
        "kind",
        "output_index",
    )

    def __init__(self, kind: str, output_index: int) -> None:
        self.kind = kind
        self.output_index = output_index
        self.id = new_id("msg" if kind == "message" else "rs")
        self._parts: list[dict[str, Any]] = []
        self._part = ""
        self._fragments: list[str] = []
        self._logprobs: list[dict[str, Any]] = []

    def added(self, builder: ResponseBuilder) -> Event:
        item = _skeleton(self.item("in_progress"))
        return builder.event("response.output_item.added", output_index=self.output_index, item=item)

    def grow(
        self,
        builder: ResponseBuilder,
        events: list[Event],
        part: str,
        delta: str,
        logprobs: list[dict[str, Any]] | None,
    ) -> None:
        if part != self._part:
            events += self._close_part(builder)
            self._part = part
            self._delta = f"{STREAMED_PARTS[part][0]}.delta"
            self._where = {
                "item_id": self.id,
                "output_index": self.output_index,
                "content_index": len(self._parts),
            }
            events.append(builder.event("response.content_part.added", **self._where, part=_empty_part(part)))
        self._fragments.append(delta)
        event: Event = {
            "type": self._delta,
            "sequence_number": builder.sequence_number,
            **self._where,
            "delta": delta,
        }
        if part == "output_text":
            event["logprobs"] = logprobs_chat_to_responses(logprobs) if logprobs else []
            self._logprobs += event["logprobs"]
        builder.sequence_number += 1
        events.append(event)

    def close(self, builder: ResponseBuilder, status: str) -> list[Event]:
        events = self._close_part(builder)
        return [*events, builder.done(self.output_index, self.item(status))]

    def item(self, status: str) -> Item:
        parts = [*self._parts, self._whole_part()] if self._part else self._parts
        if self.kind == "message":
            return {"type": "message", "id": self.id, "status": status, "role": "assistant", "content": parts}
        return {"type": "reasoning", "id": self.id, "summary": [], "content": parts}

    def _whole_part(self) -> dict[str, Any]:
        part = _empty_part(self._part)
        part[STREAMED_PARTS[self._part][1]] = "".join(self._fragments)
        if self._logprobs:
            part["logprobs"] = self._logprobs
        return part

    def _close_part(self, builder: ResponseBuilder) -> list[Event]:
        if not self._part:
            return []
        name, key = STREAMED_PARTS[self._part]
        part = self._whole_part()
        logprobs = {"logprobs": part["logprobs"]} if self._part == "output_text" else {}
        events = [
            builder.event(f"{name}.done", **self._where, **{key: part[key]}, **logprobs),
            builder.event("response.content_part.done", **self._where, part=part),
        ]
        self._parts.append(part)
        self._part, self._fragments, self._logprobs = "", [], []
        return events


class _Call:
    """A function call. It opens with its name, which clients need first; arguments that come earlier wait."""

    __slots__ = ("_fragments", "_where", "backend_id", "call_id", "id", "name", "output_index")

    def __init__(self, backend_id: str | None) -> None:
        self.backend_id = backend_id
        self.name = ""
        self.id = new_id("fc")
        self.output_index = -1
        self._fragments: list[str] = []

    def open(self, builder: ResponseBuilder) -> list[Event]:
        if self.output_index >= 0:
            return []
        self.output_index = builder.add()
        self.call_id = builder.free_call_id(self.backend_id)
        self._where = {"item_id": self.id, "output_index": self.output_index}
        item = _skeleton(self.item("in_progress"))
        events = [builder.event("response.output_item.added", output_index=self.output_index, item=item)]
        if self._fragments:
            events.append(self._delta(builder, "".join(self._fragments)))
        return events

    def grow(self, builder: ResponseBuilder, events: list[Event], arguments: str) -> None:
        self._fragments.append(arguments)
        if self.output_index >= 0:
            events.append(self._delta(builder, arguments))

    def close(self, builder: ResponseBuilder, status: str) -> list[Event]:
        events = self.open(builder)
        if not self._fragments and status == "completed":
            self.grow(builder, events, NO_ARGUMENTS)
        item = self.item(status)
        whole = {"name": self.name, "arguments": item["arguments"]}
        done = builder.event("response.function_call_arguments.done", **self._where, **whole)
        return [*events, done, builder.done(self.output_index, item)]

    def item(self, status: str) -> Item:
        return {
            "type": "function_call",
            "id": self.id,
            "status": status,
            "call_id": self.call_id,
            "name": self.name,
            "arguments": "".join(self._fragments),
        }

    def _delta(self, builder: ResponseBuilder, arguments: str) -> Event:
        return builder.event("response.function_call_arguments.delta", **self._where, delta=arguments)


def _empty_part(kind: str) -> dict[str, Any]:
    if kind == "output_text":
        return {"type": kind, "text": "", "annotations": [], "logprobs": []}
    return {"type": kind, STREAMED_PARTS[kind][1]: ""}


def _skeleton(item: Item) -> Item:
    """An item as it is added: begun, and empty."""
    skeleton = dict(item)
    if "status" in item:
        skeleton["status"] = "in_progress"
    if item["type"] == "message":
        skeleton["content"] = []
    elif item["type"] == "function_call":
        skeleton["arguments"] = ""
    elif item["type"] == "custom_tool_call":
        skeleton["input"] = ""
    elif item["type"] == "reasoning":
        skeleton = {"type": "reasoning", "id": item["id"], "summary": []}
    return skeleton


# ── sources and sinks that need nothing but events ───────────────────────────────────────────────────────────────────


def replay(builder: ResponseBuilder, response: dict[str, Any]) -> list[Event]:
    """The events that a stream of a finished response has had, all but the terminal one."""
    events = builder.begin()
    for item in response["output"]:
        events += builder.item(item)
    builder.take_end(response)
    return events


def unfinished(response: dict[str, Any]) -> dict[str, Any]:
    """A finished response as it was when it began: what a builder needs to replay it."""
    begun: dict[str, Any] = {"status": "in_progress", "output": [], **dict.fromkeys(SET_AT_THE_END)}
    return {**response, **begun}
