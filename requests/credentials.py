"""Credentials that a request carries for tools which somebody else than the client runs. A response shows none of
them."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from core.json import Json

Tool = Json

# What these hold is run by the client: they know nobody whom they would have to show a key.
CLIENTS_OWN = frozenset({"function", "custom"})
NAMED_KEYS = frozenset({"authorization", "headers", "domain_secrets"})


def without_credentials(tool: Tool) -> Tool:
    """A tool as OpenAI shows it in a response: `headers` are null, `authorization` is not there, and `server_url` is no
    more than its host, for some have their key in the path."""
    if tool.get("type") in CLIENTS_OWN:
        return tool
    return {key: _shown(key, value) for key, value in tool.items() if key != "authorization"}


def shown_item(item: Json) -> Json:
    """An item, with the tools that it brings along `without_credentials`."""
    return {**item, "tools": shown(item["tools"])} if "tools" in item else item


def shown(value: object) -> Any:
    """Any JSON, with the tools in it `without_credentials`."""
    if isinstance(value, dict):
        return without_credentials(value)
    return [shown(one) for one in value] if isinstance(value, list) else value


def _shown(key: str, value: object) -> Any:
    if key in NAMED_KEYS:
        return None
    return _host_of(value) if key == "server_url" and isinstance(value, str) else shown(value)


def _host_of(url: str) -> str:
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        return "<redacted>"
    shown = f"{parts.scheme}://{host}{parts.path}"
    return url if url == shown and parts.path in ("", "/") else f"{parts.scheme}://{host}/<redacted>"
