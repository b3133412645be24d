"""What goes with a request wherever it goes: its id, and where it stands in somebody's trace.

    begin_request(scope's headers, path) ──▶ RequestContext ──lines()──▶ headers of what is asked of backends
                                                   └──▶ the answer, the log, the record of its turn

`x-request-id` is taken where a client gives one that can be a header, else made. W3C's `traceparent` and `tracestate`
are passed on as they came, or with a span of ours where traces are on (`api/tracing.py`).
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from contextvars import ContextVar
from itertools import count
from secrets import token_hex
from typing import Any

from msgspec import Struct, field

HEADER = b"x-request-id"
_VALID = re.compile(rb"[!-~]{1,128}")
# Version 00 of W3C Trace Context, and later ones that begin alike; an id of zeros is invalid.
_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-[!-~]*)?")
_TRACESTATE = re.compile(rb"[ -~]{1,512}")
# Ids of this process: none of another one's begins like that.
_PREFIX = b"req_" + token_hex(6).encode() + b"%08x"
_number = count(1)


class RequestContext(Struct, eq=False):
    """One request, or one turn of a WebSocket. `path` names its front door; `door` another name for that, where the
    path does not (`websocket`, `background`). `began_s` is of the monotonic clock.
    `span` is that of its turn, where traces are on, and `content` what was asked and answered, where they are to have
    that."""

    id: bytes
    path: str = ""
    door: str = ""
    traceparent: bytes = b""
    tracestate: bytes = b""
    began_s: float = field(default_factory=time.monotonic)
    # When the head of a backend's answer was there.
    answered_s: float = 0.0
    # When its turn was stored.
    stored_s: float = 0.0
    # How its turn ended, once it has.
    ending: str = ""
    span: Any = None
    content: Any = None

    def lines(self) -> bytes:
        """The headers by which a backend, or a peer, gets it."""
        if not self.traceparent:
            return b"x-request-id: %b\r\n" % self.id
        state = b"tracestate: %b\r\n" % self.tracestate if self.tracestate else b""
        return b"x-request-id: %b\r\ntraceparent: %b\r\n%b" % (self.id, self.traceparent, state)


_current: ContextVar[RequestContext | None] = ContextVar("request", default=None)
# The request that the running task works for; None outside of one.
current_request = _current.get
set_request = _current.set


def begin_request(headers: Mapping[bytes, bytes], path: str) -> RequestContext:
    """The context of a request that has just come, for all that the running task does from here on."""
    context = RequestContext(
        headers[HEADER] if HEADER in headers and _VALID.fullmatch(headers[HEADER]) else _PREFIX % next(_number), path
    )
    if b"traceparent" in headers and _TRACEPARENT.fullmatch(headers[b"traceparent"]):
        context.traceparent = headers[b"traceparent"]
        state = headers.get(b"tracestate", b"")
        context.tracestate = state if _TRACESTATE.fullmatch(state) else b""
    set_request(context)
    return context


def within(before: RequestContext | None, door: str) -> RequestContext:
    """The context of a turn that another request has led to, and goes on without it: of the same trace."""
    if before is None:
        return RequestContext(_PREFIX % next(_number), door=door)
    return RequestContext(before.id, before.path, door, before.traceparent, before.tracestate, span=before.span)
