"""Who waits for a slot, and who gets one: a machine that is fed events and acts through its `Effects`. Pure: it has no
clock and no loop, `now` is what it is given with each event, in seconds of any clock that the processes of the service
have in common.

                    given_back, woken, changed
                               ▼
    arrive ──▶ [ places, in fair order ] ──▶ hand       a slot, to the first who can use it
       │                 │     └───────────▶ reject     who has waited too long      (time_passes)
       │                 └─ leave                       whose client has gone
       └─ is full ─────────────────────────▶ reject

Where other processes serve the same endpoints, their lines and this one are one (`SharedLine`): whoever has waited
longest goes first, of those of the lowest priority, in whichever process, and a slot that he does not take is anybody's
after `give_way_s`.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from enum import Enum
from operator import attrgetter
from typing import Generic, Protocol, TypeVar

from backends.fleet.fair_queue import FairQueue
from cluster.protocol import SharedLine

Wish = TypeVar("Wish")
Slot = TypeVar("Slot")
WishIn = TypeVar("WishIn", contravariant=True)


class Rejection(Enum):
    """Why a request gets no slot."""

    FULL = "full"
    TIMEOUT = "timeout"


class Effects(Protocol[WishIn, Slot]):
    """What a line asks of the world, and does to it."""

    def waits(self, wish: WishIn) -> bool:
        """Whether there is still somebody who wishes. Who is about to leave gets no slot."""
        ...

    def take(self, wish: WishIn) -> Slot | None:
        """A slot that is free and serves the wish, taken for it; None if there is none."""
        ...

    def hand(self, wish: WishIn, slot: Slot) -> None:
        """Gives a slot that was taken to whoever wishes for it, who waits no longer."""
        ...

    def reject(self, wish: WishIn, why: Rejection) -> None:
        """Lets whoever wishes know that there is no slot to be had. He waits no longer."""
        ...


@dataclass(eq=False, slots=True)
class Place(Generic[Wish]):
    """A place in a line. Wishes that are `alike` can be served by the same slots: where one cannot be served, none of
    them is tried. None: alike to no other."""

    principal: str
    wish: Wish
    alike: Hashable | None
    since: float
    deadline: float
    # A lower one comes first, whoever waits longer.
    priority: int = 0
    # It stands behind the end of a full line, and only until its deadline.
    is_over: bool = False


by_deadline = attrgetter("deadline")
PRIORITY_S = 1e6


class Line(Generic[Wish, Slot]):
    """Those who wait in this process. At most `most` may wait in all processes, for `timeout_s` each."""

    def __init__(
        self, effects: Effects[Wish, Slot], shared: SharedLine, *, most: float = math.inf, timeout_s: float = math.inf
    ) -> None:
        self.most = most
        self.timeout_s = timeout_s
        self._effects = effects
        self._shared = shared
        self._queue: FairQueue[Place[Wish]] = FairQueue()
        # Those in the queue and those behind its end.
        self._by_deadline: list[Place[Wish]] = []
        self._give_way_until = math.inf

    # ── what can be seen ─────────────────────────────────────────────────────────────────────────────────────────────

    def __len__(self) -> int:
        return len(self._queue)

    def __iter__(self) -> Iterator[Place[Wish]]:
        """Those who wait, in the order in which they may be served."""
        return iter(self._queue)

    def position(self, place: Place[Wish]) -> int:
        """How many would be served before it in this process, if all could be."""
        return self._queue.position(place)

    def waits(self, place: Place[Wish]) -> bool:
        """Whether a place is one of those that wait: who was handed a slot, or rejected, is not."""
        return place in self._queue

    def counts(self) -> dict[str, int]:
        """How many wait, by principal."""
        return self._queue.counts()

    @property
    def must_be_joined(self) -> bool:
        """Whether somebody who comes now may not look for a free slot himself: those who wait have a right to it, and
        hear of it a moment later. Where there is no other process, each free slot has been offered to them before."""
        return bool(self._shared.give_way_s) and len(self._queue) + self._shared.elsewhere() > 0

    @property
    def due(self) -> float:
        """When `time_passes` is to be called next; infinite if never."""
        return min(self._by_deadline[0].deadline, self._give_way_until) if self._by_deadline else self._give_way_until

    # ── events ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def arrive(self, principal: str, wish: Wish, alike: Hashable | None, now: float, priority: int = 0) -> Place[Wish]:
        """Somebody waits from now on. He may be handed a slot, or rejected, at once."""
        place = Place(principal, wish, alike, now, now + self.timeout_s, priority)
        if len(self._queue) + self._shared.elsewhere() < self.most:
            self._join(place, now)
        elif self._shared.give_way_s:
            # What is left over by those who wait, because they wait for something else, he may have.
            place.is_over, place.deadline = True, now + self._shared.give_way_s
            insort(self._by_deadline, place, key=by_deadline)
        else:
            self._effects.reject(wish, Rejection.FULL)
        return place

    def come_back(self, place: Place[Wish], now: float) -> None:
        """The slot that was handed to a place turned out to be another process's: it is the first to get one, and has
        waited all along."""
        self._join(place, now, first=True)

    def leave(self, place: Place[Wish]) -> None:
        """Somebody waits no more. Of whoever was handed a slot, or rejected, it is known already."""
        if self._forget(place):
            self._announce()

    def given_back(self, now: float) -> None:
        """A slot was given back in this process."""
        self._serve_in_turn(now)
        self._shared.wake()

    def woken(self, now: float) -> None:
        """A slot was given back in another process."""
        if self._serve_in_turn(now):
            self._shared.wake()  # There may be more than one, and whoever is next waits elsewhere.

    def changed(self) -> None:
        """More can be served than before, for a reason that each process finds out by itself: a model, a breaker, new
        settings."""
        while self._serve_one():
            pass

    def time_passes(self, now: float) -> None:
        """It is `due`, or later."""
        if self._give_way_until <= now:
            # Whoever is first waits for something else.
            self._give_way_until = math.inf
            self.changed()
        while self._by_deadline and (place := self._by_deadline[0]).deadline <= now:
            self._forget(place)
            if not place.is_over:
                self._announce()
                self._effects.reject(place.wish, Rejection.TIMEOUT)
            elif (slot := self._effects.take(place.wish)) is not None:
                self._effects.hand(place.wish, slot)
            else:
                self._effects.reject(place.wish, Rejection.FULL)

    # ── how ──────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _join(self, place: Place[Wish], now: float, *, first: bool = False) -> None:
        self._queue.push(place, first=first)
        insort(self._by_deadline, place, key=by_deadline)
        self._announce()
        if self._shared.give_way_s:
            # Another process may have given a slot back before it could know that somebody waits here.
            self._serve_in_turn(now)

    def _serve_in_turn(self, now: float) -> bool:
        """Hands out what is free, as long as nobody elsewhere has waited longer. Gives whether somebody got a slot."""
        got_one = False
        while len(self._queue):
            if not self._shared.is_first():
                self._give_way_until = min(self._give_way_until, now + self._shared.give_way_s)
                break
            if not self._serve_one():
                break
            got_one = True
        return got_one

    def _serve_one(self) -> bool:
        """Hands a free slot to the first who can use it, if there are any."""
        blocked: set[Hashable] = set()
        for place in self._queue:
            if (place.alike is not None and place.alike in blocked) or not self._effects.waits(place.wish):
                continue
            if (slot := self._effects.take(place.wish)) is not None:
                self._forget(place, served=True)
                self._announce()
                self._effects.hand(place.wish, slot)
                return True
            if place.alike is not None:
                blocked.add(place.alike)
        return False

    def _forget(self, place: Place[Wish], *, served: bool = False) -> bool:
        """Takes a place out. Gives whether it was in."""
        index = bisect_left(self._by_deadline, place.deadline, key=by_deadline)
        while index < len(self._by_deadline) and (other := self._by_deadline[index]).deadline == place.deadline:
            if other is place:
                del self._by_deadline[index]
                self._queue.remove(place, served=served)
                return True
            index += 1
        return False

    def _announce(self) -> None:
        """Lets the other processes know who waits here."""
        first = next(iter(self._queue), None)
        # Between the processes a priority is so much time that nobody waits it.
        since_s = first.since + first.priority * PRIORITY_S if first else 0.0
        self._shared.announce(len(self._queue), since_s)
