"""Messages for models whose templates are strict about roles: one system message at the beginning, user and assistant
in turns.

    system_as_user(messages)      a system text that comes later stays in its place, as a marked message of the user's
    system_items_as_user(items)   the same of a Responses input
    in_turns(messages)            neighbours of one role are one message, and nobody is left out

What stood before a message stays as it was, so that a server finds the prefix of the conversation that it has kept.
"""

from __future__ import annotations

from typing import Any

from core.json import Json

Message = Json

MARK = "<system>\n{}\n</system>"
# In nobody's words: where a template wants somebody to have spoken.
BEGINS, BETWEEN = "(The conversation goes on.)", "OK."


def leading_system(messages: list[Message]) -> int:
    """How many messages the system begins with."""
    return next((place for place, message in enumerate(messages) if message["role"] != "system"), len(messages))


def system_as_user(messages: list[Message], *, also_leading: bool = False) -> list[Message]:
    """The messages, with each system message behind the first as the user's; `also_leading`: with the first, too. The
    list itself, where there is none."""
    kept = 0 if also_leading else min(leading_system(messages), 1)
    if not any(message["role"] == "system" for message in messages[kept:]):
        return messages
    return [
        _marked(message) if place >= kept and message["role"] == "system" else message
        for place, message in enumerate(messages)
    ]


def _marked(message: Message) -> Message:
    content = message.get("content") or ""
    if isinstance(content, list):
        opening, closing = MARK.split("{}")
        return {"role": "user", "content": [_text(opening.strip()), *content, _text(closing.strip())]}
    return {"role": "user", "content": MARK.format(content)}


def system_items_as_user(items: list[Any], *, also_leading: bool = False) -> list[object]:
    """The items of a Responses input, with each system or developer message behind the first item as the user's;
    `also_leading`: with the first, too. The list itself, where there is none."""
    kept = 0 if also_leading else 1
    if not any(map(_is_system_item, items[kept:])):
        return items
    return [_marked_item(item) if place >= kept and _is_system_item(item) else item for place, item in enumerate(items)]


def _is_system_item(item: object) -> bool:
    return isinstance(item, dict) and item.get("role") in ("system", "developer")


def _marked_item(item: Json) -> Json:
    content = item.get("content") or ""
    parts = [{"type": "input_text", "text": content}] if isinstance(content, str) else content
    opening, closing = ({"type": "input_text", "text": mark.strip()} for mark in MARK.split("{}"))
    return {"type": "message", "role": "user", "content": [opening, *parts, closing]}


def in_turns(messages: list[Message]) -> list[Message]:
    """The messages as user and assistant in turns, tools between a call and what follows. The list itself, where they
    are."""
    turns: list[Message] = []
    for message in messages:
        role, last = message["role"], turns[-1]["role"] if turns else "system"
        if role == last and role in ("user", "assistant"):
            turns[-1] = _joined(turns[-1], message)
            continue
        if role == "assistant" and last == "system":
            turns.append({"role": "user", "content": BEGINS})
        elif role == "user" and last == "tool":
            turns.append({"role": "assistant", "content": BETWEEN})
        turns.append(message)
    return turns if len(turns) != len(messages) or any(map(_is_another, turns, messages)) else messages


def _is_another(one: Message, other: Message) -> bool:
    return one is not other


def _joined(first: Message, second: Message) -> Message:
    """Two messages of one role as one: texts below each other, parts and calls one behind the other."""
    joined = {**first, **second}
    for key in first.keys() & second.keys() - {"role"}:
        joined[key] = _joined_values(first[key], second[key])
    return joined


def _joined_values(first: object, second: object) -> Any:
    if not first or not second:
        return first or second
    if isinstance(first, str) and isinstance(second, str):
        return f"{first}\n\n{second}"
    if isinstance(first, str | list) and isinstance(second, str | list):
        return [*_parts(first), *_parts(second)]
    return second


def _parts(content: str | list[object]) -> list[object]:
    return [_text(content)] if isinstance(content, str) else content


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}
