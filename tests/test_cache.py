"""What the cache does to turns. Each cache has its own tests, in tests/stores/test_caches.py."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from tests.conftest import Running, running_router
from tests.fake_backend import FakeBackend, call, chat, cut, http_error, native, reasoning, say, stall
from tests.keyed import as_key, keyed_router, secret_of
from tests.stream_grammar import check_stream
from tests.turns import URL, assert_error, create, eventually, open_stream, retrieve, soon, stream, text_of, turn

CACHED = {"nomyo": {"cache": True}}


@pytest.fixture
async def backend() -> AsyncIterator[FakeBackend]:
    async with FakeBackend() as backend:
        backend.models = ["test-model", "other-model"]
        yield backend


def cached_router(backend: FakeBackend, **settings: Any) -> AbstractAsyncContextManager[Running]:
    return running_router(endpoints=[{"url": f"{backend.url}/v1", "kind": "openai-chat"}], **settings)


def without_ids(output: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in item.items() if key != "id"} for item in output]


class TestHits:
    async def test_the_cache_is_for_those_who_ask_for_it(self, served, backend):
        for nomyo in ({}, {"cache": False}, {}):
            await create(served.http, nomyo=nomyo)
        await create(served.http)
        assert len(backend.turns) == 4
        assert (await served.http.get("/api/cache/stats")).json()["entries"] == 0

    async def test_a_second_request_is_answered_without_a_backend(self, served, backend):
        backend.script(chat(reasoning("Hm."), "Hello", call("f", {"x": 1})))
        first = await create(served.http, **CACHED)
        answer = await served.http.post(URL, json=turn(**CACHED))
        second = answer.json()
        assert len(backend.turns) == 1
        assert answer.headers["x-nomyo-cache"] == "hit"
        assert without_ids(second["output"]) == without_ids(first["output"])
        assert second["usage"] == first["usage"]
        assert second["output_text"] == "Hello"
        ids = {response["id"] for response in (first, second)}
        ids |= {item["id"] for response in (first, second) for item in response["output"]}
        assert len(ids) == 2 + 2 * 3, "ids are not fresh"

    async def test_a_hit_is_replayed_as_a_full_stream(self, served, backend):
        backend.script(chat(reasoning("Hm."), "Hello  there", call("f", {"x": 1}), call("g")))
        first = await create(served.http, **CACHED)
        events = await stream(served.http, **CACHED)
        check_stream(events)
        assert len(backend.turns) == 1
        assert without_ids(events[-1]["response"]["output"]) == without_ids(first["output"])
        assert events[-1]["response"]["id"] != first["id"]

    async def test_a_streamed_answer_fills_it_too(self, served, backend):
        backend.script(chat("Hello there"))
        events = await stream(served.http, **CACHED)
        check_stream(events)
        hit = await create(served.http, **CACHED)
        assert len(backend.turns) == 1
        assert text_of(hit) == "Hello there"
        assert hit["usage"] == events[-1]["response"]["usage"]

    async def test_a_hit_is_stored_and_can_be_continued(self, served, backend):
        await create(served.http, **CACHED)
        hit = await create(served.http, **CACHED)
        streamed = (await stream(served.http, **CACHED))[-1]["response"]
        for response in (hit, streamed):
            assert without_ids((await retrieve(served.http, response["id"]))["output"]) == without_ids(hit["output"])
            await create(served.http, input="And then?", previous_response_id=response["id"])
            assert [message["role"] for message in backend.turns[-1].json["messages"]] == ["user", "assistant", "user"]

    async def test_a_hit_takes_no_slot(self, backend):
        endpoint = {"url": f"{backend.url}/v1", "kind": "openai-chat", "max_concurrent": 1}
        async with running_router(endpoints=[endpoint]) as running:
            await create(running.http, **CACHED)
            backend.script(stall())
            busy = asyncio.create_task(running.http.post(URL, json=turn(input="Think for ever.")))
            await eventually(lambda: running.in_flight() == 1, "the only slot is taken")
            async with soon():
                await create(running.http, **CACHED)
            busy.cancel()
            await asyncio.wait([busy])

    async def test_a_native_answer_is_cached_and_replayed(self, served_natively, backend):
        backend.script(native("Hello there"))
        first = await create(served_natively.http, **CACHED)
        events = await stream(served_natively.http, **CACHED)
        check_stream(events)
        assert text_of(events[-1]["response"]) == text_of(first) == "Hello there"

    async def test_in_the_background_a_hit_is_a_whole_turn(self, served, backend):
        first = await create(served.http, **CACHED)
        events = await stream(served.http, **CACHED, background=True)
        check_stream(events)
        assert len(backend.turns) == 1
        assert text_of(events[-1]["response"]) == text_of(first)
        assert (await retrieve(served.http, events[-1]["response"]["id"]))["status"] == "completed"


FORMAT = {"type": "json_schema", "name": "n", "schema": {"type": "object"}}
TOOL = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}}
WHAT_MATTERS: dict[str, dict[str, Any]] = {
    "input": {"input": "Say something else."},
    "input as a message of another role": {"input": [{"role": "system", "content": "Say something."}]},
    "model": {"model": "other-model"},
    "instructions": {"instructions": "Be brief."},
    "temperature": {"temperature": 0.5},
    "top_p": {"top_p": 0.5},
    "max_output_tokens": {"max_output_tokens": 50},
    "top_logprobs": {"top_logprobs": 2},
    "reasoning": {"reasoning": {"effort": "high"}},
    "text": {"text": {"format": FORMAT}},
    "tools": {"tools": [TOOL]},
    "tool_choice": {"tools": [TOOL], "tool_choice": "required"},
    "include": {"include": ["message.output_text.logprobs"]},
    "user": {"user": "somebody"},
    "a parameter that only the backend knows": {"seed": 7},
}
WHAT_DOES_NOT: dict[str, dict[str, Any]] = {
    "metadata": {"metadata": {"a": "b"}},
    "store": {"store": False},
    "stream_options": {"stream_options": {}},
    "null": {"temperature": None},
    "the input as a message": {"input": [{"role": "user", "content": "Say something."}]},
    "the input with an id": {
        "input": [{"type": "message", "id": "msg_1", "role": "user", "content": "Say something."}]
    },
}


class TestKeys:
    async def test_every_parameter_that_shapes_the_answer_matters(self, served, backend):
        await create(served.http, **CACHED)
        for name, params in WHAT_MATTERS.items():
            before = len(backend.turns)
            await create(served.http, **CACHED, **params)
            assert len(backend.turns) == before + 1, f"another {name} was answered from the cache"
        before = len(backend.turns)
        for name, params in WHAT_MATTERS.items():
            await create(served.http, **CACHED, **params)
            assert len(backend.turns) == before, f"the same {name} was not answered from the cache"

    async def test_what_does_not_shape_the_answer_does_not_matter(self, served, backend):
        await create(served.http, **CACHED)
        for name, params in WHAT_DOES_NOT.items():
            response = await create(served.http, **CACHED, **params)
            assert len(backend.turns) == 1, f"{name} matters"
            assert response["metadata"] == (params.get("metadata") or {}), "it is the response to another request"
            assert response["store"] == params.get("store", True), "it is the response to another request"
        options = {"include_obfuscation": False}
        assert (await stream(served.http, **CACHED, stream_options=options))[-1]["type"] == "response.completed"
        assert len(backend.turns) == 1, "how it is streamed matters"

    async def test_the_history_matters_and_its_ids_do_not(self, served, backend):
        def ask(after: dict[str, Any]) -> Any:
            return create(served.http, **CACHED, input="And then?", previous_response_id=after["id"])

        backend.script(chat("One"), chat("Two"), chat("One"))
        one, two, one_again = [await create(served.http, input="Begin.") for _ in range(3)]
        await ask(one)
        await ask(two)
        assert len(backend.turns) == 5, "another history was answered from the cache"
        await ask(one)
        hit = await ask(one_again)
        assert len(backend.turns) == 5, "the same history was not answered from the cache"
        assert hit["previous_response_id"] == one_again["id"]

    async def test_answers_are_not_shared_between_keys(self, served, backend):
        for key in ("alice", "bob", "alice", "bob"):
            headers = {"Authorization": f"Bearer {key}"}
            assert (await served.http.post(URL, json=turn(**CACHED), headers=headers)).status_code == 200
        assert len(backend.turns) == 2

    @pytest.mark.parametrize("named", ["principal", "owner", "scope", "items", "params"])
    async def test_nobody_has_the_answers_of_another_by_what_a_request_says(self, named, backend):
        backend.script(say("hers"), say("his"))
        router = keyed_router(backend, "ann", "bob")
        async with router as running, as_key(running, "ann") as ann, as_key(running, "bob") as bob:
            scope = running.app.state.keys.find(secret_of("ann").encode()).cache_scope
            assert text_of(await create(ann, **CACHED)) == "hers"
            for value in (scope, "owner ann", "ann"):
                assert text_of(await create(bob, **CACHED, **{named: value})) != "hers"


FAILURES = {
    "a refusal of the backend": http_error(400),
    "a fault of the backend": http_error(500),
    "an answer that was cut off at a limit": chat("Hel", finish_reason="length"),
    "a filtered answer": chat("Hel", finish_reason="content_filter"),
    "a broken stream": chat("Hel", then=cut()),
}


class TestWhatIsNotCached:
    @pytest.mark.parametrize("streaming", [False, True])
    async def test_failures_and_incomplete_answers(self, served, backend, streaming):
        for name, failure in FAILURES.items():
            backend.script(failure)
            await served.http.post(URL, json=turn(stream=streaming, **CACHED))
            assert (await served.http.get("/api/cache/stats")).json()["entries"] == 0, f"{name} is in the cache"
        backend.script(chat("Whole"))
        assert text_of(await create(served.http, **CACHED)) == "Whole"

    async def test_an_answer_whose_client_left(self, served, backend):
        backend.script(chat("Hel", then=stall()))
        async with open_stream(served.http, **CACHED) as events:
            await events.until("response.output_text.delta")
        await backend.wait_for(lambda b: b.aborts == 1)
        backend.script(chat("Whole"))
        assert text_of(await create(served.http, **CACHED)) == "Whole"

    @pytest.mark.parametrize("streaming", [False, True])
    async def test_store_false_does_not_fill_a_cache_on_disk(self, backend, tmp_path, streaming):
        settings = {"backend": "sqlite", "path": f"{tmp_path}/cache.db"}
        async with cached_router(backend, cache=settings) as running:
            for _ in range(2):
                answer = await running.http.post(URL, json=turn(store=False, stream=streaming, **CACHED))
                assert answer.status_code == 200
            assert len(backend.turns) == 2
            await create(running.http, **CACHED)
            hit = await create(running.http, store=False, **CACHED)
            assert len(backend.turns) == 3, "what others have stored may be read"
            assert_error(await running.http.get(f"{URL}/{hit['id']}"), 404)

    async def test_store_false_fills_a_cache_in_memory(self, served, backend):
        await create(served.http, store=False, **CACHED)
        await create(served.http, store=False, **CACHED)
        assert len(backend.turns) == 1


class TestSettings:
    async def test_the_cache_on_disk_survives_a_restart_of_the_router(self, backend, tmp_path):
        settings = {"backend": "sqlite", "path": f"{tmp_path}/cache.db"}
        async with cached_router(backend, cache=settings) as running:
            await create(running.http, **CACHED)
        async with cached_router(backend, cache=settings) as running:
            check_stream(await stream(running.http, **CACHED))
            assert (await running.http.get("/api/cache/stats")).json()["hits"] == 1
        assert len(backend.turns) == 1

    async def test_where_it_is_off_requests_may_still_ask_for_it(self, backend):
        async with cached_router(backend, cache={"backend": "none"}) as running:
            await create(running.http, **CACHED)
            await create(running.http, **CACHED)
            assert len(backend.turns) == 2
            assert (await running.http.get("/api/cache/stats")).json() == {"backend": "none"}
            assert (await running.http.post("/api/cache/invalidate")).json() == {"invalidated": 0}

    async def test_its_bounds_are_those_of_the_settings(self, backend):
        async with cached_router(backend, cache={"max_entries": 2, "max_age_s": 60}) as running:
            for n in range(5):
                await create(running.http, input=f"Say {n}.", **CACHED)
            stats = (await running.http.get("/api/cache/stats")).json()
            assert stats == {
                "backend": "memory",
                "entries": 2,
                "max_entries": 2,
                "max_age_s": 60,
                "hits": 0,
                "misses": 5,
            }

    async def test_a_cache_that_fails_does_not_fail_a_turn(self, backend, tmp_path):
        """Somebody deletes its table under it."""
        settings = {"backend": "sqlite", "path": f"{tmp_path}/cache.db"}
        async with cached_router(backend, cache=settings) as running:
            await create(running.http, **CACHED)
            file = sqlite3.connect(f"{tmp_path}/cache.db")
            file.execute("DROP TABLE cache")
            file.close()
            assert text_of(await create(running.http, **CACHED))
            events = await stream(running.http, **CACHED)
            check_stream(events)
            assert events[-1]["type"] == "response.completed"
            assert len(backend.turns) == 3


class TestRoutes:
    async def test_invalidate_forgets_everything_or_one_model(self, served, backend):

        async def fill() -> None:
            for model in backend.models:
                await create(served.http, model=model, **CACHED)

        async def invalidate(**request: Any) -> Any:
            return (await served.http.post("/api/cache/invalidate", **request)).json()

        await fill()
        assert await invalidate(json={"model": "test-model"}) == {"invalidated": 1}
        assert await invalidate(json={"model": "unknown"}) == {"invalidated": 0}
        await fill()
        assert len(backend.turns) == 3
        assert await invalidate() == {"invalidated": 2}
        await fill()
        assert await invalidate(json={}) == {"invalidated": 2}
        assert (await served.http.get("/api/cache/stats")).json()["entries"] == 0

    async def test_a_wrong_body_is_an_error_that_forgets_nothing(self, served):
        await create(served.http, **CACHED)
        for body in ('{"model": 1}', "[]", '"test-model"', "null", "5", "{"):
            answer = await served.http.post("/api/cache/invalidate", content=body)
            assert_error(answer, 400, type="invalid_request_error")
        assert (await served.http.get("/api/cache/stats")).json()["entries"] == 1
