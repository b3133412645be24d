"""What every cluster keeps: the suite that each implementation passes, also the one that the tests of the pool use."""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from starlette.types import Receive, Scope, Send

from api.http.protocol import Protocol
from cluster.alone import Alone
from cluster.protocol import Cluster, Left, Quota
from cluster.workers import Workers
from tests.cluster.in_process import InProcess, Shared
from tests.cluster.services import (
    LEASE_S,
    AloneService,
    InProcessService,
    Member,
    ReplicasService,
    Service,
    Several,
    WorkersService,
)
from tests.turns import SOON_S, eventually

HERE = "http://server:1/v1"
THERE = "http://server:2/v1"
# An ASGI application in another process, for the requests of its peers: it answers with the status at the end of the
# path, and with what came.
ANSWERS = """
import json
from contextlib import AsyncExitStack
from api.http.protocol import Protocol
from cluster.protocol import FROM_PEER

async def app(scope, receive, send):
    headers = {name.decode(): value.decode() for name, value in scope["headers"]}
    said = {"method": scope["method"], "path": scope["path"], "query": scope["query_string"].decode(),
        "by": cluster.number, "authorization": headers.get("authorization"), "from_peer": scope.get(FROM_PEER, False)}
    status = int(scope["path"].rpartition("/")[2])
    if scope["path"].startswith("/only-") and not scope["path"].startswith(f"/only-{cluster.number}/"):
        status = 404
    head = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": json.dumps(said).encode()})

answering = cluster.answering(app, Protocol)
await answering.__aenter__()
"""


def services(*, with_others: bool) -> list[str]:
    several = ["workers", "replicas", "in process"]
    return several if with_others else ["alone", *several]


@pytest.fixture
def service(request: pytest.FixtureRequest, short_path: Path) -> Service:
    made = {
        "alone": AloneService,
        "workers": lambda: WorkersService(short_path),
        "replicas": lambda: ReplicasService(request.getfixturevalue("valkey").url),
        "in process": InProcessService,
    }
    return made[request.param]()


every = pytest.mark.parametrize("service", services(with_others=False), indirect=True)
with_others = pytest.mark.parametrize("service", services(with_others=True), indirect=True)


@asynccontextmanager
async def opened(service: Service) -> AsyncIterator[Cluster]:
    cluster = service.here()
    await cluster.open()
    yield cluster
    await cluster.close()


@pytest.fixture
async def cluster(service: Service) -> AsyncIterator[Cluster]:
    """This process in the service, the first that joins it."""
    async with opened(service) as cluster:
        yield cluster


@with_others
async def test_what_the_processes_of_a_service_have_in_common_is_their_own(
    service: Service, cluster: Cluster, tmp_path: Path
) -> None:
    async with service.other() as other:
        assert await other.run("cluster.service") == cluster.service
    Workers.prepare(tmp_path)
    foreign = (InProcess(Shared()), Workers(tmp_path), Alone())
    assert len({cluster.service, *(one.service for one in foreign)}) == 4


async def holds(cluster: Cluster, condition: Callable[[], bool] | Callable[[], Awaitable[bool]], what: str) -> None:
    """At once where one look is enough to see what others do, soon where there is a network between them."""
    if not cluster.is_exact:
        await eventually(condition, what)
        return
    held = condition()
    assert await held if isinstance(held, Awaitable) else held, what


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


# ── peers ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
async def peers(service: Several, cluster: Cluster) -> AsyncIterator[list[Member]]:
    """Two that answer, and this process."""
    async with service.other() as first, service.other() as second:
        members = [first, second]
        for member in members:
            await member.run(ANSWERS)

        async def all_answer() -> bool:
            return [answer and answer["by"] for answer in await cluster.ask("GET", "/200", {})] == [1, 2]

        await holds(cluster, all_answer, "both are known here")
        yield members


@with_others
@pytest.mark.usefixtures("peers")
class TestPeers:
    async def test_all_are_asked_as_the_client_asked(self, cluster: Cluster) -> None:
        answers = await cluster.ask("POST", "/a%20b/200?x=1&y=%2F", {"authorization": "Bearer k"})
        asked = {
            "method": "POST",
            "path": "/a b/200",
            "query": "x=1&y=%2F",
            "authorization": "Bearer k",
            "from_peer": True,
        }
        assert answers == [{**asked, "by": number} for number in (1, 2)]

    async def test_an_answer_that_is_no_200_is_none(self, cluster: Cluster) -> None:
        for status in (204, 404, 500):
            assert await cluster.ask("GET", f"/{status}", {}) == [None, None]

    async def test_the_first_answer_that_is_no_404_is_found(self, cluster: Cluster) -> None:
        for path, status, number in (("/200", 200, 1), ("/400", 400, 1), ("/500", 500, 1), ("/only-2/200", 200, 2)):
            found = await cluster.find("GET", path, {})
            assert found is not None
            assert (found.status, found.headers["content-type"]) == (status, "application/json")
            assert f'"by": {number}'.encode() in b"".join([piece async for piece in found.pieces()])
            await found.aclose()
        assert await cluster.find("GET", "/only-7/200", {}) is None

    async def test_one_that_is_gone_is_left_out(self, cluster: Cluster, peers: list[Member]) -> None:
        await peers[0].leave()

        async def is_left_out() -> bool:
            return [answer and answer["by"] for answer in await cluster.ask("GET", "/200", {})] == [2]

        await holds(cluster, is_left_out, "the other one is asked alone")


# ── quotas ───────────────────────────────────────────────────────────────────────────────────────────────────────────

# Of a period that ends in no test.
LONG = Quota("key a, tokens", 100, 3600.0)
OTHER = Quota("key b, tokens", 100, 3600.0)
AT_ONCE = Quota("key a, at once", 3, 0.0)


async def left_of(cluster: Cluster, quota: Quota) -> int:
    return (await cluster.quotas.take([(quota, 0)])).left[0].amount


async def take_there(member: Member, quota: Quota, amount: int) -> bool:
    """Whether another process got it. What it took is `taken` there."""
    await member.run(
        "from cluster.protocol import Quota\n"
        f"taken = await cluster.quotas.take([(Quota({quota.name!r}, {quota.limit}, {quota.period_s}), {amount})])"
    )
    return bool(await member.run("taken.refused is None"))


@every
class TestQuotas:
    async def test_what_is_taken_is_not_left_and_what_is_too_much_is_refused(self, cluster: Cluster) -> None:
        taken = await cluster.quotas.take([(LONG, 70), (OTHER, 10)])
        assert taken.refused is None
        assert [left.amount for left in taken.left] == [30, 90]
        assert all(0 < left.reset_s <= 2 * LONG.period_s for left in taken.left)
        refused = await cluster.quotas.take([(OTHER, 10), (LONG, 50)])
        assert refused.refused == LONG
        assert 0 < refused.wait_s <= 2 * LONG.period_s
        assert [left.amount for left in refused.left] == [90, 30], "of what is refused nothing is taken"
        never = await cluster.quotas.take([(LONG, 101)])
        assert (never.refused, never.wait_s) == (LONG, math.inf)

    async def test_what_was_not_used_is_given_back_and_what_was_used_beyond_counts(self, cluster: Cluster) -> None:
        first = await cluster.quotas.take([(LONG, 40), (OTHER, 40)])
        second = await cluster.quotas.take([(LONG, 40)])
        cluster.quotas.settle(first, [0, 90])
        assert [await left_of(cluster, LONG), await left_of(cluster, OTHER)] == [60, 10]
        cluster.quotas.settle(second, [150])
        assert await left_of(cluster, LONG) == 0, "more may have been used than there was"
        assert (await cluster.quotas.take([(LONG, 1)])).refused == LONG

    async def test_so_many_at_once_are_admitted_again_when_others_have_ended(self, cluster: Cluster) -> None:
        running = [await cluster.quotas.take([(AT_ONCE, 1), (LONG, 1)]) for _ in range(3)]
        assert [taken.left[0] for taken in running] == [Left(2, 0.0), Left(1, 0.0), Left(0, 0.0)]
        refused = await cluster.quotas.take([(AT_ONCE, 1), (LONG, 1)])
        assert (refused.refused, refused.wait_s) == (AT_ONCE, 0.0)
        cluster.quotas.settle(running.pop(), [0, 1])
        running.append(await cluster.quotas.take([(AT_ONCE, 1), (LONG, 1)]))
        assert running[-1].refused is None
        for taken in running:
            cluster.quotas.settle(taken, [0, 0])
        assert [await left_of(cluster, AT_ONCE), await left_of(cluster, LONG)] == [3, 99]

    async def test_what_is_used_beyond_is_seen_by_a_lower_limit_too(self, cluster: Cluster) -> None:
        """The limit is whoever asks's: settings change."""
        await cluster.quotas.take([(LONG, 50)])
        assert (await cluster.quotas.take([(LONG._replace(limit=40), 1)])).refused is not None
        assert await left_of(cluster, LONG._replace(limit=200)) == 150

    async def test_what_was_taken_of_a_period_passes_with_it(self, cluster: Cluster) -> None:
        short = Quota("key a, short", 2, 0.05)
        while (await cluster.quotas.take([(short, 1)])).refused is None:
            pass
        async with asyncio.timeout(SOON_S):
            while (refused := await cluster.quotas.take([(short, 2)])).refused is not None:
                assert 0 < refused.wait_s <= 2 * short.period_s + 0.01
                await asyncio.sleep(refused.wait_s)

    async def test_a_burst_from_one_process_gets_exactly_what_there_is(self, cluster: Cluster) -> None:
        asked = await asyncio.gather(*(cluster.quotas.take([(AT_ONCE, 1), (LONG, 7)]) for _ in range(40)))
        assert sum(taken.refused is None for taken in asked) == 3
        assert await left_of(cluster, LONG) == 100 - 3 * 7


@with_others
class TestQuotasOfSeveral:
    async def test_processes_take_of_the_same(self, service: Several, cluster: Cluster) -> None:
        async with service.other() as other:
            assert (await cluster.quotas.take([(LONG, 30)])).refused is None
            assert await take_there(other, LONG, 60)
            assert (await cluster.quotas.take([(LONG, 20)])).refused == LONG
            await other.run("cluster.quotas.settle(taken, [20])")
            await _eventually_left(cluster, LONG, 50)
            assert not await take_there(other, LONG, 51)

    async def test_what_is_admitted_in_all_processes_is_the_limit(self, service: Several, cluster: Cluster) -> None:
        """Each asks for more than there is, at the same time."""
        quota = Quota("key c, requests", 50, 3600.0)
        async with service.other() as other:
            await other.run("from cluster.protocol import Quota")
            taking = asyncio.create_task(
                other.run(f"[(await cluster.quotas.take([({quota!r}, 1)])).refused is None for _ in range(60)]")
            )
            here = []
            for _ in range(60):
                here.append((await cluster.quotas.take([(quota, 1)])).refused is None)
                await asyncio.sleep(0)
            assert sum(here) + sum(await taking) == 50

    async def test_what_a_dead_process_had_at_once_is_given_back(self, service: Several, cluster: Cluster) -> None:
        async with service.other() as other:
            assert await take_there(other, AT_ONCE, 2)
            own = await cluster.quotas.take([(AT_ONCE, 1)])
            assert (await cluster.quotas.take([(AT_ONCE, 1)])).refused == AT_ONCE
            await other.kill()
        async with service.other():
            await _eventually_left(cluster, AT_ONCE, 2)
        cluster.quotas.settle(own, [0])
        assert await left_of(cluster, AT_ONCE) == 3

    async def test_who_leaves_gives_back_what_it_had_at_once(self, service: Several, cluster: Cluster) -> None:
        async with service.other() as other:
            assert await take_there(other, AT_ONCE, 3)
            assert await left_of(cluster, AT_ONCE) == 0
            await other.leave()
            await _eventually_left(cluster, AT_ONCE, 3)


async def _eventually_left(cluster: Cluster, quota: Quota, amount: int) -> None:
    async with asyncio.timeout(SOON_S):
        while await left_of(cluster, quota) != amount:  # noqa: ASYNC110  # it may come from another process
            await asyncio.sleep(0.005)
