"""Replies out: JSON and streams, by ASGI or straight to the socket."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from contextlib import aclosing
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.http.leaving import ClientLeft, ClientWatch, Closable
from api.http.protocol import Wire, wire_of
from core.json import encode_json
from requests.sse import KEEPALIVE, frames, obfuscated

KEEPALIVE_S = 15.0

LAST_EVENTS = frozenset({"response.completed", "response.incomplete", "response.failed"})


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
    return JSONReply(encode_json(body), status, headers or {})


# Events that arrived together.
Batches = Closable[list[dict[str, Any]]]


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
    """The body of a streamed answer, on its way to the client by the wire. While it is open, `express` leads here."""

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
