"""Answers that were given before, for requests that ask for them (`"nomyo": {"cache": true}`): the verbs of every cache
(`Cache`), and the one that the settings ask for (`make_cache`).

    cache.py ──▶ stores/cache_memory.py, stores/cache_sqlite.py, stores/cache_valkey.py

Three arguments make the key: the route, the model, and `messages`, which holds everything else that shapes the answer,
and whose it is. What is cached is the whole response object, as JSON. Every cache is bounded in entries and in age.
"""

from __future__ import annotations

from typing import Any, Protocol

from core.config import CacheConfig
from stores.caching import CacheStats, key_of

__all__ = ["Cache", "CacheStats", "get_llm_cache", "key_of", "make_cache"]


class Cache(Protocol):
    """What every cache does; tests/stores/ holds each of them to it. A cache that fails is a cache that misses: no
    request fails for it."""

    persistent: bool
    """Whether entries reach a disk: answers to requests with `store: false` never go into such a cache."""

    async def open(self) -> None:
        """Inside the running loop."""
        ...

    async def close(self) -> None:
        """Gives up what it holds open."""
        ...

    async def get_chat(self, route: str, model: str, messages: list[Any]) -> bytes | None:
        """The response that was set under the same three, or None."""
        ...

    async def set_chat(self, route: str, model: str, messages: list[Any], response: bytes) -> None:
        """Keeps a response, as JSON, under the three."""
        ...

    async def invalidate(self, model: str | None = None) -> int:
        """Forgets all entries, or those of one model. Gives their number."""
        ...

    async def stats(self) -> CacheStats:
        """Its hits and misses since the start, and what it holds."""
        ...


def make_cache(config: CacheConfig, service: str = "nomyo") -> Cache | None:
    """The cache that the settings ask for, not opened yet; None where there is none. `service` sets apart those that
    share a server. Raises `ConfigError` where a package is missing."""
    # Only the one in use is loaded.
    match config.backend:
        case "memory":
            from stores.cache_memory import MemoryCache

            return MemoryCache(config)
        case "sqlite":
            from stores.cache_sqlite import SQLiteCache

            return SQLiteCache(config)
        case "valkey":
            from stores.cache_valkey import ValkeyCache

            return ValkeyCache(config, service)
        case "none":
            return None


class HasCache(Protocol):
    """What has a lifetime, as `core.state.AppState` holds it."""

    @property
    def cache(self) -> Cache | None: ...


def get_llm_cache(state: HasCache) -> Cache | None:
    """The application's cache, or None where there is none."""
    return state.cache
