"""The key of a request, and whose request it is."""

from __future__ import annotations

import hashlib
import hmac
from functools import lru_cache

from starlette.requests import HTTPConnection
from starlette.types import Scope

from api.http.headers import HEADERS, headers_of
from api.http.origins import check_host, check_page, is_preflight, may_ask
from core.config import Config
from core.errors import Unauthorized
from core.keys import Principal
from core.state import AppState

# Where a client sends its key; the second is what Azure's clients know.
KEY_HEADERS = ("authorization", "api-key")
# Whoever looks whether the router is there needs no key.
OPEN_PATHS = frozenset({"/", "/health"})


def check_key(state: AppState, scope: Scope) -> None:
    """Puts into the scope who asks. Raises `Unauthorized` for a request without the router's key, where one is set;
    where none is, `Forbidden` for what `check_page` refuses."""
    headers: dict[bytes, bytes] = scope[HEADERS]
    if len(headers) != len(scope["headers"]) or b"host" not in headers:
        check_host(scope)
    config = state.config
    if (authorization := headers.get(b"authorization")) is None:
        given = headers.get(b"api-key", b"")
    else:
        given = _bearer_key(authorization)
    is_known = True
    if expected := config.api_key:
        is_known = hmac.compare_digest(given, expected.encode())
        if not is_known and not _needs_no_key(config, scope):
            raise Unauthorized(
                f"{_wrong_with(given, authorization)} Give the router's key as 'Authorization: Bearer …'."
            )
    else:
        check_page(scope, headers, config)
    scope["principal"] = _principal(given, is_admin=is_known)


def _needs_no_key(config: Config, scope: Scope) -> bool:
    # A browser sends no key with a preflight.
    return scope["path"] in OPEN_PATHS or (
        scope["type"] == "http" and is_preflight(scope) and may_ask(headers_of(scope)[b"origin"], config)
    )


def principal_of(request: HTTPConnection) -> Principal:
    """Who asks, as `check_key` found."""
    principal: Principal = request.scope["principal"]
    return principal


def _bearer_key(authorization: bytes) -> bytes:
    scheme, _, key = authorization.partition(b" ")
    return key.strip() if scheme.lower() == b"bearer" else b""


def _wrong_with(given: bytes, authorization: bytes | None) -> str:
    if given:
        return "The key that was given is not the router's."
    if authorization and authorization.partition(b" ")[0].lower() != b"bearer":
        return "The header Authorization does not begin with 'Bearer '."
    return "No key was given."


@lru_cache(maxsize=1024)
def _principal(given: bytes, *, is_admin: bool) -> Principal:
    """Whoever asks where there is one key or none: an admin, who owns everything. The key that was sent is a label, as
    a digest."""
    return Principal(hashlib.sha256(given).hexdigest()[:16] if given else "", owner="", is_admin=is_admin)
