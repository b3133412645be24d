"""The pools of two workers, in one process: who gets a slot that comes free in either. Their cluster is a plain one
(tests/cluster); the real one is in test_workers.py."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count
from typing import Any

import pytest

from backends.fleet.pool import Pool, choose_endpoint
from backends.fleet.routing import Routing
from core.config_checks import parse_config
from core.errors import TooManyRequests
from tests.cluster.in_process import InProcess, Shared
from tests.fake_backend import FakeBackend
from tests.test_pool import at
from tests.turns import SOON_S, eventually, soon


class Workers:
    """Two pools, and the slots that are taken."""

    def __init__(self, pools: list[Pool], clusters: list[InProcess], shared: Shared) -> None:
        self.pools = pools
        self.clusters = clusters
        self.shared = shared
        self.served: list[str] = []

    async def request(self, worker: int, name: str = "", model: str = "test-model") -> None:
        """Takes a slot, and keeps it."""
        await choose_endpoint(self.pools[worker], model)
        self.served.append(name)

    async def waits(self, worker: int, name: str = "", model: str = "test-model") -> asyncio.Task[None]:
        """A request that waits by now."""
        before = self.waiting()
        task = asyncio.create_task(self.request(worker, name, model))
        await eventually(lambda: self.waiting() == before + 1, f"{name} waits")
        return task

    def give_back(self, worker: int, model: str = "test-model") -> None:
        """A request that `worker` was running has ended."""
        pool = self.pools[worker]
        pool.release(next(e for e in pool.endpoints.values() if e.in_flight and e.name_of(model)))

    def give_back_any(self) -> None:
        self.give_back(next(worker for worker in (0, 1) if self.taken(worker)))

    async def serve(self, *names: str) -> None:
        """Waits until these, and no others, have got a slot."""
        async with soon():
            await asyncio.sleep(0.005)  # as long as one gives way
            await eventually(lambda: len(self.served) >= len(names), f"{names} are served, not only {self.served}")
        assert sorted(self.served) == sorted(names)

    def taken(self, worker: int) -> int:
        return sum(endpoint.in_flight for endpoint in self.pools[worker].endpoints.values())

    def counted(self) -> int:
        return sum(requests.total() for requests in self.shared.requests.values())

    def waiting(self) -> int:
        return sum(waiting for waiting, _ in self.shared.waiting.values())


@asynccontextmanager
async def open_pools(*endpoints: dict[str, Any], far: bool = False, **settings: Any) -> AsyncIterator[Workers]:
    """Two pools that have looked once, of workers, or of processes that are `far` from each other. At the end nobody
    waits, and every slot that is taken is counted."""
    config = parse_config({"models_refresh_s": 3600, **settings, "endpoints": list(endpoints)})
    shared = Shared()
    clusters = [InProcess(shared, far=far) for _ in range(2)]
    pools = [Pool(config, cluster) for cluster in clusters]
    async with AsyncExitStack() as stack:
        for cluster in clusters:
            await cluster.open()
        for pool in pools:
            await pool.open()
            stack.push_async_callback(pool.close)
            await pool.endpoints.look()
        workers = Workers(pools, clusters, shared)
        yield workers
        assert [len(pool.line) for pool in pools] == [0, 0], "somebody still waits"
        assert workers.waiting() == 0, "it is announced that somebody still waits"
        assert workers.counted() == workers.taken(0) + workers.taken(1), "others are counted than are taken"


@pytest.fixture
async def other_backend(stack: AsyncExitStack) -> FakeBackend:
    backend = await stack.enter_async_context(FakeBackend())
    backend.models = ["other"]
    return backend


class TestTheLine:
    @pytest.mark.parametrize("releases", [0, 1])
    async def test_a_slot_goes_to_whoever_has_waited_longest_in_either_worker(self, backend, releases):
        async with open_pools(at(backend, max_concurrent=6)) as workers:
            for _ in range(6):
                await workers.request(releases)
            workers.served.clear()
            tasks = [
                await workers.waits(worker, name) for worker, name in zip((0, 1, 1, 0, 0, 1), "abcdef", strict=True)
            ]
            for n in range(6):
                workers.give_back(releases)
                await workers.serve(*"abcdef"[: n + 1])
            await asyncio.gather(*tasks)
            assert workers.served == list("abcdef")

    @pytest.mark.parametrize("releases", [0, 1])
    async def test_slots_that_come_at_once_go_to_those_who_have_waited_longest(self, backend, releases):
        async with open_pools(at(backend, max_concurrent=3)) as workers:
            for _ in range(3):
                await workers.request(releases)
            workers.served.clear()
            tasks = [
                await workers.waits(worker, name) for worker, name in zip((0, 1, 0, 1, 0, 1), "abcdef", strict=True)
            ]
            for names in ("abc", "abcdef"):
                for _ in range(3):
                    workers.give_back_any()
                await workers.serve(*names)
            await asyncio.gather(*tasks)

    @pytest.mark.parametrize("waits", [0, 1])
    async def test_a_newcomer_comes_behind_those_who_wait_in_either_worker(self, backend, waits):
        async with open_pools(at(backend, max_concurrent=1)) as workers:
            await workers.request(1 - waits, "first")
            early = await workers.waits(waits, "waits")
            # It comes in the worker that gives the slot back, before the other one has heard of it.
            newcomer = asyncio.create_task(workers.request(1 - waits, "newcomer"))
            workers.give_back(1 - waits)
            await early
            await workers.serve("first", "waits")
            workers.give_back(waits)
            await newcomer
            assert workers.served == ["first", "waits", "newcomer"]

    @pytest.mark.parametrize("worker", [0, 1])
    async def test_who_waits_for_another_model_holds_nobody_up(self, backend, other_backend, worker):
        async with open_pools(*(at(b, max_concurrent=1) for b in (backend, other_backend))) as workers:
            await workers.request(0, "has other", "other")
            blocked = await workers.waits(0, "waits for other", "other")
            await asyncio.wait_for(workers.request(worker, "newcomer"), SOON_S)
            waits = await workers.waits(1 - worker, "waits")
            workers.give_back(worker)
            await asyncio.wait_for(waits, SOON_S)
            assert not blocked.done()
            workers.give_back(0, "other")
            await asyncio.wait_for(blocked, SOON_S)
            assert workers.served == ["has other", "newcomer", "waits", "waits for other"]

    async def test_a_worker_that_died_while_it_was_first_in_line_holds_nobody_up(self, backend):
        async with open_pools(at(backend, max_concurrent=1)) as workers:
            workers.shared.waiting[7] = (3, 1.0)
            for n in range(3):
                await asyncio.wait_for(workers.request(n % 2), SOON_S)
                workers.give_back(n % 2)
            del workers.shared.waiting[7]

    @pytest.mark.parametrize("worker", [0, 1])
    async def test_one_that_leaves_as_its_slot_comes_hands_it_on_to_the_other_worker(self, backend, worker):
        async with open_pools(at(backend, max_concurrent=1)) as workers:
            await workers.request(worker)
            leaves, stays = await workers.waits(worker), await workers.waits(1 - worker)
            # Both before the loop runs again.
            workers.give_back(worker)
            leaves.cancel()
            await asyncio.wait_for(stays, SOON_S)
            assert leaves.cancelled()
            assert (workers.taken(worker), workers.taken(1 - worker)) == (0, 1)

    async def test_when_the_first_in_line_leaves_the_next_gets_the_slot(self, backend):
        async with open_pools(at(backend, max_concurrent=1)) as workers:
            await workers.request(0)
            first, second = await workers.waits(1), await workers.waits(0)
            # It leaves when the slot is kept free for it.
            workers.give_back(0)
            first.cancel()
            await asyncio.wait_for(second, SOON_S)


class TestLimits:
    @pytest.mark.parametrize("far", [False, True])
    async def test_max_concurrent_holds_for_the_sum(self, backend, far):
        async with open_pools(at(backend, max_concurrent=3), queue={"max": 0}, far=far) as workers:
            for worker in (0, 1, 0):
                await workers.request(worker)
            for worker in (0, 1):
                with pytest.raises(TooManyRequests):
                    await workers.request(worker)

    async def test_queue_max_holds_for_the_sum(self, backend):
        async with open_pools(at(backend, max_concurrent=1), queue={"max": 3}) as workers:
            await workers.request(0)
            tasks = [await workers.waits(worker) for worker in (0, 1, 1)]
            for worker in (0, 1):
                with pytest.raises(TooManyRequests):
                    await asyncio.wait_for(workers.request(worker), SOON_S)
            for _ in range(3):
                workers.give_back_any()
                await eventually(lambda: workers.counted() == 1, "the slot is taken again")
            await asyncio.gather(*tasks)

    @pytest.mark.parametrize("worker", [0, 1])
    async def test_a_full_queue_is_no_reason_to_refuse_what_need_not_wait(self, backend, other_backend, worker):
        async with open_pools(
            *(at(b, max_concurrent=1) for b in (backend, other_backend)), queue={"max": 1}
        ) as workers:
            await workers.request(0, model="other")
            blocked = await workers.waits(0, model="other")
            try:
                await asyncio.wait_for(workers.request(worker), SOON_S)
            finally:
                workers.give_back(0, "other")
                await blocked

    async def test_a_server_with_new_settings_is_as_busy_as_it_was(self, backend):
        """What a worker has begun under the old settings counts in the other one, and in the endpoint of the new
        ones."""
        async with open_pools(at(backend, max_concurrent=2), queue={"max": 0}) as workers:
            await workers.request(0)
            (before,) = workers.pools[0].endpoints.values()
            for pool in workers.pools:
                await pool.reconfigure(
                    parse_config({"endpoints": [at(backend, max_concurrent=1)], "queue": {"max": 0}})
                )
            for worker in (0, 1):
                with pytest.raises(TooManyRequests):
                    await workers.request(worker)
            workers.pools[0].release(before)
            await workers.request(1)


class TestFar:
    """Processes with a network between them: a slot is only taken when the others are known to have left it."""

    async def test_a_slot_that_another_process_has_taken_meanwhile_is_waited_for(self, backend):
        async with open_pools(at(backend, max_concurrent=1), far=True) as workers:
            both = [asyncio.create_task(workers.request(worker, str(worker))) for worker in (0, 1)]
            done, waits = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            assert (len(done), workers.counted()) == (1, 1), "both believe that they have it"
            await eventually(lambda: workers.waiting() == 1, "the other one waits")
            workers.give_back_any()
            await asyncio.wait_for(waits.pop(), SOON_S)
            assert sorted(workers.served) == ["0", "1"]

    async def test_whoever_has_lost_his_slot_to_another_process_is_the_first_to_get_one(self, backend):
        async with open_pools(at(backend, max_concurrent=2), far=True) as workers:
            pool = workers.pools[0]
            for _ in range(2):
                await workers.request(0)
            workers.served.clear()
            tasks = [await workers.waits(0, name) for name in ("first", "second")]
            # It is handed to the first, and gone when he asks.
            workers.give_back(0)
            (elsewhere,) = workers.clusters[1].counts.values()
            elsewhere.change(1)
            assert len(pool.line) == 1
            await eventually(lambda: len(pool.line) == 2, "he waits again")
            elsewhere.change(-1)
            workers.give_back(0)
            await asyncio.gather(*tasks)
            assert workers.served == ["first", "second"]
            assert workers.taken(0) == 2

    async def test_one_that_leaves_while_it_asks_has_no_slot(self, backend):
        async with open_pools(at(backend, max_concurrent=1), far=True) as workers:
            leaves = asyncio.create_task(workers.request(0))
            await asyncio.sleep(0)
            assert workers.taken(0) == 1
            leaves.cancel()
            await asyncio.gather(leaves, return_exceptions=True)
            assert (workers.taken(0), workers.counted()) == (0, 0)
            await asyncio.wait_for(workers.request(1), SOON_S)


class TestNothingIsLost:
    async def test_a_slot_that_comes_back_as_somebody_begins_to_wait_is_his(self, backend):
        """At any moment on his way into the queue: between any two calls of the cluster."""
        async with open_pools(at(backend, max_concurrent=1)) as workers:
            for calls in count(1):
                await workers.request(0)
                workers.clusters[1].meanwhile(calls, lambda: workers.give_back(0))
                task = asyncio.create_task(workers.request(1))
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                if workers.taken(0):
                    workers.clusters[1].meanwhile(0, lambda: None)
                    break  # He waits, and nothing was given back.
                async with soon():
                    await task
                workers.give_back(1)
            assert calls > 4, "nothing came between"
            workers.give_back(0)
            await asyncio.wait_for(task, SOON_S)

    @pytest.mark.parametrize("far", [False, True])
    async def test_no_slot_is_lost_in_a_thousand_comings_and_goings(self, backend, other_backend, far):
        dice = random.Random(11)
        both = [at(backend, max_concurrent=3), at(other_backend, max_concurrent=2)]
        async with open_pools(*both, queue={"max": 2000, "timeout_s": 20}, far=far) as workers:
            most = Counter[str]()

            async def request() -> None:
                pool = dice.choice(workers.pools)
                endpoint, _ = await pool.choose(dice.choice(("test-model", "test-model", "other")), Routing())
                try:
                    most[endpoint.url] = max(most[endpoint.url], workers.shared.requests[endpoint.url].total())
                    await asyncio.sleep(dice.random() * 0.002)
                finally:
                    pool.release(endpoint)

            tasks = []
            for _ in range(1000):
                tasks.append(asyncio.create_task(request()))
                if dice.random() < 0.3:
                    dice.choice(tasks[-20:]).cancel()
                if dice.random() < 0.2:
                    await asyncio.sleep(dice.random() * 0.003)
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert {type(outcome) for outcome in outcomes} == {type(None), asyncio.CancelledError}
            assert sorted(most.values()) == [2, 3], "the slots that there are were not those that were used"
            assert workers.counted() == 0
