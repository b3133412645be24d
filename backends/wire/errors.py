"""Foreign errors by our names, once, at the border: our HTTP client's, the SDK's, and what a server says of itself.

named(error)                   of a client of ours or the SDK's
error_of(status, reported)     of a server's error
not_an_answer(body)            of a 200 that is no answer
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import orjson

from backends.kinds import LEXICON
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
    ours = named(error, begun=begun)
    if ours is error:
        raise error
    raise ours from error


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
        return error_of(error.status_code, error.body, error.response.headers.get("retry-after"))
    if isinstance(error, openai.APIError):
        return error_of(code_of(error.body), error.body)
    return None


# ── a server's own errors ────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Report:
    """What a server says of an error: its HTTP status, or the code in an error inside of a stream, and what of OpenAI's error
    object there is."""

    status: int
    reported: Any
    message: str
    type: str | None
    code: str | None
    retry_after_s: float | None

    @property
    def object(self) -> dict[str, Any]:
        return self.reported if isinstance(self.reported, dict) else {}


def error_of(status: Any, reported: Any, retry_after: str | None = None) -> BackendError | TooManyRequests:
    """Our error for a server's. `status` is its HTTP status, or the code in an error inside of a stream; `reported` OpenAI's error
    object, a text, or something of its own.

    A status is kept where it tells the client something that it can act on; a fault of the server, or of the key that the
    router holds for it, is a 502.
    """
    report = _report(status, reported, retry_after)
    if by_status := _BY_STATUS.get(report.status):
        return by_status(report)
    if overflow := LEXICON.overflow(report.message, report.object):
        refused = BackendRefused(report.message, code="context_length_exceeded", param="input")
        refused.overflow = overflow
        return refused
    if unsupported := LEXICON.unsupported(report.message, report.object):
        refused = BackendRefused(
            report.message, code="unsupported_parameter", param=_PARAMS.get(unsupported, unsupported)
        )
        refused.unsupported = _CHAT_PARAMS.get(unsupported, unsupported)
        return refused
    return _BY_STATUS_AND_WORDS.get(report.status, _failed if report.status >= 500 else _refused)(report)


def _report(status: Any, reported: Any, retry_after: str | None) -> Report:
    status = status if isinstance(status, int) and 400 <= status < 600 else 500
    message: Any = reported
    kind = code = None
    if isinstance(reported, dict):
        message = reported.get("message") or reported.get("detail") or reported.get("error")
        kind, code = reported.get("type"), reported.get("code")
    return Report(
        status,
        reported,
        message if isinstance(message, str) else "",
        kind if isinstance(kind, str) else None,
        code if isinstance(code, str) else None,
        _seconds(retry_after),
    )


def _seconds(retry_after: str | None) -> float | None:
    try:
        return max(0.0, float(retry_after or ""))
    except ValueError:
        return None


def code_of(error: Any) -> Any:
    return error.get("code") if isinstance(error, dict) else None


def _busy(report: Report) -> TooManyRequests:
    return TooManyRequests(report.message or "The backend is busy.", retry_after_s=report.retry_after_s)


def _not_accepted(report: Report) -> BackendError:
    return BackendError("The backend did not accept the router's key.", code="backend_authentication_failed")


def _late(report: Report) -> BackendTimeout:
    return BackendTimeout(report.message or "The backend sent nothing in time.")


def _not_ready(report: Report) -> BackendUnreachable:
    return BackendUnreachable(report.message or "The backend is not ready.", retry_after_s=report.retry_after_s)


def _cannot(report: Report) -> BackendRefused:
    # llama.cpp, asked for embeddings that it was not started for. Another server of the model may have them.
    return BackendRefused(report.message or "The backend cannot do this.", status=501, code="not_supported")


def _not_found(report: Report) -> BackendError:
    # A path that it does not have has no error object, or llama.cpp's: then our settings are wrong, not the model.
    is_bare = report.type is None and not isinstance(report.reported, str)
    if is_bare or (report.type == "not_found_error" and code_of(report.reported) == 404):
        return BackendError(
            f"The backend has no such path, so its url or kind is wrong: {report.message or 'not found'}",
            code="backend_path_not_found",
        )
    return BackendRefused(
        report.message or "The backend does not know this.", status=404, code="model_not_found", param="model"
    )


def _failed(report: Report) -> BackendError:
    return BackendError(f"The backend failed: {report.message}" if report.message else "The backend failed.")


def _refused(report: Report) -> BackendRefused:
    status = 413 if report.status == 413 else 400
    return BackendRefused(report.message or "The backend refused the request.", status=status, code=report.code)


_Rule = Callable[[Report], BackendError | TooManyRequests]
# Of these the words say no more.
_BY_STATUS: dict[int, _Rule] = {
    401: _not_accepted,
    403: _not_accepted,
    408: _late,
    429: _busy,
    503: _not_ready,
    504: _late,
}
_BY_STATUS_AND_WORDS: dict[int, _Rule] = {404: _not_found, 501: _cannot}

# What a backend cannot do, as parameters of the client's request and of ours.
_PARAMS = {
    "images": "input",
    "audio": "input",
    "thinking": "reasoning.effort",
    "max_tokens": "max_output_tokens",
    "response_format": "text",
}
_CHAT_PARAMS = {"thinking": "reasoning_effort"}


def not_an_answer(body: bytes) -> BackendError | TooManyRequests:
    """A 200 that is no answer: empty, an error object, or nothing that we know."""
    if not body.strip():
        return BackendError("The backend's answer is empty.", code="backend_empty_answer")
    described = json_or_none(body)
    if isinstance(described, dict) and described.get("error"):
        return error_of(code_of(described["error"]), described["error"])
    return BackendError("The backend's answer cannot be understood.", code="backend_bad_answer")


def json_or_none(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
