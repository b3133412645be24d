"""Limits of keys over replicas: they are taken with the slot, in one round trip, or neither is."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

from cluster import valkey_counting as counting
from core.valkey import Script, Valkey
from tests.conftest import Running
from tests.engines.valkey import ValkeyServer
from tests.fake_backend import FakeBackend, chat, json_answer, steps, until
from tests.keyed import as_key, key, keyed_router
from tests.turns import URL, assert_error, eventually, turn

QUESTIONS = {counting.TAKE: "slot", counting.DRAW: "limits", counting.END: "end"}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """What the server is asked for, or hears, by what that is."""
    counts: Counter[str] = Counter()
    start = Valkey.start

    def counted(self: Valkey, script: Script, *args: Any) -> bool:
        if (question := QUESTIONS.get(script)) is not None:
            counts[question] += 1
        return start(self, script, *args)

    monkeypatch.setattr(Valkey, "start", counted)
    return counts


@pytest.fixture
async def limited(backend: FakeBackend, valkey: ValkeyServer) -> AsyncIterator[Running]:
    """A router of several, with a key that has limits of all kinds."""
    ann = key("ann", rpm=20, tpm=100_000, concurrent=2, owner="team")
    owners = [{"name": "team", "rpm": 30}]
    async with keyed_router(backend, ann, owners=owners, cluster={"url": valkey.url}) as running:
        yield running


@pytest.mark.parametrize("path", [URL, "/v1/chat/completions"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_asks_the_server_once_whatever_limits_its_key_has(
    limited: Running, backend: FakeBackend, asked: Counter[str], path: str, stream: bool
) -> None:
    backend.default = chat("ok")
    body = (
        turn(store=False) if path == URL else {"model": "test-model", "messages": [{"role": "user", "content": "Hi"}]}
    )
    async with as_key(limited, "ann") as http:
        for number in range(5):
            answer = await http.post(path, json={**body, "stream": stream})
            assert answer.status_code == 200, answer.text
            assert answer.headers["x-ratelimit-limit-requests"] == "20"
            assert answer.headers["x-ratelimit-remaining-requests"] == str(19 - number)
    assert asked == {"slot": 5, "end": 5}, "and at its end it sends one script, and waits for nothing"


async def test_what_is_refused_takes_no_slot_and_counts_as_no_request(
    limited: Running, backend: FakeBackend, valkey: ValkeyServer, asked: Counter[str]
) -> None:
    gate = asyncio.Event()
    backend.default = steps(until(gate), chat("ok"))
    async with as_key(limited, "ann") as http:
        running = [asyncio.create_task(http.post(URL, json=turn(store=False))) for _ in range(2)]
        await backend.wait_for(lambda b: b.in_flight == 2)
        for stream in (False, True):
            refused = await http.post(URL, json=turn(store=False, stream=stream))
            assert_error(refused, 429, code="rate_limit_exceeded")
            assert "turns at once" in refused.json()["error"]["message"]
            assert refused.headers["x-ratelimit-remaining-requests"] == "18"
        assert limited.in_flight() == 2
        gate.set()
        assert [answer.status_code for answer in await asyncio.gather(*running)] == [200, 200]
        await eventually(lambda: not any(map(int, valkey.run("HVALS", "{nomyo}:total"))), "nothing runs")
        assert (await http.post(URL, json=turn(store=False))).status_code == 200
    (row,) = (await limited.http.get("/api/usage")).json()["data"]
    assert (row["requests"], row["errors"]) == (3, 0)
    assert (asked["slot"], asked["limits"]) == (5, 0)


async def test_who_waits_for_a_slot_is_admitted_before(
    backend: FakeBackend, valkey: ValkeyServer, asked: Counter[str]
) -> None:
    gate = asyncio.Event()
    backend.default = steps(until(gate), chat("ok"))
    endpoint = {"url": f"{backend.url}/v1", "kind": "openai-chat", "max_concurrent": 1}
    ann = key("ann", concurrent=2)
    async with (
        keyed_router(backend, ann, endpoints=[endpoint], cluster={"url": valkey.url}) as running,
        as_key(running, "ann") as http,
    ):
        first = asyncio.create_task(http.post(URL, json=turn(store=False)))
        await backend.wait_for(lambda b: b.in_flight == 1)
        second = asyncio.create_task(http.post(URL, json=turn(store=False)))
        await eventually(lambda: len(running.app.state.pool.line) == 1, "it waits")
        assert_error(await http.post(URL, json=turn(store=False)), 429, code="rate_limit_exceeded")
        gate.set()
        assert [(await one).status_code for one in (first, second)] == [200, 200]


async def test_an_answer_from_the_cache_counts_too(backend: FakeBackend, valkey: ValkeyServer) -> None:
    backend.default = chat("ok")
    async with (
        keyed_router(backend, key("ann", rpm=3), cluster={"url": valkey.url}) as running,
        as_key(running, "ann") as http,
    ):
        answers = [await http.post(URL, json=turn(store=False, nomyo={"cache": True})) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert len(backend.turns) == 1


async def test_a_model_that_another_replica_asks_for_is_taken_to_be_in_memory_there(
    backends_: list[FakeBackend], valkey: ValkeyServer
) -> None:
    gate = asyncio.Event()
    for backend in backends_:
        backend.routes["GET /api/ps"] = json_answer({"models": []})
        backend.default = steps(until(gate), chat("ok"))
    settings: dict[str, Any] = {
        "endpoints": [{"url": backend.url, "kind": "ollama", "max_concurrent": 9} for backend in backends_],
        "cluster": {"url": valkey.url},
    }
    async with (
        keyed_router(backends_[0], **settings) as here,
        keyed_router(backends_[0], **settings) as there,
    ):
        first = asyncio.create_task(here.http.post(URL, json=turn(store=False, input="first")))
        await eventually(lambda: sum(backend.in_flight for backend in backends_) == 1, "it runs")
        (busy,) = (backend for backend in backends_ if backend.in_flight)
        pool = there.app.state.pool
        await eventually(lambda: any(e.running.elsewhere("test-model") for e in pool.endpoints.values()), "it is known")
        others = [
            asyncio.create_task(there.http.post(URL, json=turn(store=False, input=f"number {number}")))
            for number in range(4)
        ]
        await eventually(lambda: busy.in_flight == 5, "all go to where the model is, though the other one is idle")
        gate.set()
        await asyncio.gather(first, *others)
