"""One backend call for equal requests that are here at once, where they ask for the cache (`nomyo: {cache: true}`).

    turn ──join──▶ flight ◀── a turn that feeds it (run_turn), in a task of its own, with the only slot
      ▲               │
      └──adopted──────┘        as this turn's: its ids, its numbers, its row

The flight goes on while anybody reads it, whoever has begun it. Where it fails, those who have seen nothing of it ask
again, together; the one whom it was begun for is given the error. Of several replicas one makes the flight, and the
others read a copy of it (distant_flight.py).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from msgspec.structs import replace

from api.turns.cached import CACHE_ROUTE, cache_key
from api.turns.distant_flight import Copy, follow
from api.turns.turn import Turn, TurnOut, builder_of, seals_for_us, settle_turn
from backends.fleet.failover import may_go_elsewhere
from backends.wire.relay import drained
from cache import Cache, key_of
from core.errors import APIError
from core.flights import Fly, Sink
from core.json import encode_json
from requests.emission import EMIT_EVENTS
from requests.hidden import drop, hide
from requests.included import SEALED_REASONING
from requests.native_events import LIFECYCLE
from requests.open_items import Event
from requests.responses import ID_PREFIXES, new_id
from requests.tools import Item

if TYPE_CHECKING:
    from core.state import AppState

Run = Callable[["AppState", Turn, TurnOut], Awaitable[None]]

# Of a response these are each turn's own.
NOT_SHARED = frozenset({"metadata", "nomyo", "conversation"})


class Feeding(Struct, eq=False):
    """What a flight is made by: the turn that feeds it, and whether what comes of it may be kept on a disk.
    `is_elsewhere`: another process makes it."""

    turn: Turn
    stored: bool = False
    is_elsewhere: bool = False


async def shared_answer(state: AppState, turn: Turn, cache: Cache, run: Run) -> None:
    """The events of the one answer, as this turn's, but for the last. `run` is `run_turn`. Raises `APIError` as a
    backend's own answer does."""
    messages = cache_key(turn.request)
    key = key_of(CACHE_ROUTE, turn.request.model, messages)
    routing = replace(turn.routing, tried=set())
    may_ask_again = True
    while True:
        with state.flights.join(key, lambda: _begin(state, turn, cache, messages, run, key)) as seat:
            feeding: Feeding = seat.flight.source
            feeding.stored |= turn.request.stored
            reader = Reader(turn, feeding, is_first=seat.is_first)
            try:
                async for batch in seat.flight.read():
                    if not turn.emit(reader.adopt(batch)):
                        await drained(turn.out)
                reader.take_headers()
                return
            except APIError as error:
                is_unseen = not reader.has_given or not turn.builder.emission.makes_events
                if not (may_ask_again and is_unseen and _may_ask_again(error, reader)):
                    raise
        may_ask_again = False
        turn.routing = routing
        if reader.has_given:
            turn.builder.restart()


def _may_ask_again(error: APIError, reader: Reader) -> bool:
    """Whether the same request may go better the next time. For whom the flight was begun all was tried, unless it was
    for its readers that the answer could not be given by another backend."""
    if reader.is_maker:
        return reader.has_given and may_go_elsewhere(error)
    return error.status >= 500 or error.status == 429


def _begin(
    state: AppState, turn: Turn, cache: Cache, messages: list[Any], run: Run, key: str
) -> tuple[Feeding, Fly[list[Event]]]:
    request = turn.request
    feeding = replace(
        turn,
        request=replace(
            request,
            params=replace(request.params, store=False, background=None, nomyo=None),
            conversation=None,
            is_remembered=seals_for_us(request),
        ),
        headers={},
        passes_on=None,
        row_begun=False,
        feeds=True,
        fed_by=None,
    )
    # That one gives back what it does not use, when it has ended: it may go on without this turn.
    turn.tally = None
    feeding.builder = builder_of(
        state, feeding.request, EMIT_EVENTS, response_id=turn.id, created_at=turn.builder.response["created_at"]
    )
    source = Feeding(feeding)
    return source, partial(_feed, state, source, cache, messages, run, key)


async def _feed(
    state: AppState, feeding: Feeding, cache: Cache, messages: list[Any], run: Run, key: str, flight: Sink[list[Event]]
) -> None:
    """Gives the events of the answer, made by this process or by another one."""
    flights, flight_id = state.cluster.flights, new_id("flight")
    # What leaves nothing on a disk goes to no other server either, whose disk nobody here knows.
    leader = await flights.claim(key, flight_id, may_lead=feeding.stored)
    if leader is not None and leader != flight_id:
        await _feed_from_elsewhere(state, feeding, key, leader, Fed(flight, feeding.turn))
        return
    copy = Copy.of(state.cluster, flight_id) if leader else None
    if copy is None:
        await _make(state, feeding, cache, messages, run, Fed(flight, feeding.turn))
        return
    flight.stay_while(partial(state.cluster.events.is_read, flight_id))
    has_failed = True
    try:
        await _make(state, feeding, cache, messages, run, Fed(flight, feeding.turn, copy))
        has_failed = False
    finally:
        copy.close(has_failed=has_failed)
        flights.release(key, flight_id)


async def _feed_from_elsewhere(state: AppState, feeding: Feeding, key: str, leader: str, out: Fed) -> None:
    """Gives the events of an answer that another process makes, and counts."""
    turn = feeding.turn
    feeding.is_elsewhere = turn.from_cache = True

    async def still_leads() -> bool:
        return await state.cluster.flights.claim(key, "", may_lead=False) == leader

    def take_headers(headers: dict[str, str]) -> None:
        turn.headers = headers

    try:
        await follow(state.cluster, leader, still_leads, take_headers, out)
        turn.builder.response["status"] = "completed"
    except APIError as error:
        settle_turn(state, turn, error)
        raise
    finally:
        settle_turn(state, turn)


async def _make(state: AppState, feeding: Feeding, cache: Cache, messages: list[Any], run: Run, out: Fed) -> None:
    """Gives the events of the answer. It is in the cache before the last of them is there: who asks behind that finds
    it."""
    turn = feeding.turn
    await run(state, turn, out)
    response = turn.builder.response
    if response["status"] == "completed" and (feeding.stored or not cache.persistent):
        if not _asks_for_seals(turn):
            response = drop({**response, "output": hide(response["output"])})
        await cache.set_chat(CACHE_ROUTE, turn.request.model, messages, encode_json(response))
    out.write(out.last)


class Fed:
    """Where the turn leaves that feeds a flight, and a `copy` of it. Its errors are raised, for each who reads to
    get."""

    has_begun = False
    on_begin: Callable[[], object] | None = None

    def __init__(self, flight: Sink[list[Event]], turn: Turn, copy: Copy | None = None) -> None:
        self._flight = flight
        self._turn = turn
        self._copy = copy
        self._copied: dict[str, str] = {}
        self.last: list[Event] = []

    def write(self, events: list[Event]) -> bool:
        """Gives events to all who read. False: none of them has come so far."""
        if self._copy is not None:
            self._write_copy(self._copy, events)
        return self._flight.add(events)

    def _write_copy(self, copy: Copy, events: list[Event]) -> None:
        limits = self._turn.routing.limits
        headers = {name: value for name, value in self._turn.headers.items() if name not in limits}
        if headers != self._copied:
            self._copied = headers
            copy.add(headers=headers)
        copy.add(events=events)

    def end(self, events: list[Event]) -> None:
        """Keeps the last of them."""
        self.last = events

    def when_drained(self, call: Callable[[], None]) -> None:
        """Has `call` called once, as soon as somebody has read on."""
        self._flight.when_room(call)


class Reader:
    """Makes the events of a feeding turn those of another one. `has_given`: some of the answer itself."""

    def __init__(self, turn: Turn, feeding: Feeding, *, is_first: bool) -> None:
        self.has_given = False
        self._turn = turn
        self._is_first = is_first
        self._source = feeding
        self._feeding = feeding.turn
        # New ids, by those that they stand for: what is stored shall have its own. The first one keeps them.
        self._ids: dict[str, str] = {}
        # No backend was asked by this turn itself: nothing is counted, or cached, once more.
        turn.from_cache = True
        if is_first:
            turn.fed_by = feeding.turn
        self._limits = turn.routing.limits
        turn.routing = feeding.turn.routing
        turn.builder.hides_seals = not _asks_for_seals(turn)

    @property
    def is_maker(self) -> bool:
        """Whether the flight was begun for this turn, and is made by this process."""
        return self._is_first and not self._source.is_elsewhere

    def take_headers(self) -> None:
        """What became of the request, in the headers of its answer."""
        theirs = self._feeding.routing.limits
        shared = {name: value for name, value in self._feeding.headers.items() if name not in theirs}
        self._turn.headers = {**self._turn.headers, **shared, **self._limits}
        if not self.is_maker:
            self._turn.headers["x-nomyo-cache"] = "shared"

    def adopt(self, batch: list[Event]) -> list[Event]:
        """The events of a batch, as this turn's. What they hold is shared by all who read, so it stays as it is."""
        if not self.has_given:
            self.take_headers()
        builder = self._turn.builder
        adopted: list[Event] = []
        for event in batch:
            if event["type"] in LIFECYCLE:
                response = {key: value for key, value in event["response"].items() if key not in NOT_SHARED}
                response["output"] = [self._renamed(item) for item in response["output"]]
                adopted += builder.adopt({**event, "response": response})
                continue
            self.has_given = True
            own = dict(event)
            if "item" in own:
                own["item"] = self._renamed(own["item"])
            if "item_id" in own:
                own["item_id"] = self._id(own["item_id"], "item")
            adopted += builder.adopt(own)
        return adopted

    def _renamed(self, item: Item) -> Item:
        return {**item, "id": self._id(item["id"], item["type"])}

    def _id(self, theirs: str, kind: str) -> str:
        if self.is_maker:
            return theirs
        if (ours := self._ids.get(theirs)) is None:
            ours = self._ids[theirs] = new_id(ID_PREFIXES.get(kind, "item"))
        return ours


def _asks_for_seals(turn: Turn) -> bool:
    return SEALED_REASONING in (turn.request.params.include or ())
