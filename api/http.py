"""What every surface needs of HTTP: the key at the gate, bodies in, JSON and streams out, clients that leave."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Mapping
from contextlib import aclosing, asynccontextmanager
from functools import lru_cache
from typing import Any, Generic, Protocol, TypeVar, cast

import orjson
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from errors import APIError, InvalidRequest, TooLarge, Unauthorized
from requests.sse import KEEPALIVE, frames, obfuscated

KEEPALIVE_S = 15.0
LAST_EVENTS = frozenset({"response.completed", "response.incomplete", "response.failed"})
OPEN_PATHS = frozenset({"/health"})


class ClientLeft(Exception):
    """The client closed the connection: nobody reads what we answer."""


class Gate:
    """ASGI middleware: asks for the router's key, where one is set. It wraps nothing, so it costs a stream nothing."""

    def __init__(self, app: ASGIApp, state: Any) -> None:
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


def check_key(state: Any, scope: Scope) -> None:
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
    too_large = TooLarge(f"The body is larger than {limit / 1024 / 1024:g} MB.")
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > limit:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise too_large
    return bytes(body)


def json_response(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(orjson.dumps(body), status, headers, media_type="application/json")


def error_response(error: APIError) -> Response:
    """OpenAI's envelope, `{"error": {message, type, param, code}}`."""
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = f"{error.retry_after_s:.0f}"
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return json_response({"error": error.to_dict()}, error.status, headers)


@asynccontextmanager
async def cancelled_if_client_leaves(receive: Receive) -> AsyncGenerator[None]:
    """Cancels its body the moment the client closes the connection, and raises `ClientLeft` then. For requests whose body
    has been read: what `receive` gives after that is the disconnect."""
    body = asyncio.current_task()
    assert body is not None
    left = False

    async def watch() -> None:
        nonlocal left
        while (await receive())["type"] != "http.disconnect":
            pass
        left = True
        body.cancel()

    watcher = asyncio.create_task(watch(), name="disconnect watch")
    try:
        yield
    except asyncio.CancelledError:
        if left and body.uncancel() == 0:
            raise ClientLeft from None
        raise
    except Exception:
        if left:
            await _take_cancellation(body)
            raise ClientLeft from None
        raise
    else:
        if left:
            await _take_cancellation(body)
            raise ClientLeft
    finally:
        watcher.cancel()


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
    reads. `write` is None while there is no such way: the answer has not begun, has ended, or its client reads too slowly."""

    __slots__ = ("write",)

    def __init__(self) -> None:
        self.write: Callable[[Any], None] | None = None


class Outlet:
    """The body of a streamed answer, on its way to the client. `express` leads here while it is open."""

    def __init__(self, send: Send, express: Express | None, encode: Callable[[Any], bytes]) -> None:
        self._send = send
        self._express = express or Express()
        self._encode = encode
        self._stuck: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()
        self.wrote_at = 0.0

    def __enter__(self) -> Outlet:
        self._express.write = self._write_now
        return self

    def __exit__(self, *_: object) -> None:
        self._express.write = None

    async def write(self, body: bytes, *, ends: bool = False) -> None:
        if self._stuck is not None:
            await self._stuck
        self.wrote_at = self._loop.time()
        await self._send({"type": "http.response.body", "body": body, "more_body": not ends})

    def _write_now(self, given: Any) -> None:
        """Writes without waiting. Where the server would have us wait, because the client reads too slowly, this is the last such
        write until it is out."""
        self.wrote_at = self._loop.time()
        sending = self._send({"type": "http.response.body", "body": self._encode(given), "more_body": True})
        coroutine = cast(Coroutine[Any, Any, None], sending)
        if self._is_left_waiting(coroutine):
            self._stuck = self._loop.create_future()

    def _is_left_waiting(self, coroutine: Coroutine[Any, Any, None]) -> bool:
        """Runs a `send` as far as it comes. If it waits, it is run on when it need not wait any longer, as a task would."""
        try:
            waits_for = coroutine.send(None)
        except StopIteration:
            return False
        except Exception:
            return False  # The client is gone, of which its watcher will tell.
        self._express.write = None
        waits_for._asyncio_future_blocking = False
        waits_for.add_done_callback(lambda _: self._run_on(coroutine))
        return True

    def _run_on(self, coroutine: Coroutine[Any, Any, None]) -> None:
        if not self._is_left_waiting(coroutine) and self._stuck is not None:
            if not self._stuck.done():  # Whoever waited for it may have been cancelled, and it with him.
                self._stuck.set_result(None)
            self._stuck = None


class EventStream(Response):
    """The SSE sink. All events of a batch leave in one write; a silent stream gets a comment now and then.

    `batches` must have been started (`primed`) by whoever made it, or own nothing yet: it is closed here, whatever happens.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        batches: Batches,
        headers: Mapping[str, str] | None = None,
        *,
        obfuscate: bool = False,
        express: Express | None = None,
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **(headers or {})})
        del self.headers["content-length"]
        self._batches = batches
        self._frames = (lambda events: frames(obfuscated(events))) if obfuscate else frames
        self._express = express

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._batches):
            with contextlib.suppress(ClientLeft):
                outlet = Outlet(send, self._express, self._frames)
                async with cancelled_if_client_leaves(receive), self._kept_alive(outlet):
                    await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                    with outlet:
                        async for events in self._batches:
                            ends = bool(events) and type(events[-1]) is dict and events[-1]["type"] in LAST_EVENTS
                            await outlet.write(self._frames(events), ends=ends)
                            if ends:  # In one write with the end of the answer.
                                return
                    await outlet.write(b"", ends=True)

    @asynccontextmanager
    async def _kept_alive(self, outlet: Outlet) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()

        async def ping() -> None:
            while True:
                await asyncio.sleep(KEEPALIVE_S)
                if loop.time() - outlet.wrote_at >= KEEPALIVE_S:
                    await outlet.write(KEEPALIVE)

        pinger = asyncio.create_task(ping(), name="stream keepalive")
        try:
            yield
        finally:
            pinger.cancel()
