"""web_search: searches at the provider of the settings, and pages that the model opens and looks through.

search ──▶ Searches | a server of MCP ──▶ numbered sources, which the model refers to (requests/citations.py)
open_page, find_in_page ──▶ Pages ──▶ the text of a page, or the places in it
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

from api.turns.hosted.mcp_server import ServerOfTool
from api.turns.hosted.tool import HostedTool
from api.turns.turn import Turn
from backends.mcp.server import ServerFailed
from backends.web.of_mcp import found_in_output, search_arguments, search_tool
from backends.web.query import MOST_WORDS, Query, SearchFailed, permits
from backends.web.searches import chosen
from core.json import Json
from core.state import AppState
from requests.hosted_calls import HOSTED_TOOLS
from requests.router_tools import RouterTool, protocol_error, with_error, with_outcome, with_output
from requests.tools import Item
from requests.web_search import (
    INCLUDE_RESULTS,
    INCLUDE_SOURCES,
    KIND,
    Found,
    SourceReader,
    WebSearchEntry,
    is_short,
    places_in,
    search_tools,
    take_sources,
    url_in,
    web_search_entry,
)

log = logging.getLogger("nomyo.tools")


class WebSearch:
    """The web search of one turn (`HostedRunner`)."""

    heeded = frozenset({f"include.{INCLUDE_SOURCES}", f"include.{INCLUDE_RESULTS}"})

    def __init__(self, state: AppState, turn: Turn, entry: WebSearchEntry) -> None:
        self._state = state
        self._entry = entry
        self._include = turn.request.params.include or ()
        self._turn_id = turn.id
        self._server: ServerOfTool | None = None
        kind, _, name = state.config.web_search.provider.partition(":")
        if kind == "mcp":
            self._server = ServerOfTool(state, turn.owner, name)
        self._sources = turn.builder.sources
        self._reader = SourceReader(self._sources)

    @property
    def ignored(self) -> frozenset[str]:
        """Settings of the tool of which nothing comes."""
        return self._entry.ignored

    @property
    def tools(self) -> Sequence[RouterTool]:
        """What the model is offered."""
        return search_tools(self._entry, time.strftime("%Y-%m-%d", time.gmtime()))

    def begin(self, turn: Turn) -> None:
        """Takes the sources of earlier turns."""
        take_sources(turn.request.items, self._sources)

    async def run(self, call: Item) -> Item:
        """The call, with what was found."""
        action = call["action"]
        try:
            match action["type"]:
                case "search":
                    return await self._search(call, action["query"])
                case "open_page":
                    page = await self._page(action["url"])
                    return self._opened(call, page, [page])
                case _:
                    return await self._find(call, action["url"], action["pattern"])
        except (SearchFailed, ServerFailed) as error:
            log.warning("%s: a web search has failed: %s", self._turn_id, error)
            return with_error(call, protocol_error(str(error)))

    async def _search(self, call: Item, words: str) -> Item:
        if not words.strip():
            raise SearchFailed("A search needs a 'query'.")
        entry = self._entry
        query = Query(
            " ".join(words.split())[:MOST_WORDS], entry.size.results, entry.allowed, entry.blocked, entry.place
        )
        found = await self._found(query)
        kept: Json = {
            "action.sources": [{"type": "url", "url": each.url} for each in found],
            "results": [
                {"url": each.url, "title": each.title, "text": each.text[: entry.size.snippet]} for each in found
            ],
        }
        output = self._reader.read(found, entry.size.snippet, none="Nothing was found.")
        return with_outcome(call, output, kept, self._include)

    async def _found(self, query: Query) -> list[Found]:
        if self._server is None:
            return await self._state.searches.find(query)
        ran = await self._server.call(search_tool, lambda tool: search_arguments(tool, query))
        if ran["error"]:
            raise SearchFailed("The search provider has failed to search.")
        return chosen(found_in_output(ran["output"]), query)

    async def _find(self, call: Item, url: str, pattern: str) -> Item:
        page = await self._page(url)
        places = places_in(page.text, pattern)
        found = [Found(page.url, page.title, places)] if places else []
        none = "These words are not in the page." if pattern.strip() else "There is no 'pattern' to look for."
        return self._opened(call, page, found, none=none)

    async def _page(self, given: str) -> Found:
        if not self._entry.opens_pages:
            raise SearchFailed("The request does not allow to open pages.")
        url = url_in(given, self._sources)
        self._check(url)
        page = await self._state.pages.page(url)
        self._check(page.url)  # It may be where the first has led to.
        return page

    def _check(self, url: str) -> None:
        try:
            host = urlsplit(url).hostname or ""
        except ValueError:
            host = ""
        if not host or not is_short(url):
            raise SearchFailed("There is no such URL, and no source with this number.")
        if not permits(host, self._entry.allowed, self._entry.blocked):
            raise SearchFailed("The request does not allow pages of this domain.")

    def _opened(self, call: Item, page: Found, found: Sequence[Found], *, none: str = "") -> Item:
        """The call that has opened a page, with its URL, and what the model reads of it."""
        ran = with_output(call, self._reader.read(found, self._entry.size.page, none=none))
        return {**ran, "action": {**call["action"], "url": page.url}}

    def close(self) -> None:
        """Nothing more is called."""
        if self._server is not None:
            self._server.close()


def _is_set_up(state: AppState, owner: str) -> bool:
    kind, _, name = state.config.web_search.provider.partition(":")
    return bool(kind) and (kind != "mcp" or state.mcp.named(name, owner) is not None)


def _runner(state: AppState, turn: Turn, where: str, tool: Json) -> WebSearch:
    return WebSearch(state, turn, web_search_entry(tool, where))


WEB_SEARCH = HostedTool(
    call=KIND,
    types=tuple(type for type, call in HOSTED_TOOLS.items() if call == KIND),
    is_set_up=_is_set_up,
    runner=_runner,
)
