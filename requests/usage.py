"""Token counts, as each server spells them.

    chat usage ──usage_chat_to_responses──▶ usage of a response ◀──whole_usage── usage of a server that speaks Responses

DeepSeek, Moonshot, SGLang, Groq, Anthropic's relatives and others have keys of their own for what OpenAI has in its
details; a count may be a text or a float.
"""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import msgspec

from core.json import Json

Usage = Json

# Where servers put how many of the input tokens were cached, how many were written to a cache, and how many of the
# output were thought: in the details, or beside the counts. The first that is not zero counts.
CACHED = (
    "cached_tokens",
    "cache_read_tokens",
    "prompt_cache_hit_tokens",
    "cache_read_input_tokens",
    "num_cached_tokens",
)
WRITTEN = ("cache_write_tokens", "cache_creation_tokens", "cache_creation_input_tokens", "cached_creation_tokens")
THOUGHT = ("reasoning_tokens", "thinking_tokens", "thoughts_tokens")
DETAILS = ("prompt_tokens_details", "completion_tokens_details", "input_tokens_details", "output_tokens_details")
# A larger count is none: databases and JavaScript take no more.
LARGEST = 2**53
Count = Annotated[int, msgspec.Meta(ge=0, le=LARGEST)]


class CountedUsage(Json):
    """A chat usage in OpenAI's keys, whose counts are counts. It has the SDK's way of asking for a plain dict."""

    def model_dump(self) -> Usage:
        """Itself."""
        return self


class OpenAIsUsage(msgspec.Struct, forbid_unknown_fields=True):
    """A usage of OpenAI's chat completions."""

    prompt_tokens: Count
    completion_tokens: Count
    total_tokens: Count = 0
    prompt_tokens_details: Json | None = None
    completion_tokens_details: Json | None = None


class InputDetails(msgspec.Struct):
    cached_tokens: Count | None = None
    cache_write_tokens: Count | None = None


class OutputDetails(msgspec.Struct):
    reasoning_tokens: Count | None = None


class ResponsesUsage(msgspec.Struct):
    """A usage of Responses, which may lack what is new."""

    input_tokens: Count
    output_tokens: Count
    total_tokens: Count
    input_tokens_details: InputDetails
    output_tokens_details: OutputDetails


class Tokens(NamedTuple):
    """The counts of a request. `cached` are a part of the input, `reasoning` of the output."""

    input: int = 0
    cached: int = 0
    output: int = 0
    reasoning: int = 0


NO_TOKENS = Tokens()


def tokens_of(usage: Usage) -> Tokens:
    """Those of the usage of a response, whose details may be left out."""
    read, written = usage.get("input_tokens_details"), usage.get("output_tokens_details")
    return Tokens(
        usage["input_tokens"],
        (read.get("cached_tokens") or 0) if read else 0,
        usage["output_tokens"],
        (written.get("reasoning_tokens") or 0) if written else 0,
    )


def tokens_of_chat(usage: object) -> Tokens | None:
    """Those of the usage of a chat completion, or of embeddings, however its server spells it; None for what is no
    usage."""
    try:
        plain = msgspec.convert(usage, OpenAIsUsage)
    except msgspec.ValidationError:
        pass
    else:
        if not (plain.prompt_tokens_details or plain.completion_tokens_details):
            return Tokens(plain.prompt_tokens, 0, plain.completion_tokens)
    counts = usage_chat_to_responses(chat_usage(usage))
    return tokens_of(counts) if counts else None


def usage_chat_to_responses(usage: Usage | None) -> Usage | None:
    """Token counts. The detail objects are given, zeros included, exactly where the chat usage has any details."""
    if not usage:
        return None
    if type(usage) is not CountedUsage and not _is_openais(usage):
        usage = _in_openais_words(usage)
    input_tokens, output_tokens = usage["prompt_tokens"], usage["completion_tokens"]
    counts: Usage = {
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        "total_tokens": usage.get("total_tokens") or input_tokens + output_tokens,
    }
    if "prompt_tokens_details" in usage or "completion_tokens_details" in usage:
        prompt, completion = usage.get("prompt_tokens_details"), usage.get("completion_tokens_details")
        counts["input_tokens_details"] = {
            "cached_tokens": _first_count(prompt, CACHED) if prompt else 0,
            "cache_write_tokens": _first_count(prompt, WRITTEN) if prompt else 0,
        }
        counts["output_tokens_details"] = {"reasoning_tokens": _first_count(completion, THOUGHT) if completion else 0}
    return counts


def chat_usage(usage: object) -> CountedUsage | None:
    """The chat usage of a real server, in OpenAI's keys: whole counts, and always with both details, so that strict
    clients get the detail objects. None for what is no usage."""
    if not isinstance(usage, dict) or not usage:
        return None
    whole = usage if _is_openais(usage) else _in_openais_words(usage)
    return CountedUsage({"prompt_tokens_details": None, "completion_tokens_details": None, **whole})


def summed_usage(first: Usage | None, second: Usage | None) -> Usage | None:
    """Two chat usages as one: of a turn that asked its backend twice."""
    if not first or not second:
        return first or second
    total = dict(second)
    for key, value in first.items():
        if isinstance(value, dict):
            total[key] = summed_usage(value, second.get(key))
        elif isinstance(value, int):
            total[key] = value + (second.get(key) or 0)
    return total


def whole_usage(usage: Any) -> Usage | None:
    """The usage of a server that speaks Responses, with every key that strict clients need; what else it has stays.
    None for what is no usage."""
    try:
        given = msgspec.convert(usage, ResponsesUsage)
    except msgspec.ValidationError:
        counts = usage_chat_to_responses(chat_usage(usage))
        if counts is None:
            return None
        for key in ("input_tokens_details", "output_tokens_details"):
            counts[key] = {**_object(usage, key), **counts[key]}
        return {**usage, **counts}
    whole: Usage = usage
    read = given.input_tokens_details
    if read.cached_tokens is None or read.cache_write_tokens is None:
        counts = {"cached_tokens": read.cached_tokens or 0, "cache_write_tokens": read.cache_write_tokens or 0}
        whole = {**whole, "input_tokens_details": {**usage["input_tokens_details"], **counts}}
    if given.output_tokens_details.reasoning_tokens is None:
        whole = {**whole, "output_tokens_details": {**usage["output_tokens_details"], "reasoning_tokens": 0}}
    return whole


def _is_openais(usage: Usage) -> bool:
    """Whether a usage is as OpenAI's are, and has nothing else, as nearly all are."""
    try:
        msgspec.convert(usage, OpenAIsUsage)
    except msgspec.ValidationError:
        return False
    return True


def _in_openais_words(usage: Usage) -> Usage:
    input_tokens = _first_count(usage, ("prompt_tokens", "input_tokens"))
    output_tokens = _first_count(usage, ("completion_tokens", "output_tokens"))
    whole: Usage = {
        "prompt_tokens": input_tokens,
        "completion_tokens": output_tokens,
        "total_tokens": count_of(usage.get("total_tokens")) or input_tokens + output_tokens,
    }
    if any(key in usage for key in (*DETAILS, *CACHED, *WRITTEN, *THOUGHT)):
        prompt = _object(usage, "prompt_tokens_details", "input_tokens_details")
        completion = _object(usage, "completion_tokens_details", "output_tokens_details")
        whole["prompt_tokens_details"] = {
            "cached_tokens": _first_count(prompt, CACHED) or _first_count(usage, CACHED),
            "cache_write_tokens": _first_count(prompt, WRITTEN) or _first_count(usage, WRITTEN),
        }
        whole["completion_tokens_details"] = {
            "reasoning_tokens": _first_count(completion, THOUGHT) or _first_count(usage, THOUGHT)
        }
    return whole


def count_of(value: object) -> int:
    """A number of tokens, however it is spelled. Zero for what is not one."""
    if isinstance(value, bool):
        return 0
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return 0
    if isinstance(value, int | float) and 0 <= value <= LARGEST:
        return int(value)
    return 0


def _first_count(usage: Usage, keys: tuple[str, ...]) -> int:
    if type(usual := usage.get(keys[0])) is int and 0 < usual <= LARGEST:
        return usual
    return next((count for key in keys if key in usage and (count := count_of(usage[key]))), 0)


def _object(usage: Usage, *keys: str) -> Usage:
    return next((value for key in keys if isinstance(value := usage.get(key), dict)), {})
