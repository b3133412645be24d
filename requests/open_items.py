"""The items of a response that are still growing: messages and reasoning (`OpenText`), and calls of tools (`OpenCall`).

An item gives the events of its own life. What must be counted or unique is asked of the builder (`Ladder`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from core.errors import BackendError
from core.json import Halves, Json, has_half
from requests.deltas import DeltaFrames
from requests.emission import Emission
from requests.hosted_calls import CODE, HOSTED_CALLS
from requests.patches import may_be_wrapped
from requests.responses import ID_PREFIXES, logprobs_chat_to_responses, new_id
from requests.router_tools import ROUTER_CALLS
from requests.tools import CODE_KEY, Call, Item, TextOfJSON, arguments_of, call_item, object_of
from requests.whole_json import WholeJSON

Event = Json
Seal = Callable[[str], str]

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
# The same, with those that the router runs.
GROWING_CALLS = STREAMED_CALLS | {
    "mcp_call": ("response.mcp_call_arguments", "arguments"),
    CODE: ("response.code_interpreter_call_code", "code"),
}
# Those of which a text is shown that is in their arguments.
TEXT_CALLS = frozenset({"custom_tool_call", CODE})


# For calls that come without any: clients parse what they get, and some read the deltas alone.
NO_ARGUMENTS = "{}"


# More items, or parts of one, are no answer of a model: what they are is looked up among all that came before.
MOST_ITEMS = 2000


def too_many_items(what: str = "items") -> BackendError:
    """The error for an answer with more of them."""
    return BackendError(f"The backend's answer has more than {MOST_ITEMS} {what}.", code="backend_bad_answer")


class Ladder(Protocol):
    """What an item needs of the response that it is a part of."""

    sequence_number: int
    emission: Emission

    def number(self) -> int: ...
    def event(self, type: str, **fields: object) -> Event: ...
    def add(self) -> int: ...
    def keep(self, output_index: int, item: Item) -> None: ...
    def done(self, output_index: int, item: Item) -> Event: ...
    def free_call_id(self, call_id: str | None) -> str: ...
    def close_text(self) -> list[Event]: ...
    def hand_over(self, output_index: int, item: Item) -> None: ...
    def begin_call(self, item: Item) -> list[Event]: ...


class OpenText:
    """An open message or reasoning item. Its text is kept as `fragments`, joined when a `part` closes; `frames` makes
    the frames of its deltas, where such are wanted. `seal` makes the `encrypted_content` of reasoning, where the client
    wants it."""

    __slots__ = (
        "_delta",
        "_halves",
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
        self._parts: list[Json] = []
        self.part = ""
        self.fragments: list[str] = []
        self.frames: DeltaFrames | None = None
        self._logprobs: list[Json] = []
        # Half a character, where the last delta ended in one.
        self._halves: Halves | None = None

    def grow_plainly(self, ladder: Ladder, deltas: list[str], spelled: list[bytes]) -> bytes:
        """What nearly all tokens are: more deltas of the part that is open, as frames. `spelled` are the deltas as JSON
        has them."""
        assert self.frames is not None
        self.fragments += deltas
        number = ladder.sequence_number
        ladder.sequence_number += len(deltas)
        return self.frames.of(number, spelled)

    def added(self, ladder: Ladder) -> Event:
        """The event that opens it."""
        item = skeleton(self.item("in_progress"))
        return ladder.event("response.output_item.added", output_index=self.output_index, item=item)

    def grow(
        self,
        ladder: Ladder,
        events: list[Event],
        part: str,
        delta: str,
        logprobs: list[Json] | None,
    ) -> None:
        """Adds a piece of text to a part of it, and its events to `events`: a part that is another than before is
        opened."""
        if part != self.part:
            events += self._close_part(ladder)
            self.part = part
            self._delta = f"{STREAMED_PARTS[part][0]}.delta"
            self._part_name, index = SUMMARY if part == "summary_text" else CONTENT
            self._where = {"item_id": self.id, "output_index": self.output_index, index: len(self._parts)}
            events.append(ladder.event(f"{self._part_name}.added", **self._where, part=empty_part(part)))
        if self._halves is not None or not delta.isascii():
            delta = self._joined(delta)
            if not delta and not logprobs:
                return
        self.fragments.append(delta)
        if part != "output_text":
            if not ladder.emission.makes_events:
                return
            event = ladder.event(self._delta, **self._where, delta=delta)
        else:
            given = logprobs_chat_to_responses(logprobs) if logprobs else []
            self._logprobs += given
            if not ladder.emission.makes_events:
                return
            event = ladder.event(self._delta, **self._where, delta=delta, logprobs=given)
        if ladder.emission.makes_frames and not logprobs and self._halves is None:
            self.frames = DeltaFrames(event)
        events.append(event)

    def _joined(self, delta: str) -> str:
        """The delta behind the half of a character that came before it, and without the one that it ends in."""
        if self._halves is None:
            if not has_half(delta):
                return delta
            self._halves, self.frames = Halves(), None
        joined = self._halves.feed(delta)
        if not self._halves.held:
            self._halves = None
        return joined

    def close(self, ladder: Ladder, status: str) -> list[Event]:
        events = self._close_part(ladder)
        return [*events, ladder.done(self.output_index, self.item(status))]

    def partial(self) -> Item:
        """What of it was in events, as an item."""
        return self.item("incomplete")

    def item(self, status: str) -> Item:
        """It as it stands, as an output item."""
        parts = [*self._parts, self._whole_part()] if self.part else self._parts
        if self.kind == "message":
            return {"type": "message", "id": self.id, "status": status, "role": "assistant", "content": parts}
        item: Item = {"type": "reasoning", "id": self.id, "summary": []}
        item["summary" if parts and parts[0]["type"] == "summary_text" else "content"] = parts
        return sealed(item, self._seal)

    def _whole_part(self) -> Json:
        part = empty_part(self.part)
        part[STREAMED_PARTS[self.part][1]] = "".join(self.fragments)
        if self._logprobs:
            part["logprobs"] = self._logprobs
        return part

    def _close_part(self, ladder: Ladder) -> list[Event]:
        if not self.part:
            return []
        events: list[Event] = []
        if self._halves is not None:
            rest, self._halves = self._halves.flush(), None
            self.grow(ladder, events, self.part, rest, None)
        name, key = STREAMED_PARTS[self.part]
        part = self._whole_part()
        logprobs = {"logprobs": part["logprobs"]} if self.part == "output_text" else {}
        events.append(ladder.event(f"{name}.done", **self._where, **{key: part[key]}, **logprobs))
        events.append(ladder.event(f"{self._part_name}.done", **self._where, part=part))
        self._parts.append(part)
        self.part, self.fragments, self.frames, self._logprobs = "", [], None, []
        return events


class OpenCall:
    """An open call of a tool. It opens with its name, which decides what it is, and when it is its turn (`start`);
    arguments that come earlier wait. A call that is an object (`shell_call`, …) opens when its arguments are whole; it
    never appears if they never are, or if the client has forbidden it (`mute`). `spelled` is its name as far as it has
    come; nothing more comes of one that `is_over`, as another has taken its place."""

    __slots__ = (
        "_blank",
        "_emitted",
        "_fragments",
        "_halves",
        "_is_object",
        "_read",
        "_text",
        "_where",
        "_whole",
        "backend_id",
        "call",
        "call_id",
        "has_ended",
        "id",
        "is_over",
        "muted",
        "output_index",
        "spelled",
    )

    def __init__(self, backend_id: str | None) -> None:
        self.backend_id = backend_id
        self.spelled = ""
        self.call: Call | None = None
        self.output_index = -1
        self.muted = False
        self.is_over = False
        self.has_ended = False
        self._fragments: list[str] = []
        # How many of these were read for whether they are whole, and whether they are.
        self._read = 0
        self._whole: WholeJSON | None = None
        self._is_object: bool | None = None
        # `{}`, which some servers send before the arguments.
        self._blank = ""
        self._halves: Halves | None = None
        self._text = TextOfJSON()
        self._emitted = ""

    @property
    def appears(self) -> bool:
        """Whether the client sees it already: not before its name is known, and one that is emitted whole not before
        its arguments are."""
        if self.muted or self.call is None:
            return False
        if self.call.type in GROWING_CALLS or self.call.type in HOSTED_CALLS:
            return True
        return object_of(self.call, self.arguments) is not None

    @property
    def arguments(self) -> str:
        """Its arguments so far."""
        return "".join(self._fragments) or self._blank

    @property
    def has_arguments(self) -> bool:
        """Whether any came, if only blanks."""
        return bool(self._fragments or self._blank)

    @property
    def is_json(self) -> bool:
        """Whether the arguments are what they should be, as far as they have come."""
        return bool(self._blank) or (bool(self._fragments) and self._fragments[0].lstrip()[:1] == "{")

    @property
    def is_whole(self) -> bool:
        """Whether the arguments are an object, and nothing waits."""
        if self._whole is None:
            self._whole = WholeJSON()
        for place in range(self._read, len(self._fragments)):
            self._whole.feed(self._fragments[place])
        self._read = len(self._fragments)
        if not self._whole.is_closed:
            return False
        if self._is_object is None:  # What may still follow are blanks.
            self._is_object = arguments_of(self.arguments) is not None
        return self._is_object

    def repeats(self, arguments: str) -> bool:
        """Whether a delta repeats all that came so far: no JSON goes on as it begins."""
        return (
            bool(self._fragments)
            and _goes_again(self._fragments[0], arguments)
            and arguments.startswith(self.arguments)
        )

    def mute(self) -> None:
        """The client shall not see it."""
        self.call, self.muted = Call("function_call", self.spelled), True

    def start(self, ladder: Ladder) -> list[Event]:
        """It is its turn: the client sees it, as far as it has come."""
        if self.output_index >= 0 or self.call is None or self.call.type not in GROWING_CALLS:
            return []
        return self._open(ladder)

    def grow(self, ladder: Ladder, events: list[Event], arguments: str) -> None:
        """Adds a piece of its arguments, and its events to `events`."""
        if not arguments.isascii() or self._halves is not None:
            arguments = self._joined(arguments)
        if self.repeats(arguments):
            arguments = arguments[len(self.arguments) :]
        if not self._fragments and arguments.strip() == NO_ARGUMENTS:
            self._blank = arguments
            return
        if self._blank and arguments.strip():
            self._blank = ""
        if arguments:
            self._fragments.append(arguments)
            if self.output_index >= 0:
                events += self._delta(ladder, arguments)

    def goes_on(self, ladder: Ladder, events: list[Event], arguments: object) -> bool:
        """The next piece of its arguments, if there is nothing to be seen to."""
        if self.output_index < 0 or self._blank or self._halves is not None or type(arguments) is not str:
            return False
        if not self._fragments or not arguments or arguments[0] == "{" or not arguments.isascii():
            return False
        events += ladder.close_text()
        self._fragments.append(arguments)
        events += self._delta(ladder, arguments)
        return True

    @property
    def waits(self) -> bool:
        """Whether what comes next may change what it is."""
        return bool(self._blank) or (self.call is None and bool(self.spelled))

    def settle(self, ladder: Ladder, events: list[Event]) -> None:
        """`{}` were all its arguments."""
        if self._blank:
            self._fragments.append(self._blank)
            if self.output_index >= 0:
                events += self._delta(ladder, self._blank)
            self._blank = ""

    def close(self, ladder: Ladder, status: str) -> list[Event]:
        if self._halves is not None and (rest := self._halves.flush()):
            self._fragments.append(rest)
            events = self._delta(ladder, rest) if self.output_index >= 0 else []
        else:
            events = []
        if not self.appears:
            return []
        call = self._known()
        if (
            call.type in HOSTED_CALLS and call.type not in GROWING_CALLS
        ):  # What is no object is run, too: the model reads what is wrong.
            self.id, self.call_id = new_id(ID_PREFIXES[call.type]), ""
            return ladder.begin_call(self.item(status)) if status == "completed" else []
        if self.output_index < 0:
            events += self._open(ladder)
        self.settle(ladder, events)
        if not self._fragments and status == "completed" and call.type in ("function_call", "mcp_call"):
            self._fragments = [NO_ARGUMENTS]
            events += self._delta(ladder, NO_ARGUMENTS)
        item = self.item(status)
        if call.type in GROWING_CALLS:
            name, key = GROWING_CALLS[call.type]
            if call.type in TEXT_CALLS and (rest := item[key].removeprefix(self._emitted)):
                events.append(ladder.event(f"{name}.delta", **self._where, delta=rest))
            named = {"name": call.name} if call.type == "function_call" else {}
            events.append(ladder.event(f"{name}.done", **self._where, **named, **{key: item[key]}))
        if call.type in ROUTER_CALLS and status == "completed":
            ladder.hand_over(self.output_index, self.item("in_progress"))
            return events + steps_of(ladder, self._where, call.type)
        return [*events, ladder.done(self.output_index, item)]

    def partial(self) -> Item:
        """What of it was in events, as an item."""
        item = self.item("incomplete")
        return item | {GROWING_CALLS[item["type"]][1]: self._emitted} if item["type"] in TEXT_CALLS else item

    def item(self, status: str) -> Item:
        """It as it stands, as an output item."""
        arguments = "".join(self._fragments)
        return call_item(self._known(), id=self.id, call_id=self.call_id, arguments=arguments, status=status)

    def _joined(self, arguments: str) -> str:
        if self._halves is None:
            if not has_half(arguments):
                return arguments
            self._halves = Halves()
        return self._halves.feed(arguments)

    def _known(self) -> Call:
        if self.call is None:
            self.call = Call("function_call", "")
        return self.call

    def _open(self, ladder: Ladder) -> list[Event]:
        self.output_index = ladder.add()
        self.id = new_id(ID_PREFIXES[self._known().type])
        self.call_id = ladder.free_call_id(self.backend_id)
        if self._known().type == CODE:
            self._text = TextOfJSON(CODE_KEY)
        self._where = {"item_id": self.id, "output_index": self.output_index}
        item = skeleton(self.item("in_progress"))
        events = [ladder.event("response.output_item.added", output_index=self.output_index, item=item)]
        if (run := ROUTER_CALLS.get(item["type"])) is not None:
            events.append(ladder.event(f"{run}.in_progress", **self._where))
        if self._fragments:
            events += self._delta(ladder, "".join(self._fragments))
        return events

    def _delta(self, ladder: Ladder, arguments: str) -> list[Event]:
        kind = self._known().type
        if kind not in GROWING_CALLS:
            return []
        delta = self._more_text(arguments) if kind in TEXT_CALLS else arguments
        return [ladder.event(f"{GROWING_CALLS[kind][0]}.delta", **self._where, delta=delta)] if delta else []

    def _more_text(self, arguments: str) -> str:
        """What the client has not got yet of the text for a custom tool, or of code. A patch is held back while it may
        be wrapped in something."""
        delta = self._text.feed(arguments)
        if not self._emitted and self._known().type != CODE:
            delta = "" if may_be_wrapped(self._text.text) else self._text.text
        self._emitted += delta
        return delta


def _goes_again(first: str, arguments: str) -> bool:
    return first[:1] == "{" and arguments[:1] == "{"


def empty_part(kind: str) -> Json:
    """A part that nothing has come of yet."""
    if kind == "output_text":
        return {"type": kind, "text": "", "annotations": [], "logprobs": []}
    return {"type": kind, STREAMED_PARTS[kind][1]: ""}


def steps_of(ladder: Ladder, where: Json, kind: str) -> list[Event]:
    """The events of a hosted tool at work; none for any other."""
    hosted = HOSTED_CALLS.get(kind)
    return [ladder.event(f"{ROUTER_CALLS[kind]}.{step}", **where) for step in hosted.steps] if hosted else []


def skeleton(item: Item) -> Item:
    """An item as it is added: begun, and empty."""
    begun = dict(item)
    if "status" in item:
        begun["status"] = "in_progress"
    if item["type"] == "message":
        begun["content"] = []
    elif item["type"] in GROWING_CALLS:
        begun[GROWING_CALLS[item["type"]][1]] = ""
        if item["type"] == "mcp_call":
            begun |= {"output": None, "error": None}
    elif item["type"] == "mcp_list_tools":
        begun["tools"] = []
        begun.pop("error", None)
    elif item["type"] == "reasoning":
        begun = {"type": "reasoning", "id": item["id"], "summary": []}
    if (hosted := HOSTED_CALLS.get(item["type"])) is not None:
        begun |= hosted.before(item)
    return begun


def sealed(item: Item, seal: Seal | None) -> Item:
    """A reasoning item, with its text in `encrypted_content` if the client wants to bring it along by itself."""
    parts = item.get("content") or item["summary"]
    if seal is None or not parts:
        return item
    return {**item, "encrypted_content": seal("\n\n".join(part["text"] for part in parts))}
