"""The connector to SQLite: SQL in, rows out. It knows no table.

    event loop ──run(function)──▶ the thread of an aiosqlite connection ──▶ SQLite

SQLite is in WAL mode, so that readers never wait for writers.
"""

from __future__ import annotations

import contextlib
import logging
import re
import sqlite3
import time
from collections.abc import Callable, Generator, Iterable
from functools import cache, partial
from itertools import chain, groupby
from operator import itemgetter
from typing import TypeVar

import aiosqlite

from core.errors import StartError
from core.json import Json
from stores.files import CAUSES, OpenFile, Replaced, make_private, opening
from stores.service_lock import ServiceLock
from stores.writing import Outage, Value, Write

Row = Json
T = TypeVar("T")

# It logs every call with its values, which are answers.
logging.getLogger("aiosqlite").setLevel(logging.INFO)

IN_MEMORY = ":memory:"
BUSY_S = 5.0
# Turns wait as long for another process that holds the database, such as a copy of it.
LOCKED_S = 60.0
ROWS_AT_ONCE = 32


class SQLiteConnection:
    """A connection to the database at a path, open until `close`."""

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self._connection = connection

    @classmethod
    async def open(cls, path: str, prepare: Callable[[sqlite3.Connection], object] | None = None) -> SQLiteConnection:
        """Opens the file at `path` (`:memory:`: a database without a file), and makes it and its folder where they are
        not there. `prepare` makes the tables that are missing, in the connection's thread. Raises `OSError`,
        `sqlite3.Error`, or what `prepare` raises."""
        if path != IN_MEMORY and prepare is not None:
            make_private(path)
        connection = aiosqlite.Connection(partial(_connected, path, prepare), iter_chunk_size=64)
        # Whoever ends without closing it, as after a failed start, must not wait for its thread.
        connection._thread.daemon = True
        try:
            return cls(await connection)
        except Exception:
            connection._thread.join()  # It is on its way out, and has a last word for this loop.
            raise

    async def close(self) -> None:
        """Waits for what it does, and closes the file."""
        await self._connection.close()

    async def run(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """What `function` makes of the connection, in its thread: one call, however many statements that is."""
        result: T = await self._connection._execute(function, self._connection._conn)  # type: ignore[no-untyped-call]
        return result


class SQLite:
    """Runs SQL in the database at `path`: one connection writes, another one reads beside it. `prepare` makes what is
    missing in it. While it is open it belongs to the processes of `service`, if that is given."""

    def __init__(self, path: str, prepare: Callable[[sqlite3.Connection], object], service: str | None = None) -> None:
        self.path = path
        self._prepare = prepare
        self._service = service
        self._lock: ServiceLock | None = None
        self._writer: SQLiteConnection | None = None
        self._reader: SQLiteConnection | None = None
        self._file: OpenFile | None = None

    async def open(self) -> None:
        """Opens the file twice, to read and to write beside each other. Raises `StartError`."""
        try:
            with opening(self.path, "database.url"):
                if self._service is not None and self.path != IN_MEMORY:
                    make_private(self.path)
                    self._lock = ServiceLock(self.path, self._service)
                    await self._lock.take()
                self._writer = await SQLiteConnection.open(self.path, self._prepare)
                await self._writer.run(_wait_patiently)
                self._reader = self._writer if self.path == IN_MEMORY else await SQLiteConnection.open(self.path)
                self._file = None if self.path == IN_MEMORY else OpenFile(self.path)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Closes what is open."""
        for connection in {self._reader, self._writer} - {None}:
            assert connection is not None
            await connection.close()
        self._reader = self._writer = None
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    async def read(self, sql: str, *values: Value, **named: Value) -> list[Row]:
        """The rows, by the names of their columns."""
        return await self.read_each(dict, sql, *values, **named)

    async def read_each(self, make: Callable[[sqlite3.Row], T], sql: str, *values: Value, **named: Value) -> list[T]:
        """What `make` makes of each row, in the reader's thread."""
        return await self.run_reading(partial(_read_all, sql, named or values, make))

    async def run_reading(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """What `function` makes of the connection that reads, in its thread."""
        assert self._reader is not None, "the store is not open"
        return await self._reader.run(function)

    async def run_writing(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """What `function` makes of the connection that writes, in its thread."""
        assert self._writer is not None, "the store is not open"
        return await self._writer.run(function)

    async def write(self, writes: Iterable[Write]) -> None:
        """All of it in one transaction, in order; neighbours with the same SQL in one call."""
        writes = list(writes)
        try:
            await self._write(writes)
        except Replaced:
            await self._open_again()
            await self._write(writes)
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code not in CAUSES:
                raise
            raise Outage(f"{self.path} {': '.join(CAUSES[code])}") from error

    async def _write(self, writes: list[Write]) -> None:
        if self._writer is None:
            raise Replaced
        await self._writer.run(partial(_write_all, self._file, writes))

    async def _open_again(self) -> None:
        """Goes on with what stands where the file was that had been opened."""
        await self.close()
        try:
            await self.open()
        except StartError as error:
            raise Outage(str(error)) from error


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Generator[None]:
    """All that is written in here, or nothing of it. Nobody else writes meanwhile."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # SQLite itself may have rolled back, if the disk is full.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _read_all(
    sql: str,
    values: tuple[Value, ...] | dict[str, Value],
    make: Callable[[sqlite3.Row], T],
    connection: sqlite3.Connection,
) -> list[T]:
    return [make(row) for row in connection.execute(sql, values).fetchall()]


def _wait_patiently(connection: sqlite3.Connection) -> None:
    connection.execute(f"PRAGMA busy_timeout = {LOCKED_S * 1000:.0f}")


def _write_all(file: OpenFile | None, writes: Iterable[Write], connection: sqlite3.Connection) -> None:
    if file is not None:
        file.check()
    # Few calls: between two of them this thread and the event loop's take the interpreter from each other, which costs
    # more than the writing.
    with transaction(connection):
        for sql, group in groupby(writes, key=itemgetter(0)):
            rows = [values for _, values in group]
            if "VALUES (" not in sql:
                connection.executemany(sql, rows)
                continue
            for start in range(0, len(rows), ROWS_AT_ONCE):
                some = rows[start : start + ROWS_AT_ONCE]
                connection.execute(_of_rows(sql, len(some)), [*chain.from_iterable(some)])


@cache
def _of_rows(sql: str, rows: int) -> str:
    """A statement for the `VALUES` of one row as one for several."""
    return re.sub(r"VALUES (\(.*?\))", lambda found: "VALUES " + ", ".join([found[1]] * rows), sql)


def _connected(path: str, prepare: Callable[[sqlite3.Connection], object] | None) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)
    try:
        connection.row_factory = sqlite3.Row
        _write_ahead(connection)
        connection.execute("PRAGMA synchronous = NORMAL")
        if prepare is not None:
            prepare(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Sets WAL mode. SQLite does not wait by itself for another process that does the same to a new file."""
    until = time.monotonic() + BUSY_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
        time.sleep(0.01)
