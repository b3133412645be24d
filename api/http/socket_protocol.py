"""uvicorn's WebSockets, but that a stop does not close those in which a turn runs, that what is read is bounded where a
few bytes stand for many, that a client which does not read is not waited for, and that the log shows neither keys nor
messages."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import CloseCode, Frame

from api.http.connection import CONNECTIONS, DEFAULTS, Connections, begin_to_stop
from api.http.unread import UnreadWatch

# Of a message: empty ones cost no byte of its size.
MOST_FRAGMENTS = 10_000
# So much is given to the library at once: compressed, it may be a thousand times as much.
SLICE = 4096


class SocketProtocol(WebSocketsSansIOProtocol):
    """One connection. Whoever serves it closes it (`core/stopping.py`)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._unread = b""
        self._unread_watch: UnreadWatch | None = None
        # It would log the headers, and the key among them.
        self.conn.debug = False

    def shutdown(self) -> None:
        """Lets what runs end before it closes, if it can; else uvicorn's way."""
        if self.close_sent or not self.handshake_complete or not begin_to_stop(self):
            super().shutdown()

    def pause_writing(self) -> None:
        """The client does not read."""
        super().pause_writing()
        if self._unread_watch is None:
            connections: Connections | None = self.app_state.get(CONNECTIONS)
            timeout_s = (connections.config if connections is not None else DEFAULTS).client_write_timeout_s
            self._unread_watch = UnreadWatch(self.transport, lambda: not self.writable.is_set(), timeout_s)
        self._unread_watch.begin()

    def resume_writing(self) -> None:
        """The client has read."""
        super().resume_writing()
        if not self.read_paused:
            self.transport.resume_reading()
        self._read_on()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone, and what it has sent is nobody's."""
        self._unread = b""
        super().connection_lost(exc)
        if self._unread_watch is not None:
            self._unread_watch.stop()
            self._unread_watch = None

    def data_received(self, data: bytes) -> None:
        """Bytes of the client."""
        self._unread += data
        self._read_on()
        if not self.writable.is_set():  # It would be sent a pong for each ping.
            self.transport.pause_reading()

    def handle_cont(self, event: Frame) -> None:
        """The next fragment of a message."""
        if len(self.frames) >= MOST_FRAGMENTS:
            self.conn.fail(CloseCode.MESSAGE_TOO_BIG, "too many fragments")
            self._unread = b""
            self.handle_parser_exception()
            return
        super().handle_cont(event)

    async def receive(self) -> Any:
        """The next message. Reads on when none is left."""
        message = await super().receive()
        self._read_on()
        return message

    def send(self, message: Any) -> Coroutine[Any, Any, None]:
        """Sends a message, or closes the connection: from then on what comes is dropped."""
        sending = super().send(message)
        return self._closed_by(sending) if message["type"] == "websocket.close" else sending

    async def _closed_by(self, closing: Coroutine[Any, Any, None]) -> None:
        await closing
        self._read_on()

    def _read_on(self) -> None:
        while self._unread and not self.read_paused and self.writable.is_set():
            piece, self._unread = self._unread[:SLICE], self._unread[SLICE:]
            super().data_received(piece)
