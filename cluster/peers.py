"""Asking the other processes of the service, over HTTP at a Unix socket that each of them has.

A client's request that this process cannot answer, because another one runs what it asks for, is asked there (`find`);
what concerns all of them is asked of all (`ask`). Who can open the sockets is one of us: what comes in there was let in
where it came from.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

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


@asynccontextmanager
async def answering(app: ASGIApp, http: type[asyncio.Protocol], path: Path) -> AsyncGenerator[None]:
    """Answers the peers at the socket `path` while it is open."""

    async def from_peer(scope: Scope, receive: Receive, send: Send) -> None:
        scope[FROM_PEER] = True
        await app(scope, receive, send)

    _remove(path)
    # No log of accesses: they are logged where they come in.
    config = Config(from_peer, http=http, interface="asgi3", lifespan="off", log_config=None)
    config.load()
    state = ServerState()

    def protocol() -> Any:
        made: Any = http(config=config, server_state=state, app_state={})  # type: ignore[call-arg]
        made.access_log = False  # Not by the settings: these silence the log of the whole process.
        return made

    server = await asyncio.get_running_loop().create_unix_server(protocol, str(path))
    try:
        yield
    finally:
        server.close()
        for connection in list(state.connections):
            connection.shutdown()
        _remove(path)


def _remove(socket: Path) -> None:
    socket.unlink(missing_ok=True)


async def ask(sockets: Iterable[Path], method: str, path: str, headers: Mapping[str, str]) -> list[Any]:
    """What each peer answers, as JSON; None for one that does not."""
    return await asyncio.gather(*(_json_of(socket, method, path, headers) for socket in sockets))


async def _json_of(socket: Path, method: str, path: str, headers: Mapping[str, str]) -> Any:
    try:
        async with asyncio.timeout(PATIENCE_S):
            answer = await SocketAnswer.of(socket, method, path, headers)
            try:
                return await answer.json() if answer.status == 200 else None
            finally:
                await answer.aclose()
    except (OSError, ValueError) as error:  # also the timeout
        log.warning("%s does not answer: %r", socket.stem, error)
        return None


async def find(sockets: Iterable[Path], method: str, path: str, headers: Mapping[str, str]) -> PeerAnswer | None:
    """The answer of the first peer that has one other than 404."""
    for socket in sockets:
        try:
            async with asyncio.timeout(FINDING_PATIENCE_S):
                answer = await SocketAnswer.of(socket, method, path, headers)
        except OSError as error:  # also the timeout
            log.warning("%s does not answer: %r", socket.stem, error)
            continue
        if answer.status != 404:
            return answer
        await answer.aclose()
    return None


class SocketAnswer(PeerAnswer):
    """The answer of a peer at its socket, with the connection that it comes by."""

    def __init__(self, response: httpx2.Response, connection: AsyncExitStack) -> None:
        self.status = response.status_code
        self.headers = response.headers
        self._response = response
        self._connection = connection

    @classmethod
    async def of(cls, socket: Path, method: str, path: str, headers: Mapping[str, str]) -> SocketAnswer:
        """Asks, and waits for the head of the answer. Raises `ConnectionError`."""
        import httpx2  # Most services have one process, and ask nobody.

        transport = httpx2.AsyncHTTPTransport(uds=str(socket), verify=False, trust_env=False)
        timeout = httpx2.Timeout(None, connect=PATIENCE_S)
        async with AsyncExitStack() as stack:
            with named_errors():
                client = httpx2.AsyncClient(transport=transport, timeout=timeout, trust_env=False)
                await stack.enter_async_context(client)
                asked = client.stream(method, f"http://peer{path}", headers=dict(headers))
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
