"""One answer for all who ask the same at once.

    join(key) ──first──▶ a task runs the source ───batches──▶ kept ──▶ everybody who joined, each at their own pace
              ──others──────────────────────────────────────────┘

It goes on while anybody reads, whoever that is; also elsewhere, where its source knows that (`stay_while`). It knows
nothing of what flows.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar

from core.errors import APIError, Interrupted, ServerError, without_frames

log = logging.getLogger("nomyo.responses")

S = TypeVar("S")
T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)
# So many batches may be ahead of whoever has read most of them.
MOST_AHEAD = 64
# How often it is looked whether somebody reads elsewhere, while nobody does here.
LOOK_S = 0.5


class Sink(Protocol[T_contra]):
    """Where the batches of an answer go."""

    def add(self, batch: T_contra, /) -> bool:
        """Takes one. False: nobody has read that far, and more should wait for `when_room`."""
        ...

    def when_room(self, call: Callable[[], None], /) -> None:
        """Has `call` called once, as soon as somebody has read on."""
        ...

    def stay_while(self, is_read_elsewhere: Callable[[], Awaitable[bool]], /) -> None:
        """Goes on without readers here, as long as this finds others."""
        ...


# Gives the batches of an answer, one after the other, and ends with it.
Fly = Callable[[Sink[T]], Awaitable[None]]


class Flight(Generic[S, T]):
    """An answer on its way: its batches so far, and how many read them. `source` is what it is made by, and `fly` gives
    the batches."""

    def __init__(self, source: S, fly: Fly[T], remove: Callable[[], None]) -> None:
        self.source = source
        self.readers = 0
        self._batches: list[T] = []
        # How far whoever reads most has come.
        self._furthest = 0
        self._on_room: Callable[[], None] | None = None
        self._failure: APIError | None = None
        self._is_over = False
        self._more = asyncio.Event()
        self._remove = remove
        self._is_read_elsewhere: Callable[[], Awaitable[bool]] | None = None
        self._looking: asyncio.Task[None] | None = None
        self._task = asyncio.create_task(self._run(fly), name="shared answer")

    def leave(self) -> None:
        """One reads it no more. Nobody waits for what nobody reads."""
        self.readers -= 1
        if self.readers or self._is_over:
            return
        if self._is_read_elsewhere is None:
            self._stop()
            return
        self._let_go_on()
        if self._looking is None:
            self._looking = asyncio.create_task(self._look(self._is_read_elsewhere), name="readers elsewhere")

    async def read(self) -> AsyncIterator[T]:
        """All batches, from the first on: those there are at once, the others as they come. Raises `APIError` where
        they break off."""
        position = 0
        while True:
            more, is_over = self._more, self._is_over
            while position < len(self._batches):
                position += 1
                self._is_read_to(position)
                yield self._batches[position - 1]
            if not is_over:
                if more is self._more:
                    await more.wait()
            elif self._failure is None:
                return
            else:
                raise again(self._failure)

    def add(self, batch: T) -> bool:
        """Keeps a batch for all who read. False: those who read most of it are far behind."""
        self._batches.append(batch)
        self._wake()
        # Those elsewhere take all there is.
        return not self.readers or len(self._batches) - self._furthest < MOST_AHEAD

    def when_room(self, call: Callable[[], None]) -> None:
        """Has `call` called once, as soon as somebody has read on."""
        self._on_room = call

    def stay_while(self, is_read_elsewhere: Callable[[], Awaitable[bool]]) -> None:
        """Goes on without readers here, as long as this finds others."""
        self._is_read_elsewhere = is_read_elsewhere

    def _is_read_to(self, position: int) -> None:
        self._furthest = max(self._furthest, position)
        if len(self._batches) - self._furthest < MOST_AHEAD:
            self._let_go_on()

    def _let_go_on(self) -> None:
        call, self._on_room = self._on_room, None
        if call is not None:
            call()

    def _stop(self) -> None:
        self._remove()
        self._task.cancel()

    async def _look(self, is_read_elsewhere: Callable[[], Awaitable[bool]]) -> None:
        try:
            while await is_read_elsewhere():
                await asyncio.sleep(LOOK_S)
                if self.readers:
                    return
            if not self.readers and not self._is_over:
                self._stop()
        finally:
            self._looking = None

    async def _run(self, fly: Fly[T]) -> None:
        failure: APIError | None = Interrupted()
        try:
            await fly(self)
            failure = None
        except APIError as error:
            failure = without_frames(error)
        except Exception:
            log.exception("a shared answer failed")
            failure = ServerError("The router failed to answer this request.")
        finally:
            # Before anybody is woken: who asks now gets an answer of its own.
            self._remove()
            self._failure, self._is_over = failure, True
            if self._looking is not None:
                self._looking.cancel()
            self._wake()

    def _wake(self) -> None:
        more, self._more = self._more, asyncio.Event()
        more.set()


class Seat(Generic[S, T]):
    """One who reads a flight, from `with` to its end. `is_first`: it was begun for this one."""

    __slots__ = ("flight", "is_first")

    def __init__(self, flight: Flight[S, T], *, is_first: bool) -> None:
        self.flight = flight
        self.is_first = is_first
        flight.readers += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.flight.leave()


class Flights(Generic[S, T]):
    """All that are on their way, by what was asked."""

    def __init__(self) -> None:
        self._flights: dict[Hashable, Flight[S, T]] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def join(self, key: Hashable, begin: Callable[[], tuple[S, Fly[T]]]) -> Seat[S, T]:
        """A seat in the flight that `key` names, to be used with `with`. Where there is none, `begin` gives its source
        and what gives its batches, which runs in another task."""
        if (flight := self._flights.get(key)) is not None:
            return Seat(flight, is_first=False)
        source, fly = begin()

        def remove() -> None:
            if self._flights.get(key) is flight:
                del self._flights[key]

        flight = self._flights[key] = Flight(source, fly, remove)
        return Seat(flight, is_first=True)


def again(error: APIError) -> APIError:
    """An error for one more who is to be given it: who catches one may change it, and frees its frames."""
    copy = error.__class__.__new__(error.__class__, *error.args)
    copy.args = error.args
    copy.__dict__.update(vars(error))
    copy.__cause__ = error.__cause__
    return copy
