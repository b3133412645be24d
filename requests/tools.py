"""Tools and tool choices, Responses to chat.

A chat backend runs functions that the client executes. Tools that OpenAI itself would run (web_search and the like) have
no chat form: they are left out for the backend and named to the client, unless the request insists on them.
"""

from __future__ import annotations

from typing import Any

from errors import InvalidRequest, Unsupported

Tool = dict[str, Any]

# OpenAI's types of tools other than functions. A type that is not among these is a client's own text, and not for the log.
OPENAI_TOOLS = frozenset(
    {
        "apply_patch",
        "code_interpreter",
        "computer",
        "computer_use_preview",
        "custom",
        "file_search",
        "image_generation",
        "local_shell",
        "mcp",
        "namespace",
        "programmatic_tool_calling",
        "shell",
        "tool_search",
        "web_search",
        "web_search_preview",
    }
)


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


def check_tool_choice(choice: Any, tools: list[Tool]) -> None:
    """Raises `InvalidRequest` for a choice that is none, or that names a function which is not in `tools`."""
    if choice is None:
        return
    if isinstance(choice, str):
        if choice not in ("none", "auto", "required"):
            raise InvalidRequest(f"'{choice}' is no tool choice: none, auto or required.", param="tool_choice")
        return
    if not isinstance(choice.get("type"), str):
        raise InvalidRequest("A tool choice is a word or an object with a 'type'.", param="tool_choice.type")
    names = [tool.get("name") for tool in tools if tool["type"] == "function"]
    if choice["type"] == "function" and _name_of(choice) not in names:
        raise InvalidRequest("Tool choice 'function' names a function that is not in 'tools'.", param="tool_choice")
    if choice["type"] == "allowed_tools":
        if choice.get("mode") not in (None, "auto", "required"):
            raise InvalidRequest("The mode of 'allowed_tools' is auto or required.", param="tool_choice.mode")
        if not isinstance(choice.get("tools"), list):
            raise InvalidRequest("'allowed_tools' needs a list of tools.", param="tool_choice.tools")
        for index, tool in enumerate(choice["tools"]):
            where = f"tool_choice.tools[{index}]"
            if not isinstance(tool, dict) or not isinstance(tool.get("type"), str):
                raise InvalidRequest("A tool is an object with a 'type'.", param=where)
            if tool["type"] == "function" and _name_of(tool) not in names:
                raise InvalidRequest("A function is allowed that is not in 'tools'.", param=where)


def _name_of(tool: dict[str, Any]) -> Any:
    """The name of a function, also where it is given in the chat form."""
    function = tool.get("function")
    return (function if isinstance(function, dict) else tool).get("name")


def tool_choice_responses_to_chat(choice: Any, tools: list[Tool]) -> tuple[Any, list[Tool]]:
    """The chat form of a checked `tool_choice`, and the tools to offer with it. Raises `Unsupported` for what no chat backend
    can be made to do.

    `allowed_tools` is a hard limit in Responses and unknown to most chat servers: what is not allowed is not offered.
    """
    functions = {tool["name"]: tool for tool in tools if tool["type"] == "function"}
    if choice is None or isinstance(choice, str):
        if choice == "required" and not functions:
            raise Unsupported("There is no tool that this backend could be required to call.", param="tool_choice")
        return choice, tools
    if choice["type"] == "function":
        return {"type": "function", "function": {"name": _name_of(choice)}}, tools
    if choice["type"] == "allowed_tools":
        allowed = [functions[_name_of(tool)] for tool in choice["tools"] if tool["type"] == "function"]
        if choice.get("mode") == "required" and not allowed:
            raise Unsupported(
                "There is no allowed tool that this backend could be required to call.", param="tool_choice"
            )
        return (choice.get("mode") or "auto") if allowed else "none", allowed
    raise Unsupported(
        f"The backend cannot be made to use '{choice['type']}'.", param="tool_choice", code="unsupported_tool"
    )


def _function(tool: Tool) -> Tool:
    function = {key: tool[key] for key in ("name", "description", "parameters", "strict") if tool.get(key) is not None}
    return {"type": "function", "function": function}
