"""The chunks and completions that do not fit OpenAI's types, read key by key: what a turn can do without may be of any
type.

    {"choices": [{"index": "0", "delta": {"content": "Hi", "tool_calls": {}}}], "usage": []}   is "Hi"

This is the slow way, for what msgspec's typed decoding refuses.
"""

from __future__ import annotations

from collections.abc import Iterator

from core.json import Json, decode_json, decode_json_halves, encode_json, whole_text, whole_value
from requests.chat_types import (
    ChatChunk,
    ChatCompletion,
    Choice,
    CompletionChoice,
    Delta,
    Dumped,
    FunctionDelta,
    LogProbs,
    ToolCallDelta,
    called_function,
)
from requests.thoughts import texts_in, thought_in, thought_of


def read_chunk(data: bytes) -> ChatChunk:
    """One chunk. Halves of characters stay in its texts: the next chunk may have the other half. Raises `ValueError`
    for what is not JSON, or is no object and not empty."""
    value = decode_json_halves(data)
    if not value:
        return ChatChunk()
    if not isinstance(value, dict):
        raise ValueError("It is no object.")
    return chunk_of(value)


def chunk_of(value: Json) -> ChatChunk:
    """The chunk in a JSON object."""
    return ChatChunk(
        choices=[*map(_choice, _objects(value.get("choices")))],
        usage=value.get("usage"),
        timings=whole_value(value.get("timings")),
        error=whole_value(value.get("error")),
        object=_name(value.get("object")),
        message=_name(value.get("message")),
        code=value.get("code"),
        x_groq=value.get("x_groq"),
    )


def read_completion(body: bytes) -> ChatCompletion:
    """A whole completion. Raises `ValueError` for what has no choices."""
    value = decode_json(body)
    choices = _objects(value.get("choices")) if isinstance(value, dict) else []
    if not choices:
        raise ValueError("It has no choices.")
    return ChatCompletion([*map(_completion_choice, choices)], value.get("usage"))


# Where a message has what is in it.
HOLDS = ("content", "reasoning_content", "reasoning", "refusal", "tool_calls")


def _completion_choice(choice: Json) -> CompletionChoice:
    given = choice.get("message", choice.get("delta", choice.get("text")))
    delta = _delta(given) or Delta()
    thought = thought_in(delta)
    is_empty = not (delta.content or thought or delta.refusal or delta.tool_calls or delta.function_call)
    if is_empty and isinstance(given, dict) and any(given.get(key) for key in HOLDS):
        raise ValueError("Nothing in it can be understood.")
    message = {
        "role": "assistant",
        "content": delta.content,
        "reasoning_content": thought,
        "refusal": delta.refusal,
        "tool_calls": [*map(_as_call, delta.tool_calls or ())],
        "function_call": _as_call(ToolCallDelta(function=delta.function_call))["function"]
        if delta.function_call
        else None,
    }
    return CompletionChoice(Dumped(message), _reason(choice.get("finish_reason")), _logprobs(choice.get("logprobs")))


def _as_call(call: ToolCallDelta) -> Json:
    function = called_function(call)
    return {"id": call.id, "function": {"name": function.name, "arguments": function.arguments}}


def _choice(choice: Json) -> Choice:
    return Choice(
        index=_index(choice.get("index")) or 0,
        delta=_delta(choice.get("delta")),
        finish_reason=_reason(choice.get("finish_reason")),
        logprobs=_logprobs(choice.get("logprobs")),
        message=_delta(choice.get("message")),
        text=_text(choice.get("text")),
        usage=choice.get("usage"),
    )


def _delta(value: object) -> Delta | None:
    if isinstance(value, str | list):
        value = {"content": value}
    if not isinstance(value, dict):
        return None
    return Delta(
        content=_content(value.get("content")),
        reasoning_content=_thought(value.get("reasoning_content")),
        reasoning=_thought(value.get("reasoning")),
        thinking=_thought(value.get("thinking")),
        refusal=_text(value.get("refusal")),
        tool_calls=[*map(_call, _objects(value.get("tool_calls")))],
        function_call=_function(value.get("function_call")),
        reasoning_details=value.get("reasoning_details"),
        thinking_blocks=value.get("thinking_blocks"),
    )


def _call(call: Json) -> ToolCallDelta:
    beside = _function(call) or FunctionDelta()
    return ToolCallDelta(
        _index(call.get("index")), _name(call.get("id")), _function(call.get("function")), beside.name, beside.arguments
    )


def _function(function: object) -> FunctionDelta | None:
    if not isinstance(function, dict):
        return None
    arguments = function.get("arguments")
    if arguments is not None and not isinstance(arguments, str):
        # A number or a list is what the model wrote; the client is to judge it.
        arguments = arguments if isinstance(arguments, dict) else encode_json(whole_value(arguments)).decode()
    return FunctionDelta(_name(function.get("name")), arguments)


def _content(value: object) -> str | list[object] | None:
    return (
        [value]
        if isinstance(value, dict) and any(texts_in(value))
        else value
        if isinstance(value, list)
        else _text(value)
    )


def _thought(value: object) -> str | None:
    return value if isinstance(value, str) else thought_of(value) or None


def _text(value: object) -> str | None:
    """A text, or a number that stands where one belongs."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return encode_json(value).decode()
    return value if isinstance(value, str) else None


def _name(value: object) -> str | None:
    """A text that is not the model's, such as an id."""
    return None if (text := _text(value)) is None else whole_text(text)


def _reason(value: object) -> str | None:
    if isinstance(value, dict):
        value = value.get("type") or value.get("reason")
    return _name(value) if not isinstance(value, bool) else "stop" if value else None


def _index(value: object) -> int | None:
    """`3`, `"3"` and `3.0`."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str | float):
        try:
            value = float(value)
        except ValueError:
            return None
        value = int(value) if value.is_integer() else None
    return value if isinstance(value, int) else None


def _logprobs(value: object) -> LogProbs | None:
    content = value.get("content") if isinstance(value, dict) else None
    entries = [entry for entry in content if isinstance(entry, dict)] if isinstance(content, list) else []
    return LogProbs(whole_value(entries)) if entries else None


def _objects(value: object) -> list[Json]:
    """The objects in a list; or an object that stands for a list of one, or that has the list's places as its keys."""
    return [*_each_object(value)]


def _each_object(value: object) -> Iterator[Json]:
    if isinstance(value, list):
        yield from (inner for inner in value if isinstance(inner, dict))
    elif isinstance(value, dict):
        if value and all(key.isdecimal() for key in value):
            yield from _each_object([*value.values()])
        else:
            yield value
