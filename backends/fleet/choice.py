"""Who gets a request. Pure: it is given how everybody stands, and reads no clock.

answers, and does not fail → lowest priority number → is to be tried again after failures → model in memory
    → warm (the conversation was there), unless clearly busier → least busy for its size → any
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

# A warm endpoint is passed over when its load is more than this above that of the least busy one.
CLEARLY_BUSIER = 0.5


class Random(Protocol):
    def random(self) -> float: ...


@dataclass(slots=True)
class Candidate:
    """How an endpoint stands for a request. `allowed`: its breaker lets one through; `probe`: and wants one,
    to find out. `model` is its name there."""

    endpoint: str
    model: str
    in_flight: int
    max_concurrent: int
    priority: int = 0
    weight: float = 1.0
    loaded: bool = False
    healthy: bool = True
    allowed: bool = True
    probe: bool = False

    @property
    def is_free(self) -> bool:
        """Whether it has a slot."""
        return self.in_flight < self.max_concurrent

    @property
    def is_well(self) -> bool:
        """Whether it answers, and its breaker lets a request through."""
        return self.healthy and self.allowed

    @property
    def load(self) -> float:
        """What share of its size is taken, with weight counted in."""
        return self.in_flight / (self.max_concurrent * self.weight)


def choose(candidates: Sequence[Candidate], warm: str | None, random: Random) -> Candidate | None:
    """The endpoint for a request, of those with a free slot; None if it has to wait for one. `warm` is where its
    prefix was last. One that is down, or that its breaker guards, gets a request only if all are: then any is as
    good a guess."""
    well = [candidate for candidate in candidates if candidate.is_well]
    free = [candidate for candidate in (well or candidates) if candidate.is_free]
    if len(free) < 2:
        return free[0] if free else None
    first = min(candidate.priority for candidate in free)
    free = [candidate for candidate in free if candidate.priority == first]
    for candidate in free:
        if candidate.probe:
            return candidate
    if loaded := [candidate for candidate in free if candidate.loaded]:
        free = loaded
    least = min(candidate.load for candidate in free)
    for candidate in free:
        if candidate.endpoint == warm and candidate.load <= least + CLEARLY_BUSIER:
            return candidate
    equal = [candidate for candidate in free if candidate.load == least]
    if len(equal) == 1:
        return equal[0]
    # The first of several random arrivals: each is it as often as its weight asks.
    return min(equal, key=lambda candidate: -math.log(1.0 - random.random()) / candidate.weight)


class Affinity:
    """Where what was last: a bounded map from names (of conversations, of prefixes) to endpoints."""

    def __init__(self, max_entries: int, max_age_s: float) -> None:
        self._max_entries = max_entries
        self._max_age_s = max_age_s
        self._places: OrderedDict[str, tuple[str, float]] = OrderedDict()

    def get(self, name: str, now: float) -> str | None:
        """The endpoint that served a conversation last, by the name of that, unless it is too long ago."""
        place = self._places.get(name)
        return place[0] if place and now - place[1] <= self._max_age_s else None

    def put(self, name: str, endpoint: str, now: float) -> None:
        """Remembers the endpoint that serves a conversation; the oldest one is forgotten for it."""
        self.put_all((name,), endpoint, now)

    def put_all(self, names: Iterable[str], endpoint: str, now: float) -> None:
        """The same for what has several names."""
        places, place = self._places, (endpoint, now)
        for name in names:
            places[name] = place
            places.move_to_end(name)
        while len(places) > self._max_entries:
            places.popitem(last=False)
