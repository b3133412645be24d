"""file_search: what a model looks for in files is looked for by the tool that the settings have for it. What was found
is numbered, so that the model can refer to it (requests/citations.py). Files and vector stores of our own would be
another search beside `StandIn`."""

from __future__ import annotations

import asyncio

from api.turns.hosted.mcp_server import serves
from api.turns.hosted.stand_in import StandIn
from api.turns.hosted.tool import HostedTool
from api.turns.turn import Turn
from backends.mcp.server import ServerFailed
from core.json import Json
from core.state import AppState
from requests.file_search import (
    DESCRIPTION,
    INCLUDE_RESULTS,
    KIND,
    PARAMETERS,
    FileSearchEntry,
    best_of,
    file_search_entry,
    read_results,
    take_files,
)
from requests.hosted_calls import FILES
from requests.router_tools import RouterTool, protocol_error, with_error, with_outcome
from requests.stand_ins import limit_of, results_of, taken_of
from requests.tools import Item

MOST_QUERIES = 8


class FileSearch:
    """That of one turn (`HostedRunner`)."""

    heeded = frozenset({f"include.{INCLUDE_RESULTS}"})
    ignored: frozenset[str] = frozenset()

    def __init__(self, state: AppState, turn: Turn, entry: FileSearchEntry) -> None:
        self._entry = entry
        self._include = turn.request.params.include or ()
        self._sources = turn.builder.sources
        self._tool = StandIn(state, turn.owner, KIND, state.config.tools.file_search)
        self.tools = [RouterTool("", KIND, DESCRIPTION, PARAMETERS, kind=FILES)]

    def begin(self, turn: Turn) -> None:
        """Takes the files that were found in earlier turns."""
        take_files(turn.request.items, self._sources)

    async def run(self, call: Item) -> Item:
        """The call with its results."""
        queries = [query for query in call["queries"] if query.strip()][:MOST_QUERIES]
        if not queries:
            return with_error(call, protocol_error("There is nothing to look for: 'queries' is a list of texts."))
        found: list[list[Json]] = []
        for each in await asyncio.gather(*map(self._found, queries), return_exceptions=True):
            if isinstance(each, ServerFailed):
                return with_error(call, each.error)
            if isinstance(each, BaseException):
                raise each
            found.append(each)
        results = best_of(found, self._entry)
        return with_outcome(call, read_results(results, self._sources), {"results": results}, self._include)

    async def _found(self, query: str) -> list[Json]:
        def more(tool: Json) -> Json:
            limit = {limit_of(tool) or "": self._entry.most}
            return taken_of(tool, self._entry.given | limit)

        answer = await self._tool.ask(query, more)
        if answer.has_failed:
            raise ServerFailed(protocol_error("The search of the files has failed."))
        return results_of(answer.blocks, answer.structured)

    def close(self) -> None:
        """Nothing more is called."""
        self._tool.close()


def _is_set_up(state: AppState, owner: str) -> bool:
    return serves(state, state.config.tools.file_search, owner)


def _runner(state: AppState, turn: Turn, where: str, tool: Json) -> FileSearch:
    return FileSearch(state, turn, file_search_entry(tool, where))


FILE_SEARCH = HostedTool(call=FILES, types=(KIND,), is_set_up=_is_set_up, runner=_runner)
