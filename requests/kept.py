"""The request of a turn as it is kept while the turn waits, so that it can be run again: whole, but sealed where it may
hold a credential.

    body ──kept_request──▶ JSON ──given_request──▶ body

What is known to hold none stays as it is. So the rule needs no list of all the places where a key could stand: each
tool that somebody else than the client runs is sealed, and each parameter that we do not know.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from core.json import decode_json, encode_json
from requests.credentials import CLIENTS_OWN
from requests.params import CreateParams
from requests.tools import Item, Tool

Json = Any

KNOWN_PARAMETERS = frozenset(CreateParams.__struct_fields__)
PLAIN_KEYS = frozenset(
    {"type", "name", "description", "parameters", "strict", "format", "function", "defer_loading", "output_schema"}
)
SEALED = "sealed by the router"


# Where the name of the key stands that a request came with; a parameter of that name is sealed, and so no text.
KEY = "nomyo.key"


def kept_request(body: dict[str, Json], seal: Callable[[str], str], key: str = "") -> bytes:
    """The body of a request, as it is kept, with the name of the key that it came with. `seal` makes a text that nobody
    else can read."""
    kept = {name: _kept_parameter(name, value, seal) for name, value in body.items()}
    return encode_json({**kept, KEY: key} if key else kept)


def key_of_request(kept: bytes) -> str:
    """The name of the key that a request came with; empty where it came without one."""
    key = decode_json(kept).get(KEY)
    return key if isinstance(key, str) else ""


def given_request(kept: bytes, open_: Callable[[str], str | None]) -> dict[str, Json] | None:
    """The body that was given to `kept_request`; None where `open_` cannot open what was sealed."""
    try:
        return {
            name: _given_parameter(name, value, open_)
            for name, value in decode_json(kept).items()
            if name != KEY or not isinstance(value, str)
        }
    except CannotOpen:
        return None


def kept_items(items: list[Item], seal: Callable[[str], str]) -> list[Item]:
    """Input items, as they are stored: of the tools that they bring along, those are sealed that may hold a
    credential."""
    if not any("tools" in item for item in items):
        return items
    return [{**item, "tools": _kept_tools(item["tools"], seal)} if "tools" in item else item for item in items]


def given_items(items: list[Item], open_: Callable[[str], str | None]) -> list[Item]:
    """The items that were given to `kept_items`, without the tools that `open_` cannot open."""
    if not any("tools" in item for item in items):
        return items
    return [{**item, "tools": _given_tools(item["tools"], open_)} if "tools" in item else item for item in items]


def _kept_tools(tools: Json, seal: Callable[[str], str]) -> Json:
    if isinstance(tools, list):
        return [_kept_tool(tool, seal) for tool in tools]
    return tools if tools is None else _sealed(tools, seal)


def _given_tools(tools: Json, open_: Callable[[str], str | None]) -> Json:
    if not isinstance(tools, list):
        return _opened_or(None, tools, open_)
    given = [_opened_or(LOST, tool, open_) for tool in tools]
    return [tool for tool in given if tool is not LOST]


def _opened_or(instead: Json, tool: Json, open_: Callable[[str], str | None]) -> Json:
    try:
        return _given_part(tool, open_)
    except CannotOpen:
        return instead


# What stands for a tool that cannot be opened.
LOST = object()


class CannotOpen(Exception):
    """Something was sealed with another key."""


def _kept_parameter(key: str, value: Json, seal: Callable[[str], str]) -> Json:
    if key == "tools" and isinstance(value, list):
        return [_kept_tool(tool, seal) for tool in value]
    if key == "input" and isinstance(value, list):
        return [_kept_item(item, seal) for item in value]
    return _sealed(value, seal) if key not in KNOWN_PARAMETERS or _looks_sealed(value) else value


def _kept_item(item: Json, seal: Callable[[str], str]) -> Json:
    """Most bring no tools along."""
    if _looks_sealed(item):
        return _sealed(item, seal)
    if isinstance(item, dict) and "tools" in item:
        return {**item, "tools": _kept_parameter("tools", item["tools"], seal)}
    return item


def _kept_tool(tool: Json, seal: Callable[[str], str]) -> Json:
    if not isinstance(tool, dict):
        return _sealed(tool, seal)
    if (
        tool.get("type") == "namespace"
        and isinstance(tool.get("tools"), list)
        and tool.keys() <= PLAIN_KEYS | {"tools"}
    ):
        return {**tool, "tools": [_kept_tool(inner, seal) for inner in tool["tools"]]}
    return tool if _is_clients_own(tool) else _sealed(tool, seal)


def _is_clients_own(tool: Tool) -> bool:
    return isinstance(tool.get("type"), str) and tool["type"] in CLIENTS_OWN and tool.keys() <= PLAIN_KEYS


def _given_parameter(key: str, value: Json, open_: Callable[[str], str | None]) -> Json:
    if _looks_sealed(value):
        return _opened(value, open_)
    if key in ("tools", "input") and isinstance(value, list):
        return [_given_part(part, open_) for part in value]
    return value


def _given_part(part: Json, open_: Callable[[str], str | None]) -> Json:
    """A tool, or an item."""
    if _looks_sealed(part):
        return _opened(part, open_)
    if isinstance(part, dict) and "tools" in part:
        return {**part, "tools": _given_parameter("tools", part["tools"], open_)}
    return part


def _sealed(value: Json, seal: Callable[[str], str]) -> Json:
    return {SEALED: seal(encode_json(value).decode())}


def _looks_sealed(value: Json) -> bool:
    return isinstance(value, dict) and SEALED in value


def _opened(value: dict[str, Json], open_: Callable[[str], str | None]) -> Json:
    if (text := open_(value[SEALED])) is None:
        raise CannotOpen
    return decode_json(text)
