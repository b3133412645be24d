"""The request that a client may send, checked.

    body ──check_request──▶ CreateParams

Specification: OpenAI's Responses API and Open Responses 2026-04-24. Unknown keys are no error but in `text` and
`nomyo`, wrong values are a 400 that names the parameter.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec

from core.errors import InvalidRequest, Unsupported
from requests.items import check_item
from requests.tool_choice import check_tool_choice
from requests.tools import check_tools
from requests.usual_items import are_usual


class Options(msgspec.Struct, forbid_unknown_fields=True):
    """`nomyo`: what this router understands beyond the Responses API."""

    cache: bool = False


class Reasoning(msgspec.Struct):
    effort: str | None = None
    summary: str | None = None
    # What summary was called once.
    generate_summary: str | None = None


class Text(msgspec.Struct, forbid_unknown_fields=True):
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
    prompt_cache_retention: Literal["in_memory", "in-memory", "24h"] | None = None
    conversation: str | dict[str, Any] | None = None
    prompt: dict[str, Any] | None = None
    context_management: list[ContextManagement] | None = None
    nomyo: Options | None = None


def check_counts(body: Any, *, max_items: int, max_tools: int) -> None:
    """Raises `InvalidRequest` for a body with more items or tools, those in namespaces and in items too. To count them
    takes no time worth a name, where to check them does."""
    if not isinstance(body, dict):
        return
    tools, items = body.get("tools"), body.get("input")
    if isinstance(items, list) and len(items) > max_items:
        raise InvalidRequest(
            f"A request may have {max_items} items, and this one has {len(items)}.",
            param="input",
            code="too_many_items",
        )
    count = _tools_in(tools) if isinstance(tools, list) else 0
    if count > max_tools:
        raise _too_many_tools(max_tools, "tools")
    if not isinstance(items, list):
        return
    try:
        bringing = [item for item in items if "tools" in item]
    except TypeError:  # One is no object, which is found out next.
        return
    for item in bringing:
        if isinstance(item, dict) and isinstance(item["tools"], list):
            count += _tools_in(item["tools"])
            if count > max_tools:
                place = next(index for index, other in enumerate(items) if other is item)
                raise _too_many_tools(max_tools, f"input[{place}].tools")


def _tools_in(tools: list[Any]) -> int:
    """How many tools there are in a list, and in what its members hold."""
    waiting, count = [tools], 0
    while waiting:
        some = waiting.pop()
        count += len(some)
        waiting += [tool["tools"] for tool in some if isinstance(tool, dict) and isinstance(tool.get("tools"), list)]
    return count


def _too_many_tools(max_tools: int, param: str) -> InvalidRequest:
    return InvalidRequest(
        f"A request may have {max_tools} tools, those in namespaces too.", param=param, code="too_many_tools"
    )


# How msgspec words it.
UNKNOWN_KEY = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
MISSING_KEY = re.compile(r"Object missing required field `(.*)`", re.DOTALL)


def invalid_field(error: msgspec.ValidationError) -> InvalidRequest:
    """The error of a body that msgspec has refused, which names the parameter."""
    problem, _, path = str(error).partition(" - at `$.")
    # msgspec calls a value of an object `[...]`: what holds it is name enough.
    param = path.rstrip("`").partition("[...]")[0] or None
    if unknown := UNKNOWN_KEY.fullmatch(problem):
        named = f"{param}.{unknown[1]}" if param else unknown[1]
        return InvalidRequest(f"Unknown parameter: '{named}'.", param=named, code="unknown_parameter")
    if param is None and (missing := MISSING_KEY.fullmatch(problem)):
        return InvalidRequest(
            f"Missing required parameter: '{missing[1]}'.", param=missing[1], code="missing_required_parameter"
        )
    return InvalidRequest(f"Invalid value for '{param}': {problem}.", param=param, code="invalid_value")


def check_request(body: Any) -> CreateParams:
    """The checked parameters of a create request. Raises `InvalidRequest` or `Unsupported` that names the parameter."""
    if not isinstance(body, dict):
        raise InvalidRequest("The body must be a JSON object.")
    try:
        params = msgspec.convert(body, CreateParams)
    except msgspec.ValidationError as error:
        raise invalid_field(error) from None
    if params.model is None and not params.prompt:
        raise InvalidRequest("Missing required parameter: 'model'.", param="model", code="missing_required_parameter")
    if params.conversation is not None:
        params.conversation = _conversation_id(params)
    elif params.input is None and params.previous_response_id is None and params.prompt is None:
        advice = " Chat completions has 'messages', Responses has 'input'." if "messages" in body else ""
        raise InvalidRequest(
            f"Missing required parameter: 'input'.{advice}", param="input", code="missing_required_parameter"
        )
    # Clients of chat completions ask for the usage whether they want a stream or not; it is always there.
    if (options := body.get("stream_options")) and not params.stream and options.keys() != {"include_usage"}:
        raise InvalidRequest("'stream_options' is only for requests with 'stream'.", param="stream_options")
    if params.background and params.store is False:
        raise InvalidRequest("Background responses are stored: 'store' cannot be false.", param="store")
    if (
        "seed" in body and type(body["seed"]) is float
    ):  # An integer of more than 64 bits is read as one, and is another number then.
        raise InvalidRequest("A seed is an integer of at most 64 bits.", param="seed", code="invalid_value")
    if params.metadata:
        check_metadata(params.metadata)
    if params.context_management:
        _check_context_management(params.context_management)
    if params.tools:
        check_tools(params.tools)
    check_tool_choice(params.tool_choice)
    if params.text and params.text.format:
        _check_format(params.text.format)
    if isinstance(params.input, list) and not are_usual(params.input):
        for index, item in enumerate(params.input):
            check_item(item, f"input[{index}]")
    return params


def _conversation_id(params: CreateParams) -> str:
    """The id of the conversation that is meant. Raises `InvalidRequest`."""
    given = params.conversation
    conversation_id, param = (
        (given.get("id"), "conversation.id") if isinstance(given, dict) else (given, "conversation")
    )
    if not isinstance(conversation_id, str) or not conversation_id:
        raise InvalidRequest(
            "A conversation is named by its id: a text, or an object with the key 'id'.",
            param=param,
            code="invalid_value",
        )
    if params.previous_response_id is not None:
        raise InvalidRequest(
            "A turn goes on from a conversation or from a response: give 'conversation' or 'previous_response_id'.",
            param="previous_response_id",
            code="mutually_exclusive_parameters",
        )
    return conversation_id


def check_metadata(metadata: dict[str, str]) -> None:
    """Raises `InvalidRequest` for more pairs, or longer ones, than OpenAI takes."""
    if len(metadata) > 16:
        raise InvalidRequest("'metadata' holds at most 16 pairs.", param="metadata")
    for key, value in metadata.items():
        if len(key) > 64 or len(value) > 512:
            raise InvalidRequest("A metadata key has at most 64 characters, a value 512.", param=f"metadata.{key[:64]}")


def _check_context_management(entries: list[ContextManagement]) -> None:
    for index, entry in enumerate(entries):
        if entry.type != "compaction":
            raise Unsupported("Contexts can be managed by 'compaction'.", param=f"context_management[{index}].type")


def _check_format(format: dict[str, Any]) -> None:
    kind = format.get("type")
    if kind not in ("text", "json_object", "json_schema"):
        raise InvalidRequest("The type is text, json_object or json_schema.", param="text.format.type")
    if kind == "json_schema":
        for key, type in (("name", str), ("schema", dict)):
            if not isinstance(format.get(key), type):
                raise InvalidRequest(f"A json_schema format needs a '{key}'.", param=f"text.format.{key}")
