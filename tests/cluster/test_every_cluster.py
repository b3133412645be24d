"""What every cluster keeps: the suite that each implementation passes, also the one that the tests of the pool use."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from starlette.types import Receive, Scope, Send

from api.http.protocol import Protocol
from cluster.alone import Alone
from cluster.protocol import Cluster
from cluster.workers import Workers
from tests.cluster.in_process import InProcess, Shared
from tests.cluster.services import (
    LEASE_S,
    Member,
    Service,
    Several,
)
from tests.cluster.suite import every, holds, opened, with_others
from tests.turns import SOON_S, eventually

HERE = "http://server:1/v1"
THERE = "http://server:2/v1"


@with_others
async def test_what_the_processes_of_a_service_have_in_common_is_their_own(
    service: Service, cluster: Cluster, tmp_path: Path
) -> None:
    async with service.other() as other:
        assert await other.run("cluster.service") == cluster.service
    Workers.prepare(tmp_path)
    foreign = (InProcess(Shared()), Workers(tmp_path), Alone())
    assert len({cluster.service, *(one.service for one in foreign)}) == 4


def choose(cluster: Cluster, url: str) -> None:
    """A request that is not confirmed yet."""
    with cluster.exclusive():
        cluster.in_flight(url).begin()


async def begin(cluster: Cluster, url: str, requests: int) -> None:
    for _ in range(requests):
        choose(cluster, url)
        assert await cluster.in_flight(url).confirm(1000)


def end(cluster: Cluster, url: str, requests: int) -> None:
    for _ in range(requests):
        cluster.in_flight(url).end()


async def begin_there(member: Member, url: str, requests: int) -> None:
    await member.run(f"""
for _ in range({requests}):
    with cluster.exclusive():
        cluster.in_flight({url!r}).begin()
    assert await cluster.in_flight({url!r}).confirm(1000)
""")


async def end_there(member: Member, url: str, requests: int) -> None:
    await member.run(f"for _ in range({requests}): cluster.in_flight({url!r}).end()")


COUNTS_DEATHS = """
import asyncio
died = []
async def count():
    async for _ in cluster.deaths():
        died.append(1)
counting = asyncio.ensure_future(count())
"""


def counted_deaths(cluster: Cluster) -> tuple[list[int], asyncio.Task[None]]:
    """A one for each that is this process's, from now on."""
    died: list[int] = []

    async def count() -> None:
        async for _ in cluster.deaths():
            died.append(1)  # noqa: PERF401  # as they come

    return died, asyncio.create_task(count())


async def one_death(here: list[int], other: Member) -> bool:
    return len(here) + await other.run("len(died)") == 1


async def deaths(cluster: Cluster) -> int:
    """Those that are this one's, as far as they are known at once."""
    seen = 0

    async def count() -> None:
        nonlocal seen
        async for _ in cluster.deaths():
            seen += 1

    counting = asyncio.create_task(count())
    await asyncio.sleep(0.01)
    counting.cancel()
    await asyncio.gather(counting, return_exceptions=True)
    return seen


# ── one process ──────────────────────────────────────────────────────────────────────────────────────────────────────


@every
class TestAProcess:
    async def test_counts_the_requests_at_each_endpoint(self, cluster: Cluster) -> None:
        await begin(cluster, HERE, 2)
        await begin(cluster, THERE, 5)
        end(cluster, HERE, 1)
        assert [cluster.in_flight(url).total() for url in (HERE, THERE, "http://server:3")] == [1, 5, 0]

    async def test_finds_an_endpoint_again_by_its_address(self, cluster: Cluster) -> None:
        urls = [f"{HERE}/{number}" for number in range(20)]
        for number, url in enumerate(urls):
            await begin(cluster, url, number)
            cluster.in_flight(url).draining = number % 3 == 0
        # In another order, as after a change of the settings.
        for number, url in reversed(list(enumerate(urls))):
            found = cluster.in_flight(url)
            assert (found.total(), found.draining) == (number, number % 3 == 0)

    async def test_confirms_what_it_has_begun_within_the_limit_and_withdraws_what_it_does_not_send(
        self, cluster: Cluster
    ) -> None:
        for _ in range(2):
            choose(cluster, HERE)
            assert await cluster.in_flight(HERE).confirm(1) is not None
            cluster.in_flight(HERE).end()
            choose(cluster, HERE)
            cluster.in_flight(HERE).withdraw()
            assert cluster.in_flight(HERE).total() == 0

    async def test_has_nobody_to_wait_for_while_it_is_the_only_one(self, cluster: Cluster) -> None:
        for waiting in (0, 3):
            cluster.line.announce(waiting, 5.0)
            assert (cluster.line.elsewhere(), cluster.line.is_first()) == (0, True)
        cluster.line.listen(lambda: pytest.fail("it has woken itself"))
        cluster.line.wake()
        await asyncio.sleep(0.005)
        cluster.line.stop_listening()

    async def test_sees_its_own_deletions_at_once(self, cluster: Cluster) -> None:
        before = cluster.deletions.value
        cluster.deletions.add(3)
        cluster.deletions.add(1)
        assert cluster.deletions.value == before + 4

    async def test_is_the_first_to_start_and_leads_and_inherits_nothing(self, cluster: Cluster) -> None:
        async with cluster.starting() as is_first:
            assert is_first
        assert cluster.leads
        assert await deaths(cluster) == 0

    async def test_that_fails_to_start_has_not_started(self, cluster: Cluster) -> None:
        with pytest.raises(RuntimeError, match="no disk"):
            async with cluster.starting():
                raise RuntimeError("no disk")
        async with cluster.starting() as is_first:
            assert is_first

    async def test_has_nobody_to_ask(self, cluster: Cluster) -> None:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            pytest.fail("it has asked itself")

        async with cluster.answering(app, Protocol):
            assert await cluster.ask("GET", "/answer/200", {}) == []
            assert await cluster.find("GET", "/answer/200", {}) is None

    async def test_leaves_nothing_to_a_later_life(self, service: Service) -> None:
        for _ in range(2):
            async with opened(service) as cluster:
                assert cluster.in_flight(HERE).total() == 0
                await begin(cluster, HERE, 2)


# ── several ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@with_others
class TestProcesses:
    async def test_requests_are_counted_over_all(self, service: Several, cluster: Cluster) -> None:
        await begin(cluster, HERE, 2)
        async with service.other() as other:
            await begin_there(other, HERE, 3)
            await holds(cluster, lambda: cluster.in_flight(HERE).total() == 5, "all are seen here")

            async def seen_there(requests: int) -> bool:
                return await other.run(f"cluster.in_flight({HERE!r}).total()") == requests

            await holds(cluster, lambda: seen_there(5), "all are seen there")
            end(cluster, HERE, 1)
            await holds(cluster, lambda: seen_there(4), "and that one has ended")

    async def test_an_endpoint_is_drained_for_all(self, service: Several, cluster: Cluster) -> None:
        async with service.other() as other:
            await other.run(f"cluster.in_flight({HERE!r}).draining = True")
            await holds(cluster, lambda: cluster.in_flight(HERE).draining, "it is drained here")
            cluster.in_flight(HERE).draining = False

            async def is_enabled_there() -> bool:
                return await other.run(f"cluster.in_flight({HERE!r}).draining") is False

            await holds(cluster, is_enabled_there, "it is enabled there")

    async def test_the_sums_are_those_of_a_model_whatever_each_does(self, service: Several, cluster: Cluster) -> None:
        dice = random.Random(5)
        running: Counter[tuple[int, str]] = Counter()
        waiting: dict[int, tuple[int, float]] = {0: (0, 0.0), 1: (0, 0.0)}
        deletions = cluster.deletions.value
        async with service.other() as other:
            # Each step takes as long as others need to hear of it.
            for _ in range(150 if cluster.is_exact else 25):
                who, url, n = dice.randrange(2), dice.choice((HERE, THERE)), dice.randrange(1, 4)
                match dice.randrange(3):
                    case 0:
                        begins = not running[who, url] or dice.random() < 0.6
                        n = n if begins else running[who, url]
                        running[who, url] += n if begins else -n
                        if who:
                            await (begin_there if begins else end_there)(other, url, n)
                        elif begins:
                            await begin(cluster, url, n)
                        else:
                            end(cluster, url, n)
                    case 1:
                        # Times differ, as those of a clock do, and a priority is a long time.
                        since_s = round(dice.random() * 100 + dice.choice((-1e6, 0, 0, 1e6)), 6)
                        waiting[who] = (n, since_s) if dice.random() < 0.7 else (0, 0.0)
                        call = f"announce{waiting[who]!r}"
                        await (
                            other.run(f"cluster.line.{call}")
                            if who
                            else asyncio.sleep(0, cluster.line.announce(*waiting[0]))
                        )
                    case 2:
                        deletions += n
                        await (
                            other.run(f"cluster.deletions.add({n})")
                            if who
                            else asyncio.sleep(0, cluster.deletions.add(n))
                        )
                look = f"[cluster.in_flight({HERE!r}).total(), cluster.in_flight({THERE!r}).total(), "
                look += "cluster.line.elsewhere(), cluster.line.is_first(), cluster.deletions.value]"
                since = {number: since for number, (count, since) in waiting.items() if count}
                sums = [sum(count for (_, at), count in running.items() if at == url) for url in (HERE, THERE)]
                expected = []
                for number in range(2):
                    first = not since or min(since, key=since.__getitem__) == number
                    expected.append([*sums, waiting[1 - number][0], first, deletions])
                seen: list[object] = []

                async def are_seen(look: str = look, seen: list[object] = seen, expected: object = expected) -> bool:
                    seen[:] = [eval(look, {"cluster": cluster}), await other.run(look)]
                    return seen == expected

                try:
                    await holds(cluster, are_seen, f"{expected} is seen")
                except AssertionError:
                    assert seen == expected

    async def test_a_wake_up_reaches_those_in_which_somebody_waits(self, service: Several, cluster: Cluster) -> None:
        woken = asyncio.Event()
        cluster.line.listen(woken.set)
        async with service.other() as other:

            async def waiting_there(count: int) -> bool:
                return await other.run("cluster.line.elsewhere()") == count

            cluster.line.announce(1, 1.0)
            await holds(cluster, lambda: waiting_there(1), "it is known who waits")
            await other.run("cluster.line.wake()")
            await asyncio.wait_for(woken.wait(), SOON_S)
            cluster.line.announce(0, 0.0)
            await holds(cluster, lambda: waiting_there(0), "nobody does")
            woken.clear()
            await other.run("cluster.line.wake()")
            await asyncio.sleep(0.01)
            assert not woken.is_set(), "nobody waits here"
        cluster.line.stop_listening()

    async def test_a_wake_up_for_a_dead_one_hurts_nobody(self, service: Several, cluster: Cluster) -> None:
        async with service.other() as other:
            await other.run("cluster.line.announce(1, 1.0)")
            await other.kill()
            cluster.line.wake()

    async def test_one_that_leaves_takes_its_counts_along(self, service: Several, cluster: Cluster) -> None:
        async with service.other() as other:
            await begin_there(other, HERE, 3)
            await other.run("cluster.line.announce(4, 1.0)")
            await holds(cluster, lambda: cluster.line.elsewhere() == 4, "it is known who waits")
            await other.leave()

            def has_left() -> bool:
                now = (cluster.in_flight(HERE).total(), cluster.line.elsewhere(), cluster.line.is_first())
                return now == (0, 0, True)

            await holds(cluster, has_left, "nothing of it counts")
            assert await cluster.ask("GET", "/answer/200", {}) == []

    async def test_what_a_dead_one_had_is_cleared_for_its_successor_which_inherits_its_work(
        self, service: Several, cluster: Cluster
    ) -> None:
        await begin(cluster, HERE, 1)
        woken = asyncio.Event()
        cluster.line.listen(woken.set)
        async with service.other() as other:
            await begin_there(other, HERE, 3)
            await other.run("cluster.line.announce(4, 1.0)")
            await holds(cluster, lambda: cluster.in_flight(HERE).total() == 4, "what runs there is known")
            await other.kill()
        cluster.line.announce(1, 2.0)
        async with service.other() as successor:
            await holds(cluster, lambda: cluster.in_flight(HERE).total() == 1, "what ran there is gone")
            await holds(cluster, lambda: cluster.line.elsewhere() == 0, "and who waited there")
            await asyncio.wait_for(woken.wait(), SOON_S), "whoever waits may have the slots of the dead one"
            if cluster.is_exact:
                assert await successor.run("[1 async for _ in cluster.deaths()]") == [1]
                assert await deaths(cluster) == 0
            else:
                # It is given to whoever has found out, once.
                await successor.run(COUNTS_DEATHS)
                here, counting = counted_deaths(cluster)
                await eventually(lambda: one_death(here, successor), "somebody inherits")
                await asyncio.sleep(LEASE_S / 2)  # some beats of each
                assert await one_death(here, successor), "nobody else does"
                counting.cancel()
        cluster.line.stop_listening()

    async def test_one_of_them_leads(self, service: Several) -> None:
        async with AsyncExitStack() as stack:
            members = [await stack.enter_async_context(service.other()) for _ in range(3)]
            leading = [await member.run("cluster.leads") for member in members]
            assert sum(leading) == 1
            await members[leading.index(True)].kill()
            members[leading.index(True)] = await stack.enter_async_context(service.other())

            async def one_leads() -> bool:
                leading = [await member.run("cluster.leads") for member in members]
                assert sum(leading) <= 1
                return sum(leading) == 1

            await holds(service.here(), one_leads, "another one leads")

    async def test_they_start_one_after_the_other_and_the_first_alone_is_the_first(self, service: Several) -> None:
        start = """
started = []
async def start():
    async with cluster.starting() as is_first:
        started.append(is_first)
"""
        async with service.other() as first, service.other() as second:
            for member in (first, second):
                await member.run(start)
            await first.run("starting = cluster.starting()\nstarted.append(await starting.__aenter__())")
            waits = asyncio.create_task(second.run("await start()"))
            await asyncio.sleep(0.02)
            assert not waits.done(), "two start at once"
            # Who runs does not wait for one that starts.
            await first.run("cluster.deletions.add(1)")
            await first.run("await starting.__aexit__(None, None, None)")
            await asyncio.wait_for(waits, SOON_S)
            assert await first.run("started") == [True]
            assert await second.run("started") == [False]

    async def test_what_is_done_in_exclusion_is_one_step(self, service: Several, cluster: Cluster) -> None:
        """Two add to the same number, each by reading it and writing it back."""
        async with service.other() as other:
            adding = asyncio.create_task(other.run("for _ in range(20_000): cluster.deletions.add(1)"))
            for _ in range(20_000):
                cluster.deletions.add(1)
            await adding
            await holds(cluster, lambda: cluster.deletions.value == 40_000, "none is lost")
