"""Which tools a model may or must call: the client's choice, checked, and as a chat backend is given it.

tool_choice ──check_tool_choice──▶ ──tool_choice_responses_to_chat──▶ ToolChoice
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from core.errors import InvalidRequest, Unsupported
from requests.tools import Tool, ToolBook


def check_tool_choice(choice: Any) -> None:
    """Raises `InvalidRequest` for a tool choice that is none."""
    if choice is None:
        return
    if isinstance(choice, str):
        if choice not in ("none", "auto", "required"):
            raise InvalidRequest(f"'{choice}' is no tool choice: none, auto or required.", param="tool_choice")
        return
    if not isinstance(choice.get("type"), str):
        raise InvalidRequest("A tool choice is a word or an object with a 'type'.", param="tool_choice.type")
    if choice["type"] == "allowed_tools":
        if choice.get("mode") not in (None, "none", "auto", "required"):
            raise InvalidRequest("The mode of 'allowed_tools' is none, auto or required.", param="tool_choice.mode")
        if not isinstance(choice.get("tools"), list):
            raise InvalidRequest("'allowed_tools' needs a list of tools.", param="tool_choice.tools")
        for index, tool in enumerate(choice["tools"]):
            if not isinstance(tool, dict) or not isinstance(tool.get("type"), str):
                raise InvalidRequest("A tool is an object with a 'type'.", param=f"tool_choice.tools[{index}]")


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """A tool choice for a chat backend. `allowed` are the only names it may call, None if any: it is we who hold it to
    that, for hardly a chat server knows such a list, and some do not even heed a name."""

    chat: Any
    tools: list[Tool]
    allowed: frozenset[str] | None = None

    def narrowed(self) -> ToolChoice:
        """The same for a model that calls others: it is shown what it may call, and nothing else."""
        allowed = self.allowed or frozenset()
        tools = [tool for tool in self.tools if tool["function"]["name"] in allowed]
        return ToolChoice("required" if isinstance(self.chat, dict) else self.chat, tools, self.allowed)


NO_TOOLS = ToolChoice(None, [])


def tool_choice_responses_to_chat(choice: Any, book: ToolBook, by_name: bool = True) -> ToolChoice:
    """The chat form of a checked `tool_choice`. `by_name`: the backend heeds a choice that names a tool; else it is
    offered that one alone. Raises `InvalidRequest` for a tool that is not there, `Unsupported` for one that the backend
    cannot be made to use."""
    if choice is None or isinstance(choice, str):
        if choice == "required" and not book.chat:
            raise Unsupported("There is no tool that this backend could be required to call.", param="tool_choice")
        return ToolChoice(choice, book.chat) if choice or book.chat else NO_TOOLS
    if choice["type"] == "allowed_tools":
        return _allowed_tools(choice, book, by_name)
    names = book.names_of(choice)
    if not names:
        if choice["type"] in ("function", "custom"):
            raise InvalidRequest("The tool choice names a tool that is not in 'tools'.", param="tool_choice")
        raise Unsupported(
            f"The backend cannot be made to use '{choice['type']}'.", param="tool_choice", code="unsupported_tool"
        )
    if len(names) > 1:  # Any tool of a server.
        return ToolChoice(
            "required", [tool for tool in book.chat if tool["function"]["name"] in names], frozenset(names)
        )
    return _one_tool(names[0], book, by_name)


def _one_tool(name: str, book: ToolBook, by_name: bool) -> ToolChoice:
    """The choice of one tool, which must be called."""
    choice = ToolChoice({"type": "function", "function": {"name": name}}, book.chat, frozenset({name}))
    return choice if by_name else choice.narrowed()


def _allowed_tools(choice: dict[str, Any], book: ToolBook, by_name: bool) -> ToolChoice:
    """All tools stay visible, as Responses wants it, and calls of others are suppressed. Only where one of several must
    be called can the backend be shown no more than these."""
    allowed: dict[str, None] = {}
    for index, tool in enumerate(choice["tools"]):
        names = book.names_of(tool)
        if not names and tool["type"] in ("function", "custom"):
            raise InvalidRequest("A tool is allowed that is not in 'tools'.", param=f"tool_choice.tools[{index}]")
        allowed.update(dict.fromkeys(names))
    if choice.get("mode") == "none":
        return ToolChoice("none", book.chat, frozenset())
    if choice.get("mode") != "required":
        return ToolChoice("auto" if allowed else "none", book.chat, frozenset(allowed))
    if not allowed:
        raise Unsupported("There is no allowed tool that this backend could be required to call.", param="tool_choice")
    if len(allowed) == 1:
        return _one_tool(next(iter(allowed)), book, by_name)
    tools = [tool for tool in book.chat if tool["function"]["name"] in allowed]
    return ToolChoice("required", tools, frozenset(allowed))
