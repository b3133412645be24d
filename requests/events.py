"""The one stream state machine: what a backend sends, as the events of a Responses stream.

    start()          response.created, (queued,) in_progress
    chunk(chunk)     a chat chunk: items open, grow and close
    adopt(event)     an event of a server that speaks Responses, as ours
    item(item)       a finished item at once: from a whole completion, from the cache
    close()          what is open closes
    finish(…)        the same; the response is complete
    fail(error)      the response is failed, with what there is; nothing that is open closes
    cancel()         the same, cancelled
    end()            the terminal event, which carries the whole response

Each method gives the events it made; a translator (translator.py) asks for those of a stream. `sequence_number` and
`output_index` are made here and nowhere else. A message or a reasoning item closes when something else begins, a call
too, once its arguments are whole; other calls wait for that.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from operator import itemgetter
from typing import Any

from core.errors import APIError
from requests.chat_types import BLANK, EMPTY, ChatChunk, Delta, ToolCallDelta
from requests.citations import Sources
from requests.cited_text import CitedText, cited_message
from requests.credentials import shown
from requests.emission import EMIT_EVENTS, Emission
from requests.endings import USUAL, ends_answer, incomplete_reason
from requests.growing_calls import GrowingCalls
from requests.hidden import OUTPUT, drop, hide, unsealed, without
from requests.hosted_calls import HOSTED_CALLS
from requests.native import NativeItems
from requests.native_events import LIFECYCLE
from requests.native_growing import NO_FLOWS, Flows
from requests.native_shapes import ending, whole_output, whole_response
from requests.open_items import (
    GROWING_CALLS,
    MOST_ITEMS,
    NO_ARGUMENTS,
    Event,
    OpenCall,
    OpenText,
    Seal,
    sealed,
    too_many_items,
)
from requests.responses import ID_PREFIXES, has_words, new_id, usage_chat_to_responses, whole_item
from requests.router_tools import ASKED_FOR, ROUTER_CALLS, cut_off
from requests.thinking import ThinkSplitter
from requests.thoughts import texts_in, thought_in
from requests.tools import CALLS, NO_BOOK, Item, ToolBook, call_item, is_cut_off, object_of
from requests.usage import summed_usage
from requests.whole_items import end_of_run, item_events

TERMINAL = frozenset({"completed", "incomplete", "failed", "cancelled"})
# What a backend that speaks Responses does not decide.
SET_AT_THE_END = ("usage", "error", "incomplete_details", "completed_at")
OURS = (
    *("id", "object", "created_at", "background", "store", "previous_response_id", "status", "output"),
    *SET_AT_THE_END,
)
values_of_ours = itemgetter(*OURS)
# What of an answer is for the client, or the router, to act on.
ANSWERS = CALLS | {ASKED_FOR}
# Calls that a client sees also where their arguments are no object.
SHOWN_ANYHOW = GROWING_CALLS.keys() | HOSTED_CALLS.keys()

# The kind of an item, and of its part. Clients that ask for a summary of the reasoning show nothing else of it.
THOUGHT = ("reasoning", "reasoning_text")
SUMMARIZED = ("reasoning", "summary_text")
TEXT = ("message", "output_text")


class ResponseBuilder:
    """Builds one response. `response` is its resource (`response_resource`), complete but for its output; the builder
    owns it from here on. `taken_call_ids` are the call ids of the conversation so far: a backend that counts its calls
    from zero in every turn gets new ones. `emission` is what becomes of the events. `text` is the text that grows, and
    `thinking` what takes thoughts out of it; `flows` are the deltas of a native backend that may go on as they are."""

    # What most turns leave as it is stands here: to set each in every turn takes longer.
    # A backend that speaks Responses seals its reasoning for us: the response keeps that, and no event shows it.
    hides_seals = False
    # The same of what a hosted tool has answered.
    _hides_outputs = False
    sequence_number = 0
    # When the first item began, of the monotonic clock.
    first_s = 0.0
    # How long the backend took, in its words, where it reports that.
    timings: Any = None
    text: OpenText | None = None
    _calls: GrowingCalls | None = None
    _offered: tuple[ToolBook, frozenset[str] | None, bool] = (NO_BOOK, None, False)
    _native: NativeItems | None = None
    flows: Flows = NO_FLOWS
    _has_deltas = False
    thinking: ThinkSplitter | None = None
    _usage: dict[str, Any] | None = None
    _finish_reason: str | None = None
    _sources: Sources | None = None
    # Known once there is a call.
    _taken_call_ids: set[str] | None = None
    # As it was before a backend's own response was taken over.
    _resource: dict[str, Any] | None = None
    # How many items were there before the answer that comes now; and the calls that wait for their tools to run.
    _before = 0
    _handed: dict[int, Item] | None = None

    def __init__(
        self,
        response: dict[str, Any],
        emission: Emission = EMIT_EVENTS,
        *,
        taken_call_ids: Iterable[str] = (),
        seal: Seal | None = None,
    ) -> None:
        self.response = response
        self.emission = emission
        self._output: list[Item | None] = []
        self._given_call_ids = taken_call_ids
        self._seal = seal
        reasoning = response.get("reasoning")
        self.thought = SUMMARIZED if reasoning and reasoning.get("summary") else THOUGHT

    def offer(self, book: ToolBook, *, allowed: frozenset[str] | None = None, one_call: bool = False) -> None:
        """What the backend was offered, so that its calls are emitted as the client expects them. Calls of others than
        the `allowed`, and all but the first where only `one_call` may be made, are suppressed."""
        self._offered = (book, allowed, one_call)

    @property
    def sources(self) -> Sources:
        """What the model may refer to: once there is anything, its marks become annotations."""
        if self._sources is None:
            self._sources = Sources()
        return self._sources

    def expect_think_tags(self, *, are_open: bool = False) -> None:
        """The backend may leave `<think>…</think>` in its text; where its templates open the tag, only the end of
        it."""
        self.thinking = ThinkSplitter(is_open=are_open)

    @property
    def _tool_calls(self) -> GrowingCalls:
        if self._calls is None:
            self._calls = GrowingCalls(*self._offered)
        return self._calls

    @property
    def suppressed(self) -> list[str]:
        """The backend's names of calls that the client had forbidden, and did not get."""
        return self._calls.suppressed if self._calls is not None else []

    @property
    def is_mute(self) -> bool:
        """Whether the client has got neither words nor a call of an answer that is closed, because its calls were
        suppressed."""
        if not self.suppressed or self._handed:
            return False
        return not any(item["type"] in ANSWERS or has_words(item) for item in self.answered_items())

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
        """Whether an event was made."""
        return self.sequence_number > 0

    @property
    def has_output(self) -> bool:
        """Whether an item of the answer that comes now has begun: what came before is true of any backend."""
        return len(self._output) > self._before

    @property
    def ended(self) -> bool:
        """Whether the response has ended, in whichever way."""
        return self.response["status"] in TERMINAL

    @property
    def shown(self) -> dict[str, Any]:
        """The response as its client sees it."""
        return drop(self.response) if self.hides_seals or self._hides_outputs else self.response

    @property
    def is_between_items(self) -> bool:
        """Whether a backend that speaks Responses has given items, and nothing of one is missing."""
        return self._native is not None and self._native.are_done

    # ── the life of the response ─────────────────────────────────────────────────────────────────────────────────────

    def start(self) -> list[Event]:
        """`response.created`, and `queued` for a turn that waits, else `in_progress`."""
        if not self.emission.makes_events:
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
        """An event that means nothing, while nothing else happens. Before the end alone: until it leaves, its events
        have their numbers."""
        return [self.event("keepalive")] if self.started and not self.ended else []

    def finish(self) -> list[Event]:
        """The backend is done: closes what is open. At a limit the last item was cut off, and so was the response."""
        reason = None if self._finish_reason in USUAL else incomplete_reason(self._finish_reason)
        events = self._close(reason)
        self.response["output"] = list(self._output)
        self.response["usage"] = usage_chat_to_responses(self._usage)
        if reason:
            self.response["status"] = "incomplete"
            self.response["incomplete_details"] = {"reason": reason}
        else:
            self.response["status"] = "completed"
            self.response["completed_at"] = int(time.time())
        return events if self.emission.makes_events else []

    def close(self) -> list[Event]:
        """The backend's answer is whole, though its usage may still come: closes what is open."""
        events = self._close(incomplete_reason(self._finish_reason))
        return events if self.emission.makes_events else []

    def _close(self, cut_reason: str | None) -> list[Event]:
        events: list[Event] = []
        self._emit_held(events)
        if self._calls is not None:
            self._calls.settle(self, events)
        text_was_last = self.text is not None
        events += self.close_text("incomplete" if cut_reason else "completed")
        if self._calls is not None:
            self._calls.close(self, events, is_cut=bool(cut_reason) and not text_was_last)
        return events

    def begin_again(self) -> None:
        """Another answer follows the one that is closed, of which the client got nothing (`is_mute`)."""
        self._calls, self.thinking, self._has_deltas = None, None, False
        self._finish_reason = self._usage = None

    def restart(self) -> None:
        """Another backend answers, and nobody has got anything of what this one made but that the response began."""
        self.begin_again()
        del self._output[self._before :]
        self.text, self.timings, self.hides_seals, self.first_s = None, None, False, 0.0
        self._native, self.flows = None, NO_FLOWS
        self.response = self._resource or self.response

    def begin_round(self) -> None:
        """Another answer follows one whose calls have run: what there is stays, whoever gives it."""
        self.begin_again()
        self._before = len(self._output)

    @property
    def whole_items(self) -> list[Item]:
        """Those that have ended."""
        return [item for item in self._output if item is not None]

    def add_usage(self, earlier: dict[str, Any] | None) -> None:
        """Counts the tokens of an answer before this one too."""
        self._usage = summed_usage(earlier, self._usage)

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
        return self.event(f"response.{'failed' if status == 'cancelled' else status}", response=self.shown)

    def _stop(self, status: str) -> None:
        parts: list[OpenText | OpenCall | None] = [self.text, *(self._calls.all if self._calls is not None else ())]
        for part in parts:
            if part is not None and part.output_index >= 0:
                self._output[part.output_index] = part.partial()
        for output_index, item in (self._handed or {}).items():
            self._output[output_index] = cut_off(item)
        if self._native is not None:
            self._native.stop(self)
        self.response["output"] = self._kept([item for item in self._output if item is not None])
        self.response["usage"] = usage_chat_to_responses(self._usage)
        self.response["status"] = status
        self.response["completed_at"] = None
        self.response["incomplete_details"] = None

    # ── chat chunks ──────────────────────────────────────────────────────────────────────────────────────────────────

    def chunk(self, chunk: ChatChunk) -> list[Event]:
        """The events of one chunk: mostly a single delta."""
        events: list[Event] = []
        if chunk.usage is not None:
            self._usage = chunk.usage
            self.timings = chunk.timings
        for choice in chunk.choices or ():
            if choice.index:  # n > 1: the others have no place in a response
                continue
            if (delta := choice.delta) is not None and delta != EMPTY and delta != BLANK:
                self._has_deltas = True
                self._grow_by(events, delta, choice.logprobs.content if choice.logprobs else None)
            if choice.message is not None:
                self._grow_to(events, choice.message)
            elif choice.text and not self._has_deltas:
                self._grow_content(events, choice.text, None)
            if choice.finish_reason and ends_answer(choice.finish_reason):
                self._finish_reason = choice.finish_reason
        return events

    def _grow_by(self, events: list[Event], delta: Delta, logprobs: list[dict[str, Any]] | None) -> None:
        thought = delta.reasoning_content or delta.reasoning or delta.thinking
        if thought or delta.thinking_blocks or delta.reasoning_details:
            self._grow_thought(events, thought or thought_in(delta))
            if self.thinking is not None and self.thinking.is_open:
                self.thinking = None  # Its server takes the thoughts out by itself.
        content = delta.content
        if type(content) is str:
            if content:
                self._grow_content(events, content, logprobs)
        elif content:
            for kind, text in texts_in(content):
                if kind == "thought":
                    self._grow_thought(events, text)
                elif kind == "refusal":
                    self._grow_refusal(events, text)
                else:
                    self._grow_content(events, text, logprobs)
                    logprobs = None
        if delta.refusal:
            self._grow_refusal(events, delta.refusal)
        if delta.tool_calls or delta.function_call:
            self._emit_held(events)
            self._tool_calls.grow(self, events, delta.tool_calls or [ToolCallDelta(0, None, delta.function_call)])

    def _grow_to(self, events: list[Event], message: Delta) -> None:
        """What a message brings that stands where a delta should: the next piece, or all that came so far once more, as
        servers send it with their last chunk."""
        calls = message.tool_calls or (
            [ToolCallDelta(0, None, message.function_call)] if message.function_call else None
        )
        if self._has_deltas and self._calls is not None:
            calls = None
        texts = [*texts_in(message.content)]
        thought = (thought_in(message) or "") + "".join(text for kind, text in texts if kind == "thought")
        whole = "".join(text for kind, text in texts if kind == "text")
        rest = Delta(self._rest(whole, "message"), self._rest(thought, "reasoning"), tool_calls=calls)
        rest.refusal = None if self._has_deltas else message.refusal
        self._grow_by(events, rest, None)

    def _rest(self, text: str, kind: str) -> str:
        items = self.answered_items()
        if self.text is not None:
            items.append(self.text.item("in_progress"))
        parts = [
            part for item in items if item["type"] == kind for part in item.get("content") or item.get("summary") or ()
        ]
        before = "".join(part.get("text", "") for part in parts)
        if text.startswith(before):
            return text[len(before) :]
        return "" if self._has_deltas else text

    def _grow(
        self,
        events: list[Event],
        kind: str,
        part: str,
        delta: str,
        logprobs: list[dict[str, Any]] | None = None,
    ) -> None:
        if self.text is None or self.text.kind != kind:
            events += self.close_text()
            if self._calls is not None:
                self._calls.give_way(self, events)
            self.text = OpenText(kind, self.add(), self._seal) if self._sources is None else self._opened(kind)
            events.append(self.text.added(self))
        self.text.grow(self, events, part, delta, logprobs)

    def _opened(self, kind: str) -> OpenText:
        """One that may refer to sources, where there are any."""
        if not self._sources or kind != "message":
            return OpenText(kind, self.add(), self._seal)
        return CitedText(self.add(), self._sources)

    def _grow_thought(self, events: list[Event], thought: str | None) -> None:
        if not thought:
            return
        self._emit_held(events)
        self._grow(events, *self.thought, thought)

    def _grow_refusal(self, events: list[Event], refusal: str) -> None:
        self._emit_held(events)
        self._grow(events, "message", "refusal", refusal)

    def close_text(self, status: str = "completed") -> list[Event]:
        """Something else begins."""
        text, self.text = self.text, None
        return text.close(self, status) if text else []

    def _grow_content(self, events: list[Event], content: str, logprobs: list[dict[str, Any]] | None) -> None:
        if self.thinking is None:
            self._grow(events, *TEXT, content, logprobs)
            return
        for is_thought, text in self.thinking.feed(content):
            self._grow(events, *(self.thought if is_thought else TEXT), text, logprobs if text == content else None)
        if self.thinking.is_over:
            self.thinking = None

    def _emit_held(self, events: list[Event]) -> None:
        """What was held back, because it might have been a tag, comes before whatever begins now."""
        for is_thought, text in self.thinking.flush() if self.thinking else ():
            self._grow(events, *(self.thought if is_thought else TEXT), text)

    # ── whole items ──────────────────────────────────────────────────────────────────────────────────────────────────

    def completion(self, items: list[Item], *, finish_reason: str | None, usage: dict[str, Any] | None) -> list[Event]:
        """A whole chat completion, and the end of the response: the events that a stream of it would have had."""
        return self.whole(items, finish_reason=finish_reason, usage=usage) + self.finish()

    def whole(self, items: list[Item], *, finish_reason: str | None, usage: dict[str, Any] | None) -> list[Event]:
        """The events of a whole chat completion; `finish` follows."""
        self._finish_reason = finish_reason
        self._usage = usage
        events: list[Event] = []
        for position, item in enumerate(items, 1):
            cut = finish_reason not in USUAL and incomplete_reason(finish_reason) is not None
            if cut and position < len(items):
                cut = item["type"] == "function_call" and is_cut_off(item["arguments"])
            status = "incomplete" if cut else "completed"
            if item["type"] == "function_call":
                book = self._offered[0]
                name = book.wire_name(item["name"])
                if not name or not self._tool_calls.permits(name):
                    continue
                call = book.call_of(name)
                if call.type not in SHOWN_ANYHOW and object_of(call, item["arguments"]) is None:
                    continue
                whole = {"call_id": item["call_id"], "arguments": item["arguments"], "status": status}
                item = call_item(call, id=new_id(ID_PREFIXES[call.type]), **whole)
                if call.type in ROUTER_CALLS and not cut:
                    if "arguments" in item:
                        item = {**item, "arguments": item["arguments"] or NO_ARGUMENTS}
                    events += self.begin_call(item)
                    continue
            elif item["type"] == "reasoning":
                item = self._whole_thought(item)
            elif item["type"] == "message" and self._sources:
                item = cited_message(item, self._sources)
            events += self.item(item, status)
        return events

    def _whole_thought(self, item: Item) -> Item:
        """A finished reasoning item, in the form that the client asked for."""
        if self.thought is SUMMARIZED:
            summary = [{"type": "summary_text", "text": part["text"]} for part in item["content"]]
            item = {"type": "reasoning", "summary": summary}
        return sealed(item, self._seal)

    def item(self, item: Item, status: str = "completed", *, closes: bool = True) -> list[Event]:
        """All events of one item; without those of its end, if it never closed."""
        item = whole_item(item, status)
        if item["type"] in CALLS and item.get("call_id"):
            item["call_id"] = self.free_call_id(item["call_id"])
        if item["type"] == "function_call" and not item["arguments"] and item["status"] == "completed":
            item["arguments"] = NO_ARGUMENTS
        output_index = self.add()
        events = item_events(self, item, output_index, closes=closes) if self.emission.makes_events else []
        if closes and self.emission.makes_events:
            return [*events, self.done(output_index, item)]
        self._output[output_index] = item
        return events

    # ── what the router runs ─────────────────────────────────────────────────────────────────────────────────────────

    def begin_call(self, item: Item) -> list[Event]:
        """The events of a call that is about to run."""
        return self.begin_work({**item, "status": "in_progress"})

    def begin_work(self, item: Item) -> list[Event]:
        """The events of an item that the router works at, until `end_work`."""
        output_index = self.add()
        self.hand_over(output_index, item)
        return item_events(self, item, output_index, is_running=True) if self.emission.makes_events else []

    def hand_over(self, output_index: int, item: Item) -> None:
        """The item waits for what the router does, and is not whole."""
        if self._handed is None:
            self._handed = {}
        self._handed[output_index] = item

    def take_handed(self) -> dict[int, Item]:
        """The calls that wait for their tools to run, by their output index. They wait until `end_work`."""
        return dict(self._handed or {})

    def end_work(self, output_index: int, item: Item) -> list[Event]:
        """The events of the end of what the router did, whose `item` is whole."""
        assert self._handed is not None
        del self._handed[output_index]
        self._hides_outputs |= OUTPUT in item
        if not self.emission.makes_events:
            self.keep(output_index, item)
            return []
        where = {"item_id": item["id"], "output_index": output_index}
        events = [*end_of_run(self, where, item), self.done(output_index, without(item, OUTPUT))]
        self.keep(output_index, item)
        return events

    # ── native events ────────────────────────────────────────────────────────────────────────────────────────────────

    def adopt(self, event: Event) -> list[Event]:
        """An event of such a backend, behind those that should have come before it. Those that carry the response only
        show how it stands: `begin` and `end` make ours."""
        status = LIFECYCLE.get(event["type"])
        if status is None:
            return self.begin() + self._unsealed(self.items.adopt(self, event))
        response = event.get("response")
        response = response if isinstance(response, dict) else {}
        if not status:
            if not self.started:
                self._adopt_response(response)
            return self.begin()
        return self.begin() + self._finish_natively(response, status)

    def adopt_whole(self, response: dict[str, Any]) -> list[Event]:
        """A finished response of a backend that speaks Responses: the events that a stream of it would have had."""
        return self.begin() + self._finish_natively(response, "completed")

    def _finish_natively(self, response: dict[str, Any], status: str) -> list[Event]:
        """What is left of the answer. The backend's own status counts, if it is one of an end."""
        if isinstance(theirs := response.get("status"), str) and theirs in TERMINAL:
            status = theirs
        events: list[Event] = []
        output = whole_output(response, "incomplete" if status == "incomplete" else "completed")
        if len(output) > MOST_ITEMS:
            raise too_many_items()
        if self._native is None and not self.emission.makes_events:
            self._output = [*output]
        else:
            self.items.finish(self, events, output, status)
            output = [item for item in self._output if item is not None]
        self._adopt_response(response)
        self.response |= {**ending(response, status), "output": self._kept(output), "status": status}
        return self._unsealed(events) if self.emission.makes_events else []

    def _kept(self, output: list[Item]) -> list[Item]:
        return hide(output) if self.hides_seals else output

    def _unsealed(self, events: list[Event]) -> list[Event]:
        return [*map(unsealed, events)] if self.hides_seals else events

    def _adopt_response(self, response: dict[str, Any]) -> None:
        ours = dict(zip(OURS, values_of_ours(self.response), strict=True))
        if "conversation" in response:  # Theirs is none that anybody knows here.
            ours["conversation"] = self.response.get("conversation")
        if tools := response.get("tools"):
            response = {**response, "tools": shown(tools)}
        self._resource = self._resource or self.response
        self.response = {**self.response, **whole_response(response), **ours}

    @property
    def items(self) -> NativeItems:
        """Those of a backend that speaks Responses, as far as they have come."""
        if self._native is None:
            self._native = NativeItems()
            self.flows = self._native.flows
        return self._native

    def answered_items(self) -> list[Item]:
        """The whole items of the answer that comes now."""
        return [item for item in self._output[self._before :] if item is not None]

    # ── what the items are made with ─────────────────────────────────────────────────────────────────────────────────

    def number(self) -> int:
        """The sequence number of the next event."""
        number = self.sequence_number
        self.sequence_number = number + 1
        return number

    def event(self, type: str, **fields: Any) -> Event:
        """An event with the next `sequence_number`."""
        event = {"type": type, "sequence_number": self.sequence_number, **fields}
        self.sequence_number += 1
        return event

    def add(self) -> int:
        """The output index of a new item. Raises `BackendError` where there are too many of them."""
        if len(self._output) >= MOST_ITEMS:
            raise too_many_items()
        if not self.first_s:
            self.first_s = time.monotonic()
        self._output.append(None)
        return len(self._output) - 1

    def keep(self, output_index: int, item: Item) -> None:
        """The item is whole, or all of it that will ever be."""
        self._output[output_index] = item

    def done(self, output_index: int, item: Item) -> Event:
        """The event that ends an item, which the response then holds."""
        self.keep(output_index, item)
        return self.event("response.output_item.done", output_index=output_index, item=item)

    def free_call_id(self, call_id: str | None) -> str:
        """The backend's id of a call, or a new one where it has none or has used it before."""
        if (taken := self._taken_call_ids) is None:
            taken = self._taken_call_ids = set(self._given_call_ids)
        if not call_id or call_id in taken:
            call_id = new_id("call")
        taken.add(call_id)
        return call_id


# ── sources and sinks that need nothing but events ───────────────────────────────────────────────────────────────────


def replay(builder: ResponseBuilder, response: dict[str, Any]) -> list[Event]:
    """The events that a stream of a finished response has had, all but the terminal one."""
    events = builder.begin()
    stopped = response["status"] in ("failed", "cancelled")
    for item in response["output"]:
        was_open = stopped and item["type"] in GROWING_CALLS and item.get("status") == "incomplete"
        events += builder.item(item, closes=not was_open)
    builder.take_end(response)
    return [*events, builder.error(response["error"])] if response.get("error") else events


def unfinished(response: dict[str, Any]) -> dict[str, Any]:
    """A finished response as it was when it began: what a builder needs to replay it."""
    begun: dict[str, Any] = {"status": "in_progress", "output": [], **dict.fromkeys(SET_AT_THE_END)}
    return {**response, **begun}
