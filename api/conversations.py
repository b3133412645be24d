"""/v1/conversations: items that are kept in one order, for turns that are given them as their history
(`conversation` of POST /v1/responses) and add what they were asked and have answered when they end."""

from __future__ import annotations

import time
from functools import partial
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from fastapi import Query, Request
from starlette.responses import Response

from api.http.bodies import read_body
from api.http.keys import principal_of
from api.http.replies import json_response
from api.http.routes import Routes, takes
from api.includes import ignored_includes, included
from api.turns.history import conversation_not_found, resolve_references, stored_items
from core.errors import InvalidRequest, NotFound
from core.json import Json
from core.schemas import schema_of
from core.state import AppState
from requests.bounded_json import decode_bounded
from requests.credentials import shown_item
from requests.included import without_unasked
from requests.items import check_item, input_items
from requests.kept import kept_items
from requests.params import check_counts, check_metadata, invalid_field
from requests.responses import new_id
from requests.tools import Item

routes = Routes(prefix="/v1/conversations", tags=["conversations"])

P = TypeVar("P", bound=msgspec.Struct)


class ConversationParams(msgspec.Struct):
    """The body that makes a conversation, or changes it."""

    items: list[dict[str, Any]] | None = None
    metadata: dict[str, str] | None = None


class ItemsParams(msgspec.Struct):
    """The body that adds items."""

    items: list[dict[str, Any]]


class MetadataParams(msgspec.Struct):
    """The body that changes a conversation."""

    metadata: dict[str, str] | None


@routes.post("", **takes(schema_of(ConversationParams), required=False))
async def create_conversation(request: Request) -> Response:
    """Makes a conversation. Body: `items` that it begins with, as the input of a response has them, and `metadata`.
    Answers `{id, object, created_at, metadata}`. 400 that names the parameter."""
    state: AppState = request.app.state
    params, owner = await _params(request, ConversationParams), principal_of(request).owner
    items = await _kept(state, params.items or [], owner)
    metadata = _metadata(params.metadata)
    conversation_id, created_at = new_id("conv"), int(time.time())
    await state.db.store_conversation(
        conversation_id, created_at=created_at, metadata=metadata, items=items, owner=owner
    )
    return json_response(_shown({"id": conversation_id, "created_at": created_at, "metadata": metadata}))


@routes.get("/{conversation_id}")
async def retrieve_conversation(request: Request, conversation_id: str) -> Response:
    """A conversation, without its items. 404 if there is none."""
    return await _answer(request, conversation_id)


@routes.post("/{conversation_id}", **takes(schema_of(MetadataParams)))
async def update_conversation(request: Request, conversation_id: str) -> Response:
    """Gives a conversation other `metadata`, in place of all that it had. 404 if there is none."""
    state: AppState = request.app.state
    params = await _params(request, MetadataParams)
    metadata, owner = _metadata(params.metadata), principal_of(request).owner
    if not await state.db.update_conversation(conversation_id, metadata, owner=owner):
        raise conversation_not_found(conversation_id, "conversation_id")
    return await _answer(request, conversation_id)


@routes.delete("/{conversation_id}")
async def delete_conversation(request: Request, conversation_id: str) -> Response:
    """Deletes a conversation and its items. Responses that are turns of it stay, and what runs goes on. 404 if there is
    none."""
    state: AppState = request.app.state
    if not await state.db.delete_conversation(conversation_id, owner=principal_of(request).owner):
        raise conversation_not_found(conversation_id, "conversation_id")
    return json_response({"id": conversation_id, "object": "conversation.deleted", "deleted": True})


@routes.post("/{conversation_id}/items", **takes(schema_of(ItemsParams)))
async def create_items(request: Request, conversation_id: str) -> Response:
    """Adds `items` to the end of a conversation, all or none, and answers the list of them. An id that the conversation
    has already becomes a new one. 400 that names the item, 404 if there is no such conversation."""
    state: AppState = request.app.state
    params, owner = await _params(request, ItemsParams), principal_of(request).owner
    if not params.items:
        raise InvalidRequest("There are no items to add.", param="items", code="invalid_value")
    items = await _kept(state, params.items, owner, conversation_id)
    added = await state.db.append_items(conversation_id, items, owner=owner)
    if added is None:
        raise conversation_not_found(conversation_id, "conversation_id")
    return _list_of(request, added, has_more=False)


@routes.get("/{conversation_id}/items")
async def list_items(
    request: Request,
    conversation_id: str,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
) -> Response:
    """The items of a conversation: `limit` of them behind the item `after`. What `include` does not ask for is left
    out. 404 if there is no such conversation, 400 if `after` is none of its items."""
    state: AppState = request.app.state
    owner = principal_of(request).owner
    page = await state.db.list_conversation_items(conversation_id, after=after, limit=limit, order=order, owner=owner)
    if page is None:
        raise conversation_not_found(conversation_id, "conversation_id")
    if not page.knows_after:
        raise InvalidRequest(f"No item of the conversation has the id '{after}'.", param="after")
    return _list_of(request, page.items, has_more=page.has_more)


@routes.get("/{conversation_id}/items/{item_id}")
async def retrieve_item(request: Request, conversation_id: str, item_id: str) -> Response:
    """An item of a conversation, without what `include` does not ask for. 404 if there is none."""
    state: AppState = request.app.state
    owner = principal_of(request).owner
    found = await state.db.get_conversation_items(conversation_id, [item_id], owner=owner)
    if not found:
        raise await _no_item(state, conversation_id, item_id, owner)
    include = included(request)
    (item,) = _shown_items(state, [*found.values()], include, owner)
    return json_response(item, headers=ignored_includes(include))


@routes.delete("/{conversation_id}/items/{item_id}")
async def delete_item(request: Request, conversation_id: str, item_id: str) -> Response:
    """Deletes an item of a conversation, and answers the conversation. Responses that it came with keep it. 404 if
    there is none."""
    state: AppState = request.app.state
    owner = principal_of(request).owner
    if not await state.db.delete_conversation_item(conversation_id, item_id, owner=owner):
        raise await _no_item(state, conversation_id, item_id, owner)
    return await _answer(request, conversation_id)


async def _params(request: Request, kind: type[P]) -> P:
    """The body, checked. There may be none."""
    given = await read_body(request)
    body = decode_bounded(given, max_items=request.app.state.config.max_items) if given.strip() else {}
    if not isinstance(body, dict):
        raise InvalidRequest("The body must be a JSON object.")
    try:
        return msgspec.convert(body, kind)
    except msgspec.ValidationError as error:
        raise invalid_field(error) from None


def _metadata(given: dict[str, str] | None) -> dict[str, str]:
    check_metadata(given or {})
    return given or {}


async def _kept(state: AppState, given: list[Item], owner: str, conversation_id: str | None = None) -> list[Item]:
    """Items as a conversation keeps them: each whole, with an id, and no credential in the open. Raises
    `InvalidRequest`."""
    try:
        check_counts({"input": given}, max_items=state.config.max_items, max_tools=state.config.max_tools)
        for index, item in enumerate(given):
            check_item(item, f"input[{index}]")
        items = await resolve_references(state, input_items(given), owner, conversation_id)
    except InvalidRequest as error:
        # Of a request for a response, these are its input.
        error.param = error.param and error.param.replace("input", "items", 1)
        raise
    return kept_items(items, partial(state.sealer.of(owner).seal, purpose="request"))


async def _answer(request: Request, conversation_id: str) -> Response:
    state: AppState = request.app.state
    conversation = await state.db.get_conversation(conversation_id, owner=principal_of(request).owner)
    if conversation is None:
        raise conversation_not_found(conversation_id, "conversation_id")
    return json_response(_shown(conversation))


def _shown(conversation: Any) -> Json:
    """A conversation as clients see it."""
    shown = {key: conversation[key] for key in ("id", "created_at", "metadata")}
    return {"object": "conversation", **shown}


def _list_of(request: Request, items: list[Item], *, has_more: bool) -> Response:
    state, include = request.app.state, included(request)
    data = _shown_items(state, items, include, principal_of(request).owner)
    return json_response(
        {
            "object": "list",
            "data": data,
            "first_id": data[0]["id"] if data else "",
            "last_id": data[-1]["id"] if data else "",
            "has_more": has_more,
        },
        headers=ignored_includes(include),
    )


def _shown_items(state: AppState, items: list[Item], include: set[str], owner: str) -> list[Item]:
    given = stored_items(state.sealer.of(owner), items)
    return [without_unasked(shown_item(item), include) for item in given]


async def _no_item(state: AppState, conversation_id: str, item_id: str, owner: str) -> NotFound:
    if await state.db.get_conversation(conversation_id, owner=owner) is None:
        return conversation_not_found(conversation_id, "conversation_id")
    return NotFound(f"Item with id '{item_id}' not found.", param="item_id")
