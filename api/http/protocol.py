"""Straight to the socket: what our server protocol gives to an endpoint beyond ASGI.

By ASGI a task waits in `receive` to find out that a client leaves, and each piece of an answer goes through a dict, a
coroutine and checks of what we have just made ourselves: a third of a plain request. `Protocol` (`connection.py`) names
itself in the scope of each request. Where there is none (another server, a test), or somebody stands between us and the
server, the way is ASGI's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from operator import methodcaller

from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from api.http import connection
from api.http.connection import EXTENSION
from api.http.server import (
    STATUS_LINE,
    RequestResponseCycle,
    get_client_addr,
    get_path_with_query_string,
    is_built_on,
)
from core.request_context import HEADER

Headers = Iterable[tuple[bytes, bytes]]
# What the server runs for each connection.
Protocol: type[asyncio.Protocol] = connection.Protocol if is_built_on else AutoHTTPProtocol
# A header as it is written.
LINE = b"%b: %b\r\n".__mod__


class Wire:
    """A request whose answer is written without waiting. What uvicorn keeps of its state is kept right. Whoever sets
    `is_silent` finds out whether something was written since."""

    __slots__ = ("_cycle", "_flow", "_protocol", "_transport", "is_silent")

    def __init__(self, protocol: connection.Protocol, cycle: RequestResponseCycle) -> None:
        self._protocol = protocol
        self._cycle = cycle
        self._transport = cycle.transport
        self._flow = cycle.flow
        self.is_silent = False

    def on_left(self, call: Callable[[], None] | None) -> None:
        """Has `call` called when the client leaves, or nobody any more."""
        self._protocol.on_left = call
        if call is not None:
            self._protocol.watch()

    @property
    def has_left(self) -> bool:
        """Whether the client is gone."""
        return self._transport.is_closing()

    @property
    def has_stalled(self) -> bool:
        """Whether the client has begun a body and not gone on: what waits for it has been called off, and may be
        answered still."""
        return self._protocol.has_stalled

    @property
    def body(self) -> bytes | None:
        """The body of the request, if all of it has come already."""
        cycle = self._cycle
        return None if cycle.more_body or cycle.waiting_for_100_continue else bytes(cycle.body)

    def respond(self, status: int, headers: Headers, body: bytes) -> None:
        """A whole answer, in one write. `headers` hold its length."""
        self._write(self._head(status, headers, b"\r\n") + body)
        self._end()

    def start(self, status: int, headers: Headers) -> None:
        """The head of an answer whose end is not known yet."""
        self._write(self._head(status, headers, b"transfer-encoding: chunked\r\n\r\n"))

    def write(self, body: bytes) -> bool:
        """A piece of the answer. False: the client reads too slowly, and `drain` should come before the next."""
        self.is_silent = False
        if body and not self._transport.is_closing():
            self._transport.write(b"%x\r\n%b\r\n" % (len(body), body))
        return not self._flow.write_paused

    def end(self, body: bytes) -> None:
        """The last piece of the answer."""
        self._write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n")
        self._end()

    def when_drained(self, call: Callable[[], None]) -> None:
        """Has `call` called once, as soon as the client has read most of what was written."""
        self._protocol.on_drained = call

    async def flush(self) -> None:
        """All has been written."""

    def stop(self) -> None:
        """Nothing is under way."""

    def _write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)

    def _head(self, status: int, headers: Headers, end: bytes) -> bytes:
        cycle = self._cycle
        cycle.response_started = True
        if cycle.access_log:
            asked = (cycle.scope["method"], get_path_with_query_string(cycle.scope), cycle.scope["http_version"])
            cycle.access_logger.info('%s - "%s %s HTTP/%s" %d', get_client_addr(cycle.scope), *asked, status)
        lines = [*map(LINE, cycle.default_headers), *map(LINE, headers)]
        if not cycle.keep_alive:
            lines.append(b"connection: close\r\n")
        head = b"".join(lines)
        if head.count(b"\n") != len(lines) or head.count(b"\r") != len(lines):
            raise ValueError("A header of the answer holds a line end.")
        return STATUS_LINE[status] + head + end

    def _end(self) -> None:
        cycle = self._cycle
        cycle.response_complete = True
        cycle.body = bytearray()  # The connection may stay, and with it what it was last asked.
        cycle.message_event.set()
        if not cycle.keep_alive:
            cycle.transport.close()
        cycle.on_response()


class UnframedWire(Wire):
    """To a client of HTTP/1.0, which knows no chunks: a stream ends with its connection (RFC 9112, section 6.3)."""

    __slots__ = ()

    def start(self, status: int, headers: Headers) -> None:
        self._write(self._head(status, headers, b"\r\n"))

    def write(self, body: bytes) -> bool:
        self.is_silent = False
        self._write(body)
        return not self._flow.write_paused

    def end(self, body: bytes) -> None:
        self._write(body)
        self._end()


def give_wire(scope: Scope, receive: Receive, send: Send, request_id: bytes) -> bool:
    """Gives a request its wire, if the server under us has one, and these are the server's own: nobody else wants to
    see what comes and goes. Its answer has the id then. Gives whether there is one. It is to be taken
    out of the scope again: the wire refers to the request and the request to its wire, and only the collector would
    free the two."""
    protocol = (scope.get("extensions") or {}).get(EXTENSION)
    cycle = getattr(send, "__self__", None)
    if protocol is not None and cycle is not None and cycle.receive == receive:
        scope[EXTENSION] = (Wire if scope["http_version"] == "1.1" else UnframedWire)(protocol, cycle)
        cycle.default_headers = [*cycle.default_headers, (HEADER, request_id)]
        return True
    return False


# The wire that an answer may use, by its scope; None where there is none. Each request asks some times: this is C.
wire_of: Callable[[Scope], Wire | None] = methodcaller("get", EXTENSION)
