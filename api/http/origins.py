"""Web pages that ask: which origins may, and the CORS headers that let them read the answer.

A page of this machine may, and an app that has a scheme of its own, as at Ollama; `cors_origins` adds others. `null` is the origin of
every page that hides its own, and may not unless it is named. Specification: WHATWG Fetch, section 3.3.
"""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache
from urllib.parse import urlsplit

from starlette.responses import Response
from starlette.types import Scope

from api.http.headers import headers_of
from core.config import Config

APP_SCHEMES = frozenset({"app", "file", "tauri", "vscode-file", "vscode-webview"})
METHODS = b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
# A browser asks again then; Chrome takes no more.
MAX_AGE_S = 7200
# What of an answer a page may read, besides what every page may.
EXPOSED = (b"x-nomyo-", b"x-ratelimit-", b"x-request-id", b"retry-after")


def may_ask(origin: bytes, config: Config) -> bool:
    """Whether pages of an origin may use this router."""
    return _may_ask(origin.decode("latin-1").lower(), config.cors_origins)


@lru_cache(maxsize=1024)
def _may_ask(origin: str, added: tuple[str, ...]) -> bool:
    if not origin.isprintable():  # It stands in a header of the reply.
        return False
    if any(_pattern(pattern).fullmatch(origin) for pattern in added):
        return True
    try:
        parts = urlsplit(origin)
        host = parts.hostname or ""
    except ValueError:
        return False
    return parts.scheme in APP_SCHEMES or (parts.scheme in ("http", "https") and _is_this_machine(host))


def _is_this_machine(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


@lru_cache(maxsize=64)
def _pattern(origin: str) -> re.Pattern[str]:
    """An origin of the settings: `*` stands for anything."""
    return re.compile(".*".join(re.escape(part) for part in origin.lower().rstrip("/").split("*")))


def is_preflight(scope: Scope) -> bool:
    """Whether a browser asks if a page may ask."""
    headers = headers_of(scope)
    return scope["method"] == "OPTIONS" and b"origin" in headers and b"access-control-request-method" in headers


def share(reply: Response, scope: Scope, config: Config) -> None:
    """Lets the page read the reply that sent the request, if it may ask."""
    headers = headers_of(scope)
    origin = headers[b"origin"]
    if not may_ask(origin, config):
        return
    shared = [(b"access-control-allow-origin", origin), (b"vary", b"Origin")]
    if is_preflight(scope):
        shared += [(b"access-control-allow-methods", METHODS), (b"access-control-max-age", b"%d" % MAX_AGE_S)]
        if asked := headers.get(b"access-control-request-headers"):
            shared.append((b"access-control-allow-headers", asked))
        if headers.get(b"access-control-request-private-network") == b"true":
            shared.append((b"access-control-allow-private-network", b"true"))
    elif exposed := sorted({name for name, _ in reply.raw_headers if name.startswith(EXPOSED)}):
        shared.append((b"access-control-expose-headers", b", ".join(exposed)))
    reply.raw_headers.extend(shared)
