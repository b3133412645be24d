"""Equal requests that are here at once and ask for the cache: one backend call, which all of them follow."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.turns.shared_answer import Feeding, Reader
from backends.fleet.routing import Routing
from tests.conftest import Running, running_router
from tests.fake_backend import (
    DONE,
    Answer,
    FakeBackend,
    call,
    chat,
    chunk,
    cut,
    event_stream,
    http_error,
    native,
    native_events,
    reasoning,
    stall,
    steps,
    until,
)
from tests.stream_grammar import check_stream, fold
from tests.streams import builder
from tests.test_cache import CACHED, without_ids
from tests.test_laws import fed, law, streams
from tests.turns import (
    URL,
    assert_error,
    create,
    ended,
    eventually,
    open_stream,
    rejoin,
    retrieve,
    stream,
    text_of,
    turn,
)

Json = dict[str, Any]
CACHES = ["memory", "sqlite", "valkey"]


@pytest.fixture(params=CACHES)
async def router(backend: FakeBackend, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Running]:
    """In front of a server that takes one request at a time, with each cache."""
    endpoint = {"url": f"{backend.url}/v1", "kind": "openai-chat", "max_concurrent": 1}
    url = request.getfixturevalue("valkey").url if request.param == "valkey" else ""
    cache = {"backend": request.param, "path": f"{tmp_path}/cache.db", "url": url}
    async with running_router(endpoints=[endpoint], cache=cache) as running:
        yield running
        assert len(running.app.state.flights) == 0
        assert running.in_flight() == 0


def held(text: str, gate: asyncio.Event) -> Answer:
    """A stream that stops behind a text, and ends when the test lets it."""
    return chat(text, then=steps(until(gate), chunk({}, finish_reason="stop"), DONE))


def readers(running: Running) -> int:
    """How many follow one answer now."""
    return sum(flight.readers for flight in running.app.state.flights._flights.values())


async def all_join(running: Running, count: int) -> None:
    await eventually(lambda: readers(running) == count, f"{count} follow one answer")


async def test_equal_requests_at_once_are_one_backend_call(router: Running, backend: FakeBackend) -> None:
    go_on = asyncio.Event()
    backend.script(steps(until(go_on), chat(reasoning("Hm."), "Hello", call("f", {"x": 1}))))
    asking = [asyncio.create_task(create(router.http, **CACHED)) for _ in range(10)]
    await all_join(router, 10)
    await eventually(lambda: len(backend.turns) == 1, "the backend is asked")
    assert router.in_flight() == 1, "who follows takes a slot"
    go_on.set()
    responses = await asyncio.gather(*asking)
    assert len(backend.turns) == 1
    for response in responses:
        assert without_ids(response["output"]) == without_ids(responses[0]["output"])
        assert response["usage"] == responses[0]["usage"]
        assert response["output_text"] == "Hello"
    ids = {response["id"] for response in responses}
    ids |= {item["id"] for response in responses for item in response["output"]}
    assert len(ids) == 10 + 10 * 3, "ids are not their own"
    # Behind them it is an entry like any other, and each of them a response like any other.
    assert (await router.http.post(URL, json=turn(**CACHED))).headers["x-nomyo-cache"] == "hit"
    for response in responses[:3]:
        kept = await retrieve(router.http, response["id"])
        assert kept["output"] == response["output"]
    called = responses[-1]["output"][-1]["call_id"]
    output = [{"type": "function_call_output", "call_id": called, "output": "1"}]
    await create(router.http, input=output, previous_response_id=responses[-1]["id"])
    assert [message["role"] for message in backend.turns[-1].json["messages"]] == ["user", "assistant", "tool"]


async def test_all_see_it_as_it_comes_and_who_joins_late_from_its_beginning(
    router: Running, backend: FakeBackend
) -> None:
    end = asyncio.Event()
    backend.script(held("Hel lo", end))
    async with open_stream(router.http, **CACHED) as first:
        await first.until("response.output_text.delta")
        async with open_stream(router.http, **CACHED) as second, open_stream(router.http, **CACHED) as third:
            # The answer has not ended.
            for events in (second, third):
                await events.until("response.output_text.delta")
                assert events.answer.headers["x-nomyo-cache"] == "shared"
                assert events.answer.headers["x-nomyo-endpoint"] == first.answer.headers["x-nomyo-endpoint"]
            assert "x-nomyo-cache" not in first.answer.headers
            json_client = asyncio.create_task(create(router.http, **CACHED))
            await all_join(router, 4)
            end.set()
            streams = [await events.rest() for events in (first, second, third)]
    for events in streams:
        check_stream(events)
        assert events[-1]["type"] == "response.completed"
        assert text_of(events[-1]["response"]) == "Hel lo"
    assert text_of(await json_client) == "Hel lo"
    assert len(backend.turns) == 1


async def test_who_asks_as_json_first_leads_who_streams(router: Running, backend: FakeBackend) -> None:
    go_on = asyncio.Event()
    backend.script(steps(until(go_on), chat("Hello")))
    first = asyncio.create_task(create(router.http, **CACHED))
    await all_join(router, 1)
    second = asyncio.create_task(stream(router.http, **CACHED))
    await all_join(router, 2)
    go_on.set()
    events = await second
    check_stream(events)
    assert text_of(events[-1]["response"]) == text_of(await first) == "Hello"
    assert len(backend.turns) == 1


async def test_when_the_first_leaves_the_others_read_on(router: Running, backend: FakeBackend) -> None:
    end = asyncio.Event()
    backend.script(held("Hello", end))
    async with open_stream(router.http, **CACHED) as first:
        await first.until("response.output_text.delta")
        others = [asyncio.create_task(stream(router.http, **CACHED)) for _ in range(3)]
        await all_join(router, 4)
    await all_join(router, 3)
    end.set()
    for events in await asyncio.gather(*others):
        check_stream(events)
        assert events[-1]["type"] == "response.completed"
        assert text_of(events[-1]["response"]) == "Hello"
    assert (len(backend.turns), backend.aborts) == (1, 0)
    stored = await router.http.get(f"{URL}/{first.seen[0]['response']['id']}")
    assert stored.json()["status"] == "cancelled"


async def test_when_all_have_left_the_backend_is_let_go_and_its_slot_is_free(
    router: Running, backend: FakeBackend
) -> None:
    backend.script(chat("Hel", then=stall()), chat("Whole"))
    async with open_stream(router.http, **CACHED) as first, open_stream(router.http, **CACHED) as second:
        for events in (first, second):
            await events.until("response.output_text.delta")
    await backend.wait_for(lambda b: b.aborts == 1)
    await eventually(lambda: router.in_flight() == 0, "the slot is free")
    assert text_of(await create(router.http, **CACHED)) == "Whole"
    assert len(backend.turns) == 2


async def test_in_the_background_and_at_once(router: Running, backend: FakeBackend) -> None:
    end = asyncio.Event()
    backend.script(steps(until(end), chat("Hello")))
    begun = await create(router.http, background=True, **CACHED)
    async with open_stream(router.http, background=True, **CACHED) as second:
        created = await second.until("response.created")
        third = asyncio.create_task(create(router.http, **CACHED))
        await all_join(router, 3)
        await router.http.post(f"{URL}/{begun['id']}/cancel")
        await all_join(router, 2)
        end.set()
        await second.rest()
    check_stream(second.seen)
    assert text_of(await third) == "Hello"
    assert (await ended(router.http, begun["id"]))["status"] == "cancelled"
    assert text_of(await ended(router.http, created["response"]["id"])) == "Hello"
    assert await rejoin(router.http, created["response"]["id"]) == second.seen
    assert (len(backend.turns), backend.aborts) == (1, 0)


class TestFailures:
    @pytest.mark.parametrize("streaming", [False, True])
    async def test_when_the_first_fails_the_others_ask_again_together(
        self, router: Running, backend: FakeBackend, streaming: bool
    ) -> None:
        fail = asyncio.Event()
        backend.script(steps(until(fail), http_error(500)), chat("Hello"))
        asking = [asyncio.create_task(router.http.post(URL, json=turn(stream=streaming, **CACHED))) for _ in range(5)]
        await all_join(router, 5)
        fail.set()
        answers = await asyncio.gather(*asking)
        (failed,) = [answer for answer in answers if answer.status_code != 200]
        assert_error(failed, 502)
        assert len(backend.turns) == 2
        for answer in answers:
            if answer is not failed and not streaming:
                assert answer.json()["output_text"] == "Hello"

    async def test_what_the_backend_refuses_is_refused_to_all(self, router: Running, backend: FakeBackend) -> None:
        fail = asyncio.Event()
        backend.script(steps(until(fail), http_error(400)))
        asking = [asyncio.create_task(router.http.post(URL, json=turn(**CACHED))) for _ in range(5)]
        await all_join(router, 5)
        fail.set()
        for answer in await asyncio.gather(*asking):
            assert_error(answer, 400)
        assert len(backend.turns) == 1

    async def test_a_backend_that_fails_again_and_again_is_asked_twice(
        self, router: Running, backend: FakeBackend
    ) -> None:
        fail = asyncio.Event()
        backend.script(steps(until(fail), http_error(500)), *[http_error(500)] * 9)
        asking = [asyncio.create_task(router.http.post(URL, json=turn(**CACHED))) for _ in range(5)]
        await all_join(router, 5)
        fail.set()
        for answer in await asyncio.gather(*asking):
            assert_error(answer, 502)
        assert len(backend.turns) <= 3

    async def test_what_breaks_off_in_the_middle_fails_for_who_has_read_and_not_for_who_has_not(
        self, router: Running, backend: FakeBackend
    ) -> None:
        fail = asyncio.Event()
        backend.script(chat("Hel", then=steps(until(fail), cut())), chat("Whole"))
        async with open_stream(router.http, **CACHED) as first, open_stream(router.http, **CACHED) as second:
            for events in (first, second):
                await events.until("response.output_text.delta")
            json_client = asyncio.create_task(create(router.http, **CACHED))
            await all_join(router, 3)
            fail.set()
            for events in (first, second):
                await events.rest()
                check_stream(events.seen)
                assert events.seen[-1]["type"] == "response.failed"
        assert text_of(await json_client) == "Whole"
        assert len(backend.turns) == 2


async def test_owners_are_apart(router: Running, backend: FakeBackend) -> None:
    end = asyncio.Event()
    backend.script(*[steps(until(end), chat("Hello"))] * 2)
    asking = [
        asyncio.create_task(router.http.post(URL, json=turn(**CACHED), headers={"Authorization": f"Bearer {key}"}))
        for key in ("alice", "bob")
    ]
    await eventually(lambda: len(router.app.state.flights) == 2, "each has an answer of its own")
    end.set()
    assert [answer.status_code for answer in await asyncio.gather(*asking)] == [200, 200]
    assert len(backend.turns) == 2


async def test_each_has_its_own_metadata_and_its_own_row_or_none(router: Running, backend: FakeBackend) -> None:
    end = asyncio.Event()
    backend.script(steps(until(end), chat("Hello")))
    asking = [
        asyncio.create_task(create(router.http, metadata={"n": str(number)}, store=number != 1, **CACHED))
        for number in range(3)
    ]
    await all_join(router, 3)
    end.set()
    for number, response in enumerate(await asyncio.gather(*asking)):
        assert response["metadata"] == {"n": str(number)}
        assert response["store"] is (number != 1)
        stored = await router.http.get(f"{URL}/{response['id']}")
        assert stored.status_code == (404 if number == 1 else 200)
    # One of them is stored, so the answer may be too.
    assert (await router.http.get("/api/cache/stats")).json()["entries"] == 1
    assert len(backend.turns) == 1


async def test_where_nobody_stores_it_it_is_not_in_a_cache_on_disk(router: Running, backend: FakeBackend) -> None:
    end = asyncio.Event()
    backend.script(steps(until(end), chat("Hello")))
    asking = [asyncio.create_task(create(router.http, store=False, **CACHED)) for _ in range(2)]
    await all_join(router, 2)
    end.set()
    await asyncio.gather(*asking)
    stats = (await router.http.get("/api/cache/stats")).json()
    assert stats["entries"] == (1 if stats["backend"] == "memory" else 0)


async def test_tokens_are_counted_once(router: Running, backend: FakeBackend) -> None:
    end = asyncio.Event()
    backend.script(steps(until(end), chat("Hello")))
    asking = [asyncio.create_task(create(router.http, **CACHED)) for _ in range(4)]
    await all_join(router, 4)
    end.set()
    usage = (await asyncio.gather(*asking))[0]["usage"]
    metrics = (await router.http.get("/metrics")).text
    counted = [
        line for line in metrics.splitlines() if "nomyo_tokens_total" in line and "input" in line and line[0] != "#"
    ]
    assert [float(line.rsplit(" ", 1)[1]) for line in counted] == [usage["input_tokens"]], counted


async def test_without_a_cache_nobody_waits_for_another(backend: FakeBackend) -> None:
    endpoint = {"url": f"{backend.url}/v1", "kind": "openai-chat"}
    async with running_router(endpoints=[endpoint], cache={"backend": "none"}) as running:
        end = asyncio.Event()
        backend.script(*[steps(until(end), chat("Hello"))] * 3)
        asking = [asyncio.create_task(create(running.http, **CACHED)) for _ in range(3)]
        await eventually(lambda: running.in_flight() == 3, "each has its own")
        assert readers(running) == 0
        end.set()
        await asyncio.gather(*asking)


async def test_a_router_that_stops_gives_each_of_them_an_end(backend: FakeBackend) -> None:
    endpoint = {"url": f"{backend.url}/v1", "kind": "openai-chat"}
    async with running_router(endpoints=[endpoint]) as running:
        backend.script(chat("Hel", then=stall()))
        async with open_stream(running.http, **CACHED) as first, open_stream(running.http, **CACHED) as second:
            for events in (first, second):
                await events.until("response.output_text.delta")
            running.app.state.stopping.begin({task for one in running.connections for task in one.tasks})
            for events in (first, second):
                await events.rest()
                check_stream(events.seen)
                assert events.seen[-1]["type"] == "response.failed"
        await backend.wait_for(lambda b: b.aborts == 1)
        assert len(running.app.state.flights) == 0


class TestNatively:
    @pytest.mark.parametrize("streaming", [False, True])
    async def test_all_get_the_answer_of_a_server_that_speaks_responses(
        self, served_natively: Running, backend: FakeBackend, streaming: bool
    ) -> None:
        end = asyncio.Event()
        backend.script(steps(until(end), native(reasoning("Hm."), "Hello", call("f", {"x": 1}))))
        ask = stream if streaming else create
        asking = [asyncio.create_task(ask(served_natively.http, **CACHED)) for _ in range(3)]
        await all_join(served_natively, 3)
        end.set()
        answers: list[Any] = await asyncio.gather(*asking)
        if streaming:
            for events in answers:
                check_stream(events, prefixes=False)
            answers = [events[-1]["response"] for events in answers]
        assert [without_ids(answer["output"]) for answer in answers] == [without_ids(answers[0]["output"])] * 3
        assert len({item["id"] for answer in answers for item in answer["output"]}) == 9
        assert len(backend.turns) == 1

    async def test_the_chains_of_those_who_store_have_the_seal_and_no_client_sees_it(
        self, served_natively: Running, backend: FakeBackend
    ) -> None:
        events = native_events(reasoning("Hm."), "Hello.")
        for event in events:
            for item in [event.get("item", {}), *event.get("response", {}).get("output", ())]:
                if item.get("type") == "reasoning":
                    item["encrypted_content"] = "gAAAA-seal"
        end = asyncio.Event()
        backend.script(steps(until(end), event_stream(events)), native("On."), native("On."))
        asking = [asyncio.create_task(stream(served_natively.http, **CACHED)) for _ in range(2)]
        await all_join(served_natively, 2)
        end.set()
        for seen in await asyncio.gather(*asking):
            check_stream(seen, prefixes=False)
            assert "gAAAA-seal" not in str(seen)
            await create(served_natively.http, input="On.", previous_response_id=seen[-1]["response"]["id"])
            sent = backend.turns[-1].json["input"]
            assert [item["encrypted_content"] for item in sent if item["type"] == "reasoning"] == ["gAAAA-seal"]
        hit = await create(served_natively.http, **CACHED)
        assert "gAAAA-seal" not in str(hit)
        assert len(backend.turns) == 3


# ── every stream, as another turn's ──────────────────────────────────────────────────────────────────────────────────


def shared_with(events: list[Json], *, is_first: bool, emits: str = "events") -> tuple[list[Any], Json]:
    """What a turn makes of the events of another one, each a batch; and its response."""
    made = builder(emits=emits, metadata={"whose": "mine"})
    params = SimpleNamespace(include=None)
    theirs = SimpleNamespace(
        request=SimpleNamespace(params=params), routing=Routing(), headers={"x-nomyo-endpoint": "e"}
    )
    ours = SimpleNamespace(request=SimpleNamespace(params=params), routing=Routing(), headers={}, builder=made)
    reader = Reader(ours, Feeding(theirs), is_first=is_first)  # type: ignore[arg-type]
    given: list[Any] = []
    for event in events:
        given += reader.adopt([event])
    return [*given, made.end()], made.response


@law
@given(streams(), st.booleans())
def test_every_stream_is_another_turns_as_it_was_with_ids_of_its_own(chunks: list[Json], is_first: bool) -> None:
    made = builder()
    events = [*fed(made, chunks), *made.finish(), made.end()]
    before = copy.deepcopy(events)
    ours, response = shared_with(events, is_first=is_first)
    assert events == before, "what others read was changed"
    check_stream(ours)
    assert fold(ours) == ours[-1]["response"] == response
    assert without_ids(response["output"]) == without_ids(events[-1]["response"]["output"])
    assert response["metadata"] == {"whose": "mine"}
    assert [event["type"] for event in ours] == [event["type"] for event in events]
    assert [event.get("delta") for event in ours] == [event.get("delta") for event in events]
    ids = {item["id"] for item in response["output"]} & {item["id"] for item in events[-1]["response"]["output"]}
    assert bool(ids) is (is_first and bool(response["output"]))
    for name in ("status", "usage", "incomplete_details", "error"):
        assert response[name] == events[-1]["response"][name]
    # As JSON, and as frames, it is the same response.
    for emits in ("nothing", "frames"):
        _, other = shared_with(events, is_first=True, emits=emits)
        assert without_ids(other["output"]) == without_ids(response["output"])
