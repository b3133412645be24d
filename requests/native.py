"""The answer of a server that speaks Responses, as ours: what is as it should be goes on as it came, what is missing is
put in.

    adopt(event)     the event, behind those that should have come before it
    take(head)       whether a delta of what is open may go on untouched
    finish(…)        what is open closes, what was never streamed is, and the items are the output

Servers leave out events and keys that strict clients need, count their items otherwise or not at all, and end with an
empty output. So each item is put together here as a client does it, and a stream always adds up to the response that is
kept.
"""

from __future__ import annotations

from typing import Any

from core.json import Json
from requests.native_growing import (
    NOWHERE,
    Flow,
    Flows,
    Fragments,
    NativeItem,
    NativePart,
    NativeText,
    Part,
)
from requests.native_shapes import begun, objects_in, whole_item, whole_part
from requests.open_items import (
    CONTENT,
    MOST_ITEMS,
    STREAMED_CALLS,
    STREAMED_PARTS,
    SUMMARY,
    Event,
    Ladder,
    empty_part,
    too_many_items,
)
from requests.responses import ID_PREFIXES, new_id
from requests.tools import Item
from requests.whole_items import item_events, part_events, summary_events

# The items that have parts, by the kinds of these.
ITEM_OF = {"output_text": "message", "refusal": "message", "reasoning_text": "reasoning", "summary_text": "reasoning"}
# Open Responses' older name for it, which no SDK knows.
RENAMED = {
    "response.reasoning.delta": "response.reasoning_text.delta",
    "response.reasoning.done": "response.reasoning_text.done",
}
# What a delta or its end is about: the kind of its part, or of its call.
DELTAS = {f"{name}.delta": kind for kind, (name, _) in (STREAMED_PARTS | STREAMED_CALLS).items()}
TEXT_ENDS = {f"{name}.done": kind for kind, (name, _) in (STREAMED_PARTS | STREAMED_CALLS).items()}
PART_BEGINS = {f"{CONTENT[0]}.added": "content", f"{SUMMARY[0]}.added": "summary"}
PART_ENDS = {f"{CONTENT[0]}.done": "content", f"{SUMMARY[0]}.done": "summary"}


class NativeItems:
    """The items of one answer, as far as they have come."""

    def __init__(self) -> None:
        self.items: list[NativeItem] = []
        self.last: NativeItem | None = None
        self.flows: Flows = {}
        # The events of those behind an open call, by their servers' index: clients take what comes for a part of the
        # call that began last.
        self.held: dict[int, list[Event]] = {}

    @property
    def are_done(self) -> bool:
        """Whether there are some, and each has ended."""
        return bool(self.items) and not self.held and all(item.done is not None for item in self.items)

    @property
    def open_call(self) -> NativeItem | None:
        """The call that clients see grow."""
        for item in self.items:
            if item.done is None and item.kind in STREAMED_CALLS and item.output_index >= 0:
                return item
        return None

    def _let_flow(
        self, ladder: Ladder, type: str, event: Event, where: Json, fragments: Fragments, logprobs: Any
    ) -> None:
        """Deltas of this type may go on with what an event is about, if their server names it as we do."""
        if ladder.emission.makes_frames and all(event.get(key) == value for key, value in where.items()):
            self.flows[type, *(where.get(key) for key in PLACE)] = Flow(type, fragments, logprobs)

    # ── events ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def adopt(self, ladder: Ladder, event: Event) -> list[Event]:
        """The event as ours, behind those that should have come before it. Empty where it adds nothing, comes too late,
        or waits for a call to end."""
        is_begin = event["type"] == "response.output_item.added"
        if (is_begin or self.held) and self._hold(event, is_begin):
            return []
        events = self._adopt(ladder, event)
        if self.held:
            self._release(ladder, events)
        return events

    def _hold(self, event: Event, is_begin: bool) -> bool:
        """Whether an event is of an item that must wait."""
        index = _int(event.get("output_index"))
        if index is None or any(item.index == index for item in self.items):
            return False  # Not one that its server counts.
        if index in self.held:
            self.held[index].append(event)
            return True
        item = event.get("item")
        is_call = isinstance(item, dict) and item.get("type") in STREAMED_CALLS
        if not is_begin or not (self.held or (is_call and self.open_call is not None)):
            return False
        self.held[index] = [event]
        return True

    def _release(self, ladder: Ladder, events: list[Event]) -> None:
        """The next item is seen, if the call before it has ended."""
        while self.held and self.open_call is None:
            for event in self.held.pop(next(iter(self.held))):
                events += self._adopt(ladder, event)

    def _release_all(self, ladder: Ladder, events: list[Event], output: list[Item], status: str) -> None:
        """The answer has ended, and so has each call in it."""
        while self.held:
            if (call := self.open_call) is not None:
                listed = next((given for given, known in self._matched(output) if known is call), None)
                self._end_item(ladder, events, call, listed or _ended(call, status))
                if call.done is None:
                    return
            self._release(ladder, events)

    def _adopt(self, ladder: Ladder, event: Event) -> list[Event]:
        kind = event["type"]
        if kind in RENAMED:
            event = {**event, "type": (kind := RENAMED[kind])}
        events: list[Event] = []
        if kind in DELTAS:
            self._grow(ladder, events, event, DELTAS[kind])
        elif kind in TEXT_ENDS:
            self._end_of_text(ladder, events, event, TEXT_ENDS[kind])
        elif kind in PART_BEGINS:
            self._begin_part(ladder, events, event, PART_BEGINS[kind])
        elif kind in PART_ENDS:
            self._end_of_part(ladder, events, event, PART_ENDS[kind])
        elif kind == "response.output_item.added":
            self._begin_item(ladder, events, event)
        elif kind == "response.output_item.done":
            self._end_of_item(ladder, events, event)
        else:
            self._bystander(ladder, events, event)
        return events

    def _grow(self, ladder: Ladder, events: list[Event], event: Event, kind: str) -> None:
        item = self._item_of(ladder, events, event, ITEM_OF.get(kind, kind))
        if item.done is not None:
            return
        text: NativeText = item.arguments
        where, logprobs = item.where, None
        if kind in ITEM_OF:
            text = part = self._part_of(ladder, events, item, event, kind)
            where |= {_index_key(part): part.index}
            if kind == "output_text":
                logprobs = objects_in(event.get("logprobs"))
                part.logprobs += logprobs
                where["logprobs"] = logprobs
        if text.has_ended:
            return
        delta = text.joined(event.get("delta"))
        if not delta and not logprobs and event.get("delta") != "":
            return
        text.fragments.append(delta)
        if item.output_index < 0:
            return
        events.append(_emitted(ladder, event, {**where, "delta": delta}))
        if text.is_cut:
            self.flows.clear()
        elif not logprobs and event.get("logprobs") == logprobs:
            where.pop("logprobs", None)
            self._let_flow(ladder, event["type"], event, where, text.fragments, logprobs)

    def _end_of_text(self, ladder: Ladder, events: list[Event], event: Event, kind: str) -> None:
        item = self._item_of(ladder, events, event, ITEM_OF.get(kind, kind))
        if item.done is not None:
            return
        if kind in ITEM_OF:
            part = self._part_of(ladder, events, item, event, kind)
            key = STREAMED_PARTS[kind][1]
            given = {key: event.get(key), "logprobs": objects_in(event.get("logprobs"))}
            self._end_text(ladder, events, item, part, given, event)
        else:
            self._end_arguments(ladder, events, item, event.get(STREAMED_CALLS[kind][1]), event)

    def _begin_part(self, ladder: Ladder, events: list[Event], event: Event, family: str) -> None:
        given = whole_part(event.get("part"), self._usual_part(event, family))
        if given is None:
            return
        if (kind := given["type"]) not in STREAMED_PARTS:
            self._bystander(ladder, events, event)
            return
        item = self._item_of(ladder, events, event, ITEM_OF[kind])
        if item.done is None and item.part(kind, _index(event, family)) is None:
            part = self._add_part(ladder, events, item, given, event)
            where = {**item.where, _index_key(part): part.index}
            logprobs: list[object] | None = [] if kind == "output_text" else None
            self._let_flow(ladder, f"{STREAMED_PARTS[kind][0]}.delta", event, where, part.fragments, logprobs)

    def _end_of_part(self, ladder: Ladder, events: list[Event], event: Event, family: str) -> None:
        given = whole_part(event.get("part"), self._usual_part(event, family))
        kind = given["type"] if given else ""
        if given is None or kind not in STREAMED_PARTS:
            self._bystander(ladder, events, event)
            return
        item = self._item_of(ladder, events, event, ITEM_OF[kind])
        if item.done is None:
            self._end_part(ladder, events, item, self._part_of(ladder, events, item, event, kind), given, event)

    def _begin_item(self, ladder: Ladder, events: list[Event], event: Event) -> None:
        given = whole_item(event.get("item"), "in_progress")
        if given is None:
            return
        if given["type"] == "message":
            given = {**given, "role": "assistant"}  # Who else would answer?
        known = self._known({"item_id": given["id"], "output_index": event.get("output_index")}, given["type"])
        if (
            known is not None and known.output_index < 0 and given.get("name")
        ):  # What it is came behind its first arguments.
            known.item = {**given, "id": known.item["id"]}
            self._add_item(ladder, events, known, event)
        elif known is None or known.done is not None or given["id"] not in known.names:
            item = self._new(given, _int(event.get("output_index")))
            if given.get("name", "a name"):
                self._add_item(ladder, events, item, event)

    def _end_of_item(self, ladder: Ladder, events: list[Event], event: Event) -> None:
        given = whole_item(event.get("item"), "completed")
        if given is None:
            return
        about = {"item_id": given["id"], "output_index": event.get("output_index")}
        item = self._known(about, given["type"])
        if item is None or (item.done is not None and given["id"] not in item.names):
            item = self._new(given, _int(event.get("output_index")))
        if item.done is None:
            self._end_item(ladder, events, item, given, event)

    def _bystander(self, ladder: Ladder, events: list[Event], event: Event) -> None:
        """An event that adds nothing to what is put together here: of a hosted tool, or one that nobody knows."""
        item = self._known(event, None) if "item_id" in event or "output_index" in event else None
        where = {} if item is None else {key: value for key, value in item.where.items() if key in event}
        if event["type"] == "response.output_text.annotation.added" and item is not None and item.done is None:
            part = item.part("output_text", _int(event.get("content_index")))
            if part is None or not isinstance(event.get("annotation"), dict):
                return
            where |= {**item.where, "content_index": part.index, "annotation_index": len(part.annotations)}
            part.annotations.append(event["annotation"])
        events.append(_emitted(ladder, event, where))
        if event["type"].endswith(".delta"):
            at = {key: event[key] for key in PLACE if key in event}
            if all(isinstance(value, str | int) for value in at.values()):
                self._let_flow(ladder, event["type"], event, at | where, NOWHERE, event.get("logprobs"))

    # ── what an event is about ───────────────────────────────────────────────────────────────────────────────────────

    def _item_of(self, ladder: Ladder, events: list[Event], event: Event, kind: str) -> NativeItem:
        """The item that an event belongs to; a new one, if that was never added. A call without a name waits for it."""
        item = self._known(event, kind)
        if item is None or (
            item.done is not None and isinstance(id := event.get("item_id"), str) and id not in item.names
        ):
            given = whole_item({"type": kind, "id": event.get("item_id")}, "in_progress")
            assert given is not None
            item = self._new(given, _int(event.get("output_index")))
            if kind not in STREAMED_CALLS:
                self._add_item(ladder, events, item)
        return item

    def _known(self, event: Event, kind: str | None) -> NativeItem | None:
        """The item of that kind that an event names: by its id and its index, by one of them, or because it is the last
        that is open. Some servers count nothing, some count from zero in every item, and some have another id in every
        event."""
        id, last = event.get("item_id"), self.last
        if (
            last is not None
            and last.item["id"] == id
            and last.index == event.get("output_index")
            and kind in (None, last.kind)
        ):
            return last
        index = _int(event.get("output_index"))
        items = [item for item in reversed(self.items) if kind is None or item.kind == kind]
        named = [item for item in items if isinstance(id, str) and id in item.names]
        counted = [item for item in items if index is not None and item.index == index]
        for item in (*(item for item in named if item in counted), *named, *counted):
            return item
        return None if index is not None else next((item for item in items if item.done is None), None)

    def _part_of(self, ladder: Ladder, events: list[Event], item: NativeItem, event: Event, kind: str) -> NativePart:
        part = item.part(kind, _index(event, "summary" if kind == "summary_text" else "content"))
        return part or self._add_part(ladder, events, item, empty_part(kind))

    def _usual_part(self, event: Event, family: str) -> str:
        """The kind of a part that names none."""
        if family == "summary":
            return "summary_text"
        item = self._known(event, None)
        return "reasoning_text" if item is not None and item.kind == "reasoning" else "output_text"

    def _new(self, given: Item, index: int | None) -> NativeItem:
        """An item that begins. Its id may be another's already, at servers that number their items anew in every
        event."""
        if len(self.items) >= MOST_ITEMS:
            raise too_many_items()
        item = NativeItem(given, index)
        if any(given["id"] in other.names for other in self.items):
            item.item = {**given, "id": new_id(ID_PREFIXES.get(item.kind, "item"))}
            item.names.add(item.item["id"])
        self.items.append(item)
        self.last = item
        return item

    # ── what begins and ends ─────────────────────────────────────────────────────────────────────────────────────────

    def _add_item(self, ladder: Ladder, events: list[Event], item: NativeItem, event: Event | None = None) -> None:
        item.output_index = ladder.add()
        event = event or {"type": "response.output_item.added"}
        events.append(_emitted(ladder, event, {"output_index": item.output_index, "item": begun(item.item)}))
        if item.kind in STREAMED_CALLS and item.names == {item.item["id"]}:
            name = f"{STREAMED_CALLS[item.kind][0]}.delta"
            about = {**event, "item_id": item.item["id"]}
            self._let_flow(ladder, name, about, item.where, item.arguments.fragments, None)
        if text := item.arguments.text:
            events.append(ladder.event(f"{STREAMED_CALLS[item.kind][0]}.delta", **item.where, delta=text))

    def _add_part(
        self, ladder: Ladder, events: list[Event], item: NativeItem, given: Part, event: Event | None = None
    ) -> NativePart:
        kind = given["type"]
        if len(item.parts) >= MOST_ITEMS:
            raise too_many_items("parts")
        family = item.of_family("summary" if kind == "summary_text" else "content")
        part = NativePart(kind, len(family), given)
        item.parts.append(part)
        name, place = SUMMARY if kind == "summary_text" else CONTENT
        # What its server names at the beginning comes at the end, or in events of its own.
        is_empty = not any(given.get(key) for key in (STREAMED_PARTS[kind][1], "annotations", "logprobs"))
        added = given if is_empty else {**given, **empty_part(kind)}
        where = {**item.where, place: part.index, "part": added}
        events.append(_emitted(ladder, event or {"type": f"{name}.added"}, where))
        return part

    def _end_text(
        self,
        ladder: Ladder,
        events: list[Event],
        item: NativeItem,
        part: NativePart,
        given: Part,
        event: Event | None = None,
    ) -> None:
        """The text of a part is whole, as far as its server gives more than it has streamed. `given` is what it gives
        at the end."""
        if part.has_ended:
            return
        part.has_ended = True
        self.flows.clear()
        name, key = STREAMED_PARTS[part.kind]
        where = {**item.where, _index_key(part): part.index}
        rest = part.rest(given.get(key) or part.part.get(key))
        late = part.late_logprobs(given) if part.kind == "output_text" else []
        logprobs: dict[str, list[object]] = {"logprobs": late} if part.kind == "output_text" else {}
        if rest or late:
            part.fragments.append(rest)
            events.append(ladder.event(f"{name}.delta", **where, delta=rest, **logprobs))
        self._annotate(ladder, events, item, part, given)
        if logprobs:
            part.logprobs += late
            logprobs = {"logprobs": part.logprobs}
        events.append(_emitted(ladder, event or {"type": f"{name}.done"}, {**where, key: part.text, **logprobs}))

    def _annotate(self, ladder: Ladder, events: list[Event], item: NativeItem, part: NativePart, given: Part) -> None:
        """Streams the annotations of a part that its server names only in its whole."""
        if part.kind != "output_text":
            return
        noted: list[object] = given.get("annotations") or part.part.get("annotations") or []
        for index in range(len(part.annotations), len(noted)):
            part.annotations.append(noted[index])
            where = {**item.where, "content_index": part.index, "annotation_index": index}
            events.append(ladder.event("response.output_text.annotation.added", **where, annotation=noted[index]))

    def _end_part(
        self,
        ladder: Ladder,
        events: list[Event],
        item: NativeItem,
        part: NativePart,
        given: Part | None,
        event: Event | None = None,
    ) -> None:
        if part.done is not None:
            return
        self._end_text(ladder, events, item, part, given or {})
        self._annotate(ladder, events, item, part, given or {})
        part.done = part.whole(given)
        name, key = SUMMARY if part.kind == "summary_text" else CONTENT
        where = {**item.where, key: part.index, "part": part.done}
        events.append(_emitted(ladder, event or {"type": f"{name}.done"}, where))

    def _end_arguments(
        self, ladder: Ladder, events: list[Event], item: NativeItem, whole: object, event: Event | None = None
    ) -> None:
        text = item.arguments
        if text.has_ended or item.output_index < 0:
            if not text.fragments and isinstance(whole, str) and whole:
                text.fragments.append(whole)
            return
        text.has_ended = True
        self.flows.clear()
        name, key = STREAMED_CALLS[item.kind]
        if rest := text.rest(whole):
            text.fragments.append(rest)
            events.append(ladder.event(f"{name}.delta", **item.where, delta=rest))
        events.append(_emitted(ladder, event or {"type": f"{name}.done"}, {**item.where, key: text.text}))

    def _end_item(
        self, ladder: Ladder, events: list[Event], item: NativeItem, given: Item, event: Event | None = None
    ) -> None:
        """The item is whole: what was streamed of it, and what its server gives besides."""
        if not given.get("name", "a name") and not item.item.get("name"):
            return  # No client could run it.
        if item.output_index < 0:
            item.item = {**given, "id": item.item["id"]}
            self._add_item(ladder, events, item)
        done: Item = {**item.item, **given, **{key: item.item[key] for key in LASTING if key in item.item}}
        if done.get("status") == "in_progress":
            done["status"] = "completed"
        for family in ("summary", "content"):
            whole = done.get(family) or []
            streamed = item.of_family(family)
            for place, part in enumerate(streamed):
                same = whole[place] if place < len(whole) and whole[place].get("type") == part.kind else None
                self._end_part(ladder, events, item, part, same)
            added = whole[len(streamed) :]
            for place, part in enumerate(added, len(streamed)):
                if family == "summary":
                    events += summary_events(ladder, {**item.where, "summary_index": place}, part)
                else:
                    events += part_events(ladder, {**item.where, "content_index": place}, part)
            if streamed or added:
                done[family] = [*(part.done for part in streamed), *added]
        if item.kind in STREAMED_CALLS:
            key = STREAMED_CALLS[item.kind][1]
            self._end_arguments(ladder, events, item, given.get(key))
            done[key] = item.arguments.text
        item.done = done
        ladder.keep(item.output_index, done)
        where = {"output_index": item.output_index, "item": done}
        events.append(_emitted(ladder, event or {"type": "response.output_item.done"}, where))

    # ── the end ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def stop(self, ladder: Ladder) -> None:
        """The answer broke off, or failed: nothing that is open closes, so that no client runs half a call."""
        for item in self.items:
            if item.done is None and item.has_grown:
                ladder.keep(item.output_index, item.partial())

    def finish(self, ladder: Ladder, events: list[Event], output: list[Item], status: str) -> None:
        """Streams what never was, and closes what is open, unless the response has failed. What was streamed is kept,
        unless the server's own `output` holds more."""
        if self.held and status not in ("failed", "cancelled"):
            self._release_all(ladder, events, output, status)
        if [item.done for item in self.items] == output:
            return  # As it should be.
        matches = self._matched(output)
        has_failed = status in ("failed", "cancelled")
        if has_failed:
            self.stop(ladder)
        for item in self.items:
            if item.done is None and not has_failed:
                listed = next((given for given, known in matches if known is item), None)
                if item.output_index < 0 and listed is None:
                    continue  # Nobody knows what it was.
                self._end_item(ladder, events, item, listed or _ended(item, status))
        for given, known in matches:
            if known is None:
                put_in(ladder, events, given)
            elif known.done is not None:
                ladder.keep(known.output_index, _fuller(known.done, given))

    def _matched(self, output: list[Item]) -> list[tuple[Item, NativeItem | None]]:
        """Each item of an output, and what was streamed of it: by their ids, else by their kinds, in order."""
        left = list(self.items)
        found: dict[int, NativeItem] = {}
        for by_id in (True, False):
            for place, given in enumerate(output):
                for item in left if place not in found else ():
                    if item.kind == given["type"] and (not by_id or given["id"] in item.names):
                        found[place] = item
                        left.remove(item)
                        break
        return [(given, found.get(place)) for place, given in enumerate(output)]


def _ended(item: NativeItem, status: str) -> Item:
    """An item that its server has not ended, as it stands."""
    return {**item.item, **({"status": status} if "status" in item.item else {})}


def put_in(ladder: Ladder, events: list[Event], item: Item) -> None:
    """An item that was never streamed."""
    output_index = ladder.add()
    ladder.keep(output_index, item)
    if ladder.emission.makes_events:
        events += [*item_events(ladder, item, output_index), ladder.done(output_index, item)]


TEXTS = frozenset({"text", "refusal", *(key for _, key in STREAMED_CALLS.values())})
# What of an item is the same from its beginning to its end.
LASTING = ("id", "call_id", "name", "namespace", "role")
# What the deltas of one thing have, and those of another do not.
PLACE = ("item_id", "output_index", "content_index", "summary_index")


def _emitted(ladder: Ladder, event: Event, changes: Json) -> Event:
    """An event with what is ours."""
    return {**event, **changes, "sequence_number": ladder.number()}


def _fuller(streamed: object, listed: object, key: str = "") -> Any:
    """What a client has seen of an item, and what its server gives besides at the end: where the one is empty, or goes
    on."""
    if streamed == listed:
        return streamed
    if isinstance(streamed, dict) and isinstance(listed, dict):
        return {**listed, **{key: _fuller(value, listed.get(key), key) for key, value in streamed.items()}}
    if isinstance(streamed, list) and isinstance(listed, list):
        both = [_fuller(one, other) for one, other in zip(streamed, listed, strict=False)]
        return [*both, *streamed[len(both) :], *listed[len(both) :]]
    if isinstance(streamed, str) and isinstance(listed, str):
        return listed if not streamed or (key in TEXTS and listed.startswith(streamed)) else streamed
    return listed if streamed is None and listed is not None else streamed


def _index_key(part: NativePart) -> str:
    return SUMMARY[1] if part.kind == "summary_text" else CONTENT[1]


def _index(event: Event, family: str) -> int | None:
    return _int(event.get("summary_index" if family == "summary" else "content_index"))


def _int(value: object) -> int | None:
    """An index, however it is spelled."""
    if isinstance(value, str) and value.isdecimal() and len(value) < 10:
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
