"""What strict chat servers refuse."""

import orjson

from tests.fake_backend.reply import Json

_ROLES = ("system", "developer", "user", "assistant", "tool")
# Content parts; each has what it is under the name of its type.
_PARTS = ("text", "image_url", "input_audio", "file", "refusal")


def strict_error(request: Json) -> str | None:
    """What is wrong with a chat request, as the strictest of the servers see it; None if nothing is."""
    messages = request.get("messages")
    if not isinstance(messages, list) or not messages:
        return "'messages' must be an array with at least one message"
    unanswered: set[str] = set()
    for number, message in enumerate(messages):
        problem = _turn_error(message, unanswered) or _content_error(message) or _tool_calls_error(message)
        if problem:
            return f"messages[{number}]: {problem}"
        unanswered |= {tool_call["id"] for tool_call in message.get("tool_calls", [])}
    if unanswered:
        return f"tool calls without an answer: {sorted(unanswered)}"
    return _tools_error(request)


def _turn_error(message: Json, unanswered: set[str]) -> str | None:
    """Strikes the tool call that the message answers off `unanswered`."""
    role = message.get("role")
    if role not in _ROLES:
        return f"unknown role {role!r}"
    if role == "tool":
        if message.get("tool_call_id") not in unanswered:
            return f"tool_call_id {message.get('tool_call_id')!r} answers no open call of the assistant before it"
        unanswered.remove(message["tool_call_id"])
    elif unanswered:
        return f"tool calls are not answered before it: {sorted(unanswered)}"
    return None


def _content_error(message: Json) -> str | None:
    content = message.get("content")
    if content is None:
        if message["role"] == "assistant" and (message.get("tool_calls") or message.get("refusal")):
            return None
        return "content must not be null"
    if isinstance(content, str):
        return None
    if not isinstance(content, list) or not content:
        return "content must be a string or an array with at least one part"
    for part in content:
        if part.get("type") not in _PARTS:
            return f"unknown content part {part.get('type')!r}"
        if part["type"] not in part:
            return f"content part {part['type']!r} is empty"
    return None


def _tool_calls_error(message: Json) -> str | None:
    if "tool_calls" not in message:
        return None
    tool_calls = message["tool_calls"]
    if message["role"] != "assistant" or not isinstance(tool_calls, list) or not tool_calls:
        return "tool_calls must be an array with at least one call, in an assistant message"
    ids = [tool_call.get("id") for tool_call in tool_calls]
    if len(set(ids)) < len(ids) or not all(isinstance(id, str) and id for id in ids):
        return f"tool calls need ids of their own: {ids}"
    for tool_call in tool_calls:
        function = tool_call.get("function") or {}
        if tool_call.get("type") != "function" or not function.get("name"):
            return f"not a function call: {tool_call}"
        try:
            orjson.loads(function.get("arguments", ""))
        except (orjson.JSONDecodeError, TypeError):
            return f"arguments are not JSON: {function.get('arguments')!r}"
    return None


def _tools_error(request: Json) -> str | None:
    tools = request.get("tools")
    if tools is None:
        alone = [key for key in ("tool_choice", "parallel_tool_calls") if request.get(key) is not None]
        if alone:
            return f"{alone[0]} is only allowed when tools are given"
    elif not isinstance(tools, list) or not tools:
        return "tools must be an array with at least one tool"
    for tool in tools or []:
        if tool.get("type") != "function" or not (tool.get("function") or {}).get("name"):
            return f"not a function tool: {tool}"
    if request.get("stream_options") is not None and not request.get("stream"):
        return "stream_options is only allowed when stream is set"
    return None
