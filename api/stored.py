"""/v1/responses/{id}: what was kept of a response, and the ones that still run in the background."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Collection, Mapping
from typing import Annotated, Any, Literal

from fastapi import Query, Request
from starlette.responses import Response

from api.http.event_stream import stream_of
from api.http.keys import principal_of
from api.http.replies import json_response
from api.http.routes import MOST_NUMBER, Routes
from api.includes import ignored_includes, included
from api.peers import answer_of_peer, as_peer, is_from_peer
from api.shared_events import followed, shared_stream
from api.turns.history import stored_items
from core.errors import InvalidRequest, NotFound
from core.state import AppState
from requests.credentials import shown_item
from requests.events import ResponseBuilder, replay, unfinished
from requests.hidden import drop
from requests.included import without_unasked
from requests.open_items import Event
from requests.responses import with_output_text

routes = Routes(prefix="/v1/responses", tags=["responses"])


@routes.get("/{response_id}")
async def retrieve_response(
    request: Request,
    response_id: str,
    stream: bool = False,
    starting_after: Annotated[int, Query(ge=-1, le=MOST_NUMBER)] = -1,
    include_obfuscation: bool = False,
) -> Response:
    """A stored response, as it is now. With `stream=true` its events, from the one after `starting_after`: those of a
    background response as they come, those of a finished one again. `include` may ask for what is kept and not shown:
    the reasoning that its server has sealed, and what came of tools. 404 if there is none."""
    state: AppState = request.app.state
    owner = principal_of(request).owner
    if stream and (job := state.tasks.get(response_id)) and job.owner == owner:
        following = followed(state, job, starting_after)
        return await stream_of(request, following, obfuscate=include_obfuscation, still_here=job.still_here)
    include = included(request)
    row = await _row(state, response_id, owner, include)
    if not stream:
        return json_response(with_output_text(row["response"]), headers=ignored_includes(include))
    runs = row["status"] in UNFINISHED
    events = None if runs else await state.db.get_events(response_id, owner=owner)
    is_made_elsewhere = events is None and row["response"]["background"]
    if is_made_elsewhere and (shared := await shared_stream(state, row, owner, starting_after)):
        return await stream_of(request, shared, obfuscate=include_obfuscation)
    if runs:
        if answer := await answer_of_peer(request):
            return answer
        if is_from_peer(request):
            raise _not_found(response_id)
        raise InvalidRequest("Only a background response can be joined while it runs.", param="stream")
    if events is None:
        builder = ResponseBuilder(unfinished(row["response"]))
        events = [*replay(builder, row["response"]), builder.end()]
    wanted = [event for event in events if event["sequence_number"] > starting_after]
    return await stream_of(request, _one_batch(wanted), obfuscate=include_obfuscation)


@routes.delete("/{response_id}")
async def delete_response(request: Request, response_id: str) -> Response:
    """Deletes a stored response; one that still runs in the background is cancelled first. 404 if there is none."""
    state: AppState = request.app.state
    owner = principal_of(request).owner
    if not await _cancelled(state, response_id, owner):
        row = await state.db.get_response(response_id, owner=owner)
        if row is not None and row["status"] in UNFINISHED:
            if await state.db.ask_to_cancel(response_id, owner=owner):
                await _ended_elsewhere(state, response_id, owner)
            await state.cluster.ask("POST", f"/v1/responses/{response_id}/cancel", as_peer(state, owner))
    if not await state.db.delete_response(response_id, owner=owner):
        raise _not_found(response_id)
    return json_response({"id": response_id, "object": "response.deleted", "deleted": True})


@routes.post("/{response_id}/cancel")
async def cancel_response(request: Request, response_id: str) -> Response:
    """Cancels a background response, also while it is queued: the backend's work is aborted. One that has ended is
    answered as it is. 404 if there is none, 400 for one that is not in the background."""
    state: AppState = request.app.state
    owner = principal_of(request).owner
    row = await _cancelled_here(state, response_id, owner)
    if row["status"] in UNFINISHED:
        # Not here, or no longer.
        if answer := await answer_of_peer(request):
            return answer
        if is_from_peer(request):
            raise _not_found(response_id)
        row = await _cancelled_elsewhere(state, row, owner)
    return json_response(with_output_text(row["response"]))


@routes.get("/{response_id}/input_items")
async def list_input_items(
    request: Request,
    response_id: str,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
) -> Response:
    """What a response was made from: its input, and input and output of the turns before it, `limit` items of it behind
    the item `after`. What `include` does not ask for is left out. 404 if there is no such response, 400 if `after` is
    none of its items."""
    state, owner = request.app.state, principal_of(request).owner
    page = await state.db.list_input_items(response_id, after=after, limit=limit, order=order, owner=owner)
    if page is None:
        raise _not_found(response_id)
    if not page.knows_after:
        raise InvalidRequest(f"No input item has the id '{after}'.", param="after")
    include = included(request)
    given = stored_items(state.sealer.of(owner), page.items)
    items = [without_unasked(shown_item(item), include) for item in given]
    return json_response(
        {
            "object": "list",
            "data": items,
            "first_id": items[0]["id"] if items else None,
            "last_id": items[-1]["id"] if items else None,
            "has_more": page.has_more,
        },
        headers=ignored_includes(include),
    )


UNFINISHED = ("queued", "in_progress")
# How long a process may take to cancel what another one was asked to, and how often it is looked.
CANCEL_S, CANCEL_LOOK_S = 2.0, 0.02


async def cancelled_for(state: AppState, response_id: str, owner: str) -> Mapping[str, Any]:
    """The row of a background response of an owner, cancelled in whichever process it waits or runs, for whoever runs
    the service. Errors: as `cancel_response`."""
    row = await _cancelled_here(state, response_id, owner)
    if row["status"] in UNFINISHED:
        await state.cluster.ask("POST", f"/v1/responses/{response_id}/cancel", as_peer(state, owner))
        row = await _cancelled_elsewhere(state, await _row(state, response_id, owner), owner)
    return row


async def _cancelled_here(state: AppState, response_id: str, owner: str) -> Mapping[str, Any]:
    """The row of a background response, cancelled if this process has it. Raises `InvalidRequest` for one that is not
    in the background."""
    row = await _row(state, response_id, owner)
    if not row["response"]["background"]:
        raise InvalidRequest("Cannot cancel a synchronous response: only those in the background.", param="response_id")
    if row["status"] in UNFINISHED and await _cancelled(state, response_id, owner):
        row = await _row(state, response_id, owner)
    return row


async def _cancelled_elsewhere(state: AppState, row: Mapping[str, Any], owner: str) -> Mapping[str, Any]:
    """The row of a response that no process which was asked has, cancelled where the database leads to it."""
    response_id = row["id"]
    if row["status"] in UNFINISHED and await state.db.ask_to_cancel(response_id, owner=owner):
        row = await _ended_elsewhere(state, response_id, owner)
    if row["status"] == "queued":
        # It waits in no process: the one that would run it again sees that nobody wants it any more.
        await state.db.update_response(response_id, {**row["response"], "status": "cancelled"}, owner=owner)
    return await _row(state, response_id, owner)


async def _row(state: AppState, response_id: str, owner: str, include: Collection[str] = ()) -> Mapping[str, Any]:
    """What is kept of a response (`db.StoredResponse`), the object among it, with what of it `include` asks for."""
    row = await state.db.get_response(response_id, owner=owner)
    if row is None or row["response"] is None:
        raise _not_found(response_id)
    return {**row, "response": drop(row["response"], include)}


async def _cancelled(state: AppState, response_id: str, owner: str) -> bool:
    """Stops a background response that runs here. False if none of that owner's does."""
    job = state.tasks.get(response_id)
    return job is not None and job.owner == owner and await state.tasks.cancel(response_id)


async def _ended_elsewhere(state: AppState, response_id: str, owner: str) -> Mapping[str, Any]:
    """The row of a response that another process was asked to cancel, when it has ended, or that process takes longer
    than a client would wait."""
    row = await _row(state, response_id, owner)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(CANCEL_S):
            while row["status"] in UNFINISHED:
                await asyncio.sleep(CANCEL_LOOK_S)
                row = await _row(state, response_id, owner)
    return row


def _not_found(response_id: str) -> NotFound:
    return NotFound(f"Response with id '{response_id}' not found.", param="response_id")


async def _one_batch(events: list[Event]) -> AsyncGenerator[list[Event]]:
    yield events
