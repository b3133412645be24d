"""Counting input tokens where a server can."""

from __future__ import annotations

from urllib.parse import urlsplit

from backends.fleet.endpoint import Endpoint
from backends.wire.client import LACKS_PATH
from core.errors import BackendError
from core.json import Json

# Servers of Responses that count nothing answer in many ways: as for a path that they do not have, as for the id of a
# response (vLLM, OGX), as a gateway whose own server has failed.
CANNOT_COUNT = LACKS_PATH | {400, 502}


async def counted(endpoint: Endpoint, params: Json) -> tuple[int, bool] | None:
    """The server's own count of a request, and whether it is an estimate, as another router's may be; or None where it
    cannot count. Of one that was seen to count, or is known
    to, any refusal is about the request. Raises a `BackendError`."""
    kind = endpoint.kind
    if kind.count_path is None:
        return None
    is_sure = endpoint.counts or urlsplit(endpoint.url).hostname in kind.hosts
    lacking = frozenset[int]() if is_sure else CANNOT_COUNT if kind.native else LACKS_PATH
    try:
        found = await endpoint.client.count(kind.count_path, params, lacking)
    except BackendError as error:
        if is_sure or not kind.native or error.code != "backend_bad_answer":
            raise
        return None
    endpoint.counts = found is not None
    return found
