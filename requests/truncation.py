"""Conversations that are too long for a backend: the oldest turns go.

A turn is a user message and all that follows it up to the next; a tool round is an assistant message with calls, its outputs, and the
message that shows the attachments of these. Whole turns go, or whole rounds of the last turn. What stays is in an order that
strict chat servers take.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain

from requests.messages import ATTACHED, Message

Block = list[Message]


def truncated(
    messages: list[Message], *, excess_tokens: int, tokens_of: Callable[[Message], int]
) -> list[Message] | None:
    """The messages without the oldest turns, at least `excess_tokens` shorter; then without the oldest tool rounds of the last
    turn. System texts, the last user message and the last round stay. None if that is not enough."""
    turns = _turns(messages)
    dropped: set[int] = set()
    left = excess_tokens
    droppable = [block for turn in turns[:-1] for block in [list(chain(*turn))]]
    if turns:
        # Of the last turn: what is between its user message and its last round.
        droppable += turns[-1][1:-1]
    for block in droppable:
        if left <= 0:
            break
        going = [message for message in block if message["role"] != "system"]
        dropped.update(map(id, going))
        left -= sum(map(tokens_of, going))
    if left > 0:
        return None
    return [message for message in messages if id(message) not in dropped]


def _turns(messages: list[Message]) -> list[list[Block]]:
    """The turns, each as blocks that only go whole: its user message, then its rounds and texts. What comes before the first
    user message, other than system texts, is a turn of its own."""
    turns: list[list[Block]] = []
    round_shows = False
    for message in messages:
        role = message["role"]
        if role == "system" and not turns:
            continue
        if role == "user" and not round_shows:
            turns.append([[message]])
        elif role in ("tool", "user"):
            turns[-1][-1].append(message)
        elif turns:
            turns[-1].append([message])
        else:
            turns.append([[], [message]])
        # The attachments of a round follow in one user message, behind its last output.
        round_shows = role == "tool" and (round_shows or ATTACHED in str(message["content"]))
    return turns
