"""Straight to the socket: what our server protocol gives to an endpoint beyond ASGI.

By ASGI a task waits in `receive` to find out that a client leaves, and each piece of an answer goes through a dict, a
coroutine and checks of what we have just made ourselves: a third of a plain request. `Protocol` is uvicorn's own, which
hands a `Wire` along with each request. Where there is none (another server, a test), or somebody stands between us and
the server, the way is ASGI's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.utils import get_client_addr, get_path_with_query_string

Headers = Iterable[tuple[bytes, bytes]]

EXTENSION = "nomyo.wire"
# A connection may hold so many bytes of requests that wait for the one that runs; each counts as this many at least.
MOST_WAITING = 1024 * 1024
LEAST_REQUEST = 1024


class Protocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1, which names itself among the extensions of each request's scope."""

    # Called when the client closes the connection before its answer is whole.
    on_left: Callable[[], None] | None = None
    # Since when it waits for a request; None while one is under way.
    _idle_since: float | None = None

    def on_message_begin(self) -> None:
        """A request begins: its scope gets us."""
        super().on_message_begin()
        extensions: dict[str, Any] = {EXTENSION: self}
        self.scope["extensions"] = extensions

    def data_received(self, data: bytes) -> None:
        """Bytes of the client."""
        super().data_received(data)
        # uvicorn stops reading behind a long body, and when another request waits. Whoever is watched must be read from
        # to be missed.
        if self.on_left is not None and self.flow.read_paused:
            self.watch()

    def watch(self) -> None:
        """Goes on reading, unless the client has sent ahead too much already."""
        if self.pipeline and sum(len(cycle.body) + LEAST_REQUEST for cycle, _ in self.pipeline) >= MOST_WAITING:
            return
        self.flow.resume_reading()

    def shutdown(self) -> None:
        super().shutdown()
        begin_to_stop(self)

    def handle_websocket_upgrade(self) -> None:
        from api.http.socket_protocol import SocketProtocol  # Of a library that most services do without.

        if self.config.ws == "auto":
            self.ws_protocol_class = SocketProtocol
        super().handle_websocket_upgrade()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone: whoever watches is called."""
        super().connection_lost(exc)
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = None
        if self.on_left is not None:
            self.on_left()
        # The scope has this protocol, and the request that it was last of has both: they would wait for the collector, with the body.
        self.scope = self.cycle = None  # type: ignore[assignment]  # it is as before the first request
        self.pipeline.clear()

    # uvicorn starts a timer after each answer, and stops it at the next request. Here one runs on, and looks.

    def on_response_complete(self) -> None:
        """An answer is whole: the next request that waits begins."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
            return
        self._idle_since = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._look_in(self.timeout_keep_alive)

    def _unset_keepalive_if_required(self) -> None:
        self._idle_since = None

    def timeout_keep_alive_handler(self) -> None:
        """Closes a connection on which no request has come for too long."""
        self.timeout_keep_alive_task = None
        if self._idle_since is None:
            return
        left_s = self._idle_since + self.timeout_keep_alive - self.loop.time()
        if left_s > 0:
            self._look_in(left_s)
        else:
            super().timeout_keep_alive_handler()

    def _look_in(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)


def begin_to_stop(protocol: Any) -> bool:
    """uvicorn stops. Gives whether its application sees to what still runs."""
    stopping = getattr(getattr(protocol.app, "state", None), "stopping", None)
    if stopping is not None:
        stopping.begin(protocol.tasks)
    return stopping is not None


class Wire:
    """A request whose answer is written without waiting. What uvicorn keeps of its state is kept right. Whoever sets
    `is_silent` finds out whether something was written since."""

    __slots__ = ("_cycle", "_flow", "_protocol", "_transport", "is_silent")

    def __init__(self, protocol: Protocol, cycle: RequestResponseCycle) -> None:
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

    async def drain(self) -> None:
        """Waits until the client has read most of what was written."""
        await self._flow.drain()

    def _write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)

    def _head(self, status: int, headers: Headers, end: bytes) -> bytes:
        cycle = self._cycle
        cycle.response_started = True
        if cycle.access_log:
            asked = (cycle.scope["method"], get_path_with_query_string(cycle.scope), cycle.scope["http_version"])
            cycle.access_logger.info('%s - "%s %s HTTP/%s" %d', get_client_addr(cycle.scope), *asked, status)
        lines = [b"%b: %b\r\n" % header for header in (*cycle.default_headers, *headers)]
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


def give_wire(scope: Scope, receive: Receive, send: Send) -> None:
    """Gives a request its wire, if the server under us has one, and these are the server's own: nobody else wants to
    see what comes and goes. `take_wire` must follow: the wire refers to the request and the request to its wire, and
    only the collector would free the two."""
    protocol = (scope.get("extensions") or {}).get(EXTENSION)
    cycle = getattr(send, "__self__", None)
    if protocol is not None and isinstance(cycle, RequestResponseCycle) and cycle.receive == receive:
        scope[EXTENSION] = Wire(protocol, cycle)


def take_wire(scope: Scope) -> None:
    """The request is answered."""
    scope.pop(EXTENSION, None)


def wire_of(scope: Scope) -> Wire | None:
    """The wire that an answer may use."""
    wire: Wire | None = scope.get(EXTENSION)
    return wire
