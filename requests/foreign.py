"""Items of other APIs, and parts of a content that stand where an item should: which of ours each is meant to be."""

from __future__ import annotations

from core.errors import InvalidRequest
from requests.tools import Item

CALL = "a 'function_call' item with 'call_id', 'name' and 'arguments'"
OUTPUT = "a 'function_call_output' item with 'call_id' and 'output'"
REASONING = "a 'reasoning' item"
HOSTED = "an item of the tool's own type, such as 'web_search_call' or 'code_interpreter_call'"
TEXT = "an 'input_text' part in the content of a message (of an assistant 'output_text')"
IMAGE = "an 'input_image' part in the content of a message"
FILE = "an 'input_file' part in the content of a message"
PART = "a part in the content of a message"

# By their type: of Anthropic's, Google's and AWS's APIs, of chat completions, and what agents' libraries call them.
FOREIGN_TYPES = {
    **dict.fromkeys(
        ("tool_use", "mcp_tool_use", "tool_call", "tool-call", "function", "toolUse", "functionCall"), CALL
    ),
    **dict.fromkeys(("tool_result", "mcp_tool_result", "tool-result", "tool_output", "tool_call_output"), OUTPUT),
    **dict.fromkeys(("tool", "tool_response", "toolResult", "function_result", "function_call_result"), OUTPUT),
    **dict.fromkeys(("function_response", "functionResponse"), OUTPUT),
    **dict.fromkeys(("thinking", "redacted_thinking", "thought", "reasoningContent", "reasoning_text"), REASONING),
    "summary_text": "a part in the summary of a 'reasoning' item",
    **dict.fromkeys(("server_tool_use", "web_search_tool_result", "web_fetch_tool_result"), HOSTED),
    **dict.fromkeys(("code_execution_tool_result", "bash_code_execution_tool_result"), HOSTED),
    **dict.fromkeys(("text_editor_code_execution_tool_result", "executable_code", "code_execution_result"), HOSTED),
    **dict.fromkeys(("text", "input_text", "output_text"), TEXT),
    **dict.fromkeys(("image", "image_url", "input_image"), IMAGE),
    **dict.fromkeys(("document", "file", "input_file", "search_result", "container_upload"), FILE),
    **dict.fromkeys(("audio", "input_audio", "video", "input_video", "refusal"), PART),
}
# Of APIs whose items and parts have no type: by a key of theirs.
FOREIGN_KEYS = {
    **dict.fromkeys(("functionCall", "function_call", "toolUse", "tool_calls"), CALL),
    **dict.fromkeys(("functionResponse", "function_response", "toolResult", "tool_call_id"), OUTPUT),
    **dict.fromkeys(("executableCode", "codeExecutionResult"), HOSTED),
    "reasoningContent": REASONING,
    "parts": "a message with a 'role' and a 'content'",
    "text": TEXT,
    **dict.fromkeys(("inlineData", "inline_data", "image"), IMAGE),
    **dict.fromkeys(("fileData", "file_data", "document"), FILE),
}
FOREIGN_ROLES = {
    **dict.fromkeys(("tool", "function"), OUTPUT),
    "model": "a message of the role 'assistant'",
}


def check_foreign(item: Item, kind: str, where: str) -> None:
    """Raises `InvalidRequest` for an item, of a type that we have no other use for, that is another API's."""
    if meant := FOREIGN_TYPES.get(kind):
        raise _foreign(f"'{kind}' is no type of an item here: {meant} is meant.", f"{where}.type")
    if kind == "item_reference" and not item.get("id"):
        for key in item:
            if meant := FOREIGN_KEYS.get(key):
                raise _foreign(f"An item has a 'type'. With '{key}', {meant} is meant.", f"{where}.type")


def check_role(item: Item, where: str) -> None:
    """Raises `InvalidRequest` for a message, of a role that there is not here, that is another API's; and for one that
    has calls of tools in it."""
    role = item.get("role")
    if isinstance(role, str) and (meant := FOREIGN_ROLES.get(role)):
        raise _foreign(f"There are no messages of the role '{role}' here: {meant} is meant.", f"{where}.role")
    if item.get("tool_calls"):
        raise _foreign(f"A message has no 'tool_calls' here: for each, {CALL} is meant.", f"{where}.tool_calls")


def hint_of_part(kind: object) -> str:
    """What a part of a content is meant to be, as a sentence behind an error; nothing for one that nobody knows."""
    meant = FOREIGN_TYPES.get(kind) if isinstance(kind, str) and not kind.startswith(("input_", "output_")) else None
    return f" {meant[0].upper()}{meant[1:]} is meant." if meant else ""


def _foreign(message: str, param: str) -> InvalidRequest:
    return InvalidRequest(message, param=param, code="invalid_value")
