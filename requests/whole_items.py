"""The events of items that come whole: from a finished answer, from the cache, or to be replayed."""

from __future__ import annotations

from core.json import Json
from requests.hosted_calls import HOSTED_CALLS
from requests.open_items import GROWING_CALLS, STREAMED_PARTS, Event, Ladder, empty_part, skeleton, steps_of
from requests.router_tools import ROUTER_CALLS
from requests.tools import Item


def item_events(
    ladder: Ladder, item: Item, output_index: int, *, closes: bool = True, is_running: bool = False
) -> list[Event]:
    """All events of one item; without those of its end, if it never closed, or `is_running` here."""
    events = [ladder.event("response.output_item.added", output_index=output_index, item=skeleton(item))]
    where = {"item_id": item["id"], "output_index": output_index}
    run = ROUTER_CALLS.get(item["type"])
    if run is not None or item["type"] == LIST:
        events.append(ladder.event(f"{run or LIST_EVENTS}.in_progress", **where))
    if item["type"] in GROWING_CALLS:
        events += _arguments(ladder, where, item, closes)
    if closes:
        events += steps_of(ladder, where, item["type"])
    if item["type"] == "compaction":
        events.append(ladder.event("response.compaction.compacting", **where))
    for index, part in enumerate(item.get("summary") or ()):
        events += summary_events(ladder, {**where, "summary_index": index}, part)
    for index, part in enumerate(item.get("content") or ()):
        events += part_events(ladder, {**where, "content_index": index}, part)
    if closes and not is_running and (run is not None or item["type"] == LIST):
        events += end_of_run(ladder, where, item)
    return events


LIST, LIST_EVENTS = "mcp_list_tools", "response.mcp_list_tools"


def end_of_run(ladder: Ladder, where: Json, item: Item) -> list[Event]:
    """How something ended that the router has run; nothing for what was cut off."""
    status = item.get("status")
    if status == "incomplete" or (status == "failed" and item["type"] in HOSTED_CALLS):
        return []
    name = ROUTER_CALLS.get(item["type"], LIST_EVENTS)
    return [ladder.event(f"{name}.{'failed' if item.get('error') else 'completed'}", **where)]


def _arguments(ladder: Ladder, where: Json, item: Item, closes: bool) -> list[Event]:
    name, key = GROWING_CALLS[item["type"]]
    named = {"name": item["name"]} if item["type"] == "function_call" else {}
    text = item.get(key) or ""  # Of code that another server has run there may be none.
    delta = [ladder.event(f"{name}.delta", **where, delta=text)] if text else []
    return [*delta, ladder.event(f"{name}.done", **where, **named, **{key: text})] if closes else delta


def summary_events(ladder: Ladder, where: Json, part: Json) -> list[Event]:
    """All events of one part of a summary."""
    return [
        ladder.event("response.reasoning_summary_part.added", **where, part={**part, "text": ""}),
        ladder.event("response.reasoning_summary_text.delta", **where, delta=part["text"]),
        ladder.event("response.reasoning_summary_text.done", **where, text=part["text"]),
        ladder.event("response.reasoning_summary_part.done", **where, part=part),
    ]


def part_events(ladder: Ladder, where: Json, part: Json) -> list[Event]:
    """All events of one content part. Of a kind that is not streamed there are none."""
    if part["type"] not in STREAMED_PARTS:
        return []
    name, key = STREAMED_PARTS[part["type"]]
    logprobs = {"logprobs": part["logprobs"]} if part["type"] == "output_text" else {}
    events = [ladder.event("response.content_part.added", **where, part=empty_part(part["type"]))]
    if part[key]:
        events.append(ladder.event(f"{name}.delta", **where, delta=part[key], **logprobs))
    for index, annotation in enumerate(part.get("annotations") or ()):
        note = {"annotation_index": index, "annotation": annotation}
        events.append(ladder.event("response.output_text.annotation.added", **where, **note))
    events.append(ladder.event(f"{name}.done", **where, **{key: part[key]}, **logprobs))
    events.append(ladder.event("response.content_part.done", **where, part=part))
    return events
