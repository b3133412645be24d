"""How often something was deleted: what a process keeps in memory of a shared database is right only while this number
stands."""

from __future__ import annotations

from typing import Protocol


class Deletions(Protocol):
    """A count that only grows, over all processes that share a database: what was read before it grew may be wrong
    after. A process sees its own deletions at once, those of others as soon as its cluster can show them."""

    @property
    def value(self) -> int:
        """How many were deleted so far."""
        ...

    def add(self, deleted: int) -> None:
        """Counts so many deleted responses or conversations."""
        ...


class OwnDeletions:
    """The count of a process that shares its database with nobody."""

    def __init__(self) -> None:
        self.value = 0

    def add(self, deleted: int) -> None:
        """Counts so many deleted responses or conversations."""
        self.value += deleted
