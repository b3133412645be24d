"""What stays with the stored items, for the turns that go on from them, under keys that no client sees: reasoning that
the backend sealed for us and not for the client, and what a hosted tool has answered, whose item has no place for it.

    hide ──▶ stored ──▶ reveal    to the backend, in the next turn
                   └──▶ drop      to the client
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

Item = dict[str, Any]

SEALED = "encrypted_content"
SEALED_KEY = SEALED.encode()
HIDDEN = "nomyo_encrypted_content"
# A text, or an object with that `text`, in the item of a call of a hosted tool; `kept` in it has by their keys what the
# item shows where `include` asks for it.
OUTPUT = "nomyo_output"


def hide(items: list[Item]) -> list[Item]:
    """The items of an answer, as they are kept: sealed reasoning has its seal under `HIDDEN`."""
    return [
        _renamed(item, SEALED, HIDDEN) if item["type"] == "reasoning" and SEALED in item else item for item in items
    ]


def reveal(items: list[Item]) -> list[Item]:
    """The items that were given to `hide`."""
    if not any(HIDDEN in item for item in items):
        return items
    return [_renamed(item, HIDDEN, SEALED) if HIDDEN in item else item for item in items]


def drop(response: dict[str, Any], include: Collection[str] = ()) -> dict[str, Any]:
    """A response as its client sees it: without what was hidden, but for what `include` asks for."""
    items = response.get("output") or []
    if not any(HIDDEN in item or OUTPUT in item for item in items):
        return response
    if f"reasoning.{SEALED}" in include:
        items = reveal(items)
    return {**response, "output": [without(shown_call(item, include), HIDDEN) for item in items]}


def shown_call(item: Item, include: Collection[str]) -> Item:
    """The item without what a hosted tool has answered, but for what `include` asks for (`TYPE.KEY`)."""
    if OUTPUT not in item:
        return item
    asked = {key: value for key, value in kept_in(item).items() if f"{item['type']}.{key}" in include}
    return showing(without(item, OUTPUT), asked)


def showing(item: Item, values: Mapping[str, Any]) -> Item:
    """The item with more values, each by its key, or by that of an object in it and its key there
    (`action.sources`)."""
    for key, value in values.items():
        holder, _, inner = key.partition(".")
        if not inner:
            item = {**item, key: value}
        elif isinstance(held := item.get(holder), dict):
            item = {**item, holder: {**held, inner: value}}
    return item


def kept_in(item: Item) -> dict[str, Any]:
    """What a call of a hosted tool has kept of its answer, by the keys under which it can be shown."""
    output = item.get(OUTPUT)
    kept = output.get("kept") if isinstance(output, dict) else None
    return kept if isinstance(kept, dict) else {}


def without_outputs(items: list[Item]) -> list[Item]:
    """The items without what hosted tools have answered."""
    return [without(item, OUTPUT) for item in items] if any(OUTPUT in item for item in items) else items


def output_in(item: Item) -> str | None:
    """What a hosted tool has answered to a call, for a model to read. None where the item does not have it."""
    output = item.get(OUTPUT)
    text = output.get("text") if isinstance(output, dict) else output
    return text if isinstance(text, str) else None


def may_show_seal(data: bytes) -> bool:
    """Whether an event may carry a seal: it has the key, or letters that are spelled otherwise."""
    return SEALED_KEY in data or b"\\u" in data


def unsealed(event: dict[str, Any]) -> dict[str, Any]:
    """An event without the seal of reasoning: that of its item, or one that it has by itself."""
    event = without(event, SEALED)
    item = event.get("item")
    if not isinstance(item, dict) or item.get("type") != "reasoning" or SEALED not in item:
        return event
    return {**event, "item": without(item, SEALED)}


def without(item: Item, key: str) -> Item:
    """The item without a key."""
    return {name: value for name, value in item.items() if name != key} if key in item else item


def _renamed(item: Item, old: str, new: str) -> Item:
    return {new if key == old else key: value for key, value in item.items() if key != new}
