"""The processes that serve together, as one of them sees it.

    in_flight     requests at each endpoint, over all processes: a limit of an endpoint holds for their sum
    line          who waits for a slot elsewhere: whoever has waited longest, in whichever process, goes first
    deletions     what was deleted anywhere is believed in nowhere
    quotas        what keys and owners have taken of their limits, in all processes together
    notes         small facts: how breakers stand
    events        of background streams, for readers in other processes
    peers         a question to the other processes, over HTTP
    life          who starts, who does what one of all has to do, whose unfinished work is inherited

Implementations: `Alone` (alone.py, one process), `Workers` (workers.py, several on one machine), `Replicas` (valkey.py,
on any machines, by a Valkey). tests/cluster holds
the suite that each must pass. What decides whether a request may run is exact, all else may lag behind by a moment: see
each method.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, NamedTuple, Protocol

from starlette.types import ASGIApp

from core.deletions import Deletions

# In the scope of a request that a peer has handed on: its key was checked where it came in, and it is never handed on
# again.
FROM_PEER = "nomyo.from_peer"


class Warm(NamedTuple):
    """What a request is about, by `names`, the surest first, and where else it might go: the requests there, with what
    its model is called there, and the limit of each. One of these is preferred where it was last, up to a load so much
    `above` that of the first choice."""

    names: Sequence[str]
    others: Sequence[tuple[InFlight, str, int]]
    above: float


class InFlight(Protocol):
    """The requests that run at one endpoint, in all processes, and whether it gets no more."""

    draining: bool

    def total(self) -> int:
        """How many run there, as far as is known here without waiting. Where that lags behind, `SharedLine.listen`
        hears when it turns out to be less."""
        ...

    def elsewhere(self, model: str) -> int:
        """How many requests of other processes to a model, by its name there, run there, as far as is known here. None
        where `Cluster.is_exact`: such processes are not asked for it."""
        return 0

    def begin(self) -> None:
        """One more runs there, of this process. It is counted in `Cluster.exclusive`, together with the look at `total`
        that this follows from: no other process counts one meanwhile."""
        ...

    async def confirm(
        self, limit: int, model: str = "", warm: Warm | None = None, drawing: Drawing | None = None
    ) -> InFlight | None:
        """Where a request to a model that was begun is, if it is one of at most `limit` in all processes, which no
        other process has counted instead: here, or where other processes know that it is `warm`. None where there is no
        slot for it; `total` gives what is right by then. In the same round trip what `drawing` wants is taken; where
        that is refused, so is the slot. Always here where `Cluster.is_exact`."""
        return self

    def withdraw(self) -> None:
        """A request that was begun is not sent: it is not confirmed, or nobody knows, because whoever asked was
        cancelled."""
        ...

    def end(self, model: str = "") -> None:
        """A request that was confirmed has ended. This needs no exclusion."""
        ...


class SharedLine(Protocol):
    """Who waits for a slot, over all processes: how many, since when. Times are those of `time.monotonic`, which
    processes on one machine have in common; a priority is added to them, so they may be negative, or far from now."""

    # How long, in seconds, a slot that came free is left to whoever has waited longer in another process. 0 where there
    # is no other one: then everybody who waits hears of a free slot at once.
    give_way_s: float

    def announce(self, waiting: int, since_s: float) -> None:
        """So many wait in this process, the first of them since `since_s`. May reach the others a moment later."""
        ...

    def elsewhere(self) -> int:
        """How many wait in the other processes."""
        ...

    def is_first(self) -> bool:
        """Whether nobody in another process has waited longer than the first who waits here. Where nobody waits here:
        whether nobody waits anywhere."""
        ...

    def wake(self) -> None:
        """A wake-up to the other processes in which somebody waits: a slot may be free. One that is lost delays, and
        loses nothing."""
        ...

    def listen(self, on_wake: Callable[[], None]) -> None:
        """From now on `on_wake` is called in the running loop when another process sends a wake-up, and when it turns
        out that fewer requests run at an endpoint than were known of."""
        ...

    def stop_listening(self) -> None:
        """Calls nobody any more when woken."""
        ...


class Quota(NamedTuple):
    """A limit that all processes keep together: `limit` in any `period_s` (two weighted buckets, `core.sliding`), or so
    many at once where `period_s` is 0. What was taken is counted under the `name`, which has one period; the limit may
    be another one each time."""

    name: str
    limit: int
    period_s: float = 60.0


# A quota, and how much a request takes of it.
Draw = tuple[Quota, int]


class Left(NamedTuple):
    """What is left of a quota: how much, and in how many seconds all of it is there again if nobody takes anything; 0
    for one of so many at once, of which nobody knows."""

    amount: int
    reset_s: float


class Taken(NamedTuple):
    """What `Quotas.take` has given. `refused` is the first quota that had no room, and then nothing was taken; `wait_s`
    is when it may have, 0 where nobody knows, infinite for more than its limit. `left` is by draw, behind this request.
    `buckets` are the counter's own: in which bucket each draw is."""

    draws: Sequence[Draw]
    left: Sequence[Left]
    buckets: Sequence[int] = ()
    refused: Quota | None = None
    wait_s: float = 0.0


class Drawing(Protocol):
    """What a request wants of quotas: all of it, or nothing. It is taken at once where that needs no wait; else when it
    is asked for, by itself or together with a slot (`InFlight.confirm`). `taken` is None until then."""

    taken: Taken | None

    async def settled(self) -> Taken:
        """What came of it, after one round trip where it was not asked for yet."""
        ...

    def give_up(self) -> None:
        """The request has gone. What is taken of it, or is on its way to be, is given back."""
        ...


class Quotas(Protocol):
    """What is taken of limits, over all processes. A process that dies gives back what it had of quotas of so many at
    once, as it does with its requests at endpoints; what was taken of a period passes with it."""

    def draw(self, draws: Sequence[Draw]) -> Drawing:
        """What a request wants. Exact: what is admitted in all processes is within each limit. An amount of 0 takes
        nothing, and shows what is left."""
        ...

    async def take(self, draws: Sequence[Draw]) -> Taken:
        """The same, by itself."""
        return await self.draw(draws).settled()

    def settle(self, taken: Taken, used: Sequence[int]) -> None:
        """What a request has used in the end, by draw, instead of what it took: less is given back, more counts on
        top, whatever the limit. To be called once for what was not refused, also by who was cancelled. Of quotas of so
        many at once that is 0: the request has ended. May reach the others a moment later."""
        ...


class SharedNotes(Protocol):
    """Small facts that all processes know, by name. The last one to set it is right."""

    def set(self, name: str, text: str) -> None:
        """Lets the others know. The name has no space in it."""
        ...

    def listen(self, on_note: Callable[[str, str], None]) -> None:
        """From now on `on_note` is called with what others set; first with what they have set before."""
        ...

    def now(self) -> float:
        """The time, in seconds of a clock that all processes have in common."""
        ...


class EventWriter(Protocol):
    """Where the events of one stream go, besides its own process."""

    def added(self) -> None:
        """There are more. They are on their way within 20 ms."""
        ...

    def close(self, *, is_stored: bool) -> None:
        """There will be no more from this process. Those that are stored are soon needed no longer."""
        ...


class SharedEvents(Protocol):
    """The events of background streams, by the id of their response, for readers in all processes. Whose they are is
    the caller's to know."""

    def writer(self, response_id: str, events: list[dict[str, Any]]) -> EventWriter | None:
        """Writes the events of a stream, which are added at the end of this list; None where nobody else could read
        them."""
        ...

    async def read(self, response_id: str, after: int = -1) -> list[dict[str, Any]] | None:
        """The events that are there with a `sequence_number` above `after`, some at a time, in their order; None where
        the stream is not known here."""
        ...

    def news(self, response_id: str) -> AbstractContextManager[asyncio.Event]:
        """In here the event is set each time that there may be more of a stream."""
        ...

    async def is_read(self, response_id: str) -> bool:
        """Whether some process waits for news of it."""
        ...


class SharedFlights(Protocol):
    """Who answers what several processes are asked at once: one of them leads, and the others read what it writes
    (`SharedEvents`, by the id of its flight)."""

    async def claim(self, name: str, flight: str, *, may_lead: bool = True) -> str | None:
        """The id of the flight that answers what `name` stands for: `flight`, if it is to lead from now on, or that of
        another process which lives. None where no other process can read it, or where none leads and this one may
        not."""
        ...

    def release(self, name: str, flight: str) -> None:
        """It leads no longer, if it did."""
        ...


class PeerAnswer(Protocol):
    """The answer of a peer, once its head is there. To be closed by whoever has it."""

    status: int
    headers: Mapping[str, str]

    def pieces(self) -> AsyncIterator[bytes]:
        """The body, as it comes. Raises `ConnectionError` where it breaks off."""
        ...

    async def aclose(self) -> None:
        """Gives up what has not come yet."""
        ...


class Cluster(Protocol):
    """What a process shares with the others. `open` comes before everything else, inside the running loop, and `close`
    after it."""

    deletions: Deletions
    line: SharedLine
    quotas: Quotas
    events: SharedEvents
    flights: SharedFlights
    notes: SharedNotes

    @property
    def service(self) -> str:
        """What all processes of this service have in common, and no process of another one."""
        ...

    @property
    def is_apart(self) -> bool:
        """Whether what the others share is out of reach for now: this process counts for itself, and nobody leads."""
        ...

    # ── life ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def open(self) -> None:
        """Joins the others."""
        ...

    async def close(self) -> None:
        """Leaves them: nothing of this process counts any more."""
        ...

    def starting(self) -> AbstractAsyncContextManager[bool]:
        """In here no other process starts; those that serve do not wait for it. Gives whether none serves yet, so that
        what is unfinished in the store can be nobody's. One that fails in here has not started."""
        ...

    @property
    def leads(self) -> bool:
        """Whether this process is the one that does what one of all has to do. At any time it is at most one, and it
        may change: ask each time."""
        ...

    def deaths(self) -> AsyncIterator[None]:
        """Gives one each time that a process has died whose unfinished work is this one's to mark as failed: each death
        is given to somebody. Ends where there will be none."""
        ...

    # ── requests at endpoints ────────────────────────────────────────────────────────────────────────────────────────

    def in_flight(self, url: str) -> InFlight:
        """The requests at the endpoint of this address: the same ones for the same address, in each process."""
        ...

    @property
    def is_exact(self) -> bool:
        """Whether `exclusive` keeps all other processes out. Where there is a network between them it cannot, without a
        wait: then each request that was begun is confirmed (`InFlight.confirm`)."""
        ...

    def exclusive(self) -> AbstractContextManager[None]:
        """For choosing an endpoint and beginning a request there, which takes microseconds and awaits nothing."""
        ...

    def remember(self, names: Iterable[str], running: InFlight) -> None:
        """What is warm at an endpoint from now on, for the other processes (`Warm`)."""
        return

    # ── peers ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def answering(self, app: ASGIApp, http: type[asyncio.Protocol]) -> AbstractAsyncContextManager[None]:
        """In here this process answers its peers: with the ASGI application `app`, by the uvicorn protocol `http`.
        Their requests have `FROM_PEER` in the scope."""
        ...

    async def ask(self, method: str, path: str, headers: Mapping[str, str]) -> list[Any]:
        """What each peer answers, as JSON; None for one that does not, or not with 200, within 2 s."""
        ...

    async def ask_machine(self, method: str, path: str, headers: Mapping[str, str]) -> list[Any]:
        """The same of those peers that are on this machine, as workers of one service are."""
        ...

    async def find(self, method: str, path: str, headers: Mapping[str, str]) -> PeerAnswer | None:
        """The answer of the first peer that has one other than 404; None if none has."""
        ...
