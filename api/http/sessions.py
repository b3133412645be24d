"""Sessions of the router's own page: a cookie stands for the key that somebody has signed in with.

    key ──sign in──▶ cookie: its digest and an end, sealed ──each request──▶ the keyring ──▶ Principal

Nothing is kept of them: every replica opens what another has sealed, and a cookie is worth as much as its key is at
that moment. It counts for the page alone that the router itself serves (`is_own_page`).
Specification: RFC 6265bis; Fetch Metadata.
"""

from __future__ import annotations

import time
from hashlib import sha256
from urllib.parse import urlsplit

from starlette.types import Scope

from api.http.origins import is_own_page
from core.keys import Principal
from core.state import AppState

# Where a session is begun, looked at and ended.
SESSION = "/api/page/session"
LASTS_S = 12 * 3600
# Nobody's cookie of ours is longer.
LONGEST = 1000


def principal_of_session(state: AppState, scope: Scope, headers: dict[bytes, bytes]) -> Principal | None:
    """Whom the cookie of a request stands for; None where there is none that is valid, or another page asks."""
    sealed = _cookie_in(headers[b"cookie"], cookie_name(state))
    if not sealed or not is_own_page(scope, headers, state.config):
        return None
    digest, _, end = (state.sealer.open(sealed, "session") or "").partition(" ")
    if not end or int(end) <= time.time():
        return None
    return state.keys.holder(bytes.fromhex(digest))


def cookie_name(state: AppState) -> str:
    """That of this service: routers at several ports of a host see one another's cookies."""
    return f"nomyo_{state.sealer.service_id()}"


def session_cookie(state: AppState, scope: Scope, key: str) -> str:
    """The header that begins a session with a valid key."""
    digest = sha256(key.encode()).hexdigest()
    sealed = state.sealer.seal(f"{digest} {int(time.time()) + LASTS_S}", "session")
    return _set_cookie(state, scope, sealed, LASTS_S)


def no_cookie(state: AppState, scope: Scope) -> str:
    """The header that ends it in this browser."""
    return _set_cookie(state, scope, "", 0)


def _set_cookie(state: AppState, scope: Scope, value: str, lasts_s: int) -> str:
    public = urlsplit(state.config.public_url)
    path = (public.path if public.netloc else scope.get("root_path", "")).rstrip("/")
    cookie = f"{cookie_name(state)}={value}; Path={path}/; Max-Age={lasts_s}; HttpOnly; SameSite=Strict"
    is_secure = (public.scheme or scope.get("scheme")) == "https"
    return f"{cookie}; Secure" if is_secure else cookie


def _cookie_in(header: bytes, name: str) -> str:
    """The value of a cookie; nothing where it is not there, or cannot be one of ours."""
    for pair in header.decode("latin-1").split(";"):
        found, _, value = pair.strip().partition("=")
        if found == name:
            return value if len(value) <= LONGEST else ""
    return ""
