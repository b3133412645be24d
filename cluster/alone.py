"""A service of one process: nothing is shared, nobody else waits, and there is nobody to ask."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager, nullcontext
from hashlib import blake2b
from typing import Any

from starlette.types import ASGIApp

from cluster.protocol import (
    Cluster,
    EventWriter,
    InFlight,
    PeerAnswer,
    Quotas,
    SharedEvents,
    SharedFlights,
    SharedLine,
    SharedNotes,
)
from cluster.quotas import CountedQuotas
from core.deletions import Deletions, OwnDeletions

log = logging.getLogger("nomyo.cluster")

NOTHING_TO_EXCLUDE: AbstractContextManager[None] = nullcontext()


class Alone(Cluster):
    """The cluster of a single process. `workers` is how many the settings ask for: more than one takes serve.py, which
    the log names."""

    leads = True
    is_exact = True
    is_apart = False

    def __init__(self, workers: int = 1) -> None:
        self.deletions: Deletions = OwnDeletions()
        self.line: SharedLine = OwnLine()
        self.quotas: Quotas = CountedQuotas()
        self.events: SharedEvents = OwnEvents()
        self.flights: SharedFlights = OwnFlights()
        self.notes: SharedNotes = OwnNotes()
        self._workers = workers
        self._in_flight: dict[str, OwnInFlight] = {}

    @property
    def service(self) -> str:
        # Processes that a supervisor other than serve.py has started have its key in common, and are one service too.
        return blake2b(multiprocessing.current_process().authkey, digest_size=16).hexdigest()

    async def open(self) -> None:
        if self._workers > 1 or multiprocessing.parent_process() is not None:
            log.warning("several workers need serve.py: without it, each believes that it is alone")

    async def close(self) -> None:
        self._in_flight.clear()

    def starting(self) -> AbstractAsyncContextManager[bool]:
        return nullcontext(True)

    async def deaths(self) -> AsyncIterator[None]:
        return
        yield

    def in_flight(self, url: str) -> InFlight:
        return self._in_flight.setdefault(url, OwnInFlight())

    def exclusive(self) -> AbstractContextManager[None]:
        return NOTHING_TO_EXCLUDE

    def answering(self, app: ASGIApp, http: type[asyncio.Protocol]) -> AbstractAsyncContextManager[None]:
        return nullcontext()

    async def ask(self, method: str, path: str, headers: Mapping[str, str]) -> list[Any]:
        return []

    async def ask_machine(self, method: str, path: str, headers: Mapping[str, str]) -> list[Any]:
        return []

    async def find(self, method: str, path: str, headers: Mapping[str, str]) -> PeerAnswer | None:
        return None


class OwnNotes(SharedNotes):
    """Nobody else sets any."""

    def set(self, name: str, text: str) -> None:
        pass

    def listen(self, on_note: Callable[[str, str], None]) -> None:
        pass

    def now(self) -> float:
        return time.monotonic()


class OwnEvents(SharedEvents):
    """Nobody else reads them."""

    def writer(self, response_id: str, events: list[dict[str, Any]]) -> EventWriter | None:
        return None

    async def read(self, response_id: str, after: int = -1) -> list[dict[str, Any]] | None:
        return None

    def news(self, response_id: str) -> AbstractContextManager[asyncio.Event]:
        return nullcontext(asyncio.Event())

    async def is_read(self, response_id: str) -> bool:
        return False


class OwnFlights(SharedFlights):
    """Nobody else could read one."""

    async def claim(self, name: str, flight: str, *, may_lead: bool = True) -> str | None:
        return None

    def release(self, name: str, flight: str) -> None:
        pass


class OwnInFlight(InFlight):
    """The requests of this process at an endpoint. They are all there are."""

    __slots__ = ("_requests", "draining")

    def __init__(self) -> None:
        self.draining = False
        self._requests = 0

    def total(self) -> int:
        return self._requests

    def begin(self) -> None:
        self._requests += 1

    def withdraw(self) -> None:
        self._requests -= 1

    def end(self, model: str = "") -> None:
        self._requests -= 1


class OwnLine(SharedLine):
    """Nobody waits elsewhere."""

    give_way_s = 0.0

    def announce(self, waiting: int, since_s: float) -> None:
        pass

    def elsewhere(self) -> int:
        return 0

    def is_first(self) -> bool:
        return True

    def wake(self) -> None:
        pass

    def listen(self, on_wake: Callable[[], None]) -> None:
        pass

    def stop_listening(self) -> None:
        pass
