"""What every surface needs of HTTP: the key at the gate, bodies in, JSON and streams out, clients that leave."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from functools import lru_cache
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

import orjson
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from api.wire import Wire, wire_of
from errors import APIError, InvalidRequest, TooLarge, Unauthorized
from requests.sse import KEEPALIVE, frames, obfuscated
from state import AppState

KEEPALIVE_S = 15.0
LAST_EVENTS = frozenset({"response.completed", "response.incomplete", "response.failed"})
OPEN_PATHS = frozenset({"/health"})


class ClientLeft(Exception):
    """The client closed the connection: nobody reads what we answer."""


class Gate:
    """ASGI middleware: asks for the router's key, where one is set. It wraps nothing, so it costs a stream nothing."""

    def __init__(self, app: ASGIApp, state: AppState) -> None:
        self._app = app
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket") and scope["path"] not in OPEN_PATHS:
            try:
                check_key(self._state, scope)
            except Unauthorized as error:
                await error_response(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def check_key(state: AppState, scope: Scope) -> None:
    """Raises `Unauthorized` for a request without the router's key, where one is set."""
    expected = state.config.api_key
    if not expected:
        return
    given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
    scheme, _, key = given.partition(b" ")
    if scheme.lower() != b"bearer" or not hmac.compare_digest(key.strip(), expected.encode()):
        raise Unauthorized("Give the router's key as 'Authorization: Bearer …'.")


def owner_of(request: HTTPConnection) -> str:
    """Who asks, as a digest: answers in the cache are shared among the requests with one key."""
    return _digest(next((value for name, value in request.scope["headers"] if name == b"authorization"), b""))


@lru_cache(maxsize=1024)
def _digest(given: bytes) -> str:
    return hashlib.sha256(given).hexdigest()[:16] if given else ""


async def read_json(request: Request) -> Any:
    """The body as JSON. Raises `TooLarge` past `max_body_mb`, `InvalidRequest` for anything else than JSON."""
    try:
        return orjson.loads(await read_body(request))
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


def raw(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """Headers as ASGI has them."""
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]


class JSONReply(Response):
    """A whole answer: `body` is JSON already."""

    def __init__(self, body: bytes, status: int, headers: Mapping[str, str]) -> None:
        self.status_code = status
        self.body: bytes = body
        self.background = None
        self.raw_headers = [(b"content-length", b"%d" % len(body)), (b"content-type", b"application/json")]
        self.raw_headers += raw(headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (wire := wire_of(scope)) is not None:
            wire.respond(self.status_code, self.raw_headers, self.body)
        else:
            await super().__call__(scope, receive, send)


def json_response(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return JSONReply(orjson.dumps(body), status, headers or {})


def error_response(error: APIError) -> Response:
    """OpenAI's envelope, `{"error": {message, type, param, code}}`."""
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = f"{error.retry_after_s:.0f}"
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return json_response({"error": error.to_dict()}, error.status, headers)


class ClientWatch:
    """Cancels its body the moment the client closes the connection, and raises `ClientLeft` then. For requests whose body
    has been read: what `receive` gives after that is the disconnect."""

    __slots__ = ("_body", "_has_left", "_receive", "_watcher", "_wire")

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self._wire = wire_of(scope)
        self._receive = receive
        self._watcher: asyncio.Task[None] | None = None
        self._has_left = False

    async def __aenter__(self) -> None:
        body = asyncio.current_task()
        assert body is not None
        self._body = body
        if self._wire is None:
            self._watcher = asyncio.create_task(self._watch(), name="disconnect watch")
        else:
            self._wire.on_left(self._left)
            if self._wire.has_left:
                self._left()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._wire is not None:
            self._wire.on_left(None)
        elif self._watcher is not None:
            self._watcher.cancel()
        if not self._has_left:
            return
        if isinstance(error, asyncio.CancelledError):
            if self._body.uncancel() == 0:
                raise ClientLeft from None
        elif error is None or isinstance(error, Exception):
            await _take_cancellation(self._body)
            raise ClientLeft from None

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._left()

    def _left(self) -> None:
        self._has_left = True
        self._body.cancel()


async def _take_cancellation(task: asyncio.Task[Any]) -> None:
    """The client left in the last moment, and what cancels us may not have arrived yet: it must not hit whoever is next."""
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(0)
    task.uncancel()


T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Closable(Protocol[T_co]):
    """An async generator, or what can stand for one."""

    def __aiter__(self) -> AsyncIterator[T_co]: ...
    async def __anext__(self) -> T_co: ...
    async def aclose(self) -> None: ...


# Events that arrived together.
Batches = Closable[list[dict[str, Any]]]


class Primed(Generic[T]):
    """An answer that was begun before its HTTP answer is: one that cannot start is an HTTP error. A generator that never
    started would run no `finally`, so this is none."""

    def __init__(self, pieces: Closable[T]) -> None:
        self._pieces = pieces
        self._first: T | None = None

    async def prime(self) -> None:
        self._first = await anext(self._pieces)

    def __aiter__(self) -> Primed[T]:
        return self

    async def __anext__(self) -> T:
        if (first := self._first) is not None:
            self._first = None
            return first
        return await anext(self._pieces)

    async def aclose(self) -> None:
        await self._pieces.aclose()


class Express:
    """A way out for what arrives while an answer streams: in the same turn of the event loop, without waking the task that
    reads. `write` takes events. `send` takes bytes, and gives False where the client reads too slowly: `close` it then, and its reader
    opens it again. Both are None while there is no such way: it is closed, the answer has not begun or has ended, or it has no wire."""

    __slots__ = ("send", "write")

    def __init__(self) -> None:
        self.write: Callable[[Any], None] | None = None
        self.send: Callable[[bytes], bool] | None = None

    def close(self) -> None:
        self.write = self.send = None


class Outlet:
    """The body of a streamed answer, on its way to the client by ASGI."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._pings: set[asyncio.Task[None]] = set()
        self._silence: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._is_silent = False

    async def start(self, headers: list[tuple[bytes, bytes]]) -> None:
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def write(self, body: bytes) -> None:
        self._is_silent = False
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def end(self, body: bytes = b"") -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    def keep_alive(self) -> None:
        """From now on, a silent answer gets a comment now and then. One timer an answer: nearly all end before it is due."""
        self._silence = self._loop.call_later(KEEPALIVE_S, self._check_silence)

    def stop(self) -> None:
        """It has ended, or broken off."""
        if self._silence is not None:
            self._silence.cancel()
        for ping in self._pings:
            ping.cancel()

    def _check_silence(self) -> None:
        if self._is_silent:
            ping = asyncio.ensure_future(self.write(KEEPALIVE))
            self._pings.add(ping)
            ping.add_done_callback(self._pings.discard)
        self._is_silent = True
        self._silence = self._loop.call_later(KEEPALIVE_S, self._check_silence)


class WireOutlet(Outlet):
    """Likewise, by the wire. While it is open, `express` leads here."""

    def __init__(self, send: Send, wire: Wire, express: Express, encode: Callable[[Any], bytes]) -> None:
        self._wire = wire
        super().__init__(send)
        self._express = express
        self._encode = encode

    async def start(self, headers: list[tuple[bytes, bytes]]) -> None:
        self._wire.start(200, headers)
        self._open_express()

    @property
    def _is_silent(self) -> bool:
        return self._wire.is_silent

    @_is_silent.setter
    def _is_silent(self, silent: bool) -> None:
        self._wire.is_silent = silent

    async def write(self, body: bytes) -> None:
        if not self._wire.write(body):
            self._express.close()
            await self._wire.drain()
            self._open_express()

    async def end(self, body: bytes = b"") -> None:
        self._express.close()
        self._wire.end(body)

    def _open_express(self) -> None:
        self._express.write, self._express.send = self._write_now, self._wire.write

    def _write_now(self, given: Any) -> None:
        if not self._wire.write(self._encode(given)):
            self._express.close()


def outlet_of(scope: Scope, send: Send, express: Express | None, encode: Callable[[Any], bytes]) -> Outlet:
    """The way out of a streamed answer. What comes by the `express`, where there is one, is encoded here."""
    wire = wire_of(scope)
    return Outlet(send) if wire is None else WireOutlet(send, wire, express or Express(), encode)


class StreamedReply(Response):
    """An answer whose end is not known yet. Nobody on the way shall keep it."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self.status_code = 200
        self.background = None
        self.body = b""
        self.raw_headers = [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"), *raw(headers)]


class EventStream(StreamedReply):
    """The SSE sink. All events of a batch leave in one write; a silent stream gets a comment now and then.

    `batches` must have been started (`primed`) by whoever made it, or own nothing yet: it is closed here, whatever happens.
    """

    media_type = "text/event-stream; charset=utf-8"

    def __init__(
        self,
        batches: Batches,
        headers: Mapping[str, str] | None = None,
        *,
        obfuscate: bool = False,
        express: Express | None = None,
    ) -> None:
        super().__init__({"Content-Type": self.media_type, **(headers or {})})
        self._batches = batches
        self._frames = (lambda events: frames(obfuscated(events))) if obfuscate else frames
        self._express = express

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._batches):
            with contextlib.suppress(ClientLeft):
                async with ClientWatch(scope, receive):
                    outlet = outlet_of(scope, send, self._express, self._frames)
                    outlet.keep_alive()
                    try:
                        await self._send_all(outlet)
                    finally:
                        outlet.stop()

    async def _send_all(self, outlet: Outlet) -> None:
        await outlet.start(self.raw_headers)
        async for events in self._batches:
            if events and type(events[-1]) is dict and events[-1]["type"] in LAST_EVENTS:
                await outlet.end(self._frames(events))  # In one write with the end of the answer.
                return
            await outlet.write(self._frames(events))
        await outlet.end()
