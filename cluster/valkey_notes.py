"""What one process knows of what all of them have let each other know in a Valkey: small facts, and how often something
was deleted."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

from cluster import valkey_scripts as scripts
from cluster.membership import Membership
from cluster.protocol import SharedNotes
from core.deletions import Deletions
from core.valkey import ValkeyError


class ReplicaDeletions(Deletions):
    """The count of deletions at the server, and those of this process that it has not answered for yet."""

    def __init__(self, membership: Membership) -> None:
        self._membership = membership
        self._known = self._asked = self._unasked = 0
        self._asking: asyncio.Handle | None = None

    @property
    def value(self) -> int:
        return self._known + self._asked + self._unasked

    def add(self, deleted: int) -> None:
        if not self._membership.is_joined:
            self._known += deleted
            return
        self._unasked += deleted
        if self._asking is None:
            self._asking = asyncio.get_running_loop().call_soon(self._send)

    def hear(self, all_deleted: int) -> None:
        """So many were deleted ever, in all processes."""
        self._known = max(self._known, all_deleted)

    def lost(self) -> None:
        """What the server has not answered for counts from here on; it comes to know with the next JOIN."""
        self._known, self._asked, self._unasked = self.value, 0, 0

    def _send(self) -> None:
        self._asking = None
        deleted, self._unasked = self._unasked, 0
        if deleted:
            self._asked += deleted

            def answered(answer: Any) -> None:
                if not isinstance(answer, Exception):
                    self._asked -= deleted
                    self.hear(answer)
                elif isinstance(answer, ValkeyError):
                    self._asked -= deleted
                    self._known += deleted

            if not self._membership.send(scripts.DELETE, deleted, on_answer=answered):
                self._asked -= deleted
                self._known += deleted


class ReplicaNotes(SharedNotes):
    """What is known of the notes at the server."""

    def __init__(self, membership: Membership) -> None:
        self._membership = membership
        self.known: dict[str, str] = {}
        # Those that the server was not there for, and those that it has not answered for: what it sends meanwhile may
        # be older.
        self._unsent: set[str] = set()
        self._asked: Counter[str] = Counter()
        self._listeners: list[Callable[[str, str], None]] = []

    def set(self, name: str, text: str) -> None:
        self.known[name] = text
        if self._membership.send(scripts.NOTE, name, text, on_answer=partial(self._answered, name)):
            self._asked[name] += 1
        else:
            self._unsent.add(name)

    def listen(self, on_note: Callable[[str, str], None]) -> None:
        self._listeners.append(on_note)
        for name, text in list(self.known.items()):
            on_note(name, text)

    def now(self) -> float:
        return self._membership.server_us(time.monotonic()) / 1e6

    def hear(self, name: str, text: str) -> None:
        """Another process has set it."""
        if name not in self._unsent and name not in self._asked and self.known.get(name) != text:
            self.known[name] = text
            for listener in self._listeners:
                listener(name, text)

    def _answered(self, name: str, answer: Any) -> None:
        self._asked[name] -= 1
        if not self._asked[name]:
            del self._asked[name]
        if isinstance(answer, ConnectionError):
            self._unsent.add(name)

    def send_again(self) -> None:
        """The server is there again."""
        unsent, self._unsent = self._unsent, set()
        for name in unsent:
            self.set(name, self.known[name])
