"""Searches by a tool of a server of MCP, which may be any: the one that looks most like a search, and what of its
answer looks most like results."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from backends.web.query import Query
from core.json import Json, decode_json
from requests.web_search import Found

# What the words of a search are called, and how many results it shall give.
WORDS = ("query", "q", "search_query", "queries", "text", "keywords")
COUNTS = ("count", "max_results", "num_results", "numResults", "limit")


def search_tool(tools: Sequence[Json]) -> Json | None:
    """The tool that searches, if there is one."""
    able = [tool for tool in tools if _words_of(tool)]
    named = [tool for tool in able if "search" in tool["name"].lower()]
    # Providers have others beside it: brave_news_search, brave_local_search.
    return min(named or able, key=lambda tool: ("web" not in tool["name"].lower(), len(tool["name"])), default=None)


def search_arguments(tool: Json, query: Query) -> Json:
    """What the tool is given for a query."""
    name = _words_of(tool) or WORDS[0]
    properties = tool["input_schema"].get("properties") or {}
    words = query.with_sites()
    is_list = isinstance(properties.get(name), dict) and properties[name].get("type") == "array"
    arguments: Json = {name: [words] if is_list else words}
    if count := next((key for key in COUNTS if key in properties), None):
        arguments[count] = query.count
    return arguments


def _words_of(tool: Json) -> str | None:
    properties = tool["input_schema"].get("properties")
    return next((name for name in WORDS if name in properties), None) if isinstance(properties, dict) else None


def found_in_output(output: str | None) -> list[Found]:
    """The results in what a tool has answered: objects with a URL, or the URLs of a text with what stands there."""
    text = (output or "")[:MOST_OUTPUT]
    try:
        return [*_in_objects(decode_json(text), 0)]
    except ValueError:
        return [*_in_text(text)]


# More of an answer is not looked at, nor what is deeper in it.
MOST_OUTPUT, DEEPEST = 1_000_000, 6


def _in_objects(value: Any, depth: int) -> Iterator[Found]:
    if depth > DEEPEST:
        return
    if isinstance(value, dict):
        url = _first(value, "url", "link", "href")
        if url.startswith(("http://", "https://")):
            text = _first(value, "snippet", "content", "text", "description", "summary")
            yield Found(url, _first(value, "title", "name") or url, text, _first(value, "published", "date"))
            return
        if value.get("type") == "text" and isinstance(value.get("text"), str):
            yield from found_in_output(value["text"])
            return
    inner: Iterable[Any] = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for each in inner:
        yield from _in_objects(each, depth + 1)


def _first(row: Json, *keys: str) -> str:
    return next((row[key] for key in keys if isinstance(row.get(key), str) and row[key]), "")


_URL = re.compile(r"https?://[^\s<>\"'\])]+")
_NAMED = re.compile(r"^\W*(title|url|link|description|snippet|content|summary)\W*:\s*", re.IGNORECASE)


def _in_text(text: str) -> Iterator[Found]:
    """Each URL, with the line before it as its title and those behind it as its text."""
    title, found = "", None
    lines: list[str] = []
    for line in text.splitlines():
        words = _NAMED.sub("", line.strip())
        url = _URL.search(words)
        if url is None:
            if words:
                lines.append(words)
            continue
        title = lines.pop() if lines else ""
        if found is not None:
            yield Found(found.url, found.title, " ".join(lines))
        lines = []
        found = Found(url[0].rstrip(".,;"), title or url[0])
    if found is not None:
        yield Found(found.url, found.title, " ".join(lines))
