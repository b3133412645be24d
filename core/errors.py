"""The error tree, and the one spelling of OpenAI's error object.

    APIError                     what a client reads: status, message, type, param, code
    ├── InvalidRequest      400  the request is wrong; names the parameter
    │   ├── Unsupported     400  the request is right, but no chat-completions backend can carry this part of it
    │   ├── MethodNotAllowed 405
    │   ├── UpgradeRefused  426  there are no WebSockets
    │   ├── HeadTooLarge    431
    │   └── RequestTimedOut 408  its head or body does not come
    ├── Unauthorized        401
    ├── Forbidden           403  whoever asks may not, and no key would help
    ├── NotFound            404
    ├── TooLarge            413
    ├── TooManyRequests     429  with Retry-After
    │   └── LimitReached    429  a limit of a key or an owner; with the headers that name what is left
    ├── ServerError         500  a fault of ours; the cause is in the log
    │   ├── Interrupted     503  the router stopped first
    │   └── TakenOver            another process works on it by now
    ├── ModelFailed         502  a model's fault, on a backend that is well
    └── BackendError        502  a backend's fault, in words of ours
        ├── BackendUnreachable   no connection, or it broke before the first byte of an answer
        ├── BackendCut           the answer broke off in the middle
        ├── BackendTimeout  504
        └── BackendRefused  its own 4xx, kept because the client can act on it

    StartError                   the router cannot start: one line for whoever starts it; no client sees it
    └── ConfigError              a setting is wrong

Foreign errors (httpx2's, openai's, a server's own) get one of these names at the border, in `backends/wire/errors.py`.
Specification: OpenAI's `{"error": {message, type, param, code}}`, which Open Responses shares.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeVar

# About how long a restart takes.
RESTART_S = 5.0
# OpenAI's SDKs wait no longer than that when they are asked to.
LONGEST_RETRY_S = 60.0
CODES_OF_CODEX = frozenset({"context_length_exceeded", "insufficient_quota"})


class APIError(Exception):
    """An error that a client may read. `message` must never hold a key or a prompt of somebody else."""

    status = 500
    type = "server_error"
    code: str | None = None
    # The error object of a server that speaks to our clients in their own words, and the headers that it has for them.
    original: Mapping[str, Any] | None = None
    passed_on_headers: Mapping[str, str] = MappingProxyType({})

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        status: int | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or type(self).code
        self.status = status or type(self).status
        self.retry_after_s = retry_after_s

    def headers(self) -> dict[str, str]:
        """The HTTP headers that belong to it."""
        wait = {} if self.retry_after_s is None else {"Retry-After": f"{math.ceil(self.retry_after_s)}"}
        return {**wait, **self.passed_on_headers}

    def to_dict(self) -> dict[str, Any]:
        """The object under `"error"` in an HTTP body and in a stream's `error` event."""
        ours = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return ours if self.original is None else {**self.original, **ours}

    def to_response_error(self) -> dict[str, Any]:
        """The `error` of a failed response. Its `code` is one of OpenAI's few, because strict clients know no other;
        the exceptions are those that Codex acts on, and those that a server that speaks Responses has given itself."""
        if self.code and ((self.original or {}).get("code") or self.code in CODES_OF_CODEX):
            code = self.code
        elif self.status == 429:
            code = "rate_limit_exceeded"
        elif self.status < 500:
            code = "invalid_prompt"
        else:
            code = "server_error"
        return {"code": code, "message": self.message, "type": self.type, "param": self.param}


E = TypeVar("E", bound=BaseException)


def without_frames(error: E) -> E:
    """The error, and what caused it, without their frames. For an error that is kept, or has been answered: its frames
    hold the request, and where one of them holds the error, only the collector would free them all."""
    known: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is not None and id(one) not in known:
            known.add(id(one))
            one.__traceback__ = None
            waiting += (one.__cause__, one.__context__)
    return error


class InvalidRequest(APIError):
    status = 400
    type = "invalid_request_error"


class Unsupported(InvalidRequest):
    code = "unsupported_parameter"


class Unauthorized(APIError):
    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"

    def headers(self) -> dict[str, str]:
        return {"WWW-Authenticate": "Bearer"}


class Forbidden(APIError):
    status = 403
    type = "invalid_request_error"


class NotFound(APIError):
    status = 404
    type = "invalid_request_error"
    code = "not_found"


class MethodNotAllowed(InvalidRequest):
    status = 405
    code = "invalid_method"

    def __init__(self, message: str, allowed: list[str]) -> None:
        super().__init__(message)
        self.allowed = allowed

    def headers(self) -> dict[str, str]:
        return {"Allow": ", ".join(self.allowed)}


class UpgradeRefused(InvalidRequest):
    """The answer to an upgrade where there are no WebSockets. Codex knows it, and falls back to HTTP at once."""

    status = 426
    code = "websockets_disabled"

    def __init__(self) -> None:
        super().__init__("There are no WebSockets here: use HTTP.")

    def headers(self) -> dict[str, str]:
        return {"Upgrade": "HTTP/1.1"}


class TooLarge(APIError):
    status = 413
    type = "invalid_request_error"
    code = "request_too_large"


class HeadTooLarge(InvalidRequest):
    status = 431
    code = "head_too_large"

    def __init__(self) -> None:
        super().__init__("The head of a request may have 64 KB and 200 headers.")


class RequestTimedOut(InvalidRequest):
    status = 408
    code = "request_timeout"

    @classmethod
    def of_body(cls, seconds: float) -> RequestTimedOut:
        """That of a body of which nothing has come for so long."""
        return cls(f"Nothing more of the body of the request has come for {seconds:g} s.")


class TooManyRequests(APIError):
    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class LimitReached(TooManyRequests):
    """A key or an owner has no more of something. `kind` is what, as OpenAI's errors name it; `headers` what is left.
    Where it takes longer than clients should wait (`LONGEST_RETRY_S`), they are asked not to try again by
    themselves."""

    def __init__(
        self,
        message: str,
        kind: str = "requests",
        headers: Mapping[str, str] = MappingProxyType({}),
        *,
        retry_after_s: float | None = None,
        code: str = "rate_limit_exceeded",
    ) -> None:
        super().__init__(message, code=code, retry_after_s=retry_after_s)
        self.type = kind
        if retry_after_s is None or retry_after_s > LONGEST_RETRY_S:
            self.passed_on_headers = {**headers, "x-should-retry": "false"}
        else:
            self.passed_on_headers = {**headers, "retry-after-ms": f"{math.ceil(retry_after_s * 1000)}"}


class ServerError(APIError):
    code = "internal_error"


class TakenOver(ServerError):
    """Another process works on it by now: what this one would have stored was not."""

    code = "storage_error"

    def __init__(self) -> None:
        super().__init__("Another process of the router has taken this response over.")


class Interrupted(ServerError):
    """The router stopped before it was done: the client may ask again."""

    status = 503
    code = "interrupted"

    def __init__(self) -> None:
        super().__init__("The router stopped while this response was running.", retry_after_s=RESTART_S)


class BackendError(APIError):
    status = 502
    code: str | None = "backend_error"


class ModelFailed(APIError):
    """The model did not do what was asked of it, on a backend that is well."""

    status = 502
    code = "invalid_structured_output"


class BackendUnreachable(BackendError):
    code = "backend_unreachable"


class BackendCut(BackendError):
    code = "backend_disconnected"


class BackendTimeout(BackendError):
    status = 504
    code = "backend_timeout"


class BackendRefused(BackendError):
    status = 400
    type = "invalid_request_error"
    code: str | None = None
    # What it cannot do: `tools`, `images`, or the name of a parameter.
    unsupported: str | None = None
    # By how much a request is too long: `backends.kinds.words.Overflow`.
    overflow: Any = None
    # What of its messages it does not take: `backends.kinds.words.SYSTEM`, `ORDER` or `NULL`.
    roles: str | None = None


class StartError(Exception):
    """One line for the person who starts the router: what is wrong, and what to do."""


class ConfigError(StartError):
    """A setting is wrong."""
