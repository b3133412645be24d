"""The store: what a response was made from, and what came of it. Verbs (`Store`) over a connector that only runs SQL.

    responses         a row a response: the items of its own turn, and the response object
    response_items    which response an item belongs to, for clients that send a reference to it
    response_events   the events of a background stream, kept for clients that join later

A conversation is a chain of rows, read in one query. Writes are queued when they are called and committed together, in one
transaction for all turns that finish at the same time; awaiting one waits for its commit. SQLite is in WAL mode, so that
readers never wait for writers.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Generator, Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

import aiosqlite
import orjson

from errors import ServerError

log = logging.getLogger("nomyo.db")
# It logs every statement with its values, which are prompts.
logging.getLogger("aiosqlite").setLevel(logging.INFO)

Row = dict[str, Any]
Write = tuple[str, tuple[Any, ...]]

SCHEMA = (
    """CREATE TABLE IF NOT EXISTS responses (
        id TEXT PRIMARY KEY,
        previous_response_id TEXT,
        model TEXT NOT NULL,
        status TEXT NOT NULL,
        created_at BIGINT NOT NULL,
        input BLOB NOT NULL,
        response BLOB
    )""",
    "CREATE INDEX IF NOT EXISTS responses_previous ON responses (previous_response_id)",
    "CREATE INDEX IF NOT EXISTS responses_created ON responses (created_at)",
    """CREATE INDEX IF NOT EXISTS responses_running ON responses (status)
        WHERE status IN ('queued', 'in_progress')""",
    "CREATE TABLE IF NOT EXISTS response_events (response_id TEXT PRIMARY KEY, events BLOB NOT NULL)",
    "CREATE TABLE IF NOT EXISTS response_items (item_id TEXT PRIMARY KEY, response_id TEXT NOT NULL)",
    "CREATE INDEX IF NOT EXISTS response_items_response ON response_items (response_id)",
    "CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
)
STORE = """INSERT INTO responses (id, previous_response_id, model, status, created_at, input, response)
    VALUES (?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (id) DO UPDATE SET status = excluded.status, response = excluded.response"""
# Not an upsert: a response that was deleted while it ran stays deleted.
UPDATE = "UPDATE responses SET status = ?, response = ? WHERE id = ?"
GET = "SELECT * FROM responses WHERE id = ?"
EXISTS = "SELECT 1 FROM responses WHERE id = ?"
GET_CHAIN = """WITH RECURSIVE chain (id, previous_response_id, depth) AS (
        SELECT id, previous_response_id, 0 FROM responses WHERE id = ?
        UNION ALL
        SELECT r.id, r.previous_response_id, chain.depth + 1
        FROM responses r JOIN chain ON r.id = chain.previous_response_id
    )
    SELECT r.* FROM responses r JOIN chain ON r.id = chain.id ORDER BY chain.depth DESC"""
RUNNING = "SELECT * FROM responses WHERE status IN ('queued', 'in_progress')"
DELETE = "DELETE FROM responses WHERE id = ?"
DELETE_EVENTS = "DELETE FROM response_events WHERE response_id = ?"
DELETE_ITEMS = "DELETE FROM response_items WHERE response_id = ?"
STORE_ITEM = """INSERT INTO response_items (item_id, response_id) VALUES (?, ?)
    ON CONFLICT (item_id) DO UPDATE SET response_id = excluded.response_id"""
GET_OF_ITEM = "SELECT r.* FROM responses r JOIN response_items i ON r.id = i.response_id WHERE i.item_id = ?"
STORE_SETTING = "INSERT INTO settings (name, value) VALUES (?, ?) ON CONFLICT DO NOTHING"
GET_SETTING = "SELECT value FROM settings WHERE name = ?"
STORE_EVENTS = """INSERT INTO response_events (response_id, events)
    SELECT id, ? FROM responses WHERE id = ? ON CONFLICT DO NOTHING"""
GET_EVENTS = "SELECT events FROM response_events WHERE response_id = ?"
# The end of a chain goes first: a turn that a younger one still builds on is kept.
EXPIRED = """SELECT id FROM responses r
    WHERE created_at < ? AND status NOT IN ('queued', 'in_progress')
    AND NOT EXISTS (SELECT 1 FROM responses c WHERE c.previous_response_id = r.id)
    LIMIT 500"""

INTERRUPTED = ServerError("The router stopped while this response was running.", code="interrupted")


class Store:
    """Responses, by id. `url` is `sqlite:///relative/path`, `sqlite:////absolute/path`, or `sqlite://` for memory alone.
    `open()` inside the running loop, `close()` at its end."""

    def __init__(self, url: str) -> None:
        self._connector = SQLite(url.removeprefix("sqlite://").removeprefix("/") or ":memory:")
        self._queue: list[tuple[Write, Written]] = []
        self._queued = asyncio.Event()
        self._closing = False
        self._writer: asyncio.Task[None] | None = None

    async def open(self) -> None:
        await self._connector.open()
        await self._connector.write([(statement, ()) for statement in SCHEMA])
        self._queue, self._queued, self._closing = [], asyncio.Event(), False
        self._writer = asyncio.create_task(self._write_batches(), name="store writer")

    async def close(self) -> None:
        """What is queued is written first."""
        if self._writer is not None:
            self._closing = True
            self._queued.set()
            await self._writer
        await self._connector.close()

    # ── responses ────────────────────────────────────────────────────────────────────────────────────────────────────

    def store_response(
        self,
        response_id: str,
        *,
        previous_response_id: str | None,
        model: str,
        status: str,
        created_at: int,
        input_messages: list[dict[str, Any]],
        response: dict[str, Any] | None = None,
    ) -> Written:
        """Stores a response: `input_messages` are the input items of its own turn, `response` is the object, if there is one
        yet. Queued at once; await it for the commit. Raises `ServerError` if that failed."""
        body = orjson.dumps(response) if response is not None else None
        items = orjson.dumps(input_messages)
        return self._write(STORE, response_id, previous_response_id, model, status, created_at, items, body)

    def update_response(self, response_id: str, response: dict[str, Any]) -> Written:
        """The response has come further. Does nothing if it was deleted meanwhile."""
        return self._write(UPDATE, response["status"], orjson.dumps(response), response_id)

    async def get_response(self, response_id: str) -> Row | None:
        """`{id, previous_response_id, model, status, created_at, input, response}`, or None."""
        rows = await self._connector.read(GET, response_id)
        return _loaded(rows[0]) if rows else None

    async def get_chain(self, response_id: str) -> list[Row]:
        """The response and all those before it, oldest first; empty if there is none. Where one before it was deleted, the
        first row still names it."""
        return [_loaded(row) for row in await self._connector.read(GET_CHAIN, response_id)]

    async def delete_response(self, response_id: str) -> bool:
        """Whether there was such a response."""
        if not await self._connector.read(EXISTS, response_id):
            return False
        for write in self._delete(response_id):
            await write
        return True

    def _delete(self, response_id: str) -> list[Written]:
        return [self._write(sql, response_id) for sql in (DELETE_EVENTS, DELETE_ITEMS, DELETE)]

    async def fail_orphaned_responses(self) -> int:
        """Marks as failed what was running when the process died. For the start, before anything runs. Gives their number."""
        rows = [_loaded(row) for row in await self._connector.read(RUNNING)]
        failed = {"status": "failed", "error": INTERRUPTED.to_response_error()}
        for write in [self.update_response(row["id"], {**(row["response"] or {}), **failed}) for row in rows]:
            await write
        return len(rows)

    async def delete_older_than(self, created_at: int) -> int:
        """Deletes responses made before `created_at` (Unix seconds) that no younger one builds on. Gives their number."""
        deleted = 0
        while ids := [row["id"] for row in await self._connector.read(EXPIRED, created_at)]:
            for write in [write for response_id in ids for write in self._delete(response_id)]:
                await write
            deleted += len(ids)
        return deleted

    # ── items ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def store_items(self, response_id: str, item_ids: Iterable[str]) -> None:
        """Lets items be found by their ids. Queued at once; nobody has to wait for it."""
        for item_id in item_ids:
            self._write(STORE_ITEM, item_id, response_id)

    async def get_item(self, item_id: str) -> dict[str, Any] | None:
        """An input or output item of any stored response."""
        for row in await self._connector.read(GET_OF_ITEM, item_id):
            whole = _loaded(row)
            for item in (*whole["input"], *(whole["response"] or {}).get("output", [])):
                if item.get("id") == item_id:
                    return dict(item)
        return None

    async def get_setting(self, name: str, default: str) -> str:
        """A value that every router on this database shares. The first to ask decides it with its `default`."""
        await self._write(STORE_SETTING, name, default)
        value: str = (await self._connector.read(GET_SETTING, name))[0]["value"]
        return value

    # ── events of background streams ─────────────────────────────────────────────────────────────────────────────────

    def store_events(self, response_id: str, events: list[dict[str, Any]]) -> Written:
        """Keeps all events of a response's stream, once. Does nothing if the response was deleted."""
        return self._write(STORE_EVENTS, orjson.dumps(events), response_id)

    async def get_events(self, response_id: str) -> list[dict[str, Any]] | None:
        rows = await self._connector.read(GET_EVENTS, response_id)
        return orjson.loads(rows[0]["events"]) if rows else None

    # ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _write(self, sql: str, *values: Any) -> Written:
        if self._closing:
            raise _not_stored()
        written = Written()
        self._queue.append(((sql, values), written))
        self._queued.set()
        return written

    async def _write_batches(self) -> None:
        while not self._closing or self._queue:
            await self._queued.wait()
            self._queued.clear()
            batch, self._queue = self._queue, []
            if batch and not await self._wrote(batch) and len(batch) > 1:
                # One of them is bad. Alone, it takes nobody else down.
                for one in batch:
                    await self._wrote([one])

    async def _wrote(self, batch: list[tuple[Write, Written]]) -> bool:
        try:
            await self._connector.write([write for write, _ in batch])
        except Exception as error:
            if len(batch) == 1:
                log.exception("a write failed")
                batch[0][1].end(_not_stored(error))
            return False
        for _, written in batch:
            written.end(None)
        return True


class Written:
    """A queued write. Awaiting it waits for its commit; whoever stops waiting does not stop the write, and nobody has to
    wait at all."""

    def __init__(self) -> None:
        self._ended: asyncio.Future[ServerError | None] = asyncio.get_running_loop().create_future()

    def done(self) -> bool:
        return self._ended.done()

    def end(self, failure: ServerError | None) -> None:
        self._ended.set_result(failure)

    def __await__(self) -> Generator[Any, None, None]:
        if failure := (yield from asyncio.shield(self._ended).__await__()):
            raise failure


def _not_stored(cause: Exception | None = None) -> ServerError:
    failure = ServerError("The response could not be stored.", code="storage_error")
    failure.__cause__ = cause
    return failure


def _loaded(row: Row) -> Row:
    return {
        **row,
        "input": orjson.loads(row["input"]),
        "response": row["response"] and orjson.loads(row["response"]),
    }


class SQLite:
    """Runs SQL: one connection writes, another reads beside it."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._writer: aiosqlite.Connection | None = None
        self._reader: aiosqlite.Connection | None = None

    async def open(self) -> None:
        in_memory = self._path == ":memory:"
        if not in_memory:
            Path(self._path).parent.mkdir(parents=True, exist_ok=True)
        self._writer = await self._connect()
        self._reader = self._writer if in_memory else await self._connect()

    async def _connect(self) -> aiosqlite.Connection:
        connection = await aiosqlite.connect(self._path)
        connection.row_factory = sqlite3.Row
        for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "busy_timeout = 5000"):
            await connection.execute(f"PRAGMA {pragma}")
        return connection

    async def close(self) -> None:
        for connection in {self._reader, self._writer} - {None}:
            assert connection is not None
            await connection.close()
        self._reader = self._writer = None

    async def read(self, sql: str, *values: Any) -> list[Row]:
        assert self._reader is not None, "the store is not open"
        return [dict(row) for row in await self._reader.execute_fetchall(sql, values)]

    async def write(self, writes: Iterable[Write]) -> None:
        """All of it in one transaction, in order; neighbours with the same SQL in one call."""
        assert self._writer is not None, "the store is not open"
        try:
            for sql, group in groupby(writes, key=lambda write: write[0]):
                await self._writer.executemany(sql, [values for _, values in group])
            await self._writer.commit()
        except BaseException:
            await self._writer.rollback()
            raise
