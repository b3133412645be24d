"""Ten thousand requests that end in every way there is, against three endpoints: nothing is left of them."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from contextlib import AsyncExitStack
from typing import Any

import httpx2
import pytest

from backends.fleet.failover import Attempts
from backends.fleet.pool import Pool
from backends.fleet.routing import Routing
from cluster.alone import Alone
from core.config_checks import parse_config
from core.errors import (
    APIError,
    BackendCut,
    BackendError,
    BackendRefused,
    BackendTimeout,
    BackendUnreachable,
    TooManyRequests,
    Unsupported,
)
from tests.conftest import running_router
from tests.fake_backend import (
    CHAT,
    Answer,
    FakeBackend,
    chat,
    cut,
    empty,
    http_error,
    pause,
    say,
    stall,
    steps,
    stream,
)
from tests.test_pool import at, open_pool, waiting
from tests.turns import URL, create, crowded_client, eventually, turn

pytestmark = pytest.mark.usefixtures("short_waits")


@pytest.fixture
async def three(stack: AsyncExitStack) -> list[FakeBackend]:
    return [await stack.enter_async_context(FakeBackend()) for _ in range(3)]


async def nothing_is_left(pool: Pool) -> None:
    """No slot, no place in the queue, no probe of a breaker, nobody who waits for a first byte, and no connection in
    use."""
    endpoints = list(pool.endpoints.values())
    await eventually(
        lambda: all(endpoint.in_flight == 0 for endpoint in pool.endpoints.values()),
        f"no slot is taken: {[(endpoint.key, endpoint.in_flight) for endpoint in endpoints]}",
    )
    assert (len(pool.line), pool.line.counts()) == (0, {}), "somebody still waits for a slot"
    await eventually(lambda: not any(e.leaving for e in pool.endpoints.values()), "what was removed is gone")
    for endpoint in pool.endpoints.values():
        probing = [model for model, breaker in endpoint.breakers.items() if breaker._probing]
        assert not probing, f"{endpoint.name}: a probe of {probing} never ended"
        await eventually(lambda c=endpoint.client: not c.answering, f"{endpoint.name}: no connection is in use")


def any_answer(dice: random.Random) -> Answer:
    """Mostly good ones, and every kind of bad one."""
    return dice.choice(
        [
            *[say("Hello")] * 5,
            steps(pause(dice.random() * 0.02), chat("Hello there", delay_s=0.001)),
            http_error(500),
            http_error(429),
            http_error(429, headers={"Retry-After": "0.01"}),
            http_error(503, "Loading model"),
            http_error(400, "no"),
            http_error(404, "no such model", type="NotFoundError"),
            empty(),
            stream(),
            cut(),
            cut(reset=True),
            chat("Hello there", then=cut()),
            stall(),
            stream(stall()),
            chat("Hello there", then=stall()),
        ]
    )


async def crowd(work: Iterable[Coroutine[Any, Any, str]], at_once: int) -> Counter[str]:
    """How all of it ended, some at once."""
    ended: Counter[str] = Counter()
    todo = iter(work)

    async def one_after_another() -> None:
        for request in todo:
            ended[await request] += 1

    await asyncio.gather(*(one_after_another() for _ in range(at_once)))
    return ended


@pytest.mark.heavy
async def test_2000_requests_over_sockets(three):
    dice = random.Random(3)
    for backend in three:
        backend.script(*(any_answer(dice) for _ in range(3000)))
    endpoints = [
        at(backend, max_concurrent=6, first_byte_timeout_s=0.1, priority=number // 2)
        for number, backend in enumerate(three)
    ]
    settings: dict[str, Any] = {
        "breaker": {"failures": 2, "cooldown_s": 0.02, "max_cooldown_s": 0.05},
        "queue": {"max": 12, "timeout_s": 0.1},
        "retry": {"max": 3, "budget": 1.0},
        "models_refresh_s": 0.2,
    }
    async with running_router(endpoints=endpoints, **settings) as running:
        await create(running.http)
        idle = asyncio.all_tasks()

        async def request(http: httpx2.AsyncClient, number: int) -> str:
            path, streams = dice.choice((URL, CHAT)), dice.random() < 0.5
            said: dict[str, Any] = {"messages": [{"role": "user", "content": f"Say {number}."}], "model": "test-model"}
            if path == URL:
                said = turn(input=f"Say {number}.", store=dice.random() < 0.2)
            try:
                async with asyncio.timeout(dice.choice((0.005, 0.02, 0.05, 2.0))):
                    return str((await http.post(path, json={**said, "stream": streams})).status_code)
            except TimeoutError:
                return "left"
            except (httpx2.ReadError, httpx2.RemoteProtocolError):
                return "cut"

        async with crowded_client(running.url) as http:
            ended = await crowd((request(http, number) for number in range(2000)), at_once=40)
        assert ended["left"] > 100, f"hardly anybody left: {ended}"
        assert min(ended["200"], ended["502"], ended["429"], ended["400"]) > 10, f"not every way was gone: {ended}"
        assert "500" not in ended, f"a fault of ours: {ended}"
        pool = running.app.state.pool
        await nothing_is_left(pool)
        assert pool.telemetry.counts["queued"] > 50, f"hardly anybody waited: {pool.telemetry.counts}"
        assert pool.telemetry.counts["retries"] > 50, f"hardly anything was tried again: {pool.telemetry.counts}"
        for backend in three:
            await backend.wait_for(lambda b: b.in_flight == 0)
        await eventually(
            lambda: not [task for task in asyncio.all_tasks() - idle if not task.get_name().startswith("look at")],
            "every task of a request has ended",
        )
        gc.collect()  # asyncio complains of what nobody awaited when it is thrown away.
        await all_are_well(pool, three)
        for number in range(12):
            await create(running.http, input=f"Say {number} again.")
        assert running.in_flight() == 0


async def all_are_well(pool: Pool, three: list[FakeBackend]) -> None:
    """The servers answer as they should from now on, and the pool knows."""
    for backend in three:
        backend._script.clear()
    await pool.endpoints.look()
    for endpoint in pool.endpoints.values():
        pool.set_draining(endpoint, False)


ERRORS: tuple[Callable[[], BaseException], ...] = (
    lambda: BackendError("x"),
    lambda: BackendTimeout("x"),
    lambda: BackendUnreachable("x"),
    lambda: BackendCut("x"),
    lambda: TooManyRequests("x"),
    lambda: TooManyRequests("x", retry_after_s=0.01),
    lambda: BackendRefused("x"),
    lambda: BackendRefused("x", status=404, code="model_not_found"),
    lambda: Unsupported("x"),
    lambda: KeyError("a fault of ours"),
    lambda: asyncio.CancelledError(),
)


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("error", ERRORS, ids=lambda make: repr(make()))
async def test_a_probe_ends_however_its_request_does(three, error, begun):
    """What it learns nothing by must be tried again: else the endpoint would be left alone for ever."""
    async with open_pool(at(three[0]), breaker={"failures": 1, "cooldown_s": 0.001}, retry={"max": 0}) as pool:
        (endpoint,) = pool.endpoints.values()
        pool.failed(endpoint.key, "test-model", BackendError("x"))
        await asyncio.sleep(0.002)
        probed = False
        with contextlib.suppress(APIError, KeyError, asyncio.CancelledError):
            async for attempt in Attempts(pool, "test-model", Routing()):
                async with attempt:
                    probed = endpoint.breaker("test-model")._probing
                    attempt.begun = begun
                    raise error()
        assert probed, "it was no probe"
        await nothing_is_left(pool)


async def test_a_probe_ends_if_who_waited_for_it_has_left(three):
    async with open_pool(at(three[0], max_concurrent=1), breaker={"failures": 1, "cooldown_s": 0.001}) as pool:
        (endpoint,) = pool.endpoints.values()
        await pool.choose("test-model")
        pool.failed(endpoint.key, "test-model", BackendError("x"))
        await asyncio.sleep(0.002)
        leaves = asyncio.create_task(pool.choose("test-model"))
        await waiting(pool, 1)
        pool.release(endpoint)
        assert endpoint.breaker("test-model")._probing, "the slot was not handed on"
        leaves.cancel()
        await asyncio.gather(leaves, return_exceptions=True)
        await nothing_is_left(pool)


@pytest.mark.heavy
@pytest.mark.parametrize("seed", [1, 2])
async def test_4000_requests_while_endpoints_come_change_drain_and_go(three, seed):
    """Without sockets but for the listings: what is taken is given back by whatever way a request ends."""
    dice = random.Random(seed)

    def settings(number: int) -> Any:
        endpoints = [at(b, max_concurrent=dice.randint(1, 6), priority=dice.randint(0, 1)) for b in three]
        return parse_config(
            {
                "endpoints": endpoints if number % 3 else endpoints[:2],
                "models_refresh_s": 3600,
                "breaker": {"failures": 2, "cooldown_s": 0.01, "max_cooldown_s": 0.02},
                "queue": {"max": 20, "timeout_s": 0.02},
                "retry": {"max": 3, "budget": 1.0},
                "fallback_models": {"other": ["test-model"]},
            }
        )

    pool = Pool(settings(1), Alone())
    await pool.open()
    try:
        await pool.endpoints.look()
        most = 0

        async def request(number: int) -> str:
            nonlocal most
            routing = Routing(principal=str(number % 5), affinity=[str(number % 30)])
            attempts = Attempts(pool, dice.choice(("test-model", "other")), routing)
            await asyncio.sleep(dice.random() * 0.004)
            try:
                async with asyncio.timeout(dice.choice((0.002, 0.01, 1.0))):
                    async for attempt in attempts:
                        async with attempt:
                            endpoint = pool.endpoints[attempt.endpoint]
                            assert endpoint.in_flight <= endpoint.max_concurrent
                            most = max(most, sum(e.in_flight for e in pool.endpoints.values()))
                            await asyncio.sleep(dice.random() * 0.004)
                            attempt.begun = dice.random() < 0.3
                            if dice.random() < 0.3:
                                raise dice.choice(ERRORS)()
            except APIError as error:
                return type(error).__name__
            except (TimeoutError, KeyError, asyncio.CancelledError) as error:
                return type(error).__name__
            return "answered"

        async def unrest() -> None:
            for number in range(10_000):
                await asyncio.sleep(0.01)
                for endpoint in list(pool.endpoints.values()):
                    if dice.random() < 0.1:
                        pool.set_draining(endpoint, dice.random() < 0.3)
                if number % 5 == 0:
                    await pool.reconfigure(settings(number))

        unresting = asyncio.create_task(unrest())
        ended = await crowd(map(request, range(4000)), at_once=30)
        assert not unresting.done(), f"it fell: {unresting}"
        unresting.cancel()
        assert ended["answered"] > 700, ended
        assert min(ended["TimeoutError"], ended["TooManyRequests"], ended["CancelledError"]) > 10, ended
        assert most > 5, "they hardly met"
        await nothing_is_left(pool)
        await all_are_well(pool, three)
        for endpoint in pool.endpoints.values():
            assert endpoint.candidate("test-model", 0.0).is_well, f"{endpoint.name} is shut for ever"
    finally:
        await pool.close()
