"""Who waits for a slot in which process, as one of those that share a Valkey knows it: looking reads memory alone.
While the server is away it is what the process, or its machine, knows by itself (`inner`)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from cluster import valkey_counting as counting
from cluster.membership import Membership
from cluster.protocol import SharedLine

# How long a slot is left to another process in which somebody has waited longer: a wake-up takes a tenth of it.
GIVE_WAY_S = 0.02
# How many wait here is known to the others as of so long ago.
LINE_LAG_S = 0.01


class ReplicaLine(SharedLine):
    """Who waits in which process, since when by the server's clock."""

    def __init__(self, inner: SharedLine, membership: Membership) -> None:
        self._inner = inner
        self._membership = membership
        self._waiting = 0
        self._since_s = 0.0
        self._others: dict[str, tuple[int, int]] = {}
        self._on_wake: Callable[[], None] | None = None
        self._announcing: asyncio.Handle | None = None
        # Whether there are other processes.
        self.has_others = False

    @property
    def give_way_s(self) -> float:  # type: ignore[override]
        if self._membership.is_joined:
            return GIVE_WAY_S if self.has_others else 0.0
        return self._inner.give_way_s

    def announce(self, waiting: int, since_s: float) -> None:
        self._inner.announce(waiting, since_s)
        is_other = since_s != self._since_s if waiting else self._waiting > 0
        self._waiting, self._since_s = waiting, since_s if waiting else 0.0
        if not self._membership.is_joined or (self._announcing is not None and not is_other):
            return
        if self._announcing is not None:
            self._announcing.cancel()
        loop = asyncio.get_running_loop()
        # Who is first, and that nobody is, at once: it is why others stand back.
        self._announcing = loop.call_soon(self._send) if is_other else loop.call_later(LINE_LAG_S, self._send)

    def own(self) -> tuple[int, int]:
        """How many wait here, and since when, in µs of the server's time."""
        return self._waiting, self._membership.server_us(self._since_s) if self._waiting else 0

    def elsewhere(self) -> int:
        if not self._membership.is_joined:
            return self._inner.elsewhere()
        return sum(waiting for waiting, _ in self._others.values())

    def is_first(self) -> bool:
        if not self._membership.is_joined:
            return self._inner.is_first()
        if not self._waiting:
            return not self._others
        mine = self._membership.server_us(self._since_s)
        return all(mine <= since for _, since in self._others.values())

    def wake(self) -> None:
        if not self._membership.is_joined:
            self._inner.wake()
        elif self._others and not self._membership.has_ended:
            self._membership.send(counting.WAKE)

    def listen(self, on_wake: Callable[[], None]) -> None:
        self._inner.listen(on_wake)
        self._on_wake = on_wake

    def stop_listening(self) -> None:
        self._inner.stop_listening()
        self._on_wake = None
        if self._announcing is not None:
            self._announcing.cancel()

    def woken(self) -> None:
        """A slot may be free for whoever waits here."""
        if self._waiting and self._on_wake is not None:
            self._on_wake()

    def is_busy(self) -> bool:
        """Whether anybody waits here."""
        return self._waiting > 0

    def hear(self, sender: str, waiting: int, since_us: int) -> None:
        """Who waits in another process."""
        if waiting:
            self._others[sender] = waiting, since_us
        else:
            self._others.pop(sender, None)

    def hear_all(self, lines: dict[str, str]) -> None:
        """Who waits in all of them: by process how many, and since when."""
        others = {who: line.split() for who, line in lines.items() if who != self._membership.id}
        self._others = {who: (int(waiting), int(since_us)) for who, (waiting, since_us) in others.items()}

    def lost(self) -> None:
        """Nothing is known of others any more."""
        self._others.clear()

    def _send(self) -> None:
        self._announcing = None
        self._membership.send(counting.LINE, *self.own())
        if self._waiting:
            # A slot may have come free before anybody knew that somebody waits here.
            self._membership.look_at_requests()
