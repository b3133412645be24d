"""The whole router on PostgreSQL: what clients see, also while the server is away, and when other routers share it."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, nullcontext
from typing import Any

import psycopg
import pytest

import stores.postgres_database
from cluster.alone import Alone
from tests.conftest import Running, running_router
from tests.engines.postgres import PostgresServer
from tests.fake_backend import DONE, FakeBackend, chat, chunk, stall, steps, until
from tests.stream_grammar import check_stream
from tests.turns import (
    URL,
    assert_error,
    create,
    ended,
    eventually,
    follow,
    has_status,
    open_stream,
    rejoin,
    retrieve,
    stream,
    text_of,
    turn,
)

pytestmark = pytest.mark.heavy


@pytest.fixture
async def url(stack: AsyncExitStack, postgres: PostgresServer) -> str:
    """An empty database. It is given back when all is closed that a test has on its stack."""
    url = postgres.new_database()
    stack.callback(postgres.give_back, url)
    return url


@pytest.fixture(autouse=True)
def _each_router_is_a_service(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on machines of their own: here they run in one process."""
    monkeypatch.setattr(Alone, "service", property(lambda alone: f"service {id(alone)}"))


async def on(stack: AsyncExitStack, backend: FakeBackend, url: str, **settings: Any) -> Running:
    """A router whose store is at `url`."""
    endpoints = [{"url": f"{backend.url}/v1", "kind": "openai-chat"}]
    return await stack.enter_async_context(running_router(endpoints=endpoints, database={"url": url}, **settings))


async def test_responses_are_created_continued_read_and_deleted(
    stack: AsyncExitStack, backend: FakeBackend, url: str
) -> None:
    here = await on(stack, backend, url)
    first = await create(here.http, input="One.")
    second = await create(here.http, input="Two.", previous_response_id=first["id"])
    assert [message["content"] for message in backend.requests[-1].json["messages"] if message["role"] == "user"] == [
        "One.",
        "Two.",
    ]
    assert await retrieve(here.http, second["id"]) == second
    items = (await here.http.get(f"{URL}/{second['id']}/input_items", params={"order": "asc"})).json()["data"]
    assert [item["role"] for item in items] == ["user", "assistant", "user"]
    assert (await here.http.delete(f"{URL}/{first['id']}")).status_code == 200
    assert_error(await here.http.get(f"{URL}/{first['id']}"), 404)
    refused = await here.http.post(URL, json=turn(previous_response_id=second["id"]))
    assert_error(refused, 400, param="previous_response_id")


async def test_background_turns_and_their_streams_are_kept(
    stack: AsyncExitStack, backend: FakeBackend, url: str
) -> None:
    here = await on(stack, backend, url)
    async with open_stream(here.http, background=True) as events:
        seen = await events.rest()
    response_id = seen[0]["response"]["id"]
    assert await rejoin(here.http, response_id) == seen
    other = await on(stack, backend, url)
    assert await rejoin(other.http, response_id, 2) == seen[3:]
    assert (await ended(other.http, (await create(here.http, background=True))["id"]))["status"] == "completed"


async def test_any_router_on_the_database_goes_on_from_any_response(
    stack: AsyncExitStack, backend: FakeBackend, url: str
) -> None:
    here, there = await on(stack, backend, url), await on(stack, backend, url)
    first = await create(here.http, input="One.")
    second = await create(there.http, input="Two.", previous_response_id=first["id"])
    third = await create(here.http, input="Three.", previous_response_id=second["id"])
    assert await retrieve(there.http, third["id"]) == third
    assert len(backend.requests[-1].json["messages"]) == 5
    assert (await there.http.delete(f"{URL}/{second['id']}")).status_code == 200

    async def is_missed() -> bool:
        return (await here.http.post(URL, json=turn(previous_response_id=third["id"]))).status_code == 400

    await eventually(is_missed, "what another router has deleted is in no memory of this one")


# ── a server that is away ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_while_it_is_away_stored_turns_are_refused_and_others_go_on(
    stack: AsyncExitStack, backend: FakeBackend, own_postgres: PostgresServer, end: str
) -> None:
    here = await on(stack, backend, own_postgres.url())
    before = await create(here.http)
    getattr(own_postgres, end)()
    refused = await here.http.post(URL, json=turn())
    assert_error(refused, 503, code="storage_error")
    assert refused.headers["retry-after"]
    assert text_of(await create(here.http, store=False))
    for answer in (
        await here.http.get(f"{URL}/{before['id']}"),
        await here.http.post(URL, json=turn(previous_response_id="resp_unknown")),
    ):
        assert_error(answer, 503, code="storage_error")
        assert answer.headers["retry-after"]
    health = await here.http.get("/health")
    assert (health.status_code, health.json()["status"]) == (503, "storage_error")
    assert here.in_flight() == 0
    own_postgres.start()

    async def is_stored() -> bool:
        return (await here.http.post(URL, json=turn())).status_code == 200

    await eventually(is_stored, "turns are stored again")
    assert await retrieve(here.http, before["id"]) == before


async def test_a_background_turn_outlives_a_server_that_is_killed_in_its_middle(
    stack: AsyncExitStack, backend: FakeBackend, own_postgres: PostgresServer
) -> None:
    backend.default = stall()
    here = await on(stack, backend, own_postgres.url())
    running = (await create(here.http, background=True))["id"]
    await backend.wait_for(lambda b: b.in_flight == 1)
    await has_status(here.http, running, "in_progress")
    own_postgres.kill()
    own_postgres.start()
    assert (await here.http.post(f"{URL}/{running}/cancel")).json()["status"] == "cancelled"
    assert (await retrieve(here.http, running))["status"] == "cancelled"


async def test_what_was_answered_as_stored_is_there_after_a_crash_of_the_server(
    stack: AsyncExitStack, backend: FakeBackend, own_postgres: PostgresServer
) -> None:
    here = await on(stack, backend, own_postgres.url())
    answered: list[str] = []

    async def ask() -> None:
        for _ in range(20):
            answer = await here.http.post(URL, json=turn())
            assert answer.status_code in (200, 503), answer.text
            if answer.status_code == 200:
                answered.append(answer.json()["id"])

    asking = [asyncio.create_task(ask()) for _ in range(8)]
    await eventually(lambda: len(answered) > 20, "some are answered")
    own_postgres.kill()
    own_postgres.start()
    await asyncio.gather(*asking)

    async def is_back() -> bool:
        return (await here.http.get(f"{URL}/{answered[0]}")).status_code == 200

    await eventually(is_back, "it can be read again")
    for response_id in answered:
        assert (await retrieve(here.http, response_id))["status"] == "completed"


# ── a router that dies ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("status", ["queued", "in_progress"])
async def test_any_router_cancels_what_runs_at_another(
    stack: AsyncExitStack, backend: FakeBackend, url: str, status: str
) -> None:
    backend.default = stall()
    here = await on(stack, backend, url, background={"max_concurrent": 1, "drain_s": 0})
    there = await on(stack, backend, url)
    running = [(await create(here.http, background=True))["id"] for _ in range(2)][status == "queued"]
    await has_status(here.http, running, status)
    await backend.wait_for(lambda b: b.in_flight == 1)
    assert (await there.http.post(f"{URL}/{running}/cancel")).json()["status"] == "cancelled"
    assert (await retrieve(here.http, running))["status"] == "cancelled"
    assert here.app.state.tasks.get(running) is None
    if status == "in_progress":
        assert "aborted" not in [request.outcome for request in backend.requests if request.method == "GET"]
        await eventually(lambda: here.app.state.tasks.ids() != [running], "the next one runs")


async def test_what_waits_at_one_router_runs_at_another_that_has_room(
    stack: AsyncExitStack, backend: FakeBackend, url: str
) -> None:
    backend.default = stall()
    full = await on(stack, backend, url, background={"max_concurrent": 1, "drain_s": 0})
    running = (await create(full.http, background=True))["id"]
    await backend.wait_for(lambda b: b.in_flight == 1)
    streamed = asyncio.create_task(stream(full.http, background=True))
    await eventually(lambda: len(full.app.state.tasks.ids()) == 2, "the stream waits where it is read")
    waiting = [(await create(full.http, background=True, input=f"{number}"))["id"] for number in range(6)]
    backend.default = chat("done")
    other = await on(stack, backend, url, background={"max_concurrent": 2, "drain_s": 0})
    for response_id in waiting:
        assert text_of(await has_status(full.http, response_id, "completed")) == "done"
    assert (await retrieve(full.http, running))["status"] == "in_progress"
    assert not streamed.done()
    assert other.app.state.tasks.ids() == []
    assert (await full.http.post(f"{URL}/{running}/cancel")).json()["status"] == "cancelled"
    assert (await streamed)[-1]["type"] == "response.completed"
    await eventually(lambda: full.app.state.tasks.ids() == [], "the first one has nothing left to do")
    posts = [request.json["messages"][-1]["content"] for request in backend.requests if request.method == "POST"]
    assert sorted(posts) == sorted([turn()["input"]] * 2 + [f"{number}" for number in range(6)]), "each ran once"
    for response_id in waiting:
        assert (await retrieve(full.http, response_id))["status"] == "completed"


async def test_whoever_follows_a_turn_that_another_router_takes_hears_its_end(
    stack: AsyncExitStack, backend: FakeBackend, url: str
) -> None:
    backend.default = stall()
    full = await on(stack, backend, url, background={"max_concurrent": 1, "drain_s": 0})
    await create(full.http, background=True)
    await backend.wait_for(lambda b: b.in_flight == 1)
    waits = (await create(full.http, background=True))["id"]
    backend.default = chat("done")
    async with follow(full.http, waits) as events:
        await events.until("response.queued")
        await on(stack, backend, url)
        # When there is a place for it, it is found to be another one's.
        await has_status(full.http, waits, "completed")
        (busy,) = [one for one in full.app.state.tasks.ids() if one != waits]
        assert (await full.http.post(f"{URL}/{busy}/cancel")).json()["status"] == "cancelled"
        seen = await events.rest()
    check_stream(seen)
    assert seen[-1]["type"] == "response.completed"
    assert seen[-1]["response"] == {k: v for k, v in (await retrieve(full.http, waits)).items() if k != "output_text"}


async def test_a_turn_that_another_router_has_taken_is_cancelled_there(
    stack: AsyncExitStack, backend: FakeBackend, url: str
) -> None:
    backend.default = stall()
    full = await on(stack, backend, url, background={"max_concurrent": 1, "drain_s": 0})
    await create(full.http, background=True)
    taken = (await create(full.http, background=True))["id"]
    other = await on(stack, backend, url, background={"drain_s": 0})
    await has_status(full.http, taken, "in_progress")
    assert other.app.state.tasks.ids() == [taken]
    assert (await full.http.post(f"{URL}/{taken}/cancel")).json()["status"] == "cancelled"
    assert other.app.state.tasks.ids() == []


@pytest.mark.parametrize("end", ["answer", "stop"])
@pytest.mark.parametrize("streams", [False, True])
async def test_a_turn_that_was_given_to_another_router_is_ended_by_that_one_alone(
    stack: AsyncExitStack, backend: FakeBackend, url: str, streams: bool, end: str
) -> None:
    gate = asyncio.Event()
    backend.default = steps(until(gate), chat("late"))
    slow, other = await on(stack, backend, url, background={"drain_s": 0}), await on(stack, backend, url)
    async with open_stream(slow.http, background=True) if streams else nullcontext() as events:
        if events is None:
            running = (await create(slow.http, background=True))["id"]
        else:
            running = (await events.until("response.created"))["response"]["id"]
        await backend.wait_for(lambda b: b.in_flight == 1)
        begun = await has_status(other.http, running, "in_progress")
        # As if it had stood still for longer than it may.
        store = other.app.state.db
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("UPDATE responses SET process = %s", [store._database.process])
        store._claimed.add(("", running))
        await store.update_response(running, {**begun, "status": "completed"})
        await store.store_events(running, [{"sequence_number": 0, "type": "response.completed"}])
        if end == "answer":
            gate.set()
        else:
            await slow.app.state.tasks.cancel(running)
        await eventually(lambda: slow.app.state.tasks.ids() == [], "it has left it")
        for router in (slow, other):
            last = await retrieve(router.http, running)
            assert (last["status"], last["error"], last["output"]) == ("completed", None, [])
    assert [event["sequence_number"] for event in await store.get_events(running) or []] == [0]


async def test_a_stream_of_a_router_that_was_given_up_ends_as_failed_and_its_row_stays(
    stack: AsyncExitStack, backend: FakeBackend, url: str
) -> None:
    gate = asyncio.Event()
    backend.default = chat("Hello", then=steps(until(gate), chunk({}, finish_reason="stop"), DONE))
    slow, other = await on(stack, backend, url), await on(stack, backend, url)
    async with open_stream(slow.http) as events:
        running = (await events.until("response.created"))["response"]["id"]
        await events.until("response.output_text.delta")

        async def is_stored() -> bool:
            return await other.app.state.db.get_response(running) is not None

        await eventually(is_stored, "its row is there")
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("UPDATE responses SET process = %s", [other.app.state.db._database.process])
        assert await other.app.state.db.fail_orphans(await other.app.state.db.unfinished()) == 1
        failed = await retrieve(other.http, running)
        gate.set()
        last = (await events.rest())[-1]
    assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
    assert "Another process" in last["response"]["error"]["message"]
    assert await retrieve(slow.http, running) == failed
    assert failed["error"]["message"] != last["response"]["error"]["message"]


@pytest.mark.parametrize("reruns", [False, True])
async def test_what_a_dead_router_left_is_taken_over_once(
    stack: AsyncExitStack, backend: FakeBackend, url: str, monkeypatch: pytest.MonkeyPatch, reruns: bool
) -> None:
    monkeypatch.setattr(stores.postgres_database, "LOOK_FOR_ABANDONED_S", 0.02)
    backend.default = stall()
    dead = await on(stack, backend, url, background={"max_concurrent": 1, "drain_s": 0})
    others = [await on(stack, backend, url, background={"rerun": reruns}) for _ in range(2)]
    for other in others:
        other.app.state.db._database._steady_since -= 60  # As if they had been there for long.
    running = (await create(dead.http, background=True))["id"]
    await backend.wait_for(lambda b: b.in_flight == 1)
    waiting = [(await create(dead.http, background=True))["id"] for _ in range(4)]
    await has_status(dead.http, running, "in_progress")
    backend.default = chat("done")
    with psycopg.connect(url, autocommit=True) as connection:
        # As if it had been killed long ago.
        dead.app.state.db._database._tasks[0].cancel()
        connection.execute(
            "UPDATE processes SET seen_at = 'epoch' WHERE name = %s", [dead.app.state.db._database.process]
        )
    last = await has_status(others[0].http, running, "completed" if reruns else "failed")
    assert text_of(last) == "done" if reruns else last["error"]["code"] == "server_error"
    for response_id in waiting:
        assert (await has_status(others[1].http, response_id, "completed"))["status"] == "completed"
    runs = sum(request.method == "POST" for request in backend.requests)
    assert runs == 1 + len(waiting) + reruns, "each ran once, but for what ran again"
