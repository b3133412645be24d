"""Replicas of one service on any machines (`cluster.url` in the settings): what they share lies in a Valkey or a Redis.

    membership      a lease for each process, renewed; what is dead is found out by whoever lives     membership.py
    scripts         what happens at the server, in one step           valkey_scripts.py (lives), valkey_counting.py
    counts          requests at endpoints, to be looked at without a wait                             valkey_counts.py
    line            who waits for a slot, in which process                                            valkey_line.py
    notes           small facts, and deletions                                                        valkey_notes.py
    quotas          limits of keys and owners                                                         valkey_quotas.py
    events          of background streams, and of answers that several processes wait for             valkey_events.py
    flights         who makes such an answer                                                          valkey_flights.py
    peers           a port of each process, behind a secret that lies there too                       peers.py

Around it is what the workers of one machine share (`Workers`), or a single process (`Alone`): that is what counts while
the server is away, and nobody waits for it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from hashlib import blake2b
from itertools import chain
from typing import Any

from starlette.types import ASGIApp

from cluster import membership, peers
from cluster import valkey_counting as counting
from cluster import valkey_scripts as scripts
from cluster.membership import Listener, Membership
from cluster.protocol import Cluster, InFlight, PeerAnswer
from cluster.valkey_counts import ReplicaCount, ReplicaInFlight, total_of
from cluster.valkey_events import ReplicaEvents
from cluster.valkey_flights import ReplicaFlights
from cluster.valkey_line import ReplicaLine
from cluster.valkey_notes import ReplicaDeletions, ReplicaNotes
from cluster.valkey_quotas import ReplicaQuotas
from cluster.valkey_scripts import short
from core.config import ClusterConfig
from core.deletions import Deletions
from core.valkey_address import Address

log = logging.getLogger("nomyo.cluster")

# How often one that starts asks whether it is its turn, and how long a start may hold up others if it dies.
TURN_S, STARTING_S = 0.02, 30.0
# How long what is warm somewhere is known: as long as each process knows it by itself.
WARM_MS = 30 * 60 * 1000
# How often it is asked whether one whose lease ended has its port still, and how long that may take.
LOOK_S, CONNECT_S = 0.5, 1.0


class Replicas(Cluster, Listener):
    """The processes that share a Valkey, as one of them sees them. `inner` is what those of this machine share, and
    `number` the one of this process among them. `events_hours` is how long the events of a stream are kept."""

    is_exact = False
    line: ReplicaLine
    quotas: ReplicaQuotas
    events: ReplicaEvents
    flights: ReplicaFlights
    notes: ReplicaNotes

    def __init__(
        self, config: ClusterConfig, inner: Cluster, events_hours: float = 24.0, lease_s: float = membership.LEASE_S
    ) -> None:
        self._config = config
        self._inner = inner
        self._at = Address.of(config.url, "cluster.url")
        self.membership = Membership(self._at, config.name, self, lease_s)
        self._requests: dict[str, ReplicaInFlight] = {}
        # Of endpoints and their models.
        self._counts: dict[str, ReplicaCount] = {}
        self._peers: dict[str, tuple[int, str]] = {}
        # Whose leases have ended: those whose work is this one's to take over, and the others.
        self._dead: dict[str, str] = {}
        self._dead_of_others: dict[str, str] = {}
        self._taken_over: set[str] = set()
        # Who was there before the server may have forgotten it; and whether it has heard of those who are missing.
        self._before: dict[str, str] = {}
        self._has_missed = False
        self._looking_for: asyncio.TimerHandle | None = None
        self._has_dead = asyncio.Event()
        self._has_lost = False
        self.deletions: Deletions
        self.deletions = self._deletions = ReplicaDeletions(self.membership)
        self.line = ReplicaLine(inner.line, self.membership)
        self.notes = ReplicaNotes(self.membership)
        self.notes.listen(self._hear_note)
        self.quotas = ReplicaQuotas(inner.quotas, self.membership)
        self.events = ReplicaEvents(self._at, config.name, events_hours)
        self.flights = ReplicaFlights(self.membership)

    @property
    def service(self) -> str:
        named = f"{self._at.host} {self._at.port} {self._at.database} {self._config.name}"
        return blake2b(named.encode(), digest_size=16).hexdigest()

    @property
    def number(self) -> int:
        """How many processes came before this one."""
        return self.membership.number

    @property
    def is_apart(self) -> bool:
        return not self.membership.is_joined

    # ── life ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def open(self) -> None:
        await self._inner.open()
        await self.membership.open()
        await self.events.valkey.open()

    async def close(self) -> None:
        if self._looking_for is not None:
            self._looking_for.cancel()
        await self.events.valkey.close()
        await self.membership.close()
        await self._inner.close()

    @asynccontextmanager
    async def starting(self) -> AsyncGenerator[bool]:
        is_first = await self._waits_for_its_turn()
        is_started = False
        try:
            yield is_first
            is_started = True
        finally:
            self.membership.serves = is_started or self.membership.serves
            self.membership.send(scripts.STARTED, int(is_started), int(is_started and is_first))

    async def _waits_for_its_turn(self) -> bool:
        """Gives whether nobody serves yet. Without a server nobody knows: then what is unfinished may be somebody's."""
        if self.membership.is_joined and self.membership.was_empty:
            # Those whom it has forgotten come back meanwhile.
            await asyncio.sleep(self.membership.joined_at + membership.REJOIN_S - time.monotonic())
        while self.membership.is_joined:
            try:
                serving = await self.membership.ask(scripts.START, int(STARTING_S * 1000))
            except ConnectionError:
                break
            if serving != scripts.UNKNOWN:
                return bool(serving == 0)
            await asyncio.sleep(TURN_S)
        return False

    @property
    def leads(self) -> bool:
        return self.membership.leads

    async def deaths(self) -> AsyncIterator[None]:
        """Whose port is still held is slow, and not dead: what he runs is his."""
        while True:
            await self._has_dead.wait()
            for dead, address in list(self._dead.items()):
                if dead in self._peers or await self._holds(address):
                    continue
                yield
                self.membership.send(scripts.TAKEN_OVER, dead)
                self._taken_over.add(dead)
                self._dead.pop(dead, None)
            if self._dead:
                await asyncio.sleep(LOOK_S)
            else:
                self._has_dead.clear()

    async def _holds(self, address: str) -> bool:
        if not address or address in {at for _, at in self._peers.values()}:
            return False  # It left, or has a successor.
        host, _, port = address.rpartition(":")
        try:
            async with asyncio.timeout(CONNECT_S):
                _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
        except OSError:  # also the timeout
            return False
        writer.close()
        return True

    # ── requests at endpoints ────────────────────────────────────────────────────────────────────────────────────────

    def in_flight(self, url: str) -> InFlight:
        name = short(url)
        if (found := self._requests.get(name)) is None:

            def on_drain(draining: bool) -> None:
                self.notes.set(f"drain:{name}", "1" if draining else "0")

            found = ReplicaInFlight(url, self._inner.in_flight(url), self.membership, on_drain, self._count)
            found.hear_of_drain(self.notes.known.get(f"drain:{name}") == "1")
            self._requests[name] = found
            self._count(found)
        return found

    def _count(self, count: ReplicaCount) -> None:
        self._counts[count.name] = count
        self.membership.look()

    def exclusive(self) -> AbstractContextManager[None]:
        return self._inner.exclusive()

    def remember(self, names: Iterable[str], running: InFlight) -> None:
        if isinstance(running, ReplicaInFlight):
            self.membership.send(counting.REMEMBER, running.name, WARM_MS, *map(short, names))

    # ── peers ────────────────────────────────────────────────────────────────────────────────────────────────────────

    @asynccontextmanager
    async def answering(self, app: ASGIApp, http: type[asyncio.Protocol]) -> AsyncGenerator[None]:
        host, port = self._advertised()
        own = host or self.membership.valkey.own_host or _own_host(self._at)
        listen_at = "" if host else own
        async with (
            self._inner.answering(app, http),
            peers.answering_at(app, http, listen_at, port, lambda: self.membership.secret) as port,
        ):
            self.membership.answers_at(f"{f'[{own}]' if ':' in own else own or socket.gethostname()}:{port}")
            try:
                yield
            finally:
                self.membership.answers_at("")

    def _advertised(self) -> tuple[str, int]:
        """Host and port of `cluster.advertise`; the workers of a machine have ports one behind the other."""
        host, _, port = self._config.advertise.partition(":")
        return host, int(port) + max(getattr(self._inner, "number", 0), 0) if port else 0

    def _others(self) -> list[peers.Peer]:
        known = sorted((number, address) for number, address in self._peers.values() if address)
        return [self._peer(address) for _, address in known]

    async def _asked(self) -> list[peers.Peer]:
        """The others, and who is slow: it does not answer, and that is what whoever asks must know, for what it runs is
        nobody else's. Also where another process looks after it, or where the server has forgotten it."""
        gone = {**self._before, **self._dead_of_others, **self._dead}
        slow = [address for who, address in gone.items() if who not in self._peers and await self._holds(address)]
        return self._others() + [self._peer(address) for address in dict.fromkeys(slow)]

    def _peer(self, address: str) -> peers.Peer:
        return peers.Peer(f"peer {address}", None, address, self.membership.secret)

    async def ask(self, method: str, path: str, headers: Mapping[str, str]) -> list[Any]:
        return await peers.ask(await self._asked(), method, path, headers)

    async def ask_machine(self, method: str, path: str, headers: Mapping[str, str]) -> list[Any]:
        return await self._inner.ask(method, path, headers)

    async def find(self, method: str, path: str, headers: Mapping[str, str]) -> PeerAnswer | None:
        return await peers.find(await self._asked(), method, path, headers)

    # ── what is heard ────────────────────────────────────────────────────────────────────────────────────────────────

    def is_busy(self) -> bool:
        return self.line.is_busy() or any(one.confirmed for one in self._requests.values())

    def own_requests(self) -> Iterable[tuple[str, int]]:
        return chain(total_of(self._counts.values()), self.quotas.own())

    def own_line(self) -> tuple[int, int]:
        return self.line.own()

    def deleted(self) -> int:
        return self.deletions.value

    def own_notes(self) -> Iterable[tuple[str, str]]:
        return self.notes.known.items()

    def counted(self) -> list[str]:
        return list(self._counts)

    def hear_totals(self, totals: dict[str, tuple[int, int]]) -> None:
        freed = False
        for name, (total, own) in totals.items():
            freed |= self._counts[name].hear(total - own)
        if freed:
            self.line.woken()

    def hear_all(self, lines: dict[str, str], notes: dict[str, str], peers: dict[str, str], deletions: int) -> None:
        self.line.hear_all(lines)
        for name, text in notes.items():
            self.notes.hear(name, text)
        self.notes.send_again()
        found = {who: peer.partition(" ") for who, peer in peers.items() if who != self.membership.id}
        self._peers = {who: (int(number), address) for who, (number, _, address) in found.items()}
        self.line.has_others = bool(self._peers)
        self._deletions.hear(deletions)
        if self._has_lost:
            # For what was deleted while this process could not hear of it.
            self._has_lost = False
            self.deletions.add(1)

    def hear(self, kind: str, sender: str, text: str) -> None:
        match kind:
            case "W":
                words = text.split()
                for name, total in zip(words[::2], words[1::2], strict=True):
                    if counted := self._counts.get(name):
                        counted.hear(int(total) - counted.confirmed)
                self.line.woken()
            case "L":
                waiting, since_us = text.split()
                self.line.hear(sender, int(waiting), int(since_us))
            case "N":
                name, _, note = text.partition(" ")
                self.notes.hear(name, note)
            case "D":
                self._deletions.hear(int(text))

    def _hear_note(self, name: str, text: str) -> None:
        kind, _, about = name.partition(":")
        if kind == "drain" and (one := self._requests.get(about)):
            one.hear_of_drain(text == "1")

    def hear_deaths(self, dead: dict[str, str], of_others: dict[str, str]) -> None:
        if self._has_missed:
            self._has_missed = False
            self._before.clear()  # They are among the dead now, or somebody has looked after them already.
        self._dead_of_others = of_others
        # What is on its way may have been asked before it was taken over.
        self._taken_over &= dead.keys()
        self._dead = {who: address for who, address in dead.items() if who not in self._taken_over}
        if self._dead:
            self._has_dead.set()

    def joining(self) -> None:
        known = {who: address for who, (_, address) in self._peers.items()}
        self._before |= known | self._dead_of_others | self._dead
        if self._before:
            if self._looking_for is not None:
                self._looking_for.cancel()
            # Those who live have joined by then.
            loop = asyncio.get_running_loop()
            self._looking_for = loop.call_later(self.membership.lease_s, self._look_for_them)

    def _look_for_them(self) -> None:
        self._looking_for = None
        missing = [word for who, at in self._before.items() if who not in self._peers for word in (who, at)]
        if not self.membership.is_joined:
            return  # It joins again, and looks again.
        if missing:
            self.membership.send(scripts.MISSING, *missing, on_answer=self._missed)
        else:
            self._before.clear()

    def _missed(self, answer: Any) -> None:
        """The server knows who is missing, and so does this process with its next beat."""
        if answer == 0:
            self._has_missed = True
            self.membership.look()

    def lost(self) -> None:
        self.line.lost()
        self._deletions.lost()
        for one in self._counts.values():
            one.hear(0)
        self._has_lost = True
        # As far as is known, fewer run than did.
        self.line.woken()


def _own_host(to: Address) -> str:
    """The address of this machine on the way to another one; empty where nobody knows. Nothing is sent."""
    with suppress(OSError):
        family, _, _, _, there = socket.getaddrinfo(to.host, to.port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(there)
            return str(probe.getsockname()[0])
    return ""
