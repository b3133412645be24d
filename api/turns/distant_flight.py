"""A shared answer that another process makes: one call to a backend for equal requests at all replicas at once.

    claim ──ours──▶ the flight is made here, and a `Copy` of it goes where all can read it
      └──another's──▶ `follow`: what that one writes is given to those who read here

What is written: `headers` once, `events` batch by batch, then that it is `over`, or has `failed`. Each has a number.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from backends.wire.relay import Out, drained
from cluster.protocol import Cluster, EventWriter
from core.errors import ServerError

# A process that leads may have died: so often it is looked who leads now.
LOOK_S = 1.0


class Copy:
    """What other processes read of a flight of this one."""

    def __init__(self, writer: EventWriter, records: list[dict[str, Any]]) -> None:
        self._writer = writer
        self._records = records

    @classmethod
    def of(cls, cluster: Cluster, flight_id: str) -> Copy | None:
        """None where nobody else could read it."""
        records: list[dict[str, Any]] = []
        writer = cluster.events.writer(flight_id, records)
        return None if writer is None else cls(writer, records)

    def add(self, **record: object) -> None:
        """Writes one of `headers` and `events`."""
        self._records.append({"sequence_number": len(self._records), **record})
        self._writer.added()

    def close(self, *, has_failed: bool) -> None:
        """Writes that there is no more."""
        self.add(**{"failed" if has_failed else "over": True})
        # Whoever comes later finds it in the cache.
        self._writer.close(is_stored=True)


async def follow(
    cluster: Cluster,
    flight_id: str,
    still_leads: Callable[[], Awaitable[bool]],
    take_headers: Callable[[dict[str, str]], None],
    out: Out,
) -> None:
    """Writes the batches of a flight of another process, as they come. Raises `ServerError` where that one fails, or is
    gone."""
    after = -1
    with cluster.events.news(flight_id) as news:
        while True:
            news.clear()
            records = await cluster.events.read(flight_id, after) or []
            for record in records:
                after = record["sequence_number"]
                if "over" in record:
                    return
                if "failed" in record:
                    raise ServerError("Another router failed to answer this request.", status=502)
                if "headers" in record:
                    take_headers(record["headers"])
                elif not out.write(record["events"]):
                    await drained(out)
            if records:
                continue
            try:
                async with asyncio.timeout(LOOK_S):
                    await news.wait()
            except TimeoutError:
                # What it has written last may have come meanwhile.
                if not await still_leads() and not await cluster.events.read(flight_id, after):
                    raise ServerError("Another router has stopped to answer this request.", status=503) from None
