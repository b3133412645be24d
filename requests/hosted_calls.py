"""Calls of tools that OpenAI runs, and the router where they are set up: how their items begin, grow and are read.

a model's call ──begun──▶ item ──it runs──▶ item, with what was answered (hidden.py) ──called──▶ the call and its output
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from core.json import Json
from requests.hidden import kept_in


def _unchanged(item: Json) -> Json:
    return {}


def _no_pictures(item: Json) -> list[str]:
    return []


@dataclass(frozen=True, slots=True)
class HostedCall:
    """A type of them. `begun` gives what its item has beside type, id and status, by the name of the function that a
    model has called and its arguments; `called` gives these two of an item, None where it has too little. `steps` are
    the events between `in_progress` and `completed`, by their last words; `before` gives the keys that had other values
    before it has run. `failed` gives what its item has of an error, `cut` is its status where it was cut off, and
    `pictures` are the URLs of those that came of it."""

    begun: Callable[[str, Json], Json]
    called: Callable[[Json], tuple[str, Json] | None]
    steps: tuple[str, ...] = ()
    before: Callable[[Json], Json] = _unchanged
    failed: Callable[[Json], Json] = _unchanged
    cut: str = "incomplete"
    pictures: Callable[[Json], list[str]] = _no_pictures


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


# ── code_interpreter_call ────────────────────────────────────────────────────────────────────────────────────────────

CODE = "code_interpreter_call"


def _code_begun(name: str, arguments: Json) -> Json:
    return {"code": _text(arguments.get("code")), "outputs": None}


def _code_called(item: Json) -> tuple[str, Json] | None:
    return ("code_interpreter", {"code": code}) if isinstance(code := item.get("code"), str) else None


def _code_pictures(item: Json) -> list[str]:
    outputs = item.get("outputs") or kept_in(item).get("outputs")
    pictures = (output for output in outputs if output.get("type") == "image") if isinstance(outputs, list) else ()
    return [output["url"] for output in pictures if isinstance(output.get("url"), str)]


# ── file_search_call ─────────────────────────────────────────────────────────────────────────────────────────────────

FILES = "file_search_call"


def _files_begun(name: str, arguments: Json) -> Json:
    given = arguments.get("queries", arguments.get("query"))
    queries = given if isinstance(given, list) else [given]
    return {"queries": [query for query in queries if isinstance(query, str)], "results": None}


def _files_called(item: Json) -> tuple[str, Json] | None:
    return ("file_search", {"queries": queries}) if isinstance(queries := item.get("queries"), list) else None


# ── image_generation_call ────────────────────────────────────────────────────────────────────────────────────────────

IMAGE = "image_generation_call"


def _image_begun(name: str, arguments: Json) -> Json:
    # The AI SDK takes no null for the result of a call that has ended, in whichever way.
    action = "edit" if arguments.get("edit") is True else "generate"
    return {"result": "", "revised_prompt": _text(arguments.get("prompt")), "action": action}


def _image_called(item: Json) -> tuple[str, Json] | None:
    prompt = item.get("revised_prompt")
    return ("image_generation", {"prompt": prompt}) if isinstance(prompt, str) else None


def _image_failed(error: Json) -> Json:
    code = error.get("code")
    described = {"type": error.get("type") or "image_generation_error", "message": error.get("message") or ""}
    return {"error": {"code": None if code is None else str(code), **described}}


def _image_pictures(item: Json) -> list[str]:
    data, kind = item.get("result"), item.get("output_format")
    return [f"data:image/{kind or 'png'};base64,{data}"] if isinstance(data, str) and data else []


# ── the table ────────────────────────────────────────────────────────────────────────────────────────────────────────

HOSTED_CALLS: dict[str, HostedCall] = {
    CODE: HostedCall(
        _code_begun, _code_called, ("interpreting",), lambda item: {"outputs": None}, pictures=_code_pictures
    ),
    FILES: HostedCall(_files_begun, _files_called, ("searching",), lambda item: {"results": None}),
    IMAGE: HostedCall(
        _image_begun,
        _image_called,
        ("generating",),
        lambda item: {"result": None},
        failed=_image_failed,
        cut="failed",
        pictures=_image_pictures,
    ),
    "web_search_call": HostedCall(_search_begun, _search_called, ("searching",), _search_before),
}
# The types of their tools, and of the items that are calls of those.
HOSTED_TOOLS: dict[str, str] = {
    "code_interpreter": CODE,
    "file_search": FILES,
    "image_generation": IMAGE,
    "web_search": "web_search_call",
    "web_search_2025_08_26": "web_search_call",
    "web_search_preview": "web_search_call",
    "web_search_preview_2025_03_11": "web_search_call",
}
