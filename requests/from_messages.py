"""Chat messages as Responses items.

messages ──messages_to_responses_input──▶ instructions, items
"""

from __future__ import annotations

from typing import Any

from core.json import Json
from requests.messages import Message, whole_arguments
from requests.tools import Item


def messages_to_responses_input(messages: list[Message]) -> tuple[str | None, list[Item]]:
    """`instructions` and input items for a native Responses backend. A leading system text becomes the instructions."""
    instructions: str | None = None
    items: list[Item] = []
    for position, message in enumerate(messages):
        role, content = message["role"], message.get("content")
        if position == 0 and role in ("system", "developer") and isinstance(content, str):
            instructions = content
        elif role == "tool":
            output = content if isinstance(content, str) else [_chat_part(part, "input_text") for part in content or []]
            items.append({"type": "function_call_output", "call_id": message["tool_call_id"], "output": output})
        elif role == "assistant":
            items += _assistant_items(message)
        else:
            items.append({"role": role, "content": _chat_parts(content, "input_text")})
    return instructions, items


def _assistant_items(message: Message) -> list[Item]:
    items: list[Item] = []
    if reasoning := message.get("reasoning_content") or message.get("reasoning"):
        items.append({"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": reasoning}]})
    refusal = message.get("refusal")
    # How a refusal alone is written for those who read no `refusal`.
    is_alone = refusal == message.get("content") and not message.get("tool_calls")
    content = [] if refusal and is_alone else _chat_parts(message.get("content"), "output_text")
    if refusal:
        content.append({"type": "refusal", "refusal": refusal})
    if content:
        items.append({"role": "assistant", "content": content})
    for call in message.get("tool_calls") or []:
        function = call["function"]
        items.append(
            {
                "type": "function_call",
                "call_id": call["id"],
                "name": function["name"],
                "arguments": whole_arguments(function.get("arguments")),
            }
        )
    return items


def _chat_parts(content: Any, text_type: str) -> list[Json]:
    if isinstance(content, str):
        return [{"type": text_type, "text": content}] if content or text_type == "input_text" else []
    return [_chat_part(part, text_type) for part in content or []]


def _chat_part(part: Json, text_type: str) -> Json:
    match part["type"]:
        case "text":
            return {"type": text_type, "text": part["text"]}
        case "image_url":
            image = part["image_url"]
            shown = {"type": "input_image", "image_url": image["url"]}
            return {**shown, "detail": image["detail"]} if image.get("detail") else shown
        case "file":
            return {"type": "input_file", **part["file"]}
        case _:
            return part
