"""Web pages that ask: which origins may, and the CORS headers that let them read the answer.

A page of this machine may, and an app that has a scheme of its own, as at Ollama; `cors_origins` adds others. `null` is
the origin of every page that hides its own, and may not unless it is named. Specification: WHATWG Fetch, section 3.3;
Fetch Metadata.

Where no key is asked for, the origin alone sets a page of a site that the user visits apart from the user's own
clients: `check_page` refuses it. A name of its own that leads here (DNS rebinding) helps no site, since such a name is
a public one, and those must be in `allowed_hosts`.
"""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from starlette.responses import Response
from starlette.types import Scope

from api.http.headers import headers_of
from cluster.protocol import FROM_PEER
from core.config import Config
from core.errors import Forbidden, InvalidRequest
from core.request_context import HEADER as REQUEST_ID

APP_SCHEMES = frozenset({"app", "file", "tauri", "vscode-file", "vscode-webview"})
METHODS = b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
# A browser asks again then; Chrome takes no more.
MAX_AGE_S = 7200
# What of an answer a page may read, besides what every page may.
EXPOSED = (b"x-nomyo-", b"x-ratelimit-", b"retry-after")

# Names that nobody can own in public DNS: RFC 6761, RFC 6762, and what ICANN has set aside.
PRIVATE_NAMES = (".localhost", ".local", ".internal")
HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^\s:@/?#\[\]]*))(?::([0-9]*))?")
PORTS = {"http": "80", "https": "443"}


def check_host(scope: Scope) -> None:
    """Raises `InvalidRequest` for a request that does not name one host (RFC 9112, section 3.2): who reads the first of
    two, and who the last, would not agree on whose request it is."""
    hosts = sum(name == b"host" for name, _ in scope["headers"])
    if hosts > 1 or (hosts == 0 and scope.get("http_version") == "1.1"):
        raise InvalidRequest(f"A request has one Host header; this one has {hosts}.", code="invalid_host")


def check_page(scope: Scope, headers: dict[bytes, bytes], config: Config) -> None:
    """Raises `Forbidden` for what a page of another site sends to a router that asks for no key, and where such a
    router can be reached from outside by mistake. Who is no browser has nothing to fear: it names an address, a private
    name, or one of `allowed_hosts` as `Host`, and sends neither `Origin` nor `Sec-Fetch-Site`."""
    try:
        passes = _passes(scope["server"], headers.get(b"host"), config.allow_open, config.allowed_hosts)
    except (KeyError, TypeError):  # It may be missing, and a list.
        passes = False
    if not passes or b"origin" in headers or b"sec-fetch-site" in headers:
        _look_closely(scope, headers, config)


@lru_cache(maxsize=1024)
def _passes(server: Any, host: bytes | None, is_open: bool, allowed: tuple[str, ...]) -> bool:
    return (is_open or not _is_outside(server)) and _is_private(host, allowed)


def _look_closely(scope: Scope, headers: dict[bytes, bytes], config: Config) -> None:
    if FROM_PEER in scope:  # It was looked at where it came in.
        return
    if not config.allow_open and _is_outside(scope.get("server")):
        raise NotOpen
    host = headers.get(b"host")
    if not _is_private(host, config.allowed_hosts):
        raise ForeignHost(host or b"")
    if (origin := headers.get(b"origin")) is not None:
        if not (_is_of(origin, host or b"") or may_ask(origin, config)):
            raise ForeignOrigin(origin)
    elif headers.get(b"sec-fetch-site") == b"cross-site" and not _is_page_load(scope, headers):
        raise ForeignOrigin(b"another site")


def is_own_page(scope: Scope, headers: dict[bytes, bytes], config: Config) -> bool:
    """Whether the router's own page asks, by the words of its browser, which no page can change: that it may use the
    cookie of a session. A browser that names no origin with what changes something names the site (Fetch Metadata)."""
    site = headers.get(b"sec-fetch-site")
    if site not in (None, b"same-origin", b"none"):
        return False  # As http://host is to https://host, whose origin is ours by its name.
    if (origin := headers.get(b"origin")) is not None:
        return _is_of(origin, headers.get(b"host", b"")) or is_public_origin(origin, config)
    if scope["type"] == "http" and scope["method"] in ("GET", "HEAD"):
        return True
    return site == b"same-origin"


def is_public_origin(origin: bytes, config: Config) -> bool:
    """Whether a page is the router's own at `public_url`."""
    parts = urlsplit(config.public_url)
    return bool(parts.netloc) and origin.decode("latin-1").lower() == f"{parts.scheme}://{parts.netloc}".lower()


def _is_outside(server: Any) -> bool:
    """Whether a connection came in at an address that other machines may reach. A Unix socket has a path here, and an
    in-process client a name."""
    address = _address(str(server[0]).partition("%")[0]) if server else None
    if isinstance(address, ipaddress.IPv6Address):
        address = address.ipv4_mapped or address
    return address is not None and not address.is_loopback


@lru_cache(maxsize=1024)
def _is_private(host: bytes | None, allowed: tuple[str, ...]) -> bool:
    """Whether no site can have made a browser send this `Host`. HTTP/1.0 may leave it out, and no browser does."""
    if host is None:
        return True
    match = HOST.fullmatch(host.decode("latin-1").lower())
    if match is None:
        return False
    if match[1] is not None:
        return _address(match[1]) is not None
    name = match[2].removesuffix(".")
    return (
        "." not in name
        or name.endswith(PRIVATE_NAMES)
        or _address(name) is not None
        or any(_pattern(pattern).fullmatch(name) for pattern in allowed)
    )


@lru_cache(maxsize=1024)
def _is_of(origin: bytes, host: bytes) -> bool:
    """Whether the page is the router's own. Its scheme may be that of a proxy in front of us, which we do not see."""
    scheme, separator, authority = origin.decode("latin-1").lower().partition("://")
    port = PORTS.get(scheme)
    if not separator or port is None:
        return False
    named = host.decode("latin-1").lower()
    return authority.removesuffix(f":{port}") == named.removesuffix(f":{port}") != ""


def _is_page_load(scope: Scope, headers: dict[bytes, bytes]) -> bool:
    """Whether the user follows a link: it changes nothing, and the page that has it does not get to see where it
    leads."""
    return (
        scope.get("method") in ("GET", "HEAD")
        and headers.get(b"sec-fetch-mode") == b"navigate"
        and headers.get(b"sec-fetch-dest") == b"document"
    )


class NotOpen(Forbidden):
    code = "not_open"

    def __init__(self) -> None:
        super().__init__(
            "This router asks for no key, and so serves its own machine alone: set api_key, or allow_open: true."
        )


class ForeignHost(Forbidden):
    code = "foreign_host"

    def __init__(self, host: bytes) -> None:
        super().__init__(
            f"This router asks for no key, and so takes no public name as its Host: {_shown(host)}. "
            "Add it to allowed_hosts, or set api_key."
        )


class ForeignOrigin(Forbidden):
    code = "foreign_origin"

    def __init__(self, origin: bytes) -> None:
        super().__init__(
            f"A page of another site may not use this router, which asks for no key: {_shown(origin)}. "
            "Add it to cors_origins, or set api_key."
        )


def _shown(value: bytes) -> str:
    return repr(value.decode("latin-1")[:200])


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
    address = _address(host)
    return address is not None and (address.is_loopback or address.is_unspecified)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


@lru_cache(maxsize=64)
def _pattern(origin: str) -> re.Pattern[str]:
    """An origin or a host of the settings: `*` stands for anything."""
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
    else:
        exposed = sorted({REQUEST_ID, *(name for name, _ in reply.raw_headers if name.startswith(EXPOSED))})
        shared.append((b"access-control-expose-headers", b", ".join(exposed)))
    reply.raw_headers.extend(shared)
