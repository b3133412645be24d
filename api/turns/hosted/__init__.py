"""Hosted tools that the router runs: a file for each, which ends in its `HostedTool`; `HOSTED` has them by the types of
tools in a request."""

from __future__ import annotations

from api.turns.hosted.code_interpreter import CODE_INTERPRETER
from api.turns.hosted.file_search import FILE_SEARCH
from api.turns.hosted.image_generation import IMAGE_GENERATION
from api.turns.hosted.tool import HostedTool
from api.turns.hosted.web_search import WEB_SEARCH
from core.state import AppState

ALL = (CODE_INTERPRETER, FILE_SEARCH, IMAGE_GENERATION, WEB_SEARCH)
HOSTED: dict[str, HostedTool] = {type: tool for tool in ALL for type in tool.types}


def types_set_up(state: AppState, owner: str) -> list[str]:
    """The types of hosted tools that the router runs for an owner."""
    return [type for type, tool in HOSTED.items() if tool.is_set_up(state, owner)]
