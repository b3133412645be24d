"""Wake-ups from other services on the same database: LISTEN on a session of its own.

    NOTIFY channel ──▶ the session ──▶ called, in the running loop

One may be lost, as while there is no session: whoever listens looks from time to time as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping

import psycopg

from stores.postgres_connection import ConnectionLost, PostgresConnection, Statement, StatementLimits

log = logging.getLogger("nomyo.db")

# How long after it was lost the session is made anew.
AGAIN_S = 1.0


class PostgresListener:
    """Listens at `url` from `open` to `close`. `channels` are what is called for each, with the payload."""

    def __init__(self, url: str, limits: StatementLimits, channels: Mapping[str, Callable[[str], object]]) -> None:
        self._url = url
        self._limits = limits
        self._channels = channels
        self._listening: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Begins to listen, as soon as there is a session."""
        self._listening = asyncio.create_task(self._listen(), name="database listener")

    async def close(self) -> None:
        """Listens no more."""
        if self._listening is not None:
            self._listening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._listening

    async def _listen(self) -> None:
        while True:
            with contextlib.suppress(psycopg.Error, ConnectionLost, TimeoutError, OSError):
                await self._listen_once()
            await asyncio.sleep(AGAIN_S)

    async def _listen_once(self) -> None:
        connection = await PostgresConnection.open(self._url, self._limits)
        try:
            if not connection.takes_options:
                # A pooler: what another session hears is not for us.
                return
            closed = asyncio.Event()
            connection.on_close = closed.set
            connection.on_notify = self._heard
            await connection.run([Statement(f"LISTEN {channel}") for channel in self._channels])
            # What came before is not known.
            for call in self._channels.values():
                call("")
            await closed.wait()
        finally:
            connection.close()

    def _heard(self, channel: str, payload: str) -> None:
        if (call := self._channels.get(channel)) is not None:
            call(payload)
