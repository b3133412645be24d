"""A request as it arrived, and the wire that its answer goes back on."""

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http.client import responses as phrases
from typing import Any, Literal

import orjson

Json = dict[str, Any]
Answer = Callable[["Reply"], Awaitable[None]]
Step = bytes | Answer

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
CREATED = 1_700_000_000


@dataclass(slots=True)
class Request:
    """One request as it arrived (header names in lower case), and what became of it.

    `outcome` is open, then answered; cut when we closed the connection; aborted when the client did so first.
    """

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    connection: int
    outcome: Literal["open", "answered", "cut", "aborted"] = "open"

    @property
    def json(self) -> Json:
        return orjson.loads(self.body)

    @property
    def is_turn(self) -> bool:
        return self.method == "POST" and self.path in (CHAT, RESPONSES)


class Reply:
    """The wire under one answer: the request, and the bytes that go back."""

    def __init__(self, request: Request, transport: asyncio.Transport, writable: asyncio.Event) -> None:
        self.request = request
        self._transport = transport
        self._writable = writable
        self._framing: Literal["none yet", "chunked", "length"] = "none yet"
        self._keep_alive = request.headers.get("connection", "").lower() != "close"
        self.is_over = False

    async def start(
        self, status: int = 200, headers: dict[str, str] | None = None, *, length: int | None = None
    ) -> None:
        """Send the head. Without a length the body is chunked, and each write is one chunk."""
        headers = dict(headers or {})
        if length is None:
            self._framing = "chunked"
            headers["Transfer-Encoding"] = "chunked"
        else:
            self._framing = "length"
            headers["Content-Length"] = str(length)
        if not self._keep_alive:
            headers["Connection"] = "close"
        elif headers.get("Connection", "").lower() == "close":
            self._keep_alive = False
        fields = [f"{name}: {value}" for name, value in headers.items()]
        head = [f"HTTP/1.1 {status} {phrases.get(status, 'Unknown')}", *fields, "", ""]
        await self.raw("\r\n".join(head).encode())

    async def write(self, data: bytes) -> None:
        """Send a piece of the body."""
        if data:
            await self.raw(_framed(data) if self._framing == "chunked" else data)

    async def end(self, data: bytes = b"") -> None:
        """Complete the body; a last piece leaves in the same write as the terminating chunk."""
        if self.is_over:
            return
        if self._framing == "none yet":
            raise RuntimeError("the answer sent nothing: use cut(), stall() or empty() if that is meant")
        if self._framing == "chunked":
            await self.raw((_framed(data) if data else b"") + b"0\r\n\r\n")
        else:
            await self.write(data)
        self.is_over = True
        if not self._keep_alive:
            self._transport.close()

    async def raw(self, data: bytes) -> None:
        """Send bytes as they are, with no framing."""
        if self.is_over:
            raise RuntimeError("the answer went on after its end")
        self._transport.write(data)
        await self._writable.wait()

    def cut(self, *, reset: bool = False) -> None:
        """Close the connection where we are: in an orderly way (FIN), or with a reset (RST)."""
        self.is_over = True
        self.request.outcome = "cut"
        if not reset:
            self._transport.close()
            return
        # To linger for zero seconds is to throw away what is unsent and to send RST.
        linger = struct.pack("ii", 1, 0)
        self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._transport.abort()


def _framed(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)
