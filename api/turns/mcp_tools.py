"""The tools of servers of MCP that a turn may use: of the settings, or named by the client.

request.tools ──offers_of──▶ McpTools ──offered──▶ what the model is offered      ──run──▶ a call, with its output
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from contextlib import aclosing
from importlib.util import find_spec
from typing import TYPE_CHECKING

from msgspec import Struct

from api.turns.tool_rounds import begin_early, side_by_side
from api.turns.turn import Turn
from backends.mcp.server import McpServer, ServerFailed, server_of_settings
from backends.mcp.servers import McpServers
from core.config import Config, McpServerConfig
from core.errors import InvalidRequest
from core.json import Json
from core.state import AppState
from requests.mcp_tools import McpEntry, mcp_entry, router_tool
from requests.responses import ID_PREFIXES, new_id
from requests.router_tools import RouterTool, RouterTools, http_error, list_of_tools, protocol_error, with_error
from requests.tools import Item, arguments_of

log = logging.getLogger("nomyo.tools")

INVALID_PARAMS = -32602

if TYPE_CHECKING:
    from backends.mcp.session import Session


class Offer(Struct, frozen=True):
    """A server whose tools a turn is offered: as the client asks for it, and as it is set up, if it is of the
    settings."""

    entry: McpEntry
    server: McpServer
    settings: McpServerConfig | None = None

    def needs_approval(self, tool: Json) -> bool:
        """Whether somebody must approve of each call of a tool. The settings can ask for it, and a client for more."""
        wanted = self.entry.needs_approval(tool)
        if self.settings is None:
            return wanted is not False
        return self.settings.require_approval == "always" or bool(wanted)


# Tools of a request, each with its place there.
Given = Sequence[tuple[str, Json]]


def offers_of(state: AppState, turn: Turn, given: Given, always: Iterable[str]) -> dict[str, Offer]:
    """The servers that a turn may use, by their labels: of the tools that are `given`, each with its place in the
    request, and those that are offered to every turn. Raises `InvalidRequest`."""
    offers: dict[str, Offer] = {}
    for where, tool in given:
        entry = mcp_entry(tool, where)
        if entry.label in offers:
            raise InvalidRequest("Two mcp tools have one 'server_label'.", param=f"{where}.server_label")
        if (offer := _offer(state, turn, entry)) is not None:
            offers[entry.label] = offer
    for name in always:
        if name not in offers:
            offer = _offer(state, turn, mcp_entry({"server_label": name}, "tools"))
            assert offer is not None
            offers[name] = offer
    return offers


def is_of_settings(state: AppState, turn: Turn, tool: Json) -> bool:
    """Whether the server that a tool names is one of the settings, that the turn may use."""
    name = tool.get("connector_id") or tool.get("server_label")
    return not tool.get("server_url") and isinstance(name, str) and state.mcp.named(name, turn.owner) is not None


def _offer(state: AppState, turn: Turn, entry: McpEntry) -> Offer | None:
    """None for a server that nobody here may use, or knows."""
    if entry.url:
        if not _allows_clients(state):
            return None
        is_sse = entry.url.partition("?")[0].rstrip("/").endswith("/sse")
        headers = tuple(entry.headers.items())
        return Offer(entry, McpServer(entry.label, entry.url, headers=headers, is_clients=True, is_sse=is_sse))
    if (settings := state.mcp.named(entry.name, turn.owner)) is None:
        return None
    return Offer(entry, server_of_settings(entry.label, settings, entry.headers), settings)


def _allows_clients(state: AppState) -> bool:
    setting = state.config.mcp.client_servers
    if setting is None:
        return not state.keys.asks_for_keys and find_spec("mcp") is not None
    return setting == "allow"


def allows_private(state: AppState) -> bool:
    """Whether servers that clients name may lie at addresses that are not public."""
    setting = state.config.mcp.allow_private
    return not state.keys.asks_for_keys if setting is None else setting


class McpTools:
    """The tools of servers of MCP that a turn may use."""

    def __init__(
        self, servers: McpServers, offers: dict[str, Offer], owner: str, config: Config, *, allow_private: bool
    ) -> None:
        self.failed: dict[str, bool] = {}
        self._servers = servers
        self._offers = offers
        self._owner = owner
        self._allow_private = allow_private
        self._most = config.max_tools
        self._timeout_s = config.tools.timeout_s
        self._tools: dict[tuple[str, str], RouterTool] = {}
        self._sessions: dict[str, Session] = {}

    async def offered(self, turn: Turn) -> RouterTools:
        """What the model is offered. Servers that this conversation has not heard of are listed in items of their
        own, and those that have failed."""
        builder = turn.builder
        listed = [item.get("server_label") for item in turn.request.items if _lists_tools(item)]
        asked: dict[int, Item] = {}
        for label, offer in self._offers.items():
            known = self._servers.known_tools(offer.server, self._owner)
            if label in listed and known is not None:
                self._take(label, known)
                continue
            item = list_of_tools(new_id(ID_PREFIXES["mcp_list_tools"]), label)
            if label in listed:  # Nobody has to hear of it again, unless it fails.
                asked[-1 - len(asked)] = item
                continue
            begin_early(turn)
            turn.emit(builder.begin_work(item))
            asked[max(builder.take_handed())] = item
        async with aclosing(side_by_side(asked, self._listed, max(1, len(asked)))) as ended:
            async for output_index, item in ended:
                if output_index >= 0:
                    turn.emit(builder.end_work(output_index, item))
                elif item.get("error"):
                    begin_early(turn)
                    turn.emit(builder.item(item))
        return RouterTools(tuple(self._tools.values()), frozenset(self._offers))

    async def _listed(self, item: Item) -> Item:
        label = item["server_label"]
        offer = self._offers[label]
        tools = self._servers.known_tools(offer.server, self._owner)
        if tools is None:
            try:
                async with asyncio.timeout(self._timeout_s):
                    tools = await (await self._session(label)).list_tools(self._most)
            except ServerFailed as error:
                return self._failed_to_list(item, error.error)
            except TimeoutError:
                return self._failed_to_list(item, http_error(504, "The server has not answered in time."))
            self._servers.remember_tools(offer.server, self._owner, tools)
        return {**item, "tools": self._take(label, tools)}

    def _failed_to_list(self, item: Item, error: Json) -> Item:
        self.failed[f"mcp:{item['server_label']}"] = True
        log.warning("an MCP server has not listed its tools: %s", error["type"])
        return {**item, "error": error["message"]}

    def _take(self, label: str, tools: Iterable[Json]) -> list[Json]:
        """Offers those of the tools that the request permits, and gives them."""
        offer = self._offers[label]
        permitted = [tool for tool in tools if offer.entry.permits(tool)]
        for tool in permitted:
            self._tools[label, tool["name"]] = router_tool(label, tool, needs_approval=offer.needs_approval(tool))
        return permitted

    async def run(self, call: Item) -> Item:
        """The call with its output, or its error."""
        label = call["server_label"]
        tool = self._tools.get((label, call["name"]))
        if tool is None:
            return with_error(call, protocol_error("There is no such tool.", INVALID_PARAMS))
        if tool.needs_approval and not call["approval_request_id"]:
            return with_error(call, protocol_error("This tool runs only where somebody approves of it."))
        if (arguments := arguments_of(call["arguments"])) is None:
            return with_error(call, protocol_error("The arguments are no JSON object.", INVALID_PARAMS))
        ran = await (await self._session(label)).call(call, arguments)
        if ran["error"]:
            log.info("an MCP server has failed a call: %s", ran["error"]["type"])
            self.failed[f"mcp:{label}"] = False
        return ran

    async def _session(self, label: str) -> Session:
        """The session of this turn with a server; a new one where that has ended."""
        session = self._sessions.get(label)
        if session is None or session.is_over:
            session = await self._servers.session(self._offers[label].server, allow_private=self._allow_private)
            if (other := self._sessions.get(label)) is not None and not other.is_over:
                session.close()
                return other
            self._sessions[label] = session
        return session

    def close(self) -> None:
        """Closes its sessions, without anybody waiting for that."""
        for session in self._sessions.values():
            session.close()


def _lists_tools(item: Item) -> bool:
    return item.get("type") == "mcp_list_tools" and not item.get("error")
