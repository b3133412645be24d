"""Our names for what goes wrong at a backend: errors of our HTTP client, of the SDK's, and what a server says of itself.

named(error)                    ours for a foreign one
refusal_of(status, described)   ours for a server's
not_an_answer(body)             ours for a 200 that is none
"""

from __future__ import annotations

import sys
from typing import Any, NoReturn

import orjson

from backends.kinds.refusals import overflow_of, unsupported_of
from backends.wire.http1 import BadAnswer, ConnectTimeout
from core.errors import (
    BackendCut,
    BackendError,
    BackendRefused,
    BackendTimeout,
    BackendUnreachable,
    TooManyRequests,
)


def named(error: Exception, *, begun: bool = False) -> Exception:
    """Our name for a foreign error, or the error itself. `begun`: a part of the answer has arrived already."""
    if isinstance(error, ConnectTimeout):
        return BackendUnreachable("The backend took no connection in time.")
    if isinstance(error, TimeoutError):
        return BackendTimeout("The backend sent nothing in time.")
    if isinstance(error, BadAnswer | OSError):
        if begun:
            return BackendCut("The backend broke off its answer.")
        return BackendUnreachable("The backend could not be reached.")
    return _named_sdk_error(error) or error


def raise_named(error: Exception, *, begun: bool = False) -> NoReturn:
    told = named(error, begun=begun)
    if told is error:
        raise error
    raise told from error


def _named_sdk_error(error: Exception) -> BackendError | TooManyRequests | None:
    """Our name for an error of the official SDK, should its client stand in for ours. We do not import it for that: where
    it is in use, it is loaded."""
    openai = sys.modules.get("openai")
    if openai is None:
        return None
    if isinstance(error, openai.APITimeoutError):
        return BackendTimeout("The backend sent nothing in time.")
    if isinstance(error, openai.APIConnectionError):
        return BackendUnreachable("The backend could not be reached.")
    if isinstance(error, openai.APIStatusError):
        return refusal_of(error.status_code, error.body, error.response.headers.get("retry-after"))
    if isinstance(error, openai.APIError):
        return refusal_of(code_of(error.body), error.body)
    return None


def refusal_of(status: Any, described: Any, retry_after: str | None = None) -> BackendError | TooManyRequests:
    """Our error for a backend's. `status` is its HTTP status, or the code in an error inside of a stream.

    A status is kept where it tells the client something that it can act on; a fault of the backend, or of the key that the
    router holds for it, is a 502.
    """
    message, kind, code = _described(described)
    status = status if isinstance(status, int) and 400 <= status < 600 else 500
    if status == 429:
        return TooManyRequests(message or "The backend is busy.", retry_after_s=_seconds(retry_after))
    if status in (401, 403):
        return BackendError("The backend did not accept the router's key.", code="backend_authentication_failed")
    if status in (408, 504):
        return BackendTimeout(message or "The backend sent nothing in time.")
    if status == 503:
        return BackendUnreachable(message or "The backend is not ready.", retry_after_s=_seconds(retry_after))
    error = described if isinstance(described, dict) else {}
    if overflow := overflow_of(message, error):
        refused = BackendRefused(message, code="context_length_exceeded", param="input")
        refused.overflow = overflow
        return refused
    if unsupported := unsupported_of(message, error):
        refused = BackendRefused(message, code="unsupported_parameter", param=PARAMS.get(unsupported, unsupported))
        refused.unsupported = UNSUPPORTED.get(unsupported, unsupported)
        return refused
    if status == 501:
        # llama.cpp, asked for embeddings that it was not started for. Another server of the model may have them.
        return BackendRefused(message or "The backend cannot do this.", status=501, code="not_supported")
    if status >= 500:
        return BackendError(f"The backend failed: {message}" if message else "The backend failed.")
    if status == 404:
        # A path that it does not have has no error object, or llama.cpp's: then our settings are wrong, not the model.
        if (kind is None and not isinstance(described, str)) or (
            kind == "not_found_error" and code_of(described) == 404
        ):
            return BackendError(
                f"The backend has no such path, so its url or kind is wrong: {message or 'not found'}",
                code="backend_path_not_found",
            )
        return BackendRefused(
            message or "The backend does not know this.", status=404, code="model_not_found", param="model"
        )
    return BackendRefused(
        message or "The backend refused the request.", status=413 if status == 413 else 400, code=code
    )


# What a backend cannot do, as parameters of the client's request and of ours.
PARAMS = {
    "images": "input",
    "audio": "input",
    "thinking": "reasoning.effort",
    "max_tokens": "max_output_tokens",
    "response_format": "text",
}
UNSUPPORTED = {"thinking": "reasoning_effort"}


def _described(error: Any) -> tuple[str, str | None, str | None]:
    """The message, type and code in a backend's error, which is OpenAI's object, a text, or something of its own."""
    if isinstance(error, dict):
        message = error.get("message") or error.get("detail") or error.get("error")
        kind, code = error.get("type"), error.get("code")
        return (
            message if isinstance(message, str) else "",
            kind if isinstance(kind, str) else None,
            code if isinstance(code, str) else None,
        )
    return error if isinstance(error, str) else "", None, None


def code_of(error: Any) -> Any:
    return error.get("code") if isinstance(error, dict) else None


def _seconds(retry_after: str | None) -> float | None:
    try:
        return max(0.0, float(retry_after or ""))
    except ValueError:
        return None


def not_an_answer(body: bytes) -> BackendError | TooManyRequests:
    """A 200 that is no answer: empty, an error object, or nothing that we know."""
    if not body.strip():
        return BackendError("The backend's answer is empty.", code="backend_empty_answer")
    described = json_or_none(body)
    if isinstance(described, dict) and described.get("error"):
        return refusal_of(code_of(described["error"]), described["error"])
    return BackendError("The backend's answer cannot be understood.", code="backend_bad_answer")


def json_or_none(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
