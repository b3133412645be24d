"""What a backend's refusal means, read out of its words: every server has its own, and few have a code for it.

`message` is the text of the error, `error` the object that held it, or whatever the body was. Pure; only the beginning of a long
text is read, and nothing of the text but numbers and a parameter's name is given on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

READ_CHARS = 4000


@dataclass(frozen=True, slots=True)
class Overflow:
    """A request did not fit into the context. With `prompt` below `limit`, what was asked for as an answer made it too long."""

    limit: int | None = None
    # None too where the server stopped counting at its limit: vLLM's "at least".
    prompt: int | None = None


# ── context overflow ─────────────────────────────────────────────────────────────────────────────────────────────────

_OVERFLOW_CODES = frozenset({"context_length_exceeded", "exceed_context_size_error", "model_context_window_exceeded"})

# In lower case.
_OVERFLOW_WORDS = (
    "exceed_context_size_error",  # llama.cpp, and Ollama 0.34 and newer, which hands it on as JSON in a text
    "exceeds the available context size",  # llama.cpp
    "context size has been exceeded",  # llama.cpp, while it answers
    "is too large to process. increase the physical batch size",  # llama.cpp, embeddings
    "maximum context length",  # OpenAI, vLLM, SGLang, OpenRouter, Mistral, llama-cpp-python
    "the model's context length is only",  # vLLM 0.16
    "longer than the maximum model length",  # vLLM's engine
    "max_tokens must be at least 1, got -",  # vLLM 0.4: what was left for the answer
    "cannot be greater than max_model_len",  # vLLM
    "is longer than the model's context length",  # SGLang
    "exceeds the maximum allowed length",  # SGLang
    "context length of only",  # LM Studio
    "is greater than the context length",  # LM Studio
    "reached context length of",  # LM Studio
    "input length exceeds the context length",  # Ollama
    "input length exceeds maximum context length",  # Ollama, embeddings
    "prompt is too long",  # Ollama's cloud, Anthropic
    "exceeds the context window",  # OpenAI's Responses API
    "exceed context window",  # llama-cpp-python
    "contextwindowexceedederror",  # LiteLLM
    "context_length_exceeded",  # OpenAI's code, in what a proxy made of it
    "`inputs` tokens + `max_new_tokens` must be",  # TGI
    "`inputs` must have less than",  # TGI
    "maximum prompt length is",  # xAI
    "exceeds the maximum number of tokens allowed",  # Gemini
)

_LIMITS = tuple(
    re.compile(pattern)
    for pattern in (
        r"n_ctx\W{1,6}(\d{1,11})",  # llama.cpp's field, and LM Studio's text
        r"available context size \((\d{1,11})",
        r"current batch size: (\d{1,11})",
        r"(\d{1,11}) maximum context length",  # Mistral
        r"maximum (?:context|prompt) length(?: is| of)? \(?(\d{1,11})",
        r"max_model_len\D{0,30}(\d{1,11})",
        r"maximum model length of (\d{1,11})",
        r"context length (?:is only|of only|of) (\d{1,11})",
        r"context length \((\d{1,11})",
        r"maximum allowed length \((\d{1,11})",
        r"exceed context window of (\d{1,11})",
        r"`max_new_tokens` must be <= (\d{1,11})",
        r"must have less than (\d{1,11})",
        r"tokens > (\d{1,11}) maximum",  # Anthropic
        r"tokens allowed \((\d{1,11})",
    )
)

_PROMPTS = tuple(
    re.compile(pattern)
    for pattern in (
        r"n_prompt_tokens\W{1,6}(\d{1,11})",
        r"(?:request|input) \((\d{1,11}) tokens\)",  # llama.cpp, SGLang
        r"keep the first (\d{1,11}) tokens",  # LM Studio
        r"n_keep: (\d{1,11})",  # LM Studio
        r"messages resulted in (\d{1,11}) tokens",  # OpenAI
        r"(\d{1,11}) (?:tokens )?(?:in|from) (?:the|your) (?:input )?(?:messages|prompt)",
        r"(\d{1,11}) of text input",  # OpenRouter
        r"(?:request has|prompt contains|passed) (\d{1,11}) input tokens",  # vLLM
        r"prompt contains (\d{1,11}) tokens",  # Mistral
        r"(?<!maximum )(?:prompt|input)(?: length| \(length| token count)?(?: of)? \(?(\d{1,11})",
        r"requested tokens \((\d{1,11})",  # llama-cpp-python
        r"given: (\d{1,11})",  # TGI
        r"prompt is too long: (\d{1,11}) tokens",
        r"request contains (\d{1,11}) tokens",
    )
)

# vLLM cuts what it counts right behind what it could take.
_COUNTED_UP_TO = re.compile(r"maximum input length of (\d{1,11}) tokens")


def overflow_of(message: str, error: Mapping[str, Any] | None = None) -> Overflow | None:
    """The overflow that a refusal tells of, with what it says of the numbers, or None if it is about something else."""
    error = error or {}
    text = message[:READ_CHARS].lower()
    if not _OVERFLOW_CODES.intersection(_words(error)) and not any(words in text for words in _OVERFLOW_WORDS):
        return None
    limit = _count(error.get("n_ctx")) or _first(_LIMITS, text)
    prompt = _count(error.get("n_prompt_tokens")) or _first(_PROMPTS, text)
    if prompt and (found := _COUNTED_UP_TO.search(text)) and prompt == int(found[1]) + 1:
        prompt = None
    return Overflow(limit, prompt)


def _words(error: Mapping[str, Any]) -> list[str]:
    return [value for key in ("code", "type") if isinstance(value := error.get(key), str)]


def _first(patterns: tuple[re.Pattern[str], ...], text: str) -> int | None:
    return next((int(found[1]) for pattern in patterns if (found := pattern.search(text))), None)


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


# ── what a backend or its model cannot do ────────────────────────────────────────────────────────────────────────────

TOOLS, IMAGES, AUDIO, THINKING = "tools", "images", "audio", "thinking"

# In lower case; the first that is found counts.
_UNSUPPORTED_WORDS = (
    ("does not support tool", TOOLS),  # Ollama
    ("doesn't support tool", TOOLS),  # Bedrock
    ("does not support function calling", TOOLS),  # DeepSeek
    ("tool choice requires --enable-auto-tool-choice", TOOLS),  # vLLM
    ("requires --tool-call-parser", TOOLS),  # vLLM
    ("tools param requires --jinja", TOOLS),  # llama.cpp
    ("tool_choice param requires --jinja", TOOLS),  # llama.cpp
    ("tool calling` is not supported", TOOLS),  # Groq
    ("no endpoints found that support tool use", TOOLS),  # OpenRouter
    ("image input is not supported", IMAGES),  # llama.cpp
    ("does not support multimodal", IMAGES),  # llama.cpp, Ollama 0.34 and newer
    ("is not a multimodal model", IMAGES),  # vLLM
    ("at most 0 image(s)", IMAGES),  # vLLM
    ("missing data required for image input", IMAGES),  # Ollama
    ("does not support vision", IMAGES),  # Ollama
    ("does not support image", IMAGES),  # LM Studio, Ollama's cloud, Gemini
    ("image_url is only supported by certain models", IMAGES),  # OpenAI
    ("no endpoints found that support image input", IMAGES),  # OpenRouter
    ("audio input is not supported", AUDIO),  # llama.cpp
    ("does not support audio", AUDIO),  # Ollama
    ("at most 0 audio(s)", AUDIO),  # vLLM
    ("does not support thinking", THINKING),  # Ollama
    ("'response_format.type' must be", "response_format"),  # LM Studio
    ("this response_format type is unavailable", "response_format"),  # DeepSeek
)

_UNSUPPORTED_CODES = frozenset({"unsupported_parameter", "unsupported_value", "unknown_parameter"})

_NAME = r"([A-Za-z][\w.\[\]]{0,63})"
_UNSUPPORTED_NAMES = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"unsupported (?:parameter|value): '{_NAME}'",  # OpenAI
        rf"unknown parameter: '{_NAME}'",  # OpenAI
        rf"unsupported param: {_NAME}",  # llama.cpp
        rf"unrecognized request argument supplied: {_NAME}",  # OpenAI's chat completions
        rf"does not support parameters: [\[{{]'{_NAME}'",  # LiteLLM
        rf"doesn't support {_NAME}=",  # LiteLLM
        rf"property '(?:body\.)?{_NAME}' is unsupported",  # Groq, Cerebras
        rf"`{_NAME}` is not supported with this model",  # Groq
        rf"argument not supported on this model: {_NAME}",  # xAI
        rf"does not support parameter {_NAME}",  # xAI
        rf"support the provided '{_NAME}' value",  # OpenRouter
        rf"\b{_NAME}: extra inputs are not permitted",  # Anthropic, and others who check with pydantic
        rf"unknown field:? [\"'`]?{_NAME}",  # servers in Rust and Go
        rf"^{_NAME} value \"\w{{1,32}}\" is not supported",  # Ollama: think
    )
)

_THINKING_NAMES = frozenset(
    {"think", "thinking", "reasoning", "reasoning_effort", "reasoning.effort", "reasoning.summary", "enable_thinking"}
)


def unsupported_of(message: str, error: Mapping[str, Any] | None = None) -> str | None:
    """What a refusal says that the backend or its model cannot do: `tools`, `images`, `audio`, `thinking`, or the name of a
    parameter. None if it says nothing of the kind."""
    error = error or {}
    text = message[:READ_CHARS]
    lower = text.lower()
    for words, what in _UNSUPPORTED_WORDS:
        if words in lower:
            return what
    param = error.get("param")
    if isinstance(param, str) and _UNSUPPORTED_CODES.intersection(_words(error)):
        return _named(param)
    for pattern in _UNSUPPORTED_NAMES:
        if found := pattern.search(text):
            return _named(found[1].rstrip("."))
    return _named(_extra_input(error) or "")


def _extra_input(error: Mapping[str, Any]) -> str | None:
    """The field that FastAPI's 422 calls too much: vLLM's, Mistral's, TGI's."""
    detail = error.get("detail")
    if isinstance(inner := error.get("message"), Mapping):
        detail = inner.get("detail", detail)
    for problem in detail if isinstance(detail, list) else ():
        if isinstance(problem, Mapping) and problem.get("type") == "extra_forbidden":
            place = problem.get("loc")
            if isinstance(place, list | tuple):
                return ".".join(str(part) for part in place if part != "body")
    return None


def _named(param: str) -> str | None:
    """Our word for a parameter. What is inside of a message or a tool is no parameter that could be left out."""
    if not re.fullmatch(_NAME, param) or re.match(r"(?:messages|input|tools)[.\[]", param):
        return None
    name = re.sub(r"(?<=[a-z])([A-Z])", r"_\1", param).lower()
    if name in _THINKING_NAMES:
        return THINKING
    return name
