"""The cache in memory. It lives as long as the process."""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import Any

from core.config import CacheConfig
from stores.caching import CacheStats, Lookups, key_of


class MemoryCache:
    """`cache.Cache`. Forgets the entry that was used least recently."""

    persistent = False

    def __init__(self, config: CacheConfig) -> None:
        self._config = config
        # By key: when it was set, the model, the response.
        self._entries: OrderedDict[str, tuple[float, str, bytes]] = OrderedDict()
        self._lookups = Lookups(config)

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def get_chat(self, route: str, model: str, messages: list[Any]) -> bytes | None:
        key = key_of(route, model, messages)
        entry = self._entries.get(key)
        if entry is None or entry[0] < time.time() - self._config.max_age_s:
            self._entries.pop(key, None)
            self._lookups.misses += 1
            return None
        self._entries.move_to_end(key)
        self._lookups.hits += 1
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

    async def stats(self) -> CacheStats:
        return self._lookups.stats(len(self._entries))
