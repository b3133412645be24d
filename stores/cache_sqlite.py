"""The cache in SQLite: it survives restarts, and workers share it. A file of its own, so that it can be thrown away."""

from __future__ import annotations

import logging
import sqlite3
import time
from functools import partial
from typing import Any

from core.config import CacheConfig
from stores.caching import CacheStats, Lookups, key_of
from stores.files import opening
from stores.sqlite_connection import SQLiteConnection, transaction
from stores.writing import Value

log = logging.getLogger("nomyo.cache")

# No migrations: what is in another shape could as well be thrown away.
TABLES = (
    """CREATE TABLE IF NOT EXISTS cache (
        key TEXT PRIMARY KEY,
        model TEXT NOT NULL,
        created_at REAL NOT NULL,
        used_at REAL NOT NULL,
        response BLOB
    )""",
    "CREATE INDEX IF NOT EXISTS cache_used ON cache (used_at)",
)
GET = "UPDATE cache SET used_at = ? WHERE key = ? AND created_at >= ? RETURNING response"
SET = "INSERT OR REPLACE INTO cache (key, model, created_at, used_at, response) VALUES (?, ?, ?, ?, ?)"
DELETE_OLD = "DELETE FROM cache WHERE created_at < ?"
DELETE_UNUSED = "DELETE FROM cache WHERE key IN (SELECT key FROM cache ORDER BY used_at DESC LIMIT -1 OFFSET ?)"
DELETE = "DELETE FROM cache WHERE ? IS NULL OR model = ?"
COUNT = "SELECT COUNT(*) FROM cache"


class SQLiteCache:
    """`cache.Cache` in the file that the settings name. Forgets the entry that was used least recently."""

    persistent = True

    def __init__(self, config: CacheConfig) -> None:
        self._config = config
        self._connection: SQLiteConnection | None = None
        self._lookups = Lookups(config)

    async def open(self) -> None:
        with opening(self._config.path, "cache.path"):
            self._connection = await SQLiteConnection.open(self._config.path, _make_tables)

    async def close(self) -> None:
        await self._db.close()
        self._connection = None

    @property
    def _db(self) -> SQLiteConnection:
        assert self._connection is not None, "the cache is not open"
        return self._connection

    async def get_chat(self, route: str, model: str, messages: list[Any]) -> bytes | None:
        now = time.time()
        values = (now, key_of(route, model, messages), now - self._config.max_age_s)
        try:
            found = await self._db.run(partial(_get, values))
        except sqlite3.Error:
            log.exception("the cache could not be read")
            found = None
        if found is None:
            self._lookups.misses += 1
        else:
            self._lookups.hits += 1
        return found

    async def set_chat(self, route: str, model: str, messages: list[Any], response: bytes) -> None:
        now = time.time()
        values = (key_of(route, model, messages), model, now, now, response)
        try:
            await self._db.run(partial(_set, values, now - self._config.max_age_s, self._config.max_entries))
        except sqlite3.Error:
            log.exception("the cache could not be written")

    async def invalidate(self, model: str | None = None) -> int:
        return await self._db.run(lambda connection: connection.execute(DELETE, (model, model)).rowcount)

    async def stats(self) -> CacheStats:
        entries: int = await self._db.run(lambda connection: connection.execute(COUNT).fetchone()[0])
        return self._lookups.stats(entries)


def _make_tables(connection: sqlite3.Connection) -> None:
    with transaction(connection):
        for statement in TABLES:
            connection.execute(statement)


def _get(values: tuple[Value, ...], connection: sqlite3.Connection) -> bytes | None:
    rows = connection.execute(GET, values).fetchall()
    return bytes(rows[0][0]) if rows else None


def _set(values: tuple[Value, ...], oldest: float, max_entries: int, connection: sqlite3.Connection) -> None:
    with transaction(connection):
        connection.execute(SET, values)
        connection.execute(DELETE_OLD, (oldest,))
        connection.execute(DELETE_UNUSED, (max_entries,))
