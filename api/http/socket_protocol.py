"""uvicorn's WebSockets, but that a stop does not close those in which a turn runs, that what is read is bounded where a
few bytes stand for many, and that the log shows neither keys nor messages."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from api.http.connection import begin_to_stop

# So much is given to the library at once: compressed, it may be a thousand times as much.
SLICE = 4096


class SocketProtocol(WebSocketsSansIOProtocol):
    """One connection. Whoever serves it closes it (`core/stopping.py`)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._unread = b""
        # It would log the headers, and the key among them.
        self.conn.debug = False

    def shutdown(self) -> None:
        """Lets what runs end before it closes, if it can; else uvicorn's way."""
        if self.close_sent or not self.handshake_complete or not begin_to_stop(self):
            super().shutdown()

    def data_received(self, data: bytes) -> None:
        """Bytes of the client."""
        self._unread += data
        self._read_on()

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
        while self._unread and not self.read_paused:
            piece, self._unread = self._unread[:SLICE], self._unread[SLICE:]
            super().data_received(piece)
