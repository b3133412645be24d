"""Flights: whatever those who read one do, each of them reads all of it or its error, and nothing of it stays."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import core.errors
from core.errors import APIError, BackendRefused, InvalidRequest, ServerError
from core.flights import MOST_AHEAD, Flights, Fly, Sink, again
from tests.test_laws import MANY


class Source:
    """Batches that come when they are let, and what became of who made them."""

    def __init__(self, batches: int, fails: bool) -> None:
        self._allowed = asyncio.Semaphore(0)
        self._batches = batches
        self._fails = fails
        self.is_open = False
        self.made = 0

    def let(self) -> None:
        self._allowed.release()

    async def run(self, sink: Sink[int]) -> None:
        self.is_open = True
        try:
            for number in range(self._batches):
                await self._allowed.acquire()
                self.made += 1
                sink.add(number)
            await self._allowed.acquire()
            if self._fails:
                raise ServerError("broken off")
        finally:
            self.is_open = False


class Reader:
    """One who joins, reads, and perhaps leaves."""

    def __init__(self, flights: Flights[Source, int], sources: list[Source], batches: int, fails: bool) -> None:
        self.seen: list[int] = []
        self.error: APIError | None = None
        self.has_left = False
        self.source: Source | None = None
        self._made = (flights, sources, batches, fails)
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        flights, sources, batches, fails = self._made

        def begin() -> tuple[Source, Fly[int]]:
            sources.append(Source(batches, fails))
            return sources[-1], sources[-1].run

        with flights.join("key", begin) as seat:
            self.source = seat.flight.source
            assert seat.is_first is (seat.flight.readers == 1 and self.source is sources[-1] and self.source.made == 0)
            try:
                async for batch in seat.flight.read():
                    self.seen.append(batch)
            except APIError as error:
                self.error = error

    def leave(self) -> None:
        self.has_left = self.has_left or not self.task.done()
        self.task.cancel()


async def settle() -> None:
    """Whatever can happen now has happened."""
    for _ in range(20):
        await asyncio.sleep(0)


steps = st.lists(
    st.one_of(
        st.just(("join", 0)),
        st.just(("let", 0)),
        st.tuples(st.just("leave"), st.integers(0, 5)),
        st.just(("settle", 0)),
    ),
    max_size=30,
)


@settings(max_examples=MANY or 300, derandomize=not MANY, database=None, deadline=None)
@given(doing=steps, batches=st.integers(0, 4), fails=st.booleans())
async def test_in_any_order_each_reads_all_of_one_answer_and_nothing_stays(
    doing: list[tuple[str, int]], batches: int, fails: bool
) -> None:
    flights: Flights[Source, int] = Flights()
    sources: list[Source] = []
    readers: list[Reader] = []
    for what, who in doing:
        if what == "join":
            readers.append(Reader(flights, sources, batches, fails))
            await settle()
        elif what == "let" and sources:
            sources[-1].let()
        elif what == "leave" and who < len(readers):
            readers[who].leave()
        elif what == "settle":
            await settle()
            assert sum(source.is_open for source in sources) <= 1, "two ask at once"
            here = [reader for reader in readers if not reader.task.done()]
            assert (len(flights) == 1) is bool(here)
    for source in sources:
        for _ in range(batches + 1):
            source.let()
    await asyncio.gather(*(reader.task for reader in readers), return_exceptions=True)
    await settle()
    for reader in readers:
        if not reader.has_left:
            assert reader.seen == list(range(batches))
            assert (reader.error is not None) is fails
        else:
            assert reader.seen == list(range(len(reader.seen)))
    assert not any(source.is_open for source in sources), "somebody goes on for nobody"
    assert len(flights) == 0


async def test_who_is_last_to_leave_ends_it_and_who_comes_then_begins_another() -> None:
    flights: Flights[Source, int] = Flights()
    sources: list[Source] = []
    first, second = (Reader(flights, sources, 2, fails=False) for _ in range(2))
    await settle()
    first.leave()
    await settle()
    assert sources[0].is_open, "the other one still reads"
    second.leave()
    # At once: what is on its way out takes nobody in.
    await asyncio.sleep(0)
    third = Reader(flights, sources, 0, fails=False)
    await settle()
    assert third.source is sources[1]
    assert not sources[0].is_open
    sources[1].let()
    await third.task


async def test_each_is_given_an_error_of_its_own() -> None:
    flights: Flights[Source, int] = Flights()
    sources: list[Source] = []
    readers = [Reader(flights, sources, 0, fails=True) for _ in range(3)]
    await settle()
    sources[0].let()
    await asyncio.gather(*(reader.task for reader in readers))
    errors = [reader.error for reader in readers]
    assert len({id(error) for error in errors}) == 3
    assert {str(error) for error in errors} == {"broken off"}


async def test_what_is_no_error_of_ours_is_one_for_those_who_read(caplog: pytest.LogCaptureFixture) -> None:
    flights: Flights[None, int] = Flights()

    async def broken(sink: Sink[int]) -> None:
        sink.add(1)
        raise KeyError("a bug")

    with flights.join("key", lambda: (None, broken)) as seat:
        batches = aiter(seat.flight.read())
        assert await anext(batches) == 1
        with pytest.raises(ServerError):
            await anext(batches)
    assert "a shared answer failed" in caplog.text


def instances() -> list[APIError]:
    """An error of every class."""
    found = []
    for _, kind in inspect.getmembers(core.errors, inspect.isclass):
        if issubclass(kind, APIError):
            parameters = inspect.signature(kind).parameters.values()
            wanted = [one for one in parameters if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD]
            found.append(kind(*("GET" for _ in wanted)))
    return found


@pytest.mark.parametrize("error", instances(), ids=lambda error: type(error).__name__)
def test_an_error_is_the_same_again(error: APIError) -> None:
    error.status, error.__cause__ = 418, KeyError("a cause")
    copy = again(error)
    assert (type(copy), vars(copy), str(copy)) == (type(error), vars(error), str(error))
    assert copy.to_dict() == error.to_dict()
    assert copy.__cause__ is error.__cause__
    assert copy is not error


def test_a_refusal_keeps_what_its_server_said() -> None:
    error = InvalidRequest("No.", param="model", code="c")
    assert again(error).to_dict() == error.to_dict()
    assert issubclass(BackendRefused, APIError)


async def test_a_flight_whose_readers_close_their_generators_ends_too() -> None:
    flights: Flights[Source, int] = Flights()
    source = Source(3, fails=False)

    async def reading() -> AsyncGenerator[int]:
        with flights.join("key", lambda: (source, source.run)) as seat:
            async for batch in seat.flight.read():
                yield batch

    source.let()
    async with aclosing(reading()) as batches:
        assert await anext(batches) == 0
    await settle()
    assert not source.is_open
    assert len(flights) == 0


async def test_no_more_waits_than_somebody_will_soon_read() -> None:
    """The answer is not read from its backend faster than by whoever reads most of it."""
    flights: Flights[None, int] = Flights()
    given: list[int] = []

    async def endless(sink: Sink[int]) -> None:
        while True:
            given.append(len(given))
            if not sink.add(given[-1]):
                room = asyncio.Event()
                sink.when_room(room.set)
                await room.wait()

    with flights.join("key", lambda: (None, endless)) as seat, flights.join("key", lambda: (None, endless)) as other:
        await settle()
        assert len(given) == MOST_AHEAD, "nobody has read anything"
        batches = aiter(seat.flight.read())
        for number in range(3 * MOST_AHEAD):
            assert await anext(batches) == number
            await settle()
            assert len(given) <= number + 1 + MOST_AHEAD
        late = aiter(other.flight.read())
        assert [await anext(late) for _ in range(3)] == [0, 1, 2], "who is slow misses nothing"
