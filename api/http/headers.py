"""The headers of a request by name, once a request: Starlette's `Headers` looks through the whole list for each
name."""

from __future__ import annotations

from starlette.types import Scope

# Where the dispatch puts them: names in small letters, of several of one name the last.
HEADERS = "nomyo.headers"
# In the scope of a HEAD, which endpoints see as a GET.
HEAD_ONLY = "nomyo.head_only"


def headers_of(scope: Scope) -> dict[bytes, bytes]:
    """The headers of a request, by their names in lower case; of several of one name the last."""
    headers: dict[bytes, bytes] = scope[HEADERS]
    return headers
