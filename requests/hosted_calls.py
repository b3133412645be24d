"""Calls of tools that OpenAI runs, and the router where they are set up: how their items begin, grow and are read.

a model's call ──begun──▶ item ──it runs──▶ item, with what was answered (hidden.py) ──called──▶ the call and its output
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from core.json import Json


def _unchanged(item: Json) -> Json:
    return {}


@dataclass(frozen=True, slots=True)
class HostedCall:
    """A type of them. `begun` gives what its item has beside type, id and status, by the name of the function that a
    model has called and its arguments; `called` gives these two of an item, None where it has too little. `steps` are
    the events between `in_progress` and `completed`, by their last words. `text` is the key of a text that is shown as
    it grows, and the name of its events; `before` gives the keys that had other values before it has run."""

    begun: Callable[[str, Json], Json]
    called: Callable[[Json], tuple[str, Json] | None]
    steps: tuple[str, ...] = ()
    before: Callable[[Json], Json] = _unchanged
    text: tuple[str, str] | None = None


# ── web_search_call ──────────────────────────────────────────────────────────────────────────────────────────────────

SEARCH, OPEN, FIND = "web_search", "open_page", "find_in_page"


def _search_begun(name: str, arguments: Json) -> Json:
    url = _text(arguments.get("url"))
    if name == OPEN:
        return {"action": {"type": "open_page", "url": url}}
    if name == FIND:
        return {"action": {"type": "find_in_page", "url": url, "pattern": _text(arguments.get("pattern"))}}
    query = _text(arguments.get("query"))
    return {"action": {"type": "search", "query": query, "queries": [query]}}


def _search_called(item: Json) -> tuple[str, Json] | None:
    action = item.get("action")
    match action if isinstance(action, dict) else {}:
        case {"type": "search", "query": str(query)}:
            return SEARCH, {"query": query}
        case {"type": "open_page", "url": str(url)}:
            return OPEN, {"url": url}
        case {"type": "find_in_page", "url": str(url), "pattern": str(pattern)}:
            return FIND, {"url": url, "pattern": pattern}
    return None


def _search_before(item: Json) -> Json:
    action = item.get("action")
    if not isinstance(action, dict):
        return {}
    return {"action": {key: value for key, value in action.items() if key != "sources"}}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


# ── the table ────────────────────────────────────────────────────────────────────────────────────────────────────────

HOSTED_CALLS: dict[str, HostedCall] = {
    "web_search_call": HostedCall(_search_begun, _search_called, ("searching",), _search_before),
}
# The types of their tools, and of the items that are calls of those.
HOSTED_TOOLS: dict[str, str] = {
    "web_search": "web_search_call",
    "web_search_2025_08_26": "web_search_call",
    "web_search_preview": "web_search_call",
    "web_search_preview_2025_03_11": "web_search_call",
}
