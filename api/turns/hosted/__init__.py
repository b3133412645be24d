"""Hosted tools that the router runs: a file for each, which ends in its `HostedTool`; `HOSTED` has them by the types of
tools in a request."""

from __future__ import annotations

from api.turns.hosted.tool import HostedTool
from api.turns.hosted.web_search import WEB_SEARCH

HOSTED: dict[str, HostedTool] = {type: tool for tool in (WEB_SEARCH,) for type in tool.types}
