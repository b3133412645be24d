"""The items of a response that are still growing: messages and reasoning (`OpenText`), and calls of tools (`OpenCall`).

An item gives the events of its own life. What must be counted or unique is asked of the builder (`Ladder`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol

from requests.responses import ID_PREFIXES, logprobs_chat_to_responses, new_id
from requests.sse import DeltaFrames
from requests.tools import Call, Item, TextOfJSON, ToolBook, arguments_of, call_item

Event = dict[str, Any]
Seal = Callable[[str], str]
# What becomes of what happens: events; events of which the deltas, nearly all of them, are frames of an SSE stream already; or
# nothing, where only the response counts at the end.
Telling = Literal["events", "frames", "nothing"]

# A content part's type: the name of its events, and the key of its text in the part and in the .done event.
STREAMED_PARTS = {
    "output_text": ("response.output_text", "text"),
    "refusal": ("response.refusal", "refusal"),
    "reasoning_text": ("response.reasoning_text", "text"),
    "summary_text": ("response.reasoning_summary_text", "text"),
}
# Where a part stands: the name of its events, and the key of its index.
CONTENT = ("response.content_part", "content_index")
SUMMARY = ("response.reasoning_summary_part", "summary_index")
# The calls whose arguments are streamed: the name of their events, and the key in the item and in the .done event. The
# others are objects, and appear when they are whole.
STREAMED_CALLS = {
    "function_call": ("response.function_call_arguments", "arguments"),
    "custom_tool_call": ("response.custom_tool_call_input", "input"),
}


# For calls that come without any: clients parse what they get, and some read the deltas alone.
NO_ARGUMENTS = "{}"


class Ladder(Protocol):
    """What an item needs of the response that it is a part of."""

    sequence_number: int
    telling: Telling

    def event(self, type: str, **fields: Any) -> Event: ...
    def add(self) -> int: ...
    def done(self, output_index: int, item: Item) -> Event: ...
    def free_call_id(self, call_id: str | None) -> str: ...


class OpenText:
    """An open message or reasoning item. Its text is kept as `fragments`, joined when a `part` closes; `frames` makes the frames of
    its deltas, where such are wanted. `seal` makes the `encrypted_content` of reasoning, where the client wants it."""

    __slots__ = (
        "_delta",
        "_logprobs",
        "_part_name",
        "_parts",
        "_seal",
        "_where",
        "fragments",
        "frames",
        "id",
        "kind",
        "output_index",
        "part",
    )

    def __init__(self, kind: str, output_index: int, seal: Seal | None = None) -> None:
        self.kind = kind
        self.output_index = output_index
        self.id = new_id("msg" if kind == "message" else "rs")
        self._seal = seal
        self._parts: list[dict[str, Any]] = []
        self.part = ""
        self.fragments: list[str] = []
        self.frames: DeltaFrames | None = None
        self._logprobs: list[dict[str, Any]] = []

    def grow_plainly(self, ladder: Ladder, deltas: list[str], spelled: list[bytes]) -> bytes:
        """What nearly all tokens are: more deltas of the part that is open, as frames. `spelled` are the deltas as JSON has them."""
        assert self.frames is not None
        self.fragments += deltas
        number = ladder.sequence_number
        ladder.sequence_number += len(deltas)
        return self.frames.of(number, spelled)

    def added(self, ladder: Ladder) -> Event:
        item = skeleton(self.item("in_progress"))
        return ladder.event("response.output_item.added", output_index=self.output_index, item=item)

    def grow(
        self,
        ladder: Ladder,
        events: list[Event],
        part: str,
        delta: str,
        logprobs: list[dict[str, Any]] | None,
    ) -> None:
        if ladder.telling == "nothing" and part == self.part:
            self.fragments.append(delta)
            self._logprobs += logprobs_chat_to_responses(logprobs) if logprobs else ()
            return
        if part != self.part:
            events += self._close_part(ladder)
            self.part = part
            self._delta = f"{STREAMED_PARTS[part][0]}.delta"
            self._part_name, index = SUMMARY if part == "summary_text" else CONTENT
            self._where = {"item_id": self.id, "output_index": self.output_index, index: len(self._parts)}
            events.append(ladder.event(f"{self._part_name}.added", **self._where, part=empty_part(part)))
        self.fragments.append(delta)
        event = ladder.event(self._delta, **self._where, delta=delta)
        if part == "output_text":
            event["logprobs"] = logprobs_chat_to_responses(logprobs) if logprobs else []
            self._logprobs += event["logprobs"]
        if ladder.telling == "frames" and not logprobs:
            self.frames = DeltaFrames(event)
        events.append(event)

    def close(self, ladder: Ladder, status: str) -> list[Event]:
        events = self._close_part(ladder)
        return [*events, ladder.done(self.output_index, self.item(status))]

    def item(self, status: str) -> Item:
        parts = [*self._parts, self._whole_part()] if self.part else self._parts
        if self.kind == "message":
            return {"type": "message", "id": self.id, "status": status, "role": "assistant", "content": parts}
        item: Item = {"type": "reasoning", "id": self.id, "summary": []}
        item["summary" if parts and parts[0]["type"] == "summary_text" else "content"] = parts
        return sealed(item, self._seal)

    def _whole_part(self) -> dict[str, Any]:
        part = empty_part(self.part)
        part[STREAMED_PARTS[self.part][1]] = "".join(self.fragments)
        if self._logprobs:
            part["logprobs"] = self._logprobs
        return part

    def _close_part(self, ladder: Ladder) -> list[Event]:
        if not self.part:
            return []
        name, key = STREAMED_PARTS[self.part]
        part = self._whole_part()
        logprobs = {"logprobs": part["logprobs"]} if self.part == "output_text" else {}
        events = [
            ladder.event(f"{name}.done", **self._where, **{key: part[key]}, **logprobs),
            ladder.event(f"{self._part_name}.done", **self._where, part=part),
        ]
        self._parts.append(part)
        self.part, self.fragments, self.frames, self._logprobs = "", [], None, []
        return events


class OpenCall:
    """An open call of a tool. It opens with its name, which says what it is; arguments that come earlier wait. A call that is
    told as an object (`shell_call`, …) opens when its arguments are whole; it is not told at all if they never are, or if the
    client has forbidden it (`mute`)."""

    __slots__ = ("_fragments", "_text", "_where", "backend_id", "call", "call_id", "id", "muted", "output_index")

    def __init__(self, backend_id: str | None) -> None:
        self.backend_id = backend_id
        self.call: Call | None = None
        self.output_index = -1
        self.muted = False
        self._fragments: list[str] = []
        self._text = TextOfJSON()

    @property
    def is_told(self) -> bool:
        if self.muted:
            return False
        if self.call is None:
            return False
        return self.call.type in STREAMED_CALLS or arguments_of("".join(self._fragments)) is not None

    def is_another(self, backend_id: str | None, tool: Call) -> bool:
        """Whether a delta that has this id and names this tool begins another call."""
        if backend_id:
            return backend_id != self.backend_id
        so_far = "".join(self._fragments)
        return self.call is not None and (tool != self.call or bool(so_far and arguments_of(so_far) is not None))

    def mute(self, name: str) -> None:
        self.call, self.muted = Call("function_call", name), True

    def name(self, ladder: Ladder, name: str, book: ToolBook) -> list[Event]:
        """The call is of this tool."""
        if self.call is not None:
            return []
        self.call = book.call_of(name)
        return self._open(ladder) if self.call.type in STREAMED_CALLS else []

    def grow(self, ladder: Ladder, events: list[Event], arguments: str) -> None:
        self._fragments.append(arguments)
        if self.output_index >= 0:
            events += self._delta(ladder, arguments)

    def close(self, ladder: Ladder, status: str) -> list[Event]:
        if not self.is_told:
            return []
        call = self._known()
        events = self._open(ladder) if self.output_index < 0 else []
        if not self._fragments and status == "completed" and call.type == "function_call":
            self.grow(ladder, events, NO_ARGUMENTS)
        item = self.item(status)
        if call.type in STREAMED_CALLS:
            name, key = STREAMED_CALLS[call.type]
            if call.type == "custom_tool_call" and (rest := item[key].removeprefix(self._text.text)):
                events.append(ladder.event(f"{name}.delta", **self._where, delta=rest))
            named = {"name": call.name} if call.type == "function_call" else {}
            events.append(ladder.event(f"{name}.done", **self._where, **named, **{key: item[key]}))
        return [*events, ladder.done(self.output_index, item)]

    def item(self, status: str) -> Item:
        arguments = "".join(self._fragments)
        return call_item(self._known(), id=self.id, call_id=self.call_id, arguments=arguments, status=status)

    def _known(self) -> Call:
        if self.call is None:
            self.call = Call("function_call", "")
        return self.call

    def _open(self, ladder: Ladder) -> list[Event]:
        self.output_index = ladder.add()
        self.id = new_id(ID_PREFIXES[self._known().type])
        self.call_id = ladder.free_call_id(self.backend_id)
        self._where = {"item_id": self.id, "output_index": self.output_index}
        item = skeleton(self.item("in_progress"))
        events = [ladder.event("response.output_item.added", output_index=self.output_index, item=item)]
        if self._fragments:
            events += self._delta(ladder, "".join(self._fragments))
        return events

    def _delta(self, ladder: Ladder, arguments: str) -> list[Event]:
        kind = self._known().type
        if kind not in STREAMED_CALLS:
            return []
        delta = self._text.feed(arguments) if kind == "custom_tool_call" else arguments
        return [ladder.event(f"{STREAMED_CALLS[kind][0]}.delta", **self._where, delta=delta)] if delta else []


def empty_part(kind: str) -> dict[str, Any]:
    if kind == "output_text":
        return {"type": kind, "text": "", "annotations": [], "logprobs": []}
    return {"type": kind, STREAMED_PARTS[kind][1]: ""}


def skeleton(item: Item) -> Item:
    """An item as it is added: begun, and empty."""
    begun = dict(item)
    if "status" in item:
        begun["status"] = "in_progress"
    if item["type"] == "message":
        begun["content"] = []
    elif item["type"] in STREAMED_CALLS:
        begun[STREAMED_CALLS[item["type"]][1]] = ""
    elif item["type"] == "reasoning":
        begun = {"type": "reasoning", "id": item["id"], "summary": []}
    return begun


def sealed(item: Item, seal: Seal | None) -> Item:
    """A reasoning item, with its text in `encrypted_content` if the client wants to bring it along by itself."""
    parts = item.get("content") or item["summary"]
    if seal is None or not parts:
        return item
    return {**item, "encrypted_content": seal("\n\n".join(part["text"] for part in parts))}
