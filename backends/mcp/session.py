"""A session with a server of MCP: it lives in a task of its own, which opens and closes it, and others call through it.

Session ── task: connect ▶ initialize ▶ …until `close`… ▶ closed
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
from msgspec import Struct

from backends.mcp.server import McpServer, ServerFailed
from backends.mcp.tool_list import ToolList
from backends.wire.outbound import AnswerTooLarge, ForbiddenAddress, ForbiddenURL
from core.json import Json, encode_json
from requests.router_tools import http_error, protocol_error, with_error, with_output

log = logging.getLogger("nomyo.tools")

MB = 1024 * 1024
# Of one answer, as it comes: 10 MB, which many servers send twice, as text and structured.
MOST_BYTES = 24 * MB
CLOSE_S = 2.0
# A program is asked to end, made to, and killed.
CLOSE_PROGRAM_S = 8.0
MOST_PAGES = 100


def load() -> Any:
    """The official client's modules, which take a second to load: in a thread."""
    import mcp
    import mcp.client.sse
    import mcp.client.stdio
    import mcp.client.streamable_http

    # Its lines have URLs in them, which may have keys in them.
    logging.getLogger("mcp").setLevel(logging.CRITICAL)
    return mcp


class ToolAnswer(Struct, frozen=True):
    """What a tool has answered: content blocks, and the same `structured`, where it gives that. `has_failed`: they hold
    what went wrong."""

    blocks: list[Json]
    structured: Any
    has_failed: bool


class Session:
    """One session, opened at once. `http` is a client that sends to this server alone."""

    def __init__(self, server: McpServer, http: httpx2.AsyncClient | None) -> None:
        self._server = server
        self._http = http
        self._over = asyncio.Event()
        self._client: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.task = asyncio.create_task(self._live(), name="mcp session")

    @property
    def closes_within_s(self) -> float:
        """How long it may take to end it."""
        return CLOSE_PROGRAM_S if self._server.command else CLOSE_S

    @property
    def is_over(self) -> bool:
        """Whether it has ended, or is about to."""
        return self._over.is_set() or self.task.done()

    def close(self) -> None:
        """Ends it. Nobody waits for that."""
        if self._over.is_set():
            return  # A second cancellation would take a program's time to end from it.
        self._over.set()
        if not self._client.done():
            self.task.cancel()

    async def list_tools(self, most: int) -> list[Json]:
        """The tools that the server has, as items show them; no more than `most`. Raises `ServerFailed`."""
        try:
            return await self._listed(most)
        except Exception as error:
            raise ServerFailed(described(error, self._server)) from None

    async def ask(self, name: str, arguments: Json) -> ToolAnswer:
        """What a tool of the server answers. Progress that it reports is no answer, and gives it no more time. Raises
        `ServerFailed`."""
        try:
            client = await asyncio.shield(self._client)
            result = await client.call_tool(name, arguments)
        except Exception as error:
            raise ServerFailed(described(error, self._server)) from None
        blocks = [block.model_dump(mode="json", by_alias=True, exclude_none=True) for block in result.content]
        return ToolAnswer(blocks, result.structured_content, bool(result.is_error))

    async def call(self, item: Json, arguments: Json) -> Json:
        """A call, with what came of it."""
        try:
            answer = await self.ask(item["name"], arguments)
        except ServerFailed as error:
            return with_error(item, error.error)
        if answer.has_failed:
            return with_error(item, {"type": "mcp_tool_execution_error", "content": answer.blocks})
        return with_output(item, text_of(answer.blocks, answer.structured))

    async def _listed(self, most: int) -> list[Json]:
        client = await asyncio.shield(self._client)
        tools = ToolList()
        cursor = None
        for _ in range(MOST_PAGES):
            page = await client.list_tools(cursor=cursor)
            await asyncio.to_thread(tools.take, page.tools)
            cursor = page.next_cursor
            if not cursor or len(tools.shown) >= most:
                break
        return [*tools.shown.values()][:most]

    async def _live(self) -> None:
        try:
            async with self._connected() as client:
                if not self._client.done():
                    self._client.set_result(client)
                await self._over.wait()
                late = asyncio.get_running_loop().call_later(self.closes_within_s, self.task.cancel)
            late.cancel()
        except Exception as error:
            self._fail(described(error, self._server))
        finally:
            self._over.set()
            self._fail(protocol_error("The session has ended."))

    def _fail(self, error: Json) -> None:
        if not self._client.done():
            self._client.set_exception(ServerFailed(error))
            self._client.exception()  # Whoever asked may have left.

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[Any]:
        mcp = await asyncio.to_thread(load)
        server = self._server
        if server.command:
            from backends.mcp.program import program

            env = mcp.client.stdio.get_default_environment() | dict(server.env)
            transport = program(server.command, env, MOST_BYTES)
        elif server.is_sse:
            transport = mcp.client.sse.sse_client(server.url, httpx_client_factory=lambda **_: self._http)
        else:
            transport = mcp.client.streamable_http.streamable_http_client(
                server.url, http_client=self._http, max_sse_event_size=MOST_BYTES
            )
        we = mcp.Implementation(name=NAME, version=VERSION)
        async with mcp.Client(transport, cache=None, client_info=we) as client:
            client.session.validate_tool_result = _as_it_is
            yield client


NAME, VERSION = "nomyo-router", "0.1.0"


async def _as_it_is(name: str, result: Any) -> None:
    """In place of the client's own check of an answer, by the schema that its server has given: a pattern or references
    in it can make that take for ever, in the event loop. A model reads what comes, whatever was announced."""


def text_of(blocks: list[Json], structured: Any) -> str:
    """What a tool has answered, as the output of a call: its text, or else its blocks as JSON."""
    if not blocks:
        return "" if structured is None else encode_json(structured).decode()
    if all(block.get("type") == "text" for block in blocks):
        return "\n".join(block.get("text", "") for block in blocks)
    return encode_json([{"type": block.get("type"), **block} for block in blocks]).decode()


def described(error: BaseException, server: McpServer) -> Json:
    """An error of the client, as one of a call. None of its words that may hold a credential."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, ServerFailed):
        return error.error
    if isinstance(error, ForbiddenURL | ForbiddenAddress):
        return http_error(403, "The router does not connect to where this server is.")
    if isinstance(error, AnswerTooLarge):
        return http_error(502, f"The server's answer is larger than {MOST_BYTES // MB} MB.")
    if isinstance(error, httpx2.HTTPStatusError):
        return http_error(error.response.status_code, f"The server answered {error.response.status_code}.")
    if isinstance(error, httpx2.TimeoutException | TimeoutError):
        return http_error(504, "The server has not answered in time.")
    if isinstance(error, httpx2.InvalidURL | httpx2.UnsupportedProtocol):
        return http_error(400, "The URL of the server is invalid.")
    if isinstance(error, httpx2.HTTPError | OSError):
        return http_error(502, "The server cannot be reached.")
    if (given := getattr(error, "error", None)) is not None and isinstance(getattr(given, "code", None), int):
        return protocol_error(server.scrubbed(str(given.message)), given.code)
    return protocol_error(f"The server does not answer as one of MCP ({type(error).__name__}).")
