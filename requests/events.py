"""The one stream state machine: what a backend says, as the events of a Responses stream.

    start()          response.created, (queued,) in_progress
    chunks(chunks)   chat chunks: items open, grow and close
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

from core.errors import APIError
from requests.chat import ChatChunk, DecodeError, ToolCallDelta, is_error, parse_chunk, parse_head
from requests.credentials import shown
from requests.open_items import (
    NO_ARGUMENTS,
    STREAMED_CALLS,
    STREAMED_PARTS,
    Event,
    OpenCall,
    OpenText,
    Seal,
    Telling,
    empty_part,
    sealed,
    skeleton,
)
from requests.reads import MARK, NOTHING_LIKE_IT, Run, around_text
from requests.responses import ID_PREFIXES, new_id, text_of, usage_chat_to_responses, whole_item
from requests.sse import DeltaFrames, framed, only_data, renumbered
from requests.thinking import ThinkSplitter
from requests.tools import CALLS, Item, ToolBook, arguments_of, call_item

INCOMPLETE_REASONS = {"length": "max_output_tokens", "content_filter": "content_filter"}
TERMINAL = frozenset({"completed", "incomplete", "failed", "cancelled"})
# What a backend that speaks Responses has no say in.
OURS = ("id", "object", "created_at", "model", "background", "store", "previous_response_id")
SET_AT_THE_END = ("usage", "error", "incomplete_details", "completed_at")


# The kind of an item, and of its part. Clients that ask for a summary of the reasoning show nothing else of it.
THOUGHT = ("reasoning", "reasoning_text")
SUMMARIZED = ("reasoning", "summary_text")
TEXT = ("message", "output_text")


NO_BOOK = ToolBook(())
# After so many deltas it is looked again what is around their texts, if they are not alike any more. Of some servers' no two are.
LESSONS_EVERY = 8


class ResponseBuilder:
    """Builds one response. `response` is its resource (`response_resource`), complete but for its output; the builder owns
    it from here on. `taken_call_ids` are the call ids of the conversation so far: a backend that counts its calls from
    zero in every turn gets new ones. `telling` says what becomes of the events: by default they are made."""

    def __init__(
        self, response: dict[str, Any], *, taken_call_ids: Iterable[str] = (), seal: Seal | None = None
    ) -> None:
        self.response = response
        self.telling: Telling = "events"
        self.sequence_number = 0
        self._output: list[Item | None] = []
        self._text: OpenText | None = None
        self._calls: dict[int, OpenCall] = {}
        self._taken_call_ids = set(taken_call_ids)
        self._seal = seal
        self._thought = SUMMARIZED if (response.get("reasoning") or {}).get("summary") else THOUGHT
        self._book = NO_BOOK
        self._allowed: frozenset[str] | None = None
        self._one_call = self._called = False
        self._thinking: ThinkSplitter | None = None
        # The backend's names of calls that the client had forbidden, and did not get.
        self.suppressed: list[str] = []
        self._usage: dict[str, Any] | None = None
        # How long the backend took, in its words, where it says.
        self.timings: Any = None
        self._finish_reason: str | None = None

    def offer(self, book: ToolBook, *, allowed: frozenset[str] | None = None, one_call: bool = False) -> None:
        """What the backend was offered, so that its calls are told as the client expects them. Calls of others than the
        `allowed`, and all but the first where only `one_call` may be made, are suppressed."""
        self._book, self._allowed, self._one_call = book, allowed, one_call

    def expect_think_tags(self) -> None:
        """The backend leaves `<think>…</think>` in its text."""
        self._thinking = ThinkSplitter()

    @property
    def chat_usage(self) -> dict[str, Any] | None:
        """The token counts as the backend gave them."""
        return self._usage

    @property
    def finish_reason(self) -> str | None:
        """Why the backend stopped, in its words."""
        return self._finish_reason

    @property
    def started(self) -> bool:
        return self.sequence_number > 0

    @property
    def ended(self) -> bool:
        return self.response["status"] in TERMINAL

    # ── the life of the response ─────────────────────────────────────────────────────────────────────────────────────

    def start(self) -> list[Event]:
        """`response.created`, and `queued` for a turn that waits, else `in_progress`."""
        if self.telling == "nothing":
            self.sequence_number = 1
            return []
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

    def keep_alive(self) -> list[Event]:
        """An event that means nothing, while nothing else happens. Before the end alone: until it leaves, its events have their numbers."""
        return [self.event("keepalive")] if self.started and not self.ended else []

    def finish(self) -> list[Event]:
        """The backend is done: closes what is open. At a limit the last item was cut off, and so was the response."""
        reason = INCOMPLETE_REASONS.get(self._finish_reason or "")
        events: list[Event] = []
        self._tell_held(events)
        text_was_last = self._text is not None
        events += self._close_text("incomplete" if reason else "completed")
        calls = [call for call in self._calls.values() if call.is_told]
        for call in calls:
            cut = reason and call is calls[-1] and not text_was_last
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
        return events if self.telling != "nothing" else []

    def fail(self, error: APIError) -> list[Event]:
        """Open items are not closed, so that no client runs half a call; the response holds them as incomplete."""
        self._stop("failed")
        self.response["error"] = error.to_response_error()
        described = error.to_dict()
        return [self.error(described)]

    def error(self, described: dict[str, Any]) -> Event:
        """Flat for OpenAI's types, nested for Open Responses' and for the SDKs, which raise on it."""
        flat = {key: described.get(key) for key in ("code", "message", "param")}
        return self.event("error", **flat, error=described)

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
        parts: list[OpenText | OpenCall | None] = [self._text, *self._calls.values()]
        for part in parts:
            if part is not None and part.output_index >= 0:
                self._output[part.output_index] = part.item("incomplete")
        self.response["output"] = [item for item in self._output if item is not None]
        self.response["usage"] = usage_chat_to_responses(self._usage)
        self.response["status"] = status
        self.response["completed_at"] = None
        self.response["incomplete_details"] = None

    # ── chat chunks ──────────────────────────────────────────────────────────────────────────────────────────────────

    def chunks(self, chunks: list[Any]) -> list[Any]:
        """The events of some chunks, and runs of them: mostly deltas, which may be frames (`telling`)."""
        if self.telling != "frames":
            each = (one for chunk in chunks for one in (chunk.chunks() if type(chunk) is Run else (chunk,)))
            events = [event for chunk in each for event in self.chunk(chunk)]
            return events if self.telling == "events" else []
        told: list[Any] = []
        plain: list[str] = []
        for chunk in chunks:
            if type(chunk) is Run:
                self._tell_plain(told, plain)
                plain = []
                self._tell_run(told, chunk)
            elif (delta := self._plain_delta(chunk)) is not None:
                plain.append(delta)
            else:
                self._tell_plain(told, plain)
                plain = []
                told += self.chunk(chunk)
        self._tell_plain(told, plain)
        return told

    def _tell_plain(self, told: list[Any], deltas: list[str]) -> None:
        if deltas and self._text is not None:
            told.append(self._text.grow_plainly(self, deltas, [orjson.dumps(delta)[1:-1] for delta in deltas]))

    def _tell_run(self, told: list[Any], run: Run) -> None:
        if self._text is not None and self._plain_delta(run.pattern) == MARK:
            told.append(self._text.grow_plainly(self, run.texts, run.spelled))
            return
        for chunk in run.chunks():
            told += self.chunk(chunk)

    def frame_of(self, received: bytes) -> bytes | None:
        """The shortcut for nearly all reads of all streams: one chat chunk that is a plain delta, as a frame. None, and nothing has
        happened, for any other. It runs as little as it can: a token wakes us from sleep, and everything is cold."""
        text = self._text
        if text is None or text.frames is None:
            return None
        number = self.sequence_number
        told = text.frames.relay(number, received) or self._parsed(text.frames, number, received)
        if told is None:
            return None
        frame, delta = told
        text.fragments.append(delta)
        self.sequence_number = number + 1
        return frame

    def _parsed(self, frames: DeltaFrames, number: int, received: bytes) -> tuple[bytes, str] | None:
        """What `DeltaFrames.relay` gives, by parsing the chunk. Now and then it learns from one what it needs for the next."""
        if (delta := self._delta_in(received)) is None:
            return None
        if number >= frames.learns_at:
            frames.learns_at = number + LESSONS_EVERY
            around = around_text(received)
            if around is None or self._delta_in(around.with_text()) != MARK:
                around = NOTHING_LIKE_IT
            frames.around = around
        return frames.one(number, delta), delta

    def _delta_in(self, received: bytes) -> str | None:
        if (data := only_data(received)) is None:
            return None
        try:
            chunk = parse_chunk(data)
        except DecodeError:
            return None
        return None if is_error(chunk) else self._plain_delta(chunk)

    def chunk(self, chunk: ChatChunk) -> list[Event]:
        """The events of one chunk: mostly a single delta."""
        events: list[Event] = []
        if chunk.usage is not None:
            self._usage = chunk.usage.model_dump()
            self.timings = chunk.timings
        for choice in chunk.choices or ():
            if choice.index:  # n > 1: the others have no place in a response
                continue
            if (delta := choice.delta) is not None:
                if thought := delta.reasoning_content or delta.reasoning:
                    self._tell_held(events)
                    self._grow(events, *self._thought, thought)
                if content := delta.content if isinstance(delta.content, str) else text_of(delta.content):
                    self._grow_content(events, content, choice.logprobs.content if choice.logprobs else None)
                if delta.refusal:
                    self._tell_held(events)
                    self._grow(events, "message", "refusal", delta.refusal)
                for call in delta.tool_calls or ():
                    self._tell_held(events)
                    self._grow_call(events, call)
            if choice.finish_reason:
                self._finish_reason = choice.finish_reason
        return events

    def _plain_delta(self, chunk: ChatChunk) -> str | None:
        """The shortcut for most of all chunks: the delta of one that only goes on with the text or the thought that is open. None for
        any other."""
        choices = chunk.choices
        text = self._text
        if text is None or text.frames is None or self._thinking is not None:
            return None
        if chunk.usage is not None or choices is None or len(choices) != 1:
            return None
        choice = choices[0]
        delta = choice.delta
        if delta is None or choice.finish_reason or choice.index or choice.logprobs is not None:
            return None
        if delta.tool_calls or delta.refusal:
            return None
        content = delta.content
        if thought := delta.reasoning_content or delta.reasoning:
            return None if content or text.part != self._thought[1] else thought
        return content if content and type(content) is str and text.part == "output_text" else None

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
            self._text = OpenText(kind, self.add(), self._seal)
            events.append(self._text.added(self))
        self._text.grow(self, events, part, delta, logprobs)

    def _close_text(self, status: str = "completed") -> list[Event]:
        text, self._text = self._text, None
        return text.close(self, status) if text else []

    def _grow_content(self, events: list[Event], content: str, logprobs: list[dict[str, Any]] | None) -> None:
        if self._thinking is None:
            self._grow(events, *TEXT, content, logprobs)
            return
        for is_thought, text in self._thinking.feed(content):
            self._grow(events, *(self._thought if is_thought else TEXT), text, logprobs if text == content else None)
        if self._thinking.is_over:
            self._thinking = None

    def _tell_held(self, events: list[Event]) -> None:
        """What was held back, because it might have been a tag, comes before whatever begins now."""
        for is_thought, text in self._thinking.flush() if self._thinking else ():
            self._grow(events, *(self._thought if is_thought else TEXT), text)

    def _grow_call(self, events: list[Event], delta: ToolCallDelta) -> None:
        name = delta.function.name if delta.function else None
        key = delta.index if delta.index is not None else self._key_of(delta.id)
        call = self._calls.get(key)
        if call is not None and name and call.is_another(delta.id, self._book.call_of(name)):
            # Some servers give every call the index 0, and no id.
            events += call.close(self, "completed")
            call = None
        if call is None:
            call = self._calls[key] = OpenCall(delta.id)
        if name and call.call is None and not self._permits(name):
            call.mute(name)
        if call.muted:
            return
        events += self._close_text()
        if name:
            events += call.name(self, name, self._book)
        if arguments := delta.function and delta.function.arguments:
            call.grow(self, events, arguments if isinstance(arguments, str) else orjson.dumps(arguments).decode())

    def _permits(self, name: str) -> bool:
        """Whether the client may be told of a call. One that is not, is as if it had not been made."""
        if (self._allowed is not None and name not in self._allowed) or (self._one_call and self._called):
            self.suppressed.append(name)
            return False
        self._called = True
        return True

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
            status = "incomplete" if cut else "completed"
            if item["type"] == "function_call":
                if not item["name"] or not self._permits(item["name"]):
                    continue
                call = self._book.call_of(item["name"])
                if call.type not in STREAMED_CALLS and arguments_of(item["arguments"]) is None:
                    continue
                whole = {"call_id": item["call_id"], "arguments": item["arguments"], "status": status}
                item = call_item(call, id=new_id(ID_PREFIXES[call.type]), **whole)
            events += self.item(self._whole_thought(item) if item["type"] == "reasoning" else item, status)
        return events + self.finish()

    def _whole_thought(self, item: Item) -> Item:
        """A finished reasoning item, in the form that the client asked for."""
        if self._thought is SUMMARIZED:
            told = [{"type": "summary_text", "text": part["text"]} for part in item["content"]]
            item = {"type": "reasoning", "summary": told}
        return sealed(item, self._seal)

    def item(self, item: Item, status: str = "completed", *, closes: bool = True) -> list[Event]:
        """All events of one item; without those of its end, if it never closed."""
        item = whole_item(item, status)
        if item["type"] in CALLS and item.get("call_id"):
            item["call_id"] = self.free_call_id(item["call_id"])
        if item["type"] == "function_call" and not item["arguments"] and item["status"] == "completed":
            item["arguments"] = NO_ARGUMENTS
        output_index = self.add()
        if self.telling == "nothing":
            self._output[output_index] = item
            return []
        events = [self.event("response.output_item.added", output_index=output_index, item=skeleton(item))]
        where = {"item_id": item["id"], "output_index": output_index}
        if item["type"] in STREAMED_CALLS:
            events += self._whole_arguments(where, item, closes)
        if item["type"] == "compaction":
            events.append(self.event("response.compaction.compacting", **where))
        for index, part in enumerate(item.get("summary") or ()):
            events += self._whole_summary({**where, "summary_index": index}, part)
        for index, part in enumerate(item.get("content") or ()):
            events += self._whole_part({**where, "content_index": index}, part)
        if not closes:
            self._output[output_index] = item
            return events
        return [*events, self.done(output_index, item)]

    def _whole_arguments(self, where: dict[str, Any], item: Item, closes: bool) -> list[Event]:
        name, key = STREAMED_CALLS[item["type"]]
        named = {"name": item["name"]} if item["type"] == "function_call" else {}
        delta = [self.event(f"{name}.delta", **where, delta=item[key])] if item[key] else []
        return [*delta, self.event(f"{name}.done", **where, **named, **{key: item[key]})] if closes else delta

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
        events = [self.event("response.content_part.added", **where, part=empty_part(part["type"]))]
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

    def relay(self, type: str, number: Any, datas: list[bytes]) -> bytes | None:
        """The shortcut for what most events of such a backend are, deltas: some of one `type` that go on as they are, but for their
        numbers, as frames. `number` is what the first has, and the others go on. None, and nothing has happened, for any others."""
        if self.telling != "frames" or not self.started or not type.endswith(".delta"):
            return None
        ours = self.sequence_number
        if number != ours:
            told = [renumbered(data, ours + index) for index, data in enumerate(datas)]
            datas = [data for data in told if data is not None]
            if len(datas) < len(told):
                return None
        frames = framed(type, datas)
        if frames is not None:
            self.sequence_number = ours + len(datas)
        return frames

    def relay_alone(self, received: bytes) -> bytes | None:
        """`relay`, for a read that holds one event: it is the frame already, where it has its name and the right number."""
        if received.startswith(b"event: ") and received.endswith(b"\n\n") and received.count(b"\n") == 3:
            name, _, data = received[7:-2].partition(b"\ndata: ")
        elif (found := only_data(received)) is not None:
            name, data = b"", found
        else:
            return None
        try:
            head = parse_head(data)
        except DecodeError:
            return None
        number = self.sequence_number
        if head.sequence_number != number or head.type.encode() != name:
            return self.relay(head.type, head.sequence_number, [data])
        if self.telling != "frames" or not number or not name.endswith(b".delta"):
            return None
        self.sequence_number = number + 1
        return received

    def adopt_whole(self, response: dict[str, Any]) -> list[Event]:
        """A finished response of a backend that speaks Responses: the events that a stream of it would have had."""
        events = self.begin()
        for item in response["output"]:
            events += self.item(item)
        self._adopt_response({"status": "completed", **response, "output": list(self._output)})
        return events

    def _adopt_response(self, response: dict[str, Any]) -> None:
        ours = {key: self.response[key] for key in OURS}
        if tools := response.get("tools"):
            ours["tools"] = shown(tools)
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


# ── sources and sinks that need nothing but events ───────────────────────────────────────────────────────────────────


def replay(builder: ResponseBuilder, response: dict[str, Any]) -> list[Event]:
    """The events that a stream of a finished response has had, all but the terminal one."""
    events = builder.begin()
    stopped = response["status"] in ("failed", "cancelled")
    for item in response["output"]:
        was_open = stopped and item["type"] in STREAMED_CALLS and item["status"] == "incomplete"
        events += builder.item(item, closes=not was_open)
    builder.take_end(response)
    return [*events, builder.error(response["error"])] if response.get("error") else events


def unfinished(response: dict[str, Any]) -> dict[str, Any]:
    """A finished response as it was when it began: what a builder needs to replay it."""
    begun: dict[str, Any] = {"status": "in_progress", "output": [], **dict.fromkeys(SET_AT_THE_END)}
    return {**response, **begun}
