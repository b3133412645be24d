"""Replies out: JSON and streams, by ASGI or straight to the socket."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from api.http.protocol import Wire, wire_of
from core.json import encode_json

RawHeaders = list[tuple[bytes, bytes]]


def raw(headers: Mapping[str, str]) -> RawHeaders:
    """Headers as ASGI has them."""
    return [*map(_raw, headers.items())]


@lru_cache(maxsize=256)
def _raw(header: tuple[str, str]) -> tuple[bytes, bytes]:
    """The same again with nearly every answer."""
    name, value = header
    return name.lower().encode("latin-1"), value.encode("latin-1")


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
    """A reply whose body is `body` as JSON."""
    return JSONReply(encode_json(body), status, headers or {})


class Express:
    """A way out for what arrives while an answer streams: in the same turn of the event loop, without waking the task
    that reads. `write` takes events. `send` takes bytes, and gives False where the client reads too slowly: `close` it
    then, and its reader opens it again. Both are None while there is no such way: it is closed, the answer has not
    begun or has ended, or it has no wire."""

    __slots__ = ("send", "write")

    def __init__(self) -> None:
        self.write: Callable[[Any], None] | None = None
        self.send: Callable[[bytes], bool] | None = None

    def close(self) -> None:
        """Nothing goes this way any more."""
        self.write = self.send = None


class Outlet:
    """The body of a streamed answer, on its way to the client by ASGI."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._aside: asyncio.Task[None] | None = None
        self._is_silent = False
        self._has_ended = False

    async def start(self, headers: RawHeaders) -> None:
        """Sends the head, with status 200."""
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def write(self, body: bytes) -> None:
        """Sends a piece of the body; returns when the client reads quickly enough for another."""
        self._is_silent = False
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def end(self, body: bytes = b"") -> None:
        """Sends the last piece of the body."""
        self._has_ended = True
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def resume(self) -> None:
        """Goes on behind what was begun with `write_aside`."""
        if self._aside is not None:
            await self._aside

    def write_aside(self, piece: Callable[[], bytes], headers: RawHeaders | None = None) -> None:
        """Sends a piece while whoever writes has nothing to write; with `headers` as the first of the answer. It is
        made when it leaves: pieces are numbered."""
        if self._aside is None or self._aside.done():
            self._aside = asyncio.ensure_future(self._write_aside(piece, headers))

    async def _write_aside(self, piece: Callable[[], bytes], headers: RawHeaders | None) -> None:
        if headers is not None:
            await self.start(headers)
        if not self._has_ended:
            await self.write(piece())

    def was_silent(self) -> bool:
        """Whether nothing was sent since this was asked last."""
        was_silent, self._is_silent = self._is_silent, True
        return was_silent

    def stop(self) -> None:
        """The answer has ended, or broken off."""
        if self._aside is not None:
            self._aside.cancel()


class WireOutlet(Outlet):
    """The body of a streamed answer, on its way to the client by the wire. While its writer waits for more, `express`
    leads here."""

    def __init__(self, send: Send, wire: Wire, express: Express, encode: Callable[[Any], bytes]) -> None:
        super().__init__(send)
        self._wire = wire
        self._express = express
        self._encode = encode

    async def start(self, headers: RawHeaders) -> None:
        self._wire.start(200, headers)
        self._open_express()

    async def write(self, body: bytes) -> None:
        if not self._wire.write(body):
            self._express.close()
            await self._wire.drain()
            self._open_express()

    async def end(self, body: bytes = b"") -> None:
        self._express.close()
        self._wire.end(body)

    async def resume(self) -> None:
        self._open_express()

    def write_aside(self, piece: Callable[[], bytes], headers: RawHeaders | None = None) -> None:
        if headers is not None:
            self._wire.start(200, headers)
        self._wire.write(piece())

    def was_silent(self) -> bool:
        was_silent, self._wire.is_silent = self._wire.is_silent, True
        return was_silent

    def _open_express(self) -> None:
        self._express.write, self._express.send = self._write_now, self._wire.write

    def _write_now(self, given: Any) -> None:
        if not self._wire.write(self._encode(given)):
            self._express.close()


def outlet_of(scope: Scope, send: Send, express: Express | None, encode: Callable[[Any], bytes]) -> Outlet:
    """The way out of a streamed answer. What comes by the `express`, where there is one, is encoded here."""
    wire = wire_of(scope)
    if wire is None:
        return Outlet(framed_for(scope, send))
    return WireOutlet(send, wire, express or Express(), encode)


class StreamedReply(Response):
    """An answer whose end is not known yet. Nobody on the way shall keep it."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self.status_code = 200
        self.background = None
        self.body = b""
        self.raw_headers = [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"), *raw(headers)]


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
