"""The events of background streams at a Valkey: a stream of batches for each response, and a channel that has something
new to read.

    events ──20 ms, 32 KB──▶ APPEND ──▶ stream ──▶ read, from any number on
                               └──────▶ channel ──▶ news

What the server has forgotten is written again, from the first event on: the process that makes them has all of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from cluster import valkey_scripts as scripts
from cluster.protocol import EventWriter, SharedEvents
from core.json import decode_json, encode_json
from core.valkey import Argument, Script, Valkey, ValkeyError
from core.valkey_address import Address

Event = dict[str, Any]

# A batch is sent when it is so old, or so long as JSON.
BATCH_S = 0.02
BATCH_BYTES = 32 * 1024
# What is on its way to the server at the same time.
MOST_BATCHES = 16
RETRY_S = 0.25
# How long those of an ended stream are kept that are stored as well.
STORED_MS = 10 * 60 * 1000
# Batches that one reading gives.
READ_BATCHES = 64


# The id of a response, for how many ms it is kept, whether there are events of it here, and, but for the last one, a
# batch: its number, and its events. Gives UNKNOWN where those that were here are gone.
APPEND = Script(
    """
local key = '{' .. KEYS[1] .. '}:events:' .. ARGV[1]
if ARGV[3] == '1' and redis.call('EXISTS', key) == 0 then return -1 end
if #ARGV > 3 then
    -- One that is here already has a number that is not above the last one's.
    local added = redis.pcall('XADD', key, ARGV[4] .. '-0', 'events', ARGV[5])
    if added.err and not string.find(added.err, 'equal or smaller') then return added end
end
redis.call('PEXPIRE', key, ARGV[2])
redis.call('PUBLISH', key, '')
return 0
"""
)


class ReplicaEvents(SharedEvents):
    """Those of the service `name`, on a connection of their own: they are many, and nobody's slot waits behind them."""

    def __init__(self, address: Address, name: str, hours: float) -> None:
        self._prefix = f"{{{name}}}:events:"
        self.name = name
        self.keep_ms = int(hours * 3600 * 1000)
        # What is wrong with the server is in the log by the other connection.
        self.valkey = Valkey(address, "cluster.url", scripts=(APPEND,))
        self._news: dict[str, set[asyncio.Event]] = {}

    def writer(self, response_id: str, events: list[Event]) -> EventWriter | None:
        return StreamWriter(self, response_id, events)

    async def read(self, response_id: str, after: int = -1) -> list[Event] | None:
        key = f"{self._prefix}{response_id}"
        try:
            # The number of a batch is one above its last event's.
            batches = await self.valkey.call("XRANGE", key, f"{after + 2}-0", "+", "COUNT", READ_BATCHES)
            if not batches and not await self.valkey.call("EXISTS", key):
                return None
        except (ConnectionError, ValkeyError):
            return None
        events = [event for _, (_, batch) in batches for event in decode_json(batch)]
        return [event for event in events if event["sequence_number"] > after]

    @contextmanager
    def news(self, response_id: str) -> Iterator[asyncio.Event]:
        event = asyncio.Event()
        channel = f"{self._prefix}{response_id}"
        readers = self._news.setdefault(response_id, set())
        if not readers:
            self.valkey.listen(channel, lambda _: self._notify(response_id))
        readers.add(event)
        try:
            yield event
        finally:
            readers.discard(event)
            if not readers and self._news.get(response_id) is readers:
                del self._news[response_id]
                self.valkey.stop_listening(channel)

    async def is_read(self, response_id: str) -> bool:
        try:
            _, processes = await self.valkey.call("PUBSUB", "NUMSUB", f"{self._prefix}{response_id}")
        except (ConnectionError, ValkeyError):
            return False
        return bool(processes)

    def _notify(self, response_id: str) -> None:
        for event in self._news.get(response_id, ()):
            event.set()


class StreamWriter(EventWriter):
    """Writes one stream, in batches, and what could not be written again."""

    def __init__(self, log: ReplicaEvents, response_id: str, events: list[Event]) -> None:
        self._log = log
        self._id = response_id
        self._events = events
        # How many were sent, and how many the server has.
        self._sent = self._kept = 0
        # The next batch, as JSON.
        self._next: list[bytes] = []
        self._next_bytes = 0
        # How many are on their way.
        self._batches = 0
        self._due: asyncio.Handle | None = None
        self._is_closed = self._is_stored = self._is_ended = False

    def added(self) -> None:
        self._fill()
        if self._next_bytes >= BATCH_BYTES:
            self._write()
        elif self._due is None:
            # The first at once: who knows the id of a stream shall find it there, and not only at its maker.
            self._due = asyncio.get_running_loop().call_later(BATCH_S if self._sent else 0.0, self._write)

    def close(self, *, is_stored: bool) -> None:
        self._is_closed, self._is_stored = True, is_stored
        self._write()

    def _write(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None
        self._fill()
        while self._next and self._batches < MOST_BATCHES:
            until = self._sent + len(self._next)
            number = self._events[until - 1]["sequence_number"] + 1
            if not self._append(until, number, b"[%b]" % b",".join(self._next)):
                return
            self._fill()
        if self._is_closed and self._sent == len(self._events) and not self._is_ended:
            self._is_ended = self._append(self._sent)

    def _fill(self) -> None:
        """Encodes what the next batch has room for."""
        at = self._sent + len(self._next)
        while self._next_bytes < BATCH_BYTES and at < len(self._events):
            self._next.append(encode_json(self._events[at]))
            self._next_bytes += len(self._next[-1]) + 1
            at += 1

    def _go_on_from(self, sent: int) -> None:
        self._sent = sent
        self._next, self._next_bytes = [], 0

    def _append(self, until: int, *batch: Argument) -> bool:
        """Sends the events up to one. False, and later again, where it cannot be."""
        keep_ms = STORED_MS if self._is_stored else self._log.keep_ms
        args = (self._log.name, self._id, keep_ms, 1 if self._sent else 0, *batch)
        if not self._log.valkey.start(APPEND, args, partial(self._written, until)):
            self._again()
            return False
        self._batches += 1
        self._go_on_from(until)
        return True

    def _written(self, until: int, answer: Any) -> None:
        self._batches -= 1
        if answer == 0:
            self._kept = max(self._kept, until)
            if self._sent < len(self._events) and not self._batches:
                self._write()
        elif not self._is_stored:
            if answer == scripts.UNKNOWN:
                self._kept = 0  # It was written, and the server has lost it.
            self._is_ended = False
            self._again()

    def _again(self) -> None:
        """What the server does not have is sent in a while: it is away, or has just come back."""
        if self._batches:
            return  # The last answer comes here too.
        self._go_on_from(self._kept)
        if self._due is None:
            self._due = asyncio.get_running_loop().call_later(RETRY_S, self._write)
