"""Every cache keeps what it was given, within its bounds."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cache import Cache, make_cache
from core.config import CacheConfig
from core.config_checks import parse_config
from core.errors import ConfigError, ServerError
from tests.turns import eventually

ROOT = Path(__file__).parents[2]
# Prints how much the memory has grown by many answers, and how long these are.
FILL = """
import asyncio, orjson, random
from cache import make_cache
from core.config import CacheConfig

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

async def main():
    cache, said = make_cache(CacheConfig("memory", "", max_entries=100_000, max_age_s=60)), 0
    before = resident()
    for number in range(8000):
        answer = orjson.dumps({"number": number, "text": "x" * random.randrange(1000, 4000)})
        said += len(answer)
        await cache.set_chat("route", "model", [number], answer)
    print(resident() - before, said)

asyncio.run(main())
"""
KEY = ("route", "model", [{"content": "hi", "n": 1}])


@pytest.fixture(params=["memory", "sqlite", "valkey"])
def config(request: pytest.FixtureRequest, tmp_path: Path) -> CacheConfig:
    url = request.getfixturevalue("valkey").url if request.param == "valkey" else ""
    return CacheConfig(request.param, f"{tmp_path}/deep/cache.db", max_entries=3, max_age_s=60, url=url)


@pytest.fixture
async def cache(config: CacheConfig) -> AsyncIterator[Cache]:
    cache = make_cache(config)
    assert cache is not None
    await cache.open()
    yield cache
    await cache.close()


async def test_what_was_set_is_got(cache):
    assert await cache.get_chat(*KEY) is None
    await cache.set_chat(*KEY, b"answer \x00\xff")
    assert await cache.get_chat(*KEY) == b"answer \x00\xff"
    await cache.set_chat(*KEY, b"a newer one")
    assert await cache.get_chat(*KEY) == b"a newer one"


@pytest.mark.parametrize(
    "key",
    [
        ("route 2", "model", [{"content": "hi", "n": 1}]),
        ("route", "model 2", [{"content": "hi", "n": 1}]),
        ("route", "model", [{"content": "ho", "n": 1}]),
        ("route", "model", [{"content": "hi", "n": "1"}]),
        ("route", "model", [{"content": "hi", "n": 1}, {}]),
        ("route", "model", []),
        ("routemodel", "", [{"content": "hi", "n": 1}]),
    ],
)
async def test_another_key_misses(cache, key):
    await cache.set_chat(*KEY, b"answer")
    assert await cache.get_chat(*key) is None


async def test_the_order_of_keys_in_an_object_does_not_matter(cache):
    await cache.set_chat(*KEY, b"answer")
    assert await cache.get_chat("route", "model", [{"n": 1, "content": "hi"}]) == b"answer"


async def test_the_entry_that_was_used_least_recently_is_forgotten(cache):
    for name in "abc":
        await cache.set_chat("r", "m", [name], name.encode())
    assert await cache.get_chat("r", "m", ["a"]) == b"a"
    await cache.set_chat("r", "m", ["d"], b"d")
    assert {name: await cache.get_chat("r", "m", [name]) for name in "abcd"} == {
        "a": b"a",
        "b": None,
        "c": b"c",
        "d": b"d",
    }
    assert (await cache.stats())["entries"] == 3


async def test_an_old_entry_is_forgotten(config):
    cache = make_cache(CacheConfig(config.backend, config.path, max_age_s=0.1, url=config.url))
    await cache.open()
    await cache.set_chat(*KEY, b"answer")

    async def forgotten() -> bool:
        return await cache.get_chat(*KEY) is None

    assert not await forgotten()
    await eventually(forgotten, "the entry is too old, however often it is used")
    await cache.close()


async def test_all_entries_can_be_forgotten(cache):
    await cache.set_chat("r", "m", ["a"], b"a")
    await cache.set_chat("r", "n", ["a"], b"b")
    assert await cache.invalidate() == 2
    assert await cache.invalidate() == 0
    assert await cache.get_chat("r", "m", ["a"]) is None


async def test_those_of_one_model_can_be_forgotten(cache):
    await cache.set_chat("r", "m", ["a"], b"a")
    await cache.set_chat("r", "m", ["b"], b"b")
    await cache.set_chat("r", "n", ["a"], b"c")
    assert await cache.invalidate("m") == 2
    assert await cache.invalidate("unknown") == 0
    assert await cache.get_chat("r", "m", ["a"]) is None
    assert await cache.get_chat("r", "n", ["a"]) == b"c"


async def test_the_numbers(cache, config):
    await cache.get_chat(*KEY)
    await cache.set_chat(*KEY, b"answer")
    await cache.get_chat(*KEY)
    await cache.get_chat(*KEY)
    assert await cache.stats() == {
        "backend": config.backend,
        "entries": 1,
        "max_entries": 3,
        "max_age_s": 60,
        "hits": 2,
        "misses": 1,
    }


async def test_only_those_outside_of_the_process_survive_a_restart(cache, config):
    await cache.set_chat(*KEY, b"answer")
    await cache.close()
    again = make_cache(config)
    await again.open()
    assert again.persistent == (config.backend != "memory")
    assert await again.get_chat(*KEY) == (b"answer" if again.persistent else None)
    await again.close()
    await cache.open()


def test_what_is_in_memory_takes_as_much_as_it_is_long():
    """In a process of its own: what `orjson.dumps` gives has room behind it that nobody else can have."""
    done = subprocess.run([sys.executable, "-c", FILL], cwd=ROOT, capture_output=True, text=True, check=True)
    grown, said = map(float, done.stdout.split())
    assert grown < 1.5 * said, f"{said / 1e6:.1f} MB of answers take {grown / 1e6:.1f} MB"


async def test_many_at_once_get_along(cache):
    async def use(n: int) -> None:
        await cache.set_chat("r", "m", [n % 5], b"%d" % (n % 5))
        assert await cache.get_chat("r", "m", [n % 5]) in (None, b"%d" % (n % 5))

    await asyncio.gather(*(use(n) for n in range(50)))
    assert (await cache.stats())["entries"] == 3


async def test_a_cache_on_disk_is_shared_by_those_who_have_it_open(tmp_path):
    caches = [make_cache(CacheConfig("sqlite", f"{tmp_path}/cache.db")) for _ in range(4)]
    await asyncio.gather(*(cache.open() for cache in caches))
    for n, cache in enumerate(caches):
        await cache.set_chat("r", "m", [n], b"%d" % n)
    for cache in caches:
        assert [await cache.get_chat("r", "m", [n]) for n in range(4)] == [b"0", b"1", b"2", b"3"]
        await cache.close()


async def test_a_cache_on_disk_that_fails_misses(tmp_path, caplog):
    """Somebody deletes its table under it."""
    cache = make_cache(CacheConfig("sqlite", f"{tmp_path}/cache.db"))
    await cache.open()
    await cache.set_chat(*KEY, b"answer")
    file = sqlite3.connect(f"{tmp_path}/cache.db")
    file.execute("DROP TABLE cache")
    file.close()
    assert await cache.get_chat(*KEY) is None
    await cache.set_chat(*KEY, b"answer")
    assert [record.name for record in caplog.records] == ["nomyo.cache"] * 2
    await cache.close()


async def test_a_cache_in_a_valkey_is_shared_and_nothing_else_there_is_touched(valkey):
    valkey.run("SET", "somebody's", "value")
    caches = [make_cache(CacheConfig("valkey", url=valkey.url)) for _ in range(2)]
    other = make_cache(CacheConfig("valkey", url=valkey.url), "another service")
    for cache in (*caches, other):
        await cache.open()
    await caches[0].set_chat(*KEY, b"answer")
    await eventually(lambda: valkey.run("EXISTS", "{nomyo}:cache") == 1, "it is there")
    assert await caches[1].get_chat(*KEY) == b"answer"
    assert await other.get_chat(*KEY) is None
    assert await caches[1].invalidate() == 1
    assert valkey.run("KEYS", "*") == [b"somebody's"]
    for cache in (*caches, other):
        await cache.close()


async def test_of_many_entries_in_a_valkey_no_more_are_kept_than_there_may_be(valkey):
    cache = make_cache(CacheConfig("valkey", url=valkey.url, max_entries=20))
    await cache.open()
    for number in range(700):
        await cache.set_chat("r", "m", [number], b"x" * 100)
    assert await cache.get_chat("r", "m", [699]) is not None
    assert len(valkey.run("KEYS", "{nomyo}:cache:*")) == 20
    assert await cache.invalidate("m") == 20
    await cache.close()


async def test_a_cache_in_a_valkey_that_is_away_misses_and_is_back_by_itself(own_valkey, caplog):
    cache = make_cache(CacheConfig("valkey", url=own_valkey.url))
    await cache.open()
    await cache.set_chat(*KEY, b"answer")
    assert await cache.get_chat(*KEY) == b"answer"
    own_valkey.kill()
    for _ in range(20):
        assert await cache.get_chat(*KEY) is None
        await cache.set_chat(*KEY, b"answer")
    with pytest.raises(ServerError, match="cannot be emptied"):
        await cache.invalidate()
    assert (await cache.stats())["entries"] == 0
    assert sum("nothing is cached until it is back" in record.getMessage() for record in caplog.records) == 1
    own_valkey.start()

    async def is_back() -> bool:
        await cache.set_chat(*KEY, b"answer")
        return await cache.get_chat(*KEY) == b"answer"

    await eventually(is_back, "it is back")
    await cache.close()


async def test_a_cache_in_a_valkey_that_is_full_misses(valkey):
    cache = make_cache(CacheConfig("valkey", url=valkey.url))
    await cache.open()
    valkey.run("CONFIG", "SET", "maxmemory", "1")
    try:
        await cache.set_chat(*KEY, b"answer")
        assert await cache.get_chat(*KEY) is None
    finally:
        valkey.run("CONFIG", "SET", "maxmemory", "0")
    await cache.set_chat(*KEY, b"answer")
    assert await cache.get_chat(*KEY) == b"answer"
    await cache.close()


def test_a_cache_in_a_valkey_needs_one():
    settings = {"endpoints": [{"url": "http://127.0.0.1:9"}], "cache": {"backend": "valkey"}}
    with pytest.raises(ConfigError, match=r"^cache\.backend: valkey needs cache\.url, or the cluster\.url"):
        parse_config(settings)
    assert parse_config({**settings, "cluster": {"url": "valkey://host"}}).cache.url == "valkey://host"
