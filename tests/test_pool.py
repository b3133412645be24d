"""The pool: which endpoint a request gets, who waits for one, and what is known of them."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

import backends.endpoint
import backends.pool
from backends.pool import Pool, Routing, choose_endpoint, decrement_usage, is_ext_openai_endpoint
from config import parse_config
from errors import BackendError, BackendUnreachable, NotFound, TooManyRequests
from tests.conftest import Running, running_router
from tests.fake_backend import CHAT, FakeBackend, http_error, json_answer, say, stall, steps, until
from tests.turns import URL, assert_error, create, eventually, turn


@asynccontextmanager
async def open_pool(*endpoints: dict[str, Any], **settings: Any) -> AsyncIterator[Pool]:
    """A pool that has looked once, and looks again only when it is told to."""
    pool = Pool(parse_config({"models_refresh_s": 3600, **settings, "endpoints": list(endpoints)}))
    await pool.open()
    try:
        await pool.look()
        yield pool
        assert not pool.queue, "somebody still waits"
    finally:
        await pool.close()


def at(backend: FakeBackend, kind: str = "openai-chat", **settings: Any) -> dict[str, Any]:
    """`backend` as an endpoint in the settings."""
    path = "/v1" if kind.startswith("openai") else ""
    return {"url": f"{backend.url}{path}", "kind": kind, **settings}


@pytest.fixture
async def backends_(stack: AsyncExitStack) -> list[FakeBackend]:
    return [await stack.enter_async_context(FakeBackend()) for _ in range(2)]


def looks(backend: FakeBackend) -> int:
    return sum(request.path in ("/v1/models", "/api/tags") for request in backend.requests)


def in_flight(pool: Pool) -> list[int]:
    return [endpoint.in_flight for endpoint in pool.endpoints.values()]


async def waiting(pool: Pool, number: int) -> None:
    await eventually(lambda: len(pool.queue) == number, f"{number} requests wait", 2)


class TestNames:
    async def test_a_model_is_found_by_its_name(self, backend):
        backend.models = ["org/model-7b", "b"]
        async with open_pool(at(backend)) as pool:
            assert await choose_endpoint(pool, "org/model-7b") == (f"{backend.url}/v1", "org/model-7b")
            await decrement_usage(pool, f"{backend.url}/v1", "org/model-7b")
            assert in_flight(pool) == [0]

    async def test_ollama_models_may_be_named_without_latest(self, backend):
        backend.models = ["llama3:latest", "llama3:8b", "qwen3:0.6b"]
        async with open_pool(at(backend, "ollama")) as pool:
            for asked, found in (
                ("llama3", "llama3:latest"),
                ("llama3:latest", "llama3:latest"),
                ("llama3:8b", "llama3:8b"),
            ):
                assert await choose_endpoint(pool, asked) == (backend.url, found)
            for unknown in ("qwen3", "qwen3:latest", "llama3:latest:latest"):
                with pytest.raises(NotFound):
                    await choose_endpoint(pool, unknown)

    async def test_other_kinds_know_nothing_of_latest(self, backend):
        backend.models = ["llama3:latest"]
        async with open_pool(at(backend)) as pool:
            with pytest.raises(NotFound):
                await choose_endpoint(pool, "llama3")

    async def test_an_unknown_model_is_a_404_that_names_the_nearest(self, backend):
        backend.models = ["gemma3:4b", "qwen3:4b", "qwen3:8b", "whisper"]
        async with open_pool(at(backend)) as pool:
            with pytest.raises(NotFound) as raised:
                await choose_endpoint(pool, "qwen3:14b")
            assert (raised.value.code, raised.value.param) == ("model_not_found", "model")
            assert "qwen3:4b" in raised.value.message
            assert "whisper" not in raised.value.message
            with pytest.raises(NotFound, match="gemma3:4b"):
                await choose_endpoint(pool, "zzz")

    async def test_the_kind_says_who_speaks_responses(self, backends_):
        async with open_pool(at(backends_[0], "openai"), at(backends_[1])) as pool:
            assert is_ext_openai_endpoint(pool, f"{backends_[0].url}/v1") is True
            assert is_ext_openai_endpoint(pool, f"{backends_[1].url}/v1") is False
            assert is_ext_openai_endpoint(pool, "http://elsewhere") is False

    @pytest.mark.parametrize(
        "listing",
        [
            None,
            5,
            "models",
            [],
            {},
            {"data": None},
            {"data": {"a": 1}},
            {"data": 5},
            {"data": "text"},
            {"data": [None, 5, {}, {"id": None}, {"id": ""}]},
        ],
    )
    async def test_a_listing_that_is_none_lists_nothing(self, backend, listing):
        backend.routes["GET /v1/models"] = json_answer(listing)
        async with open_pool(at(backend)) as pool:
            assert pool.models() == {}


class TestSlots:
    async def test_the_endpoint_that_is_least_busy_for_its_size_is_next(self, backends_):
        small, large = backends_
        async with open_pool(at(small, max_concurrent=2), at(large, max_concurrent=6)) as pool:
            for taken in range(1, 9):
                await choose_endpoint(pool, "test-model")
                busy = [n / size for n, size in zip(in_flight(pool), (2, 6), strict=True)]
                assert abs(busy[0] - busy[1]) <= 1 / 2, f"after {taken}: {in_flight(pool)}"
            assert in_flight(pool) == [2, 6]

    async def test_equals_share_the_work(self, backends_):
        first = set()
        async with open_pool(*map(at, backends_)) as pool:
            for _ in range(50):
                url, name = await choose_endpoint(pool, "test-model")
                await decrement_usage(pool, url, name)
                first.add(url)
        assert len(first) == 2, "one of two idle endpoints gets everything"

    async def test_only_an_endpoint_that_serves_the_model_is_chosen(self, backends_):
        backends_[1].models = ["other"]
        async with open_pool(*(at(b, max_concurrent=1) for b in backends_), queue={"max": 0}) as pool:
            assert (await choose_endpoint(pool, "test-model"))[0] == f"{backends_[0].url}/v1"
            with pytest.raises(TooManyRequests):
                await choose_endpoint(pool, "test-model")
            assert (await choose_endpoint(pool, "other"))[0] == f"{backends_[1].url}/v1"

    async def test_who_waits_is_served_in_order(self, backend):
        served: list[int] = []
        async with open_pool(at(backend, max_concurrent=2)) as pool:

            async def request(n: int) -> None:
                await choose_endpoint(pool, "test-model")
                served.append(n)

            tasks = [asyncio.create_task(request(n)) for n in range(12)]
            await waiting(pool, 10)
            assert served == [0, 1]
            for n in range(10):
                assert in_flight(pool) == [2]
                await decrement_usage(pool, f"{backend.url}/v1", "test-model")
                await eventually(lambda n=n: len(served) == n + 3, "the next one is served")
            await asyncio.gather(*tasks)
            assert served == list(range(12))

    async def test_a_newcomer_does_not_overtake_who_waits(self, backend):
        served: list[str] = []
        async with open_pool(at(backend, max_concurrent=1)) as pool:

            async def request(name: str) -> None:
                await choose_endpoint(pool, "test-model")
                served.append(name)

            await request("first")
            waits = asyncio.create_task(request("waits"))
            await waiting(pool, 1)
            await decrement_usage(pool, f"{backend.url}/v1", "test-model")
            newcomer = asyncio.create_task(request("newcomer"))
            await waits
            await waiting(pool, 1)
            await decrement_usage(pool, f"{backend.url}/v1", "test-model")
            await newcomer
            assert served == ["first", "waits", "newcomer"]

    async def test_who_waits_for_another_model_does_not_block_the_queue(self, backends_):
        backends_[1].models = ["other"]
        async with open_pool(*(at(b, max_concurrent=1) for b in backends_)) as pool:
            for model in ("test-model", "other"):
                await choose_endpoint(pool, model)
            first = asyncio.create_task(choose_endpoint(pool, "test-model"))
            second = asyncio.create_task(choose_endpoint(pool, "other"))
            await waiting(pool, 2)
            await decrement_usage(pool, f"{backends_[1].url}/v1", "other")
            await second
            assert not first.done()
            await decrement_usage(pool, f"{backends_[0].url}/v1", "test-model")
            await first

    async def test_a_full_queue_is_a_429_that_says_when_to_come_back(self, backend):
        async with open_pool(at(backend, max_concurrent=1), queue={"max": 1}) as pool:
            await choose_endpoint(pool, "test-model")
            waits = asyncio.create_task(choose_endpoint(pool, "test-model"))
            await waiting(pool, 1)
            with pytest.raises(TooManyRequests) as raised:
                await choose_endpoint(pool, "test-model")
            assert raised.value.retry_after_s
            await decrement_usage(pool, f"{backend.url}/v1", "test-model")
            await waits

    async def test_a_slot_that_does_not_come_free_in_time_is_a_429(self, backend):
        async with open_pool(at(backend, max_concurrent=1), queue={"timeout_s": 0.05}) as pool:
            await choose_endpoint(pool, "test-model")
            with pytest.raises(TooManyRequests) as raised:
                await choose_endpoint(pool, "test-model")
            assert raised.value.retry_after_s
            await decrement_usage(pool, f"{backend.url}/v1", "test-model")
            assert in_flight(pool) == [0]


class TestWhoLeaves:
    async def test_one_that_leaves_while_it_waits_is_passed_over(self, backend):
        async with open_pool(at(backend, max_concurrent=1)) as pool:
            await choose_endpoint(pool, "test-model")
            leaves, stays = (asyncio.create_task(choose_endpoint(pool, "test-model")) for _ in range(2))
            await waiting(pool, 2)
            leaves.cancel()
            await waiting(pool, 1)
            await decrement_usage(pool, f"{backend.url}/v1", "test-model")
            await stays
            assert in_flight(pool) == [1]

    @pytest.mark.parametrize("cancelled_first", [False, True])
    async def test_one_that_leaves_as_its_slot_comes_hands_it_on(self, backend, cancelled_first):
        async with open_pool(at(backend, max_concurrent=1)) as pool:
            (endpoint,) = pool.endpoints.values()
            await choose_endpoint(pool, "test-model")
            leaves, stays = (asyncio.create_task(choose_endpoint(pool, "test-model")) for _ in range(2))
            await waiting(pool, 2)
            # Both before the loop runs again.
            if cancelled_first:
                leaves.cancel()
                pool.release(endpoint)
            else:
                pool.release(endpoint)
                leaves.cancel()
            async with asyncio.timeout(1):
                await stays
            assert leaves.cancelled()
            pool.release(endpoint)
            assert in_flight(pool) == [0]

    async def test_no_slot_is_lost_in_a_thousand_comings_and_goings(self, backends_):
        dice = random.Random(7)
        settings = {"queue": {"max": 50, "timeout_s": 0.02}}
        async with open_pool(*(at(b, max_concurrent=3) for b in backends_), **settings) as pool:

            async def request() -> None:
                url, name = await choose_endpoint(pool, "test-model")
                try:
                    assert max(in_flight(pool)) <= 3, "more than max_concurrent"
                    await asyncio.sleep(dice.random() * 0.004)
                finally:
                    await decrement_usage(pool, url, name)

            # More at once than there is room for, whatever the machine's speed: 6 slots, 50 who wait, 4 who are refused.
            tasks = [asyncio.create_task(request()) for _ in range(60)]
            await asyncio.sleep(0)
            for _ in range(1000):
                tasks.append(asyncio.create_task(request()))
                if dice.random() < 0.3:
                    dice.choice(tasks[-20:]).cancel()
                if dice.random() < 0.2:
                    await asyncio.sleep(dice.random() * 0.003)
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            kinds = {type(outcome) for outcome in outcomes}
            assert kinds == {type(None), asyncio.CancelledError, TooManyRequests}, kinds
            assert in_flight(pool) == [0, 0]


class TestLooking:
    async def test_an_endpoint_that_goes_down_waits_behind_the_others_until_it_is_up_again(self, backends_):
        down, up = backends_
        async with open_pool(*map(at, backends_), models_refresh_s=0.02) as pool:
            first = pool.endpoints[f"{down.url}/v1"]
            await down.stop()
            await eventually(lambda: first.error is not None, "the pool knows that it is down")
            for _ in range(10):
                assert (await choose_endpoint(pool, "test-model"))[0] == f"{up.url}/v1"
            await down.start()
            await eventually(lambda: first.error is None, "the pool knows that it is up")
            assert (await choose_endpoint(pool, "test-model"))[0] == f"{down.url}/v1"

    async def test_a_model_that_is_pulled_and_one_that_is_removed_are_seen(self, backend):
        async with open_pool(at(backend), models_refresh_s=0.02) as pool:
            backend.models = ["new"]
            await eventually(lambda: list(pool.models()) == ["new"], "the list is fresh")
            with pytest.raises(NotFound):
                await choose_endpoint(pool, "test-model")

    async def test_an_unknown_model_makes_a_new_look_now_and_then(self, backend, monkeypatch):
        async with open_pool(at(backend)) as pool:

            async def ask() -> None:
                with pytest.raises(NotFound):
                    await choose_endpoint(pool, "new")

            before = looks(backend)
            for _ in range(20):
                await ask()
            assert looks(backend) == before, "it looked a moment ago"
            monkeypatch.setattr(backends.pool, "LOOK_AGAIN_AFTER_S", 0.0)
            await asyncio.gather(*(ask() for _ in range(20)))
            assert looks(backend) == before + 1, "20 requests at once share a look"
            backend.models.append("new")
            assert await choose_endpoint(pool, "new") == (f"{backend.url}/v1", "new")
            known = looks(backend)
            await choose_endpoint(pool, "new")
            assert looks(backend) == known, "a known model needs no look"

    async def test_while_no_endpoint_has_answered_it_is_a_fault_of_theirs(self, backend):
        await backend.stop()
        async with open_pool(at(backend)) as pool:
            with pytest.raises(BackendUnreachable) as raised:
                await choose_endpoint(pool, "test-model")
            assert raised.value.status == 502
            assert raised.value.retry_after_s

    async def test_a_hanging_endpoint_costs_the_requests_of_others_nothing(self, backends_, monkeypatch):
        monkeypatch.setattr(backends.endpoint, "LISTING_TIMEOUT_S", 2.0)
        hanging, healthy = backends_
        hanging.routes["GET /v1/models"] = stall()
        pool = Pool(parse_config({"endpoints": list(map(at, backends_))}))
        await pool.open()
        try:
            async with asyncio.timeout(1):
                assert (await choose_endpoint(pool, "test-model"))[0] == f"{healthy.url}/v1"
        finally:
            await pool.close()


class TestThroughTheRouter:
    async def test_models_are_listed_and_retrieved_whatever_their_names(self, backends_):
        backends_[0].models = ["llama3:latest", "hf.co/org/model:Q4_K_M"]
        backends_[1].models = ["org/model", "ä model"]
        async with running_router(endpoints=[at(backends_[0], "ollama"), at(backends_[1])]) as running:
            await self.knows(running, "ä model", "llama3:latest")
            listed = await running.openai.models.list()
            assert {model.id: model.owned_by for model in listed.data} == {
                "llama3:latest": "ollama",
                "hf.co/org/model:Q4_K_M": "ollama",
                "org/model": "openai-chat",
                "ä model": "openai-chat",
            }
            for model in listed.data:
                assert await running.openai.models.retrieve(model.id) == model
            assert (await running.openai.models.retrieve("llama3")).id == "llama3:latest"
            for path in ("/v1/models/org/model", "/v1/models/org%2Fmodel"):
                assert (await running.http.get(path)).json()["id"] == "org/model"
            answer = await running.http.get("/v1/models/org/none")
            assert_error(answer, 404, code="model_not_found", param="model", says="org/none")

    async def test_an_unknown_model_is_a_404(self, served):
        answer = await served.http.post(URL, json=turn(model="test-modle"))
        assert_error(
            answer, 404, type="invalid_request_error", code="model_not_found", param="model", says="test-model"
        )

    async def test_requests_wait_for_a_slot_and_too_many_are_refused(self, backend):
        endpoint = at(backend, max_concurrent=1)
        async with running_router(endpoints=[endpoint], queue={"max": 1, "timeout_s": 0.2}) as running:
            backend.script(stall())
            busy = asyncio.create_task(running.http.post(URL, json=turn()))
            await eventually(lambda: running.in_flight() == 1, "the slot is taken")
            late = asyncio.create_task(running.http.post(URL, json=turn()))
            await waiting(running.app.state.pool, 1)
            for stream in (False, True):
                refused = await running.http.post(URL, json=turn(stream=stream))
                assert_error(refused, 429, type="rate_limit_error", code="rate_limit_exceeded")
                assert int(refused.headers["retry-after"]) >= 1
            assert_error(await late, 429, code="rate_limit_exceeded")
            assert int((await late).headers["retry-after"]) >= 1
            late = asyncio.create_task(create(running.http))
            await waiting(running.app.state.pool, 1)
            busy.cancel()
            assert (await late)["status"] == "completed"
            assert running.in_flight() == 0

    async def test_a_backend_that_comes_up_late_is_found(self, backend, monkeypatch):
        monkeypatch.setattr(backends.pool, "LOOK_AGAIN_AFTER_S", 0.0)
        await backend.stop()
        async with running_router(endpoints=[at(backend)]) as running:
            answer = await running.http.post(URL, json=turn())
            assert_error(answer, 502, type="server_error", code="backend_unreachable")
            assert int(answer.headers["retry-after"]) >= 1
            assert (await running.http.get("/health")).json() == {
                "status": "ok",
                "endpoints": {"configured": 1, "up": 0},
            }
            await backend.start()
            await create(running.http)
            assert (await running.http.get("/health")).json()["endpoints"]["up"] == 1

    async def knows(self, running: Running, *models: str) -> None:
        known = running.app.state.pool.models
        await eventually(lambda: set(models) <= set(known()), f"the router knows {models}")


# ── who is chosen ────────────────────────────────────────────────────────────────────────────────────────────────────


async def taken(pool: Pool, requests: int = 1, model: str = "test-model", **routing: Any) -> Counter[str]:
    """How many of these requests each endpoint got, by its name. None of them ends."""
    counts: Counter[str] = Counter()
    for _ in range(requests):
        endpoint, _ = await pool.choose(model, Routing(**routing))
        counts[endpoint.name] += 1
    return counts


def named(backends: list[FakeBackend], *settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The backends as endpoints "a", "b", …"""
    return [at(b, **{"name": name, **more}) for b, name, more in zip(backends, "abc", settings, strict=False)]


class TestChoosing:
    async def test_a_higher_priority_number_gets_what_the_lower_ones_cannot_take(self, backends_):
        endpoints = named(backends_, {"priority": 1}, {"priority": 0, "max_concurrent": 3})
        async with open_pool(*endpoints) as pool:
            assert await taken(pool, 3) == {"b": 3}
            assert await taken(pool, 2) == {"a": 2}

    async def test_a_lower_one_that_is_down_is_passed_over(self, backends_):
        async with open_pool(*named(backends_, {"priority": 1}, {"priority": 0})) as pool:
            await backends_[1].stop()
            await pool.look()
            assert await taken(pool, 3) == {"a": 3}

    async def test_weight_is_a_share(self, backends_):
        endpoints = named(backends_, {"weight": 1, "max_concurrent": 30}, {"weight": 3, "max_concurrent": 30})
        async with open_pool(*endpoints) as pool:
            assert await taken(pool, 24) == {"a": 6, "b": 18}

    async def test_idle_endpoints_share_whatever_they_say_of_what_is_loaded(self, backends_):
        """One after the other, each about something else. Nobody is better than another for having answered first."""
        async with running_router(endpoints=named(backends_, {}, {})) as running:
            pool = running.app.state.pool
            await eventually(lambda: all(e.healthy for e in pool.endpoints.values()), "both are known")
            for number in range(60):
                await create(running.http, input=f"{number} is a number.", store=False)
            assert min(len(backend.turns) for backend in backends_) >= 12, [len(b.turns) for b in backends_]

    async def test_one_that_has_the_model_in_memory_comes_first(self, backends_):
        for backend, running in zip(backends_, ([], [{"name": "test-model"}]), strict=True):
            backend.routes["GET /api/ps"] = json_answer({"models": running})
        endpoints = [at(b, "ollama", name=n, max_concurrent=2) for b, n in zip(backends_, "ab", strict=True)]
        async with open_pool(*endpoints) as pool:
            assert await taken(pool, 2) == {"b": 2}
            assert await taken(pool, 1) == {"a": 1}, "it has no slot left"

    async def test_what_answered_has_it_in_memory_until_it_says_otherwise(self, backends_):
        for backend in backends_:
            backend.routes["GET /api/ps"] = json_answer({"models": []})
        async with open_pool(*(at(b, "ollama", name=n) for b, n in zip(backends_, "ab", strict=True))) as pool:
            first, name = await pool.choose("test-model")
            pool.succeeded(first.key, name, Routing())
            pool.release(first)
            assert await taken(pool, 5) == {first.name: 5}

    async def test_one_whose_breaker_is_open_is_left_alone_unless_it_is_the_only_one(self, backends_):
        async with open_pool(*named(backends_, {}, {}), breaker={"cooldown_s": 30}) as pool:
            first, second = pool.endpoints.values()
            for _ in range(3):
                pool.failed(first.key, "test-model", BackendError("x"))
            assert await taken(pool, 4) == {"b": 4}
            for _ in range(3):
                pool.failed(second.key, "test-model", BackendError("x"))
            assert sum((await taken(pool, 4)).values()) == 4, "any is as good a guess"

    async def test_a_breaker_is_a_models_own(self, backends_):
        for backend in backends_:
            backend.models = ["test-model", "other"]
        async with open_pool(*named(backends_, {}, {"priority": 1})) as pool:
            first = next(iter(pool.endpoints.values()))
            for _ in range(3):
                pool.failed(first.key, "test-model", BackendError("x"))
            assert await taken(pool) == {"b": 1}
            assert await taken(pool, model="other") == {"a": 1}

    async def test_one_probe_at_a_time_goes_to_one_that_failed(self, backends_):
        endpoints = named(backends_, {"priority": 0}, {"priority": 1})
        async with open_pool(*endpoints, breaker={"failures": 1, "cooldown_s": 0.05}) as pool:
            first = next(iter(pool.endpoints.values()))
            pool.failed(first.key, "test-model", BackendError("x"))
            await asyncio.sleep(0.06)
            assert await taken(pool, 3) == {"a": 1, "b": 2}
            pool.abandoned(first.key, "test-model")
            assert await taken(pool, 3) == {"a": 1, "b": 2}, "a probe that told nothing is made again"
            pool.succeeded(first.key, "test-model", Routing())
            assert await taken(pool, 3) == {"a": 3}

    async def test_who_waits_is_told_when_a_cool_down_is_over(self, backends_):
        endpoints = named(backends_, {"max_concurrent": 1}, {"max_concurrent": 1})
        async with open_pool(*endpoints, breaker={"failures": 1, "cooldown_s": 0.1}) as pool:
            first = next(iter(pool.endpoints.values()))
            pool.failed(first.key, "test-model", BackendError("x"))
            assert await taken(pool) == {"b": 1}
            async with asyncio.timeout(1):
                assert await taken(pool) == {"a": 1}

    @pytest.mark.parametrize("told", ["drained", "set right"])
    async def test_all_who_can_be_served_are(self, backend, told):
        async with open_pool(at(backend, max_concurrent=4), breaker={"cooldown_s": 30}) as pool:
            (endpoint,) = pool.endpoints.values()
            pool.set_draining(endpoint, True)
            asked = [asyncio.create_task(pool.choose("test-model")) for _ in range(6)]
            await waiting(pool, 6)
            if told == "set right":
                endpoint.draining = False
                backend.models = ["test-model", "another"]
                await pool.look()
            else:
                pool.set_draining(endpoint, False)
            await eventually(lambda: sum(task.done() for task in asked) == 4, "every free slot is taken")
            assert [task.done() for task in asked] == [True] * 4 + [False] * 2, "not in the order in which they came"
            for _ in range(2):
                pool.release(endpoint)
            await asyncio.gather(*asked)


class TestAffinity:
    """Through the router: what was somewhere goes there again, as long as that is not clearly busier."""

    @pytest.mark.parametrize(
        ("path", "like"),
        [
            (URL, {"prompt_cache_key": "k"}),
            (CHAT, {"prompt_cache_key": "k"}),
            (URL, {"instructions": "You are an old parrot."}),
            (CHAT, {"messages": [{"role": "system", "content": "An old parrot. " * 100}]}),
        ],
        ids=["key", "key, passed through", "text", "text, passed through"],
    )
    async def test_what_is_alike_goes_to_one_endpoint(self, backends_, path, like):
        async with running_router(endpoints=named(backends_, {}, {})) as running:
            pool = running.app.state.pool
            await eventually(lambda: all(e.healthy for e in pool.endpoints.values()), "both are known")
            for number in range(16):
                body: dict[str, Any] = {"model": "test-model", **like}
                if path == CHAT:
                    said = f"{number}" if "prompt_cache_key" in like else "Hi"
                    body["messages"] = [*body.get("messages", []), {"role": "user", "content": said}]
                else:
                    body["input"] = f"{number}" if "prompt_cache_key" in like else "Hi"
                assert (await running.http.post(path, json=body)).status_code == 200
            assert sorted(len(backend.turns) for backend in backends_) == [0, 16]

    async def test_a_conversation_stays_where_it_is(self, backends_):
        async with running_router(endpoints=named(backends_, {}, {})) as running:
            pool = running.app.state.pool
            await eventually(lambda: all(e.healthy for e in pool.endpoints.values()), "both are known")
            places = set()
            for start in range(8):
                last, at_first = None, [len(b.turns) for b in backends_]
                for number in range(4):
                    more = {"previous_response_id": last} if last else {}
                    last = (await create(running.http, input=f"{start}.{number}", **more))["id"]
                grown = [len(b.turns) - before for b, before in zip(backends_, at_first, strict=True)]
                assert sorted(grown) == [0, 4], f"it went to and fro: {grown}"
                places.add(grown.index(4))
            assert places == {0, 1}, "all conversations are at one endpoint"

    async def test_not_when_it_is_clearly_busier(self, backends_):
        async with open_pool(*named(backends_, {"max_concurrent": 4}, {"max_concurrent": 4})) as pool:
            first = next(iter(pool.endpoints.values()))
            pool.remember(["k"], first.key)
            assert await taken(pool, 3, affinity=["k"]) == {"a": 3}, "up to half of its slots more"
            assert await taken(pool, 1, affinity=["k"]) == {"b": 1}

    async def test_the_surest_name_counts(self, backends_):
        async with open_pool(*named(backends_, {}, {})) as pool:
            first, second = pool.endpoints
            pool.remember(["prefix"], first)
            pool.remember(["conversation"], second)
            assert await taken(pool, 4, affinity=["conversation", "prefix"]) == {"b": 4}

    async def test_a_name_whose_endpoint_is_gone_gives_way_to_the_next(self, backends_):
        async with open_pool(
            *named(backends_, {}, {}), {"url": "http://127.0.0.1:9/v1", "kind": "openai-chat"}
        ) as pool:
            first, _, down = pool.endpoints
            pool.remember(["prefix"], first)
            pool.remember(["conversation"], down)
            assert await taken(pool, 4, affinity=["conversation", "prefix"]) == {"a": 4}

    async def test_failures_are_not_remembered(self, backends_):
        backends_[0].default = http_error(500)
        async with running_router(endpoints=named(backends_, {"priority": -1}, {})) as running:
            for _ in range(2):
                await create(running.http, prompt_cache_key="k")
            assert running.app.state.pool.affinity.get("k", time.monotonic()) == f"{backends_[1].url}/v1"


class TestModels:
    async def test_include_and_exclude(self, backend):
        backend.models = ["qwen3:4b", "qwen3:8b", "qwen3-embedding", "llama3"]
        models = {"include": ["qwen3*"], "exclude": ["*embedding", "*:8b"]}
        async with open_pool(at(backend, models=models)) as pool:
            assert list(pool.models()) == ["qwen3:4b"]
            for left_out in ("qwen3:8b", "qwen3-embedding", "llama3"):
                with pytest.raises(NotFound):
                    await pool.choose(left_out)

    async def test_what_the_settings_name_is_there_though_it_lists_nothing(self, backend):
        backend.routes["GET /v1/models"] = http_error(405, "no listing here")
        async with open_pool(at(backend, models={"include": ["a", "b", "c*"]})) as pool:
            assert list(pool.models()) == ["a", "b"]

    async def test_an_alias_is_another_name(self, backends_):
        backends_[1].models = ["big"]
        endpoints = named(
            backends_, {"aliases": {"fast": "test-model", "gone": "nowhere"}}, {"aliases": {"fast": "big"}}
        )
        async with open_pool(*endpoints) as pool:
            assert sorted(pool.models()) == ["big", "fast", "test-model"]
            there = {(endpoint.name, name) for endpoint, name in [await pool.choose("fast") for _ in range(8)]}
            assert there == {("a", "test-model"), ("b", "big")}
            with pytest.raises(NotFound):
                await pool.choose("gone")

    async def test_an_alias_of_what_is_left_out_is_left_out(self, backend):
        async with open_pool(at(backend, aliases={"fast": "test-model"}, models={"exclude": ["test-*"]})) as pool:
            assert pool.models() == {}

    async def test_how_much_runs_at_once_is_what_the_server_says_or_the_settings(self, backends_):
        for backend in backends_:
            backend.routes["GET /props"] = json_answer({"total_slots": 3})
        endpoints = [at(backends_[0], "llama.cpp"), at(backends_[1], "llama.cpp", max_concurrent=2)]
        async with open_pool(*endpoints) as pool:
            assert [endpoint.max_concurrent for endpoint in pool.endpoints.values()] == [3, 2]

    @pytest.mark.parametrize(
        ("owner", "kind"),
        [("llamacpp", "llama.cpp"), ("vllm", "vllm"), ("llama-swap", "llama-swap"), ("me", "openai-chat")],
    )
    @pytest.mark.parametrize("path", ["", "/v1"])
    async def test_an_auto_endpoint_becomes_what_it_is_and_answers(self, backend, owner, kind, path):
        row = {"id": "test-model", "object": "model", "owned_by": owner}
        backend.routes["GET /v1/models"] = json_answer({"object": "list", "data": [row]})
        async with running_router(endpoints=[{"url": backend.url + path, "kind": "auto"}]) as running:
            (endpoint,) = running.app.state.pool.endpoints.values()
            await eventually(lambda: endpoint.healthy, "it is known")
            assert endpoint.kind.name == kind
            await create(running.http)

    async def test_an_auto_endpoint_that_was_down_is_asked_when_it_is_up(self, backend):
        await backend.stop()
        async with open_pool({"url": backend.url, "kind": "auto"}, models_refresh_s=0.02) as pool:
            with pytest.raises(BackendUnreachable):
                await pool.choose("test-model")
            await backend.start()
            await eventually(lambda: "test-model" in pool.models(), "it is known")
            assert await taken(pool) == {backend.url[7:]: 1}


class TestFairness:
    async def test_the_keys_take_turns(self, backend):
        """One key's thirty requests are not in the way of the three of another."""
        served: list[str] = []
        async with open_pool(at(backend, max_concurrent=1)) as pool:
            (endpoint,) = pool.endpoints.values()

            async def request(owner: str) -> None:
                await pool.choose("test-model", Routing(owner=owner))
                served.append(owner)
                await asyncio.sleep(0)
                pool.release(endpoint)

            await pool.choose("test-model")
            tasks = [asyncio.create_task(request(owner)) for owner in "a" * 30 + "b" * 3]
            await waiting(pool, 33)
            pool.release(endpoint)
            await asyncio.gather(*tasks)
            assert "".join(served[:7]) == "abababa"

    async def test_through_the_router_a_key_is_its_own(self, backend):
        gate = asyncio.Event()
        backend.default = steps(until(gate), say("Hello"))
        async with running_router(endpoints=[at(backend, max_concurrent=1)]) as running:
            asked = []
            for key, number in (("busy", 0), *(("busy", n) for n in range(5)), ("other", 0)):
                headers = {"Authorization": f"Bearer {key}"}
                body = turn(input=f"{key} {number}")
                asked.append(asyncio.create_task(running.http.post(URL, json=body, headers=headers)))
                await eventually(lambda: len(running.app.state.pool.queue) == len(asked) - 1, "it waits")
                await backend.wait_for(lambda b: b.in_flight == 1)
            gate.set()
            await asyncio.gather(*asked)
            order = [request.json["messages"][-1]["content"] for request in backend.turns]
            assert order.index("other 0") <= 2, order

    async def test_a_retry_that_waits_for_the_one_other_endpoint_blocks_nobody(self, backends_):
        """It may not go where a slot is free; who is behind it may."""
        async with open_pool(*named(backends_, {"max_concurrent": 1}, {"max_concurrent": 1})) as pool:
            first, second = pool.endpoints.values()
            await taken(pool, 2)
            retry = asyncio.create_task(pool.choose("test-model", Routing(tried={first.key})))
            await waiting(pool, 1)
            behind = asyncio.create_task(pool.choose("test-model"))
            await waiting(pool, 2)
            pool.release(first)
            assert (await behind)[0] is first
            pool.release(second)
            assert (await retry)[0] is second
