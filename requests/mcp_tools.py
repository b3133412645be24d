"""What a request asks for of a server of MCP: `{type: mcp, server_label, …}`, checked, and which of its tools a model
is offered."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from core.errors import InvalidRequest
from core.json import Json
from requests.router_tools import RouterTool


class McpEntry(Struct, frozen=True):
    """A tool of the type `mcp`. `name` is that of a server of the settings, where it has no URL; `approval` is what
    the client wants to be asked about, None where it leaves that open."""

    label: str
    url: str
    name: str
    headers: dict[str, str]
    allowed: Json | None
    approval: str | Json | None

    def permits(self, tool: Json) -> bool:
        """Whether a tool of the server may be offered."""
        return self.allowed is None or _matches(self.allowed, tool)

    def needs_approval(self, tool: Json) -> bool | None:
        """Whether somebody must approve of each call; None where the client leaves that open."""
        match self.approval:
            case None:
                return None
            case str(word):
                return word == "always"
            case dict(filters):
                if (never := filters.get("never")) and _matches(never, tool):
                    return False
                if always := filters.get("always"):
                    return _matches(always, tool)
                return True


def _matches(filter: Json, tool: Json) -> bool:
    names, read_only = filter.get("tool_names"), filter.get("read_only")
    if names is not None and tool["name"] not in names:
        return False
    annotations = tool.get("annotations") or {}
    return read_only is None or bool(annotations.get("readOnlyHint")) == read_only


def mcp_entry(tool: Json, where: str) -> McpEntry:
    """The entry that a tool is. `where` is its place in the request. Raises `InvalidRequest`."""

    def text(key: str) -> str:
        value = tool.get(key)
        if not isinstance(value or "", str):
            raise InvalidRequest(f"The {key} of a tool is a string.", param=f"{where}.{key}")
        return value or ""

    label = text("server_label")
    if not label:
        raise InvalidRequest("An mcp tool needs a 'server_label'.", param=f"{where}.server_label")
    url, connector = text("server_url"), text("connector_id")
    if url and connector:
        raise InvalidRequest("An mcp tool has a URL or a connector, not both.", param=f"{where}.connector_id")
    headers = tool.get("headers") or {}
    if not isinstance(headers, dict) or not all(isinstance(value, str) for value in headers.values()):
        raise InvalidRequest("The headers of an mcp tool are texts by their names.", param=f"{where}.headers")
    if authorization := text("authorization"):
        headers = {**headers, "Authorization": f"Bearer {authorization}"}
    for name, value in headers.items():
        if not (f"{name}{value}".isascii() and f"{name}{value}".isprintable() and name and ":" not in name):
            raise InvalidRequest("A header of an mcp tool cannot be sent.", param=f"{where}.headers")
    allowed = tool.get("allowed_tools")
    if isinstance(allowed, list):
        allowed = {"tool_names": allowed}
    _check_filter(allowed, f"{where}.allowed_tools")
    approval = tool.get("require_approval")
    if isinstance(approval, dict):
        for key in ("always", "never"):
            _check_filter(approval.get(key), f"{where}.require_approval.{key}")
    elif approval not in (None, "always", "never"):
        raise InvalidRequest("Approval is required always, never, or by a filter.", param=f"{where}.require_approval")
    return McpEntry(label, url, connector or label, headers, allowed, approval)


def _check_filter(filter: Any, where: str) -> None:
    if filter is None:
        return
    if not isinstance(filter, dict):
        raise InvalidRequest("A filter of tools is a list of names, or an object.", param=where)
    names = filter.get("tool_names")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise InvalidRequest("The names of tools are a list of strings.", param=f"{where}.tool_names")
    if not isinstance(filter.get("read_only") or False, bool):
        raise InvalidRequest("Whether tools are read-only is true or false.", param=f"{where}.read_only")


def router_tool(label: str, tool: Json, *, needs_approval: bool) -> RouterTool:
    """A tool of a server, as a model is offered it."""
    schema = tool["input_schema"]
    parameters = {"properties": {}, **schema, "type": "object"}
    return RouterTool(label, tool["name"], tool.get("description"), parameters, needs_approval)
