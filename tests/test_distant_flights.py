"""Equal requests at several replicas at once: one of them asks the backend, and all follow its answer."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from api.turns import distant_flight
from cluster.valkey_flights import ReplicaFlights
from core import flights
from tests.conftest import Running
from tests.engines.valkey import ValkeyServer
from tests.fake_backend import FakeBackend, chat, cut, http_error, steps, until
from tests.stream_grammar import check_stream
from tests.test_cache import CACHED
from tests.test_replicas import halting, know_each_other, nobody_comes_back, replicas
from tests.turns import URL, create, eventually, open_stream, retrieve, text_of, turn

__all__ = ["nobody_comes_back"]
Json = dict[str, Any]


async def are_led(routers: list[Running], flights_at: int = 1) -> None:
    """Each of them has so many on their way."""
    await eventually(lambda: all(len(one.app.state.flights) == flights_at for one in routers), "flights")


async def wait_for_followers(leader: Running, number: int) -> None:
    valkey = leader.app.state.cluster.events.valkey

    async def followers() -> int:
        channels = await valkey.call("PUBSUB", "CHANNELS", "*flight*")
        return sum((await valkey.call("PUBSUB", "NUMSUB", *channels))[1::2]) if channels else 0

    for _ in range(500):
        if await followers() == number:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{await followers()} follow")


async def test_one_call_is_made_for_all_replicas(backend: FakeBackend, valkey: ValkeyServer, tmp_path: Path) -> None:
    goes_on = asyncio.Event()
    backend.script(halting(goes_on, "Hel", "lo"))
    async with replicas(3, backend, tmp_path, valkey.url, cache={"backend": "valkey"}) as routers:
        await know_each_other(routers)
        first = asyncio.create_task(create(routers[0].http, **CACHED))
        await backend.wait_for(lambda b: b.in_flight == 1)
        others = [asyncio.create_task(create(router.http, **CACHED)) for router in routers for _ in range(3)]
        await wait_for_followers(routers[0], 2)
        goes_on.set()
        responses = await asyncio.gather(first, *others)
        assert len(backend.turns) == 1
        assert {text_of(response) for response in responses} == {"Hello!"}
        ids = [response["id"] for response in responses] + [r["output"][0]["id"] for r in responses]
        assert len(set(ids)) == len(ids), "each has ids of its own"
        for response in responses:
            assert (await retrieve(routers[1].http, response["id"]))["output"] == response["output"]
        await are_led(routers, 0)
        assert text_of(await create(routers[2].http, **CACHED)) == "Hello!", "from the cache"
        assert len(backend.turns) == 1


async def test_a_stream_is_followed_as_it_comes(backend: FakeBackend, valkey: ValkeyServer, tmp_path: Path) -> None:
    goes_on = asyncio.Event()
    backend.script(halting(goes_on, "Hel", "lo"))
    async with replicas(2, backend, tmp_path, valkey.url) as routers:
        await know_each_other(routers)
        async with open_stream(routers[0].http, **CACHED) as leading:
            await backend.wait_for(lambda b: b.in_flight == 1)
            async with open_stream(routers[1].http, **CACHED) as following:
                assert (await following.until("response.output_text.delta"))["delta"] == "Hel"
                assert following.answer.headers["x-nomyo-cache"] == "shared"
                assert following.answer.headers["x-nomyo-endpoint"]
                goes_on.set()
                events = await following.rest()
            own = await leading.rest()
        check_stream(events)
        check_stream(own)
        assert text_of(events[-1]["response"]) == text_of(own[-1]["response"]) == "Hello!"


async def test_it_goes_on_for_others_when_whoever_began_it_has_left(
    backend: FakeBackend, valkey: ValkeyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flights, "LOOK_S", 0.01)
    goes_on = asyncio.Event()
    backend.script(halting(goes_on, "Hello"))
    async with replicas(2, backend, tmp_path, valkey.url) as routers:
        await know_each_other(routers)
        first = asyncio.create_task(routers[0].http.post(URL, json=turn(**CACHED)))
        await backend.wait_for(lambda b: b.in_flight == 1)
        other = asyncio.create_task(create(routers[1].http, **CACHED))
        await wait_for_followers(routers[0], 1)
        first.cancel()
        await asyncio.sleep(0.1)
        assert backend.aborts == 0
        goes_on.set()
        assert text_of(await other) == "Hello!"
        await are_led(routers, 0)


async def test_what_nobody_follows_any_more_is_aborted(
    backend: FakeBackend, valkey: ValkeyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flights, "LOOK_S", 0.01)
    backend.script(halting(asyncio.Event(), "Hello"))
    async with replicas(2, backend, tmp_path, valkey.url) as routers:
        await know_each_other(routers)
        tasks = [asyncio.create_task(routers[0].http.post(URL, json=turn(**CACHED)))]
        await backend.wait_for(lambda b: b.in_flight == 1)
        tasks.append(asyncio.create_task(routers[1].http.post(URL, json=turn(**CACHED))))
        await wait_for_followers(routers[0], 1)
        for task in tasks:
            task.cancel()
        await backend.wait_for(lambda b: b.aborts == 1)
        await are_led(routers, 0)


@pytest.mark.parametrize("failure", [http_error(400), http_error(500), chat("Hel", then=cut())])
async def test_a_failure_is_one_for_whom_nothing_can_be_done(
    backend: FakeBackend, valkey: ValkeyServer, tmp_path: Path, failure: Any
) -> None:
    goes_on = asyncio.Event()
    backend.script(steps(until(goes_on), failure))
    backend.default = chat("Hello.")
    settings: Json = {"retry": {"max": 0}}
    async with replicas(2, backend, tmp_path, valkey.url, **settings) as routers:
        await know_each_other(routers)
        first = asyncio.create_task(routers[0].http.post(URL, json=turn(**CACHED)))
        await backend.wait_for(lambda b: b.in_flight == 1)
        other = asyncio.create_task(create(routers[1].http, **CACHED))
        await wait_for_followers(routers[0], 1)
        goes_on.set()
        assert (await first).status_code >= 400
        assert text_of(await other) == "Hello.", "it has seen nothing of it, and asks by itself"
        await are_led(routers, 0)


async def test_whoever_stores_nothing_makes_no_copy_and_may_follow_one(
    backend: FakeBackend, valkey: ValkeyServer, tmp_path: Path
) -> None:
    goes_on = asyncio.Event()
    backend.default = halting(goes_on, "Hello")
    async with replicas(2, backend, tmp_path, valkey.url) as routers:
        await know_each_other(routers)
        private = [asyncio.create_task(create(one.http, store=False, **CACHED)) for one in routers]
        await backend.wait_for(lambda b: b.in_flight == 2)
        keys = await routers[0].app.state.cluster.events.valkey.call("KEYS", "*flight*")
        assert keys == []
        goes_on.set()
        await asyncio.gather(*private)
        goes_on.clear()
        asked = {**CACHED, "input": "Another."}
        first = asyncio.create_task(create(routers[0].http, **asked))
        await backend.wait_for(lambda b: b.in_flight == 1)
        other = asyncio.create_task(create(routers[1].http, store=False, **asked))
        await wait_for_followers(routers[0], 1)
        goes_on.set()
        assert text_of(await first) == text_of(await other) == "Hello!"
        assert len(backend.turns) == 3


async def test_the_tokens_are_counted_once(backend: FakeBackend, valkey: ValkeyServer, tmp_path: Path) -> None:
    goes_on = asyncio.Event()
    backend.script(steps(until(goes_on), chat("Hello.")))
    async with replicas(2, backend, tmp_path, valkey.url) as routers:
        await know_each_other(routers)
        first = asyncio.create_task(create(routers[0].http, **CACHED))
        await backend.wait_for(lambda b: b.in_flight == 1)
        other = asyncio.create_task(create(routers[1].http, **CACHED))
        await wait_for_followers(routers[0], 1)
        goes_on.set()
        usage = (await first)["usage"]
        await other
        rows = (await routers[0].http.get("/api/usage")).json()["data"]
        assert sum(row["input_tokens"] for row in rows) == usage["input_tokens"]
        assert sum(row["requests"] for row in rows) == 2
        assert sum(row["cache_hits"] for row in rows) == 1


async def test_a_replica_that_is_gone_leads_no_longer(
    backend: FakeBackend, valkey: ValkeyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distant_flight, "LOOK_S", 0.01)
    claim, ghosts = ReplicaFlights.claim, iter(["flight_ghost", "flight_ghost", None])

    async def claimed(self: ReplicaFlights, name: str, flight: str, *, may_lead: bool = True) -> str | None:
        return next(ghosts) if remaining(ghosts) else await claim(self, name, flight, may_lead=may_lead)

    monkeypatch.setattr(ReplicaFlights, "claim", claimed)
    backend.script(chat("Hello."))
    async with replicas(2, backend, tmp_path, valkey.url) as routers:
        assert text_of(await create(routers[0].http, **CACHED)) == "Hello."
        assert not remaining(ghosts)
        await are_led(routers, 0)


def remaining(iterator: Any) -> int:
    return int(iterator.__length_hint__())


async def test_one_process_leads_at_a_time_until_it_releases(
    backend: FakeBackend, valkey: ValkeyServer, tmp_path: Path
) -> None:
    async with replicas(2, backend, tmp_path, valkey.url) as routers:
        one, other = (router.app.state.cluster.flights for router in routers)
        assert await one.claim("asked", "a", may_lead=False) is None
        assert await one.claim("asked", "a") == "a"
        assert await other.claim("asked", "b") == await other.claim("asked", "b", may_lead=False) == "a"
        other.release("asked", "b")
        assert await other.claim("asked", "b") == "a", "who does not lead releases nothing"
        one.release("asked", "a")
        await one.claim("another", "c")
        assert await other.claim("asked", "b") == "b"
        other.release("asked", "b")
        assert await one.claim("asked", "a", may_lead=False) is None
