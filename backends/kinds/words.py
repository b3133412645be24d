"""What a server's error means, read out of its words: every server has its own, and few have a code for it.

    Words      the words of a kind; COMMON: those that several have
    Lexicon    all of them at once, since a proxy hands on the words of whatever stands behind it
        overflow(message, error)      the request did not fit into the context
        roles(message)                the model's template does not take the roles of the messages as they are
        unsupported(message, error)   what the server or its model cannot do

`message` is the text of the error, `error` the object that held it, or whatever the body was. Pure; only the beginning
of a long text is read, and nothing of the text but numbers and a parameter's name is given on.
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

# What a model's template refuses: a system message, or one that is not the first; and an order in which user and
# assistant do not take turns.
SYSTEM, ORDER = "system", "order"
# What a server refuses that wants a text where an assistant message has null for its content, beside its calls.
NULL = "null"

NAME = r"([A-Za-z][\w.\[\]]{0,63})"
# The parameters that a server can do without; of these looser words are believed. Some are words of English, too.
HINT = (
    r"((?<=[\"'`])(?:metadata|store|user|verbosity)|max_completion_tokens|max_tokens|parallel_tool_calls|prompt_cache_key"
    r"|prompt_cache_retention|reasoning_effort|safety_identifier|service_tier|stream_options)"
)


@dataclass(frozen=True, slots=True)
class Overflow:
    """A request did not fit into the context. With `prompt` below `limit`, what was asked for as an answer made it too
    long."""

    limit: int | None = None
    # None too where the server stopped counting at its limit: vLLM's "at least".
    prompt: int | None = None


@dataclass(frozen=True)
class Words:
    """How the servers of a kind word their errors. Texts are in lower case; patterns have one group, but for those
    of roles."""

    # Of an overflow, and the patterns of its numbers.
    overflow: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    # The longest prompt that it could take: where it has counted one more, it has stopped counting.
    counted_up_to: tuple[str, ...] = ()
    # Patterns without a group: of a template that refuses a system message, or the order of the roles.
    system: tuple[str, ...] = ()
    order: tuple[str, ...] = ()
    # Patterns without a group: a content that is null is refused.
    nulls: tuple[str, ...] = ()
    # Of a model that is asked for what it is not there for: embeddings of one that chats, and the other way round.
    misused: tuple[str, ...] = ()
    # What it cannot do, and the patterns that name a parameter.
    cannot: tuple[tuple[str, str], ...] = ()
    parameters: tuple[str, ...] = ()


NO_WORDS = Words()
COMMON = Words(
    overflow=(
        "model_context_window_exceeded",  # Z.ai, and Anthropic's reason to stop
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
    # The words of the models' templates, which every engine hands on.
    system=(
        # Qwen 3.5 and newer, MiMo
        r"system (?:message|role|prompt)s? (?:must|should|can|may|is|are)(?: only)?(?: be| come| appear| allowed)*"
        r"(?: at| as)?(?: the)? (?:beginning|start|first)",
        r"system (?:role|messages?|prompts?) (?:is |are )?not supported",  # Gemma 2
        r"does not support (?:the )?'?system'? (?:role|message|prompt)",
        r"roles are supported, got (?:system|developer)",  # Mistral
        r"only user and assistant roles are supported",  # Mistral, Llama 2
        r"unexpected role [\"'`]*(?:system|developer)",  # Mistral's API, Anthropic
        r"expected last role .{0,80} got (?:system|developer)",  # Mistral's API, where it is the last
        r"no user query found in messages",  # Qwen 3.5, of a conversation of system messages alone
    ),
    order=(
        r"roles? (?:must|should) (?:be )?alternat",  # Gemma, Llama 2, Mistral; Anthropic; Perplexity
        r"must alternate between user and assistant",  # Bedrock
        r"must start with a user message",  # Bedrock
        r"unexpected role [\"'`]*user[\"'`]* after role [\"'`]*tool",  # Mistral's API, NIM
    ),
    nulls=(
        # Who checks with pydantic; OpenAI, and who checks with zod.
        r"\bmessages?\.\d{1,6}\.content: input should be a valid (?:string|list|array|dictionary)",
        r"\bcontent\b.{0,60}\bexpected (?:an? )?(?:string|array)[^.;]{0,40}(?:got|received|but got) null",
        r"\bcontent\b.{0,60}\binvalid type: null, expected",  # servers in Rust
        r"messages\.\d{1,6}\.content' : value must be a string",  # Groq, Cerebras
        r"invalid message content type: <nil>",  # Ollama before 0.5
        r"can only concatenate str \(not \"nonetype\"\) to str",  # a template that takes a text for granted
    ),
    misused=(
        "must be created with embedding=true",  # llama-cpp-python
        "does not support embeddings",  # llama.cpp, vLLM, Ollama
        "does not support chat",  # llama.cpp, vLLM, Ollama
        "does not support completions",  # llama.cpp, vLLM
        "does not support generate",  # Ollama
        "this model does not support generation",  # SGLang
        "is not an embedding model",  # LM Studio, SGLang
    ),
    cannot=(
        ("does not support tool", TOOLS),  # Ollama
        ("does not support image", IMAGES),  # LM Studio, Ollama's cloud, Gemini
        ("does not support multimodal", IMAGES),  # llama.cpp, Ollama 0.34 and newer
    ),
    parameters=(
        # Who checks with pydantic: its words, Fireworks' and NIM's of them, and the whole of it in a text.
        rf"extra inputs are not permitted, field: '{NAME}'",
        rf"\b{NAME}: extra inputs are not permitted",
        rf"extra_forbidden\W{{1,6}}loc\W{{1,8}}body\W{{1,6}}{NAME}",
        rf"unknown field:? [\"'`]?{NAME}",  # servers in Rust and Go
        rf"\"{NAME}\" is not allowed",  # who checks with joi
        rf"unrecognized key(?:\(s\)|s)?(?: in object)?: [\"']{NAME}",  # who checks with zod
        rf"additional properties are not allowed \('{NAME}'",  # who checks with JSON Schema
        rf"unexpected keyword argument '{NAME}'",  # servers in Python
        rf"\b{HINT}\b[\"'`]?(?: parameter| field| option)? (?:is|are) (?:not|un) ?(?:supported|allowed|accepted|known)",
        rf"(?:does not|doesn't|do not|cannot) support (?:the )?(?:parameter )?[\"'`]?{HINT}\b",
        rf"the [\"'`]?{HINT}[\"'`]? parameter is only allowed when",
    ),
)

# 256,000
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
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
        self._system = _patterns(pattern for one in words for pattern in one.system)
        self._order = _patterns(pattern for one in words for pattern in one.order)
        self._nulls = _patterns(pattern for one in words for pattern in one.nulls)
        self._misused = tuple(text for one in words for text in one.misused)
        self._cannot = tuple(pair for one in words for pair in one.cannot)
        self._parameters = _patterns(pattern for one in words for pattern in one.parameters)

    def overflow(self, message: str, error: Mapping[str, Any] | None = None) -> Overflow | None:
        """The overflow that an error is about, with the numbers in it, or None if it is about something else."""
        error = error or {}
        text = _THOUSANDS.sub("", message[:READ_CHARS].lower())
        if not _OVERFLOW_CODES.intersection(_codes(error)) and not any(words in text for words in self._overflow):
            return None
        limit = count(error.get("n_ctx")) or _first(self._limits, text)
        prompt = count(error.get("n_prompt_tokens")) or _first(self._prompts, text)
        if prompt and (longest := _first(self._counted_up_to, text)) and prompt == longest + 1:
            prompt = None
        return Overflow(limit, prompt)

    def roles(self, message: str) -> str | None:
        """What a model's template does not take of the roles: `SYSTEM` or `ORDER`; or `NULL`, where a message lacks a
        content. None if an error is not about them."""
        text = message[:READ_CHARS]
        if any(pattern.search(text) for pattern in self._system):
            return SYSTEM
        if any(pattern.search(text) for pattern in self._order):
            return ORDER
        return NULL if any(pattern.search(text) for pattern in self._nulls) else None

    def is_misused(self, message: str) -> bool:
        """Whether a model was asked for what it is not there for."""
        text = message[:READ_CHARS].lower()
        return any(words in text for words in self._misused)

    def unsupported(self, message: str, error: Mapping[str, Any] | None = None) -> str | None:
        """What the server or its model cannot do, by its error: `tools`, `images`, `audio`, `thinking`, or the name of
        a parameter. None if it is about something else."""
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


def problems_in(error: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What FastAPI's 422 complains of, each with its place: vLLM's, Mistral's, TGI's."""
    detail = error.get("detail")
    if isinstance(inner := error.get("message"), Mapping):
        detail = inner.get("detail", detail)
    return [problem for problem in detail if isinstance(problem, Mapping)] if isinstance(detail, list) else []


def place_of(problem: Mapping[str, Any]) -> str | None:
    """The field that such a complaint is about."""
    place = problem.get("loc")
    if not isinstance(place, list | tuple):
        return None
    return ".".join(str(part) for part in place if part != "body" and not is_tag(part)) or None


# pydantic's names for the members of a union: a class, a generic type, a kind of type.
_TAG = re.compile(
    r"[^a-z_0-9]|[^\n]*[\[({ ]"
    r"|(?:typed-dict|tagged-union|function-\w{1,20}|str|int|float|bool|list|dict|none|any|nullable)$"
)


def is_tag(part: object) -> bool:
    """Whether a part of a place names a member of a union, and not a key."""
    return isinstance(part, str) and _TAG.match(part) is not None


def _extra_input(error: Mapping[str, Any]) -> str | None:
    """The field that is too much."""
    extra = [problem for problem in problems_in(error) if problem.get("type") == "extra_forbidden"]
    return next(filter(None, map(place_of, extra)), None)


def _named(param: str) -> str | None:
    """Our word for a parameter. What is inside of a message or a tool is no parameter that could be left out."""
    if not re.fullmatch(NAME, param) or re.match(r"(?:messages|input|tools)[.\[]", param):
        return None
    name = re.sub(r"(?<=[a-z])([A-Z])", r"_\1", param).lower()
    if name in _THINKING_NAMES:
        return THINKING
    return name
