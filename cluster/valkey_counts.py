"""The requests at endpoints, and to their models, as one of the processes that share a Valkey knows them: looking reads
memory alone. While the server is away they are what the process, or its machine, counts by itself (`inner`)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

from cluster import valkey_counting as counting
from cluster import valkey_scripts as scripts
from cluster.membership import Membership
from cluster.protocol import Drawing, InFlight, Warm
from cluster.valkey_quotas import ReplicaDrawing
from cluster.valkey_scripts import short
from core.valkey import Argument


class ReplicaCount:
    """The requests at an endpoint, or to one of its models, under the server's name of it: those of this process that
    were confirmed, and those of `others` as they were last heard of."""

    __slots__ = ("confirmed", "name", "others")

    def __init__(self, name: str) -> None:
        self.name = name
        self.confirmed = self.others = 0

    def hear(self, others: int) -> bool:
        """So many run there of others. Gives whether that is less than was known of."""
        is_less = others < self.others
        self.others = max(others, 0)
        return is_less


class ReplicaInFlight(ReplicaCount, InFlight):
    """The requests at the endpoint at `url`; besides those that count: the ones that were begun here and not confirmed
    yet. `on_count` gets the count of each of its models that is new."""

    __slots__ = ("_begun", "_drained", "_inner", "_membership", "_models", "_on_count", "_on_drain", "_url")

    def __init__(
        self,
        url: str,
        inner: InFlight,
        membership: Membership,
        on_drain: Callable[[bool], None],
        on_count: Callable[[ReplicaCount], None],
    ) -> None:
        super().__init__(short(url))
        self._url = url
        self._inner = inner
        self._membership = membership
        self._on_drain = on_drain
        self._on_count = on_count
        self._drained = False
        self._begun = 0
        self._models: dict[str, ReplicaCount] = {}

    def total(self) -> int:
        if not self._membership.is_joined:
            return self._inner.total()
        return self._begun + self.confirmed + self.others

    def elsewhere(self, model: str) -> int:
        return self.of(model).others

    def of(self, model: str) -> ReplicaCount:
        """The requests to one of its models."""
        if (count := self._models.get(model)) is None:
            count = self._models[model] = ReplicaCount(short(f"{self._url} {model}"))
            self._on_count(count)
        return count

    def begin(self) -> None:
        self._begun += 1
        self._inner.begin()

    async def confirm(
        self, limit: int, model: str = "", warm: Warm | None = None, drawing: Drawing | None = None
    ) -> InFlight | None:
        at_server = drawing if isinstance(drawing, ReplicaDrawing) else None
        places = [Destination(self, model)]
        words: list[Argument] = [self.name, limit, self.of(model).name]
        words += at_server.words() if at_server else (0,)
        if warm is not None:
            words.append(len(warm.others))
            for other, name, most in warm.others:
                assert isinstance(other, ReplicaInFlight)
                places.append(Destination(other, name))
                words += (other.name, most, other.of(name).name)
            words += (warm.above, *map(short, warm.names))
        asked = SlotQuestion(words, places, at_server, asyncio.get_running_loop().create_future())
        self._ask(asked)
        try:
            taken = await asked.answer
        except BaseException:
            if asked.answer.done() and not asked.answer.cancelled() and (taken := asked.answer.result()):
                # It came in the moment in which nobody waited for it any more: it is begun here, and no more than that.
                taken.requests._count(taken.model, -1)
                self._begun += 1
                if taken.requests is not self:
                    taken.requests._inner.end()
                    self._inner.begin()
                taken.requests.let_end(taken.model)
            raise
        return taken.requests if taken else None

    def withdraw(self) -> None:
        self._begun -= 1
        self._inner.withdraw()

    def end(self, model: str = "") -> None:
        self._count(model, -1)
        self._inner.end()
        self.let_end(model)

    def let_end(self, model: str) -> None:
        """The server hears that a request has ended which it has counted."""
        self._membership.ended(self.name)
        self._membership.ended(self.of(model).name)

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

    def _count(self, model: str, requests: int) -> None:
        self.confirmed += requests
        self.of(model).confirmed += requests

    def _ask(self, asked: SlotQuestion) -> None:
        if not self._membership.send(counting.TAKE, *asked.words, on_answer=partial(self._answered, asked)):
            self._count_here(asked)

    def _answered(self, asked: SlotQuestion, given: Any) -> None:
        if isinstance(given, Exception):
            self._count_here(asked)
        elif given[0] == scripts.UNKNOWN:
            self._membership.join()
            self._ask(asked)
        else:
            is_taken, others, place, *drawn = given
            if asked.drawing is not None:
                asked.drawing.hear(*drawn)
            taken = asked.places[place]
            taken.requests.hear(others)
            self._settle(asked, taken if is_taken else None)
            if is_taken and asked.answer.cancelled():
                taken.requests.let_end(taken.model)  # Whoever asked has gone.

    def _count_here(self, asked: SlotQuestion) -> None:
        """Nobody knows; this process counts for itself until somebody does."""
        has_room = asked.drawing is None or asked.drawing.count_here()
        self._settle(asked, asked.places[0] if has_room else None)

    def _settle(self, asked: SlotQuestion, taken: Destination | None) -> None:
        """It is one of those that run from now on, not only when whoever asked gets to hear of it."""
        if asked.answer.done():
            return
        if taken is not None:
            self._begun -= 1
            taken.requests._count(taken.model, 1)
            if taken.requests is not self:
                self._inner.withdraw()
                taken.requests._inner.begin()
        asked.answer.set_result(taken)


class Destination(NamedTuple):
    """Where a request may go: an endpoint, and what its model is called there."""

    requests: ReplicaInFlight
    model: str


class SlotQuestion(NamedTuple):
    """A question to the server: whether a request may go to the first of some places, or to another one of them. The
    answer is where it is; None where there is no slot for it."""

    words: Sequence[Argument]
    places: Sequence[Destination]
    drawing: ReplicaDrawing | None
    answer: asyncio.Future[Destination | None]


def total_of(requests: Iterable[ReplicaCount]) -> Iterable[tuple[str, int]]:
    """The confirmed ones of each count that has some."""
    return ((one.name, one.confirmed) for one in requests if one.confirmed)
