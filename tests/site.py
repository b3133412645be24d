"""A web site that answers as a test wants, byte by byte, at every address of this machine: 127.0.0.1, ::1 and so on."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

# What a path answers: its bytes, or something that writes them.
Answer = bytes | Callable[["Asked", asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Asked:
    """A request, as it came."""

    method: str
    target: str
    headers: dict[str, str]
    # The address that it came to.
    to: str
    body: bytes = b""

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @property
    def query(self) -> dict[str, str]:
        return {name: values[0] for name, values in parse_qs(urlsplit(self.target).query).items()}


def reply(body: bytes = b"", *, status: str = "200 OK", length: int | None = None, **headers: str) -> bytes:
    """An HTTP answer. `length` stands in for its body's; `content_type="image/png"` is the header `content-type`."""
    fields = {"content-length": str(len(body) if length is None else length), **headers}
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {status}\r\n{lines}\r\n".encode() + body


def redirect(location: str, status: str = "302 Found", **headers: str) -> bytes:
    return reply(status=status, location=location, **headers)


async def redirect_as_asked(asked: Asked, writer: asyncio.StreamWriter) -> None:
    """`/to?at=URL` leads there."""
    writer.write(redirect(asked.query["at"], set_cookie="a=b; Path=/"))


async def never(asked: Asked, writer: asyncio.StreamWriter) -> None:
    """A head, and no body for ever."""
    writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    await asyncio.Event().wait()


@dataclass
class Site:
    """What it was asked, and what it answers. A path that it does not know is a 404."""

    port: int
    answers: dict[str, Answer]
    requests: list[Asked] = field(default_factory=list)
    connections: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def asked(self) -> list[str]:
        """The paths, one after the other."""
        return [asked.path for asked in self.requests]

    async def is_left(self) -> None:
        """Waits until no client is there."""
        await asyncio.gather(*self.connections)

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.connections.add(task)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                first, *lines = head.decode("latin-1").split("\r\n")
                method, target, _ = first.split(" ")
                fields = (line.partition(":") for line in lines if line)
                headers = {name.lower(): value.strip() for name, _, value in fields}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                asked = Asked(method, target, headers, writer.get_extra_info("sockname")[0], body)
                self.requests.append(asked)
                answer = self.answers.get(asked.path, reply(status="404 Not Found"))
                if isinstance(answer, bytes):
                    writer.write(answer)
                else:
                    await unless_left(answer(asked, writer), reader)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # The client left, or the test is over.
        finally:
            self.connections.discard(task)
            writer.transport.abort()


async def unless_left(answering: Awaitable[None], reader: asyncio.StreamReader) -> None:
    """Answers, as long as the client is there. It must not send another request meanwhile."""
    answered, left = asyncio.ensure_future(answering), asyncio.create_task(reader.read(1))
    try:
        await asyncio.wait({answered, left}, return_when=asyncio.FIRST_COMPLETED)
        if not answered.done():
            assert left.result() == b"", "a client that does not wait for its answer"
            raise ConnectionError
        answered.result()
    finally:
        answered.cancel()
        left.cancel()
        await asyncio.gather(answered, left, return_exceptions=True)


def _everywhere() -> socket.socket:
    try:
        return socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    except OSError:  # a machine without IPv6
        return socket.create_server(("0.0.0.0", 0))


@asynccontextmanager
async def running_site(answers: dict[str, Answer]) -> AsyncIterator[Site]:
    with _everywhere() as listener:
        site = Site(listener.getsockname()[1], answers)
        server = await asyncio.start_server(site.connected, sock=listener)
        try:
            yield site
        finally:
            server.close()
            connections = list(site.connections)
            for connection in connections:
                connection.cancel()
            await asyncio.gather(*connections, return_exceptions=True)


class Names:
    """A name service that answers what a test wants: a name's addresses one after the other, then the last for ever. It
    knows no other name. IP addresses stand for themselves, as with every name service."""

    def __init__(self, **names: list[str]) -> None:
        self.names = names
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        if host not in self.names:
            return await _literal(host, port)
        left = self.names[host]
        return [left.pop(0) if len(left) > 1 else left[0]]


async def _literal(host: str, port: int) -> list[str]:
    """The address that `host` is, for the C library."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    return [str(address[0]) for *_, address in found]
