"""A server of MCP that the settings name for a hosted tool (`mcp:NAME`), during one turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from backends.mcp.server import ServerFailed, server_of_settings
from core.json import Json
from core.state import AppState
from requests.router_tools import call_of_router, http_error
from requests.tools import Item

if TYPE_CHECKING:
    from backends.mcp.session import Session


class ServerOfTool:
    """One of `mcp.servers`, as an owner may use it. Its session is opened when something is called."""

    def __init__(self, state: AppState, owner: str, name: str) -> None:
        self._servers = state.mcp
        self._owner = owner
        self._name = name
        self._most = state.config.max_tools
        self._session: Session | None = None

    async def call(self, choose: Callable[[Sequence[Json]], Json | None], arguments: Callable[[Json], Json]) -> Item:
        """The `mcp_call` of the tool that is chosen of those that the server has, with its `output` or `error`;
        `arguments` are made for that tool. Raises `ServerFailed`."""
        settings = self._servers.named(self._name, self._owner)
        if settings is None:
            raise ServerFailed(http_error(403, "Its server is for others."))
        server = server_of_settings(self._name, settings)
        if self._session is None or self._session.is_over:
            self._session = await self._servers.session(server, allow_private=True)
        tools = self._servers.known_tools(server, self._owner)
        if tools is None:
            tools = await self._session.list_tools(self._most)
            self._servers.remember_tools(server, self._owner, tools)
        if (tool := choose(tools)) is None:
            raise ServerFailed(http_error(404, "Its server has no tool for it."))
        name = tool["name"]
        call = call_of_router("mcp_call", id="", label=self._name, name=name, arguments="", status="in_progress")
        ran: Item = await self._session.call(call, arguments(tool))
        return ran

    def close(self) -> None:
        """Ends its session, without anybody waiting for that."""
        if self._session is not None:
            self._session.close()
