"""Foreign errors by our names, once, at the border: our HTTP client's, the SDK's, and a server's own.

named(error)     our name for an error of a client of ours, or of the SDK's
ServerErrors     our names for a server's own
    of_answer(status, body)    an HTTP error
    inside(value)              an error inside of an answer
    not_an_answer(body)        a 200 that is no answer
"""

from __future__ import annotations

import re
import socket
import ssl
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any, NoReturn, TypeVar

from backends.kinds import LEXICON
from backends.wire.http1 import BadAnswer, ConnectTimeout, OversizedAnswer
from backends.wire.reports import NO_HEADERS, Report, masking, read_report, report_of
from core.errors import (
    BackendCut,
    BackendError,
    BackendRefused,
    BackendTimeout,
    BackendUnreachable,
    TooManyRequests,
)
from core.hops import RouterLoop
from core.json import encode_json
from requests.bounded_json import json_or_none
from requests.chat import means_error

# What an error of a server's becomes.
Named = BackendError | TooManyRequests
Error = TypeVar("Error", bound=Named)


def named(error: Exception, *, begun: bool = False) -> Exception:
    """Our name for a foreign error, or the error itself. `begun`: a part of the answer has arrived already."""
    if isinstance(error, ConnectTimeout):
        return BackendUnreachable("The backend took no connection in time.")
    if isinstance(error, TimeoutError):
        return BackendTimeout("The backend sent nothing in time.")
    if isinstance(error, OversizedAnswer):
        return BackendError(f"The backend's answer was refused: {error}.", code="backend_answer_too_large")
    if isinstance(error, BadAnswer | OSError):
        if begun:
            return BackendCut("The backend broke off its answer.")
        if isinstance(error, BadAnswer):
            return BackendError("The backend's answer is no valid HTTP.", code="backend_bad_answer")
        return BackendUnreachable(_unreachable(error))
    return _named_sdk_error(error) or error


def _unreachable(error: OSError) -> str:
    """Why there is no connection, or none any more: what whoever runs the router must look at."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"The backend's certificate is not accepted: {error.verify_message or 'it could not be verified'}."
    if isinstance(error, ssl.SSLError):
        return "The backend does not speak TLS as it should."
    if isinstance(error, socket.gaierror):
        return "The backend's host name could not be resolved (DNS)."
    if isinstance(error, ConnectionRefusedError):
        return "The backend could not be reached: it refused the connection."
    return "The backend could not be reached."


def raise_named(error: Exception, *, begun: bool = False) -> NoReturn:
    """Raises our name for a foreign error, with that as its cause, or the error itself."""
    ours = named(error, begun=begun)
    try:
        if ours is error:
            raise error
        raise ours from error
    finally:
        # The error has this frame, and this frame would have the error: a cycle that holds the request's body.
        del ours, error


def _named_sdk_error(error: Exception) -> Named | None:
    """Our name for an error of the official SDK, should its client stand in for ours. We do not import it for that:
    where it is in use, it is loaded."""
    openai = sys.modules.get("openai")
    if openai is None:
        return None
    if isinstance(error, openai.APITimeoutError):
        return BackendTimeout("The backend sent nothing in time.")
    if isinstance(error, openai.APIConnectionError):
        return BackendUnreachable("The backend could not be reached.")
    if isinstance(error, openai.APIStatusError):
        return ANY_SERVER.of_answer(error.status_code, encode_json(error.body), error.response.headers)
    if isinstance(error, openai.APIError):
        return ANY_SERVER.inside(error.body)
    return None


# ── a server's own errors ────────────────────────────────────────────────────────────────────────────────────────────


class ServerErrors:
    """Our names for the errors of a server. `secrets` are texts of ours that it knows and may repeat: they are masked.
    `passes_on`: it speaks to our clients in their own words, so an error object of its goes on as it is."""

    def __init__(self, secrets: Collection[str] = (), *, passes_on: bool = False) -> None:
        self._mask = masking(secrets)
        self._passes_on = passes_on

    def of_answer(self, status: int, body: bytes, headers: Mapping[str, str] = NO_HEADERS) -> Named:
        """Of an HTTP answer with a status of 400 or more."""
        return self._named(read_report(status, body, headers, self._mask))

    def inside(self, value: Any, status: int | None = None) -> Named:
        """Of an error inside of an answer that began well."""
        return self._named(report_of(status, value, self._mask))

    def not_an_answer(self, body: bytes) -> Named:
        """Of a 200 that is no answer: empty, an error, or nothing that we know."""
        if not body.strip():
            return BackendError("The backend's answer is empty.", code="backend_empty_answer")
        value = json_or_none(body)
        if isinstance(value, dict) and (
            means_error(value.get("error")) or _has_failed(value.get("base_resp")) or _has_words(value)
        ):
            return self.inside(value)
        return BackendError("The backend's answer cannot be understood.", code="backend_bad_answer")

    def _named(self, report: Report) -> Named:
        """A status is kept where the client can act on it; a fault of the server, or of the key
        that the router holds for it, is a 502."""
        if self._passes_on and _can_go_on(report):
            return _passed_on(report)
        if report.status in _ABOUT_US and (error := _ABOUT_US[report.status](report)):
            return error
        if error := _by_words(report):
            return error
        return _BY_STATUS.get(report.status, _failed if report.status >= 500 else _refused)(report)


def _has_failed(base: Any) -> bool:
    """MiniMax's errors are 200s: the code is in `base_resp`."""
    return isinstance(base, dict) and bool(base.get("status_code"))


def _has_words(value: Mapping[str, Any]) -> bool:
    """Whether an object has a message and no answer, as the errors of many services that are 200s."""
    keys = ("message", "msg", "detail", "error_msg", "error_message", "errorMessage", "Message")
    return not value.keys() & {"choices", "output"} and any(isinstance(value.get(key), str) for key in keys)


def _by_words(report: Report) -> BackendError | None:
    """What the request or a parameter is refused for, whatever the status: llama.cpp's templates fail with a 500."""
    if report.status >= 500 and LEXICON.is_misused(report.words):
        return _cannot(report)
    if overflow := LEXICON.overflow(report.words, report.object):
        refused = BackendRefused(_words_or_ours(report), code="context_length_exceeded", param="input")
        refused.overflow = overflow
        return refused
    if roles := LEXICON.roles(report.words):
        refused = BackendRefused(_words_or_ours(report), code=report.code, param="input")
        refused.roles = roles
        return refused
    if unsupported := LEXICON.unsupported(report.words, report.object):
        param = _PARAMS.get(unsupported, unsupported)
        refused = BackendRefused(_words_or_ours(report, param), code="unsupported_parameter", param=param)
        refused.unsupported = _CHAT_PARAMS.get(unsupported, unsupported)
        return refused
    return None


def _words_or_ours(report: Report, param: str | None = None) -> str:
    return report.message or (f"The backend refused '{param}'." if param else "The backend refused the request.")


# ── by status ────────────────────────────────────────────────────────────────────────────────────────────────────────

# With one of these as its code or type it is the account that has no money left, not the server that is busy.
_NO_QUOTA = frozenset({"insufficient_quota", "exceeded_current_quota_error", "billing_not_active"})
# A 403 with one of these is about the request, and not about our key.
_FORBIDDEN = ("does not have access to model", "moderation", "was flagged", "content policy", "safety")


def _busy(report: Report) -> TooManyRequests | None:
    if LEXICON.overflow(report.words, report.object):
        return None  # More in one request than may be sent in a minute: no waiting helps.
    code = "insufficient_quota" if _NO_QUOTA.intersection((report.code, report.type)) else None
    return _with_headers(
        TooManyRequests(report.message or "The backend is busy.", code=code, retry_after_s=report.retry_after_s), report
    )


def _not_accepted(report: Report) -> BackendError:
    # Its words may name a part of the key.
    return BackendError("The backend did not accept the router's key.", code="backend_authentication_failed")


def _forbidden(report: Report) -> BackendError:
    words = report.words.lower()
    if report.code == "model_not_found" or _FORBIDDEN[0] in words:
        return BackendRefused(_words_or_ours(report), status=403, code="model_not_found", param="model")
    if any(what in words for what in _FORBIDDEN):
        return BackendRefused(_words_or_ours(report), status=403, code=report.code)
    return _not_accepted(report)


def _late(report: Report) -> BackendTimeout:
    return BackendTimeout(report.message or "The backend sent nothing in time.")


def _loops(report: Report) -> BackendError:
    # By the status alone: the words are those of the front door that was asked.
    return BackendError(report.message, status=RouterLoop.status, code=RouterLoop.code)


def _not_ready(report: Report) -> BackendUnreachable:
    error = BackendUnreachable(report.message or "The backend is not ready.", retry_after_s=report.retry_after_s)
    return _with_headers(error, report)


def _no_money(report: Report) -> BackendError:
    # Another server of the model may be paid for.
    return BackendError(report.message or "The backend wants to be paid.", status=402, code="insufficient_quota")


def _cannot(report: Report) -> BackendRefused:
    # llama.cpp, asked for embeddings that it was not started for. Another server of the model may have them.
    return BackendRefused(report.message or "The backend cannot do this.", status=501, code="not_supported")


def _not_found(report: Report) -> BackendError:
    if _is_no_path(report):
        return BackendError(
            f"The backend has no such path, so its url or kind is wrong: {report.message or 'not found'}",
            code="backend_path_not_found",
        )
    message = report.message or "The backend does not know this."
    return BackendRefused(message, status=404, code="model_not_found", param="model")


def _is_no_path(report: Report) -> bool:
    """Whether a 404 is about the path, and not about the model: then our settings are wrong. It has no error object, or
    llama.cpp's."""
    is_described = bool(report.type or report.code or isinstance(report.object.get("error"), str))
    is_llamas = report.type == "not_found_error" and report.object.get("code") == 404
    return not is_described or is_llamas or report.words.lower().rstrip(".") == "not found"


# The paths of OpenAI's API that a server has for some models alone, and whether its models speak there.
FRONT_DOORS = {
    "/responses": True,
    "/chat/completions": True,
    "/completions": True,
    "/embeddings": False,
    "/rerank": False,
}


def of_missing_path(error: Named, path: str) -> Named:
    """The error for a front door that a server lacks, where it was found by its list of models: that its model is none
    for this path is as likely as a wrong setting. Another error is itself."""
    is_method = isinstance(error, BackendRefused) and "method not allowed" in error.message.lower()
    if error.code != "backend_path_not_found" and not is_method:
        return error
    if not FRONT_DOORS[path]:
        return BackendRefused(
            f"The server of this model has no /v1{path}: it may be a model that chats.",
            status=501,
            code="not_supported",
            param="model",
        )
    return BackendError(
        f"The server of this model has no {path} there: it may be a model that does not chat, such as one that embeds, "
        "or the url or kind of the endpoint is wrong.",
        code="backend_path_not_found",
    )


def _failed(report: Report) -> BackendError:
    return BackendError(f"The backend failed: {report.message}" if report.message else "The backend failed.")


def _refused(report: Report) -> BackendRefused:
    status = 413 if report.status == 413 else 400
    param = report.param
    root = re.split(r"[.\[]", param, maxsplit=1)[0] if param else None
    param = "input" if root == "messages" else _PARAMS.get(param, _PARAMS.get(root, param))
    return BackendRefused(_words_or_ours(report), status=status, code=report.code, param=param)


# These are about us and the server, whatever the words are.
_ABOUT_US: dict[int, Callable[[Report], Named | None]] = {
    401: _not_accepted,
    402: _no_money,
    403: _forbidden,
    408: _late,
    429: _busy,
    503: _not_ready,
    504: _late,
    508: _loops,
    529: _not_ready,
}
_BY_STATUS: dict[int, Callable[[Report], Named]] = {404: _not_found, 501: _cannot}

# What a backend cannot do, as parameters of the client's request and of ours.
_PARAMS: dict[str | None, str] = {
    "images": "input",
    "audio": "input",
    "thinking": "reasoning.effort",
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text",
    "verbosity": "text.verbosity",
}
_CHAT_PARAMS = {"thinking": "reasoning_effort"}


# ── errors that go on as they are ────────────────────────────────────────────────────────────────────────────────────


def _can_go_on(report: Report) -> bool:
    """Whether it is an error object with words, and not about the router's key or settings."""
    is_ours = report.status in (401, 407) or (report.status == 404 and _is_no_path(report))
    return isinstance(report.object.get("message"), str) and bool(report.words) and not is_ours


def _passed_on(report: Report) -> Named:
    """The error of a server that speaks our clients' language: its status, its object and what its headers hold for a
    client."""
    roles = LEXICON.roles(report.words)
    overflow = LEXICON.overflow(report.words, report.object)
    # What it refuses is no fault of the server's, whatever its status.
    refuses = report.status < 500 or roles is not None or overflow is not None
    kind = _CLASSES.get(report.status, BackendRefused if refuses else BackendError)
    code = report.code or (
        "context_length_exceeded" if overflow else "model_not_found" if report.status == 404 else None
    )
    error = kind(
        report.object["message"] or report.message,
        status=report.status,
        code=code,
        param=report.param or ("input" if overflow else None),
        retry_after_s=report.retry_after_s,
    )
    error.original = {key: value for key, value in report.object.items() if key not in _OF_THE_EVENT}
    error.type = report.type if report.type not in (None, "error") else error.type
    if isinstance(error, BackendRefused):
        error.overflow, error.roles = overflow, roles
        error.unsupported = LEXICON.unsupported(report.words, report.object)
    return _with_headers(error, report)


# Where an error is an event of a stream, this is about the event.
_OF_THE_EVENT = frozenset({"type", "sequence_number", "event_id"})
_CLASSES: dict[int, type[BackendError | TooManyRequests]] = {
    408: BackendTimeout,
    429: TooManyRequests,
    503: BackendUnreachable,
    504: BackendTimeout,
    529: BackendUnreachable,
}


def _with_headers(error: Error, report: Report) -> Error:
    error.passed_on_headers = report.headers
    return error


# Where nothing is known of the server.
ANY_SERVER = ServerErrors()
