"""POST /v1/responses/input_tokens: how long a request is, before it is sent."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from msgspec.structs import replace
from starlette.responses import Response

from api.http.bodies import read_json
from api.http.keys import principal_of
from api.http.leaving import ClientWatch
from api.http.replies import json_response
from api.http.routes import Routes, takes
from api.responses import at_this_door
from api.turns.backend import Backend
from api.turns.chat_request import with_files
from api.turns.native_answer import native_params
from api.turns.router_tools import router_tools_of
from api.turns.tally import is_limited
from api.turns.turn import FAILED_TOOLS, Turn, TurnRequest, admit_turn, begin_turn, settle_turn
from backends.fleet.counting import counted
from backends.fleet.failover import Attempts
from backends.fleet.pool import keep_usage, look_up_endpoint
from core.errors import APIError, InvalidRequest
from core.schemas import schema_of
from core.state import AppState
from requests.params import CreateParams
from requests.tokens import estimated_tokens
from requests.usage import NO_TOKENS

routes = Routes(prefix="/v1/responses", tags=["responses"])


@routes.post("/input_tokens", **takes(schema_of(CreateParams)))
async def count_input_tokens(request: Request) -> Response:
    """Counts the input tokens of a request for a response, with its history, instructions and tools, those that the
    router would run among them: by the backend where it can, else by an estimate, which the header
    `x-nomyo-estimated: true` admits. Answers `{object, input_tokens}`. Errors: as of POST /v1/responses."""
    state: AppState = request.app.state
    body = await read_json(request)
    if not isinstance(body, dict):
        raise InvalidRequest("The body must be a JSON object.")
    given = {key: value for key, value in body.items() if key != "stream_options"}
    turn = await begin_turn(
        state, {**given, "store": False, "stream": False, "background": False}, principal_of(request)
    )
    if is_limited(turn.request.principal):
        await admit_turn(state, turn)
    failure: APIError | None = None
    try:
        async with ClientWatch(request.scope, request.receive):
            model = turn.request.model
            asked = await _with_router_tools(state, turn)
            async for attempt in Attempts(state.pool, model, turn.routing, choose=look_up_endpoint, release=keep_usage):
                async with attempt:
                    endpoint = state.pool.endpoints[attempt.endpoint]
                    tokens, estimated = await _count(state, endpoint, asked, attempt.model, asks_chats=turn.asks_chats)
                    attempt.was_asked = not estimated
        turn.builder.response["status"] = "completed"
    except APIError as error:
        failure = at_this_door(error, turn.request.model)
        raise failure from None
    finally:
        turn.routing.attempts_made()
        turn.routing.slot_s = 0.0  # It has taken none,
        turn.passed = NO_TOKENS, False  # and what it has asked servers of tools was no model's work.
        settle_turn(state, turn, failure)
        failure = None  # It holds this frame.
    headers = {name: turn.headers[name] for name in (FAILED_TOOLS,) if name in turn.headers} | turn.routing.limits
    if estimated:
        headers["x-nomyo-estimated"] = "true"
    return json_response({"object": "response.input_tokens", "input_tokens": tokens}, headers=headers)


async def _with_router_tools(state: AppState, turn: Turn) -> TurnRequest:
    """The request, with the tools that the router would run for it, as its model would be offered them."""
    tools = router_tools_of(state, turn)
    if tools is None:
        return turn.request
    try:
        offered = await tools.offered(turn)
    finally:
        tools.close()
    if tools.failed:
        turn.note_failed_tools(tools.failed)
    return replace(turn.request, router_tools=offered)


async def _count(
    state: AppState, endpoint: Any, request: TurnRequest, model: str, *, asks_chats: bool
) -> tuple[int, bool]:
    """The tokens, and whether they are an estimate."""
    sealer = state.sealer.of(request.principal.owner)
    if endpoint.kind.native and not asks_chats:
        params = {key: value for key, value in native_params(request, model, sealer).items() if key in COUNTED}
    else:
        create = endpoint.client.chat.completions.create
        backend = Backend(model, endpoint.kind, sealer, create, files=state.files)
        params = (await with_files(backend, request, stream=False)).params
    return await counted(endpoint, params) or (estimated_tokens(params), True)


# What OpenAI's own counter takes.
COUNTED = frozenset(
    {
        "model",
        "input",
        "instructions",
        "tools",
        "tool_choice",
        "text",
        "reasoning",
        "truncation",
        "parallel_tool_calls",
    }
)
