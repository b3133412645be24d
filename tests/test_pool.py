"""The pool: its endpoints by name, their slots and who waits for one, and what is known of them."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

import backends.fleet.endpoint
import backends.fleet.endpoints
from backends.fleet.pool import Pool, choose_endpoint, decrement_usage, is_ext_openai_endpoint
from cluster.alone import Alone
from core.config_checks import parse_config
from core.errors import BackendUnreachable, NotFound, TooManyRequests
from tests.conftest import Running, running_router
from tests.fake_backend import FakeBackend, json_answer, stall
from tests.turns import URL, assert_error, create, eventually, soon, turn


@asynccontextmanager
async def open_pool(*endpoints: dict[str, Any], **settings: Any) -> AsyncIterator[Pool]:
    """A pool that has looked once, and looks again only when a test wants it."""
    pool = Pool(parse_config({"models_refresh_s": 3600, **settings, "endpoints": list(endpoints)}), Alone())
    await pool.open()
    try:
        await pool.endpoints.look()
        yield pool
        assert not pool.line, "somebody still waits"
    finally:
        await pool.close()


def at(backend: FakeBackend, kind: str = "openai-chat", **settings: Any) -> dict[str, Any]:
    """`backend` as an endpoint in the settings."""
    path = "/v1" if kind.startswith("openai") else ""
    return {"url": f"{backend.url}{path}", "kind": kind, **settings}


def looks(backend: FakeBackend) -> int:
    return sum(request.path in ("/v1/models", "/api/tags") for request in backend.requests)


def in_flight(pool: Pool) -> list[int]:
    return [endpoint.in_flight for endpoint in pool.endpoints.values()]


async def waiting(pool: Pool, number: int) -> None:
    await eventually(lambda: len(pool.line) == number, f"{number} requests wait")


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
            assert pool.endpoints.models() == {}


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
            async with soon():
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

            # More at once than there is room for, whatever the machine's speed: 6 slots, 50 who wait, 4 who are
            # refused.
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
            await eventually(lambda: list(pool.endpoints.models()) == ["new"], "the list is fresh")
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
            monkeypatch.setattr(backends.fleet.endpoints, "LOOK_AGAIN_AFTER_S", 0.0)
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
        monkeypatch.setattr(backends.fleet.endpoint, "LISTING_TIMEOUT_S", 600.0)
        hanging, healthy = backends_
        hanging.routes["GET /v1/models"] = stall()
        pool = Pool(parse_config({"endpoints": list(map(at, backends_))}), Alone())
        await pool.open()
        try:
            async with soon():
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

    async def test_an_unknown_model_is_a_400(self, served):
        answer = await served.http.post(URL, json=turn(model="test-modle"))
        assert_error(
            answer, 400, type="invalid_request_error", code="model_not_found", param="model", says="test-model"
        )

    async def test_requests_wait_for_a_slot_and_too_many_are_refused(self, backend, clock):
        endpoint = at(backend, max_concurrent=1)
        async with running_router(endpoints=[endpoint], queue={"max": 1, "timeout_s": 300}) as running:
            backend.script(stall())
            busy = asyncio.create_task(running.http.post(URL, json=turn()))
            await eventually(lambda: running.in_flight() == 1, "the slot is taken")
            late = asyncio.create_task(running.http.post(URL, json=turn()))
            await waiting(running.app.state.pool, 1)
            for stream in (False, True):
                refused = await running.http.post(URL, json=turn(stream=stream))
                assert_error(refused, 429, type="rate_limit_error", code="rate_limit_exceeded")
                assert int(refused.headers["retry-after"]) >= 1
            clock.advance(300)
            assert_error(await late, 429, code="rate_limit_exceeded")
            assert int((await late).headers["retry-after"]) >= 1
            late = asyncio.create_task(create(running.http))
            await waiting(running.app.state.pool, 1)
            busy.cancel()
            assert (await late)["status"] == "completed"
            assert running.in_flight() == 0

    async def test_a_backend_that_comes_up_late_is_found(self, backend, monkeypatch):
        monkeypatch.setattr(backends.fleet.endpoints, "LOOK_AGAIN_AFTER_S", 0.0)
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
        known = running.app.state.pool.endpoints.models
        await eventually(lambda: set(models) <= set(known()), f"the router knows {models}")
