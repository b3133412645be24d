"""Conversations that are too long for a backend: the oldest turns go.

A turn is a user message and all that follows it up to the next; a tool round is an assistant message with calls, its
outputs, and the message that shows the attachments of these. Whole turns go, or whole rounds of the last turn. What
stays is in an order that strict chat servers take.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain

from requests.messages import ATTACHED, Message
from requests.tokens import message_tokens

# Places in the list of messages.
Block = list[int]


def truncated(
    messages: list[Message], *, excess_tokens: int, tokens_of: Callable[[Message], int] = message_tokens
) -> list[Message] | None:
    """The messages without the oldest turns, at least `excess_tokens` shorter; then without the oldest tool rounds of
    the last turn. System texts, the last user message and the last round stay. None if that is not enough."""
    dropped: set[int] = set()
    left = excess_tokens
    for block in _droppable(messages):
        if left <= 0:
            break
        dropped.update(block)
        left -= sum(tokens_of(messages[place]) for place in block)
    if left > 0:
        return None
    return [message for place, message in enumerate(messages) if place not in dropped]


def _droppable(messages: list[Message]) -> list[Block]:
    """What may go, each as a whole, in the order in which it goes."""
    turns = _turns(messages)
    if not turns:
        return []
    rounds = [block for block in turns[-1] if block and messages[block[0]].get("tool_calls")]
    return [*(list(chain(*turn)) for turn in turns[:-1]), *rounds[:-1]]


def _turns(messages: list[Message]) -> list[list[Block]]:
    """The turns, each as its user message, then its rounds and texts. Answers before the first user message are a turn
    that has none. System texts are in no turn."""
    turns: list[list[Block]] = []
    shows = False
    for place, message in enumerate(messages):
        role = message["role"]
        if role == "system":
            continue
        if role == "user" and not (shows and isinstance(message["content"], list)):
            turns.append([[place]])
        elif role == "assistant":
            turns = turns or [[[]]]
            turns[-1].append([place])
        else:
            turns[-1][-1].append(place)
        # The attachments of a round follow in one user message, behind its last output.
        shows = role != "user" and ((role == "tool" and shows) or _is_attached(message["content"]))
    return turns


def _is_attached(content: object) -> bool:
    """Whether an output announces that attachments follow. One that only quotes those words is longer."""
    return isinstance(content, str) and (content == ATTACHED or content.endswith(f"\n{ATTACHED}"))
