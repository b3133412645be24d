"""A chat-completions server's chunk and completion, as OpenAI's SDK names their parts. Servers differ: every field may
be missing or null, and fields that we do not use are not even parsed."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import msgspec

from core.json import Json


class FunctionDelta(msgspec.Struct):
    name: str | None = None
    arguments: str | Json | None = None


class ToolCallDelta(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    function: FunctionDelta | None = None
    # Some servers have the function's keys beside the id.
    name: str | None = None
    arguments: str | Json | None = None


def called_function(call: ToolCallDelta) -> FunctionDelta:
    """What is called, wherever a server has it."""
    return call.function or FunctionDelta(call.name, call.arguments)


class Delta(msgspec.Struct):
    """A piece of a message; or, where a server streams `message` in place of `delta`, all of it so far."""

    content: str | list[Any] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    thinking: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCallDelta] | None = None
    function_call: FunctionDelta | None = None
    # OpenRouter's and LiteLLM's, mostly beside one of the other keys.
    reasoning_details: Any = None
    thinking_blocks: Any = None


# What the first and the last chunk of an answer have.
EMPTY, BLANK = Delta(), Delta("")


class LogProbs(msgspec.Struct):
    content: list[Json] | None = None

    def model_dump(self) -> Json:
        """As the SDK's give them."""
        return {"content": self.content}


class Choice(msgspec.Struct):
    index: int | None = 0
    delta: Delta | None = None
    finish_reason: str | None = None
    logprobs: LogProbs | None = None
    message: Delta | None = None
    # Where old completions have it.
    text: str | None = None
    # Moonshot's place for it.
    usage: Any = None


class ChatChunk(msgspec.Struct):
    choices: list[Choice] | None = None
    usage: Any = None
    # llama.cpp's, beside the usage.
    timings: Any = None
    # An error in the middle of a stream: `{"error": {…}}`, or vLLM's `{"object": "error", "message": …}`.
    error: Any = None
    object: str | None = None
    message: str | None = None
    code: Any = None
    # Groq's place for the usage.
    x_groq: Any = None


class Dumped(Json):
    """A plain dict with the SDK's way of asking for one. `headers` are those of the answer of another router."""

    headers: Mapping[str, str] = MappingProxyType({})

    def model_dump(self) -> Json:
        """Itself."""
        return self


class CompletionChoice(msgspec.Struct):
    message: Dumped
    finish_reason: str | None = None
    logprobs: LogProbs | None = None


class ChatCompletion(msgspec.Struct):
    choices: list[CompletionChoice]
    usage: Any = None
