"""The events of a server that does all as it should: they go on as they came, read no further than to see that.

    goes_on(items, ladder, type, data)   whether an event is whole, comes next, and holds what was streamed

To put an event together anew takes longer than all the rest. What is not as it should be is for `NativeItems.adopt`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

import msgspec

from core.json import Json
from requests.native import ITEM_OF, NativeItems
from requests.native_growing import Flow, NativeItem, NativePart
from requests.native_shapes import NotNull, OneItem, OnePart, Text, is_whole
from requests.open_items import CONTENT, MOST_ITEMS, STREAMED_CALLS, STREAMED_PARTS, SUMMARY, Ladder

Nothing = Annotated[list[Any], msgspec.Meta(max_length=0)]
Begun = Literal["in_progress"]


class BegunMessage(NotNull, tag="message", kw_only=True):
    id: Text
    status: Begun
    role: Literal["assistant"]
    content: Nothing
    phase: Text | msgspec.UnsetType = msgspec.UNSET


class BegunReasoning(NotNull, tag="reasoning", kw_only=True):
    id: Text
    summary: Nothing
    content: Nothing | msgspec.UnsetType = msgspec.UNSET
    encrypted_content: str | msgspec.UnsetType = msgspec.UNSET
    status: Begun | msgspec.UnsetType = msgspec.UNSET


class BegunCall(NotNull, tag="function_call", kw_only=True):
    id: Text
    call_id: Text
    name: Text
    arguments: Literal[""]
    status: Begun


class BegunText(NotNull, tag="output_text", kw_only=True):
    text: Literal[""]
    annotations: Nothing
    logprobs: Nothing


class BegunRefusal(NotNull, tag="refusal", kw_only=True):
    refusal: Literal[""]


class BegunThought(NotNull, tag="reasoning_text", kw_only=True):
    text: Literal[""]


class BegunSummary(NotNull, tag="summary_text", kw_only=True):
    text: Literal[""]


class BegunItem(msgspec.Struct):
    value: BegunMessage | BegunReasoning | BegunCall


class BegunPart(msgspec.Struct):
    value: BegunText | BegunRefusal | BegunThought | BegunSummary


class Step(msgspec.Struct):
    """What is read of an event that is no delta."""

    output_index: int
    item_id: str = ""
    content_index: int | None = None
    summary_index: int | None = None
    item: Json = {}
    part: Json = {}
    text: str | None = None
    refusal: str | None = None
    arguments: str | None = None
    logprobs: list[Any] | None = None


_step = msgspec.json.Decoder(Step).decode


def goes_on(items: NativeItems, ladder: Ladder, type: str, data: bytes) -> bool:
    """Whether an event of one of the types of `STEPS` may go on as it came; then it is noted. Nothing has happened
    where it may not."""
    try:
        step = _step(data)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return False
    return STEPS[type](items, ladder, step)


def _item_begins(items: NativeItems, ladder: Ladder, step: Step) -> bool:
    item = step.item
    if step.output_index != len(items.items) or not is_whole(item, BegunItem):
        return False
    if any(item["id"] in other.names for other in items.items):
        return False
    if item["type"] in STREAMED_CALLS and items.items and items.open_call is not None:
        return False
    items.last = begun = NativeItem(item, step.output_index)
    items.items.append(begun)
    begun.output_index = ladder.add()
    if item["type"] == "function_call":
        place = (f"{STREAMED_CALLS['function_call'][0]}.delta", item["id"], step.output_index, None, None)
        items.flows[place] = Flow(place[0], begun.arguments.fragments, None)
    return True


def _part_begins(items: NativeItems, ladder: Ladder, step: Step) -> bool:
    item = _open_item(items, step)
    if item is None or len(item.parts) >= MOST_ITEMS or not is_whole(step.part, BegunPart):
        return False
    if step.part.get("annotations") or step.part.get("logprobs"):  # Of a part that begins, nothing is there yet.
        return False
    kind = step.part["type"]
    is_summary = kind == "summary_text"
    index = len(item.parts)
    if ITEM_OF[kind] != item.kind or (step.summary_index if is_summary else step.content_index) != index:
        return False
    if index and (item.parts[-1].done is None or item.parts[-1].family != ("summary" if is_summary else "content")):
        return False
    part = NativePart(kind, index, step.part)
    item.parts.append(part)
    place = (
        f"{STREAMED_PARTS[kind][0]}.delta",
        step.item_id,
        step.output_index,
        step.content_index,
        step.summary_index,
    )
    items.flows[place] = Flow(place[0], part.fragments, [] if kind == "output_text" else None)
    return True


def _text_ends(items: NativeItems, ladder: Ladder, step: Step) -> bool:
    part = _open_part(items, step)
    if part is None or part.has_ended or part.is_cut or (step.logprobs is None) is (part.kind == "output_text"):
        return False
    if (step.refusal if part.kind == "refusal" else step.text) != part.text:
        return False
    if (step.logprobs or []) != part.logprobs:
        return False
    part.has_ended = True
    items.flows.clear()
    return True


def _part_ends(items: NativeItems, ladder: Ladder, step: Step) -> bool:
    part = _open_part(items, step)
    if part is None or not part.has_ended or part.annotations or not is_whole(step.part, OnePart):
        return False
    if step.part["type"] != part.kind or step.part[STREAMED_PARTS[part.kind][1]] != part.text:
        return False
    if (step.part.get("logprobs") or []) != part.logprobs or step.part.get("annotations"):
        return False
    part.done = step.part
    return True


def _arguments_end(items: NativeItems, ladder: Ladder, step: Step) -> bool:
    item = _open_item(items, step)
    if item is None or item.arguments.has_ended or item.arguments.is_cut or step.arguments != item.arguments.text:
        return False
    item.arguments.has_ended = True
    items.flows.clear()
    return True


def _item_ends(items: NativeItems, ladder: Ladder, step: Step) -> bool:
    done, item = step.item, items.last
    if (
        item is None
        or items.held
        or item.done is not None
        or item.output_index != step.output_index
        or item.item["id"] != done.get("id")
    ):
        return False
    if not is_whole(done, OneItem) or done["type"] != item.kind or done.get("status") == "in_progress":
        return False
    if item.kind == "function_call":
        if not item.arguments.has_ended or done["arguments"] != item.arguments.text:
            return False
        if done["call_id"] != item.item["call_id"] or done["name"] != item.item["name"]:
            return False
    elif done.get("role") != item.item.get("role") or [*done.get("summary", ()), *done.get("content", ())] != [
        part.done for part in item.parts
    ]:
        return False
    item.done = done
    ladder.keep(step.output_index, done)
    return True


def _open_item(items: NativeItems, step: Step) -> NativeItem | None:
    """The item that began last, if it is that of an event."""
    item = items.last
    if (
        item is None
        or item.done is not None
        or item.output_index != step.output_index
        or item.item["id"] != step.item_id
    ):
        return None
    return item


def _open_part(items: NativeItems, step: Step) -> NativePart | None:
    """The part that began last, if it is that of an event."""
    item = _open_item(items, step)
    if item is None or not item.parts:
        return None
    part = item.parts[-1]
    index = step.summary_index if part.kind == "summary_text" else step.content_index
    return part if part.done is None and index == part.index else None


STEPS: dict[str, Callable[[NativeItems, Ladder, Step], bool]] = {
    "response.output_item.added": _item_begins,
    "response.output_item.done": _item_ends,
    f"{CONTENT[0]}.added": _part_begins,
    f"{SUMMARY[0]}.added": _part_begins,
    f"{CONTENT[0]}.done": _part_ends,
    f"{SUMMARY[0]}.done": _part_ends,
    **{f"{name}.done": _text_ends for name, _ in STREAMED_PARTS.values()},
    f"{STREAMED_CALLS['function_call'][0]}.done": _arguments_end,
}
