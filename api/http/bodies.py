"""Bodies in: the whole body, or its JSON."""

from __future__ import annotations

from typing import Any

import orjson
from starlette.requests import Request

from api.http.protocol import wire_of
from core.errors import InvalidRequest, TooLarge


async def read_json(request: Request) -> Any:
    """The body as JSON. Raises `TooLarge` past `max_body_mb`, `InvalidRequest` for anything else than JSON."""
    return parse_json(await read_body(request))


def parse_json(body: bytes) -> Any:
    """A body as JSON. Raises `InvalidRequest` for anything else."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"The body is not JSON: {error}.", code="invalid_json") from None


async def read_body(request: Request) -> bytes:
    """The body. Raises `TooLarge` past `max_body_mb`."""
    limit = request.app.state.config.max_body_mb * 1024 * 1024
    if (wire := wire_of(request.scope)) is not None and (body := wire.body) is not None and len(body) <= limit:
        return body
    too_large = TooLarge(f"The body is larger than {limit / 1024 / 1024:g} MB.")
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > limit:
        raise too_large
    received = bytearray()
    async for chunk in request.stream():
        received += chunk
        if len(received) > limit:
            raise too_large
    return bytes(received)
