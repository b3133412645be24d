"""What every cluster keeps of quotas: what is taken of limits, over all processes."""

from __future__ import annotations

import asyncio
import math

from cluster.protocol import Cluster, Left, Quota
from tests.cluster.services import (
    Member,
    Several,
)
from tests.cluster.suite import every, with_others
from tests.turns import SOON_S

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
