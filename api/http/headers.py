"""The headers of a request, by name."""

from __future__ import annotations

from starlette.types import Scope

HEADERS = "nomyo.headers"


def headers_of(scope: Scope) -> dict[bytes, bytes]:
    """The headers of a request: names in small letters, of several of one name the last. Made once a request: Starlette's looks
    through the whole list for each name."""
    headers: dict[bytes, bytes] | None = scope.get(HEADERS)
    if headers is None:
        headers = scope[HEADERS] = dict(scope["headers"])
    return headers
