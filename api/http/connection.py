"""What a connection may cost before anybody knows who asks: limits of time and size below ASGI, on top of uvicorn's
HTTP/1.1.

    waits for     a head ── head_timeout_s ──▶ 408        past 64 KB or 200 headers ──▶ 431
                  more of a body ── body_timeout_s ──▶ 408
                  the next request ── keep_alive_s ──▶ closed; the oldest first past max_connections
                  a client that reads ── client_write_timeout_s ──▶ aborted

A connection has one timer, which runs on and looks: what comes and goes only leaves the time. Whoever asks to upgrade
to anything but a WebSocket is answered as if it had not (RFC 9110, section 7.8).
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import select
import time
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import httptools
import orjson

from api.http.server import (
    HIGH_WATER_LIMIT,
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
    service_unavailable,
)
from api.http.unread import UnreadWatch
from core.config import Config
from core.errors import APIError, HeadTooLarge, RequestTimedOut
from core.files import file_limit
from core.state import AppState

if TYPE_CHECKING:
    from uvicorn._types import HTTPScope

log = logging.getLogger("nomyo.http")

# Among the extensions of a scope, the protocol; in the scope of a request that may use it, its wire.
EXTENSION = "nomyo.wire"
# Where the application leaves them, in the state that its lifespan gives to the server.
CONNECTIONS = "nomyo.connections"
MB = 1024 * 1024
# Of a body behind its answer so much is read at least: most clients read no 413 before they have sent all.
LEAST_LATE_MB = 16
MAX_HEAD = 64 * 1024
MAX_HEADERS = 200
# Of the connections that wait for their clients as many are closed at once: to find the oldest, all are looked at.
CLOSED_AT_ONCE = 100
# A connection may hold so many bytes of requests that wait for the one that runs; each counts as this many at least.
MOST_WAITING = 1024 * 1024
LEAST_REQUEST = 1024
# So often it is looked whether a client has left whose requests wait and that is not read from.
LOOK_FOR_END_S = 1.0
# Behind a refusal so much more is read, for so long.
LINGERING, LINGERING_S = 1024 * 1024, 2.0
# So long, once the service stops, a request on a connection that was idle is answered.
LAST_REQUEST_S = 0.2
# So many file descriptors from the last one, a line is logged that they run out; and not more often than this.
LAST_FILES = 32
WARN_EVERY_S = 60.0
# Without an application that has settings: the peers of this service, some tests.
DEFAULTS = Config(endpoints=())


class Connections:
    """The connections of this process, by the settings as they are now."""

    def __init__(self, state: AppState) -> None:
        self._state = state
        self._warned_at = dict[str, float]()

    @property
    def config(self) -> Config:
        """The settings."""
        return self._state.config

    def make_room(self, newest: Protocol, protocols: Collection[Any]) -> bool:
        """Closes the connections that have waited longest for their clients, if there are too many. Whether there is
        room."""
        most = min(self.config.max_connections, file_limit() * 3 // 4)
        if len(protocols) <= most:
            return True
        # But the last one, which has just come.
        waiting = [
            (since, id(protocol), protocol)
            for protocol in protocols
            if isinstance(protocol, Protocol)
            and protocol is not newest
            and (since := protocol.waits_since()) is not None
        ]
        oldest = [protocol for *_, protocol in heapq.nsmallest(max(1, min(CLOSED_AT_ONCE, most // 100)), waiting)]
        self._warn(
            "%d connections are open, and no more may be: the oldest that wait for their clients are closed", most
        )
        for protocol in oldest:
            protocol.transport.abort()
        return bool(oldest)

    def look_at_file(self, number: int) -> None:
        """Logs that file descriptors run out, as the number of a new one shows: the lowest that is free is taken."""
        if number >= (limit := file_limit()) - LAST_FILES:
            self._warn("file descriptors run out: %d of %d are open (ulimit -n, max_connections)", number, limit)

    def _warn(self, text: str, *args: Any) -> None:
        now = time.monotonic()
        if now - self._warned_at.get(text, -WARN_EVERY_S) >= WARN_EVERY_S:
            self._warned_at[text] = now
            log.warning(text, *args)


class Trailers(list[Any]):
    """Headers behind a body: nobody asks for them, and they must not come among those of the request."""

    def append(self, header: Any) -> None:
        """Drops it."""


NO_TRAILERS = Trailers()


class Protocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1, which is patient for a while, and names itself among the extensions of each request's
    scope."""

    # Called when the client closes the connection before its answer is whole.
    on_left: Callable[[], None] | None = None
    # While a client is not read from that is watched.
    _end_timer: asyncio.TimerHandle | None = None
    # Called when the client has read most of what it was sent, once.
    on_drained: Callable[[], None] | None = None
    # The client has begun a body and not gone on.
    has_stalled = False
    # Since when it waits for a request, if none is under way.
    _idle_since = 0.0
    # Since when a head comes that has begun; when a part of a body came last, and
    # whether one has come since that was looked at.
    _head_since: float | None = None
    _body_at = 0.0
    _has_come = False
    # What came since that is no body; of a head what came of it, or 1 where it is to be counted once it is whole.
    _extra = 0
    _looks_at = 0.0
    # Once the client did not read; and whether the next request waits for it to do so.
    _unread: UnreadWatch | None = None
    _is_held = False
    # Of the body of a request that was answered, what came since.
    _late = 0
    _refusal: APIError | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has come: there is room, or it is refused."""
        super().connection_made(transport)
        # What the scopes of its requests have in common.
        self._scope: HTTPScope = {
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": "1.1",
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,  # type: ignore[typeddict-item]
            "root_path": self.root_path,
        }
        self._idle_since = self.loop.time()
        self._config = DEFAULTS
        connections: Connections | None = self.app_state.get(CONNECTIONS)
        if connections is not None:
            self._config = connections.config
            # uvicorn has an option of its own for it, which holds where there are no settings.
            self.timeout_keep_alive = self._config.keep_alive_s  # type: ignore[assignment]
            if (socket := transport.get_extra_info("socket")) is not None:
                connections.look_at_file(socket.fileno())
            if not connections.make_room(self, self.connections):
                self._refuse(TooManyConnections())
                return
        self._look_in(self.timeout_keep_alive)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone: whoever watches is called."""
        super().connection_lost(exc)
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = None
        if self._unread is not None:
            self._unread.stop()
            self._unread = None
        if self.on_left is not None:
            self.on_left()
        self.on_drained = None
        # The scope has this protocol, and the request that it was last of has both: they would wait for the collector,
        # with the body.
        self.scope = self.cycle = None  # type: ignore[assignment]  # it is as before the first request
        self.pipeline.clear()

    def shutdown(self) -> None:
        """The service stops. What runs is the last of its connection; of one that is idle a request may be on its way
        already, as of a proxy that keeps it for the next: that is answered too, for a moment, and with a word that it
        was the last."""
        if self._is_busy:
            super().shutdown()
        else:
            self._start_asgi_task = self._start_last  # type: ignore[method-assign]  # costs no other request anything
            self.loop.call_later(LAST_REQUEST_S, self._close_unless_busy)
        begin_to_stop(self)

    def _start_last(self, cycle: RequestResponseCycle, app: Any) -> None:
        cycle.keep_alive = False
        super()._start_asgi_task(cycle, app)

    def _close_unless_busy(self) -> None:
        if not self._is_busy and not self._is_in_head:
            self.transport.close()

    def waits_since(self) -> float | None:
        """Since when it waits for a request or the rest of a head; None while it answers one."""
        return None if self._is_busy or self.transport.is_closing() else self._head_since or self._idle_since

    @property
    def _is_busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def _is_in_head(self) -> bool:
        return self.scope is not None and (self.cycle is None or self.cycle.scope is not self.scope)

    # ── what comes ───────────────────────────────────────────────────────────────────────────────────────────────────

    def data_received(self, data: bytes) -> None:
        """Bytes of the client."""
        if len(data) > MAX_HEAD:
            self._extra = self._extra or 1
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._upgrade(data[upgrade.args[0] :])
            return
        except httptools.HttpParserError:
            self._refuse_broken()
            return
        cycle = self.cycle
        if cycle is None or cycle.more_body or cycle.scope is not self.scope:
            self._wait_for_more(len(data))
        # uvicorn stops reading behind a long body, and when another request waits. Whoever is watched must be read from
        # to be missed.
        if self.on_left is not None and self.flow.read_paused:
            self.watch()

    def watch(self) -> None:
        """Goes on reading, unless the client has sent ahead too much already."""
        if self.pipeline and sum(len(cycle.body) + LEAST_REQUEST for cycle, _ in self.pipeline) >= MOST_WAITING:
            self._look_for_end()
            return
        self.flow.resume_reading()

    def _look_for_end(self) -> None:
        """A client that is not read from leaves unseen, behind what it has sent: it is looked for now and then."""
        if self._end_timer is None and hasattr(select, "POLLRDHUP"):
            self._end_timer = self.loop.call_later(LOOK_FOR_END_S, self._end_if_left)

    def _end_if_left(self) -> None:
        self._end_timer = None
        if self.on_left is None or not self.flow.read_paused or self.transport.is_closing():
            return
        poll = select.poll()
        poll.register(self.transport.get_extra_info("socket").fileno(), select.POLLRDHUP)
        if poll.poll(0):
            self.transport.abort()
        else:
            self._look_for_end()

    # As uvicorn has them, but that a name of a header is compared with `expect` once a request, not once a header.

    def on_message_begin(self) -> None:
        """A request begins: its scope gets us."""
        self.url = b""
        self.expect_100_continue = False
        self.headers = headers = list[tuple[bytes, bytes]]()
        self.scope = scope = self._scope.copy()
        scope["headers"] = headers
        scope["state"] = self.app_state.copy()
        scope["extensions"] = {EXTENSION: self}  # type: ignore[dict-item]

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer."""
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """A head is whole: its request begins, or waits for the one before it."""
        headers, parser, scope = self.headers, self.parser, self.scope
        if self._extra or len(headers) > MAX_HEADERS:
            self._check_head()
        scope["method"] = parser.get_method().decode("ascii")
        if (version := parser.get_http_version()) != "1.1":
            scope["http_version"] = version
        if parser.should_upgrade():
            return  # `_upgrade` is called, when the parser has ended.
        if b"expect" in dict(headers):
            self.expect_100_continue = dict(headers)[b"expect"].lower() == b"100-continue"
        url = httptools.parse_url(self.url)
        path = url.path.decode("ascii")
        scope["path"] = unquote(path) if "%" in path else path
        scope["raw_path"] = url.path
        if self.root_path:
            scope["path"] = self.root_path + scope["path"]
            scope["raw_path"] = self.root_path.encode("ascii") + url.path
        scope["query_string"] = url.query or b""
        app = self.app
        if self.limit_concurrency is not None and self._is_crowded(self.limit_concurrency):
            app = service_unavailable
        self.headers = NO_TRAILERS
        self._has_come, self._late = True, 0
        running, self.cycle = (
            self.cycle,
            RequestResponseCycle(
                scope,
                self.transport,
                self.flow,
                self.logger,
                self.access_logger,
                self.access_log,
                self.server_state.default_headers,
                asyncio.Event(),
                self.expect_100_continue,
                version != "1.0" and parser.should_keep_alive(),
                self.on_response_complete,
            ),
        )
        if running is None or running.response_complete:
            self._start_asgi_task(self.cycle, app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, app))

    def on_body(self, body: bytes) -> None:
        """A part of a body."""
        self._has_come = True
        cycle = self.cycle
        if cycle.response_complete:
            self._late += len(body)
            if self._late > MB * max(self._config.max_body_mb, LEAST_LATE_MB):
                self._close()
            return
        cycle.body += body
        if len(cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        cycle.message_event.set()

    def _is_crowded(self, most: int) -> bool:
        if is_crowded := len(self.connections) >= most or len(self.tasks) >= most:
            self.logger.warning("Exceeded concurrency limit.")
        return is_crowded

    def _check_head(self) -> None:
        if len(self.headers) > MAX_HEADERS or self._head_length() > MAX_HEAD:
            self._refusal = HeadTooLarge()
            raise self._refusal
        self._head_since, self._extra = None, 0

    def _head_length(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _wait_for_more(self, received: int) -> None:
        """A head or a body has come in part."""
        now = self.loop.time()
        if self._is_in_head:
            if self._head_since is None:
                self._head_since, self._extra = now, 1  # A part of it may have been another request's.
                self._look_by(now + self._config.head_timeout_s)
            else:
                self._extra += received
            if self._extra > MAX_HEAD or len(self.headers) > MAX_HEADERS or self._head_length() > MAX_HEAD:
                self._refuse(HeadTooLarge())
        elif self.cycle is not None and self.cycle.more_body:
            if self._has_come:
                self._body_at, self._has_come, self._extra = now, False, 0
                self._look_by(now + self._config.body_timeout_s)
            else:  # The frames of chunks, or trailers.
                self._extra += received
                if self._extra > MAX_HEAD:
                    self._refuse(HeadTooLarge())

    def _refuse_broken(self) -> None:
        if self._refusal is not None:
            self._refuse(self._refusal)
            return
        message = "Invalid HTTP request received."
        self.logger.warning(message)
        self.send_400_response(message)

    # ── upgrades ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _should_upgrade(self) -> bool:
        # The parser takes what follows for another protocol's: such a head is parsed again, if it is none.
        return True

    def handle_websocket_upgrade(self) -> None:
        """Hands the connection on."""
        from api.http.socket_protocol import SocketProtocol  # Of a library that most services do without.

        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
        if self.config.ws == "auto":
            self.ws_protocol_class = SocketProtocol
        super().handle_websocket_upgrade()

    def _upgrade(self, rest: bytes) -> None:
        """Goes on behind a head that asks for another protocol: with that of WebSockets, else as if it had not
        asked."""
        if self._asks_for_websocket():
            self.handle_websocket_upgrade()
            return
        method: str = self.scope["method"]
        if method == "CONNECT":  # We are no proxy: behind it nothing is HTTP.
            self._refuse_broken()
            return
        lines = [b"%b %b HTTP/%b" % (method.encode(), self.url, self.scope["http_version"].encode())]
        for name, value in self.scope["headers"]:
            if name == b"connection":
                value = b", ".join(option for option in value.split(b",") if option.strip().lower() != b"upgrade")
            lines.append(b"%b: %b" % (name, value))
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.data_received(b"\r\n".join([*lines, b"", rest]))

    def _asks_for_websocket(self) -> bool:
        headers = dict(self.scope["headers"])
        return (
            headers.get(b"upgrade", b"").lower() == b"websocket"
            and self.ws_protocol_class is not None
            and self.scope["method"] == "GET"
            and self.scope["http_version"] == "1.1"
            and b"transfer-encoding" not in headers
            and headers.get(b"content-length", b"0") == b"0"
            and not self._is_busy
        )

    # ── time ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    # uvicorn starts a timer after each answer, and stops it at the next request. Here one runs on, and looks.

    def on_response_complete(self) -> None:
        """An answer is whole: the next request that waits begins."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            self._close()
            return
        if not self.pipeline:
            self._idle_since = self.loop.time()
            if self.timeout_keep_alive_task is None:
                self._look_in(self.timeout_keep_alive)
        if self.flow.write_paused:  # First the client reads: what it asks for piles up in our memory.
            self._is_held = True
            self.flow.pause_reading()
        else:
            self._go_on()

    def _go_on(self) -> None:
        """The next request begins that has come already, else the next one is read."""
        cycle, app = self.pipeline.pop() if self.pipeline else (None, None)
        if not self.pipeline:  # Of the last of them some may be to come.
            self.flow.resume_reading()
        if cycle is not None and app is not None:
            self._start_asgi_task(cycle, app)

    def _unset_keepalive_if_required(self) -> None:
        pass

    def _look_in(self, seconds: float) -> None:
        self._looks_at = self.loop.time() + seconds
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def _look_by(self, when: float) -> None:
        if self.timeout_keep_alive_task is not None:
            if self._looks_at <= when:
                return
            self.timeout_keep_alive_task.cancel()
        self._look_in(when - self.loop.time())

    def timeout_keep_alive_handler(self) -> None:
        """Looks whether the client has taken too long for what is awaited."""
        self.timeout_keep_alive_task = None
        if self.transport.is_closing():  # What it was sent last is not read.
            self.transport.abort()
            return
        now = self.loop.time()
        ends: float
        if self._head_since is not None:
            ends = self._head_since + self._config.head_timeout_s
            if now >= ends:
                self._refuse(RequestTimedOut(f"The head of a request may take {self._config.head_timeout_s:g} s."))
                return
        elif not self._is_busy:
            ends = self._idle_since + self.timeout_keep_alive
            if now >= ends:
                self._close()
                return
        elif self.cycle.more_body:
            if self.flow.read_paused or self.cycle.waiting_for_100_continue:
                self._body_at = now  # It is we who wait.
            ends = self._body_at + self._config.body_timeout_s
            if now >= ends:
                self._call_off(RequestTimedOut.of_body(self._config.body_timeout_s))
                return
        else:
            return
        self._look_in(ends - now)

    def _call_off(self, error: APIError) -> None:
        """The body of the request that runs does not come. Whoever waits for it by the wire finds out, and answers in
        the words of its front door."""
        self.has_stalled = True
        if EXTENSION not in self.cycle.scope:
            self._refuse(error)
            return
        self.cycle.disconnected = True
        self.cycle.keep_alive = False
        self.cycle.message_event.set()

    # ── what leaves ──────────────────────────────────────────────────────────────────────────────────────────────────

    def pause_writing(self) -> None:
        """The client does not read."""
        super().pause_writing()
        if self._unread is None:
            timeout_s = self._config.client_write_timeout_s
            self._unread = UnreadWatch(self.transport, lambda: self.flow.write_paused, timeout_s)
        self._unread.begin()

    def resume_writing(self) -> None:
        """The client has read."""
        super().resume_writing()
        if (call := self.on_drained) is not None:
            self.on_drained = None
            call()
        if self._is_held:
            self._is_held = False
            self._go_on()

    def _close(self) -> None:
        """Closes the connection, also where the client does not read what it was sent."""
        self.transport.close()
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = None
        if self.transport.get_write_buffer_size():
            self._look_in(self._config.client_write_timeout_s)

    def _refuse(self, error: APIError) -> None:
        """The last answer of a connection, where an answer may come now."""
        if self.transport.is_closing():
            return
        if not (self._is_busy and (self.cycle.response_started or self._is_in_head)):
            body = orjson.dumps({"error": error.to_dict()})
            lines = [b"%b: %b\r\n" % header for header in self.server_state.default_headers]
            lines.append(
                b"content-length: %d\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n" % len(body)
            )
            self.transport.write(b"".join([STATUS_LINE[error.status], *lines, body]))
            if self.transport.can_write_eof():
                self.transport.write_eof()
                self.transport.set_protocol(Lingering(self))
                return
        self._close()


def begin_to_stop(protocol: Any) -> bool:
    """uvicorn stops. Gives whether its application sees to what still runs."""
    stopping = getattr(getattr(protocol.app, "state", None), "stopping", None)
    if stopping is not None:
        stopping.begin(protocol.tasks)
    return stopping is not None


class Lingering(asyncio.Protocol):
    """Reads on behind a refusal for a moment: to close on what was not read would take the answer from the client."""

    def __init__(self, refused: Protocol) -> None:
        self._refused = refused
        self._left = LINGERING
        refused.flow.resume_reading()
        self._timer = refused.loop.call_later(LINGERING_S, refused.transport.abort)

    def data_received(self, data: bytes) -> None:
        """More of what was refused."""
        self._left -= len(data)
        if self._left < 0:
            self._refused.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone, or is sent away."""
        self._timer.cancel()
        self._refused.connection_lost(exc)


class TooManyConnections(APIError):
    status = 503
    code = "too_many_connections"

    def __init__(self) -> None:
        super().__init__("This router has as many connections as it may.")
