"""What every cache does in the same way: the key of an answer, and the figures."""

from __future__ import annotations

import hashlib
import json
from typing import Any, TypedDict

import orjson

from core.config import CacheConfig


class CacheStats(TypedDict):
    """The figures of a cache; hits and misses since it was made."""

    backend: str
    entries: int
    max_entries: int
    max_age_s: float
    hits: int
    misses: int


def key_of(route: str, model: str, messages: list[Any]) -> str:
    """The key of an entry: one hash of the three, whatever the order of keys in objects."""
    asked = [route, model, messages]
    try:
        text = orjson.dumps(asked, option=orjson.OPT_SORT_KEYS)
    except TypeError:  # Integers of more than 64 bits.
        text = json.dumps(asked, sort_keys=True).encode()
    return hashlib.sha256(text).hexdigest()


class Lookups:
    """How often an answer was found, and how often not."""

    def __init__(self, config: CacheConfig) -> None:
        self._config = config
        self.hits = 0
        self.misses = 0

    def stats(self, entries: int) -> CacheStats:
        """The figures of a cache that holds so many entries."""
        return {
            "backend": self._config.backend,
            "entries": entries,
            "max_entries": self._config.max_entries,
            "max_age_s": self._config.max_age_s,
            "hits": self.hits,
            "misses": self.misses,
        }
