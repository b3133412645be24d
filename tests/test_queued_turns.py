"""Background turns that wait when the router stops, however it does: they run after the next start."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.conftest import Running, running_router
from tests.fake_backend import FakeBackend, chat, stall, steps, until
from tests.keyed import as_key, key, keyed_router
from tests.stream_grammar import check_stream
from tests.test_restart import router_process
from tests.turns import SOON_S, URL, Json, create, ended, eventually, follow, has_status, open_stream, retrieve, text_of

QUEUED = 24


def router_on(backend: FakeBackend, file: Path, **background: Any) -> AbstractAsyncContextManager[Running]:
    return running_router(
        endpoints=[{"url": f"{backend.url}/v1", "kind": "openai-chat"}],
        database={"url": f"sqlite:///{file}"},
        background={"max_concurrent": 1, "drain_s": 0, **background},
    )


def asked(backend: FakeBackend) -> list[str]:
    """What the backend was asked, in order: the last message of each turn."""
    return [turn.json["messages"][-1]["content"] for turn in backend.turns]


@pytest.mark.heavy
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGKILL])
async def test_all_that_waited_run_after_the_start_in_their_order(
    stop: signal.Signals, workers: int, backend: FakeBackend, tmp_path: Path
) -> None:
    settings = {
        "endpoints": [{"url": f"{backend.url}/v1", "kind": "openai-chat"}],
        "database": {"url": f"sqlite:///{tmp_path}/router.db"},
        "background": {"max_concurrent": 1, "max_queued": QUEUED * workers, "drain_s": 0},
        "workers": workers,
    }
    start = ("serve.py", "--one-socket") if workers > 1 else ("serve.py",)
    backend.default = stall()
    names = [str(number) for number in range(QUEUED)]
    async with router_process(settings, tmp_path, *start) as (http, process):
        running = [(await create(http, background=True))["id"]]
        await backend.wait_for(lambda b: b.in_flight == 1)
        while len(running) < workers:  # Until each of them is at work, so that all the others wait.
            async with httpx2.AsyncClient(base_url=http.base_url, timeout=None) as other:
                new = (await create(other, background=True))["id"]
            await asyncio.sleep(0.1)
            if (await retrieve(http, new))["status"] == "in_progress":
                running.append(new)
            else:
                await http.delete(f"{URL}/{new}")
        queued = [(await create(http, background=True, input=name))["id"] for name in names]
        assert (await retrieve(http, queued[-1]))["status"] == "queued"
        process.send_signal(stop)
        await asyncio.wait_for(process.wait(), SOON_S)
    await backend.wait_for(lambda b: b.in_flight == 0)
    backend.requests.clear()

    backend.default = chat("Done.")
    # More than may wait are no less accepted.
    settings["background"]["max_queued"] = 1
    async with router_process(settings, tmp_path, *start) as (http, process):
        for response_id in queued:
            assert text_of(await ended(http, response_id)) == "Done."
        assert asked(backend) == names
        for response_id in running:
            response = await retrieve(http, response_id)
            assert (response["status"], "stopped" in response["error"]["message"]) == ("failed", True)
        process.terminate()
        await asyncio.wait_for(process.wait(), SOON_S)


async def test_its_stream_can_be_followed_from_where_it_was(backend: FakeBackend, tmp_path: Path) -> None:
    gate, file = asyncio.Event(), tmp_path / "router.db"
    backend.script(stall(), stall(), steps(until(gate), chat("Hello")))
    async with router_on(backend, file) as running:
        await create(running.http, background=True)
        first = await create(running.http, background=True)
        async with open_stream(running.http, background=True, metadata={"a": "b"}) as events:
            queued = (await events.until("response.queued"))["response"]
            running.app.state.tasks.get(queued["id"]).still_here()
            await events.until("keepalive")
            seen = list(events.seen)
    async with router_on(backend, file) as running, follow(running.http, queued["id"], len(seen) - 1) as events:
        await running.http.post(f"{URL}/{first['id']}/cancel")
        assert (await events.until("response.in_progress"))["sequence_number"] == len(seen)
        gate.set()
        whole = [*seen, *await events.rest()]
        check_stream(whole)
        assert text_of(whole[-1]["response"]) == "Hello"
        for key in ("id", "created_at", "metadata"):
            assert whole[-1]["response"][key] == queued[key]
        (item,) = (await running.http.get(f"{URL}/{queued['id']}/input_items")).json()["data"]
        assert item["content"][0]["text"] == "Say something."


async def test_it_goes_on_with_its_conversation_and_can_be_continued(backend: FakeBackend, tmp_path: Path) -> None:
    file = tmp_path / "router.db"
    backend.script(chat("One."), stall(), chat("Two."), chat("Three."))
    async with router_on(backend, file) as running:
        first = await create(running.http, input="1")
        await create(running.http, background=True)
        await backend.wait_for(lambda b: b.in_flight == 1)
        queued = await create(running.http, input="2", background=True, previous_response_id=first["id"])
    async with router_on(backend, file) as running:
        await ended(running.http, queued["id"])
        await create(running.http, input="3", previous_response_id=queued["id"])
    assert [m["content"] for m in backend.turns[-1].json["messages"]] == ["1", "One.", "2", "Two.", "3"]


@pytest.mark.parametrize("what", ["cancel", "delete"])
async def test_one_that_is_not_wanted_any_more_stays_so(what: str, backend: FakeBackend, tmp_path: Path) -> None:
    file = tmp_path / "router.db"
    backend.script(stall(), stall(), chat("Hello"))
    async with router_on(backend, file) as running:
        ids = [(await create(running.http, background=True))["id"] for _ in range(4)]
    async with router_on(backend, file) as running:
        await backend.wait_for(lambda b: len(b.turns) == 2)
        for response_id in (ids[2], ids[1]):  # One that waits again, and one that runs again.
            if what == "cancel":
                answer = await running.http.post(f"{URL}/{response_id}/cancel")
                assert answer.json()["status"] == "cancelled"
            else:
                assert (await running.http.delete(f"{URL}/{response_id}")).status_code == 200
        assert text_of(await ended(running.http, ids[3])) == "Hello"
        for response_id in ids[1:3]:
            answer = await running.http.get(f"{URL}/{response_id}")
            assert answer.status_code == 404 if what == "delete" else answer.json()["status"] == "cancelled"
    assert len(backend.turns) == 3


@pytest.mark.parametrize("status", ["cancelled", None])
async def test_one_that_somebody_ended_before_its_turn_is_not_begun(
    status: str | None, backend: FakeBackend, tmp_path: Path
) -> None:
    """By another process, which did not know yet who runs it."""
    file = tmp_path / "router.db"
    backend.script(stall(), stall())
    async with router_on(backend, file) as running:
        ids = [(await create(running.http, background=True))["id"] for _ in range(3)]
    async with router_on(backend, file) as running:
        await backend.wait_for(lambda b: len(b.turns) == 2)
        db = running.app.state.db
        if status:
            row = await db.get_response(ids[2])
            await db.update_response(ids[2], {**row["response"], "status": status})
        else:
            await db.delete_response(ids[2])
        async with follow(running.http, ids[2]) as events:
            await running.http.post(f"{URL}/{ids[1]}/cancel")
            assert (await events.rest())[-1]["response"]["status"] == "cancelled"
        answer = await running.http.get(f"{URL}/{ids[2]}")
        assert answer.json()["status"] == status if status else answer.status_code == 404
    assert len(backend.turns) == 2


@pytest.mark.parametrize("reruns", [True, False])
async def test_those_that_had_begun_run_again_where_the_settings_say_so(
    reruns: bool, backend: FakeBackend, tmp_path: Path
) -> None:
    file = tmp_path / "router.db"
    backend.script(chat("Half a", then=stall()), chat("Whole."), chat("Next."))
    async with router_on(backend, file, rerun=reruns) as running:
        async with open_stream(running.http, background=True) as events:
            await events.until("response.output_text.delta")
            begun = events.seen[0]["response"]["id"]
        waits = (await create(running.http, background=True))["id"]
    async with router_on(backend, file, rerun=reruns) as running:
        last = await ended(running.http, waits)
        assert text_of(last) == ("Next." if reruns else "Whole.")
        response = await retrieve(running.http, begun)
        assert response["status"] == ("completed" if reruns else "failed")
        if reruns:
            assert text_of(response) == "Whole."
            assert response["nomyo"]["model"] == "test-model"
            async with follow(running.http, begun) as events:
                check_stream(await events.rest())


@pytest.mark.parametrize("why", ["key", "parent"])
async def test_one_that_cannot_run_any_more_fails_and_says_why(why: str, backend: FakeBackend, tmp_path: Path) -> None:
    file = tmp_path / "router.db"
    backend.script(chat("One."), stall(), chat("Other."))
    async with router_on(backend, file) as running:
        parent = await create(running.http)
        await create(running.http, background=True)
        secret: Json = {"extra_headers": {"Cookie": "x"}} if why == "key" else {}
        queued = await create(running.http, background=True, previous_response_id=parent["id"], **secret)
        other = await create(running.http, background=True)
        if why == "parent":
            await running.http.delete(f"{URL}/{parent['id']}")
        else:
            db = running.app.state.db
            await db._queue.write(("UPDATE settings SET value = ?", ("another",)))
    async with router_on(backend, file) as running:
        assert text_of(await ended(running.http, other["id"])) == "Other."
        response = await retrieve(running.http, queued["id"])
        assert response["status"] == "failed"
        assert ("another key" if why == "key" else parent["id"]) in response["error"]["message"]


async def test_what_runs_again_may_use_what_its_key_may(backend: FakeBackend, tmp_path: Path) -> None:
    """Also where that has changed meanwhile, and of a key that is gone nothing."""
    settings: Json = {
        "endpoints": [{"url": f"{backend.url}/v1", "kind": "openai-chat", "aliases": {"other": "test-model"}}],
        "database": {"url": f"sqlite:///{tmp_path}/router.db"},
        "background": {"max_concurrent": 1, "drain_s": 0},
    }
    backend.default = stall()
    keys = [key("ann"), key("bob"), key("eve")]
    async with keyed_router(backend, *keys, **settings) as running:
        await create(running.http, background=True)
        await backend.wait_for(lambda b: b.in_flight == 1)
        queued = {}
        for name in ("ann", "bob", "eve"):
            async with as_key(running, name) as http:
                queued[name] = (await create(http, background=True))["id"]
    backend.default = chat("Done.")
    keys = [key("ann", models=["test*"]), key("bob", models=["another"]), key("eve2", owner="eve")]
    async with keyed_router(backend, *keys, **settings) as running:
        for name, who, status in (("ann", "ann", "completed"), ("bob", "bob", "failed"), ("eve", "eve2", "failed")):
            async with as_key(running, who) as http:
                response = await ended(http, queued[name])
                assert response["status"] == status
                assert status == "completed" or "does not exist" in response["error"]["message"]


async def test_a_dead_process_leaves_what_waits_in_it_to_its_heir(backend: FakeBackend, tmp_path: Path) -> None:
    from tests.cluster.in_process import InProcess, Shared
    from tests.cluster.test_orphans import process

    backend.default = stall()
    settings = {
        "endpoints": [{"url": f"{backend.url}/v1", "kind": "openai-chat"}],
        "database": {"url": f"sqlite:///{tmp_path}/router.db"},
        "background": {"drain_s": 0, "max_concurrent": 1},
    }
    shared = Shared()
    lives, doomed, heir = InProcess(shared), InProcess(shared), InProcess(shared)
    async with process(settings, lives) as here, process(settings, doomed) as there:
        for running in (here, there):
            await create(running.http, background=True, input="runs")
        await backend.wait_for(lambda b: b.in_flight == 2)
        kept = (await create(here.http, background=True, input="kept"))["id"]
        lost = (await create(there.http, background=True, input="lost"))["id"]
        doomed.die()
        async with process(settings, heir) as new:
            await has_status(here.http, lost, "in_progress")
            await eventually(lambda: new.app.state.tasks.get(lost) is not None, "the heir runs it")
            assert new.app.state.tasks.get(kept) is None
            assert (await retrieve(new.http, kept))["status"] == "queued"
    assert asked(backend).count("lost") == 1
