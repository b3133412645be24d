"""Tools and tool choices, Responses to chat.

A chat backend runs functions that the client executes. Tools that OpenAI itself would run (web_search and the like) have
no chat form: they are left out for the backend and named to the client, unless the request insists on them.
"""

from __future__ import annotations

from typing import Any

from errors import InvalidRequest, Unsupported

Tool = dict[str, Any]


def tools_responses_to_chat(tools: list[Tool]) -> list[Tool]:
    """The chat form of the function tools; the others are left out (`omitted_tools` names them)."""
    return [_function(tool) for tool in tools if tool.get("type") == "function"]


def omitted_tools(tools: list[Tool]) -> list[str]:
    """What a chat backend cannot be offered, as `type` or `type:name`."""
    return [
        f"{tool['type']}:{tool['name']}" if tool.get("name") else str(tool["type"])
        for tool in tools
        if tool.get("type") != "function"
    ]


def check_tools(tools: list[Any]) -> None:
    """Raises `InvalidRequest` for tools that are none: no type, or a function without a name."""
    for index, tool in enumerate(tools):
        if not isinstance(tool, dict) or not isinstance(tool.get("type"), str):
            raise InvalidRequest("A tool is an object with a 'type'.", param=f"tools[{index}].type")
        if tool["type"] == "function" and not (isinstance(tool.get("name"), str) and tool["name"]):
            raise InvalidRequest("A function tool needs a 'name'.", param=f"tools[{index}].name")


def tool_choice_responses_to_chat(choice: Any, tools: list[Tool]) -> tuple[Any, list[Tool]]:
    """The chat form of `tool_choice`, and the tools to offer with it.

    `allowed_tools` is a hard limit in Responses and unknown to most chat servers: what is not allowed is not offered.
    """
    functions = {tool["name"]: tool for tool in tools if tool.get("type") == "function"}
    if choice is None or isinstance(choice, str):
        if choice not in (None, "none", "auto", "required"):
            raise InvalidRequest(f"'{choice}' is no tool choice: none, auto or required.", param="tool_choice")
        if choice == "required" and not functions:
            raise Unsupported("There is no tool that this backend could be required to call.", param="tool_choice")
        return choice, tools
    kind = choice.get("type")
    if kind == "function":
        name = (choice.get("function") or choice).get("name")
        if name not in functions:
            raise InvalidRequest(
                f"Tool choice 'function' names '{name}', which is not in 'tools'.", param="tool_choice"
            )
        return {"type": "function", "function": {"name": name}}, tools
    if kind == "allowed_tools":
        return _allowed_tools(choice, functions)
    raise Unsupported(f"The backend cannot be made to use '{kind}'.", param="tool_choice", code="unsupported_tool")


def _allowed_tools(choice: dict[str, Any], functions: dict[str, Tool]) -> tuple[str, list[Tool]]:
    mode = choice.get("mode") or "auto"
    if mode not in ("auto", "required"):
        raise InvalidRequest("The mode of 'allowed_tools' is auto or required.", param="tool_choice.mode")
    allowed: list[Tool] = []
    for index, tool in enumerate(choice.get("tools") or []):
        name = tool.get("name") if isinstance(tool, dict) else None
        if isinstance(tool, dict) and tool.get("type") == "function" and name not in functions:
            raise InvalidRequest(f"'{name}' is allowed but not in 'tools'.", param=f"tool_choice.tools[{index}]")
        if name in functions:
            allowed.append(functions[name])
    if mode == "required" and not allowed:
        raise Unsupported("There is no allowed tool that this backend could be required to call.", param="tool_choice")
    return mode if allowed else "none", allowed


def _function(tool: Tool) -> Tool:
    function = {key: tool[key] for key in ("name", "description", "parameters", "strict") if tool.get(key) is not None}
    return {"type": "function", "function": function}
