"""Replies out: JSON and streams, by ASGI or straight to the socket."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from api.http.headers import headers_of
from api.http.leaving import ClientLeft, ClientWatch
from api.http.origins import share
from api.http.protocol import wire_of
from core.errors import APIError
from core.json import encode_json

log = logging.getLogger("nomyo.requests")

RawHeaders = list[tuple[bytes, bytes]]


def raw(headers: Mapping[str, str]) -> RawHeaders:
    """Headers as ASGI has them."""
    return [*map(_raw, headers.items())]


@lru_cache(maxsize=256)
def _raw(header: tuple[str, str]) -> tuple[bytes, bytes]:
    """The same again with nearly every answer."""
    name, value = header
    return name.lower().encode("latin-1"), value.encode("latin-1")


JSON_TYPE = (b"content-type", b"application/json")


class JSONReply(Response):
    """A whole answer: `body` is JSON already."""

    background = None

    def __init__(self, body: bytes, status: int, headers: Mapping[str, str]) -> None:
        self.status_code = status
        self.body: bytes = body
        self.raw_headers = [(b"content-length", b"%d" % len(body)), JSON_TYPE, *map(_raw, headers.items())]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (wire := wire_of(scope)) is not None:
            wire.respond(self.status_code, self.raw_headers, self.body)
        else:
            await super().__call__(scope, receive, send)


def json_response(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A reply whose body is `body` as JSON."""
    return JSONReply(encode_json(body), status, headers or {})


class Pipe(Protocol):
    """The body of a streamed answer, on its way to the client. Whoever sets `is_silent` finds out whether something was
    written since."""

    is_silent: bool

    def start(self, status: int, headers: RawHeaders) -> None:
        """Sends the head."""
        ...

    def write(self, body: bytes) -> bool:
        """Sends a piece of the body. False: there is no room for more, until `when_drained` calls."""
        ...

    def end(self, body: bytes) -> None:
        """Sends the last piece of the body."""
        ...

    def when_drained(self, call: Callable[[], None]) -> None:
        """Has `call` called once, as soon as there is room again."""
        ...

    async def flush(self) -> None:
        """Waits until all has been handed over."""
        ...

    def stop(self) -> None:
        """Nothing more is sent."""
        ...


class ASGIPipe:
    """The way by ASGI (`Pipe`), where sending must be awaited: a task sends what was written meanwhile."""

    def __init__(self, send: Send) -> None:
        self.is_silent = False
        self._send = send
        self._left: deque[Message] = deque()
        self._size = 0
        self._task: asyncio.Task[None] | None = None
        self._on_drained: Callable[[], None] | None = None
        self._is_broken = False

    def start(self, status: int, headers: RawHeaders) -> None:
        """Sends the head."""
        self._put({"type": "http.response.start", "status": status, "headers": headers})

    def write(self, body: bytes) -> bool:
        """Sends a piece of the body. False: much waits to be sent."""
        self.is_silent = False
        self._size += len(body)
        self._put({"type": "http.response.body", "body": body, "more_body": True})
        return self._size < MOST_UNSENT

    def end(self, body: bytes) -> None:
        """Sends the last piece of the body."""
        self._put({"type": "http.response.body", "body": body, "more_body": False})

    def when_drained(self, call: Callable[[], None]) -> None:
        """Has `call` called once, as soon as less waits."""
        self._on_drained = call

    async def flush(self) -> None:
        """Waits until all has been sent."""
        if self._task is not None:
            await self._task

    def stop(self) -> None:
        """Nothing more is sent."""
        if (task := self._task) is not None and not task.cancel() and not task.cancelled():
            task.exception()  # It was raised in `flush`, or nobody is left to whom it matters.

    def _put(self, message: Message) -> None:
        if self._is_broken:
            return  # Whoever waits in `flush` hears of it.
        self._left.append(message)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._send_all(), name="answer by ASGI")

    async def _send_all(self) -> None:
        while self._left:
            message = self._left.popleft()
            try:
                await self._send(message)
            except BaseException:
                self._is_broken = True
                raise
            self._size -= len(message.get("body", b""))
            if self._size < MOST_UNSENT and (call := self._on_drained) is not None:
                self._on_drained = None
                call()


# What waits to be sent by ASGI, at most and about.
MOST_UNSENT = 64 * 1024


def pipe_of(request: Request) -> Pipe:
    """The way out for the streamed answer to a request."""
    scope = request.scope
    return wire_of(scope) or ASGIPipe(framed_for(scope, request._send))


class Sent(Response):
    """An answer that has left already; `error` is what broke it off."""

    status_code = 200

    def __init__(self, error: Exception | None = None) -> None:
        self.raw_headers = []
        self.background = None
        self._error = error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (error := self._error) is not None:
            self._error = None
            raise error


class StreamedReply(Response):
    """An answer whose end is not known yet, which leaves as it is made: `answer` awaits whoever writes here. Nobody on
    the way shall keep it."""

    has_begun = False
    on_begin: Callable[[], object] | None = None
    # What is written leaves as it is.
    sends_bytes = True

    def __init__(self, request: Request) -> None:
        self._request = request
        self._pipe = pipe_of(request)

    async def answer(self, source: Awaitable[None]) -> Response:
        """The answer, when it has left. Raises what `source` raises, if nothing has begun to leave."""
        try:
            async with ClientWatch(self._request.scope, self._request.receive):
                await source
                await self._pipe.flush()
        except ClientLeft:
            if not self.has_begun:
                raise
        except Exception as error:
            if not self.has_begun:
                raise
            if not isinstance(error, APIError):
                return Sent(error)
            # The server closes the connection: half a body must not look like a whole one.
            log.warning("an answer broke off: %s", error.code)
        finally:
            self.stop()
            if self.has_begun:
                self._request.scope["app"].state.telemetry.streams -= 1
        return Sent()

    def headers_now(self) -> Mapping[str, str]:
        """The headers of an answer that begins now."""
        return {}

    def begin(self) -> None:
        """Sends the head."""
        if self.on_begin is not None:
            self.on_begin()
        self.raw_headers = [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"), *raw(self.headers_now())]
        scope = self._request.scope
        if b"origin" in headers_of(scope):
            share(self, scope, scope["app"].state.config)
        self._pipe.start(200, self.raw_headers)
        self.has_begun = True
        scope["app"].state.telemetry.streams += 1
        if self.sends_bytes:  # For each token one call less.
            self.write = self._pipe.write  # type: ignore[method-assign]

    def write(self, body: bytes) -> bool:
        """Sends a piece of the body. False: there is no room for more, until `when_drained` calls."""
        if not self.has_begun:
            self.begin()
        return self._pipe.write(body)

    def end(self, body: bytes = b"") -> None:
        """Sends the last piece of the body."""
        if not self.has_begun:
            self.begin()
        self._pipe.end(body)

    def when_drained(self, call: Callable[[], None]) -> None:
        """Has `call` called once, as soon as there is room again."""
        self._pipe.when_drained(call)

    def stop(self) -> None:
        """It has ended, or broken off."""
        self._pipe.stop()


def framed_for(scope: Scope, send: Send) -> Send:
    """`send` for an answer whose length is not known yet, by ASGI. A client of HTTP/1.0 does not know the chunks in
    which servers would send it: to that one it leaves when it is whole, with its length."""
    if scope["http_version"] != "1.0":
        return send
    start: Message = {}
    pieces: list[bytes] = []

    async def send_whole(message: Message) -> None:
        if message["type"] == "http.response.start":
            start.update(message)
            return
        pieces.append(message.get("body", b""))
        if not message.get("more_body", False):
            body = b"".join(pieces)
            start["headers"] = [*start["headers"], (b"content-length", b"%d" % len(body))]
            await send(start)
            await send({"type": "http.response.body", "body": body, "more_body": False})

    return send_whole
