"""What a server's error means, read out of its words: every server has its own, and few have a code for it.

    Words      the words of a kind; COMMON: those that several have
    Lexicon    all of them at once, since a proxy hands on the words of whatever stands behind it
        overflow(message, error)      the request did not fit into the context
        unsupported(message, error)   what the server or its model cannot do

`message` is the text of the error, `error` the object that held it, or whatever the body was. Pure; only the beginning of a long
text is read, and nothing of the text but numbers and a parameter's name is given on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from backends.kinds.server import count

READ_CHARS = 4000

# What a server or its model cannot do, where it is no parameter.
TOOLS, IMAGES, AUDIO, THINKING = "tools", "images", "audio", "thinking"

NAME = r"([A-Za-z][\w.\[\]]{0,63})"


@dataclass(frozen=True, slots=True)
class Overflow:
    """A request did not fit into the context. With `prompt` below `limit`, what was asked for as an answer made it too long."""

    limit: int | None = None
    # None too where the server stopped counting at its limit: vLLM's "at least".
    prompt: int | None = None


@dataclass(frozen=True)
class Words:
    """How the servers of a kind word their errors. Texts are in lower case, patterns have one group."""

    # Of an overflow, and the patterns of its numbers.
    overflow: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    # The longest prompt that it could take: where it has counted one more, it has stopped counting.
    counted_up_to: tuple[str, ...] = ()
    # What it cannot do, and the patterns that name a parameter.
    cannot: tuple[tuple[str, str], ...] = ()
    parameters: tuple[str, ...] = ()


NO_WORDS = Words()
COMMON = Words(
    overflow=(
        "maximum context length",  # OpenAI, vLLM, SGLang, OpenRouter, Mistral, llama-cpp-python
        "context_length_exceeded",  # OpenAI's code, in what a proxy made of it
        "prompt is too long",  # Ollama's cloud, Anthropic
    ),
    limits=(
        r"(\d{1,11}) maximum context length",  # Mistral
        r"maximum (?:context|prompt) length(?: is| of)? \(?(\d{1,11})",
    ),
    prompts=(
        r"(?:request|input) \((\d{1,11}) tokens\)",  # llama.cpp, SGLang
        r"(\d{1,11}) (?:tokens )?(?:in|from) (?:the|your) (?:input )?(?:messages|prompt)",
        r"(?:request has|prompt contains|passed) (\d{1,11}) input tokens",
        r"(?<!maximum )(?:prompt|input)(?: length| \(length| token count)?(?: of)? \(?(\d{1,11})",
    ),
    cannot=(
        ("does not support tool", TOOLS),  # Ollama
        ("does not support image", IMAGES),  # LM Studio, Ollama's cloud, Gemini
        ("does not support multimodal", IMAGES),  # llama.cpp, Ollama 0.34 and newer
    ),
    parameters=(
        rf"\b{NAME}: extra inputs are not permitted",  # who checks with pydantic
        rf"unknown field:? [\"'`]?{NAME}",  # servers in Rust and Go
    ),
)

_OVERFLOW_CODES = frozenset({"context_length_exceeded", "exceed_context_size_error", "model_context_window_exceeded"})
_UNSUPPORTED_CODES = frozenset({"unsupported_parameter", "unsupported_value", "unknown_parameter"})
_THINKING_NAMES = frozenset(
    {"think", "thinking", "reasoning", "reasoning_effort", "reasoning.effort", "reasoning.summary", "enable_thinking"}
)


class Lexicon:
    """The words of several kinds, and what they mean."""

    def __init__(self, *words: Words) -> None:
        self._overflow = tuple(text for one in words for text in one.overflow)
        self._limits = _patterns(pattern for one in words for pattern in one.limits)
        self._prompts = _patterns(pattern for one in words for pattern in one.prompts)
        self._counted_up_to = _patterns(pattern for one in words for pattern in one.counted_up_to)
        self._cannot = tuple(pair for one in words for pair in one.cannot)
        self._parameters = _patterns(pattern for one in words for pattern in one.parameters)

    def overflow(self, message: str, error: Mapping[str, Any] | None = None) -> Overflow | None:
        """The overflow that an error is about, with the numbers in it, or None if it is about something else."""
        error = error or {}
        text = message[:READ_CHARS].lower()
        if not _OVERFLOW_CODES.intersection(_codes(error)) and not any(words in text for words in self._overflow):
            return None
        limit = count(error.get("n_ctx")) or _first(self._limits, text)
        prompt = count(error.get("n_prompt_tokens")) or _first(self._prompts, text)
        if prompt and (longest := _first(self._counted_up_to, text)) and prompt == longest + 1:
            prompt = None
        return Overflow(limit, prompt)

    def unsupported(self, message: str, error: Mapping[str, Any] | None = None) -> str | None:
        """What an error says that the server or its model cannot do: `tools`, `images`, `audio`, `thinking`, or the name of a
        parameter. None if it says nothing of the kind."""
        error = error or {}
        text = message[:READ_CHARS]
        lower = text.lower()
        for words, what in self._cannot:
            if words in lower:
                return what
        param = error.get("param")
        if isinstance(param, str) and _UNSUPPORTED_CODES.intersection(_codes(error)):
            return _named(param)
        for pattern in self._parameters:
            if found := pattern.search(text):
                return _named(found[1].rstrip("."))
        return _named(_extra_input(error) or "")


def _patterns(sources: Iterable[str]) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(source, re.IGNORECASE) for source in sources)


def _codes(error: Mapping[str, Any]) -> list[str]:
    return [value for key in ("code", "type") if isinstance(value := error.get(key), str)]


def _first(patterns: tuple[re.Pattern[str], ...], text: str) -> int | None:
    return next((int(found[1]) for pattern in patterns if (found := pattern.search(text))), None)


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
    if not re.fullmatch(NAME, param) or re.match(r"(?:messages|input|tools)[.\[]", param):
        return None
    name = re.sub(r"(?<=[a-z])([A-Z])", r"_\1", param).lower()
    if name in _THINKING_NAMES:
        return THINKING
    return name
