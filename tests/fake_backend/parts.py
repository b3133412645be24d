"""What a model says, in parts: words, thoughts, refusals and calls."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from tests.fake_backend.reply import Json


@dataclass(frozen=True, slots=True)
class Text:
    """Something said in words, under the delta's key for it."""

    text: str
    key: str = "content"
    logprobs: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call. `fragments` is the number of deltas for its arguments; 0 sends the whole call in one delta."""

    name: str
    arguments: str
    id: str | None = None
    index: int | None = None
    fragments: int = 3


@dataclass(frozen=True, slots=True)
class Interleaved:
    parts: "tuple[str | Text | Call, ...]"


Part = str | Text | Call | Interleaved


def reasoning(text: str, key: str = "reasoning_content") -> Text:
    """`key` is reasoning_content (llama.cpp, DeepSeek), or reasoning (Ollama, vLLM, OpenRouter)."""
    return Text(text, key)


def refusal(text: str) -> Text:
    return Text(text, "refusal")


def with_logprobs(text: str) -> Text:
    return Text(text, logprobs=True)


def call(
    name: str,
    arguments: Json | str = "{}",
    *,
    id: str | None = None,
    index: int | None = None,
    fragments: int = 3,
) -> Call:
    """A tool call; `id` and `index` follow from its place when they are not given."""
    text = arguments if isinstance(arguments, str) else orjson.dumps(arguments).decode()
    return Call(name, text, id, index, fragments)


def interleaved(*parts: str | Text | Call) -> Interleaved:
    """Said at the same time: a delta of each in turn."""
    return Interleaved(parts)


# ── taken apart ──────────────────────────────────────────────────────────────


def number_calls(parts: Iterable[Part]) -> Iterator[Part]:
    """The parts as objects, their calls with index and id."""
    count = 0

    def number(part: str | Text | Call) -> Text | Call:
        nonlocal count
        if isinstance(part, str):
            return Text(part)
        if isinstance(part, Text):
            return part
        count += 1
        index = count - 1 if part.index is None else part.index
        return Call(part.name, part.arguments, part.id or f"call_{count}", index, part.fragments)

    for part in parts:
        if isinstance(part, Interleaved):
            yield Interleaved(tuple(number(inner) for inner in part.parts))
        else:
            yield number(part)


def flattened(parts: Iterable[Part]) -> list[Text | Call]:
    flat: list[Any] = []
    for part in parts:
        flat.extend(part.parts if isinstance(part, Interleaved) else [part])
    return flat


def tokens(text: str) -> list[str]:
    """Words with the space before them; they join to the text."""
    return re.findall(r"\s*\S+|\s+$", text)


def fragments_of(part: Call) -> list[str]:
    if not part.fragments:
        return []
    size = -(-len(part.arguments) // part.fragments) or 1
    return [part.arguments[i : i + size] for i in range(0, len(part.arguments), size)]


def logprob_of(token: str) -> Json:
    best = {"token": token, "logprob": -0.25, "bytes": list(token.encode())}
    return best | {"top_logprobs": [best]}
