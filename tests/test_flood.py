"""50 keys at once, of which one floods: in simulated time, over the line that the pool has. The others ask again a
while after each answer, as agents do."""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass
from itertools import count

import pytest

from backends.fleet.line import Line, Place, Rejection
from cluster.alone import OwnLine

SLOTS, TAKES_S, UNTIL_S = 8, 1.0, 600.0
OTHERS = 49


@dataclass(eq=False)
class Ask:
    """A request of a key, made at a time."""

    key: str
    at: float
    place: Place[Ask] | None = None
    is_handed: bool = False


class Fleet:
    """So many slots, which each request holds for a while. `waits` is how long each of the others has waited."""

    def __init__(self, pause_s: float, dice: random.Random) -> None:
        self.pause_s = pause_s
        self.now = 0.0
        self.waited: list[float] = []
        self.served_of_flood = 0
        self._dice = dice
        self._free = SLOTS
        self._events: list[tuple[float, int, Ask | None]] = []
        self._numbers = count()
        self.line: Line[Ask, str] = Line(self, OwnLine())

    # What the line does.

    def waits(self, wish: Ask) -> bool:
        return not wish.is_handed

    def take(self, wish: Ask) -> str | None:
        if not self._free:
            return None
        self._free -= 1
        return "a slot"

    def hand(self, wish: Ask, slot: str) -> None:
        wish.is_handed = True
        if wish.key == "flood":
            self.served_of_flood += 1
        else:
            self.waited.append(self.now - wish.at)
        ends_at = self.now + self._dice.expovariate(1 / TAKES_S)
        self.at(ends_at, None)
        if wish.key != "flood":
            self.ask_again(wish.key, ends_at)

    def reject(self, wish: Ask, why: Rejection) -> None:
        pytest.fail("nobody is refused")

    # What happens.

    def ask_again(self, name: str, since: float) -> None:
        """Somebody asks a while later."""
        if (when := since + self._dice.expovariate(1 / self.pause_s)) < UNTIL_S:
            self.at(when, Ask(name, when))

    def at(self, when: float, ask: Ask | None) -> None:
        """At that time somebody asks, or (None) a slot is given back."""
        heapq.heappush(self._events, (when, next(self._numbers), ask))

    def run(self) -> None:
        while self._events:
            self.now, _, ask = heapq.heappop(self._events)
            if ask is None:
                self._free += 1
                self.line.given_back(self.now)
            elif len(self.line) or (slot := self.take(ask)) is None:
                ask.place = self.line.arrive(ask.key, ask, "m", self.now)
            else:
                self.hand(ask, slot)


def waits(pause_s: float, flood: int, seed: int) -> tuple[list[float], int]:
    """How long the requests of the 49 waited, sorted; and how many of the flood were served."""
    fleet = Fleet(pause_s, random.Random(seed))
    for number in range(OTHERS):
        fleet.ask_again(f"key {number}", 0.0)
    for _ in range(flood):
        fleet.at(UNTIL_S / 2, Ask("flood", UNTIL_S / 2))
    fleet.run()
    return sorted(fleet.waited), fleet.served_of_flood


def p99(sorted_waits: list[float]) -> float:
    return sorted_waits[int(len(sorted_waits) * 0.99)]


@pytest.mark.parametrize("seed", range(2))
# With 49 that ask, of 8 slots: two thirds, all, and more than there are.
@pytest.mark.parametrize("pause_s", [8.0, 5.0, 2.0])
def test_who_floods_with_1000_requests_does_not_double_the_wait_of_the_others(pause_s: float, seed: int) -> None:
    calm, _ = waits(pause_s, 0, seed)
    flooded, served = waits(pause_s, 1000, seed)
    assert served == 1000
    # Where there were free slots before, there are none now: everybody waits for one that is given back.
    assert p99(flooded) < max(2 * p99(calm), 2 * TAKES_S)
