"""Answers that were given before, for requests that ask for them (`"nomyo": {"cache": true}`).

Three arguments make the key: the route, the model, and `messages`, which holds everything else that shapes the answer. What
is cached is the whole response object, as JSON. Both stores are bounded in entries and in age.
"""

from __future__ import annotations

import hashlib
import logging
import sqlite3
import time
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import orjson

from core.config import CacheConfig

if TYPE_CHECKING:
    import aiosqlite

log = logging.getLogger("nomyo.cache")
# It logs every statement with its values, which are answers.
logging.getLogger("aiosqlite").setLevel(logging.INFO)


class Cache(Protocol):
    """What every cache does. A cache that fails is a cache that misses: no request fails for it."""

    persistent: bool
    """Whether entries reach a disk: answers to requests with `store: false` never go into such a cache."""

    async def open(self) -> None: ...
    async def close(self) -> None: ...

    async def get_chat(self, route: str, model: str, messages: list[Any]) -> bytes | None:
        """The response that was set under the same three, or None."""
        ...

    async def set_chat(self, route: str, model: str, messages: list[Any], response: bytes) -> None: ...

    async def invalidate(self, model: str | None = None) -> int:
        """Forgets all entries, or those of one model. Gives their number."""
        ...

    async def stats(self) -> dict[str, Any]:
        """`{backend, entries, max_entries, max_age_s, hits, misses}`, counted since the start."""
        ...


def make_cache(config: CacheConfig) -> Cache | None:
    """The cache that the settings ask for, not opened yet; None where there is none."""
    match config.backend:
        case "memory":
            return MemoryCache(config)
        case "sqlite":
            return SQLiteCache(config)
        case _:
            return None


def key_of(route: str, model: str, messages: list[Any]) -> str:
    return hashlib.sha256(orjson.dumps([route, model, messages], option=orjson.OPT_SORT_KEYS)).hexdigest()


class MemoryCache:
    """Forgets the entry that was used least recently. Lives as long as the process."""

    persistent = False

    def __init__(self, config: CacheConfig) -> None:
        self._config = config
        self._entries: OrderedDict[str, tuple[float, str, bytes]] = OrderedDict()
        self._hits = self._misses = 0

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def get_chat(self, route: str, model: str, messages: list[Any]) -> bytes | None:
        key = key_of(route, model, messages)
        entry = self._entries.get(key)
        if entry is None or entry[0] < time.time() - self._config.max_age_s:
            self._entries.pop(key, None)
            self._misses += 1
            return None
        self._entries.move_to_end(key)
        self._hits += 1
        return entry[2]

    async def set_chat(self, route: str, model: str, messages: list[Any], response: bytes) -> None:
        key = key_of(route, model, messages)
        # A copy: what orjson has made keeps several times the memory that it is long.
        self._entries[key] = (time.time(), model, bytes(memoryview(response)))
        self._entries.move_to_end(key)
        while len(self._entries) > self._config.max_entries:
            self._entries.popitem(last=False)

    async def invalidate(self, model: str | None = None) -> int:
        gone = [key for key, entry in self._entries.items() if model in (None, entry[1])]
        for key in gone:
            del self._entries[key]
        return len(gone)

    async def stats(self) -> dict[str, Any]:
        return _stats(self._config, len(self._entries), self._hits, self._misses)


class SQLiteCache:
    """Survives restarts. A file of its own, so that it can be thrown away."""

    persistent = True

    def __init__(self, config: CacheConfig) -> None:
        self._config = config
        self._connection: aiosqlite.Connection | None = None
        self._hits = self._misses = 0

    @property
    def _db(self) -> aiosqlite.Connection:
        assert self._connection is not None, "the cache is not open"
        return self._connection

    async def open(self) -> None:
        import aiosqlite

        Path(self._config.path).parent.mkdir(parents=True, exist_ok=True)
        self._connection = await aiosqlite.connect(self._config.path, isolation_level=None)
        await self._db.execute("PRAGMA journal_mode = WAL")
        await self._db.execute("PRAGMA synchronous = NORMAL")
        await self._db.execute(
            """CREATE TABLE IF NOT EXISTS cache (
                key TEXT PRIMARY KEY, model TEXT NOT NULL, created_at REAL NOT NULL, used_at REAL NOT NULL, response BLOB
            )"""
        )
        await self._db.execute("CREATE INDEX IF NOT EXISTS cache_used ON cache (used_at)")

    async def close(self) -> None:
        await self._db.close()
        self._connection = None

    async def get_chat(self, route: str, model: str, messages: list[Any]) -> bytes | None:
        now = time.time()
        try:
            rows = await self._db.execute_fetchall(
                "UPDATE cache SET used_at = ? WHERE key = ? AND created_at >= ? RETURNING response",
                (now, key_of(route, model, messages), now - self._config.max_age_s),
            )
        except sqlite3.Error:
            log.exception("the cache could not be read")
            rows = []
        for row in rows:
            self._hits += 1
            return bytes(row[0])
        self._misses += 1
        return None

    async def set_chat(self, route: str, model: str, messages: list[Any], response: bytes) -> None:
        now = time.time()
        try:
            await self._db.execute(
                "INSERT OR REPLACE INTO cache (key, model, created_at, used_at, response) VALUES (?, ?, ?, ?, ?)",
                (key_of(route, model, messages), model, now, now, response),
            )
            await self._db.execute("DELETE FROM cache WHERE created_at < ?", (now - self._config.max_age_s,))
            await self._db.execute(
                "DELETE FROM cache WHERE key IN (SELECT key FROM cache ORDER BY used_at DESC LIMIT -1 OFFSET ?)",
                (self._config.max_entries,),
            )
        except sqlite3.Error:
            log.exception("the cache could not be written")

    async def invalidate(self, model: str | None = None) -> int:
        cursor = await self._db.execute("DELETE FROM cache WHERE ? IS NULL OR model = ?", (model, model))
        return cursor.rowcount

    async def stats(self) -> dict[str, Any]:
        rows = await self._db.execute_fetchall("SELECT COUNT(*) FROM cache")
        return _stats(self._config, next(iter(rows))[0], self._hits, self._misses)


def _stats(config: CacheConfig, entries: int, hits: int, misses: int) -> dict[str, Any]:
    return {
        "backend": config.backend,
        "entries": entries,
        "max_entries": config.max_entries,
        "max_age_s": config.max_age_s,
        "hits": hits,
        "misses": misses,
    }


def get_llm_cache(state: Any) -> Cache | None:
    """The application's cache, or None where there is none."""
    cache: Cache | None = state.cache
    return cache
