"""A process's place among those that share a Valkey: its lease, and what it hears of the others.

    JOIN ──▶ BEAT, each second, and each 50 ms while something runs here ──▶ LEAVE
     ▲        │ UNKNOWN: the lease ran out, or the server has forgotten all
     └────────┘ and so it is each time that the connection is made

With JOIN comes all that this process has running: what the server counts is the sum of what the processes know.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from secrets import token_hex
from typing import Any, Protocol

from cluster import valkey_counting as counting
from cluster import valkey_scripts as scripts
from core.valkey import Argument, OnAnswer, Script, Valkey, ValkeyError
from core.valkey_address import Address

log = logging.getLogger("nomyo.cluster")

# A process that was not heard for so long is dead; each is heard three times as often, and more often while it matters
# what the others have.
LEASE_S = 3.0
BEATS = 3
BUSY_BEAT_S = 0.05
# So often the leader adds up all requests anew: what a server loses of its own accord is there again then.
SUM_S = 5.0
# At once: a script takes no more than some thousands.
LOOKED_AT = 4000
# In this time those who live have joined again a server that has forgotten all.
REJOIN_S = 0.6


class Listener(Protocol):
    """Who keeps what the others share."""

    def is_busy(self) -> bool:
        """Whether others' counts matter right now."""
        ...

    def own_requests(self) -> Iterable[tuple[str, int]]:
        """What runs here: what the server is to count for this process."""
        ...

    def own_line(self) -> tuple[int, int]:
        """How many wait here, and since when, in µs of the server's time; 0 and 0 where nobody does."""
        ...

    def deleted(self) -> int:
        """How many deletions are known."""
        ...

    def own_notes(self) -> Iterable[tuple[str, str]]:
        """The notes that are known."""
        ...

    def counted(self) -> list[str]:
        """The server's names of the endpoints, and of their models."""
        ...

    def hear_totals(self, totals: dict[str, tuple[int, int]]) -> None:
        """The requests at endpoints, of all processes and of this one, as the server has them."""
        ...

    def hear_all(self, lines: dict[str, str], notes: dict[str, str], peers: dict[str, str], deletions: int) -> None:
        """Everything else, as it is at the server."""
        ...

    def hear(self, kind: str, sender: str, text: str) -> None:
        """One change of it, or a wake-up, of another process: kinds are those of the scripts."""
        ...

    def hear_deaths(self, dead: dict[str, str], of_others: dict[str, str]) -> None:
        """The processes whose work is this one's to take over, and those whose work is another one's, each with the
        address where it was asked."""
        ...

    def lost(self) -> None:
        """The server is away: nothing of the others is known any more."""
        ...

    def joining(self) -> None:
        """This process joins, once more if it did before: the server may have forgotten who was there."""
        ...


class Membership:
    """That of this process in the service `name`, with a lease of `lease_s`."""

    def __init__(self, address: Address, name: str, listener: Listener, lease_s: float = LEASE_S) -> None:
        self.lease_s = lease_s
        self.id = token_hex(6)
        self.name = name
        self._listener = listener
        self.valkey = Valkey(
            address,
            "cluster.url",
            scripts=(*scripts.ALL, *counting.ALL),
            on_open=self.join,
            on_lost=self._lost,
            meanwhile="each process counts for itself until it is back",
        )
        self.valkey.listen(f"{{{name}}}:news", self._news)
        # Whether the server knows of this process, or will before anything that is sent to it from now on.
        self.is_joined = False
        self.number = -1
        # By which the peers know each other.
        self.secret = token_hex(32)
        self.address = ""
        self.serves = False
        # Whether the server had forgotten everything, or never known anything, when this process came.
        self.was_empty = False
        self.joined_at = 0.0
        self._joining = False
        self._epoch = token_hex(6)
        self._version = -1
        self._leads_until = 0.0
        self._offset_us = 0
        self._least_round_trip_s = 1.0
        self._summed_at = self._beaten_at = 0.0
        self._ended: Counter[str] = Counter()
        self._settled: list[Argument] = []
        self._flush: asyncio.Handle | None = None
        self._due = asyncio.Event()
        self._heard = asyncio.Event()
        self._beating: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Joins, if the server is there. Raises `StartError` where it lets nobody in."""
        await self.valkey.open()
        if self.is_joined:
            with suppress(TimeoutError):
                async with asyncio.timeout(2.0):
                    await self._heard.wait()
        self._beating = asyncio.create_task(self._beat_for_ever(), name="heartbeat")

    async def close(self) -> None:
        """Leaves."""
        if self._beating is not None:
            self._beating.cancel()
            with suppress(asyncio.CancelledError):
                await self._beating
        if self._flush is not None:
            self._flush.cancel()
        if self.is_joined:
            with suppress(ConnectionError, ValkeyError):
                await self.ask(scripts.LEAVE)
        self.is_joined = False
        await self.valkey.close()

    @property
    def leads(self) -> bool:
        """Whether this process has the lease of the leader."""
        return self.is_joined and time.monotonic() < self._leads_until

    # ── to the server ────────────────────────────────────────────────────────────────────────────────────────────────

    def send(self, script: Script, *args: Argument, on_answer: OnAnswer | None = None) -> bool:
        """Runs a script for this process, without a wait, behind what has ended before. False while nobody is there to
        run it."""
        if not self.is_joined:
            return False
        if self._ended or self._settled:
            self._send_ended()
        return self.valkey.start(script, (self.name, self.id, *args), on_answer)

    def ask(self, script: Script, *args: Argument) -> asyncio.Future[Any]:
        """What a script gives. Raises `ConnectionError`, `ValkeyError`."""
        return self.valkey.run(script, self.name, self.id, *args)

    def ended(self, endpoint: str, requests: int = 1) -> None:
        """Requests of this process there have ended: those of one moment go together."""
        if self.is_joined:
            self._ended[endpoint] += requests
            self._flush_soon()

    def settled(self, words: Sequence[Argument]) -> None:
        """Of quotas something else was used than was taken, as `END` has it: goes with what has ended."""
        if self.is_joined:
            self._settled += words
            self._flush_soon()

    @property
    def has_ended(self) -> bool:
        """Whether some have, and the server is about to hear of it: it sends a wake-up then."""
        return bool(self._ended)

    def _flush_soon(self) -> None:
        if self._flush is None:
            self._flush = asyncio.get_running_loop().call_soon(self._flush_ended)

    def _flush_ended(self) -> None:
        self._flush = None
        if self._ended or self._settled:
            self._send_ended()

    def _send_ended(self) -> None:
        ended = [word for one in self._ended.items() for word in one]
        settled, self._settled = self._settled, []
        self._ended.clear()
        self.valkey.start(counting.END, (self.name, self.id, len(ended) // 2, *ended, *settled))

    def join(self) -> None:
        """Lets the server know of this process and all that it has running, unless that is on its way."""
        if self._joining:
            return
        self._joining = self.is_joined = True
        self._listener.joining()
        self._ended.clear()  # What has ended is not among what runs.
        self._version = -1
        listener = self._listener
        waiting, since_us = listener.own_line()
        requests = list(listener.own_requests())
        notes = [word for note in listener.own_notes() for word in note]
        serves = 1 if self.serves else 0
        known: list[Argument] = [int(self.lease_s * 1000), self.number, self.address]
        known += [listener.deleted(), self._epoch, self.secret, waiting, since_us, serves, len(requests)]
        known += [word for request in requests for word in request]
        self.send(scripts.JOIN, *known, *notes, on_answer=self._joined)
        self._beat()

    def _joined(self, answer: Any) -> None:
        self._joining = False
        if isinstance(answer, Exception):
            if isinstance(answer, ValkeyError):
                # It is full, or a copy that nobody may write to.
                log.error("Valkey does not take this process, which counts for itself: %s", answer)
                self._lost()
                asyncio.get_running_loop().call_later(self.lease_s, self._join_again)
            return
        self.number, is_empty = answer
        self.was_empty = bool(is_empty)
        self.joined_at = time.monotonic()

    def _join_again(self) -> None:
        if self.valkey.is_there and not self.is_joined:
            self.join()

    def answers_at(self, address: str) -> None:
        """From now on this process answers its peers there."""
        self.address = address
        self.send(scripts.ANSWERS, self.number, address)

    # ── from the server ──────────────────────────────────────────────────────────────────────────────────────────────

    def server_us(self, monotonic_s: float) -> int:
        """A time of ours in the server's, in µs."""
        return int(monotonic_s * 1e6) + self._offset_us

    def look(self) -> None:
        """Has a beat come soon: something may have changed."""
        self._due.set()

    async def _beat_for_ever(self) -> None:
        while True:
            every_s = BUSY_BEAT_S if self._listener.is_busy() else self.lease_s / BEATS
            with suppress(TimeoutError):
                async with asyncio.timeout(every_s):
                    await self._due.wait()
            if self.is_joined:
                if self._due.is_set() or time.monotonic() - self._beaten_at >= self.lease_s / BEATS:
                    self._beat()
                else:
                    self.look_at_requests()
            self._due.clear()

    def look_at_requests(self) -> None:
        """Asks for the requests at all endpoints, and to their models."""
        names = self._listener.counted()
        for at in range(0, len(names), LOOKED_AT):
            some = names[at : at + LOOKED_AT]
            self.send(scripts.LOOK, *some, on_answer=partial(self._hear_requests, some))

    def _hear_requests(self, names: list[str], answer: Any) -> None:
        if answer == scripts.UNKNOWN:
            self.join()
        elif not isinstance(answer, Exception):
            totals, own = answer
            counted = zip(totals, own, strict=True)
            counts = {
                name: (int(total or 0), int(mine or 0)) for name, (total, mine) in zip(names, counted, strict=True)
            }
            self._listener.hear_totals(counts)

    def _beat(self) -> None:
        now = self._beaten_at = time.monotonic()
        sums = now - self._summed_at > SUM_S and self.leads
        if sums:
            self._summed_at = now

        def heard(answer: Any) -> None:
            if answer == scripts.UNKNOWN:
                self.join()
            elif not isinstance(answer, Exception):
                self._hear_beat(answer, now)

        self.send(scripts.BEAT, int(self.lease_s * 1000), self._version, 1 if sums else 0, on_answer=heard)
        self.look_at_requests()

    def _hear_beat(self, answer: list[Any], sent_at: float) -> None:
        server_us, version, leads, dead, of_others, *changed = answer
        now = time.monotonic()
        # The quickest answer knows the time best; the clocks may drift apart.
        self._least_round_trip_s *= 1.01
        if now - sent_at <= self._least_round_trip_s:
            self._least_round_trip_s = now - sent_at
            self._offset_us = server_us - int((sent_at + now) / 2 * 1e6)
        self._leads_until = sent_at + self.lease_s if leads else 0.0
        if changed:
            lines, notes, peers, deletions, epoch, secret = changed
            self._version, self._epoch, self.secret = version, epoch.decode(), secret.decode() or self.secret
            self._listener.hear_all(_texts(lines), _texts(notes), _texts(peers), int(deletions))
        self._listener.hear_deaths(_texts(dead), _texts(of_others))
        self._heard.set()

    def _news(self, message: bytes) -> None:
        kind, sender, *rest = message.decode().split(" ", 2)
        text = rest[0] if rest else ""
        if kind in scripts.VERSIONED:
            number, _, text = text.partition(" ")
            version = int(number)
            if version != self._version + 1:
                # Something was missed: the next beat brings all of it.
                if version > self._version:
                    self.look()
                return
            self._version = version
        if sender != self.id:
            if kind == "V":
                self.look()
            else:
                self._listener.hear(kind, sender, text)

    def _lost(self) -> None:
        self.is_joined = self._joining = False
        self._leads_until = 0.0
        self._ended.clear()
        self._settled.clear()
        self._listener.lost()


def _texts(flat: list[bytes]) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in zip(flat[::2], flat[1::2], strict=True)}
