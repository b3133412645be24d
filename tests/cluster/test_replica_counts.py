"""What replicas count in a Valkey, whatever happens to it and to them: the sum of what runs, and nothing when nothing
does."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import AsyncExitStack, suppress

import pytest

from cluster.protocol import Quota
from cluster.valkey import Replicas
from cluster.valkey_counts import short
from tests.cluster.services import replica
from tests.engines.valkey import ValkeyServer
from tests.turns import eventually

URLS = ("http://server:1/v1", "http://server:2/v1")
LIMIT = 4


async def take(cluster: Replicas, url: str, running: Counter[str]) -> None:
    """A request, if there is a slot for it."""
    one = cluster.in_flight(url)
    if one.total() >= LIMIT:
        return
    with cluster.exclusive():
        one.begin()
    try:
        if await one.confirm(LIMIT):
            running[url] += 1
        else:
            one.withdraw()
    except BaseException:
        one.withdraw()
        raise


@pytest.mark.parametrize("seed", range(4))
async def test_no_slot_is_lost_and_none_is_made_whatever_happens(own_valkey: ValkeyServer, seed: int) -> None:
    dice = random.Random(seed)
    async with AsyncExitStack() as stack:
        clusters = [replica(own_valkey.url) for _ in range(3)]
        for cluster in clusters:
            await cluster.open()
            stack.push_async_callback(cluster.close)
        running = [Counter[str]() for _ in clusters]

        def counted() -> dict[str, int]:
            return {url: int(own_valkey.run("HGET", "{nomyo}:total", short(url)) or 0) for url in URLS}

        def true() -> dict[str, int]:
            return {url: sum(each[url] for each in running) for url in URLS}

        async def is_right() -> None:
            await eventually(lambda: not any(cluster.is_apart for cluster in clusters), "all are connected")
            await eventually(lambda: counted() == true(), "the server counts what runs")

        for step in range(120):
            if step % 6 == 0:
                await is_right()
            who = dice.randrange(3)
            cluster, url = clusters[who], dice.choice(URLS)
            match dice.randrange(9):
                case 0 | 1 | 2:
                    await take(cluster, url, running[who])
                case 3:
                    # Whoever asked leaves, at any moment.
                    asking = asyncio.create_task(take(cluster, url, running[who]))
                    for _ in range(dice.randrange(4)):
                        await asyncio.sleep(0)
                    asking.cancel()
                    with suppress(asyncio.CancelledError):
                        await asking
                case 4 | 5 if running[who][url]:
                    running[who][url] -= 1
                    cluster.in_flight(url).end()
                case 6 if dice.random() < 0.3:
                    own_valkey.empty()
                case 7 if dice.random() < 0.3:
                    own_valkey.run("CLIENT", "KILL", "TYPE", "pubsub")
                case 8 if dice.random() < 0.3:
                    own_valkey.run("SCRIPT", "FLUSH")
                case _:
                    await asyncio.sleep(0.002)

        await is_right()
        for cluster in clusters:
            seen = lambda cluster=cluster: {url: cluster.in_flight(url).total() for url in URLS}  # noqa: E731
            await eventually(lambda seen=seen: seen() == true(), "each process knows it")
        for cluster, each in zip(clusters, running, strict=True):
            for url, count in each.items():
                for _ in range(count):
                    cluster.in_flight(url).end()
                each[url] = 0
        await eventually(lambda: counted() == dict.fromkeys(URLS, 0), "nothing runs")
        assert own_valkey.run("KEYS", "{nomyo}:own:*") == []


async def test_a_limit_is_kept_by_many_that_ask_at_once_in_several_processes(valkey: ValkeyServer) -> None:
    async with AsyncExitStack() as stack:
        clusters = [replica(valkey.url) for _ in range(3)]
        for cluster in clusters:
            await cluster.open()
            stack.push_async_callback(cluster.close)
        running = [Counter[str]() for _ in clusters]
        await asyncio.gather(
            *(take(cluster, URLS[0], each) for cluster, each in zip(clusters, running, strict=True) for _ in range(50))
        )
        assert sum(each[URLS[0]] for each in running) == LIMIT


async def test_quotas_are_each_process_s_own_while_the_server_is_away_and_all_s_again_after(
    own_valkey: ValkeyServer,
) -> None:
    quota, at_once = Quota("a key, tokens", 100, 3600.0), Quota("a key, at once", 2, 0.0)
    async with AsyncExitStack() as stack:
        clusters = [replica(own_valkey.url) for _ in range(2)]
        for cluster in clusters:
            await cluster.open()
            stack.push_async_callback(cluster.close)
        before = await clusters[0].quotas.take([(quota, 60), (at_once, 2)])
        assert (await clusters[1].quotas.take([(quota, 60)])).refused == quota
        own_valkey.kill()
        meanwhile = await clusters[1].quotas.take([(quota, 60), (at_once, 1)])
        assert meanwhile.refused is None, "nobody waits for it"
        own_valkey.start()
        await eventually(lambda: not any(cluster.is_apart for cluster in clusters), "it is back")
        assert (await clusters[1].quotas.take([(at_once, 1)])).refused == at_once, "what runs is counted again"
        clusters[1].quotas.settle(meanwhile, [60, 0])
        clusters[0].quotas.settle(before, [60, 0])
        assert (await clusters[0].quotas.take([(at_once, 2)])).refused is None


async def test_what_was_deleted_while_the_server_was_away_is_believed_in_nowhere_when_it_is_back(
    own_valkey: ValkeyServer,
) -> None:
    async with AsyncExitStack() as stack:
        a, b = clusters = [replica(own_valkey.url) for _ in range(2)]
        for cluster in clusters:
            await cluster.open()
            stack.push_async_callback(cluster.close)
        a.deletions.add(2)
        await eventually(lambda: b.deletions.value == 2, "the other one knows")
        own_valkey.kill()
        await eventually(lambda: a.is_apart and b.is_apart, "it is away")
        assert not a.leads
        assert not b.leads
        known = b.deletions.value
        a.deletions.add(1)
        assert a.deletions.value == 3, "its own are seen at once"
        own_valkey.start()
        await eventually(lambda: b.deletions.value > known, "what it keeps warm is looked at anew")
        await eventually(lambda: a.deletions.value == b.deletions.value, "both know the same")
        await eventually(lambda: a.leads + b.leads == 1, "one leads again")


async def test_a_note_that_was_set_is_not_undone_by_what_was_asked_before(valkey: ValkeyServer) -> None:
    async with AsyncExitStack() as stack:
        a, b = clusters = [replica(valkey.url) for _ in range(2)]
        for cluster in clusters:
            await cluster.open()
            stack.push_async_callback(cluster.close)
        for _ in range(50):
            for one, other in ((a, b), (b, a)):
                one.in_flight(URLS[0]).draining = True
                await eventually(lambda other=other: other.in_flight(URLS[0]).draining, "it is drained")
                other.membership._version = -1  # It has missed something, and all of it comes.
                other.membership._beat()
                other.in_flight(URLS[0]).draining = False
                await eventually(lambda one=one: not one.in_flight(URLS[0]).draining, "it is enabled")
                assert not other.in_flight(URLS[0]).draining
