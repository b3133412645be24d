"""Conversations that went on lately, in memory: those that go on are not read from the database at all. For every
database.

begin ──▶ Begun ──commit, end──▶ warm ──get──▶ turns        a deletion, by whomever: nothing is warm any more
"""

from __future__ import annotations

from dataclasses import dataclass

from core.deletions import Deletions
from stores.rows import turn_of

# How much is kept, as JSON: as objects it would take three to six times that.
WARM_MB = 4

# The owner of a response, and its id.
Key = tuple[str, str]


@dataclass(slots=True)
class Begun:
    """What of a response is known before it has ended: of its input the JSON, and the ids of its items; and how many
    deletions there were before it was stored."""

    key: Key
    previous: Key | None
    input: bytes
    item_ids: list[str]
    deletions: int
    # What a conversation had before it is no chain of responses.
    conversation: str | None = None
    is_committed: bool = False

    def commit(self) -> None:
        """The response, as it began, is in the database."""
        self.is_committed = True


class WarmChains:
    """Conversations by their last response, the latest used last: the JSON of their turns (`rows.turn_of`). All are of
    now: after a deletion none that was there before it is sure any more."""

    def __init__(self, deletions: Deletions) -> None:
        self.deletions = deletions
        self._as_of: int | None = None
        self._chains: dict[Key, list[bytes]] = {}
        self._size = 0

    def get(self, key: Key) -> list[bytes] | None:
        """The turns of a conversation, oldest first."""
        chains = self._current()
        if warm := chains.pop(key, None):
            chains[key] = warm
        return warm

    def put(self, key: Key, turns: list[bytes], as_of: int) -> None:
        """Keeps a conversation that was read, or has gone on, when there were `as_of` deletions."""
        if as_of != self.deletions.value:
            return
        self.drop(key)
        self._chains[key] = turns
        self._size += _size_of(turns)
        while self._size > WARM_MB * 1024 * 1024:
            self.drop(next(iter(self._chains)))

    def drop(self, key: Key) -> list[bytes] | None:
        """Forgets a conversation; gives its turns, if they were kept."""
        if dropped := self._current().pop(key, None):
            self._size -= _size_of(dropped)
        return dropped

    def end(self, begun: Begun, output: bytes | None) -> None:
        """A response was stored as ended: its conversation takes the place of the one that it goes on from."""
        if not begun.is_committed or begun.conversation or begun.deletions != self.deletions.value:
            return
        turns = self.drop(begun.previous) if begun.previous else []
        if turns is not None:
            turns.append(turn_of(begun.input, output))
            self.put(begun.key, turns, begun.deletions)

    def _current(self) -> dict[Key, list[bytes]]:
        if self._as_of != self.deletions.value:
            self._as_of = self.deletions.value
            self._chains, self._size = {}, 0
        return self._chains


def _size_of(turns: list[bytes]) -> int:
    """How much memory a conversation takes, with what Python needs for each turn."""
    return sum(map(len, turns)) + 41 * len(turns) + 300
