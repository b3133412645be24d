"""/api/page/session: signing in to the live page with a key, and out again."""

from __future__ import annotations

from fastapi import Request
from starlette.responses import Response

from api.http.bodies import read_json
from api.http.headers import headers_of
from api.http.keys import principal_of
from api.http.origins import is_own_page
from api.http.replies import json_response
from api.http.routes import Routes, takes
from api.http.sessions import SESSION, no_cookie, session_cookie
from core.errors import Forbidden, InvalidRequest, Unauthorized
from core.keys import Principal
from core.schemas import TEXT, object_of
from core.state import AppState

routes = Routes(tags=["page"])


@routes.get(SESSION, include_in_schema=False)
async def show_session(request: Request) -> Response:
    """Who looks at the page: `{is_admin, asks_for_keys, key}`. Asks for no key."""
    return json_response(_described(request.app.state, principal_of(request)))


@routes.post(SESSION, **takes(object_of(key=TEXT)), include_in_schema=False)
async def sign_in(request: Request) -> Response:
    """Begins a session with the body's `key`, which must be an admin's: a cookie that this router's own page can use,
    and no script can read. 401 for a key that is not valid, 403 for one without the right, and for another page."""
    state: AppState = request.app.state
    _check_page(request)
    body = await read_json(request)
    key = body.get("key") if isinstance(body, dict) else None
    if not isinstance(key, str):
        raise InvalidRequest("The body must be an object with the text 'key'.", param="key")
    if not state.keys.asks_for_keys:
        return json_response(_described(state, principal_of(request)))
    given = key.strip().encode(errors="surrogatepass")
    principal = state.keys.find(given)
    if principal is None:
        state.keys.log_refusal(given)
        raise Unauthorized("This key is not the router's, or is valid no more.")
    if not principal.is_admin:
        raise Forbidden(
            f"The key '{principal.key}' has the right 'use'; this page takes the right 'admin'.",
            code="insufficient_permissions",
        )
    headers = {"Set-Cookie": session_cookie(state, request.scope, key.strip())}
    return json_response(_described(state, principal), headers=headers)


@routes.delete(SESSION, include_in_schema=False)
async def sign_out(request: Request) -> Response:
    """Ends the session in this browser. Where the key itself must end: DELETE /api/keys/NAME."""
    _check_page(request)
    return Response(status_code=204, headers={"Set-Cookie": no_cookie(request.app.state, request.scope)})


def _check_page(request: Request) -> None:
    """Raises `Forbidden` for another page than the router's own, and for what is no page: it has the key itself."""
    if not is_own_page(request.scope, headers_of(request.scope), request.app.state.config):
        raise Forbidden("A session is for the router's own page alone.", code="foreign_origin")


def _described(state: AppState, principal: Principal) -> dict[str, object]:
    return {
        "is_admin": principal.is_admin,
        "asks_for_keys": state.keys.asks_for_keys,
        "key": principal.key or ("api_key" if state.keys.asks_for_keys and principal.is_admin else None),
    }
