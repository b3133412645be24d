"""What replicas count in a Valkey, whatever happens to it and to them: the sum of what runs, and nothing when nothing
does."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import AsyncExitStack, suppress

import pytest

from cluster.protocol import Quota, Taken
from cluster.valkey import Replicas
from cluster.valkey_quotas import AtServer
from cluster.valkey_scripts import short
from tests.cluster.services import replica
from tests.engines.valkey import ValkeyServer
from tests.turns import eventually

URLS = ("http://server:1/v1", "http://server:2/v1")
LIMIT = 4


MODELS = ("small", "large")
# Fewer than there are slots: now it is this that refuses, now they.
AT_ONCE = Quota("a key, at once", 6, 0.0)


class Requests:
    """Those that run of one process, by endpoint and model, each with what it has taken of the quota."""

    def __init__(self, cluster: Replicas) -> None:
        self.cluster = cluster
        self.running: Counter[tuple[str, str]] = Counter()
        self._taken: list[Taken] = []

    def of_quota(self) -> int:
        """What of the quota the server has counted, and not this process by itself, while it was away."""
        return sum(type(taken.buckets) is AtServer for taken in self._taken)

    def at(self, url: str) -> int:
        return sum(count for (there, _), count in self.running.items() if there == url)

    async def begin(self, url: str, model: str = "small") -> None:
        """One more, if there is a slot for it and room in the quota: both are taken in one question."""
        one, drawing = self.cluster.in_flight(url), self.cluster.quotas.draw([(AT_ONCE, 1)])
        if one.total() >= LIMIT:
            drawing.give_up()
            return
        with self.cluster.exclusive():
            one.begin()
        try:
            place = await one.confirm(LIMIT, model, drawing=drawing)
        except BaseException:
            drawing.give_up()
            one.withdraw()
            raise
        assert drawing.taken is not None
        if place is None:
            one.withdraw()
            drawing.give_up()
            return
        assert drawing.taken.refused is None, "it has a slot, and was refused"
        self._taken.append(drawing.taken)
        self.running[url, model] += 1

    def end(self, url: str, model: str = "small") -> None:
        self.running[url, model] -= 1
        self.cluster.in_flight(url).end(model)
        self.cluster.quotas.settle(self._taken.pop(), [0])

    def end_all(self) -> None:
        for (url, model), count in [*self.running.items()]:
            for _ in range(count):
                self.end(url, model)


@pytest.mark.parametrize("seed", range(4))
async def test_no_slot_is_lost_and_none_is_made_whatever_happens(own_valkey: ValkeyServer, seed: int) -> None:
    dice = random.Random(seed)
    async with AsyncExitStack() as stack:
        clusters = [replica(own_valkey.url) for _ in range(3)]
        for cluster in clusters:
            await cluster.open()
            stack.push_async_callback(cluster.close)
        requests = [Requests(cluster) for cluster in clusters]
        names = {
            **{short(url): url for url in URLS},
            **{short(f"{url} {model}"): f"{url} {model}" for url in URLS for model in MODELS},
            short(f"quota {AT_ONCE.name}"): AT_ONCE.name,
        }

        def counted() -> dict[str, int]:
            totals = own_valkey.run("HMGET", "{nomyo}:total", *names)
            return dict(zip(names.values(), (int(total or 0) for total in totals), strict=True))

        def true() -> dict[str, int]:
            running = sum((each.running for each in requests), Counter[tuple[str, str]]())
            by_model = {f"{url} {model}": running[url, model] for url in URLS for model in MODELS}
            by_url = {url: sum(running[url, model] for model in MODELS) for url in URLS}
            return {**by_url, **by_model, AT_ONCE.name: sum(each.of_quota() for each in requests)}

        async def is_right() -> None:
            await eventually(lambda: not any(cluster.is_apart for cluster in clusters), "all are connected")
            await eventually(lambda: counted() == true(), "the server counts what runs")

        for step in range(120):
            if step % 6 == 0:
                await is_right()
            each, url, model = dice.choice(requests), dice.choice(URLS), dice.choice(MODELS)
            match dice.randrange(9):
                case 0 | 1 | 2:
                    await each.begin(url, model)
                case 3:
                    # Whoever asked leaves, at any moment.
                    asking = asyncio.create_task(each.begin(url, model))
                    for _ in range(dice.randrange(4)):
                        await asyncio.sleep(0)
                    asking.cancel()
                    with suppress(asyncio.CancelledError):
                        await asking
                case 4 | 5 if each.running[url, model]:
                    each.end(url, model)
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
            seen = lambda cluster=cluster: [cluster.in_flight(url).total() for url in URLS]  # noqa: E731
            await eventually(lambda seen=seen: seen() == [true()[url] for url in URLS], "each process knows it")
        for each in requests:
            each.end_all()
        await eventually(lambda: not any(counted().values()), "nothing runs")
        assert own_valkey.run("KEYS", "{nomyo}:own:*") == []


async def test_a_limit_is_kept_by_many_that_ask_at_once_in_several_processes(valkey: ValkeyServer) -> None:
    async with AsyncExitStack() as stack:
        clusters = [replica(valkey.url) for _ in range(3)]
        for cluster in clusters:
            await cluster.open()
            stack.push_async_callback(cluster.close)
        requests = [Requests(cluster) for cluster in clusters]
        await asyncio.gather(*(each.begin(URLS[0]) for each in requests for _ in range(50)))
        assert sum(each.at(URLS[0]) for each in requests) == LIMIT
        await asyncio.gather(*(each.begin(URLS[1]) for each in requests for _ in range(50)))
        assert sum(each.running.total() for each in requests) == AT_ONCE.limit


async def test_what_others_ask_a_model_is_known(own_valkey: ValkeyServer) -> None:
    async with AsyncExitStack() as stack:
        here, there = [replica(own_valkey.url) for _ in range(2)]
        for cluster in (here, there):
            await cluster.open()
            stack.push_async_callback(cluster.close)
        mine, others = Requests(here), Requests(there)
        one = here.in_flight(URLS[0])

        def known() -> list[int]:
            return [one.elsewhere(model) for model in MODELS]

        for model in ("small", "small", "large"):
            await others.begin(URLS[0], model)
        await mine.begin(URLS[0], "large")
        await eventually(lambda: known() == [2, 1], "what others have begun is known")
        others.end(URLS[0], "small")
        await eventually(lambda: known() == [1, 1], "and that one has ended")
        own_valkey.empty()
        others.end(URLS[0], "large")
        await eventually(lambda: known() == [1, 0], "also where the server has lost it")
        await there.close()
        await eventually(lambda: known() == [0, 0], "nothing runs in a process that has left")


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
