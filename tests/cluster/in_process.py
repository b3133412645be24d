"""A cluster whose members live in one process: what passes between them is a plain object, and a test decides what
happens in which order. It keeps the laws of the others (test_every_*.py)."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from typing import Any

import httpx2

from cluster.alone import OwnEvents, OwnNotes
from cluster.protocol import FROM_PEER, Cluster, Drawing, InFlight, PeerAnswer, SharedLine, Warm
from cluster.quotas import AtOnce, CountedQuotas
from core.deletions import OwnDeletions
from core.sliding import SlidingCounter


class Shared:
    """What the members of a service share."""

    def __init__(self) -> None:
        self.members: dict[int, InProcess] = {}
        self.deletions = OwnDeletions()
        self.requests: dict[str, Counter[int]] = {}
        self.draining: dict[str, bool] = {}
        self.at_once: dict[str, Counter[int]] = {}
        self.sliding: dict[str, SlidingCounter] = {}
        self.waiting: dict[int, tuple[int, float]] = {}
        self.dead: list[int] = []
        self.has_started = False
        self.starting = asyncio.Lock()
        self.is_locked = False


class InProcess(Cluster):
    """A member. `meanwhile` lets another one act between two of its calls. One that is `far` counts behind a network:
    what it knows of the others is old, and it has to ask whether a slot is its own."""

    is_exact = True
    is_apart = False
    line: InProcessLine

    def __init__(self, shared: Shared, *, far: bool = False) -> None:
        self.shared = shared
        self.is_exact = not far
        self.counts: dict[str, FarInFlight] = {}
        self.deletions = shared.deletions
        self.line = InProcessLine(self)
        self.quotas = InProcessQuotas(self)
        self.events = OwnEvents()
        self.notes = OwnNotes()
        self.number = -1
        self.app: Any = None
        self._succeeds = False
        self._calls = 0
        self._meanwhile: Callable[[], None] | None = None

    @property
    def service(self) -> str:
        return f"in process {id(self.shared)}"

    def meanwhile(self, calls: int, happens: Callable[[], None]) -> None:
        """What another member does just before this one calls its cluster for the n-th time."""
        self._calls, self._meanwhile = calls, happens

    def let_others(self) -> None:
        self._calls -= 1
        if not self._calls and self._meanwhile:
            self._meanwhile()

    # ── life ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def open(self) -> None:
        shared = self.shared
        self.number = next(n for n in range(len(shared.members) + 1) if n not in shared.members)
        shared.members[self.number] = self
        if self.number in shared.dead:
            shared.dead.remove(self.number)
            self._succeeds = True
            self._forget()
            self.line.wake()

    async def close(self) -> None:
        if self._lives:
            self._forget()
            del self.shared.members[self.number]

    def die(self) -> None:
        """Leaves everything as it stands."""
        if self._lives:
            del self.shared.members[self.number]
            self.shared.dead.append(self.number)

    @property
    def _lives(self) -> bool:
        return self.shared.members.get(self.number) is self

    def _forget(self) -> None:
        self.shared.waiting.pop(self.number, None)
        for requests in (*self.shared.requests.values(), *self.shared.at_once.values()):
            del requests[self.number]

    @contextlib.asynccontextmanager
    async def starting(self) -> AsyncGenerator[bool]:
        async with self.shared.starting:
            yield not self.shared.has_started
            self.shared.has_started = True

    @property
    def leads(self) -> bool:
        return self.number == 0

    async def deaths(self) -> AsyncIterator[None]:
        if self._succeeds:
            yield

    # ── requests at endpoints ────────────────────────────────────────────────────────────────────────────────────────

    def in_flight(self, url: str) -> InFlight:
        if not self.is_exact:
            return self.counts.setdefault(url, FarInFlight(self, url))
        return InProcessInFlight(self, url)

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        self.let_others()
        assert not self.shared.is_locked, "it would wait for itself"
        self.shared.is_locked = True
        yield
        self.shared.is_locked = False

    # ── peers ────────────────────────────────────────────────────────────────────────────────────────────────────────

    @contextlib.asynccontextmanager
    async def answering(self, app: Any, http: type[asyncio.Protocol]) -> AsyncGenerator[None]:
        self.app = app
        yield
        self.app = None

    async def ask(self, method: str, path: str, headers: Mapping[str, str]) -> list[Any]:
        answers = [await peer.answer(method, path, headers) for peer in self._peers()]
        return [answer.json() if answer is not None and answer.status == 200 else None for answer in answers]

    async def find(self, method: str, path: str, headers: Mapping[str, str]) -> PeerAnswer | None:
        answers = [await peer.answer(method, path, headers) for peer in self._peers()]
        return next((answer for answer in answers if answer is not None and answer.status != 404), None)

    def _peers(self) -> list[InProcess]:
        return [member for number, member in sorted(self.shared.members.items()) if number != self.number]

    async def answer(self, method: str, path: str, headers: Mapping[str, str]) -> InProcessAnswer | None:
        if self.app is None:
            return None

        async def from_peer(scope: Any, receive: Any, send: Any) -> None:
            await self.app({**scope, FROM_PEER: True}, receive, send)

        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(from_peer), base_url="http://peer") as client:
            return InProcessAnswer(await client.request(method, path, headers=dict(headers)))


class InProcessInFlight(InFlight):
    def __init__(self, member: InProcess, url: str) -> None:
        self._member = member
        self._url = url
        self._requests = member.shared.requests.setdefault(url, Counter())

    def total(self) -> int:
        return self._requests.total()

    def begin(self) -> None:
        self._requests[self._member.number] += 1
        assert self._member.shared.is_locked, "another process may count at the same time"

    def withdraw(self) -> None:
        self.end()

    def end(self, model: str = "") -> None:
        self._requests[self._member.number] -= 1
        assert self._requests[self._member.number] >= 0, "a slot was given back twice"

    @property
    def draining(self) -> bool:
        return self._member.shared.draining.get(self._url, False)

    @draining.setter
    def draining(self, draining: bool) -> None:
        self._member.shared.draining[self._url] = draining


class FarInFlight(InProcessInFlight):
    """What runs there is known to a server, and here as it was when it was last heard of: at an answer, or a moment
    after it changed."""

    def __init__(self, member: InProcess, url: str) -> None:
        super().__init__(member, url)
        self._begun = self._elsewhere = 0

    def total(self) -> int:
        return self._begun + self._requests[self._member.number] + self._elsewhere

    def begin(self) -> None:
        self._begun += 1

    async def confirm(
        self, limit: int, model: str = "", warm: Warm | None = None, drawing: Drawing | None = None
    ) -> InFlight | None:
        # The question is on its way.
        await asyncio.sleep(0.0002)
        if is_ours := self._requests.total() < limit:
            self._begun -= 1
            self.change(1)
        try:
            # The answer is on its way.
            await asyncio.sleep(0.0002)
        except BaseException:
            if is_ours:  # It will not be heard, and `withdraw` comes.
                self._begun += 1
                self.change(-1)
            raise
        finally:
            self.hear()
        return self if is_ours else None

    def withdraw(self) -> None:
        self._begun -= 1
        assert self._begun >= 0, "a slot was given back twice"

    def end(self, model: str = "") -> None:
        self.change(-1)

    def change(self, requests: int) -> None:
        """At the server. The others hear of it a moment later."""
        self._requests[self._member.number] += requests
        assert self._requests[self._member.number] >= 0, "a slot was given back twice"
        for member in self._member.shared.members.values():
            if member is not self._member and self._url in member.counts:
                asyncio.get_running_loop().call_later(0.0005, member.counts[self._url].hear_of_change)

    def hear(self) -> None:
        self._elsewhere = self._requests.total() - self._requests[self._member.number]

    def hear_of_change(self) -> None:
        before = self._elsewhere
        self.hear()
        if self._elsewhere < before:
            self._member.line.woken()


class InProcessQuotas(CountedQuotas):
    def __init__(self, member: InProcess) -> None:
        super().__init__()
        self._member = member

    def exclusive(self) -> contextlib.AbstractContextManager[None]:
        return self._member.exclusive()

    def at_once(self, name: str) -> AtOnce:
        return InProcessAtOnce(self._member, name)

    def sliding(self, name: str, period_s: float) -> SlidingCounter:
        return self._member.shared.sliding.setdefault(name, SlidingCounter(period_s))


class InProcessAtOnce(AtOnce):
    def __init__(self, member: InProcess, name: str) -> None:
        super().__init__()
        self._member = member
        self._all = member.shared.at_once.setdefault(name, Counter())

    def count(self, now: float) -> float:
        return self._all.total()

    def add_here(self, amount: int) -> int:
        self._all[self._member.number] += amount
        assert self._all[self._member.number] >= 0, "it was given back twice"
        return 0


class InProcessLine(SharedLine):
    """A wake-up arrives a moment later, as between processes."""

    give_way_s = 0.002

    def __init__(self, member: InProcess) -> None:
        self._member = member
        self._shared = member.shared
        self._on_wake: Callable[[], None] | None = None

    def announce(self, waiting: int, since_s: float) -> None:
        self._member.let_others()
        self._shared.waiting[self._member.number] = (waiting, since_s)

    def elsewhere(self) -> int:
        self._member.let_others()
        return sum(waiting for number, (waiting, _) in self._shared.waiting.items() if number != self._member.number)

    def is_first(self) -> bool:
        self._member.let_others()
        since = {number: since for number, (waiting, since) in self._shared.waiting.items() if waiting}
        return not since or min(since, key=since.__getitem__) == self._member.number

    def wake(self) -> None:
        self._member.let_others()
        for number, (waiting, _) in self._shared.waiting.items():
            if waiting and number != self._member.number and number in self._shared.members:
                asyncio.get_running_loop().call_soon(self._shared.members[number].line.woken)

    def woken(self) -> None:
        if self._on_wake is not None:
            self._on_wake()

    def listen(self, on_wake: Callable[[], None]) -> None:
        self._on_wake = on_wake

    def stop_listening(self) -> None:
        self._on_wake = None


class InProcessAnswer(PeerAnswer):
    """It is whole before it is given."""

    def __init__(self, response: httpx2.Response) -> None:
        self.status = response.status_code
        self.headers = response.headers
        self._response = response

    def json(self) -> Any:
        return self._response.json()

    async def pieces(self) -> AsyncIterator[bytes]:
        yield self._response.content

    async def aclose(self) -> None:
        pass
