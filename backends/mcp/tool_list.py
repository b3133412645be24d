"""The tools that a server of MCP lists, page by page, as items show them. Whoever runs the server may have written
anything there: what it takes to look at it is bounded."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from backends.mcp.server import ServerFailed
from core.json import Json, encode_json
from requests.router_tools import protocol_error

MB = 1024 * 1024
# Of one server, as JSON: this is remembered, and shown to models.
MOST_LISTED = 1 * MB
# Of all its schemas no more values are looked at: each takes up to 0.3 ms.
MOST_VALUES = 20_000


class ToolList:
    """It. `shown` has the tools by their names; of two with one name the last."""

    def __init__(self) -> None:
        self.shown: dict[str, Json] = {}
        self._size = 0
        self._values = MOST_VALUES

    def take(self, tools: Iterable[Any]) -> None:
        """Takes a page, as the official client has it. It may take seconds: in a thread. Raises `ServerFailed` for
        a list that is too large."""
        for tool in tools:
            shown = self._shown(tool)
            self._size += len(encode_json(shown))
            if self._size > MOST_LISTED:
                raise ServerFailed(protocol_error(f"The server's list of tools is larger than {MOST_LISTED // MB} MB."))
            self.shown[tool.name] = shown

    def _shown(self, tool: Any) -> Json:
        """What a tool does not have is left out: the AI SDK takes no null for it."""
        shown: Json = {"name": tool.name, "input_schema": self._sound(tool.input_schema)}
        if tool.description is not None:
            shown["description"] = tool.description
        if tool.annotations is not None:
            shown["annotations"] = tool.annotations.model_dump(by_alias=True, exclude_none=True)
        return shown

    def _sound(self, schema: Json) -> Json:
        """The schema of a tool's arguments, or that of any object where it is none that a model server could go by, or
        too large to be looked at: each request that has it would be refused."""
        from jsonschema import Draft202012Validator, SchemaError  # type: ignore[import-untyped]

        values = _values_in(schema, self._values + 1)
        if values > self._values:
            return {"type": "object"}
        self._values -= values
        try:
            Draft202012Validator.check_schema(schema)
        except (SchemaError, RecursionError):
            return {"type": "object"}
        return schema


def _values_in(schema: Json, most: int) -> int:
    """How many values a schema holds, with those in its lists and objects; no more than `most` are counted."""
    found, left = 0, [schema]
    while left and found < most:
        value: Any = left.pop()
        found += 1
        if isinstance(value, dict):
            left.extend(value.values())
        elif isinstance(value, list):
            left.extend(value)
    return found
