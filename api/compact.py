"""Compaction: a long conversation becomes a summary that the client carries for us, sealed.

    POST /v1/responses/compact          a window of items to go on with
    input item `compaction_trigger`     the same summary as the one output item of an ordinary response (Codex)

The summary is made by the model of the request. Sent back, it is opened and given to the model in the place where it
stands.
"""

from __future__ import annotations

from typing import Any

from fastapi import Request
from starlette.responses import Response

from api.http.bodies import read_json
from api.http.keys import principal_of
from api.http.leaving import ClientWatch
from api.http.replies import json_response
from api.http.routes import Routes, takes
from api.responses import run_turn
from api.turns.turn import NO_STREAM, begin_turn
from core.errors import InvalidRequest
from core.schemas import schema_of
from core.state import AppState
from requests.params import CreateParams

routes = Routes(prefix="/v1/responses", tags=["responses"])


@routes.post("/compact", **takes(schema_of(CreateParams)))
async def compact_response(request: Request) -> Response:
    """Compacts a conversation. Body: `model`, and `input`, `previous_response_id` or `conversation` (which stays as it
    is), and `instructions`. Answers a
    `response.compaction` with the user's messages and one `compaction` item, to be sent as they are in place of the
    conversation. Errors: as of POST /v1/responses."""
    state: AppState = request.app.state
    body = await read_json(request)
    if not isinstance(body, dict):
        raise InvalidRequest("The body must be a JSON object.")
    given = body.get("input") or []
    if not given and not body.get("previous_response_id") and not body.get("conversation"):
        raise InvalidRequest("Missing required parameter: 'input'.", param="input", code="missing_required_parameter")
    if isinstance(given, str):
        given = [{"type": "message", "role": "user", "content": given}]
    if not isinstance(given, list):
        raise InvalidRequest("The input is a text or a list of items.", param="input")
    wanted = {
        **{key: value for key, value in body.items() if key != "stream_options"},
        "input": [*given, {"type": "compaction_trigger"}],
        "store": False,
        "stream": False,
        "background": False,
    }
    turn = await begin_turn(state, wanted, principal_of(request))
    turn.compacts = True
    async with ClientWatch(request.scope, request.receive):
        await run_turn(state, turn, NO_STREAM)
    response = turn.builder.shown
    window = turn.window
    if window is None:
        kept = [item for item in turn.request.items if item.get("role") == "user"]
        window = [*kept, *(item for item in response["output"] if item["type"] == "compaction")]
    return json_response(
        {
            "id": response["id"],
            "object": "response.compaction",
            "created_at": response["created_at"],
            "output": window,
            "usage": response["usage"] or NO_USAGE,
        },
        headers=turn.headers,
    )


NO_USAGE: dict[str, Any] = {
    "input_tokens": 0,
    "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
    "output_tokens": 0,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 0,
}
