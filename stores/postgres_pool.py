"""Connections to one database, as many as are needed and no more than the settings allow.

run ──▶ an idle connection, a new one, or a wait for one ──▶ rows
          └─ it broke: once more, on a new one           └─ none can be made: `Outage`, at once until the next attempt
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

import psycopg

from stores.postgres_connection import (
    AGAIN,
    ConnectionLost,
    PostgresConnection,
    ResultRow,
    Statement,
    StatementLimits,
    is_outage,
    outage_of,
)
from stores.writing import Outage

# After an attempt that failed, the next one is made so much later: twice as much each time.
FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 2.0
# So long nobody hears that a server is away.
RESTART_S = 1.0
# How often statements go again that stood in the way of others.
ATTEMPTS = 5


class Reach:
    """Whether a server takes connections: since when it has not, and when the next attempt is due. For all pools of
    one."""

    def __init__(self) -> None:
        self._failure: str | None = None
        self._failed_at = 0.0
        self._wait_s = FIRST_WAIT_S
        self._due_at = 0.0
        self._attempts = 0

    async def connect(self, url: str, name: str, limits: StatementLimits) -> PostgresConnection:
        """A new connection. A server that has gone away is waited for, for as long as a restart takes; after that it
        raises `Outage` at once, where no attempt is due."""
        while True:
            if self._failure is not None and (self._attempts or time.monotonic() < self._due_at):
                if time.monotonic() - self._failed_at > RESTART_S:
                    raise Outage(self._failure)
                await asyncio.sleep(FIRST_WAIT_S / 4)
                continue
            try:
                return await self._attempt(url, limits)
            except (psycopg.Error, OSError, ConnectionLost) as error:
                self._fail(str(outage_of(name, error)))

    async def _attempt(self, url: str, limits: StatementLimits) -> PostgresConnection:
        self._attempts += 1
        try:
            connection = await PostgresConnection.open(url, limits)
        finally:
            self._attempts -= 1
        self._failure, self._wait_s = None, FIRST_WAIT_S
        return connection

    def _fail(self, failure: str) -> None:
        now = time.monotonic()
        if self._failure is None:
            self._failed_at = now
        self._failure = failure
        self._due_at = now + self._wait_s
        self._wait_s = min(2 * self._wait_s, LONGEST_WAIT_S)


class PostgresPool:
    """At most `size` connections to the database at `url`, made when they are needed. `name` is what the log calls
    it."""

    def __init__(self, url: str, name: str, size: int, limits: StatementLimits, reach: Reach) -> None:
        self._url = url
        self._name = name
        self._size = size
        self._limits = limits
        self._connections: set[PostgresConnection] = set()
        self._idle: list[PostgresConnection] = []
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._reach = reach
        # Those on their way.
        self._connecting = 0

    def close(self) -> None:
        """Closes all of them, whatever they do."""
        for connection in list(self._connections):
            connection.close()

    async def run(self, *statements: Statement) -> list[list[ResultRow]]:
        """The rows of each statement, all of them in one transaction. They may be run twice, where nobody knows
        whether they were the first time. Raises `Outage` where the database is away or takes nothing, and
        `psycopg.Error` where a statement is wrong."""
        attempt = 0
        while True:
            attempt += 1
            connection = await self._acquired()
            try:
                return await connection.run(statements)
            except ConnectionLost as error:
                # A server that was restarted has ended all of them, and takes new ones.
                if attempt > self._size + 1:
                    raise outage_of(self._name, error) from None
            except TimeoutError as error:
                raise outage_of(self._name, error) from None
            except psycopg.Error as error:
                if error.sqlstate in AGAIN and attempt < ATTEMPTS:
                    continue
                if is_outage(error):
                    raise outage_of(self._name, error) from None
                raise
            finally:
                self._release(connection)

    async def _acquired(self) -> PostgresConnection:
        while True:
            while self._idle:
                if (connection := self._idle.pop()).is_open:
                    return connection
            if len(self._connections) + self._connecting < self._size:
                return await self._connected()
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            try:
                async with asyncio.timeout(self._limits.statement_s):
                    await waiter
            except TimeoutError:
                raise Outage(f"{self._name}: all {self._size} connections are busy") from None
            except asyncio.CancelledError:
                self._wake()
                raise

    async def _connected(self) -> PostgresConnection:
        self._connecting += 1
        try:
            connection = await self._reach.connect(self._url, self._name, self._limits)
        finally:
            self._connecting -= 1
            self._wake()
        self._connections.add(connection)
        connection.on_close = self._on_close(connection)
        return connection

    def _on_close(self, connection: PostgresConnection) -> Callable[[], None]:
        def closed() -> None:
            self._connections.discard(connection)
            self._wake()

        return closed

    def _release(self, connection: PostgresConnection) -> None:
        if connection.is_open:
            self._idle.append(connection)
            self._wake()

    def _wake(self) -> None:
        """Lets whoever has waited longest look again."""
        while self._waiting:
            if not (waiter := self._waiting.popleft()).done():
                waiter.set_result(None)
                return
