"""What a chat-completions server answers, decoded straight from bytes.

    bytes ──decode_chunk, decode_completion──▶ ChatChunk, ChatCompletion      msgspec's typed decoding
                         └─what that refuses──▶ requests/lenient.py           key by key

Attribute names are the OpenAI SDK's, so that the SDK's own objects can stand in (`as_chunk`).
"""

from __future__ import annotations

from typing import Any

import msgspec

from requests.chat_types import ChatChunk, ChatCompletion, Delta, Dumped
from requests.lenient import chunk_of, read_chunk, read_completion
from requests.usage import chat_usage

_chunk = msgspec.json.Decoder(ChatChunk)
# What is no JSON, or not of the type that it should be. Bytes that are no UTF-8 have an error of their own.
DecodeError = (msgspec.DecodeError, ValueError, RecursionError)
# One chunk as it stands, where it is as OpenAI's are. Raises `DecodeError`.
parse_chunk = _chunk.decode
_completion = msgspec.json.Decoder(
    ChatCompletion, dec_hook=lambda kind, value: Dumped(value) if kind is Dumped else value
)


def decode_chunk(data: bytes) -> ChatChunk:
    """One chunk from the data of one SSE event. Raises `DecodeError` for what is no object."""
    try:
        chunk = _chunk.decode(data)
    except DecodeError:
        chunk = read_chunk(data)
    if chunk.usage is not None or chunk.x_groq is not None or (chunk.choices and chunk.choices[0].usage is not None):
        count_usage(chunk)
    return chunk


def count_usage(chunk: ChatChunk) -> None:
    """Puts the usage of a chunk where OpenAI has it, in OpenAI's words."""
    usage = chat_usage(chunk.usage)
    if usage is None:
        places = [chunk.x_groq.get("usage") if isinstance(chunk.x_groq, dict) else None]
        places += [choice.usage for choice in chunk.choices or ()]
        usage = next(filter(None, map(chat_usage, places)), None)
    chunk.usage = usage


def is_error(chunk: ChatChunk) -> bool:
    """Whether a chunk is none, but an error in the middle of a stream."""
    return (chunk.error is not None and means_error(chunk.error)) or chunk.object == "error"


def means_error(error: object) -> bool:
    """Whether there is an error: some servers send the key with every chunk, and nothing in it."""
    return any(map(means_error, error.values())) if isinstance(error, dict) else bool(error)


def decode_completion(body: bytes) -> ChatCompletion:
    """A whole completion. Raises `DecodeError` for what has no choices."""
    try:
        completion = _completion.decode(body)
        for choice in completion.choices:
            msgspec.convert(choice.message, Delta)
    except DecodeError:
        completion = read_completion(body)
    completion.usage = chat_usage(completion.usage)
    return completion


def as_chunk(chunk: object) -> ChatChunk:
    """Our chunk from one of the SDK's, or from any object with its attribute names."""
    if type(chunk) is ChatChunk:
        return chunk
    if hasattr(chunk, "model_dump"):
        dumped = chunk.model_dump()
        try:
            ours = msgspec.convert(dumped, ChatChunk)
        except msgspec.ValidationError:
            ours = chunk_of(dumped)
    else:
        ours = msgspec.convert(chunk, ChatChunk, from_attributes=True)
        if hasattr(ours.usage, "__dict__"):
            ours.usage = vars(ours.usage)
    count_usage(ours)
    return ours


def as_plain(value: object) -> Any:
    """Plain data from one of the SDK's objects, or of ours; plain data as it is."""
    return value.model_dump() if hasattr(value, "model_dump") else value
