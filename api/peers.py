"""Requests that concern more than one process of the service: what this one cannot answer is asked of its peers, as the
client asked it.

A peer is asked on behalf of the owner of the client's key, which was checked where it came in. What a peer has handed
on is handed on no further.
"""

from __future__ import annotations

from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from api.http.keys import OWNER, principal_of
from api.http.replies import framed_for
from cluster.protocol import FROM_PEER, PeerAnswer
from core.request_context import HEADER, current_request
from core.state import AppState

REQUEST_ID = HEADER.decode()
PASSED_ON = ("content-type", "cache-control", "x-accel-buffering")


def is_from_peer(request: Request) -> bool:
    """Whether a peer has handed this request on."""
    return FROM_PEER in request.scope


def as_peer(state: AppState, owner: str = "") -> dict[str, str]:
    """The headers by which a peer knows this process, which may ask it all, on behalf of an owner; and the id of the
    request that it is asked for."""
    headers = {"authorization": f"Bearer {state.keys.peer_key}"}
    if owner:
        headers[OWNER] = quote(owner)
    if (request := current_request()) is not None:
        headers[REQUEST_ID] = request.id.decode()
    return headers


async def answer_of_peer(request: Request) -> Response | None:
    """The answer of the peer that runs what this request asks for, as it comes; None if none does."""
    if is_from_peer(request):
        return None
    state: AppState = request.app.state
    path = f"{request.url.path}?{request.url.query}"
    answer = await state.cluster.find(request.method, path, as_peer(state, principal_of(request).owner))
    return None if answer is None else HandedOn(answer)


class HandedOn(StreamingResponse):
    """The answer of a peer. Its connection is closed with it, also where nothing was read from it."""

    def __init__(self, answer: PeerAnswer) -> None:
        kept = {name: answer.headers[name] for name in PASSED_ON if name in answer.headers}
        super().__init__(answer.pieces(), answer.status, kept)
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, framed_for(scope, send))
        finally:
            await self._answer.aclose()
