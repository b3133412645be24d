"""Bodies in: the whole body as it was meant, or its JSON.

bytes ──Content-Encoding undone──▶ ──a form as JSON──▶ ──the model of an Azure deployment──▶ read_body ──▶ read_json
"""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl

import orjson
from starlette.requests import ClientDisconnect, Request

from api.http.codings import decoded
from api.http.headers import HEADERS
from api.http.protocol import wire_of
from core.errors import InvalidRequest, RequestTimedOut, TooLarge
from requests.bounded_json import BOM, TooDeep, TooManyValues, decode_bounded
from requests.members import with_model

JSON = b"application/json"
FORM = b"application/x-www-form-urlencoded"
# In the scope of a request: the model that its path names.
DEPLOYMENT = "nomyo.deployment"
MAX_FIELDS = 200


async def read_json(request: Request) -> Any:
    """The body as JSON. Raises what `read_body` does, and `InvalidRequest` for anything else than JSON, or far too much
    of it."""
    return decode_bounded(await read_body(request), max_items=request.app.state.config.max_items)


async def read_body(request: Request) -> bytes:
    """The body, uncompressed; of a form, the object that it stands for, as JSON; with the model of its path. Raises
    `TooLarge` past `max_body_mb` of either, `UnsupportedCoding`, `BrokenBody`, and `InvalidRequest` for what is no
    form."""
    scope = request.scope
    headers = scope[HEADERS]
    limit = scope["app"].state.config.max_body_mb * 1024 * 1024
    if (wire := wire_of(scope)) is None or (body := wire.body) is None or len(body) > limit:
        body = await _received(request, headers, limit)
    if b"content-encoding" in headers:
        body = await decoded(body, ",".join(request.headers.getlist("content-encoding")), limit, _too_large(limit))
    if headers.get(b"content-type") != JSON:
        if _is_form(headers):
            body = _form_as_json(body)
        elif body[:2] == b"--" and headers.get(b"content-type", b"").lower().startswith(b"multipart/"):
            raise InvalidRequest("A multipart form is not read here: send JSON, or a form of names and values.")
    if DEPLOYMENT in scope:
        body = _for_deployment(body, scope[DEPLOYMENT])
    return body


def _for_deployment(body: bytes, model: str) -> bytes:
    """The body with the model of its path, which counts at Azure. What is no object stays as it is."""
    try:
        return with_model(body.removeprefix(BOM), model)
    except (TypeError, ValueError):
        return body


def _is_form(headers: dict[bytes, bytes]) -> bool:
    return headers.get(b"content-type", b"")[: len(FORM)].lower() == FORM


async def _received(request: Request, headers: dict[bytes, bytes], limit: float) -> bytes:
    declared = headers.get(b"content-length", b"0")
    if declared.isdigit() and int(declared) > limit:
        raise _too_large(limit)
    received = bytearray()
    try:
        async for chunk in request.stream():
            received += chunk
            if len(received) > limit:
                raise _too_large(limit)
    except ClientDisconnect:
        if (wire := wire_of(request.scope)) is not None and wire.has_stalled:
            raise RequestTimedOut.of_body(request.app.state.config.body_timeout_s) from None
        raise
    return bytes(received)


def _too_large(limit: float) -> TooLarge:
    return TooLarge(f"The body is larger than {limit / 1024 / 1024:g} MB.")


def _form_as_json(body: bytes) -> bytes:
    """A form as an object: each value is JSON where it parses, else text. curl calls everything a form: what is JSON
    stays it."""
    if body.lstrip()[:1] in (b"{", b"[", b""):
        return body
    try:
        fields = parse_qsl(
            body.decode(), keep_blank_values=True, strict_parsing=True, errors="strict", max_num_fields=MAX_FIELDS
        )
    except ValueError as error:  # also for what is not UTF-8
        raise InvalidRequest(f"The body is neither JSON nor a form: {error}.", code="invalid_form") from None
    form: dict[str, Any] = {}
    for name, text in fields:
        if name in form:
            raise InvalidRequest(f"The form names '{name[:100]}' twice.", param=name[:100], code="invalid_form")
        try:
            form[name] = decode_bounded(text.encode())
        except (TooDeep, TooManyValues):
            raise
        except InvalidRequest:
            form[name] = text
    return orjson.dumps(form)
