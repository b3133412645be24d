"""The key at the gate, and whose request it is."""

from __future__ import annotations

import hashlib
import hmac
from functools import lru_cache

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from api.http.replies import error_response
from core.errors import Unauthorized
from core.state import AppState

OPEN_PATHS = frozenset({"/health"})


class Gate:
    """ASGI middleware: asks for the router's key, where one is set. It wraps nothing, so it costs a stream nothing."""

    def __init__(self, app: ASGIApp, state: AppState) -> None:
        self._app = app
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket") and scope["path"] not in OPEN_PATHS:
            try:
                check_key(self._state, scope)
            except Unauthorized as error:
                await error_response(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def check_key(state: AppState, scope: Scope) -> None:
    """Raises `Unauthorized` for a request without the router's key, where one is set."""
    expected = state.config.api_key
    if not expected:
        return
    given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
    scheme, _, key = given.partition(b" ")
    if scheme.lower() != b"bearer" or not hmac.compare_digest(key.strip(), expected.encode()):
        raise Unauthorized("Give the router's key as 'Authorization: Bearer …'.")


def owner_of(request: HTTPConnection) -> str:
    """Who asks, as a digest: answers in the cache are shared among the requests with one key."""
    return _digest(next((value for name, value in request.scope["headers"] if name == b"authorization"), b""))


@lru_cache(maxsize=1024)
def _digest(given: bytes) -> str:
    return hashlib.sha256(given).hexdigest()[:16] if given else ""
