"""What is kept, for the live page: /api/page/responses, /api/page/conversations and /api/page/background.

Whoever runs the router sees that there is something, of whichever owner, and may cancel it. What is in it they see of
their own, and of others where `page.content` allows that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from fastapi import Query, Request
from starlette.responses import Response

from api.http.keys import principal_of
from api.http.replies import json_response
from api.http.routes import MOST_NUMBER, Routes
from api.stored import cancelled_for
from api.turns.history import stored_items
from core.errors import NotFound
from core.json import Json
from core.state import AppState
from requests.credentials import shown_item
from requests.hidden import drop

routes = Routes(prefix="/api/page", tags=["page"], for_admins=True)

Before = Annotated[int | None, Query(ge=0, le=MOST_NUMBER)]
Limit = Annotated[int, Query(ge=1, le=200)]
# So many background turns are listed, and so many items of a conversation.
MOST_AT_WORK = 200
MOST_ITEMS = 500


@routes.get("/responses", include_in_schema=False)
async def list_responses(request: Request, before: Before = None, limit: Limit = 50) -> Response:
    """Responses of all owners, the newest first, `limit` of them behind the one with the number `before`."""
    state: AppState = request.app.state
    rows = await state.db.list_responses(before=before, limit=limit + 1, owner=None)
    return json_response({"data": rows[:limit], "has_more": len(rows) > limit})


@routes.get("/conversations", include_in_schema=False)
async def list_conversations(request: Request, before: Before = None, limit: Limit = 50) -> Response:
    """Conversations of all owners, as `list_responses` lists."""
    state: AppState = request.app.state
    rows = await state.db.list_conversations(before=before, limit=limit + 1, owner=None)
    return json_response({"data": rows[:limit], "has_more": len(rows) > limit})


@routes.get("/background", include_in_schema=False)
async def list_background(request: Request) -> Response:
    """The turns of all owners that wait or run in the background, the newest first."""
    state: AppState = request.app.state
    return json_response({"data": await state.db.list_responses(limit=MOST_AT_WORK, owner=None, at_work=True)})


@routes.get("/responses/{response_id}", include_in_schema=False)
async def show_response(request: Request, response_id: str, owner: str = "") -> Response:
    """What a response of an owner is; under `content` what is in it, or under `why` why that is not shown. 404 if there
    is none."""
    state: AppState = request.app.state
    row = await state.db.get_response(response_id, owner=owner)
    if row is None:
        raise NotFound(f"Response with id '{response_id}' not found.", param="response_id")
    response = row["response"] or {}
    error = response.get("error")
    found: Json = {
        **{name: row[name] for name in ("id", "owner", "model", "status", "created_at")},
        "previous_response_id": row["previous_response_id"],
        "conversation": row["conversation"],
        "usage": response.get("usage"),
        "error": error.get("code") if isinstance(error, dict) else None,
    }

    def content() -> Json:
        items = stored_items(state.sealer.of(owner), row["input"])
        shown = drop(response)
        return {"input": [shown_item(item) for item in items], "output": shown.get("output") or [], "response": shown}

    return json_response(found | _shown(request, owner, content))


@routes.get("/conversations/{conversation_id}", include_in_schema=False)
async def show_conversation(request: Request, conversation_id: str, owner: str = "") -> Response:
    """The same of a conversation; of its items the last ones."""
    state: AppState = request.app.state
    conversation = await state.db.get_conversation(conversation_id, owner=owner)
    if conversation is None:
        raise NotFound(f"Conversation with id '{conversation_id}' not found.", param="conversation_id")
    found: Json = {name: conversation[name] for name in ("id", "owner", "created_at")}
    page = await state.db.list_conversation_items(conversation_id, limit=MOST_ITEMS, order="desc", owner=owner)

    def content() -> Json:
        items = stored_items(state.sealer.of(owner), list(reversed(page.items)) if page else [])
        shown = [shown_item(item) for item in items]
        return {"input": shown, "output": [], "metadata": conversation["metadata"]}

    return json_response(found | _shown(request, owner, content))


@routes.post("/responses/{response_id}/cancel", include_in_schema=False)
async def cancel_background(request: Request, response_id: str, owner: str = "") -> Response:
    """Cancels a background turn of an owner, in whichever process it waits or runs. Answers `{id, status}`. 404 if
    there is none, 400 for one that is not in the background."""
    row = await cancelled_for(request.app.state, response_id, owner)
    return json_response({"id": response_id, "status": row["status"]})


def _shown(request: Request, owner: str, content: Callable[[], Json]) -> Json:
    """What is in something of an owner, as far as whoever asks may see it."""
    state: AppState = request.app.state
    if owner == principal_of(request).owner or state.config.page.content:
        return {"content": content()}
    return {"why": "What others have asked and were answered is shown where the settings have `page: {content: true}`."}
