"""uvicorn's WebSockets, but that a stop does not close those in which a turn runs."""

from __future__ import annotations

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from api.http.connection import begin_to_stop


class SocketProtocol(WebSocketsSansIOProtocol):
    """One connection. Whoever serves it closes it (`core/stopping.py`)."""

    def shutdown(self) -> None:
        """Lets what runs end before it closes, if it can; else uvicorn's way."""
        if self.close_sent or not self.handshake_complete or not begin_to_stop(self):
            super().shutdown()
