"""The other workers of the service (`workers: N`): a request that this one cannot answer, because another runs what it asks for, is
asked there, and what is told of the fleet is told of all.

Each worker has a door of its own for the others, a Unix socket in the folder of the board. What comes in there has been let in by
the worker that it came to, and is never handed on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Scope
from uvicorn import Config
from uvicorn.server import ServerState

from api.http.protocol import Protocol
from core.state import AppState

log = logging.getLogger("nomyo.workers")

# A worker that does not answer in this time is left out.
PATIENCE_S = 2.0
# Or in this time, where it may have to stop something first.
ITS_PATIENCE_S = 10.0
PASSED_ON = ("content-type", "cache-control", "x-accel-buffering")


def is_from_sibling(scope: Scope) -> bool:
    """Whether a request came in by the door of this worker: the address of a Unix socket has no port."""
    server: tuple[str, int | None] = scope["server"]
    return server[1] is None and scope["app"].state.board is not None


@asynccontextmanager
async def door(app: ASGIApp, board: Any) -> AsyncGenerator[None]:
    """Answers the siblings, while it is open."""
    path = board.door(board.number)
    path.unlink(missing_ok=True)
    config = Config(app, http=Protocol, lifespan="off", log_config=None)
    config.load()
    state = ServerState()

    def protocol() -> Protocol:
        made = Protocol(config=config, server_state=state, app_state={})
        made.access_log = False  # Not by the settings: these silence the log of the whole process.
        return made

    server = await asyncio.get_running_loop().create_unix_server(protocol, str(path))
    try:
        yield
    finally:
        server.close()
        for connection in list(state.connections):
            connection.shutdown()
        path.unlink(missing_ok=True)


async def ask(state: AppState, method: str, path: str) -> list[Any]:
    """What each sibling answers, as JSON; None for one that does not."""
    board = state.board
    return (
        []
        if board is None
        else await asyncio.gather(*(_told(state, board.door(n), method, path) for n in board.others()))
    )


async def _told(state: AppState, door: Path, method: str, path: str) -> Any:
    try:
        async with asyncio.timeout(PATIENCE_S), _asking(state, door, method, path) as answer:
            return await answer.json() if answer.status == 200 else None
    except (OSError, ValueError) as error:  # also the timeout
        log.warning("%s does not answer: %r", door.stem, error)
        return None


async def answer_of_sibling(request: Request) -> Response | None:
    """The answer of the sibling that runs what this request asks for, as it comes; None if none does, or there are none."""
    state: AppState = request.app.state
    if state.board is None or is_from_sibling(request.scope):
        return None
    path = f"{request.url.path}?{request.url.query}"
    for number in state.board.others():
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(ITS_PATIENCE_S):
                    answer = await stack.enter_async_context(
                        _asking(state, state.board.door(number), request.method, path)
                    )
            except OSError as error:  # also the timeout
                log.warning("worker %d does not answer: %r", number, error)
                continue
            if answer.status != 404:
                kept = {name: answer.headers[name] for name in PASSED_ON if name in answer.headers}
                return StreamingResponse(_pieces(answer, stack.pop_all()), answer.status, kept)
    return None


async def _pieces(answer: Any, stack: AsyncExitStack) -> AsyncGenerator[bytes]:
    async with stack:
        async for received in answer.content.iter_any():
            yield received


@asynccontextmanager
async def _asking(state: AppState, door: Path, method: str, path: str) -> AsyncGenerator[Any]:
    """The answer of a sibling, once its head is there."""
    import aiohttp  # Most services have one worker.

    connector = aiohttp.UnixConnector(str(door))
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=PATIENCE_S)
    headers = {"Authorization": f"Bearer {state.config.api_key}"}
    try:
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers) as session,
            session.request(method, f"http://worker{path}") as answer,
        ):
            yield answer
    except aiohttp.ClientError as error:  # Some of them are no OSError.
        raise ConnectionError(str(error)) from error
