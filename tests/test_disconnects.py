"""Clients that leave, at any moment: the turn is cancelled, the backend's work is aborted, the slot is free at once."""

import asyncio
import contextlib
import gc
import random
import socket
from collections import Counter
from typing import Any
from urllib.parse import urlsplit

import httpx2
import orjson
import pytest

import backends.fleet.failover
from tests.conftest import Running, running_router
from tests.fake_backend import (
    Answer,
    FakeBackend,
    Reply,
    call,
    chat,
    chunk,
    native,
    pause,
    reasoning,
    stall,
    steps,
    stream,
    until,
)
from tests.turns import URL, assert_error, create, ended, eventually, has_status, open_stream, text_of, turn

pytestmark = pytest.mark.usefixtures("nothing_is_left_behind")


async def quiet(running: Running, backend: FakeBackend) -> None:
    """Nobody holds a slot, nobody waits for one, and the backend works for nobody."""
    await eventually(lambda: running.in_flight() == 0, "no slot is taken")
    assert not running.app.state.pool.line, "somebody still waits"
    await backend.wait_for(lambda b: b.in_flight == 0)
    outcomes = Counter(request.outcome for request in backend.turns)
    assert set(outcomes) <= {"answered", "aborted"}, outcomes


async def post(running: Running, **params: Any) -> httpx2.Response:
    return await running.http.post(URL, json=turn(**params))


async def leave(task: "asyncio.Task[Any]") -> None:
    """The client of this request closes its connection."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


class TestWhereItWaits:
    @pytest.mark.parametrize("streaming", [False, True], ids=["json", "stream"])
    @pytest.mark.parametrize("kind", ["openai-chat", "openai"])
    async def test_for_the_backends_first_byte(self, backend, kind, streaming):
        backend.default = stall()
        async with running_router(endpoints=[{"url": f"{backend.url}/v1", "kind": kind}]) as running:
            asking = asyncio.create_task(post(running, stream=streaming))
            await backend.wait_for(lambda b: b.in_flight == 1)
            await leave(asking)
            await backend.wait_for(lambda b: b.aborts == 1)
            await quiet(running, backend)

    async def test_for_the_rest_of_json(self, served, backend):
        backend.default = chat("Hello", then=stall())
        asking = asyncio.create_task(post(served))
        await backend.wait_for(lambda b: b.in_flight == 1)
        await asyncio.sleep(0.01)
        await leave(asking)
        await backend.wait_for(lambda b: b.aborts == 1)
        await quiet(served, backend)

    @pytest.mark.parametrize("kind", ["openai-chat", "openai"])
    async def test_in_the_middle_of_a_stream(self, backend, kind):
        answer = native if kind == "openai" else chat
        backend.default = answer("Hello there", then=stall())
        async with running_router(endpoints=[{"url": f"{backend.url}/v1", "kind": kind}]) as running:
            async with open_stream(running.http) as events:
                await events.until("response.output_text.delta")
            await backend.wait_for(lambda b: b.aborts == 1)
            await quiet(running, backend)
            response = await ended(running.http, events.seen[0]["response"]["id"])
            assert (response["status"], response["error"]) == ("cancelled", None)

    async def test_what_was_said_is_stored_as_cancelled_and_can_be_continued(self, served, backend):
        backend.script(chat("Hello there", then=stall()))
        async with open_stream(served.http) as events:
            while (await events.until("response.output_text.delta"))["delta"] != " there":
                pass
        response_id = events.seen[0]["response"]["id"]
        response = await has_status(served.http, response_id, "cancelled")
        assert text_of(response) == "Hello there"
        assert response["output"][0]["status"] == "incomplete"
        await create(served.http, input="Go on.", previous_response_id=response_id)
        assert [message["content"] for message in backend.turns[-1].json["messages"]] == [
            "Say something.",
            "Hello there",
            "Go on.",
        ]

    async def test_what_was_cut_off_in_a_call_can_be_continued_too(self, served, backend):
        """Half a call cannot be answered by anybody: it is left out."""
        backend.script(chat("Hm.", call("f", {"city": "Paris"}), then=stall()))
        async with open_stream(served.http) as events:
            await events.until("response.function_call_arguments.delta")
        response_id = events.seen[0]["response"]["id"]
        await has_status(served.http, response_id, "cancelled")
        await create(served.http, input="Go on.", previous_response_id=response_id)
        assert "tool_calls" not in str(backend.turns[-1].json["messages"])

    async def test_for_a_slot(self, backend):
        backend.script(stall())
        endpoint = {"url": f"{backend.url}/v1", "kind": "openai-chat", "max_concurrent": 1}
        async with running_router(endpoints=[endpoint]) as running:
            waiting = running.app.state.pool.line
            busy = asyncio.create_task(post(running))
            await backend.wait_for(lambda b: b.in_flight == 1)
            leaves = [asyncio.create_task(post(running, stream=n % 2 == 0)) for n in range(4)]
            await eventually(lambda: len(waiting) == 4, "they wait")
            stays = asyncio.create_task(post(running, input="I stay."))
            await eventually(lambda: len(waiting) == 5, "it waits behind them")
            for task in leaves:
                await leave(task)
            await eventually(lambda: len(waiting) == 1, "only the one that stays waits")
            await leave(busy)
            assert (await stays).status_code == 200
            assert len(backend.turns) == 2, "one that had left was sent to the backend"
            await quiet(running, backend)

    @pytest.mark.logs("The backend could not be reached")
    async def test_for_the_next_try(self, served, backend, monkeypatch):
        monkeypatch.setattr(backends.fleet.failover, "WAITS_S", (30.0, 30.0))
        await create(served.http)
        await backend.stop()
        asking = asyncio.create_task(post(served))
        await eventually(lambda: served.app.state.telemetry.counts["retries"] == 1, "it waits for its next try")
        assert served.in_flight() == 0, "one that waits takes no slot"
        await leave(asking)
        assert served.in_flight() == 0

    async def test_before_its_body_was_sent(self, served, backend):
        address = urlsplit(served.url)
        for sent in (
            b"",
            b"POST /v1/resp",
            b"POST /v1/responses HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n",
            b'POST /v1/responses HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"model": ',
            b"POST /v1/responses HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{",
        ):
            _, writer = await asyncio.open_connection(address.hostname, address.port)
            writer.write(sent)
            await writer.drain()
            await asyncio.sleep(0.01)
            writer.close()
            await writer.wait_closed()
        await create(served.http)
        assert len(backend.turns) == 1

    async def test_without_reading_anything(self, served, backend):
        """Its buffers fill up, the router holds the backend back, and then it leaves."""
        written = 0

        async def endless(reply: Reply) -> None:
            nonlocal written
            await reply.start(headers={"Content-Type": "text/event-stream"})
            while True:
                await reply.write(chunk({"content": "x" * 10_000}))
                written += 10_000
                await asyncio.sleep(0)

        backend.default = endless
        address = urlsplit(served.url)
        body = orjson.dumps(turn(stream=True))
        with socket.create_connection((address.hostname, address.port)) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.sendall(
                b"POST /v1/responses HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
            )
            stands_at = -1
            while stands_at != written or not written:
                stands_at = written
                assert written < 100_000_000, "the router reads on and on for a client that does not"
                await asyncio.sleep(0.1)
        await backend.wait_for(lambda b: b.aborts == 1)
        await quiet(served, backend)

    async def test_in_the_background_nobody_is_missed(self, served, backend):
        gate = asyncio.Event()
        backend.script(steps(until(gate), chat("Hello")))
        async with open_stream(served.http, background=True) as events:
            await events.until("response.in_progress")
        await backend.wait_for(lambda b: b.in_flight == 1)
        gate.set()
        response = await ended(served.http, events.seen[0]["response"]["id"])
        assert (response["status"], backend.aborts) == ("completed", 0)
        await quiet(served, backend)

    async def test_after_the_last_byte_nothing_is_cancelled(self, served):
        for _ in range(10):
            async with open_stream(served.http) as events:
                await events.until("response.completed")
            stored = await served.http.get(f"{URL}/{events.seen[0]['response']['id']}")
            assert stored.json()["status"] == "completed"


def any_answer(dice: random.Random) -> Answer:
    """Stalls, trickles, or is done soon."""
    parts = (reasoning("Let me see."), "One two three four five six seven eight", call("f", {"x": 1}))
    return dice.choice(
        [
            stall(),
            chat("Hello there", then=stall()),
            chat(*parts, delay_s=dice.random() * 0.01),
            steps(pause(dice.random() * 0.03), chat(*parts)),
            chat(*parts, then=stall(), as_stream=True),
            stream(stall()),
            chat("Hello"),
        ]
    )


@pytest.mark.heavy
@pytest.mark.parametrize("seed", [1, 2])
async def test_200_requests_that_are_aborted_at_random_moments_leave_nothing_behind(backend, seed):
    dice = random.Random(seed)
    endpoint = {"url": f"{backend.url}/v1", "kind": "openai-chat", "max_concurrent": 24}
    async with (
        running_router(endpoints=[endpoint], cache={"backend": "memory"}) as running,
        httpx2.AsyncClient(base_url=running.url, limits=httpx2.Limits(max_connections=None), timeout=None) as http,
    ):
        await create(http)
        idle = asyncio.all_tasks()
        backend.script(*(any_answer(dice) for _ in range(300)))

        plan = [
            {"stream": dice.random() < 0.5, "store": dice.random() < 0.7, "nomyo": {"cache": dice.random() < 0.3}}
            for _ in range(200)
        ]
        moments = [(dice.random() * 0.8, dice.random() * 0.3) for _ in plan]

        async def request(number: int) -> str:
            comes_at, leaves_after = moments[number]
            await asyncio.sleep(comes_at)
            try:
                async with asyncio.timeout(leaves_after):
                    answer = await http.post(URL, json=turn(**plan[number], input=f"Say {number}."))
            except TimeoutError:
                return "aborted"
            assert answer.status_code == 200, answer.text
            return "answered"

        outcomes = Counter(await asyncio.gather(*(request(number) for number in range(200))))
        assert outcomes["aborted"] > 80, f"hardly any request was aborted: {outcomes}"
        await quiet(running, backend)
        while backend.aborts <= 25:  # Where the machine is busy, few of them have got as far as the backend.
            backend._script.clear()
            backend.script(stall())
            asking = asyncio.create_task(http.post(URL, json=turn(input="Say something else.")))
            await backend.wait_for(lambda b: b.in_flight == 1)
            await leave(asking)
            await quiet(running, backend)
        await eventually(lambda: asyncio.all_tasks() <= idle, "no watch, no keepalive and no turn is left")
        gc.collect()  # asyncio complains of what nobody awaited when it is thrown away
        backend._script.clear()
        assert (await create(http))["status"] == "completed"
        rows = await running.app.state.db._database.read("SELECT status FROM responses")
        assert {row["status"] for row in rows} <= {"completed", "cancelled", "failed"}, "a row still says it runs"


async def test_an_error_and_a_client_that_leaves_at_once(served, backend):
    """The moment in which the watch cancels a request that is already failing."""
    for number in range(40):
        backend.script(steps(pause(0.003), _refuse))
        asking = asyncio.create_task(post(served, stream=number % 2 == 0))
        await backend.wait_for(lambda b, n=number: len(b.turns) == n + 1)
        await asyncio.sleep(0.001 + number * 0.0001)
        await leave(asking)
        await quiet(served, backend)
    answer = await served.http.post(URL, json=turn(model="unknown"))
    assert_error(answer, 400)


async def _refuse(reply: Reply) -> None:
    await reply.start(400, {"Content-Type": "application/json"}, length=2)
    await reply.end(b"{}")
