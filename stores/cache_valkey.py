"""The cache in a Valkey or a Redis: all replicas have it. Bounded in entries and age by itself, whatever else lies
there and whatever the server's own policy is.

    {name}:cache         which entries there are, by when they were last used
    {name}:cache:KEY     an answer, until it is too old

The key of an entry begins with that of its model. A server that is away has no entries.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

from core.config import CacheConfig
from core.errors import ServerError
from core.extras import need
from core.valkey import Script, Valkey, ValkeyError
from core.valkey_address import Address
from stores.caching import CacheStats, Lookups, key_of

_COMMON = """
local used = '{' .. KEYS[1] .. '}:cache'
local function now() local t = redis.call('TIME') return t[1] * 1000 + t[2] / 1000 end
"""
# The key. Gives the answer.
GET = Script(
    _COMMON
    + """
local answer = redis.call('GET', used .. ':' .. ARGV[1])
if answer then redis.call('ZADD', used, now(), ARGV[1]) else redis.call('ZREM', used, ARGV[1]) end
return answer
"""
)
# The key, the answer, its greatest age in ms, and how many there may be.
SET = Script(
    _COMMON
    + """
redis.call('SET', used .. ':' .. ARGV[1], ARGV[2], 'PX', ARGV[3])
redis.call('ZADD', used, now(), ARGV[1])
redis.call('ZREMRANGEBYSCORE', used, '-inf', now() - tonumber(ARGV[3]))
local more = redis.call('ZCARD', used) - tonumber(ARGV[4])
if more > 0 then
    local oldest = redis.call('ZPOPMIN', used, more)
    for at = 1, #oldest, 2 do redis.call('DEL', used .. ':' .. oldest[at]) end
end
return 0
"""
)
# Keys. Gives how many of them there were.
DROP = Script(
    _COMMON
    + """
local dropped = 0
for _, key in ipairs(ARGV) do
    redis.call('ZREM', used, key)
    dropped = dropped + redis.call('DEL', used .. ':' .. key)
end
return dropped
"""
)
# So many are dropped at a time: nobody else is answered meanwhile.
DROPPED_AT_ONCE = 500


class ValkeyCache:
    """`cache.Cache` at the server that the settings name, of the service `name`. Forgets the entry that was used least
    recently."""

    # Nobody here knows whether the server writes to a disk.
    persistent = True

    def __init__(self, config: CacheConfig, name: str) -> None:
        need("valkey", setting="cache.backend")
        self._config = config
        self._name = name
        self._valkey = Valkey(
            Address.of(config.url, "cache.url"),
            "cache.url",
            scripts=(GET, SET, DROP),
            meanwhile="nothing is cached until it is back",
        )
        self._lookups = Lookups(config)

    async def open(self) -> None:
        await self._valkey.open()

    async def close(self) -> None:
        await self._valkey.close()

    async def get_chat(self, route: str, model: str, messages: list[Any]) -> bytes | None:
        try:
            found: bytes | None = await self._valkey.run(GET, self._name, _key(route, model, messages))
        except (ConnectionError, ValkeyError):
            found = None
        if found is None:
            self._lookups.misses += 1
        else:
            self._lookups.hits += 1
        return found

    async def set_chat(self, route: str, model: str, messages: list[Any], response: bytes) -> None:
        # The turn does not wait for it: what is asked for behind it comes behind it at the server.
        age_ms = int(self._config.max_age_s * 1000)
        self._valkey.start(SET, (self._name, _key(route, model, messages), response, age_ms, self._config.max_entries))

    async def invalidate(self, model: str | None = None) -> int:
        """Raises `ServerError` where the server is away: then they are still there."""
        try:
            keys = [key.decode() for key in await self._valkey.call("ZRANGE", f"{{{self._name}}}:cache", 0, -1)]
            wanted = [key for key in keys if model is None or key.startswith(_model_key(model))]
            dropped = 0
            for at in range(0, len(wanted), DROPPED_AT_ONCE):
                dropped += await self._valkey.run(DROP, self._name, *wanted[at : at + DROPPED_AT_ONCE])
            return dropped
        except (ConnectionError, ValkeyError) as error:
            raise ServerError(f"The cache cannot be emptied: {error}.") from None

    async def stats(self) -> CacheStats:
        try:
            entries = await self._valkey.call("ZCARD", f"{{{self._name}}}:cache")
        except (ConnectionError, ValkeyError):
            entries = 0
        return self._lookups.stats(entries)


def _key(route: str, model: str, messages: list[Any]) -> str:
    return _model_key(model) + key_of(route, model, messages)


def _model_key(model: str) -> str:
    return f"{blake2b(model.encode(errors='surrogatepass'), digest_size=6).hexdigest()}."
