"""An order in which nobody is starved: first come, first served among the places of one principal, and the principals
in turn."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar


class OfPrincipal(Protocol):
    @property
    def principal(self) -> str: ...


P = TypeVar("P", bound=OfPrincipal)


class FairQueue(Generic[P]):
    """Whoever serves takes the first of the iteration that it can: all places of the principal whose turn it is, then
    those of the next one. A principal of which a place was served goes behind the others, so one that only waits for
    other models loses nothing."""

    def __init__(self) -> None:
        # Of each principal, its places; the principal that is next comes first.
        self._waiting: OrderedDict[str, OrderedDict[P, None]] = OrderedDict()
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def push(self, place: P, *, first: bool = False) -> None:
        """Puts a place behind the others of its principal. `first`: before all others; it was served, and comes
        back."""
        places = self._waiting.setdefault(place.principal, OrderedDict())
        places[place] = None
        self._length += 1
        if first:
            places.move_to_end(place, last=False)
            self._waiting.move_to_end(place.principal, last=False)

    def remove(self, place: P, *, served: bool = False) -> None:
        """Takes a place out, if it is still in. `served`: it is another principal's turn then."""
        places = self._waiting.get(place.principal)
        if places is None or place not in places:
            return
        del places[place]
        self._length -= 1
        if not places:
            del self._waiting[place.principal]
        elif served:
            self._waiting.move_to_end(place.principal)

    def __contains__(self, place: P) -> bool:
        return place in self._waiting.get(place.principal, ())

    def __iter__(self) -> Iterator[P]:
        """The places in the order in which they may be served. One that is served may be removed meanwhile."""
        for places in list(self._waiting.values()):
            yield from list(places)

    def position(self, place: P) -> int:
        """How many would be served before it, if all could be."""
        before, turns = 0, list(self._waiting[place.principal]).index(place) + 1
        for principal, places in self._waiting.items():
            if principal == place.principal:
                turns -= 1  # From its own principal on, each has had one turn less.
            before += min(len(places), turns)
        return before

    def counts(self) -> dict[str, int]:
        """How many wait, by principal."""
        return {principal: len(places) for principal, places in self._waiting.items()}
