"""What a turn builds on: stored items, by reference or as the turns before it, and what we have sealed in them."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from core.errors import InvalidRequest, NotFound
from core.seals import Sealer, is_ours
from core.state import AppState
from requests.hidden import reveal
from requests.items import without_cut_calls
from requests.kept import given_items
from requests.tools import Item

log = logging.getLogger("nomyo.responses")

# The items of which we seal a part.
SEALED = frozenset({"reasoning", "compaction"})


async def resolve_references(
    state: AppState, items: list[Item], owner: str, conversation: str | None = None
) -> list[Item]:
    """The items, and for each reference among them the item that it means: one of a stored response of that owner, or
    of the `conversation`. Raises `InvalidRequest` for one that is not there."""
    meant = [item["id"] for item in items if item["type"] == "item_reference"]
    if not meant:
        return items
    stored = await state.db.get_items(meant, owner=owner)
    if conversation and (others := [item_id for item_id in meant if item_id not in stored]):
        stored |= await state.db.get_conversation_items(conversation, others, owner=owner)
    resolved: list[Item] = []
    for index, item in enumerate(items):
        if item["type"] != "item_reference":
            resolved.append(item)
        elif item["id"] in stored:
            resolved += stored_items(state.sealer.of(owner), [stored[item["id"]]])
        else:
            raise InvalidRequest(f"Item with id '{item['id']}' not found.", param=f"input[{index}].id")
    return resolved


async def resolve_history(
    state: AppState, previous_response_id: str, remembered: Mapping[str, list[Item]], owner: str
) -> list[Item]:
    """The items of all turns before this one, which are that owner's, oldest first. Instructions are not among them:
    each turn gives its own. `remembered` are conversations that the store need not know. Raises `InvalidRequest` where
    there is none to go on with."""
    if (items := remembered.get(previous_response_id)) is not None:
        return without_cut_calls(items)
    history = await state.db.get_history(previous_response_id, owner=owner)
    if history.missing:
        raise InvalidRequest(
            f"Previous response with id '{history.missing}' not found.",
            param="previous_response_id",
            code="previous_response_not_found",
        )
    if history.unfinished:
        raise InvalidRequest(
            f"Response '{previous_response_id}' is still {history.unfinished}: it can be continued when it has ended.",
            param="previous_response_id",
        )
    if history.conversation:
        raise InvalidRequest(
            f"Response '{previous_response_id}' belongs to the conversation '{history.conversation}': go on from that, "
            "by 'conversation'.",
            param="previous_response_id",
        )
    return without_cut_calls(stored_items(state.sealer.of(owner), history.items))


async def resolve_conversation(state: AppState, conversation_id: str, owner: str) -> list[Item]:
    """The items of a conversation of that owner, oldest first. Raises `NotFound`."""
    page = await state.db.list_conversation_items(conversation_id, limit=None, order="asc", owner=owner)
    if page is None:
        raise conversation_not_found(conversation_id, "conversation")
    return without_cut_calls(stored_items(state.sealer.of(owner), page.items))


def conversation_not_found(conversation_id: str, param: str) -> NotFound:
    """The error of an id that no conversation of the owner has."""
    return NotFound(f"Conversation with id '{conversation_id}' not found.", param=param)


def stored_items(sealer: Sealer, items: list[Item]) -> list[Item]:
    """Items of the store, as they were given. Tools that they bring along and that cannot be opened are left out."""

    def open_tool(sealed: str) -> str | None:
        if (tool := sealer.open(sealed, "request")) is None:
            log.warning("a tool of an earlier turn is left out: it was sealed with another key")
        return tool

    return given_items(reveal(items), open_tool)


def opened(sealer: Sealer, items: list[Item], ignored: set[str], where: str = "") -> list[Item]:
    """The items, with what we have sealed in them in the open: for a backend, never for a client or the store.
    `ignored` gets the name of reasoning that cannot be opened. Raises `InvalidRequest` for a compaction of ours that
    cannot: the conversation would be gone. `where` is the parameter that they come by, if it is not the input."""
    return [
        _opened(sealer, item, ignored, where or f"input[{index}].encrypted_content")
        if item["type"] in SEALED and (item.get("encrypted_content") or item["type"] == "compaction")
        else item
        for index, item in enumerate(items)
    ]


def _opened(sealer: Sealer, item: Item, ignored: set[str], where: str) -> Item:
    if item["type"] == "compaction":
        return {**item, "summary": summary_in(sealer, item, where)}
    if item.get("content"):
        return item
    if (text := sealer.open(item["encrypted_content"], "reasoning")) is None:
        ignored.add("input.reasoning")
        return item
    return {**item, "content": [{"type": "reasoning_text", "text": text}]}


def summary_in(sealer: Sealer, item: Item, where: str) -> str | None:
    """The summary in a compaction; None in one that is not ours. Raises `InvalidRequest` for one of ours that cannot be
    opened."""
    sealed = item.get("encrypted_content")
    if (summary := sealer.open(sealed, "compaction")) is None and is_ours(sealed):
        raise InvalidRequest(
            "This compaction cannot be opened: it was sealed with another key, or was changed since.",
            param=where,
            code="invalid_encrypted_content",
        )
    return summary
