"""The database behind the store in PostgreSQL, as a process has it open: connections to write and to read, and what it
hears of the others that share it.

    open ──▶ wait for the server ──▶ migrate ──▶ connections ──▶ seen every few seconds, until close

A process that was not seen for `LEASE_S` is dead, and what it has left unfinished is anybody's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import re
import time
from collections.abc import AsyncIterator
from secrets import token_hex
from urllib.parse import urlsplit

import psycopg

from core.config import DatabaseConfig
from core.deletions import Deletions
from core.errors import StartError
from stores import postgres_sql as sql
from stores.migrations.postgres import migrate
from stores.postgres_connection import ResultRow, Statement, StatementLimits, conninfo_of, one_line
from stores.postgres_listener import PostgresListener
from stores.postgres_pool import PostgresPool, Reach
from stores.postgres_values import decode_integer
from stores.writing import Outage, Write

log = logging.getLogger("nomyo.db")

# A process that stands still for less is slow, and not dead.
LEASE_S = 30
FOR_EVER_S = 10**9
SEEN_EVERY_S = 5.0
# How often it is looked for what the dead have left.
LOOK_FOR_ABANDONED_S = 5.0
# How long a row that somebody else changes is waited for.
LOCKED_S = 5.0
# The channels of deletions and cancellations, and how often it is looked for those that were not heard of: who cancels
# waits for less than a second.
DELETIONS = "nomyo_deletions"
UNWANTED = "nomyo_unwanted"
LOOK_EVERY_S = 1.0
UNWANTED_EVERY_S = 0.5
# After a longer gap nobody may have been seen.
GAP_S = 3 * SEEN_EVERY_S
# How long a start waits for a server that is not there.
PATIENCE_S = 30.0
ATTEMPT_EVERY_S = 1.0
# What waiting does not mend.
HOPELESS = re.compile(
    r"authentication failed|no password supplied|no pg_hba.conf entry|does not exist|does not support SSL|certificate"
    r"|permission denied|not permitted|invalid .*(option|port)|root\.crt",
    re.IGNORECASE,
)


class PostgresDatabase:
    """The database at `url`, with other `settings`. `service` has it open; an empty one runs no turns."""

    def __init__(self, url: str, settings: DatabaseConfig, deletions: Deletions, service: str) -> None:
        self.name = name_of(url)
        self._url = url
        self._direct_url = settings.direct_url or url
        self._limits = StatementLimits(settings.timeout_s, min(settings.timeout_s / 2, LOCKED_S))
        # One writes and one keeps house, so that no reader keeps them waiting; and one listens.
        readers = settings.max_connections - (3 if service else 1)
        reach = Reach()
        self._writer = PostgresPool(url, self.name, 1, self._limits, reach)
        self._keeper = PostgresPool(url, self.name, 1, self._limits, reach)
        self._readers = PostgresPool(url, self.name, max(1, readers), self._limits, reach)
        self._deletions = deletions
        # How many were counted in the database: by others, when it was looked last, and by this one.
        self._foreign_deletions: int | None = None
        self._own_deletions = 0
        self._deleted = asyncio.Event()
        self._unwanted = asyncio.Event()
        channels = {DELETIONS: lambda _: self._deleted.set(), UNWANTED: lambda _: self._unwanted.set()}
        self._listener = PostgresListener(self._direct_url, self._limits, channels)
        # When it began to be seen without a gap.
        self._steady_since = math.inf
        self._seen_at = -math.inf
        self._service = service
        self.process = token_hex(8) if service else ""
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """Makes what the database lacks. Raises `StartError`."""
        conninfo_of(self._url), conninfo_of(self._direct_url)
        try:
            await self._patiently()
        except (psycopg.Error, Outage) as error:
            raise StartError(f"{self.name} cannot be used: {one_line(str(error))} (database.url)") from None
        if self._service:
            await self._be_seen()
            self._deleted, self._unwanted = asyncio.Event(), asyncio.Event()
            self._listener.open()
            self._tasks = [
                asyncio.create_task(self._stay_seen(), name="seen by other processes"),
                asyncio.create_task(self._watch_deletions(), name="deletions of other processes"),
            ]

    async def close(self) -> None:
        """What this process has left unfinished is anybody's from now on."""
        await self._listener.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._tasks:
            self._tasks = []
            with contextlib.suppress(Outage, psycopg.Error):
                await self._keeper.run(Statement(sql.FORGET, (self.process,)))
        for pool in (self._writer, self._keeper, self._readers):
            pool.close()

    async def write(self, *statements: Statement) -> list[list[ResultRow]]:
        """The rows of each, in one transaction. Raises `Outage` where the database is away, and `psycopg.Error`."""
        return await self._writer.run(*statements)

    async def read(self, *statements: Statement) -> list[list[ResultRow]]:
        """The rows of each, in one transaction. Raises as `write` does."""
        return await self._readers.run(*statements)

    def announcing_deletions(self, number: int) -> list[Write]:
        """What the other processes hear of a deletion by, as a part of it."""
        return [(sql.COUNT_DELETIONS, (number,)), (sql.NOTIFY, (DELETIONS, ""))]

    def count_deletions(self, number: int) -> None:
        """Counts deletions of this one, which are committed."""
        self._own_deletions += number
        self._deletions.add(number)

    async def abandoned(self) -> AsyncIterator[None]:
        """Gives one each time that there is something unfinished that no process works on which was seen lately."""
        while self._service:
            await asyncio.sleep(LOOK_FOR_ABANDONED_S)
            if await self.look(Statement(sql.IS_ABANDONED, (self.lease_s(),))):
                yield

    async def look(self, statement: Statement) -> list[ResultRow]:
        """The rows of what is looked at again and again; none where that fails, which ends no looking."""
        try:
            return (await self._keeper.run(statement))[0]
        except Outage:
            pass  # Whoever writes or reads hears of it.
        except Exception:
            log.exception("%s could not be looked at: trying again", self.name)
        return []

    def lease_s(self) -> int:
        """How long others may not have been seen, and are alive nevertheless. While the database was away it was
        nobody: then each gets the time to be seen again."""
        is_steady = time.monotonic() - self._steady_since >= LEASE_S
        return LEASE_S if is_steady else FOR_EVER_S

    async def wait_for_unwanted(self) -> None:
        """Waits until something may be cancelled: no longer than half a second."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(UNWANTED_EVERY_S):
                await self._unwanted.wait()
        self._unwanted.clear()

    async def _patiently(self) -> None:
        """Opens it, and waits for a server that is not there (yet)."""
        give_up_at = time.monotonic() + PATIENCE_S
        while True:
            try:
                await migrate(self._connected, self.name)
                await self._writer.run()
                return
            except (psycopg.OperationalError, Outage) as error:
                if HOPELESS.search(str(error)) or time.monotonic() > give_up_at:
                    raise
                log.warning("%s is not there: %s; trying again", self.name, one_line(str(error)))
            await asyncio.sleep(ATTEMPT_EVERY_S)

    async def _connected(self) -> psycopg.AsyncConnection:
        """For what needs a session: nothing that pools may be in between."""
        conninfo = conninfo_of(self._direct_url)
        return await psycopg.AsyncConnection.connect(conninfo, autocommit=True, prepare_threshold=None)

    async def _watch_deletions(self) -> None:
        """What is in memory is right until somebody else deletes something: looks when one is announced, and every
        second, for a pooler passes nothing on."""
        while True:
            self._deleted.clear()
            for (value,) in await self.look(Statement(sql.GET_DELETIONS)):
                foreign = decode_integer(value or b"") - self._own_deletions
                if foreign != self._foreign_deletions:
                    # Which were this one's own may not be known yet: better once too often.
                    self._foreign_deletions = foreign
                    self._deletions.add(1)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self._deleted.wait()

    async def _stay_seen(self) -> None:
        while True:
            await asyncio.sleep(SEEN_EVERY_S)
            await self._be_seen()

    async def _be_seen(self) -> None:
        if not await self.look(Statement(sql.SEEN, (self.process, self._service))):
            return
        now = time.monotonic()
        if now - self._seen_at > GAP_S:
            self._steady_since = now
        self._seen_at = now


def name_of(url: str) -> str:
    """What a database is called in the log: no password, and no user."""
    parts = urlsplit(url)
    return f"PostgreSQL at {parts.netloc.rpartition('@')[2] or 'PGHOST'}{parts.path.rstrip('/')}"
