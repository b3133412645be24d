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

from backends.mcp.server import McpServer, ServerFailed
from backends.wire.outbound import ForbiddenAddress, ForbiddenURL
from core.json import Json, encode_json
from requests.router_tools import http_error, protocol_error, with_error, with_output

log = logging.getLogger("nomyo.tools")

MB = 1024 * 1024
# Of one answer, as it comes: 10 MB, which many servers send twice, as text and structured.
MOST_BYTES = 24 * MB
CLOSE_S = 2.0
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


class Session:
    """One session, opened at once. `http` is a client that sends to this server alone."""

    def __init__(self, server: McpServer, http: httpx2.AsyncClient | None) -> None:
        self._server = server
        self._http = http
        self._over = asyncio.Event()
        self._client: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.task = asyncio.create_task(self._live(), name="mcp session")

    @property
    def is_over(self) -> bool:
        """Whether it has ended, or is about to."""
        return self._over.is_set() or self.task.done()

    def close(self) -> None:
        """Ends it. Nobody waits for that."""
        self._over.set()
        if not self._client.done():
            self.task.cancel()

    async def list_tools(self, most: int) -> list[Json]:
        """The tools that the server has, as items show them; no more than `most`. Raises `ServerFailed`."""
        try:
            return await self._listed(most)
        except Exception as error:
            raise ServerFailed(described(error, self._server)) from None

    async def call(self, item: Json, arguments: Json) -> Json:
        """A call, with what came of it."""
        try:
            return await self._called(item, arguments)
        except Exception as error:
            return with_error(item, described(error, self._server))

    async def _listed(self, most: int) -> list[Json]:
        client = await asyncio.shield(self._client)
        tools: dict[str, Json] = {}
        cursor = None
        for _ in range(MOST_PAGES):
            page = await client.list_tools(cursor=cursor)
            for tool in page.tools:
                hints = tool.annotations
                annotations = hints.model_dump(by_alias=True, exclude_none=True) if hints else None
                schema = tool.input_schema if isinstance(tool.input_schema, dict) else {}
                shown = {"name": tool.name, "description": tool.description, "input_schema": schema}
                tools[tool.name] = shown | {"annotations": annotations}
            cursor = page.next_cursor
            if not cursor or len(tools) >= most:
                break
        return [*tools.values()][:most]

    async def _called(self, item: Json, arguments: Json) -> Json:
        client = await asyncio.shield(self._client)
        result = await client.call_tool(item["name"], arguments)
        blocks = [block.model_dump(mode="json", by_alias=True, exclude_none=True) for block in result.content]
        if result.is_error:
            return with_error(item, {"type": "mcp_tool_execution_error", "content": blocks})
        return with_output(item, text_of(blocks, result.structured_content))

    async def _live(self) -> None:
        try:
            async with self._connected() as client:
                if not self._client.done():
                    self._client.set_result(client)
                await self._over.wait()
                late = asyncio.get_running_loop().call_later(CLOSE_S, self.task.cancel)
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
            program, *arguments = server.command
            transport = mcp.StdioServerParameters(command=program, args=arguments, env=dict(server.env) or None)
        elif server.is_sse:
            transport = mcp.client.sse.sse_client(server.url, httpx_client_factory=lambda **_: self._http)
        else:
            transport = mcp.client.streamable_http.streamable_http_client(
                server.url, http_client=self._http, max_sse_event_size=MOST_BYTES
            )
        we = mcp.Implementation(name=NAME, version=VERSION)
        async with mcp.Client(transport, cache=None, client_info=we) as client:
            yield client


NAME, VERSION = "nomyo-router", "0.1.0"


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
