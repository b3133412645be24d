"""Turns that run without a client: how they live, how they are cancelled, followed, deleted, and what a shutdown
does."""

import asyncio
import sqlite3
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Running, running_router
from tests.fake_backend import (
    DONE,
    FakeBackend,
    call,
    chat,
    chunk,
    cut,
    http_error,
    native,
    pause,
    reasoning,
    sse_error,
    stall,
    steps,
    until,
)
from tests.stream_grammar import check_stream
from tests.turns import (
    URL,
    Json,
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

RUNNING = ("queued", "in_progress")


def router_with(
    backend: FakeBackend,
    kind: str = "openai-chat",
    *,
    file: Path | None = None,
    at_once: int = 4,
    queued: int = 100,
    drain_s: float = 0.2,
) -> AbstractAsyncContextManager[Running]:
    return running_router(
        endpoints=[{"url": f"{backend.url}/v1", "kind": kind}],
        background={"max_concurrent": at_once, "max_queued": queued, "drain_s": drain_s},
        database={"url": f"sqlite:///{file}" if file else "sqlite://"},
    )


async def start(running: Running, **params: Any) -> str:
    """The id of a new background response."""
    response = await create(running.http, background=True, **params)
    assert response["status"] == "queued"
    return response["id"]


async def cancel(running: Running, response_id: str) -> Json:
    answer = await running.http.post(f"{URL}/{response_id}/cancel")
    assert answer.status_code == 200, answer.text
    return answer.json()


async def all_is_quiet(running: Running, backend: FakeBackend) -> None:
    await eventually(lambda: running.in_flight() == 0, "no slot is taken")
    await backend.wait_for(lambda b: b.in_flight == 0)


class TestLife:
    async def test_it_is_queued_at_once_then_in_progress_then_completed(self, served, backend):
        gate = asyncio.Event()
        backend.script(steps(until(gate), chat("Hello")))
        first = await create(served.http, background=True, metadata={"a": "b"})
        assert (first["status"], first["background"], first["output"]) == ("queued", True, [])
        assert (await retrieve(served.http, first["id"]))["status"] in RUNNING, "it is not visible at once"
        await backend.wait_for(lambda b: b.in_flight == 1)
        running = await has_status(served.http, first["id"], "in_progress")
        gate.set()
        last = await ended(served.http, first["id"])
        assert (last["status"], text_of(last), last["usage"]["total_tokens"]) == ("completed", "Hello", 10)
        for response in (running, last):
            assert response["created_at"] == first["created_at"]
            assert response["metadata"] == {"a": "b"}
            assert response["background"] is True
        # The store knows of the end a moment before the runner lets go.
        await eventually(lambda: served.app.state.tasks.get(first["id"]) is None, "the runner lets go")

    async def test_it_can_be_continued_when_it_has_ended_and_not_before(self, served, backend):
        gate = asyncio.Event()
        backend.script(steps(until(gate), chat("Hello")))
        response_id = await start(served)
        early = await served.http.post(URL, json=turn(previous_response_id=response_id))
        assert_error(early, 400, param="previous_response_id")
        gate.set()
        await ended(served.http, response_id)
        await create(served.http, input="And?", previous_response_id=response_id)
        assert [message["content"] for message in backend.turns[-1].json["messages"]] == [
            "Say something.",
            "Hello",
            "And?",
        ]

    @pytest.mark.parametrize(
        ("answer", "reason", "code"),
        [
            (http_error(400, "temperature must be positive"), "temperature must be positive", "invalid_prompt"),
            (http_error(400, "too long", code="context_length_exceeded"), "too long", "context_length_exceeded"),
            (http_error(429, "slow down"), "slow down", "rate_limit_exceeded"),
            (http_error(500), "backend", "server_error"),
            (http_error(401), "key", "server_error"),
            (chat("Hel", then=cut()), "broke off", "server_error"),
        ],
    )
    async def test_a_failure_is_stored_with_its_reason(self, served, backend, answer, reason, code):
        backend.script(answer)
        response = await ended(served.http, await start(served))
        assert response["status"] == "failed"
        assert reason in response["error"]["message"]
        assert response["error"]["code"] == code
        assert response["completed_at"] is None
        await all_is_quiet(served, backend)

    async def test_an_unknown_model_is_a_failure_too(self, served):
        response = await ended(served.http, await start(served, model="unknown"))
        assert response["status"] == "failed"
        assert "unknown" in response["error"]["message"]

    async def test_a_limit_makes_it_incomplete(self, served, backend):
        backend.script(chat("Hel", finish_reason="length"))
        response = await ended(served.http, await start(served))
        assert response["status"] == "incomplete"
        assert response["incomplete_details"] == {"reason": "max_output_tokens"}

    async def test_what_is_not_stored_cannot_run_in_the_background(self, served, backend):
        answer = await served.http.post(URL, json=turn(background=True, store=False))
        assert_error(answer, 400, param="store")
        assert not backend.turns


class TestBounds:
    async def test_a_bounded_number_runs_at_once_and_the_others_follow_in_order(self, backend):
        gates = [asyncio.Event() for _ in range(6)]
        backend.script(*(steps(until(gate), chat("Hello")) for gate in gates))
        async with router_with(backend, at_once=2) as running:
            ids = [await start(running, input=f"Say {n}.") for n in range(6)]
            for n, gate in enumerate(gates):
                await backend.wait_for(lambda b, n=n: len(b.turns) == min(n + 2, 6))
                assert backend.in_flight <= 2
                statuses = [(await retrieve(running.http, response_id))["status"] for response_id in ids[n + 2 :]]
                assert statuses == ["queued"] * len(ids[n + 2 :])
                gate.set()
                await ended(running.http, ids[n])
            asked = [request.json["messages"][0]["content"] for request in backend.turns]
            assert asked == [f"Say {n}." for n in range(6)]

    async def test_a_full_queue_is_a_429_and_leaves_nothing_behind(self, backend, tmp_path):
        gate = asyncio.Event()
        backend.default = steps(until(gate), chat("Hello"))
        async with router_with(backend, at_once=1, queued=2, file=tmp_path / "router.db") as running:
            posts = [running.http.post(URL, json=turn(background=True)) for _ in range(10)]
            answers = await asyncio.gather(*posts)
            accepted = [answer.json()["id"] for answer in answers if answer.status_code == 200]
            assert len(accepted) == 3
            for answer in answers:
                if answer.status_code != 200:
                    assert_error(answer, 429, type="rate_limit_error", code="rate_limit_exceeded")
                    assert int(answer.headers["retry-after"]) >= 1
            refused = await running.http.post(URL, json=turn(background=True, stream=True))
            assert_error(refused, 429, code="rate_limit_exceeded")
            gate.set()
            for response_id in accepted:
                assert (await ended(running.http, response_id))["status"] == "completed"
            await start(running)
            rows = _rows(tmp_path / "router.db")
            assert len(rows) == 4, f"refused ones left rows behind: {rows}"


def _rows(file: Path) -> list[tuple[str, str]]:
    connection = sqlite3.connect(file)
    try:
        return connection.execute("SELECT id, status FROM responses").fetchall()
    finally:
        connection.close()


class TestCancel:
    async def test_a_queued_one_never_reaches_the_backend(self, backend):
        backend.script(stall())
        async with router_with(backend, at_once=1) as running:
            busy, queued = await start(running), await start(running, input="Never say this.")
            response = await cancel(running, queued)
            assert (response["id"], response["status"], response["output"]) == (queued, "cancelled", [])
            assert (await retrieve(running.http, queued))["status"] == "cancelled"
            await cancel(running, busy)
            await create(running.http)
            assert len(backend.turns) == 2

    @pytest.mark.parametrize("streaming", [False, True])
    @pytest.mark.parametrize("kind", ["openai-chat", "openai"])
    async def test_a_running_one_is_aborted(self, backend, kind, streaming):
        answer = native if kind == "openai" else chat
        backend.script(answer("Hello there", then=stall()))
        async with router_with(backend, kind, at_once=1) as running:
            if streaming:
                async with open_stream(running.http, background=True) as events:
                    response_id = (await events.until("response.created"))["response"]["id"]
                    await events.until("response.output_text.delta")
            else:
                response_id = await start(running)
                await backend.wait_for(lambda b: b.in_flight == 1)
            response = await cancel(running, response_id)
            assert response["status"] == "cancelled"
            assert response["error"] is None
            await backend.wait_for(lambda b: b.aborts == 1)
            await all_is_quiet(running, backend)
            assert await retrieve(running.http, response_id) == response
            assert (await ended(running.http, await start(running)))["status"] == "completed", "its place is not free"

    async def test_what_was_said_before_is_kept(self, served, backend):
        backend.script(chat("Hello there", then=stall()))
        async with open_stream(served.http, background=True) as events:
            while (await events.until("response.output_text.delta"))["delta"] != " there":
                pass
            response = await cancel(served, events.seen[0]["response"]["id"])
        (item,) = response["output"]
        assert (item["status"], item["content"][0]["text"]) == ("incomplete", "Hello there")

    @pytest.mark.parametrize("at_once", [1, 2], ids=["queued", "running"])
    async def test_cancelling_again_and_at_the_same_time_is_the_same(self, backend, at_once):
        backend.default = stall()
        async with router_with(backend, at_once=at_once) as running:
            _, response_id = await start(running), await start(running)
            await backend.wait_for(lambda b: b.in_flight == at_once)
            responses = await asyncio.gather(*(cancel(running, response_id) for _ in range(5)))
            responses.append(await cancel(running, response_id))
            assert [response["status"] for response in responses] == ["cancelled"] * 6
            assert responses[1:] == responses[:-1]

    async def test_one_that_has_ended_is_answered_as_it_is(self, served, backend):
        backend.script(chat("Hello"), http_error(400), chat("Hel", finish_reason="length"))
        for status in ("completed", "failed", "incomplete"):
            before = await ended(served.http, await start(served))
            assert before["status"] == status
            assert await cancel(served, before["id"]) == before
            assert await retrieve(served.http, before["id"]) == before

    async def test_one_in_the_foreground_cannot_be_cancelled(self, served, backend):
        gate = asyncio.Event()
        backend.script(chat("Hello", then=until(gate)))
        async with open_stream(served.http) as events:
            await events.until("response.output_text.delta")
            response_id = events.seen[0]["response"]["id"]
            assert_error(await served.http.post(f"{URL}/{response_id}/cancel"), 400, type="invalid_request_error")
            assert backend.in_flight == 1
            gate.set()

    async def test_an_unknown_one_is_a_404(self, served):
        assert_error(await served.http.post(f"{URL}/resp_unknown/cancel"), 404, type="invalid_request_error")

    async def test_at_any_moment_of_its_life(self, backend, tmp_path):
        """Cancels come later and later: before it runs, before the backend answers, between tokens, at the end, after
        it."""
        backend.script(stall())  # The first does not end by itself, whatever the machine's speed; the last ones have.
        backend.default = chat(reasoning("Hm."), "a b c d", call("f"), delay_s=0.001)
        statuses = set()
        async with router_with(backend, file=tmp_path / "router.db") as running:
            for number in range(40):
                async with open_stream(running.http, background=True) as events:
                    response_id = (await events.until("response.created"))["response"]["id"]
                    if number < 38:
                        await asyncio.sleep(number * 0.0007)
                    else:
                        await events.until("response.completed")
                    response = await cancel(running, response_id)
                    await events.rest()
                statuses.add(response["status"])
                check_stream(events.seen)
                assert events.seen[-1]["response"] == {k: v for k, v in response.items() if k != "output_text"}
                assert await rejoin(running.http, response_id) == events.seen
            assert statuses == {"cancelled", "completed"}, "the moments were not spread"
            await all_is_quiet(running, backend)

    @pytest.mark.parametrize("verb", ["cancel", "delete"])
    async def test_in_the_moment_in_which_its_end_is_written(self, backend, tmp_path, verb):
        """The last commit waits for another process's write lock; the stream is a whole one all the same."""
        gate = asyncio.Event()
        backend.script(chat("Hello", then=steps(until(gate), chunk({}, finish_reason="stop"), DONE)))
        async with router_with(backend, file=tmp_path / "router.db") as running:
            async with open_stream(running.http, background=True) as events:
                await events.until("response.output_text.delta")
                response_id = events.seen[0]["response"]["id"]
                lock = sqlite3.connect(tmp_path / "router.db", isolation_level=None)
                lock.execute("BEGIN IMMEDIATE")
                gate.set()
                await backend.wait_for(lambda b: b.in_flight == 0)
                turn_of = running.app.state.tasks.get(response_id)._turn
                await eventually(lambda: turn_of.builder.ended, "the backend's answer is read")
                method, path = ("DELETE", "") if verb == "delete" else ("POST", "/cancel")
                asked = asyncio.create_task(running.http.request(method, f"{URL}/{response_id}{path}"))
                await asyncio.sleep(0.05)
                lock.execute("ROLLBACK")
                lock.close()
                answer = await asked
                assert answer.status_code == 200, answer.text
                check_stream(await events.rest())
            if verb == "cancel":
                assert answer.json()["status"] == events.seen[-1]["response"]["status"]
                assert await rejoin(running.http, response_id) == events.seen


class TestFollowing:
    async def test_its_events_are_a_stream_like_any_other(self, served, backend):
        backend.script(chat(reasoning("Hm."), "Hello", call("f", {"x": 1})))
        events = await stream(served.http, background=True)
        check_stream(events)
        assert [event["type"] for event in events[:3]] == [
            "response.created",
            "response.queued",
            "response.in_progress",
        ]
        assert events[0]["response"]["status"] == "queued"
        assert events[-1]["response"]["status"] == "completed"

    @pytest.mark.parametrize("kind", ["openai-chat", "openai"])
    async def test_a_client_leaves_the_turn_goes_on_and_whoever_joins_sees_the_same(self, backend, kind):
        gate, answer = asyncio.Event(), native if kind == "openai" else chat
        parts = ("One two three", call("f", {"x": 1}))
        async with router_with(backend, kind) as running:
            backend.script(steps(until(gate), answer(*parts, delay_s=0.01)))
            async with open_stream(running.http, background=True) as events:
                response_id = (await events.until("response.queued"))["response"]["id"]
            async with follow(running.http, response_id) as first:
                await first.until("response.in_progress")
                gate.set()
                await first.until("response.output_text.delta")
                in_the_middle = [asyncio.create_task(rejoin(running.http, response_id, n)) for n in (-1, 0, 2, 5)]
                whole = await first.rest()
            check_stream(whole, prefixes=kind != "openai")
            assert [event["sequence_number"] for event in whole] == list(range(len(whole)))
            for after, joined in zip((-1, 0, 2, 5), in_the_middle, strict=True):
                assert await joined == whole[after + 1 :], f"while it ran, after {after}"
            for after in (-1, 0, 7, len(whole) - 2, len(whole) - 1, len(whole) + 50):
                assert await rejoin(running.http, response_id, after) == whole[after + 1 :], (
                    f"at the end, after {after}"
                )
            assert backend.aborts == 0
            assert whole[-1]["response"] == {
                key: value for key, value in (await retrieve(running.http, response_id)).items() if key != "output_text"
            }

    @pytest.mark.parametrize("kind", ["openai-chat", "openai"])
    async def test_one_that_was_not_streamed_can_be_followed_too(self, backend, kind):
        gate, answer = asyncio.Event(), native if kind == "openai" else chat
        async with router_with(backend, kind) as running:
            backend.script(steps(until(gate), answer("Hello", call("f"))))
            response_id = await start(running)
            await backend.wait_for(lambda b: b.in_flight == 1)
            async with follow(running.http, response_id) as events:
                await events.until("response.in_progress")
                gate.set()
                check_stream(await events.rest(), prefixes=kind != "openai")
            check_stream(await rejoin(running.http, response_id), prefixes=kind != "openai")

    async def test_a_failure_in_the_middle_is_followed_to_its_end(self, served, backend):
        backend.script(chat("Hello", then=sse_error()), http_error(400, "no"))
        for _ in range(2):
            events = await stream(served.http, background=True)
            check_stream(events)
            assert [event["type"] for event in events[-2:]] == ["error", "response.failed"]
            assert await rejoin(served.http, events[0]["response"]["id"]) == events

    async def test_a_cancelled_one_ends_the_streams_of_those_who_follow(self, served, backend):
        backend.script(chat("Hello", then=stall()))
        async with open_stream(served.http, background=True) as events:
            await events.until("response.output_text.delta")
            response_id = events.seen[0]["response"]["id"]
            await cancel(served, response_id)
            check_stream(await events.rest())
        assert events.seen[-1]["response"]["status"] == "cancelled"
        assert await rejoin(served.http, response_id) == events.seen

    async def test_one_that_was_streamed_in_the_foreground_is_replayed(self, served, backend):
        backend.script(chat(reasoning("Hm."), "Hello there", call("f", {"x": 1})))
        streamed = await stream(served.http)
        replayed = await rejoin(served.http, streamed[0]["response"]["id"])
        check_stream(replayed)
        assert replayed[-1]["response"] == streamed[-1]["response"]

    async def test_one_that_runs_in_the_foreground_cannot_be_joined(self, served, backend):
        backend.script(chat("Hello", then=stall()))
        async with open_stream(served.http) as events:
            await events.until("response.output_text.delta")
            response_id = events.seen[0]["response"]["id"]
            assert (await retrieve(served.http, response_id))["status"] == "in_progress"
            assert_error(await served.http.get(f"{URL}/{response_id}?stream=true"), 400, param="stream")


class TestDelete:
    @pytest.mark.parametrize("state", ["queued", "running"])
    async def test_it_stops_and_stays_deleted(self, backend, state):
        backend.default = stall()
        async with router_with(backend, at_once=2 if state == "running" else 1) as running:
            other = await start(running)
            async with open_stream(running.http, background=True) as events:
                response_id = (await events.until("response.created"))["response"]["id"]
                await backend.wait_for(lambda b: b.in_flight == (2 if state == "running" else 1))
                answer = await running.http.delete(f"{URL}/{response_id}")
                assert answer.json() == {"id": response_id, "object": "response.deleted", "deleted": True}
                check_stream(await events.rest())
            assert_error(await running.http.get(f"{URL}/{response_id}"), 404)
            assert_error(await running.http.get(f"{URL}/{response_id}?stream=true"), 404)
            assert_error(await running.http.delete(f"{URL}/{response_id}"), 404)
            await cancel(running, other)
            await all_is_quiet(running, backend)
            assert_error(await running.http.get(f"{URL}/{response_id}"), 404)

    async def test_at_the_moment_of_its_last_event(self, backend, tmp_path):
        async with router_with(backend, file=tmp_path / "router.db") as running:
            for _ in range(10):
                async with open_stream(running.http, background=True) as events:
                    await events.until("response.completed")
                    response_id = events.seen[0]["response"]["id"]
                    assert (await running.http.delete(f"{URL}/{response_id}")).status_code == 200
                assert_error(await running.http.get(f"{URL}/{response_id}"), 404)
                assert_error(await running.http.get(f"{URL}/{response_id}?stream=true"), 404)


class TestShutdown:
    async def test_running_ones_get_time_to_end(self, backend, tmp_path):
        gate, file = asyncio.Event(), tmp_path / "router.db"
        backend.script(steps(until(gate), chat("Hello")))
        async with router_with(backend, file=file, drain_s=5) as running:
            response_id = await start(running)
            await backend.wait_for(lambda b: b.in_flight == 1)
            tasks = running.app.state.tasks
            opening = asyncio.create_task(_open_when(lambda: tasks._draining, gate))
        await opening
        async with router_with(backend, file=file) as running:
            response = await retrieve(running.http, response_id)
            assert (response["status"], text_of(response)) == ("completed", "Hello")

    async def test_the_rest_is_marked_as_failed(self, backend, tmp_path):
        file = tmp_path / "router.db"
        backend.default = chat("Hello", then=stall())
        async with router_with(backend, file=file, at_once=2, drain_s=0.01) as running:
            ids = [await start(running) for _ in range(2)]
            await backend.wait_for(lambda b: b.in_flight == 2)
            queued = [await start(running) for _ in range(2)]
        await backend.wait_for(lambda b: b.aborts == 2)
        marked = dict.fromkeys(ids, "failed") | dict.fromkeys(queued, "queued")
        assert dict(_rows(file)) == marked, "they were not marked before the end"
        assert len(backend.turns) == 2, "a queued one was begun in the shutdown"
        async with router_with(backend, file=file) as running:
            await backend.wait_for(lambda b: len(b.turns) == 4)
            for response_id in ids:
                response = await retrieve(running.http, response_id)
                assert response["status"] == "failed"
                assert "stopped" in response["error"]["message"]
        assert len(backend.turns) == 4, "one that had begun was begun again"

    async def test_whoever_follows_sees_the_end_too(self, backend, tmp_path):
        file = tmp_path / "router.db"
        backend.script(chat("Hello", then=steps(pause(0.3), stall())))
        async with router_with(backend, file=file, drain_s=0) as running:
            async with open_stream(running.http, background=True) as events:
                await events.until("response.output_text.delta")
            response_id = events.seen[0]["response"]["id"]
        async with router_with(backend, file=file) as running:
            replayed = await rejoin(running.http, response_id)
            check_stream(replayed)
            assert replayed[: len(events.seen)] == events.seen
            assert [event["type"] for event in replayed[-2:]] == ["error", "response.failed"]


async def _open_when(condition: Any, gate: asyncio.Event) -> None:
    await eventually(condition, "the router shuts down")
    gate.set()
