"""An order in which nobody is starved but by who comes before him on purpose: lower priorities first; in each of them
first come, first served among the places of one principal, and the principals in turn."""

from __future__ import annotations

from bisect import insort
from collections import Counter, OrderedDict
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar


class OfPrincipal(Protocol):
    @property
    def principal(self) -> str: ...
    @property
    def priority(self) -> int: ...


P = TypeVar("P", bound=OfPrincipal)


class FairQueue(Generic[P]):
    """Whoever serves takes the first of the iteration that it can: all places of the lowest priority, of these all of
    the principal whose turn it is, then those of the next one. A principal of which a place was served goes behind the
    others, so one that only waits for other models loses nothing."""

    def __init__(self) -> None:
        # By priority, of each principal its places; the principal that is next comes first.
        self._waiting: dict[int, OrderedDict[str, OrderedDict[P, None]]] = {}
        self._priorities: list[int] = []
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def push(self, place: P, *, first: bool = False) -> None:
        """Puts a place behind the others of its principal. `first`: before all others of its priority; it was served,
        and comes back."""
        waiting = self._waiting.get(place.priority)
        if waiting is None:
            waiting = self._waiting[place.priority] = OrderedDict()
            insort(self._priorities, place.priority)
        places = waiting.setdefault(place.principal, OrderedDict())
        places[place] = None
        self._length += 1
        if first:
            places.move_to_end(place, last=False)
            waiting.move_to_end(place.principal, last=False)

    def remove(self, place: P, *, served: bool = False) -> None:
        """Takes a place out, if it is still in. `served`: it is another principal's turn then."""
        waiting = self._waiting.get(place.priority)
        places = None if waiting is None else waiting.get(place.principal)
        if waiting is None or places is None or place not in places:
            return
        del places[place]
        self._length -= 1
        if places:
            if served:
                waiting.move_to_end(place.principal)
            return
        del waiting[place.principal]
        if not waiting:
            del self._waiting[place.priority]
            self._priorities.remove(place.priority)

    def __contains__(self, place: P) -> bool:
        waiting = self._waiting.get(place.priority)
        return waiting is not None and place in waiting.get(place.principal, ())

    def __iter__(self) -> Iterator[P]:
        """The places in the order in which they may be served. One that is served may be removed meanwhile."""
        for priority in list(self._priorities):
            for places in list(self._waiting.get(priority, {}).values()):
                yield from list(places)

    def position(self, place: P) -> int:
        """How many would be served before it, if all could be."""
        waiting = self._waiting[place.priority]
        before = sum(
            len(places)
            for priority in self._priorities
            if priority < place.priority
            for places in self._waiting[priority].values()
        )
        turns = list(waiting[place.principal]).index(place) + 1
        for principal, places in waiting.items():
            if principal == place.principal:
                turns -= 1  # From its own principal on, each has had one turn less.
            before += min(len(places), turns)
        return before

    def counts(self) -> dict[str, int]:
        """How many wait, by principal."""
        counts: Counter[str] = Counter()
        for waiting in self._waiting.values():
            counts.update({principal: len(places) for principal, places in waiting.items()})
        return dict(counts)
