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
    """Iterating goes in fair order: the first of each key, then the second of each, and so on. A key whose entry was served
    goes behind the others."""

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
        rows = [list(entries) for entries in self._waiting.values()]
        for place in range(max(map(len, rows), default=0)):
            for row in rows:
                if place < len(row):
                    yield row[place]

    def counts(self) -> dict[str, int]:
        """How many wait, by key."""
        return {key: len(entries) for key, entries in self._waiting.items()}
