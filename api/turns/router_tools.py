"""Which tools of a turn the router runs: those of servers of MCP, and those that OpenAI runs else, as far as they are
set up (`hosted/`).

    request.tools ──router_tools_of──▶ ToolsOfTurn ──offered──▶ what the model is offered
                                         McpTools      mcp_tools.py                        ──run──▶ a call, with its
                                         HostedRunner  hosted/: one for each type of call           output
"""

from __future__ import annotations

from collections.abc import Mapping, Set

from api.turns.hosted import HOSTED
from api.turns.hosted.tool import HostedRunner, HostedTool
from api.turns.mcp_tools import Given, McpTools, allows_private, is_of_settings, offers_of
from api.turns.tool_rounds import TurnTools
from api.turns.turn import Turn, TurnRequest
from backends.fleet.pool import is_ext_openai_endpoint
from core.errors import InvalidRequest
from core.json import Json
from core.state import AppState
from requests.hosted_calls import HOSTED_TOOLS
from requests.items import type_of
from requests.router_tools import RouterTools
from requests.tools import BRINGS_TOOLS, Item

# The types of tools that may be run here.
OURS = HOSTED.keys() | {"mcp"}


def router_tools_of(state: AppState, turn: Turn) -> TurnTools | None:
    """Those of a turn; None where there are none, and the answer of its model is all. Raises `InvalidRequest`."""
    request = turn.request
    if turn.compacts or request.is_compaction:
        return None
    tools = enumerate(request.params.tools or ())
    given = [(f"tools[{place}]", tool) for place, tool in tools if tool["type"] in OURS]
    if has_brought(request):
        given += _brought(request, {_key(tool) for _, tool in given})
    # A front door of another API has no place for their items.
    always = [] if turn.asks_chats else state.mcp.always(turn.owner)
    if not given and not always:
        return None
    servers = [(where, tool) for where, tool in given if tool["type"] == "mcp"]
    wanted = _set_up(state, turn, given)
    is_here = always or any(is_of_settings(state, turn, tool) for _, tool in servers)
    if not is_here and _runs_elsewhere(state, turn, {type for hosted in wanted for type in hosted.types}):
        return None
    offers = offers_of(state, turn, servers, always)
    runners = {hosted.call: hosted.runner(state, turn, *entry) for hosted, entry in wanted.items()}
    if not offers and not runners:
        return None
    choice = request.params.tool_choice
    if isinstance(choice, dict) and choice["type"] == "mcp" and choice.get("server_label") not in offers:
        raise InvalidRequest("The tool choice names a server that is not in 'tools'.", param="tool_choice")
    turn.asks_chats = True
    mcp = McpTools(state.mcp, offers, turn.owner, state.config, allow_private=allows_private(state))
    return ToolsOfTurn(mcp, runners)


def has_brought(request: TurnRequest) -> bool:
    """Whether items of a conversation bring tools along: few do."""
    return not BRINGS_TOOLS.isdisjoint(map(type_of, request.items))


def _brought(request: TurnRequest, known: set[object]) -> Given:
    """Those that items bring along, with their places, without those that are `known`. What comes again later stands
    for what came before."""
    found: dict[object, tuple[str, Json]] = {}
    for place, item in enumerate(request.items, -len(request.history)):
        if item["type"] in BRINGS_TOOLS:
            places = request.places
            at = "previous_response_id" if place < 0 else f"input[{places[place] if places else place}]"
            tools = enumerate(item.get("tools") or ())
            found |= {_key(tool): (f"{at}.tools[{n}]", tool) for n, tool in tools if tool["type"] in OURS}
    return [each for key, each in found.items() if key not in known]


def _key(tool: Json) -> object:
    """What there is one of in a turn: a server of a label, a hosted tool."""
    return HOSTED_TOOLS.get(tool["type"]) or str(tool.get("server_label"))


def _set_up(state: AppState, turn: Turn, given: list[tuple[str, Json]]) -> dict[HostedTool, tuple[str, Json]]:
    """The hosted tools among those of a request that the settings have, each with its place and entry there. Raises
    `InvalidRequest` where one is there twice."""
    wanted: dict[HostedTool, tuple[str, Json]] = {}
    for where, tool in given:
        hosted = HOSTED.get(tool["type"])
        if hosted is not None and hosted.is_set_up(state, turn.owner):
            if hosted in wanted:
                raise InvalidRequest(
                    f"The tool '{tool['type']}' is there already, as {wanted[hosted][0]}.", param=where
                )
            wanted[hosted] = where, tool
    return wanted


def _runs_elsewhere(state: AppState, turn: Turn, types: Set[str]) -> bool:
    """Whether the servers that could answer the turn all speak Responses, and run such tools themselves: of another
    router it is known which it runs."""
    pool = state.pool
    serving = pool.endpoints.serving(turn.request.model, turn.request.principal.models)
    return bool(serving) and all(
        is_ext_openai_endpoint(pool, endpoint.key) and (endpoint.tools is None or types <= endpoint.tools)
        for endpoint, _ in serving
    )


class ToolsOfTurn:
    """All of a turn (`TurnTools`). `runners` are by the types of items that are their calls."""

    def __init__(self, mcp: McpTools, runners: Mapping[str, HostedRunner]) -> None:
        self._mcp = mcp
        self._runners = runners
        # The names of those that could not be had or run.
        self.failed = mcp.failed

    async def offered(self, turn: Turn) -> RouterTools:
        """What the model is offered."""
        of_servers = await self._mcp.offered(turn)
        tools, heeded, ignored = [*of_servers.tools], of_servers.heeded, of_servers.ignored
        for runner in self._runners.values():
            runner.begin(turn)
            tools += runner.tools
            heeded |= runner.heeded
            ignored |= runner.ignored
        return RouterTools(tuple(tools), of_servers.labels, frozenset(self._runners), heeded, ignored)

    async def run(self, call: Item) -> Item:
        """The call with its output, or its error."""
        kind = call["type"]
        if (runner := self._runners.get(kind)) is None:
            return await self._mcp.run(call)
        has_failed = True  # Also where it takes too long.
        try:
            ran = await runner.run(call)
            has_failed = ran["status"] == "failed"
        finally:
            if has_failed:
                self.failed[kind.removesuffix("_call")] = False
        return ran

    def close(self) -> None:
        """Nothing more is called."""
        self._mcp.close()
        for runner in self._runners.values():
            runner.close()
