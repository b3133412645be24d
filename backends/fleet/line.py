"""Who waits for a slot: first come, first served among the requests of one key, and the keys in turn."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(eq=False, frozen=True, slots=True)
class Entry(Generic[T]):
    """A place in the queue."""

    key: str
    payload: T


class FairQueue(Generic[T]):
    """Whoever serves takes the first of the iteration that it can: all entries of the key whose turn it is, then those of the
    next key. A key whose entry was served goes behind the others, so one that only waits for other models loses nothing."""

    def __init__(self) -> None:
        # Of each key, those who wait; the key that is next comes first.
        self._waiting: OrderedDict[str, OrderedDict[Entry[T], None]] = OrderedDict()
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def push(self, key: str, payload: T) -> Entry[T]:
        entry = Entry(key, payload)
        self._waiting.setdefault(key, OrderedDict())[entry] = None
        self._length += 1
        return entry

    def remove(self, entry: Entry[T], *, served: bool = False) -> None:
        """Takes an entry out, if it is still in. `served`: it is another key's turn then."""
        entries = self._waiting.get(entry.key)
        if entries is None or entry not in entries:
            return
        del entries[entry]
        self._length -= 1
        if not entries:
            del self._waiting[entry.key]
        elif served:
            self._waiting.move_to_end(entry.key)

    def __iter__(self) -> Iterator[Entry[T]]:
        for entries in list(self._waiting.values()):
            yield from list(entries)

    def position(self, entry: Entry[T]) -> int:
        """How many would be served before it, if all could be."""
        place = list(self._waiting[entry.key]).index(entry)
        before, turns = 0, place + 1
        for key, entries in self._waiting.items():
            if key == entry.key:
                turns -= 1  # From its own key on, each has had one turn less.
            before += min(len(entries), turns)
        return before

    def counts(self) -> dict[str, int]:
        """How many wait, by key."""
        return {key: len(entries) for key, entries in self._waiting.items()}
