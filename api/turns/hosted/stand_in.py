"""The tool of a server of MCP that stands for one of OpenAI's, during one turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from api.turns.hosted.mcp_server import ServerOfTool, server_and_tool
from backends.mcp.server import ServerFailed
from core.json import Json
from core.state import AppState
from requests.router_tools import http_error
from requests.stand_ins import argument_of, takes_list, tool_of

if TYPE_CHECKING:
    from backends.mcp.session import ToolAnswer


class StandIn:
    """It. `kind` is the tool that it stands for, by the `setting` of that."""

    def __init__(self, state: AppState, owner: str, kind: str, setting: str) -> None:
        server, self._tool = server_and_tool(setting)
        self._server = ServerOfTool(state, owner, server)
        self._kind = kind

    async def ask(self, value: str, more: Callable[[Json], Json]) -> ToolAnswer:
        """The answer to a call with this value for the argument that matters, and what `more` gives of others for the
        tool. Raises `ServerFailed`."""

        def arguments(tool: Json) -> Json:
            argument = argument_of(self._kind, tool)
            if argument is None:
                raise ServerFailed(http_error(404, "The tool of its server takes something else."))
            return {**more(tool), argument: [value] if takes_list(tool, argument) else value}

        return await self._server.ask(lambda tools: tool_of(self._kind, tools, self._tool), arguments)

    def close(self) -> None:
        """Ends its session, without anybody waiting for that."""
        self._server.close()
