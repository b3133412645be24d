"""The chat request that is made of a Responses request: `requests/compatibility.py` has what goes on, and as what.

body, messages ──chat_request──▶ parameters of POST /v1/chat/completions
body ──ignored_in──▶ the names of what is not among them
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from core.errors import InvalidRequest
from requests.compatibility import (
    ADAPTED,
    CARRIED,
    IGNORED,
    INCLUDES,
    PARAMETERS,
    REFUSED,
    RUN_HERE,
    chat_keys,
    chat_names,
)
from requests.messages import Message
from requests.tool_choice import ToolChoice, tool_choice_responses_to_chat
from requests.tools import Item, ToolBook

# Those of one name in both go on as they are, but for these, which depend on others.
NOT_PASSED_ON = chat_names(PARAMETERS, ADAPTED, IGNORED, REFUSED, RUN_HERE) | {
    "parallel_tool_calls",
    "stream",
    "top_logprobs",
}
IGNORED_PARAMETERS = chat_names(PARAMETERS, IGNORED)
# Of the parameters that are objects: the keys of which something comes.
HEEDED_KEYS = {
    holder: chat_keys(holder, CARRIED, ADAPTED, RUN_HERE) for holder in ("reasoning", "stream_options", "text")
}
HEEDED_INCLUDES = chat_names(INCLUDES, CARRIED, ADAPTED, RUN_HERE)
MAY_BE_IGNORED = IGNORED_PARAMETERS | HEEDED_KEYS.keys() | {"include"}


def chat_request(
    request: dict[str, Any],
    messages: list[Message],
    *,
    model: str,
    stream: bool,
    choice: ToolChoice | None = None,
    efforts: Sequence[str] | None = None,
) -> dict[str, Any]:
    """The parameters of POST /v1/chat/completions for a Responses request and its translated messages. `choice` holds
    the tools and the tool choice, if they are not those of the request alone; `efforts` the backend's words for how
    much to think, None if it knows all.

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
    if text := request.get("text"):
        if response_format := _response_format(text.get("format")):
            params["response_format"] = response_format
        if (verbosity := text.get("verbosity")) is not None:
            params["verbosity"] = _one_of(VERBOSITIES, verbosity, "text.verbosity")
    if (effort := (request.get("reasoning") or {}).get("effort")) is not None:
        known = _one_of((*EFFORTS, *(efforts or ())), effort, "reasoning.effort")
        if nearest := nearest_effort(known, efforts):
            params["reasoning_effort"] = nearest
    if "service_tier" in params:
        _one_of(SERVICE_TIERS, params["service_tier"], "service_tier")
    if ("top_logprobs" in request or "include" in request) and wants_logprobs(request):
        params["logprobs"] = True
        if request.get("top_logprobs"):
            params["top_logprobs"] = request["top_logprobs"]
    if stream:
        params["stream"] = True
        params["stream_options"] = {"include_usage": True}
    return params


def _one_of(words: Sequence[str], word: str, param: str) -> str:
    """The word, if it is one of these. A server that does not know it may take it for none."""
    if word not in words:
        raise InvalidRequest(
            f"Invalid value: '{word[:64]}'. Supported values are: {', '.join(words)}.",
            param=param,
            code="invalid_value",
        )
    return word


VERBOSITIES = ("low", "medium", "high")
# OpenAI's, and behind them those of Groq's chat completions.
SERVICE_TIERS = ("auto", "default", "flex", "scale", "priority", "fast", "ultrafast", "on_demand", "performance")
# How much to think, least first.
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")


def nearest_effort(effort: str | None, known: Sequence[str] | None) -> str | None:
    """The word of a backend for an effort: the next lower one that it knows, else its least. None: it is sent none.
    Thinking is only switched off where that was asked for. A word that is none of ours goes on as it is."""
    if effort is None or known is None or effort in known:
        return effort
    if effort not in EFFORTS:
        return effort if known else None
    thinking = [word for word in EFFORTS if word in known and word != "none"]
    lower = [word for word in thinking if EFFORTS.index(word) < EFFORTS.index(effort)]
    return lower[-1] if lower else thinking[0] if thinking else None


def wants_logprobs(request: dict[str, Any]) -> bool:
    """Whether a Responses request asks for log probabilities."""
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


def configured(request: dict[str, Any], items: Sequence[Item]) -> dict[str, Any]:
    """The request with the effort and the verbosity that the last `configuration_update` of the conversation gives
    them."""
    settings: dict[tuple[str, str], Any] = {}
    for item in items:
        if item["type"] == "configuration_update":
            for holder, key in CONFIGURED:
                if (value := (item.get(holder) or {}).get(key)) is not None:
                    settings[holder, key] = value
    for (holder, key), value in settings.items():
        request = {**request, holder: {**(request.get(holder) or {}), key: value}}
    return request


# What an update can change.
CONFIGURED = (("reasoning", "effort"), ("text", "verbosity"))


def ignored_in(request: dict[str, Any]) -> set[str]:
    """The names of what a checked request gives, and nothing comes of at a chat backend: parameters, `parameter.key`,
    `include.value`."""
    names: set[str] = set()
    if MAY_BE_IGNORED.isdisjoint(request):
        return names
    if not IGNORED_PARAMETERS.isdisjoint(request):
        names.update(name for name in IGNORED_PARAMETERS & request.keys() if request[name] is not None)
    if not HEEDED_KEYS.keys().isdisjoint(request):
        for holder, heeded in HEEDED_KEYS.items():
            if (given := request.get(holder)) and not given.keys() <= heeded:
                names.update(f"{holder}.{key}" for key in given.keys() - heeded if given[key] is not None)
    if values := request.get("include"):
        names.update(f"include.{value}" for value in values if value not in HEEDED_INCLUDES)
    return names
