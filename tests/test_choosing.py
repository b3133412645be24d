"""Who is chosen: which endpoint a request gets, by what is configured, what is warm and what a model is called."""

import asyncio
import time
from collections import Counter
from typing import Any

import pytest

from backends.fleet.pool import Pool
from backends.fleet.routing import Routing
from core.errors import BackendError, BackendUnreachable, NotFound
from tests.conftest import running_router
from tests.fake_backend import CHAT, FakeBackend, http_error, json_answer, say, steps, until
from tests.test_pool import at, open_pool, waiting
from tests.turns import URL, create, eventually, soon, turn


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
            await pool.endpoints.look()
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

    async def test_one_probe_at_a_time_goes_to_one_that_failed(self, backends_, clock):
        endpoints = named(backends_, {"priority": 0}, {"priority": 1})
        async with open_pool(*endpoints, breaker={"failures": 1, "cooldown_s": 60}) as pool:
            first = next(iter(pool.endpoints.values()))
            pool.failed(first.key, "test-model", BackendError("x"))
            clock.advance(61)
            assert await taken(pool, 3) == {"a": 1, "b": 2}
            pool.abandoned(first.key, "test-model")
            assert await taken(pool, 3) == {"a": 1, "b": 2}, "a probe without a result is made again"
            pool.succeeded(first.key, "test-model", Routing())
            assert await taken(pool, 3) == {"a": 3}

    async def test_who_waits_is_woken_when_a_cool_down_is_over(self, backends_, clock):
        endpoints = named(backends_, {"max_concurrent": 1}, {"max_concurrent": 1})
        settings = {"breaker": {"failures": 1, "cooldown_s": 60}, "queue": {"timeout_s": 1000}}
        async with open_pool(*endpoints, **settings) as pool:
            first = next(iter(pool.endpoints.values()))
            pool.failed(first.key, "test-model", BackendError("x"))
            assert await taken(pool) == {"b": 1}
            waits = asyncio.create_task(taken(pool))
            await waiting(pool, 1)
            clock.advance(61)
            async with soon():
                assert await waits == {"a": 1}

    @pytest.mark.parametrize("why", ["drained", "set right"])
    async def test_all_who_can_be_served_are(self, backend, why):
        async with open_pool(at(backend, max_concurrent=4), breaker={"cooldown_s": 30}) as pool:
            (endpoint,) = pool.endpoints.values()
            pool.set_draining(endpoint, True)
            asked = [asyncio.create_task(pool.choose("test-model")) for _ in range(6)]
            await waiting(pool, 6)
            if why == "set right":
                endpoint.draining = False
                backend.models = ["test-model", "another"]
                await pool.endpoints.look()
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
            pool.slots.remember(["k"], first.key)
            assert await taken(pool, 3, affinity=["k"]) == {"a": 3}, "up to half of its slots more"
            assert await taken(pool, 1, affinity=["k"]) == {"b": 1}

    async def test_the_surest_name_counts(self, backends_):
        async with open_pool(*named(backends_, {}, {})) as pool:
            first, second = pool.endpoints
            pool.slots.remember(["prefix"], first)
            pool.slots.remember(["conversation"], second)
            assert await taken(pool, 4, affinity=["conversation", "prefix"]) == {"b": 4}

    async def test_a_name_whose_endpoint_is_gone_gives_way_to_the_next(self, backends_):
        async with open_pool(
            *named(backends_, {}, {}), {"url": "http://127.0.0.1:9/v1", "kind": "openai-chat"}
        ) as pool:
            first, _, down = pool.endpoints
            pool.slots.remember(["prefix"], first)
            pool.slots.remember(["conversation"], down)
            assert await taken(pool, 4, affinity=["conversation", "prefix"]) == {"a": 4}

    async def test_failures_are_not_remembered(self, backends_):
        backends_[0].default = http_error(500)
        async with running_router(endpoints=named(backends_, {"priority": -1}, {})) as running:
            for _ in range(2):
                await create(running.http, prompt_cache_key="k")
            assert running.app.state.pool.slots.affinity.get(" k", time.monotonic()) == f"{backends_[1].url}/v1"


class TestModels:
    async def test_include_and_exclude(self, backend):
        backend.models = ["qwen3:4b", "qwen3:8b", "qwen3-embedding", "llama3"]
        models = {"include": ["qwen3*"], "exclude": ["*embedding", "*:8b"]}
        async with open_pool(at(backend, models=models)) as pool:
            assert list(pool.endpoints.models()) == ["qwen3:4b"]
            for left_out in ("qwen3:8b", "qwen3-embedding", "llama3"):
                with pytest.raises(NotFound):
                    await pool.choose(left_out)

    async def test_what_the_settings_name_is_there_though_it_lists_nothing(self, backend):
        backend.routes["GET /v1/models"] = http_error(405, "no listing here")
        async with open_pool(at(backend, models={"include": ["a", "b", "c*"]})) as pool:
            assert list(pool.endpoints.models()) == ["a", "b"]

    @pytest.mark.parametrize("kind", ["openai-chat", "openai", "ollama", "vllm", "lmstudio", "llama.cpp", "auto"])
    @pytest.mark.parametrize(
        "listing",
        [
            http_error(404, body=b"404 page not found"),
            http_error(405),
            http_error(401),
            http_error(500, "boom"),
            http_error(429),
            http_error(200, body=b"<html>Hello</html>"),
            json_answer({"what": "ever"}),
            json_answer({"object": "list", "data": []}),
        ],
        ids=["404", "405", "401", "500", "429", "a page", "nonsense", "nothing"],
    )
    async def test_what_is_named_is_there_whatever_becomes_of_the_list(self, backend, kind, listing):
        backend.routes["GET /v1/models"] = backend.routes["GET /api/tags"] = listing
        async with open_pool(
            at(backend, kind, models={"names": ["a", "b"], "exclude": ["b"]}, aliases={"c": "a"})
        ) as pool:
            assert sorted(pool.endpoints.models()) == ["a", "c"]
            (endpoint,) = pool.endpoints.values()
            assert endpoint.healthy
            assert (await pool.choose("c"))[1] == "a"

    async def test_what_is_named_is_there_beside_what_is_listed(self, backend):
        backend.models = ["listed", "a"]
        async with open_pool(at(backend, models={"names": ["a", "b"]})) as pool:
            assert sorted(pool.endpoints.models()) == ["a", "b", "listed"]

    async def test_a_server_that_is_away_is_down_whatever_is_named(self, backend):
        async with open_pool(at(backend, models={"names": ["a"]})) as pool:
            (endpoint,) = pool.endpoints.values()
            await backend.stop()
            await endpoint.look()
            assert not endpoint.healthy

    async def test_a_request_to_a_model_that_is_only_named_is_answered(self, backend):
        backend.routes["GET /v1/models"] = http_error(404, body=b"404 page not found")
        async with running_router(endpoints=[{"url": backend.url, "models": {"names": ["a"]}}]) as running:
            assert (await create(running.http, model="a"))["output_text"] == "Hello from the fake backend."
            assert backend.turns[0].json["model"] == "a"

    async def test_an_alias_is_another_name(self, backends_):
        backends_[1].models = ["big"]
        endpoints = named(
            backends_, {"aliases": {"fast": "test-model", "gone": "nowhere"}}, {"aliases": {"fast": "big"}}
        )
        async with open_pool(*endpoints) as pool:
            assert sorted(pool.endpoints.models()) == ["big", "fast", "test-model"]
            there = {(endpoint.name, name) for endpoint, name in [await pool.choose("fast") for _ in range(8)]}
            assert there == {("a", "test-model"), ("b", "big")}
            with pytest.raises(NotFound):
                await pool.choose("gone")

    async def test_an_alias_of_what_is_left_out_is_left_out(self, backend):
        async with open_pool(at(backend, aliases={"fast": "test-model"}, models={"exclude": ["test-*"]})) as pool:
            assert pool.endpoints.models() == {}

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
            await eventually(lambda: "test-model" in pool.endpoints.models(), "it is known")
            assert await taken(pool) == {backend.url[7:]: 1}


class TestFairness:
    async def test_the_keys_take_turns(self, backend):
        """One key's thirty requests are not in the way of the three of another."""
        served: list[str] = []
        async with open_pool(at(backend, max_concurrent=1)) as pool:
            (endpoint,) = pool.endpoints.values()

            async def request(owner: str) -> None:
                await pool.choose("test-model", Routing(principal=owner))
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
                await eventually(lambda: len(running.app.state.pool.line) == len(asked) - 1, "it waits")
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

    async def test_one_that_waits_for_a_front_door_that_few_have_blocks_nobody_of_its_model(self, backends_):
        """LM Studio has no rerank: what waits for the other one's may not go there, who is behind it may."""
        endpoints = [at(backends_[0], "lmstudio", max_concurrent=1), at(backends_[1], max_concurrent=1)]
        async with open_pool(*endpoints) as pool:
            lacking, having = pool.endpoints.values()
            await taken(pool, 2)
            rerank = asyncio.create_task(pool.choose("test-model", Routing(path="/rerank")))
            await waiting(pool, 1)
            behind = asyncio.create_task(pool.choose("test-model"))
            await waiting(pool, 2)
            pool.release(lacking)
            assert (await behind)[0] is lacking
            pool.release(having)
            assert (await rerank)[0] is having
