"""What a chat-completions server answers, in types that msgspec decodes straight from bytes.

Attribute names are the OpenAI SDK's, so that the SDK's own objects can stand in (`as_chunk`). Servers differ: every field
may be missing or null, and fields that we do not use are not even parsed.
"""

from __future__ import annotations

from typing import Any

import msgspec

UNSET = msgspec.UNSET
UnsetType = msgspec.UnsetType


class Usage(msgspec.Struct):
    prompt_tokens: int | None = 0
    completion_tokens: int | None = 0
    total_tokens: int | None = None
    prompt_tokens_details: dict[str, Any] | UnsetType | None = UNSET
    completion_tokens_details: dict[str, Any] | UnsetType | None = UNSET

    def model_dump(self) -> dict[str, Any]:
        dumped: dict[str, Any] = msgspec.to_builtins(self)
        return dumped


class FunctionDelta(msgspec.Struct):
    name: str | None = None
    arguments: str | dict[str, Any] | None = None


class ToolCallDelta(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    function: FunctionDelta | None = None


class Delta(msgspec.Struct):
    content: str | list[dict[str, Any]] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class LogProbs(msgspec.Struct):
    content: list[dict[str, Any]] | None = None

    def model_dump(self) -> dict[str, Any]:
        return {"content": self.content}


class Choice(msgspec.Struct):
    index: int | None = 0
    delta: Delta | None = None
    finish_reason: str | None = None
    logprobs: LogProbs | None = None


class ChatChunk(msgspec.Struct):
    choices: list[Choice] | None = None
    usage: Usage | None = None
    # llama.cpp's, beside the usage.
    timings: Any = None
    # An error in the middle of a stream: `{"error": {…}}`, or vLLM's `{"object": "error", "message": …}`.
    error: Any = None
    object: str | None = None
    message: str | None = None
    code: Any = None


class Dumped(dict[str, Any]):
    """A plain dict with the SDK's way of asking for one."""

    def model_dump(self) -> dict[str, Any]:
        return self


class Message(msgspec.Struct):
    """What is read of a whole message, to check it: what goes on is the message as it came."""

    content: str | list[dict[str, Any]] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class CompletionChoice(msgspec.Struct):
    message: Dumped
    finish_reason: str | None = None
    logprobs: LogProbs | None = None


class ChatCompletion(msgspec.Struct):
    choices: list[CompletionChoice]
    usage: Usage | None = None


_chunk = msgspec.json.Decoder(ChatChunk)
# What is no JSON, or not of the type that it should be. Bytes that are no UTF-8 have an error of their own.
DecodeError = (msgspec.DecodeError, UnicodeDecodeError)
# One chunk as it stands. Raises `DecodeError`.
parse_chunk = _chunk.decode
_completion = msgspec.json.Decoder(
    ChatCompletion, dec_hook=lambda kind, value: Dumped(value) if kind is Dumped else value
)


class EventHead(msgspec.Struct, gc=False):
    """What is read of an event of a server that speaks Responses."""

    type: str
    sequence_number: Any = None


_heads = msgspec.json.Decoder(list[EventHead])
_head = msgspec.json.Decoder(EventHead)
# Of one event. Raises `DecodeError`.
parse_head = _head.decode


def parse_heads(datas: list[bytes]) -> list[EventHead] | None:
    """Of some events. None where one of them is none."""
    try:
        heads = _heads.decode(b"[%b]" % b",".join(datas))
    except DecodeError:
        return None
    return heads if len(heads) == len(datas) else None


def decode_chunk(data: bytes) -> ChatChunk:
    """One chunk from the data of one SSE event. Raises `DecodeError`."""
    chunk = _chunk.decode(data)
    if chunk.usage is not None:
        name_details(chunk.usage)
    return chunk


def is_error(chunk: ChatChunk) -> bool:
    """Whether a chunk is none, but an error in the middle of a stream."""
    return chunk.error is not None or chunk.object == "error"


def decode_completion(body: bytes) -> ChatCompletion:
    """A whole completion. Raises `DecodeError`."""
    completion = _completion.decode(body)
    for choice in completion.choices:
        msgspec.convert(choice.message, Message)
    if completion.usage is not None:
        name_details(completion.usage)
    return completion


def as_chunk(chunk: Any) -> ChatChunk:
    """Our chunk from one of the SDK's, or from any object with its attribute names."""
    if type(chunk) is ChatChunk:
        return chunk
    if hasattr(chunk, "model_dump"):
        return msgspec.convert(chunk.model_dump(), ChatChunk)
    return msgspec.convert(chunk, ChatChunk, from_attributes=True)


def as_plain(value: Any) -> Any:
    """Plain data from one of the SDK's objects, or of ours; plain data as it is."""
    return value.model_dump() if hasattr(value, "model_dump") else value


def name_details(usage: Usage) -> None:
    """A real backend's usage always has its detail keys, so that strict clients always get the detail objects."""
    if usage.prompt_tokens_details is UNSET:
        usage.prompt_tokens_details = None
    if usage.completion_tokens_details is UNSET:
        usage.completion_tokens_details = None
