"""The key of a request, and whose request it is."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from urllib.parse import unquote

from starlette.requests import HTTPConnection
from starlette.types import Scope

from api.http.headers import HEADERS, headers_of
from api.http.origins import check_host, check_page, is_preflight, may_ask
from api.http.sessions import SESSION, principal_of_session
from cluster.protocol import FROM_PEER
from core.config import Config
from core.errors import Forbidden, Unauthorized
from core.keys import Principal
from core.state import AppState

# Whoever looks whether the router is there needs no key, and whoever has none yet must be able to give one.
OPEN_PATHS = frozenset({"/", "/health", "/ready", SESSION})
# The files of the page, which hold nothing of anybody's.
OPEN_FOLDER = "/page/"
METRICS = "/metrics"
# On whose behalf a peer asks.
OWNER = "x-nomyo-owner"


def check_key(state: AppState, scope: Scope) -> None:
    """Puts into the scope who asks. Raises `Unauthorized` for a request without a valid key, where keys are asked for;
    where none is, `Forbidden` for what `check_page` refuses."""
    headers: dict[bytes, bytes] = scope[HEADERS]
    if len(headers) != len(scope["headers"]) or b"host" not in headers:
        check_host(scope)
    # Anthropic's clients know the second, Azure's the third.
    if (authorization := headers.get(b"authorization")) is not None:
        given = _bearer_key(authorization)
    else:
        given = headers.get(b"x-api-key") or headers.get(b"api-key", b"")
    if not state.keys.asks_for_keys:
        check_page(scope, headers, state.config)
        scope["principal"] = _labelled(given)
        return
    if FROM_PEER in scope and state.keys.is_peer(given):
        owner = unquote(headers.get(OWNER.encode(), b"").decode())
        scope["principal"] = Principal("peer", owner, is_admin=not owner)
        return
    principal = state.keys.find(given)
    if principal is None and not given and b"cookie" in headers:
        principal = principal_of_session(state, scope, headers)
    if principal is None:
        if _needs_no_key(state.config, scope):
            principal = NOBODY
        else:
            state.keys.log_refusal(given)
            why = _wrong_with(given, authorization)
            raise Unauthorized(f"{why} Give the router's key as 'Authorization: Bearer …'.")
    scope["principal"] = principal


# Who may not do anything but see that the router is there.
NOBODY = Principal("", owner="nobody without a key", models=())


def principal_of(request: HTTPConnection) -> Principal:
    """Who asks, as `check_key` found."""
    return request.scope["principal"]  # type: ignore[no-any-return]


def require_admin(request: HTTPConnection) -> None:
    """Raises `Forbidden` for whoever is no admin."""
    principal = principal_of(request)
    if not principal.is_admin:
        raise Forbidden(
            f"The key '{principal.key}' has the right 'use'; {request.scope['path']} takes the right 'admin'.",
            code="insufficient_permissions",
        )


def _bearer_key(authorization: bytes) -> bytes:
    scheme, _, key = authorization.partition(b" ")
    return key.strip() if scheme.lower() == b"bearer" else b""


def _needs_no_key(config: Config, scope: Scope) -> bool:
    # A browser sends no key with a preflight.
    return (
        scope["path"] in OPEN_PATHS
        or scope["path"].startswith(OPEN_FOLDER)
        or (config.metrics_open and scope["path"] == METRICS)
        or (scope["type"] == "http" and is_preflight(scope) and may_ask(headers_of(scope)[b"origin"], config))
    )


def _wrong_with(given: bytes, authorization: bytes | None) -> str:
    if given:
        return "The key that was given is not the router's."
    if authorization and authorization.partition(b" ")[0].lower() != b"bearer":
        return "The header Authorization does not begin with 'Bearer '."
    return "No key was given."


@lru_cache(maxsize=1024)
def _labelled(given: bytes) -> Principal:
    """Whoever asks where no key is asked for: an admin, who owns everything. What was sent as a key is a label, as a
    digest."""
    return Principal(hashlib.sha256(given).hexdigest()[:16] if given else "", is_admin=True)
