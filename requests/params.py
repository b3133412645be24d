"""The request that a client may send, checked, and the chat request that is made of it.

    body ──check_request──▶ CreateParams, body ──chat_request──▶ parameters of POST /v1/chat/completions

Specification: OpenAI's Responses API and Open Responses 2026-04-24. Unknown keys are no error, wrong values are a 400 that names
the parameter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec

from core.errors import InvalidRequest, Unsupported
from requests.messages import ROLES, Message, orphan_output
from requests.responses import HAS_STATUS, ID_PREFIXES, new_id
from requests.tools import (
    CALLS,
    OUTPUTS,
    Item,
    ToolBook,
    ToolChoice,
    call_id_of,
    check_tool_choice,
    check_tools,
    tool_choice_responses_to_chat,
)


class Options(msgspec.Struct, forbid_unknown_fields=True):
    """`nomyo`: what this router understands beyond the Responses API."""

    cache: bool = False


class Reasoning(msgspec.Struct):
    effort: str | None = None
    summary: str | None = None


class Text(msgspec.Struct):
    format: dict[str, Any] | None = None
    verbosity: str | None = None


class StreamOptions(msgspec.Struct):
    include_obfuscation: bool | None = None


class ContextManagement(msgspec.Struct):
    type: str
    compact_threshold: Annotated[int, msgspec.Meta(ge=1)] | None = None


class CreateParams(msgspec.Struct):
    """Types and bounds of the body of POST /v1/responses. Unknown keys are not an error: they go on to the backend."""

    model: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    input: str | list[dict[str, Any]] | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    include: list[str] | None = None
    tools: list[Any] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: Annotated[int, msgspec.Meta(ge=1)] | None = None
    metadata: dict[str, str] | None = None
    text: Text | None = None
    reasoning: Reasoning | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, msgspec.Meta(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, msgspec.Meta(ge=-2, le=2)] | None = None
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=20)] | None = None
    max_output_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    background: bool | None = None
    store: bool | None = None
    truncation: Literal["auto", "disabled"] | None = None
    service_tier: str | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    conversation: str | dict[str, Any] | None = None
    prompt: dict[str, Any] | None = None
    context_management: list[ContextManagement] | None = None
    nomyo: Options | None = None


# The same names and meanings in chat completions.
PASSED_ON = {
    "temperature",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
    "user",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
}
# Nothing else known here goes on to a chat backend: it was translated, or it concerns OpenAI's own service alone.
NOT_PASSED_ON = (frozenset(CreateParams.__struct_fields__) - PASSED_ON) | {
    "access_programs",
    "background_options",
    "client_metadata",
    "generate",
    "image",
    "messages",
    "moderation",
    "prompt_cache_options",
    "prompt_cache_retention",
}


def check_request(body: Any) -> CreateParams:
    """The checked parameters of a create request. Raises `InvalidRequest` or `Unsupported` that names the parameter."""
    if not isinstance(body, dict):
        raise InvalidRequest("The body must be a JSON object.")
    try:
        params = msgspec.convert(body, CreateParams)
    except msgspec.ValidationError as error:
        problem, _, path = str(error).partition(" - at `$.")
        # msgspec calls a value of an object `[...]`: what holds it is name enough.
        param = path.rstrip("`").partition("[...]")[0] or None
        raise InvalidRequest(f"Invalid value for '{param}': {problem}.", param=param, code="invalid_value") from None
    if params.model is None:
        raise InvalidRequest("Missing required parameter: 'model'.", param="model", code="missing_required_parameter")
    if params.input is None and params.previous_response_id is None and params.prompt is None:
        raise InvalidRequest("Missing required parameter: 'input'.", param="input", code="missing_required_parameter")
    if params.conversation:
        raise Unsupported("'conversation' is not supported: use 'previous_response_id'.", param="conversation")
    if params.background and params.store is False:
        raise InvalidRequest("Background responses are stored: 'store' cannot be false.", param="store")
    if (
        "seed" in body and type(body["seed"]) is float
    ):  # An integer of more than 64 bits is read as one, and is another number then.
        raise InvalidRequest("A seed is an integer of at most 64 bits.", param="seed", code="invalid_value")
    if params.metadata:
        _check_metadata(params.metadata)
    for index, entry in enumerate(params.context_management or ()):
        if entry.type != "compaction":
            raise Unsupported("Contexts can be managed by 'compaction'.", param=f"context_management[{index}].type")
    check_tools(params.tools or [])
    check_tool_choice(params.tool_choice)
    if params.text and params.text.format:
        _check_format(params.text.format)
    if isinstance(params.input, list):
        for index, item in enumerate(params.input):
            _check_item(item, f"input[{index}]")
    return params


def _check_metadata(metadata: dict[str, str]) -> None:
    if len(metadata) > 16:
        raise InvalidRequest("'metadata' holds at most 16 pairs.", param="metadata")
    for key, value in metadata.items():
        if len(key) > 64 or len(value) > 512:
            raise InvalidRequest("A metadata key has at most 64 characters, a value 512.", param=f"metadata.{key[:64]}")


def _check_format(format: dict[str, Any]) -> None:
    kind = format.get("type")
    if kind not in ("text", "json_object", "json_schema"):
        raise InvalidRequest("The type is text, json_object or json_schema.", param="text.format.type")
    if kind == "json_schema":
        for key, type in (("name", str), ("schema", dict)):
            if not isinstance(format.get(key), type):
                raise InvalidRequest(f"A json_schema format needs a '{key}'.", param=f"text.format.{key}")


def _check_item(item: dict[str, Any], where: str) -> None:
    kind = item.get("type") or ("message" if "role" in item else "item_reference")
    if not isinstance(kind, str):
        raise InvalidRequest("The type of an item is a string.", param=f"{where}.type")
    if not isinstance(item.get("id") or "", str):
        raise InvalidRequest("The id of an item is a string.", param=f"{where}.id")
    if kind == "message":
        if not isinstance(item.get("role"), str) or item["role"] not in ROLES:
            raise InvalidRequest("The role is user, assistant, system or developer.", param=f"{where}.role")
        _check_content(item.get("content"), f"{where}.content")
    elif kind in CALLS | OUTPUTS:
        _check_call(item, kind, where)
    elif kind == "additional_tools":
        if not isinstance(item.get("tools"), list):
            raise InvalidRequest("The tools of an additional_tools item are a list.", param=f"{where}.tools")
        check_tools(item["tools"], f"{where}.tools")
    elif kind == "agent_message":
        _check_content(item.get("content"), f"{where}.content")
    elif kind == "reasoning":
        for key in ("content", "summary"):
            if not isinstance(item.get(key) or [], list):
                raise InvalidRequest(f"The {key} of a reasoning item is a list of parts.", param=f"{where}.{key}")
            _check_content(item.get(key), f"{where}.{key}")
    elif kind == "item_reference" and not item.get("id"):
        raise InvalidRequest("A reference needs the 'id' of an item.", param=f"{where}.id")


def _check_call(item: Item, kind: str, where: str) -> None:
    if not isinstance(call_id_of(item), str) and item.get("execution") != "server":
        raise InvalidRequest(f"A {kind} needs a 'call_id'.", param=f"{where}.call_id")
    if kind in ("function_call", "custom_tool_call") and not (isinstance(item.get("name"), str) and item["name"]):
        raise InvalidRequest(f"A {kind} needs a 'name'.", param=f"{where}.name")
    if kind in ("function_call_output", "custom_tool_call_output") and item.get("output") is None:
        raise InvalidRequest(f"A {kind} needs an 'output'.", param=f"{where}.output")
    for key in ("action", "operation"):
        if not isinstance(item.get(key) or {}, dict):
            raise InvalidRequest(f"The {key} of a {kind} is an object.", param=f"{where}.{key}")
    if isinstance(item.get("output"), list) and kind != "shell_call_output":
        _check_content(item["output"], f"{where}.output")
    if kind == "tool_search_output":
        if not isinstance(item.get("tools") or [], list):
            raise InvalidRequest("The tools of a tool_search_output are a list.", param=f"{where}.tools")
        check_tools(item.get("tools") or [], f"{where}.tools")


def _check_content(content: Any, where: str) -> None:
    if content is None or isinstance(content, str):
        return
    if not isinstance(content, list):
        raise InvalidRequest("Content is a string or a list of parts.", param=where)
    for index, part in enumerate(content):
        if not (isinstance(part, dict) and isinstance(part.get("type"), str)):
            raise InvalidRequest("A content part is an object with a 'type'.", param=f"{where}[{index}]")
        for key in ("text", "refusal"):
            if not isinstance(part.get(key) or "", str):
                raise InvalidRequest(f"The {key} of a part is a string.", param=f"{where}[{index}].{key}")


def input_items(input: str | list[Item] | None) -> list[Item]:
    """The input as items, each with an id: as they are stored, listed and replayed."""
    if input is None:
        return []
    if isinstance(input, str):
        return [
            {
                "type": "message",
                "id": new_id("msg"),
                "status": "completed",
                "role": "user",
                "content": [{"type": "input_text", "text": input}],
            }
        ]
    return [_input_item(item) for item in input]


def _input_item(item: Item) -> Item:
    kind = item.get("type") or ("message" if "role" in item else "item_reference")
    whole = {**item, "type": kind, "id": item.get("id") or new_id(ID_PREFIXES.get(kind, "item"))}
    if kind == "message" and isinstance(content := item.get("content"), str):
        text_type = "output_text" if item["role"] == "assistant" else "input_text"
        part = {"type": text_type, "text": content}
        whole["content"] = [{**part, "annotations": []} if text_type == "output_text" else part]
    if whole.get("status") is None and kind in HAS_STATUS:
        whole["status"] = "completed"
    return whole


def check_input(items: list[Item], history: int) -> None:
    """Every call has its output and every output its call, once. Raises `InvalidRequest` with the words of OpenAI."""
    open_calls: dict[str, Item] = {}
    answered: set[str] = set()
    for index, item in enumerate(items):
        kind = item.get("type", "")
        if (kind not in CALLS and kind not in OUTPUTS) or (call_id := call_id_of(item)) is None:
            continue
        where = f"input[{index - history}].call_id" if index >= history else "previous_response_id"
        if kind in CALLS:
            if call_id in open_calls or call_id in answered:
                raise InvalidRequest(f"Duplicate {_words(kind)} with call_id {call_id}.", param=where)
            open_calls[call_id] = item
        else:
            if call_id in answered:
                raise InvalidRequest(
                    f"Duplicate output for {_words(kind).removesuffix(' output')} {call_id}.", param=where
                )
            if open_calls.pop(call_id, None) is None:
                raise orphan_output(item, where)
            answered.add(call_id)
    for call_id, item in open_calls.items():
        if item.get("status") != "incomplete":
            raise InvalidRequest(f"No tool output found for {_words(item['type'])} {call_id}.", param="input")


def _words(kind: str) -> str:
    return kind.replace("_", " ")


def without_cut_calls(items: list[Item]) -> list[Item]:
    """The items less the calls that were cut off at a token limit and never answered: no client could run them."""
    cut = {item["call_id"] for item in items if item.get("type") in CALLS and item.get("status") == "incomplete"}
    if not cut:
        return items
    cut -= {call_id_of(item) for item in items if item.get("type") in OUTPUTS}
    return [item for item in items if item.get("type") not in CALLS or item.get("call_id") not in cut]


# ── the chat request ─────────────────────────────────────────────────────────────────────────────────────────────────


def chat_request(
    request: dict[str, Any],
    messages: list[Message],
    *,
    model: str,
    stream: bool,
    choice: ToolChoice | None = None,
    efforts: Sequence[str] | None = None,
) -> dict[str, Any]:
    """The parameters of POST /v1/chat/completions for a Responses request and its translated messages. `choice` holds the
    tools and the tool choice, if they are not those of the request alone; `efforts` the backend's words for how much to think,
    None if it knows all.

    Keys that we do not know (`seed`, `top_k`, `chat_template_kwargs`, …) go on as they are. Raises `Unsupported` or
    `InvalidRequest` for a tool choice that the backend cannot be given.
    """
    params = {key: value for key, value in request.items() if key not in NOT_PASSED_ON and value is not None}
    params["model"] = model
    params["messages"] = messages
    if choice is None:
        choice = tool_choice_responses_to_chat(request.get("tool_choice"), ToolBook(request.get("tools") or []))
    if choice.tools:
        params["tools"] = choice.tools
        if choice.chat is not None:
            params["tool_choice"] = choice.chat
        if (parallel := request.get("parallel_tool_calls")) is not None:
            params["parallel_tool_calls"] = parallel
    if request.get("max_output_tokens") is not None:
        # Not max_completion_tokens: Ollama and llama-cpp-python know only this name, everybody knows it.
        params["max_tokens"] = request["max_output_tokens"]
    text = request.get("text") or {}
    if response_format := _response_format(text.get("format")):
        params["response_format"] = response_format
    if text.get("verbosity") is not None:
        params["verbosity"] = text["verbosity"]
    if effort := nearest_effort((request.get("reasoning") or {}).get("effort"), efforts):
        params["reasoning_effort"] = effort
    if wants_logprobs(request):
        params["logprobs"] = True
        if request.get("top_logprobs"):
            params["top_logprobs"] = request["top_logprobs"]
    if stream:
        params["stream"] = True
        params["stream_options"] = {"include_usage": True}
    return params


# How much to think, least first.
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")


def nearest_effort(effort: str | None, known: Sequence[str] | None) -> str | None:
    """The word of a backend for an effort: the next lower one that it knows, else its least. None: it is told nothing. Thinking is
    only switched off where that was asked for. A word that is none of ours goes on as it is."""
    if effort is None or known is None or effort in known:
        return effort
    if effort not in EFFORTS:
        return effort if known else None
    thinking = [word for word in EFFORTS if word in known and word != "none"]
    lower = [word for word in thinking if EFFORTS.index(word) < EFFORTS.index(effort)]
    return lower[-1] if lower else thinking[0] if thinking else None


def wants_logprobs(request: dict[str, Any]) -> bool:
    return bool(request.get("top_logprobs")) or "message.output_text.logprobs" in (request.get("include") or ())


def _response_format(format: dict[str, Any] | None) -> dict[str, Any] | None:
    match (format or {}).get("type"):
        case "json_object":
            return {"type": "json_object"}
        case "json_schema":
            assert format is not None
            keys = ("name", "description", "schema", "strict")
            return {
                "type": "json_schema",
                "json_schema": {key: format[key] for key in keys if format.get(key) is not None},
            }
        case _:
            return None
