"""What of items is shown to those alone who ask for it: `include` of OpenAI's `input_items`."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from requests.hidden import shown_call
from requests.tools import Item


def without_unasked(item: Item, include: Collection[str]) -> Item:
    """The item without what `include` does not ask for, and what no client sees. Whatever a client must find stays as
    null, or as an empty list."""
    item = shown_call(item, include)
    for name, shorten in SHORTENED.get(item.get("type", "message"), ()):
        if name not in include:
            item = shorten(item)
    return item


def _without(item: Item, key: str) -> Item:
    return {name: value for name, value in item.items() if name != key} if key in item else item


def _with_null(item: Item, key: str) -> Item:
    return {**item, key: None} if item.get(key) is not None else item


def _with_parts(item: Item, key: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Item:
    """The item with the parts of a list of it changed."""
    parts = item.get(key)
    if not isinstance(parts, list):
        return item
    return {**item, key: [change(part) if isinstance(part, dict) else part for part in parts]}


def _without_sources(item: Item) -> Item:
    action = item.get("action")
    return {**item, "action": _without(action, "sources")} if isinstance(action, dict) else item


def _without_screenshot(item: Item) -> Item:
    output = item.get("output")
    return {**item, "output": _with_null(output, "image_url")} if isinstance(output, dict) else item


def _image_hidden(part: dict[str, Any]) -> dict[str, Any]:
    return _with_null(part, "image_url") if part.get("type") == "input_image" else part


def _logprobs_hidden(part: dict[str, Any]) -> dict[str, Any]:
    return {**part, "logprobs": []} if part.get("logprobs") else part


SEALED_REASONING = "reasoning.encrypted_content"
# By the type of an item: the value of `include` that asks for something, and the item without it.
SHORTENED: dict[str, list[tuple[str, Callable[[Item], Item]]]] = {
    "message": [
        ("message.input_image.image_url", lambda item: _with_parts(item, "content", _image_hidden)),
        ("message.output_text.logprobs", lambda item: _with_parts(item, "content", _logprobs_hidden)),
    ],
    "reasoning": [(SEALED_REASONING, lambda item: _without(item, "encrypted_content"))],
    "file_search_call": [("file_search_call.results", lambda item: _with_null(item, "results"))],
    "web_search_call": [
        ("web_search_call.action.sources", _without_sources),
        ("web_search_call.results", lambda item: _without(item, "results")),
    ],
    "code_interpreter_call": [("code_interpreter_call.outputs", lambda item: _with_null(item, "outputs"))],
    "computer_call_output": [("computer_call_output.output.image_url", _without_screenshot)],
}
INCLUDABLE = frozenset(name for shortened in SHORTENED.values() for name, _ in shortened)
