"""Asking the other processes of the service, over HTTP: at a Unix socket that each of them has, or, across machines, at
a port with a secret that they share.

A client's request that this process cannot answer, because another one runs what it asks for, is asked there (`find`);
what concerns all of them is asked of all (`ask`). Who can open the sockets, or has the secret, is one of us: what comes
in there was let in where it came from.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from hmac import compare_digest
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn import Config
from uvicorn.server import ServerState

from cluster.protocol import FROM_PEER, PeerAnswer

if TYPE_CHECKING:
    import httpx2

log = logging.getLogger("nomyo.cluster")

# A peer that does not answer in this time is left out.
PATIENCE_S = 2.0
# Or in this time, where it may have to stop something first.
FINDING_PATIENCE_S = 10.0
# The next one is asked as well then.
NEXT_S = 0.25


# The header that the secret is in.
SECRET_HEADER = b"x-nomyo-peer"


class Peer(NamedTuple):
    """Where a process is asked by the others: at a Unix socket, or at `host:port` with a secret."""

    name: str
    socket: Path | None = None
    address: str = ""
    secret: str = ""

    @classmethod
    def at(cls, socket: Path) -> Peer:
        """The one that answers at a Unix socket."""
        return cls(socket.stem, socket)


@asynccontextmanager
async def answering(app: ASGIApp, http: type[asyncio.Protocol], path: Path) -> AsyncGenerator[None]:
    """Answers the peers at the socket `path` while it is open."""

    async def from_peer(scope: Scope, receive: Receive, send: Send) -> None:
        scope[FROM_PEER] = True
        await app(scope, receive, send)

    _remove(path)
    made = PeerConnections(from_peer, http)
    server = await asyncio.get_running_loop().create_unix_server(made.protocol, str(path))
    try:
        yield
    finally:
        server.close()
        made.close()
        _remove(path)


@asynccontextmanager
async def answering_at(
    app: ASGIApp, http: type[asyncio.Protocol], host: str, port: int, secret: Callable[[], str]
) -> AsyncGenerator[int]:
    """Answers peers that have the secret, as it is by then, at a port, any where it is 0. Gives the port. Raises
    `OSError` where nothing can listen there."""

    async def from_peer(scope: Scope, receive: Receive, send: Send) -> None:
        given = next((value for name, value in scope["headers"] if name == SECRET_HEADER), b"")
        if scope["type"] != "http" or not secret() or not compare_digest(given, secret().encode()):
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})
            return
        scope[FROM_PEER] = True
        await app(scope, receive, send)

    made = PeerConnections(from_peer, http)
    server = await asyncio.get_running_loop().create_server(made.protocol, host, port)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        made.close()


class PeerConnections:
    """Those of peers, answered by an application."""

    def __init__(self, app: ASGIApp, http: type[asyncio.Protocol]) -> None:
        # No log of accesses: they are logged where they come in.
        self._config = Config(app, http=http, interface="asgi3", lifespan="off", log_config=None)
        self._config.load()
        self._http = http
        self._state = ServerState()

    def protocol(self) -> Any:
        """That of a new connection."""
        made: Any = self._http(config=self._config, server_state=self._state, app_state={})  # type: ignore[call-arg]
        made.access_log = False  # Not by the settings: these silence the log of the whole process.
        return made

    def close(self) -> None:
        """What is being answered is answered."""
        for connection in list(self._state.connections):
            connection.shutdown()


def _remove(socket: Path) -> None:
    socket.unlink(missing_ok=True)


async def ask(asked: Iterable[Peer], method: str, path: str, headers: Mapping[str, str]) -> list[Any]:
    """What each peer answers, as JSON; None for one that does not."""
    return await asyncio.gather(*(_json_of(peer, method, path, headers) for peer in asked))


async def _json_of(peer: Peer, method: str, path: str, headers: Mapping[str, str]) -> Any:
    try:
        async with asyncio.timeout(PATIENCE_S):
            answer = await AnswerByHTTP.of(peer, method, path, headers)
            try:
                return await answer.json() if answer.status == 200 else None
            finally:
                await answer.aclose()
    except (OSError, ValueError) as error:  # also the timeout
        log.warning("%s does not answer: %r", peer.name, error)
        return None


async def find(asked: Iterable[Peer], method: str, path: str, headers: Mapping[str, str]) -> PeerAnswer | None:
    """The answer of the first peer that has one other than 404. They are asked one after the other; but one that is
    slow to answer holds up the next one for a moment only."""
    waiting = list(asked)
    asking: set[asyncio.Task[AnswerByHTTP | None]] = set()
    try:
        while waiting or asking:
            if waiting:
                asking.add(asyncio.create_task(_answer_of(waiting.pop(0), method, path, headers)))
            patience_s = NEXT_S if waiting else None
            done, asking = await asyncio.wait(asking, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
            for one in done:
                if (answer := one.result()) is not None:
                    asking |= done - {one}
                    return answer
        return None
    finally:
        for one in asking:
            one.cancel()
        for late in await asyncio.gather(*asking, return_exceptions=True):
            if isinstance(late, AnswerByHTTP):
                await late.aclose()


async def _answer_of(peer: Peer, method: str, path: str, headers: Mapping[str, str]) -> AnswerByHTTP | None:
    """None for one that does not answer, or with 404."""
    try:
        async with asyncio.timeout(FINDING_PATIENCE_S):
            answer = await AnswerByHTTP.of(peer, method, path, headers)
    except OSError as error:  # also the timeout
        log.warning("%s does not answer: %r", peer.name, error)
        return None
    if answer.status != 404:
        return answer
    await answer.aclose()
    return None


class AnswerByHTTP(PeerAnswer):
    """The answer of a peer, with the connection that it comes by."""

    def __init__(self, response: httpx2.Response, connection: AsyncExitStack) -> None:
        self.status = response.status_code
        self.headers = response.headers
        self._response = response
        self._connection = connection

    @classmethod
    async def of(cls, peer: Peer, method: str, path: str, headers: Mapping[str, str]) -> AnswerByHTTP:
        """Asks, and waits for the head of the answer. Raises `ConnectionError`."""
        import httpx2  # Most services have one process, and ask nobody.

        uds = str(peer.socket) if peer.socket else None
        transport = httpx2.AsyncHTTPTransport(uds=uds, verify=False, trust_env=False)
        known_by = {SECRET_HEADER.decode(): peer.secret} if peer.secret else {}
        timeout = httpx2.Timeout(None, connect=PATIENCE_S)
        async with AsyncExitStack() as stack:
            with named_errors():
                client = httpx2.AsyncClient(transport=transport, timeout=timeout, trust_env=False)
                await stack.enter_async_context(client)
                url = f"http://{peer.address or 'peer'}{path}"
                asked = client.stream(method, url, headers={**headers, **known_by})
                response = await stack.enter_async_context(asked)
            return cls(response, stack.pop_all())

    async def json(self) -> Any:
        """The body as JSON. Raises `ValueError` for what is invalid, `ConnectionError` where it breaks off."""
        with named_errors():
            return orjson.loads(await self._response.aread())

    async def pieces(self) -> AsyncIterator[bytes]:
        with named_errors():
            async for piece in self._response.aiter_bytes():
                yield piece

    async def aclose(self) -> None:
        await self._connection.aclose()


@contextmanager
def named_errors() -> Iterator[None]:
    """httpx's errors by a name that callers know."""
    import httpx2

    try:
        yield
    except httpx2.HTTPError as error:
        raise ConnectionError(f"{type(error).__name__}: {error}") from None
