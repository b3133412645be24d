"""A server of MCP that the settings name for a hosted tool (`mcp:NAME`, or `mcp:NAME/TOOL`), during one turn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from backends.mcp.server import ServerFailed, server_of_settings
from core.json import Json
from core.state import AppState
from requests.router_tools import call_of_router, http_error
from requests.tools import Item

if TYPE_CHECKING:
    from backends.mcp.session import Session, ToolAnswer

# Of a server's tools, that which is to be called.
Choose = Callable[[Sequence[Json]], Json | None]


def serves(state: AppState, setting: object, owner: str) -> bool:
    """Whether a setting names a server that an owner may use."""
    return isinstance(setting, str) and state.mcp.named(server_and_tool(setting)[0], owner) is not None


def server_and_tool(setting: str) -> tuple[str, str]:
    """The names in a setting; that of the tool may be empty."""
    server, _, tool = setting.partition(":")[2].partition("/")
    return server, tool


class ServerOfTool:
    """One of `mcp.servers`, as an owner may use it. Its session is opened when something is called, and all calls of a
    turn share it."""

    def __init__(self, state: AppState, owner: str, name: str) -> None:
        self._servers = state.mcp
        self._owner = owner
        self._name = name
        self._most = state.config.max_tools
        self._session: Session | None = None
        self._opening = asyncio.Lock()
        self._is_closed = False

    async def call(self, choose: Choose, arguments: Callable[[Json], Json]) -> Item:
        """The `mcp_call` of the tool that is chosen of those that the server has, with its `output` or `error`;
        `arguments` are made for that tool. Raises `ServerFailed`."""
        session, tool = await self._found(choose)
        name = tool["name"]
        call = call_of_router("mcp_call", id="", label=self._name, name=name, arguments="", status="in_progress")
        ran: Item = await session.call(call, arguments(tool))
        return ran

    async def ask(self, choose: Choose, arguments: Callable[[Json], Json]) -> ToolAnswer:
        """The answer of that tool, as it is. Raises `ServerFailed`."""
        session, tool = await self._found(choose)
        return await session.ask(tool["name"], arguments(tool))

    async def _found(self, choose: Choose) -> tuple[Session, Json]:
        settings = self._servers.named(self._name, self._owner)
        if settings is None:
            raise ServerFailed(http_error(403, "Its server is for others."))
        server = server_of_settings(self._name, settings)
        async with self._opening:
            if self._session is None or self._session.is_over:
                self._session = session = await self._servers.session(server, allow_private=True)
                if self._is_closed:  # The turn has ended meanwhile.
                    session.close()
            else:
                session = self._session
            tools = self._servers.known_tools(server, self._owner)
            if tools is None:
                tools = await session.list_tools(self._most)
                self._servers.remember_tools(server, self._owner, tools)
        if (tool := choose(tools)) is None:
            raise ServerFailed(http_error(404, "Its server has no tool for it."))
        return session, tool

    def close(self) -> None:
        """Ends its session, without anybody waiting for that."""
        self._is_closed = True
        if self._session is not None:
            self._session.close()
