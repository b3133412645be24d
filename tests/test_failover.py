"""A fleet with a bad backend in it, on real sockets: what the clients see of it is nothing, as long as somebody can
answer."""

import asyncio
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx2
import orjson
import pytest

import backends.fleet.endpoint
import backends.fleet.failover
from tests.conftest import Running, running_router
from tests.fake_backend import (
    CHAT,
    DONE,
    SSE_HEADERS,
    Answer,
    FakeBackend,
    Reply,
    chat,
    chunk,
    cut,
    empty,
    http_error,
    json_answer,
    native,
    pause,
    stall,
    steps,
    stream,
    until,
)
from tests.stream_grammar import check_stream
from tests.test_pool import at
from tests.test_websocket import connected
from tests.turns import URL, assert_error, create, crowded_client, ended, eventually, open_stream, soon, text_of, turn
from tests.turns import stream as stream_of

# A breaker that stays open for the whole test, and one that soon lets a probe through.
FOR_LONG: dict[str, Any] = {"cooldown_s": 30.0}
FOR_SHORT: dict[str, Any] = {"cooldown_s": 0.1, "max_cooldown_s": 0.2}


async def prompt(reply: Reply) -> None:
    """An answer whose body is one write: a client has seen nothing of it, or all."""
    if not reply.request.json.get("stream"):
        await chat("Hello")(reply)
        return
    await reply.start(200, SSE_HEADERS)
    await reply.end(chunk({"content": "Hello"}) + chunk({}, finish_reason="stop") + DONE)


@pytest.fixture
async def good(stack: AsyncExitStack) -> FakeBackend:
    return await started(stack)


@pytest.fixture
async def bad(stack: AsyncExitStack) -> FakeBackend:
    return await started(stack)


async def started(stack: AsyncExitStack) -> FakeBackend:
    backend = await stack.enter_async_context(FakeBackend())
    backend.default = prompt
    return backend


@asynccontextmanager
async def fleet(*endpoints: dict[str, Any], **settings: Any) -> AsyncIterator[Running]:
    """A router that knows all its endpoints. At the end nobody holds a slot, waits for one, or waits for a first
    byte."""
    async with running_router(endpoints=list(endpoints), **settings) as running:
        pool = running.app.state.pool
        await eventually(lambda: all(e.healthy for e in pool.endpoints.values()), "every endpoint has been asked")
        yield running
        await eventually(lambda: running.in_flight() == 0, "no slot is taken")
        assert not len(pool.line), "somebody still waits"
        for endpoint in pool.endpoints.values():
            await eventually(lambda c=endpoint.client: not c.answering, f"{endpoint.name}: nobody waits for a byte")


# ── many requests ────────────────────────────────────────────────────────────────────────────────────────────────────

SHAPES: tuple[tuple[str, bool], ...] = ((URL, False), (URL, True), (CHAT, False), (CHAT, True))


async def storm(
    running: Running, requests: int, *, at_once: int, answered: Callable[[int], None] = lambda number: None
) -> Counter[str]:
    """Sends many requests, of each shape a quarter. What came of them; `answered` gets each."""
    outcomes: Counter[str] = Counter()
    numbers = iter(range(requests))

    async def client(http: httpx2.AsyncClient) -> None:
        for number in numbers:
            path, streams = SHAPES[number % 4]
            # Each begins differently: none is warm anywhere.
            body = asking(path, f"Say {number}.", stream=streams)
            answer = await http.post(path, json=body)
            outcomes[outcome(answer.status_code, path, streams, answer.content)] += 1
            answered(number)

    async with crowded_client(running.url) as http:
        await asyncio.gather(*(client(http) for _ in range(at_once)))
    return outcomes


def outcome(status: int, path: str, streams: bool, body: bytes) -> str:
    """`fine`, or what is wrong with an answer."""
    if status != 200:
        return f"{status} {body[:200]!r}"
    if b"Hello" not in body:
        return f"{path} does not say it: {body[-300:]!r}"
    if not streams:
        return "fine" if isinstance(orjson.loads(body), dict) else "no object"
    whole = body.endswith(DONE) if path == CHAT else b"response.completed" in body
    return "fine" if whole else f"{path} ended in {body[-300:]!r}"


def all_fine(outcomes: Counter[str], requests: int) -> None:
    assert outcomes == {"fine": requests}, outcomes.most_common(3)


async def model_is_unknown(reply: Reply) -> None:
    await http_error(404, "model 'test-model' not found, try pulling it first", type="api_error")(reply)


FAULTS: dict[str, Answer] = {
    "hangs": stall(),
    "answers 500": http_error(500, "it broke"),
    "answers 429": http_error(429, "too busy"),
    "answers 429, Retry-After": http_error(429, "too busy", headers={"Retry-After": "30"}),
    "answers 502": http_error(502, body=b"<html>Bad Gateway</html>"),
    "loads": http_error(503, "Loading model", type="unavailable_error"),
    "answers 529": http_error(529, "Overloaded", type="overloaded_error"),
    "answers 401": http_error(401, "Invalid API key"),
    "answers 200 with nothing": empty(),
    "ends before the first event": stream(),
    "says nothing but a comment": stream(b": ping\n\n"),
    "cuts before the first byte": cut(),
    "cuts after the head": stream(cut()),
    "resets": cut(reset=True),
    "knows no such model": model_is_unknown,
    "has no such path": http_error(404, body=b"404 page not found"),
}
# Those of the issue, with as many requests as it says.
THOUSAND = ("hangs", "answers 500")
# To a client that passes bytes through, a comment is an answer.
NOT_PASSED_THROUGH = ("says nothing but a comment",)


class TestOneOfTwoIsBad:
    @pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault not in NOT_PASSED_THROUGH])
    async def test_no_client_sees_it_and_it_is_soon_left_alone(self, good, bad, fault):
        requests = 1000 if fault in THOUSAND else 160
        bad.default = FAULTS[fault]
        endpoints = [at(good), at(bad, first_byte_timeout_s=0.25)]
        async with fleet(*endpoints, breaker=FOR_LONG) as running:
            all_fine(await storm(running, requests, at_once=16), requests)
            # About half of those at once are there when its breaker opens; a kept connection that breaks is tried
            # twice.
            assert len(bad.turns) <= 2 * 16, f"it was asked {len(bad.turns)} times"
            assert running.app.state.telemetry.counts["queued"] == 0, "somebody had to wait for the other one"

    async def test_with_32_at_once(self, good, bad):
        bad.default = http_error(500)
        async with fleet(at(good), at(bad), breaker=FOR_LONG) as running:
            all_fine(await storm(running, 600, at_once=32), 600)
            assert len(bad.turns) <= 32

    async def test_a_backend_that_refuses_connections(self, good, bad):
        async with fleet(at(good), at(bad), models_refresh_s=3600, breaker=FOR_LONG) as running:
            await bad.stop()
            all_fine(await storm(running, 1000, at_once=16), 1000)
            assert running.app.state.telemetry.counts["failures"] <= 16, "it was tried again and again"

    async def test_a_comment_is_no_answer(self, good, bad):
        bad.default = FAULTS[NOT_PASSED_THROUGH[0]]
        async with fleet(at(good), at(bad, priority=-1), breaker=FOR_LONG) as running:
            for number in range(12):
                assert text_of(await create(running.http, input=str(number))) == "Hello"
            assert len(bad.turns) == 3, "the breaker opens after three failures"

    async def test_one_that_dies_in_the_middle_and_comes_back(self, good, bad):
        bad.default = steps(pause(0.003), prompt)
        good.default = steps(pause(0.003), prompt)
        served_before = 0

        def play(number: int) -> None:
            nonlocal served_before
            if number == 300:
                served_before = len(bad.turns)
                tasks.append(asyncio.create_task(bad.stop()))
            elif number == 600:
                tasks.append(asyncio.create_task(bad.start()))

        tasks: list[asyncio.Task[None]] = []
        async with fleet(at(good), at(bad), models_refresh_s=0.05, breaker=FOR_SHORT) as running:
            outcomes = await storm(running, 1000, at_once=16, answered=play)
            await asyncio.gather(*tasks)
            all_fine(outcomes, 1000)
            assert served_before > 50, f"it had answered only {served_before}: nothing was tried"
            await traffic_again(running, bad)

    async def test_one_that_failed_gets_requests_again(self, good, bad):
        bad.default = http_error(500)
        async with fleet(at(good), at(bad), breaker=FOR_SHORT) as running:
            all_fine(await storm(running, 80, at_once=8), 80)
            bad.default = prompt
            await traffic_again(running, bad)

    async def test_failures_that_were_under_way_do_not_lengthen_the_cool_down(self, good, bad):
        """8 requests are there when it dies. That is one failure of a server, not one and five failed probes."""
        gate = asyncio.Event()
        bad.default = steps(until(gate), http_error(500))
        good.default = steps(until(gate), prompt)
        async with fleet(at(good), at(bad), breaker={"cooldown_s": 1.5, "max_cooldown_s": 600.0}) as running:
            many = asyncio.create_task(storm(running, 16, at_once=16))
            await bad.wait_for(lambda b: b.in_flight == 8)
            gate.set()
            all_fine(await many, 16)
            bad.default = prompt
            await traffic_again(running, bad)

    async def test_a_crowd_that_is_there_when_it_dies(self, good, bad):
        """More than the retry budget's small change: 32 fail in one moment, after some traffic."""
        gate = asyncio.Event()
        async with fleet(*(at(b, max_concurrent=64) for b in (good, bad)), breaker=FOR_LONG) as running:
            await storm(running, 160, at_once=8)
            bad.default = steps(until(gate), cut(reset=True))
            good.default = steps(until(gate), prompt)
            many = asyncio.create_task(storm(running, 64, at_once=64))
            await bad.wait_for(lambda b: b.in_flight == 32)
            gate.set()
            all_fine(await many, 64)


async def traffic_again(running: Running, backend: FakeBackend) -> None:
    """It gets requests, and answers them, soon: its probe interval and some."""
    before = len(backend.turns)
    async with soon():
        while len(backend.turns) < before + 3:
            all_fine(await storm(running, 8, at_once=4), 8)


# ── after the first event ────────────────────────────────────────────────────────────────────────────────────────────


class TestAfterTheFirstEvent:
    @pytest.mark.parametrize("kind", ["openai-chat", "openai"])
    async def test_there_is_no_retry(self, good, bad, kind):
        bad.default = (native if kind == "openai" else chat)("Half an answer", then=cut())
        async with fleet(at(good), at(bad, kind, priority=-1)) as running:
            async with open_stream(running.http) as events:
                seen = await events.rest()
            check_stream(seen)
            assert (seen[-1]["type"], seen[-1]["response"]["error"]["code"]) == ("response.failed", "server_error")
            assert (len(bad.turns), len(good.turns)) == (1, 0)
            (shown,) = [e for e in await endpoints(running) if e["outcomes"]]
            assert (shown["url"], shown["outcomes"]) == (f"{bad.url}/v1", {"failed": 1})

    async def test_what_is_passed_through_says_so_in_the_stream(self, good, bad):
        bad.default = chat("Half an answer", then=cut())
        async with fleet(at(good), at(bad, priority=-1)) as running:
            answer = await running.http.post(CHAT, json=asking(CHAT, stream=True))
            assert answer.status_code == 200
            last = orjson.loads(answer.content.rstrip().rpartition(b"data: ")[2])
            assert last["error"]["code"] == "backend_disconnected", last
            assert (len(bad.turns), len(good.turns)) == (1, 0)

    async def test_it_is_a_failure_like_others(self, good, bad):
        bad.default = chat("Half an answer", then=cut())
        async with fleet(at(good), at(bad, priority=-1), breaker=FOR_LONG) as running:
            for _ in range(6):
                async with open_stream(running.http) as events:
                    await events.rest()
            assert (len(bad.turns), len(good.turns)) == (3, 3), "its breaker opens after three"

    async def test_without_a_stream_the_client_has_seen_nothing(self, good, bad):
        bad.default = chat("Half an answer", then=cut())
        async with fleet(at(good), at(bad, priority=-1)) as running:
            assert text_of(await create(running.http)) == "Hello"
            assert (len(bad.turns), len(good.turns)) == (1, 1)


# ── what nobody else can take ────────────────────────────────────────────────────────────────────────────────────────


class TestNobodyElse:
    @pytest.mark.parametrize("path", [URL, CHAT])
    async def test_the_first_error_is_told(self, good, bad, path):
        bad.default = http_error(500, "the first words")
        good.default = http_error(502, "the second words")
        async with fleet(at(bad, priority=-1), at(good)) as running:
            answer = await running.http.post(path, json=asking(path))
            assert_error(answer, 502, type="server_error", code="backend_error", says="the first words")
            assert (len(bad.turns), len(good.turns)) == (1, 1)

    async def test_it_says_when_to_come_back(self, good, bad):
        bad.default = http_error(429, "slow down", headers={"Retry-After": "17"})
        good.default = http_error(500)
        async with fleet(at(bad, priority=-1), at(good)) as running:
            answer = await running.http.post(URL, json=turn())
            assert_error(answer, 429, code="rate_limit_exceeded", says="slow down")
            assert answer.headers["retry-after"] == "17"

    async def test_a_request_that_is_wrong_is_not_tried_elsewhere(self, good, bad):
        bad.default = http_error(400, "temperature is too high", code="invalid_value")
        async with fleet(at(bad, priority=-1), at(good), breaker={"failures": 1}) as running:
            for path in (URL, CHAT) * 3:
                assert_error(await running.http.post(path, json=asking(path)), 400, says="temperature is too high")
            assert (len(bad.turns), len(good.turns)) == (6, 0), "what is refused is no failure"

    async def test_what_no_chat_server_can_carry_is_no_failure_of_one(self, good, bad):
        async with fleet(at(bad, priority=-1), at(good), breaker={"failures": 1}) as running:
            for _ in range(3):
                answer = await running.http.post(URL, json=turn(prompt={"id": "pmpt_1"}))
                assert_error(answer, 400, param="prompt")
            await create(running.http)
            assert (len(bad.turns), len(good.turns)) == (1, 0), "a client's fault has opened a breaker"
            assert all(endpoint["last_error"] is None for endpoint in await endpoints(running))

    async def test_retries_are_a_small_share_when_everybody_fails(self, good, bad):
        for backend in (good, bad):
            backend.default = http_error(500)
        never = {"failures": 1_000_000}
        async with fleet(at(good), at(bad), breaker=never, retry={"budget": 0.2}) as running:
            outcomes = await storm(running, 200, at_once=8)
            assert sum(outcomes.values()) == 200
            assert not outcomes["fine"], outcomes
            retries = len(good.turns) + len(bad.turns) - 200
            assert 20 <= retries <= 10 + 0.2 * 200, f"{retries} retries"
            assert running.app.state.telemetry.counts["retries"] == retries, "what is counted is not what was done"

    async def test_without_a_budget_there_are_none(self, good, bad):
        bad.default = http_error(500)
        async with fleet(at(bad, priority=-1), at(good), retry={"budget": 0}) as running:
            assert_error(await running.http.post(URL, json=turn()), 502)
            assert len(good.turns) == 0

    async def test_a_request_is_tried_no_more_often_than_the_settings_say(self, stack):
        fleet_of_six = [await started(stack) for _ in range(6)]
        for backend in fleet_of_six:
            backend.default = http_error(500)
        async with fleet(*map(at, fleet_of_six), retry={"max": 2}) as running:
            assert_error(await running.http.post(URL, json=turn()), 502)
            assert sum(len(backend.turns) for backend in fleet_of_six) == 3

    async def test_what_was_not_tried_again_is_not_counted_as_such(self, bad):
        bad.default = http_error(500)
        async with fleet(at(bad)) as running:
            for _ in range(5):
                assert_error(await running.http.post(URL, json=turn()), 502)
            assert (len(bad.turns), running.app.state.telemetry.counts["retries"]) == (5, 0)

    async def test_a_front_door_that_nobody_has_is_said_at_once(self, good):
        async with fleet(at(good, "ollama")) as running:
            asked = {"model": "test-model", "query": "a", "documents": ["b"]}
            async with soon():
                answer = await running.http.post("/v1/rerank", json=asked)
            assert 400 <= answer.status_code < 500, answer.text
            assert answer.status_code != 429, "coming back later would not help"


# ── one endpoint, which is not ready ─────────────────────────────────────────────────────────────────────────────────


class TestTheOneThereIs:
    @pytest.mark.parametrize("path", [URL, CHAT])
    async def test_one_that_loads_is_waited_for(self, good, path, monkeypatch):
        monkeypatch.setattr(backends.fleet.failover, "WAITS_S", (0.02, 0.05))
        good.script(FAULTS["loads"], FAULTS["loads"])
        async with fleet(at(good)) as running:
            answer = await running.http.post(path, json=asking(path))
            assert answer.status_code == 200, answer.text
            assert len(good.turns) == 3

    async def test_one_that_says_to_come_back_soon_is_asked_again_then(self, good):
        good.script(http_error(429, headers={"Retry-After": "0.3"}))
        async with fleet(at(good)) as running:
            began = time.monotonic()
            async with soon():
                await create(running.http)
            assert time.monotonic() - began >= 0.3

    async def test_one_that_says_to_come_back_late_is_not_waited_for(self, good):
        good.script(http_error(503, "Loading model", headers={"Retry-After": "20"}))
        async with fleet(at(good)) as running:
            answer = await running.http.post(URL, json=turn())
            assert_error(answer, 502, code="backend_unreachable")
            assert answer.headers["retry-after"] == "20"

    async def test_one_that_restarts_is_waited_for(self, good):
        async with fleet(at(good), models_refresh_s=3600) as running:
            await good.stop()
            asked = asyncio.create_task(create(running.http))
            await asyncio.sleep(0.3)
            await good.start()
            assert text_of(await asked) == "Hello"

    async def test_one_that_does_not_come_is_an_error_soon(self, good, monkeypatch):
        monkeypatch.setattr(backends.fleet.failover, "WAITS_S", (0.02, 0.05))
        async with fleet(at(good), models_refresh_s=3600) as running:
            await good.stop()
            async with soon():
                assert_error(await running.http.post(URL, json=turn()), 502, code="backend_unreachable")


# ── other models ─────────────────────────────────────────────────────────────────────────────────────────────────────


class TestFallbackModels:
    @pytest.mark.parametrize("path", [URL, CHAT])
    async def test_the_next_that_somebody_serves_answers(self, good, bad, path):
        bad.models, good.models = ["large"], ["small"]
        bad.default = http_error(500)
        async with fleet(at(bad), at(good), fallback_models={"large": ["nowhere", "small"]}) as running:
            answer = await running.http.post(path, json=asking(path, model="large"))
            assert answer.status_code == 200, answer.text
            assert answer.headers["x-nomyo-model"] == "small"
            assert good.turns[-1].json["model"] == "small"

    async def test_each_of_the_chain_is_tried(self, good, bad, stack):
        third = await started(stack)
        bad.models, third.models, good.models = ["large"], ["medium"], ["small"]
        bad.default = third.default = http_error(500)
        async with fleet(*map(at, (bad, third, good)), fallback_models={"large": ["medium", "small"]}) as running:
            answer = await running.http.post(URL, json=turn(model="large"))
            assert answer.headers["x-nomyo-model"] == "small", answer.text
            assert (len(bad.turns), len(third.turns), len(good.turns)) == (1, 1, 1)

    async def test_a_name_that_nobody_serves_may_have_one(self, good):
        async with fleet(at(good), fallback_models={"gpt-5": ["test-model"]}) as running:
            assert text_of(await create(running.http, model="gpt-5")) == "Hello"
            assert_error(await running.http.post(URL, json=turn(model="gpt-4")), 400, code="model_not_found")

    async def test_a_name_that_nobody_serves_has_it_even_if_it_is_not_well(self, good):
        good.default = http_error(500)
        async with fleet(at(good), fallback_models={"gpt-5": ["test-model"]}, breaker=FOR_LONG) as running:
            for _ in range(4):
                answer = await running.http.post(URL, json=turn(model="gpt-5"))
            assert_error(answer, 502)
            good.default = prompt
            assert text_of(await create(running.http, model="gpt-5")) == "Hello"

    async def test_when_all_fail_it_is_the_first_error(self, good, bad):
        bad.models, good.models = ["large"], ["small"]
        bad.default, good.default = http_error(500, "the first words"), http_error(500, "the second words")
        async with fleet(at(bad), at(good), fallback_models={"large": ["small"]}) as running:
            answer = await running.http.post(URL, json=turn(model="large"))
            assert_error(answer, 502, says="the first words")
            assert (len(bad.turns), len(good.turns)) == (1, 1)

    async def test_a_model_whose_servers_are_all_left_alone_still_has_it(self, good, bad):
        bad.models, good.models = ["large"], ["small"]
        bad.default = http_error(500)
        async with fleet(at(bad), at(good), fallback_models={"large": ["small"]}, breaker=FOR_LONG) as running:
            for _ in range(10):
                await create(running.http, model="large")
            assert len(good.turns) == 10


# ── servers that hang ────────────────────────────────────────────────────────────────────────────────────────────────


class TestHanging:
    @pytest.mark.parametrize("path", [URL, CHAT])
    @pytest.mark.parametrize("answer", [stall(), stream(stall())], ids=["before its head", "before its first event"])
    async def test_the_first_byte_is_waited_for_no_longer_than_the_settings_say(self, good, bad, answer, path):
        bad.default = answer
        async with fleet(at(good), at(bad, priority=-1, first_byte_timeout_s=0.1)) as running:
            began = time.monotonic()
            async with soon():
                reply = await running.http.post(path, json=asking(path, stream=True))
            assert reply.status_code == 200, reply.text
            assert time.monotonic() - began >= 0.1
            await bad.wait_for(lambda b: b.aborts == 1)

    async def test_the_rest_may_take_longer(self, bad, clock):
        gate = asyncio.Event()
        bad.default = chat("Hello", then=steps(until(gate), chunk({}, finish_reason="stop"), DONE))
        async with fleet(at(bad, first_byte_timeout_s=60)) as running, open_stream(running.http) as events:
            await events.until("response.output_text.delta")
            clock.advance(100)
            await asyncio.sleep(0.01)
            gate.set()
            assert (await events.rest())[-1]["type"] == "response.completed"

    async def test_alone_it_is_a_504(self, bad):
        bad.default = stall()
        async with fleet(at(bad, first_byte_timeout_s=0.1)) as running:
            assert_error(await running.http.post(URL, json=turn()), 504, code="backend_timeout")

    @pytest.mark.parametrize("path", [URL, CHAT])
    async def test_when_its_listing_hangs_too_who_waits_for_it_goes_elsewhere(self, good, bad, path, monkeypatch):
        monkeypatch.setattr(backends.fleet.endpoint, "LISTING_TIMEOUT_S", 0.1)
        monkeypatch.setattr(backends.fleet.endpoint, "PROBE_S", 0.05)
        bad.default = stall()
        async with fleet(at(good), at(bad, priority=-1), models_refresh_s=0.1) as running:
            asked = [asyncio.create_task(running.http.post(path, json=asking(path))) for _ in range(5)]
            await bad.wait_for(lambda b: b.in_flight == 5)
            bad.routes["GET /v1/models"] = stall()
            async with soon():
                answers = await asyncio.gather(*asked)
            assert [answer.status_code for answer in answers] == [200] * 5
            assert {answer.headers["x-nomyo-endpoint"] for answer in answers} == {re.sub("http://", "", good.url)}

    async def test_who_already_reads_its_answer_reads_on(self, bad, monkeypatch):
        monkeypatch.setattr(backends.fleet.endpoint, "LISTING_TIMEOUT_S", 0.05)
        monkeypatch.setattr(backends.fleet.endpoint, "PROBE_S", 0.02)
        gate = asyncio.Event()
        bad.default = chat("Hello", then=steps(until(gate), chunk({}, finish_reason="stop"), DONE))
        async with fleet(at(bad), models_refresh_s=0.05) as running, open_stream(running.http) as events:
            await events.until("response.output_text.delta")
            bad.routes["GET /v1/models"] = stall()
            (endpoint,) = running.app.state.pool.endpoints.values()
            await eventually(lambda: endpoint._failed_looks >= 3, "it has been given up")
            gate.set()
            assert (await events.rest())[-1]["type"] == "response.completed"

    async def test_giving_up_twice_in_a_moment_does_no_harm(self, bad):
        bad.default = stall()
        async with fleet(at(bad)) as running:
            (endpoint,) = running.app.state.pool.endpoints.values()
            asked = asyncio.create_task(running.http.post(URL, json=turn()))
            await bad.wait_for(lambda b: b.in_flight == 1)
            for _ in range(5):
                endpoint.client.give_up()
                await asyncio.sleep(0)
            assert_error(await asked, 504)


# ── other ways to ask ────────────────────────────────────────────────────────────────────────────────────────────────


class TestOtherWays:
    async def test_background_turns(self, good, bad):
        bad.default = http_error(500)
        async with fleet(at(good), at(bad, priority=-1)) as running:
            queued = await create(running.http, background=True)
            response = await ended(running.http, queued["id"])
            assert (response["status"], text_of(response)) == ("completed", "Hello")
            assert len(bad.turns) == 1

    async def test_turns_over_a_websocket(self, good, bad):
        bad.default = http_error(500)
        async with fleet(at(good), at(bad, priority=-1), breaker=FOR_LONG) as running, connected(running) as lane:
            first = await lane.answer()
            second = await lane.answer(previous_response_id=first["id"])
            assert (first["status"], text_of(second)) == ("completed", "Hello")
            assert len(good.turns) == 2

    async def test_a_conversation_goes_on_elsewhere(self, good, bad):
        async with fleet(at(good), at(bad, priority=-1), models_refresh_s=3600) as running:
            first = await create(running.http, input="One.")
            assert len(bad.turns) == 1
            await bad.stop()
            await create(running.http, input="Two.", previous_response_id=first["id"])
            fields = [message["content"] for message in good.turns[-1].json["messages"]]
            assert fields == ["One.", "Hello", "Two."]

    @pytest.mark.parametrize("kinds", [("openai", "openai-chat"), ("openai-chat", "openai")])
    async def test_from_one_kind_to_the_other(self, good, bad, kinds):
        bad.default, good.default = http_error(500), FakeBackend().default
        async with fleet(at(bad, kinds[0], priority=-1), at(good, kinds[1])) as running:
            for streams in (False, True):
                async with running.http.stream("POST", URL, json=turn(stream=streams)) as answer:
                    assert b"Hello from the fake backend." in await answer.aread()

    async def test_the_headers_are_of_the_attempt_that_was_answered(self, good, bad):
        bad.default, good.default = http_error(500), native("Hello")
        async with fleet(at(bad, priority=-1), at(good, "openai")) as running:
            answer = await running.http.post(URL, json=turn(tools=[{"type": "web_search"}]))
            assert answer.headers["x-nomyo-endpoint"] == re.sub("http://", "", good.url)
            assert "x-nomyo-omitted-tools" not in answer.headers, "it was given to the one that answered"

    async def test_tokens_are_counted_elsewhere_too(self, good, bad):
        bad.routes["POST /v1/responses/input_tokens"] = http_error(500)
        good.routes["POST /v1/responses/input_tokens"] = json_answer({"input_tokens": 7})
        async with fleet(at(bad, "openai", priority=-1), at(good, "openai")) as running:
            answer = await running.http.post(f"{URL}/input_tokens", json={"model": "test-model", "input": "Hi"})
            assert answer.status_code == 200, answer.text
            assert answer.json()["input_tokens"] == 7


async def endpoints(running: Running) -> list[dict[str, Any]]:
    return (await running.http.get("/api/endpoints")).json()["endpoints"]


def asking(path: str, text: str = "Hi", **params: Any) -> dict[str, Any]:
    """The body of a request to either front door."""
    fields = {"input": text, "store": False} if path == URL else {"messages": [{"role": "user", "content": text}]}
    return {"model": "test-model", **fields, **params}


async def test_a_json_client_of_a_stream_that_is_cut_is_answered_by_another_server(stack: AsyncExitStack) -> None:
    """llama.cpp streams to us whatever the client wants. Of what it had said nothing has left."""
    cutting, other = [await stack.enter_async_context(FakeBackend()) for _ in range(2)]
    endpoints = [
        {"url": backend.url, "kind": "llama.cpp", "priority": priority, "models": {"names": ["test-model"]}}
        for priority, backend in enumerate((cutting, other))
    ]
    cutting.default = chat("Half of", then=cut(), as_stream=True)
    other.default = chat("All of it.", as_stream=True)
    running = await stack.enter_async_context(running_router(endpoints=endpoints))
    response = await create(running.http)
    assert text_of(response) == "All of it."
    assert [len(backend.turns) for backend in (cutting, other)] == [1, 1]
    events = await stream_of(running.http)
    assert events[-1]["type"] == "response.failed", "what has left cannot be taken back"
