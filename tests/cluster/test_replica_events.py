"""Events of background streams at a Valkey: when they are written, and in what batches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from cluster import valkey_events
from cluster.valkey_events import BATCH_BYTES, BATCH_S, ReplicaEvents
from core.json import decode_json
from core.valkey_address import Address
from tests.engines.valkey import ValkeyServer
from tests.turns import eventually

KEY = "{nomyo}:events:resp_1"


@pytest.fixture
async def shared(valkey: ValkeyServer) -> AsyncIterator[ReplicaEvents]:
    events = ReplicaEvents(Address.of(valkey.url, "cluster.url"), "nomyo", 1.0)
    await events.valkey.open()
    yield events
    await events.valkey.close()


class Stream:
    """Events of a stream as they are made."""

    def __init__(self, shared: ReplicaEvents) -> None:
        self.events: list[dict[str, Any]] = []
        writer = shared.writer("resp_1", self.events)
        assert writer is not None
        self.writer = writer

    def add(self, *lengths: int) -> None:
        """Events with texts of these lengths, which one read of the backend held."""
        for length in lengths:
            self.events.append({"sequence_number": len(self.events), "delta": "x" * length})
        self.writer.added()


def batches(valkey: ValkeyServer) -> list[bytes]:
    return [fields[1] for _, fields in valkey.run("XRANGE", KEY, "-", "+")]


async def sent(shared: ReplicaEvents) -> None:
    """What was sent before has arrived."""
    await shared.valkey.call("PING")


def test_a_batch_is_20_ms_old_or_32_kb_long() -> None:
    assert (BATCH_S, BATCH_BYTES) == (0.02, 32 * 1024)


async def test_32_kb_are_sent_at_once_and_less_waits(
    shared: ReplicaEvents, valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Stream(shared)
    stream.add(10)
    await eventually(lambda: len(batches(valkey)) == 1, "the first is there at once")
    monkeypatch.setattr(valkey_events, "BATCH_S", 3600.0)
    for _ in range(3):
        stream.add(10_000)
        await sent(shared)
        assert len(batches(valkey)) == 1, "it is early, and short"
    stream.add(10_000)
    await sent(shared)
    assert [len(decode_json(batch)) for batch in batches(valkey)] == [1, 4]
    stream.add(10)
    stream.writer.close(is_stored=False)
    await sent(shared)
    assert [event for batch in batches(valkey) for event in decode_json(batch)] == stream.events
    assert await shared.read("resp_1") == stream.events


async def test_no_batch_is_longer_than_that_by_more_than_its_last_event(
    shared: ReplicaEvents, valkey: ValkeyServer
) -> None:
    stream = Stream(shared)
    lengths = [1000] * 200 + [100_000] + [10] * 5000
    stream.add(*lengths)
    stream.writer.close(is_stored=False)
    await eventually(lambda: sum(len(decode_json(batch)) for batch in batches(valkey)) == len(lengths), "all are there")
    for batch in batches(valkey):
        *before, _ = decode_json(batch)
        assert sum(len(event["delta"]) for event in before) < BATCH_BYTES
    assert 10 < len(batches(valkey)) < 40
    read: list[dict[str, Any]] = []
    while more := await shared.read("resp_1", len(read) - 1):
        read += more
    assert read == stream.events


async def test_what_waits_for_a_server_that_is_away_is_written_when_it_is_back(own_valkey: ValkeyServer) -> None:
    shared = ReplicaEvents(Address.of(own_valkey.url, "cluster.url"), "nomyo", 1.0)
    await shared.valkey.open()
    try:
        stream = Stream(shared)
        stream.add(10, 20)
        await eventually(lambda: len(batches(own_valkey)) == 1, "it is there")
        own_valkey.kill()
        for _ in range(20):
            stream.add(5000)
            await asyncio.sleep(0)
        own_valkey.start()

        async def has_all() -> bool:
            return await shared.read("resp_1") == stream.events

        await eventually(has_all, "all of it is there, also what was there before")
    finally:
        await shared.valkey.close()
