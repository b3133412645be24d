"""What a model thinks and answers in the parts of a content, as each server writes them.

Mistral       {"type": "thinking", "thinking": [{"type": "text", "text": "I add."}]}
Anthropic's   {"type": "thinking", "thinking": "I add.", "signature": "…"}
OpenRouter    {"type": "reasoning.text", "text": "I add."}, {"type": "reasoning.summary", "summary": "I add."}
all           {"type": "text", "text": "Four."}
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from core.json import Json
from requests.chat_types import Delta

Voice = Literal["thought", "text", "refusal"]

# Where a part holds its text.
_TEXT_KEYS = ("text", "content", "output_text")
_THOUGHT_KEYS = ("thinking", "reasoning", "reasoning_content", "thought", "summary", "text", "content")


def texts_in(content: object, voice: Voice = "text", depth: int = 8) -> Iterator[tuple[Voice, str]]:
    """The texts in the parts of a content, in their order, and what each is: `voice`, where a part does not name it.
    Parts may have parts, up to this `depth`."""
    if isinstance(content, str):
        if content:
            yield voice, content
    elif isinstance(content, list) and depth:
        for part in content:
            yield from texts_in(part, voice, depth - 1)
    elif isinstance(content, dict) and depth:
        voice, keys = _kind_of(content, voice)
        inner = next((content[key] for key in keys if isinstance(content.get(key), str | list | dict)), None)
        yield from texts_in(inner, voice, depth - 1)


def _kind_of(part: Json, voice: Voice) -> tuple[Voice, tuple[str, ...]]:
    """What the text of a part is, and the keys that may hold it."""
    kind = part.get("type")
    name = kind if isinstance(kind, str) else ""
    if name == "refusal":
        return "refusal", ("refusal", *_TEXT_KEYS)
    names_thought = name.startswith(("thinking", "reasoning", "thought")) or part.get("thought") is True
    if names_thought or voice == "thought" or (not name and "thinking" in part):
        return "thought", _THOUGHT_KEYS
    return voice, _TEXT_KEYS


def thought_in(delta: Delta) -> str | None:
    """The thought of a delta, under whichever key: servers with several keys have the same in each."""
    return (
        delta.reasoning_content
        or delta.reasoning
        or delta.thinking
        or (thought_of(delta.thinking_blocks) if delta.thinking_blocks else None)
        or (thought_of(delta.reasoning_details) if delta.reasoning_details else None)
    )


def thought_of(parts: object) -> str:
    """The text of parts that are all thought. What is encrypted has none."""
    return "".join(text for voice, text in texts_in(parts, "thought") if voice == "thought")


def message_thought(message: Json) -> str:
    """The thought of a whole message, but for that in the parts of its content."""
    return next((thought for key in IN_ORDER if message.get(key) and (thought := thought_of(message[key]))), "")


# Where a message has its thought; the first that is not empty counts.
IN_ORDER = ("reasoning_content", "reasoning", "thinking", "thinking_blocks", "reasoning_details")
THOUGHT_KEYS = frozenset(IN_ORDER)
