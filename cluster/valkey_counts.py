"""What one process knows of what all of them count in a Valkey: requests at endpoints, who waits, deletions. Looking
reads memory alone. While the server is away all of it is what the process, or its machine, counts by itself
(`inner`)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from hashlib import blake2b
from typing import Any

from cluster import valkey_counting as counting
from cluster import valkey_scripts as scripts
from cluster.membership import Membership
from cluster.protocol import InFlight, SharedLine, Warm
from core.valkey import Argument

# How long a slot is left to another process in which somebody has waited longer: a wake-up takes a tenth of it.
GIVE_WAY_S = 0.02
# How many wait here is known to the others as of so long ago.
LINE_LAG_S = 0.01


def short(name: str) -> str:
    """A name of any length, and with whatever password in it, as the server has it."""
    return blake2b(name.encode(), digest_size=9).hexdigest()


class ReplicaInFlight(InFlight):
    """The requests at an endpoint: those that were begun here and not confirmed yet, those that were, and those of
    others as they were last heard of."""

    __slots__ = ("_begun", "_drained", "_elsewhere", "_inner", "_membership", "_on_drain", "confirmed", "name")

    def __init__(self, name: str, inner: InFlight, membership: Membership, on_drain: Callable[[bool], None]) -> None:
        self.name = name
        self._inner = inner
        self._membership = membership
        self._on_drain = on_drain
        self._drained = False
        self._begun = self._elsewhere = self.confirmed = 0

    def total(self) -> int:
        if not self._membership.is_joined:
            return self._inner.total()
        return self._begun + self.confirmed + self._elsewhere

    def begin(self) -> None:
        self._begun += 1
        self._inner.begin()

    async def confirm(self, limit: int) -> bool:
        return await self._confirm(limit) is not None

    async def confirm_at_warmest(self, limit: int, warm: Warm) -> InFlight | None:
        others = [(other, most) for other, most in warm.others if isinstance(other, ReplicaInFlight)]
        places = [word for other, most in others for word in (other.name, most)]
        asked = (len(others), *places, warm.above, *map(short, warm.names))
        return await self._confirm(limit, asked, [other for other, _ in others])

    async def _confirm(
        self, limit: int, asked: Sequence[Argument] = (), others: Sequence[ReplicaInFlight] = ()
    ) -> ReplicaInFlight | None:
        answer: asyncio.Future[ReplicaInFlight | None] = asyncio.get_running_loop().create_future()
        self._ask((limit, *asked), others, answer)
        try:
            return await answer
        except BaseException:
            if answer.done() and not answer.cancelled() and (taken := answer.result()):
                # It came in the moment in which nobody waited for it any more: it is begun here, and no more than that.
                taken.confirmed -= 1
                self._begun += 1
                if taken is not self:
                    taken._inner.end()
                    self._inner.begin()
                self._membership.ended(taken.name)
            raise

    def withdraw(self) -> None:
        self._begun -= 1
        self._inner.withdraw()

    def end(self) -> None:
        self.confirmed -= 1
        self._inner.end()
        self._membership.ended(self.name)

    @property
    def draining(self) -> bool:
        return self._drained

    @draining.setter
    def draining(self, draining: bool) -> None:
        if draining != self._drained:
            self._drained = draining
            self._on_drain(draining)

    def hear_of_drain(self, draining: bool) -> None:
        """Another process has drained it, or not any more."""
        self._drained = draining

    def hear(self, elsewhere: int) -> bool:
        """So many run there of others. Gives whether that is less than was known of."""
        is_less = elsewhere < self._elsewhere
        self._elsewhere = max(elsewhere, 0)
        return is_less

    def _ask(
        self,
        asked: Sequence[Argument],
        others: Sequence[ReplicaInFlight],
        answer: asyncio.Future[ReplicaInFlight | None],
    ) -> None:
        heard = partial(self._answered, asked, others, answer)
        if not self._membership.send(counting.TAKE, self.name, *asked, on_answer=heard):
            self._settle(self, answer)

    def _answered(
        self,
        asked: Sequence[Argument],
        others: Sequence[ReplicaInFlight],
        answer: asyncio.Future[ReplicaInFlight | None],
        given: Any,
    ) -> None:
        if isinstance(given, Exception):
            # Nobody knows; this process counts for itself until somebody does.
            self._settle(self, answer)
        elif given[0] == scripts.UNKNOWN:
            self._membership.join()
            self._ask(asked, others, answer)
        else:
            taken = others[given[2] - 1] if given[2] else self
            taken.hear(given[1])
            if given[0]:
                if answer.done():
                    self._membership.ended(taken.name)  # Whoever asked has gone.
                else:
                    self._settle(taken, answer)
            elif not answer.done():
                answer.set_result(None)

    def _settle(self, taken: ReplicaInFlight, answer: asyncio.Future[ReplicaInFlight | None]) -> None:
        """It is one of those that run from now on, not only when whoever asked gets to hear of it."""
        if not answer.done():
            self._begun -= 1
            taken.confirmed += 1
            if taken is not self:
                self._inner.withdraw()
                taken._inner.begin()
            answer.set_result(taken)


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


def total_of(requests: Iterable[ReplicaInFlight]) -> Iterable[tuple[str, int]]:
    """The confirmed ones of each endpoint that has some."""
    return ((one.name, one.confirmed) for one in requests if one.confirmed)
