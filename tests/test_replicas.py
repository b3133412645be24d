"""Routers that share a Valkey and a database: what one has begun, another one reads, joins, cancels and counts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cluster import membership, valkey_line
from cluster.membership import BEATS, LEASE_S
from tests.conftest import Running, running_router
from tests.engines.server import free_port
from tests.engines.valkey import ValkeyServer
from tests.fake_backend import (
    DONE,
    FakeBackend,
    Reply,
    call,
    chat,
    chunk,
    http_error,
    pause,
    stall,
    steps,
    stream,
    until,
)
from tests.mcp_server import mcp_server
from tests.stream_grammar import check_stream
from tests.test_telemetry import scraped, value
from tests.turns import (
    SOON_S,
    URL,
    Events,
    create,
    ended,
    eventually,
    follow,
    has_status,
    open_stream,
    rejoin,
    retrieve,
    turn,
)


@pytest.fixture(autouse=True)
def nobody_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first to start waits for those whom an empty server may have forgotten. Here there are none."""
    monkeypatch.setattr(membership, "REJOIN_S", 0.0)


@asynccontextmanager
async def replicas(
    count: int, backend: FakeBackend, folder: Path, valkey_url: str, **settings: Any
) -> AsyncIterator[list[Running]]:
    """So many, one after the other, in this process: each on a port of its own."""
    endpoint = {"url": f"{backend.url}/v1", "kind": "openai-chat", **settings.pop("endpoint", {})}
    settings.setdefault("endpoints", [endpoint])
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(
                running_router(
                    database={"url": f"sqlite:///{folder}/router.db"},
                    cluster={"url": valkey_url},
                    **settings,
                )
            )
            for _ in range(count)
        ]


def seen_busy(routers: list[Running]) -> list[int]:
    """How many requests run at all replicas, as each sees it."""
    return [sum(endpoint.busy for endpoint in router.app.state.pool.endpoints.values()) for router in routers]


def halting(goes_on: asyncio.Event, *texts: str) -> Any:
    """A stream of these texts that halts before its end."""
    said = [chunk({"role": "assistant", "content": ""}), *(chunk({"content": text}) for text in texts)]
    return stream(*said, until(goes_on), chunk({"content": "!"}), chunk({}, finish_reason="stop"), DONE)


async def know_each_other(routers: list[Running]) -> None:
    def all_known() -> bool:
        return all(len(router.app.state.cluster._others()) == len(routers) - 1 for router in routers)

    await eventually(all_known, "each knows where the others are asked")


def test_a_lease_and_a_beat_take_less_than_the_5_s_in_which_slots_are_back() -> None:
    assert LEASE_S + LEASE_S / BEATS < 5


async def test_each_shows_what_it_has_counted_itself(
    valkey: ValkeyServer, backend: FakeBackend, tmp_path: Path
) -> None:
    async with replicas(2, backend, tmp_path, valkey.url) as routers:
        await know_each_other(routers)
        for times, router in enumerate(routers, 1):
            for _ in range(times):
                await create(router.http, store=False)
        for times, router in enumerate(routers, 1):
            samples = await scraped(router.http)
            assert value(samples, "nomyo_turns_total") == times
            assert value(samples, "nomyo_processes") == 1


# ── slots ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_limit_holds_for_the_sum_of_all_replicas(
    backend: FakeBackend, valkey: ValkeyServer, tmp_path: Path
) -> None:
    most = 0

    async def counted(reply: Reply) -> None:
        nonlocal most
        most = max(most, backend.in_flight)
        await steps(pause(0.005), chat("ok"))(reply)

    backend.default = counted
    async with replicas(3, backend, tmp_path, valkey.url, endpoint={"max_concurrent": 2}) as routers:
        turns = [create(router.http, store=False) for router in routers for _ in range(20)]
        assert len(await asyncio.gather(*turns)) == 60
        assert most == 2, "and no slot was left empty"
        await eventually(lambda: seen_busy(routers) == [0, 0, 0], "all slots are free, as each replica sees it")


async def test_whoever_has_waited_longest_goes_first_in_whichever_replica(
    backend: FakeBackend, valkey: ValkeyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A wake-up takes as long as the machine is busy.
    monkeypatch.setattr(valkey_line, "GIVE_WAY_S", SOON_S)
    order: list[str] = []
    hold = asyncio.Event()
    backend.default = steps(until(hold), chat("ok"))
    async with replicas(2, backend, tmp_path, valkey.url, endpoint={"max_concurrent": 1}) as routers:
        await know_each_other(routers)

        async def ask(router: Running, name: str) -> None:
            await create(router.http, store=False, input=name)
            order.append(name)

        first = asyncio.create_task(ask(routers[0], "first"))
        await backend.wait_for(lambda b: b.in_flight == 1)
        waiting = []
        for number, name in enumerate("abcdef"):
            waiting.append(asyncio.create_task(ask(routers[number % 2], name)))
            await eventually(
                lambda count=number + 1: sum(len(router.app.state.pool.line) for router in routers) == count, "it waits"
            )
        hold.set()
        await asyncio.gather(first, *waiting)
        assert order == ["first", *"abcdef"]


async def test_a_conversation_finds_its_warm_server_from_any_replica(
    backends_: list[FakeBackend], valkey: ValkeyServer, tmp_path: Path
) -> None:
    endpoints = [{"url": f"{backend.url}/v1", "kind": "openai-chat"} for backend in backends_]
    async with replicas(3, backends_[0], tmp_path, valkey.url, endpoints=endpoints) as routers:
        await know_each_other(routers)
        for number in range(12):
            before: dict[str, Any] = {"id": None}
            servers = []
            for turn in range(4):
                met = [len(backend.turns) for backend in backends_]
                said = f"Turn {turn} of {number}."
                before = await create(routers[turn % 3].http, input=said, previous_response_id=before["id"])
                servers += [index for index in (0, 1) if len(backends_[index].turns) != met[index]]
            assert len(set(servers)) == 1, "it went to a server that does not know it"
        assert all(len(backend.turns) > 5 for backend in backends_), "others are spread"
        await eventually(lambda: seen_busy(routers) == [0, 0, 0], "all slots are free")


async def test_a_breaker_that_has_opened_is_open_at_all_replicas_and_closes_at_all(
    backends_: list[FakeBackend], valkey: ValkeyServer, tmp_path: Path, short_waits: None, clock: Any
) -> None:
    bad, good = backends_
    bad.default = http_error(500, "broken")
    endpoints = [
        {"url": f"{backend.url}/v1", "kind": "openai-chat", "name": name, "priority": priority}
        for backend, name, priority in ((bad, "bad", 0), (good, "good", 1))
    ]
    breaker = {"failures": 3, "cooldown_s": 50}
    async with replicas(3, bad, tmp_path, valkey.url, endpoints=endpoints, breaker=breaker) as routers:

        def states(name: str = "bad") -> list[str]:
            shown = [
                endpoint.describe()["models"][0]["breaker"]
                for router in routers
                for endpoint in router.app.state.pool.endpoints.values()
                if endpoint.name == name
            ]
            return [str(state) for state in shown]

        while states()[0] == "closed":
            assert (await create(routers[0].http, store=False))["status"] == "completed"
        await eventually(lambda: states() == ["open"] * 3, "all know")
        met = len(bad.turns)
        for router in routers:
            await create(router.http, store=False)
        assert len(bad.turns) == met, "nobody else has to find out"
        bad.default = chat("Well again.")
        clock.advance(60)
        await eventually(lambda: states() == ["half_open"] * 3, "it may be tried")
        await create(routers[1].http, store=False)
        await eventually(lambda: states() == ["closed"] * 3, "all know that it is well")


async def test_without_a_valkey_each_counts_for_itself_and_health_says_so(
    backend: FakeBackend, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"valkey://127.0.0.1:{free_port()}"
    async with replicas(1, backend, tmp_path, url) as (router,):
        assert (await create(router.http))["status"] == "completed"
        health = (await router.http.get("/health")).json()
        assert (health["status"], health["cluster"]) == ("ok", "apart")
        stored = await create(router.http, background=True, stream=False)
        assert (await ended(router.http, stored["id"]))["status"] == "completed"
    away = [record.getMessage() for record in caplog.records if "is away" in record.getMessage()]
    assert len([line for line in away if "counts for itself" in line]) == 1


async def test_a_valkey_that_goes_and_comes_back_empty_costs_no_request_and_leaks_no_slot(
    backend: FakeBackend, own_valkey: ValkeyServer, tmp_path: Path
) -> None:
    hold = asyncio.Event()
    async with replicas(2, backend, tmp_path, own_valkey.url, endpoint={"max_concurrent": 4}) as routers:
        await know_each_other(routers)
        backend.default = steps(until(hold), chat("ok"))
        held = [asyncio.create_task(create(router.http, store=False)) for router in routers for _ in range(2)]
        await backend.wait_for(lambda b: b.in_flight == 4)
        own_valkey.restart()
        states = [router.app.state for router in routers]
        await eventually(lambda: not any(state.cluster.is_apart for state in states), "both are back")

        await eventually(lambda: seen_busy(routers) == [4, 4], "each knows what runs at the other")
        own_valkey.empty()
        waits = asyncio.create_task(create(routers[0].http, store=False))
        await eventually(lambda: seen_busy(routers) == [4, 4], "and after it was emptied")
        own_valkey.kill()
        hold.set()
        assert all(answer["status"] == "completed" for answer in await asyncio.gather(*held, waits))
        own_valkey.start()
        await eventually(lambda: not any(state.cluster.is_apart for state in states), "both are back")
        await eventually(lambda: seen_busy(routers) == [0, 0], "no slot is lost")
        totals = own_valkey.run("HVALS", "{nomyo}:total")
        assert sum(map(int, totals)) == 0


# ── peers ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_background_turn_is_read_and_cancelled_at_any_replica(
    backend: FakeBackend, valkey: ValkeyServer, tmp_path: Path
) -> None:
    backend.default = stall()
    async with replicas(3, backend, tmp_path, valkey.url) as (a, b, c):
        await know_each_other([a, b, c])
        response = await create(a.http, background=True)
        await has_status(b.http, response["id"], "in_progress")
        answer = await c.http.post(f"/v1/responses/{response['id']}/cancel")
        assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
        await eventually(lambda: backend.in_flight == 0, "the backend's work is aborted")
        assert (await retrieve(b.http, response["id"]))["status"] == "cancelled"


async def test_a_peer_is_answered_only_with_the_secret(
    backend: FakeBackend, valkey: ValkeyServer, tmp_path: Path
) -> None:
    async with replicas(2, backend, tmp_path, valkey.url) as routers:
        await know_each_other(routers)
        (peer,) = routers[0].app.state.cluster._others()
        url = f"http://{peer.address}/v1/models"
        for headers in ({}, {"x-nomyo-peer": ""}, {"x-nomyo-peer": peer.secret[:-1]}):
            assert (await routers[0].http.get(url, headers=headers)).status_code == 403
        assert (await routers[0].http.get(url, headers={"x-nomyo-peer": peer.secret})).status_code == 200


async def test_a_replica_is_asked_where_it_advertises(
    backend: FakeBackend, valkey: ValkeyServer, tmp_path: Path
) -> None:
    place = f"127.0.0.1:{free_port()}"
    one = running_router(
        endpoints=[{"url": f"{backend.url}/v1", "kind": "openai-chat"}],
        database={"url": f"sqlite:///{tmp_path}/router.db"},
        cluster={"url": valkey.url, "advertise": place},
    )
    async with one as advertised, replicas(1, backend, tmp_path, valkey.url) as (other,):
        await know_each_other([advertised, other])
        (peer,) = other.app.state.cluster._others()
        assert peer.address == place
        backend.default = stall()
        response = await create(advertised.http, background=True)
        answer = await other.http.post(f"/v1/responses/{response['id']}/cancel")
        assert answer.json()["status"] == "cancelled"


async def test_an_endpoint_is_drained_for_all_also_for_one_that_comes_later(
    backend: FakeBackend, valkey: ValkeyServer, tmp_path: Path
) -> None:
    async with replicas(2, backend, tmp_path, valkey.url, endpoint={"name": "one"}) as (a, b):
        await know_each_other([a, b])

        async def states(*routers: Running) -> set[str]:
            shown = [(await router.http.get("/api/endpoints")).json()["endpoints"][0] for router in routers]
            return {endpoint["state"] for endpoint in shown}

        assert (await a.http.post("/api/endpoints/one/drain")).status_code == 200
        assert await states(a, b) == {"draining"}
        async with replicas(1, backend, tmp_path, valkey.url, endpoint={"name": "one"}) as (c,):
            assert await states(c) == {"draining"}
            valkey.empty()
            await eventually(lambda: valkey.run("HLEN", "{nomyo}:peers") == 3, "all have joined again")
            assert list(valkey.run("HVALS", "{nomyo}:notes")) == [b"1"], "and what they know is there again"
            assert (await c.http.post("/api/endpoints/one/enable")).status_code == 200

            async def all_up() -> bool:
                return await states(a, b, c) == {"up"}

            await eventually(all_up, "it is enabled for all")


# ── streams ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_background_stream_is_followed_live_at_any_replica_by_any_number(
    backend: FakeBackend, valkey: ValkeyServer, tmp_path: Path
) -> None:
    goes_on = asyncio.Event()
    backend.default = halting(goes_on, "Hello", " world")
    async with replicas(3, backend, tmp_path, valkey.url) as routers:
        async with open_stream(routers[0].http, background=True) as events:
            response_id = (await events.until("response.created"))["response"]["id"]
            await events.until("response.output_text.delta")
        await has_shared(valkey, response_id)
        # Whoever has created it has gone.
        async with AsyncExitStack() as stack:
            readers = [
                await stack.enter_async_context(follow(router.http, response_id, -1))
                for router in routers
                for _ in range(2)
            ]
            for reader in readers:
                await reader.until("response.output_text.delta")
            goes_on.set()
            seen = [await reader.rest() for reader in readers]
        for events_seen in seen:
            check_stream(events_seen)
            assert events_seen == seen[0]
        for router in routers:
            assert await rejoin(router.http, response_id, 3) == seen[0][4:]
            assert await rejoin(router.http, response_id) == seen[0]


async def test_who_knows_the_id_of_a_stream_finds_it_where_it_outlives_its_maker(
    backend: FakeBackend, valkey: ValkeyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As soon as that is: what a peer hands on ends with that peer."""
    # What comes behind the first event waits to be written with others.
    monkeypatch.setattr("cluster.valkey_events.BATCH_S", 3600.0)
    backend.default = steps(stall())
    async with replicas(2, backend, tmp_path, valkey.url) as (a, b):
        await know_each_other([a, b])
        asked: list[Any] = []
        monkeypatch.setattr(b.app.state.cluster, "find", lambda *given: asked.append(given))
        for _ in range(5):
            async with open_stream(a.http, background=True) as events:
                response_id = (await events.until("response.created"))["response"]["id"]
                async with follow(b.http, response_id) as reader:
                    assert await reader.next() == events.seen[0]
            await a.http.post(f"/v1/responses/{response_id}/cancel")
        assert asked == [], "a peer was asked"


async def test_of_a_stream_that_is_refused_nothing_is_left(
    backend: FakeBackend, valkey: ValkeyServer, tmp_path: Path
) -> None:
    backend.default = stall()
    background = {"max_concurrent": 1, "max_queued": 1, "drain_s": 0.2}
    async with (
        replicas(1, backend, tmp_path, valkey.url, background=background) as (router,),
        AsyncExitStack() as stack,
    ):
        for _ in range(2):
            await stack.enter_async_context(open_stream(router.http, background=True))
        await eventually(lambda: len(valkey.run("KEYS", "{nomyo}:events:*")) == 2, "both are at the server")
        loop: Any = asyncio.get_running_loop()
        for _ in range(3):
            refused = await router.http.post(URL, json=turn(background=True, stream=True))
            assert refused.status_code == 429
        timers = [str(timer) for timer in loop._scheduled if not timer.cancelled()]
        assert sum("Background._break_silence" in timer for timer in timers) == 2
        assert len(valkey.run("KEYS", "{nomyo}:events:*")) == 2


async def test_a_stream_of_many_events_comes_whole_from_any_number_on(
    backend: FakeBackend, valkey: ValkeyServer, tmp_path: Path
) -> None:
    goes_on = asyncio.Event()
    backend.default = halting(goes_on, *(f"{n} " for n in range(1500)))
    async with (
        replicas(2, backend, tmp_path, valkey.url) as (a, b),
        open_stream(a.http, background=True) as events,
    ):
        response_id = (await events.until("response.created"))["response"]["id"]
        await events.until("response.output_text.delta")
        await eventually(lambda: valkey.run("XLEN", f"{{nomyo}}:events:{response_id}") > 5, "most are written")
        async with follow(b.http, response_id, 700) as reader:
            assert (await reader.until("response.output_text.delta"))["sequence_number"] == 701
            goes_on.set()
            theirs = await reader.rest()
        mine = await events.rest()
        check_stream(mine)
        assert theirs == mine[701:]


@asynccontextmanager
async def followed(backend: FakeBackend, valkey: ValkeyServer, folder: Path) -> AsyncIterator[Followed]:
    """A background stream of one replica, which the server has, and which halts in its middle; and who follows it at
    another one."""
    goes_on = asyncio.Event()
    backend.default = halting(goes_on, "Hello", " world")
    async with (
        replicas(2, backend, folder, valkey.url) as (a, b),
        open_stream(a.http, background=True) as events,
    ):
        response_id = (await events.until("response.created"))["response"]["id"]
        await events.until("response.output_text.delta")
        await has_shared(valkey, response_id)
        async with follow(b.http, response_id) as reader:
            await reader.until("response.output_text.delta")
            yield Followed(b, response_id, events, reader, goes_on)


class Followed(NamedTuple):
    """`events` are its client's, `reader` those of who follows it `elsewhere`."""

    elsewhere: Running
    response_id: str
    events: Events
    reader: Events
    goes_on: asyncio.Event

    async def rest(self) -> list[dict[str, Any]]:
        """All events of it, which both have seen."""
        self.goes_on.set()
        mine, theirs = await self.events.rest(), await self.reader.rest()
        check_stream(theirs)
        assert theirs == mine
        return mine


async def test_a_stream_that_the_server_has_lost_is_written_again(
    backend: FakeBackend, own_valkey: ValkeyServer, tmp_path: Path
) -> None:
    async with followed(backend, own_valkey, tmp_path) as stream:
        own_valkey.restart()
        await stream.rest()


async def test_a_reader_gets_the_rest_from_the_store_where_the_valkey_has_gone(
    backend: FakeBackend, own_valkey: ValkeyServer, tmp_path: Path
) -> None:
    async with followed(backend, own_valkey, tmp_path) as stream:
        own_valkey.kill()
        events = await stream.rest()
        assert await rejoin(stream.elsewhere.http, stream.response_id) == events


async def test_without_the_valkey_a_reader_is_led_to_the_replica_that_makes_the_stream(
    backend: FakeBackend, own_valkey: ValkeyServer, tmp_path: Path
) -> None:
    goes_on = asyncio.Event()
    backend.default = halting(goes_on, "Hello", " world")
    async with replicas(2, backend, tmp_path, own_valkey.url) as (a, b):
        await know_each_other([a, b])
        own_valkey.kill()
        await eventually(lambda: a.app.state.cluster.is_apart and b.app.state.cluster.is_apart, "it is away")
        async with open_stream(a.http, background=True) as events:
            response_id = (await events.until("response.created"))["response"]["id"]
            await events.until("response.output_text.delta")
            async with follow(b.http, response_id) as reader:
                await reader.until("response.output_text.delta")
                goes_on.set()
                mine, theirs = await events.rest(), await reader.rest()
        check_stream(mine)
        assert theirs == mine


async def has_shared(valkey: ValkeyServer, response_id: str) -> None:
    await eventually(lambda: valkey.run("XLEN", f"{{nomyo}}:events:{response_id}") > 0, "its events are at the server")


# ── tools that the router runs ───────────────────────────────────────────────────────────────────────────────────────


async def test_what_one_replica_has_asked_for_is_approved_of_at_another(
    backend: FakeBackend, valkey: ValkeyServer, tmp_path: Path
) -> None:
    async with mcp_server() as weather, replicas(2, backend, tmp_path, valkey.url) as (first, second):
        tools = [{"type": "mcp", "server_label": "w", "server_url": weather.url, "require_approval": "always"}]
        backend.script(chat(call("w__plan", {"city": "Rome"}, id="c")))
        asked = await create(first.http, tools=tools)
        approval = {"approval_request_id": asked["output"][-1]["id"], "approve": True}
        backend.script(chat("Done."))
        done = await create(
            second.http,
            tools=tools,
            input=[{"type": "mcp_approval_response", **approval}],
            previous_response_id=asked["id"],
        )
        assert [item["type"] for item in done["output"]] == ["mcp_call", "message"]
        assert weather.called == ["plan Rome"]
        backend.script(chat("It ran."))
        await create(first.http, tools=tools, previous_response_id=done["id"])
        assert weather.called == ["plan Rome"], "it runs once, wherever the conversation goes on"
