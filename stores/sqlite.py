"""The store's connector to SQLite: SQL in, rows out. It knows no table.

Each connection has a thread of its own. SQLite is in WAL mode, so that readers never wait for writers.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import sqlite3
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from functools import cache, partial
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

Row = dict[str, Any]
# A statement, and the values for its question marks.
Write = tuple[str, tuple[Any, ...]]
T = TypeVar("T")


class SQLite:
    """Runs SQL in the database at `path` (`:memory:` is none on a disk): one connection writes, another reads beside it.

    `open` makes what is missing of the `schema`, statements; of the columns that tables have got since, as table, name and type; and runs
    the statements that drop what tables have had."""

    def __init__(
        self, path: str, schema: Sequence[str], added_columns: Sequence[tuple[str, str, str]], dropped: Sequence[str]
    ) -> None:
        self._path = path
        self._schema = schema
        self._added_columns = added_columns
        self._dropped = dropped
        self._writer: Connection | None = None
        self._reader: Connection | None = None

    async def open(self) -> None:
        in_memory = self._path == ":memory:"
        if not in_memory:
            Path(self._path).parent.mkdir(parents=True, exist_ok=True)
        self._writer = await Connection.open(self._path)
        await self._writer.run(self._make_schema)
        self._reader = self._writer if in_memory else await Connection.open(self._path)

    async def close(self) -> None:
        for connection in {self._reader, self._writer} - {None}:
            assert connection is not None
            await connection.close()
        self._reader = self._writer = None

    async def read(self, sql: str, *values: Any, each: Callable[[Row], Any] = dict) -> list[Any]:
        """The rows, `each` made of in the reader's thread."""
        assert self._reader is not None, "the store is not open"
        return await self._reader.run(
            lambda connection: [each(dict(row)) for row in connection.execute(sql, values).fetchall()]
        )

    async def write(self, writes: Iterable[Write]) -> None:
        """All of it in one transaction, in order; neighbours with the same SQL in one call."""
        assert self._writer is not None, "the store is not open"
        await self._writer.run(partial(_write_all, writes))

    def _make_schema(self, connection: sqlite3.Connection) -> None:
        with _transaction(connection):
            for statement in self._schema:
                connection.execute(statement)
            for table, column, kind in self._added_columns:
                if column not in {row["name"] for row in connection.execute(f"PRAGMA table_info({table})")}:
                    connection.execute(f"ALTER TABLE {table} ADD COLUMN {column} {kind}")
            for statement in self._dropped:
                connection.execute(statement)


def _write_all(writes: Iterable[Write], connection: sqlite3.Connection) -> None:
    # Few calls: between two of them this thread and the event loop's take the interpreter from each other, which costs more
    # than the writing.
    with _transaction(connection):
        for sql, group in groupby(writes, key=itemgetter(0)):
            rows = [values for _, values in group]
            if " VALUES " not in sql:
                connection.executemany(sql, rows)
                continue
            for start in range(0, len(rows), ROWS_AT_ONCE):
                some = rows[start : start + ROWS_AT_ONCE]
                connection.execute(_of_rows(sql, len(some)), [*chain.from_iterable(some)])


ROWS_AT_ONCE = 32


@cache
def _of_rows(sql: str, rows: int) -> str:
    """An INSERT of one row as one of several."""
    return re.sub(r"VALUES (\(.*?\))", lambda found: "VALUES " + ", ".join([found[1]] * rows), sql)


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Generator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # SQLite itself may have rolled back, if the disk is full.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


class Connection:
    """A connection to SQLite in a thread of its own, which runs one function after the other."""

    _connection: sqlite3.Connection

    def __init__(self) -> None:
        self._calls: SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any]] | None] = SimpleQueue()
        self._thread = Thread(target=self._work, name="sqlite", daemon=True)
        self._thread.start()

    @classmethod
    async def open(cls, path: str) -> Connection:
        self = cls()
        try:
            self._connection = await self._call(partial(_connected, path))
        except BaseException:
            self._calls.put(None)
            raise
        return self

    async def close(self) -> None:
        await self._call(self._connection.close)
        self._calls.put(None)

    async def run(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """What `function` makes of the connection."""
        return await self._call(partial(function, self._connection))

    async def _call(self, function: Callable[[], T]) -> T:
        ended: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._calls.put((function, ended))
        return await ended

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            function, ended = call
            result, error = None, None
            try:
                result = function()
            except BaseException as raised:
                error = raised
            ended.get_loop().call_soon_threadsafe(_settle, ended, result, error)


def _settle(ended: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if ended.done():
        return  # cancelled: nobody waits any more
    if error is not None:
        ended.set_exception(error)
    else:
        ended.set_result(result)


def _connected(path: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)
    connection.row_factory = sqlite3.Row
    _write_ahead(connection)
    connection.execute("PRAGMA synchronous = NORMAL")
    return connection


BUSY_S = 5.0


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
