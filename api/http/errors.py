"""Errors out: every error of every route becomes a reply here, in the envelope of the front door that was asked."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Scope

from api.http.leaving import ClientLeft
from api.http.replies import json_response
from core.errors import APIError, InvalidRequest, ServerError
from core.json import Json
from core.turn_record import door_of

log = logging.getLogger("nomyo")

# The body of an error, as JSON has it.
Envelope = Callable[[APIError], Any]


def openai_envelope(error: APIError) -> Json:
    """OpenAI's, which Open Responses shares: `{"error": {message, type, param, code}}`."""
    return {"error": error.to_dict()}


def error_reply(error: APIError, envelope: Envelope = openai_envelope) -> Response:
    """The reply of an error: its status, its headers and its body, spelled by `envelope`."""
    return json_response(envelope(error), error.status, error.headers())


def reply_to_error(error: Exception, scope: Scope, envelope: Envelope) -> Response:
    """The reply to whoever sent the request of `scope`, where its endpoint failed with `error`."""
    if isinstance(error, ClientLeft | ClientDisconnect):
        return Response(status_code=499)  # Nobody reads it: the status is nginx's, for the access log.
    return error_reply(describe(error, scope), envelope)


def describe(error: Exception, scope: Scope) -> APIError:
    """An error as one that a client may read. The cause of a fault of ours goes to the log."""
    if isinstance(error, APIError):
        return error
    if isinstance(error, RequestValidationError):  # A query parameter that FastAPI could not read.
        first = error.errors()[0]
        param = str(first["loc"][-1])
        return InvalidRequest(f"Invalid value for '{param}': {first['msg']}.", param=param, code="invalid_value")
    if isinstance(error, HTTPException):
        return InvalidRequest(f"{scope['method']} {scope['path']}: {error.detail}.", status=error.status_code)
    # Not its path: clients may write anything.
    log.error("a request at the front door %s failed", door_of(scope["path"]), exc_info=error)
    return ServerError("The router failed to answer this request.")
