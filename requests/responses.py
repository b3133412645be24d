"""The response object, and the translators of a chat backend's answer, in one place each.

    chat message ──chat_message_to_output_items──▶ output items ──build_response_object──▶ response

Specification: Open Responses 2026-04-24 and OpenAI's Responses API; where they differ, strict clients of both must be
able to read what we build. Translators give the bare shapes; ids, statuses and the keys that a client requires are
filled in by `whole_item` and `response_resource`. The other direction is in `requests/chat_params.py` and
`requests/messages.py`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from itertools import chain
from secrets import token_hex
from typing import Any

from requests.compatibility import ITEMS
from requests.credentials import without_credentials
from requests.from_messages import messages_to_responses_input
from requests.messages import responses_input_to_messages, whole_arguments
from requests.thoughts import THOUGHT_KEYS, message_thought, texts_in
from requests.tools import CALLS, OUTPUTS, Item, tools_responses_to_chat
from requests.usage import usage_chat_to_responses

__all__ = [
    "build_response_object",
    "chat_message_to_output_items",
    "messages_to_responses_input",
    "response_resource",
    "responses_input_to_messages",
    "tools_responses_to_chat",
    "usage_chat_to_responses",
    "whole_item",
]

ID_PREFIXES = {name: row.prefix for name, row in ITEMS.items()}
HAS_STATUS = frozenset({"message"}) | CALLS | OUTPUTS


def new_id(prefix: str) -> str:
    """A new id: the prefix, the time in seconds, 96 random bits. So ids sort by their time, as OpenAI's do, and what is
    stored under them one after the other lies side by side."""
    return f"{prefix}_{int(time.time()):08x}{_random_hex()}"


def _random_hexes() -> list[str]:
    """A hundred times 96 random bits as text, in one draw: each is a system call."""
    drawn = token_hex(12 * 100)
    return [drawn[start : start + 24] for start in range(0, len(drawn), 24)]


_random_hex = chain.from_iterable(iter(_random_hexes, [])).__next__


def chat_message_to_output_items(message: dict[str, Any], logprobs: list[dict[str, Any]] | None = None) -> list[Item]:
    """Output items, in their bare shapes, for the message of a chat completion: reasoning, then text, then calls."""
    items: list[Item] = []
    content = message.get("content")
    refused = thought = ""
    if not content or isinstance(content, str):
        text = content or ""
    else:
        text, refused, thought = _texts_by_kind(content)
    if not THOUGHT_KEYS.isdisjoint(message):
        thought = message_thought(message) + thought
    if thought:
        items.append({"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": thought}]})
    parts: list[dict[str, Any]] = []
    if text:
        part: dict[str, Any] = {"type": "output_text", "text": text, "annotations": []}
        parts.append({**part, "logprobs": logprobs_chat_to_responses(logprobs)} if logprobs else part)
    if refusal := message.get("refusal") or refused:
        parts.append({"type": "refusal", "refusal": refusal})
    if parts:
        items.append({"type": "message", "role": "assistant", "content": parts})
    for call in message.get("tool_calls") or _call_of_2023(message):
        function = call.get("function") or {}
        arguments = function.get("arguments")
        items.append(
            {
                "type": "function_call",
                "call_id": call.get("id") or new_id("call"),
                "name": function.get("name") or "",
                # Text is left as the model wrote it, valid or not: it is the client's to judge.
                "arguments": arguments
                if isinstance(arguments, str)
                else whole_arguments(arguments)
                if arguments
                else "",
            }
        )
    return items


def _texts_by_kind(content: Any) -> tuple[str, str, str]:
    """The text, the refusal and the thought in the parts of a content."""
    texts = [*texts_in(content)]
    text, refusal, thought = (
        "".join(text for kind, text in texts if kind == wanted) for wanted in ("text", "refusal", "thought")
    )
    return text, refusal, thought


def _call_of_2023(message: dict[str, Any]) -> Iterable[dict[str, Any]]:
    """The call that a message made in the words of 2023."""
    return [{"function": message["function_call"]}] if message.get("function_call") else ()


def logprobs_chat_to_responses(logprobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Token log probabilities, with `bytes` even where the backend leaves them out: strict clients need them."""
    return [
        {**_logprob(entry), "top_logprobs": [*map(_logprob, _dicts(entry.get("top_logprobs")))]} for entry in logprobs
    ]


def _logprob(entry: dict[str, Any]) -> dict[str, Any]:
    token, logprob, spelled = entry.get("token"), entry.get("logprob", 0.0), entry.get("bytes")
    token = token if isinstance(token, str) else "" if token is None else str(token)
    is_number = isinstance(logprob, int | float) and not isinstance(logprob, bool)
    are_bytes = isinstance(spelled, list) and spelled and all(type(byte) is int for byte in spelled)
    return {
        "token": token,
        "logprob": logprob if is_number else UNLIKELY,
        "bytes": spelled if are_bytes else [*token.encode(errors="replace")],
    }


# OpenAI's word for minus infinity, which JSON does not have.
UNLIKELY = -9999.0


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def response_resource(request: dict[str, Any], *, response_id: str, created_at: int, status: str) -> dict[str, Any]:
    """The response object before its output: every required key, the request echoed, OpenAI's defaults where it is
    silent."""
    resource = SILENT_RESOURCE.copy()
    for key in request.keys() & ECHOED:
        if (value := request[key]) is not None:
            resource[key] = value
    resource["id"] = response_id
    resource["created_at"] = created_at
    resource["status"] = status
    resource["output"] = []
    resource["reasoning"] = {"effort": None, "summary": None}
    if reasoning := request.get("reasoning"):
        resource["reasoning"] |= reasoning
        if not resource["reasoning"]["summary"]:
            resource["reasoning"]["summary"] = reasoning.get("generate_summary")
    resource["text"] = {"format": {"type": "text"}}
    if text := request.get("text"):
        resource["text"] |= {key: value for key, value in text.items() if value is not None}
    resource["tools"] = [*map(_echoed_tool, tools)] if (tools := request.get("tools")) else []
    resource["metadata"] = request.get("metadata") or {}
    return resource


# What a response holds where its request left it out.
SILENT_RESOURCE: dict[str, Any] = {
    "id": "",
    "object": "response",
    "created_at": 0,
    "completed_at": None,
    "status": "",
    "background": False,
    "error": None,
    "incomplete_details": None,
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "model": "",
    "output": None,
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "reasoning": None,
    "safety_identifier": None,
    "service_tier": "default",
    "store": True,
    "temperature": 1.0,
    "text": None,
    "tool_choice": "auto",
    "tools": None,
    "top_logprobs": 0,
    "top_p": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "truncation": "disabled",
    "usage": None,
    "user": None,
    "metadata": None,
}
# What of a request is echoed in its response as it was given.
ECHOED = SILENT_RESOURCE.keys() - {
    *("id", "object", "created_at", "completed_at", "status", "error", "incomplete_details", "output", "usage"),
    *("reasoning", "text", "tools", "metadata"),
}


def _echoed_tool(tool: dict[str, Any]) -> dict[str, Any]:
    if tool.get("type") != "function":
        return without_credentials(tool)
    # A function that leaves it open is strict at OpenAI.
    return {"description": None, "parameters": None, "strict": True} | tool


def whole_item(item: Item, status: str = "completed") -> Item:
    """An output item with all that the wire needs: a non-empty id, a status, `annotations` and `logprobs` on its
    text."""
    kind = item["type"]
    whole = {**item, "id": item.get("id") or new_id(ID_PREFIXES.get(kind, "item"))}
    if kind in HAS_STATUS:
        whole["status"] = item.get("status") or status
    if kind == "message":
        whole["content"] = [
            {"annotations": [], "logprobs": []} | part if part["type"] == "output_text" else part
            for part in item.get("content") or []
        ]
    return whole


def output_text(output: list[Item]) -> str:
    """All text of the messages, as the SDKs' convenience property joins it."""
    return "".join(
        [
            part["text"]
            for item in output
            if item["type"] == "message"
            for part in item["content"]
            if part["type"] == "output_text"
        ]
    )


def has_words(item: Item) -> bool:
    """Whether it is a message of more than blanks."""
    parts = item["content"] if item["type"] == "message" else ()
    return any(str(part.get("text") or part.get("refusal") or "").strip() for part in parts)


def build_response_object(
    *,
    response_id: str,
    model: str,
    output_items: list[Item],
    status: str = "completed",
    usage: dict[str, Any] | None = None,
    request: dict[str, Any] | None = None,
    created_at: int | None = None,
) -> dict[str, Any]:
    """A finished response as the JSON body of an answer, with the convenience key `output_text`."""
    now = int(time.time())
    response = response_resource(
        {**(request or {}), "model": model},
        response_id=response_id,
        created_at=created_at or now,
        status=status,
    )
    response["output"] = [whole_item(item) for item in output_items]
    response["usage"] = usage
    response["completed_at"] = now if status == "completed" else None
    return with_output_text(response)


def with_output_text(response: dict[str, Any]) -> dict[str, Any]:
    """The response with all its text under `output_text`, as OpenAI's SDKs have it for convenience."""
    return {**response, "output_text": output_text(response["output"])}
