"""Settings that change while the router runs: what is under way ends well, and what comes finds the new ones."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

import backends.fleet.pool
import router
from core import reloading
from core.config_file import load_config
from core.reloading import reload
from tests.conftest import Running, running_router
from tests.fake_backend import DONE, FakeBackend, call, chat, chunk, http_error, say, stall, steps, until
from tests.site import reply, running_site
from tests.test_pool import at, in_flight, waiting
from tests.test_restart import router_process
from tests.turns import URL, assert_error, create, eventually, open_stream, text_of, turn


class Settings:
    """A file of settings, and the router that was started with it."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.data: dict[str, Any] = {"models_refresh_s": 3600}
        self.running: Running

    def write(self, *endpoints: dict[str, Any], **settings: Any) -> None:
        """Endpoints, and whatever else shall be other than it was."""
        self.data |= settings
        if endpoints:
            self.data["endpoints"] = list(endpoints)
        self.file.write_text(yaml.safe_dump(self.data))

    async def change(self, *endpoints: dict[str, Any], **settings: Any) -> None:
        self.write(*endpoints, **settings)
        await reload(self.running.app.state)

    async def endpoints(self) -> dict[str, Any]:
        """/api/endpoints, by URL."""
        listed = (await self.running.http.get("/api/endpoints")).json()["endpoints"]
        return {endpoint["url"]: endpoint for endpoint in listed}


@pytest.fixture
async def settings(tmp_path: Path) -> Settings:
    return Settings(tmp_path / "config.yaml")


@asynccontextmanager
async def started(settings: Settings, *endpoints: dict[str, Any], **more: Any) -> AsyncIterator[Running]:
    """A router with these settings. It looks at the file only when a test asks for it."""
    settings.write(*endpoints, database={"url": "sqlite://"}, background={"drain_s": 0.2}, **more)
    async with running_router(**settings.data) as running:
        running.app.state.config_file = settings.file
        running.app.state.config = load_config(settings.file)
        settings.running = running
        yield running
        await eventually(lambda: running.in_flight() == 0, "no slot is taken")


@pytest.fixture
async def two(stack: AsyncExitStack) -> list[FakeBackend]:
    return [await stack.enter_async_context(FakeBackend()) for _ in range(2)]


async def test_a_web_search_goes_to_its_new_provider_within_its_new_limits(settings: Settings, two) -> None:
    rows = b'{"results":[{"url":"https://a.example/","title":"A"}]}'
    page = reply(b"It rains.", content_type="text/plain")
    async with running_site({"/search": reply(rows)}) as old, running_site({"/search": reply(rows), "/a": page}) as new:
        search = {"provider": "searxng", "url": old.url}
        async with started(settings, at(two[0]), web_search=search) as running:

            async def statuses() -> list[str]:
                calls = (call("web_search", {"query": "x"}), call("open_page", {"url": f"{new.url}/a"}))
                two[0].script(chat(*calls), chat("Done."))
                response = await create(running.http, tools=[{"type": "web_search"}])
                return [item["status"] for item in response["output"]]

            assert await statuses() == ["completed", "failed", "completed"], "no private address"
            await settings.change(web_search=search | {"url": new.url, "allow_private": True, "timeout_s": 5})
            assert await statuses() == ["completed"] * 3
            assert (old.asked, sorted(new.asked)) == (["/search"], ["/a", "/search"])


class TestEndpoints:
    async def test_one_that_is_added_gets_requests(self, settings, two):
        two[1].models = ["new"]
        async with started(settings, at(two[0])) as running:
            await settings.change(at(two[0]), at(two[1]))
            assert text_of(await create(running.http, model="new"))
            assert len(two[1].turns) == 1

    async def test_one_that_stays_keeps_what_it_knows(self, settings, two):
        async with started(settings, at(two[0])) as running:
            (endpoint,) = running.app.state.pool.endpoints.values()
            await create(running.http)
            listings = len(two[0].requests)
            await settings.change(at(two[0]), at(two[1]))
            assert endpoint in running.app.state.pool.endpoints.values()
            assert (await settings.endpoints())[endpoint.url]["outcomes"] == {"answered": 1}
            assert len(two[0].requests) == listings, "it was asked again"

    async def test_one_that_is_removed_ends_its_streams_and_is_gone(self, settings, two):
        gone, stays = two
        gate = asyncio.Event()
        gone.default = chat("Hello", then=steps(until(gate), say_the_rest))
        async with started(settings, at(gone), at(stays, priority=1)) as running:
            async with open_stream(running.http) as events:
                await events.until("response.output_text.delta")
                await settings.change(at(stays))
                assert (await settings.endpoints())[f"{gone.url}/v1"]["state"] == "leaving"
                for number in range(3):
                    await create(running.http, input=str(number))
                assert (len(gone.turns), len(stays.turns)) == (1, 3), "it got a request after it was removed"
                gate.set()
                last = (await events.rest())[-1]
            assert (last["type"], text_of(last["response"])) == ("response.completed", "Hello there")
            await eventually(lambda: len(running.app.state.pool.endpoints) == 1, "it is gone")

    async def test_one_that_is_removed_while_nobody_is_there_is_gone_at_once(self, settings, two):
        async with started(settings, *map(at, two)) as running:
            (client, _) = [endpoint.client for endpoint in running.app.state.pool.endpoints.values()]
            await settings.change(at(two[1]))
            assert list(await settings.endpoints()) == [f"{two[1].url}/v1"]
            assert client.connections == 0
            assert [task.get_name() for task in asyncio.all_tasks()].count(f"watch {two[0].url[7:]}") == 0

    async def test_one_that_changes_while_it_is_busy(self, settings, backend):
        """Its key and its limit: what runs goes on with the old ones, what comes has the new ones at once."""
        gate = asyncio.Event()
        backend.script(steps(until(gate), chat("The old one.")))
        async with started(settings, at(backend, api_key="old", max_concurrent=1)) as running:
            busy = asyncio.create_task(create(running.http))
            await backend.wait_for(lambda b: b.in_flight == 1)
            await settings.change(at(backend, api_key="new", max_concurrent=2))
            await create(running.http, input="With the new key.")
            keys = [request.headers["authorization"] for request in backend.turns]
            assert keys == ["Bearer old", "Bearer new"]
            gate.set()
            assert text_of(await busy) == "The old one."
            pool = running.app.state.pool
            await eventually(lambda: [e.max_concurrent for e in pool.endpoints.values()] == [2], "the old one is gone")
            assert in_flight(pool) == [0]

    async def test_one_that_changes_again_and_again_loses_nobody(self, settings, two):
        """A request finds its model at every moment, also within the two seconds in which nobody looks for it."""
        async with started(settings, *map(at, two)) as running:
            stop = asyncio.Event()
            answers: list[int] = []

            async def ask() -> None:
                while not stop.is_set():
                    answers.append((await running.http.post(URL, json=turn(store=False))).status_code)

            asking = [asyncio.create_task(ask()) for _ in range(6)]
            for number in range(20):
                await settings.change(at(two[0], max_concurrent=3 + number), *([at(two[1])] if number % 2 else []))
                await asyncio.sleep(0.01)
            await eventually(lambda: len(answers) > 20, "the requests go on")
            stop.set()
            await asyncio.gather(*asking)
            assert set(answers) == {200}, f"{len(answers)} answers, among them {set(answers)}"
            assert len(answers) > 20

    async def test_a_listing_that_is_slow_loses_nobody(self, settings, backend):
        async with started(settings, at(backend)) as running:
            backend.routes["GET /v1/models"] = stall()
            await settings.change(at(backend, max_concurrent=3))
            await create(running.http)

    async def test_a_wrong_key_that_is_set_right_is_seen_at_once(self, settings, backend):
        """Also while the listing that was asked for with the wrong one still hangs."""
        async with started(settings, at(backend, api_key="wrong")) as running:
            pool = running.app.state.pool
            (endpoint,) = pool.endpoints.values()
            listing, backend.routes["GET /v1/models"] = backend.routes["GET /v1/models"], stall()
            backend.models = ["another"]
            pool.endpoints.look_at(endpoint)
            await backend.wait_for(lambda b: b.requests[-1].outcome == "open")
            backend.routes["GET /v1/models"] = listing
            await settings.change(at(backend, api_key="right"))
            await eventually(lambda: "another" in pool.endpoints.models(), "the changed endpoint has been asked")

    async def test_who_waits_gets_the_new_slots(self, settings, backend):
        gate = asyncio.Event()
        backend.default = steps(until(gate), say("Hello"))
        async with started(settings, at(backend, max_concurrent=1)) as running:
            asked = [asyncio.create_task(create(running.http, input=str(number))) for number in range(6)]
            await waiting(running.app.state.pool, 5)
            await settings.change(at(backend, max_concurrent=8))
            await backend.wait_for(lambda b: b.in_flight == 6)
            gate.set()
            await asyncio.gather(*asked)

    async def test_what_is_drained_stays_so(self, settings, backend):
        async with started(settings, at(backend)) as running:
            await running.http.post(f"/api/endpoints/{backend.url[7:]}/drain")
            await settings.change(at(backend, max_concurrent=3))
            assert [endpoint["state"] for endpoint in (await settings.endpoints()).values()] == ["draining"]

    async def test_an_auto_endpoint_is_known_for_what_it_is_after_a_change(self, settings, backend):
        backend.models = ["llama3:latest"]
        async with started(settings, {"url": backend.url, "kind": "ollama"}) as running:
            await create(running.http, model="llama3")
            await settings.change({"url": backend.url, "kind": "auto", "max_concurrent": 3})
            await eventually(
                lambda: "llama3:latest" in running.app.state.pool.endpoints.models(), "its models are known"
            )
            await create(running.http, model="llama3:latest")


async def say_the_rest(reply: Any) -> None:
    await reply.write(chunk({"content": " there"}) + chunk({}, finish_reason="stop"))
    await reply.end(DONE)


class TestOtherSettings:
    async def test_the_routers_key(self, settings, backend):
        async with started(settings, at(backend)) as running:
            await create(running.http)
            await settings.change(api_key="secret")
            assert_error(await running.http.post(URL, json=turn()), 401, code="invalid_api_key")
            running.http.headers["Authorization"] = "Bearer secret"
            await create(running.http)

    async def test_the_queue(self, settings, backend):
        backend.default = stall()
        async with started(settings, at(backend, max_concurrent=1)) as running:
            busy = asyncio.create_task(running.http.post(URL, json=turn()))
            await backend.wait_for(lambda b: b.in_flight == 1)
            await settings.change(queue={"max": 0})
            assert_error(await running.http.post(URL, json=turn()), 429)
            busy.cancel()

    async def test_the_breaker(self, settings, two):
        two[0].default = http_error(500)
        async with started(settings, at(two[0], priority=-1), at(two[1])) as running:
            await settings.change(breaker={"failures": 1, "cooldown_s": 30})
            for number in range(3):
                await create(running.http, input=str(number))
            assert len(two[0].turns) == 1, "one failure opens it now"

    async def test_fallbacks(self, settings, backend):
        async with started(settings, at(backend)) as running:
            assert_error(await running.http.post(URL, json=turn(model="gpt-5")), 400, code="model_not_found")
            await settings.change(fallback_models={"gpt-5": ["test-model"]})
            await create(running.http, model="gpt-5")

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("database", {"url": "sqlite://", "retention_days": 1}),
            ("cache", {"max_entries": 7}),
            ("background", {"max_concurrent": 7}),
            ("images", {"max_mb": 1}),
            ("secret_key", "another"),
        ],
    )
    async def test_what_takes_a_restart_is_named(self, settings, backend, caplog, key, value):
        async with started(settings, at(backend)):
            with caplog.at_level(logging.WARNING, "nomyo.settings"):
                await settings.change(**{key: value})
            said = [record.getMessage() for record in caplog.records if record.name == "nomyo.settings"]
            assert said == [f"'{key}' has changed: that takes a restart"]

    async def test_nothing_new_changes_nothing(self, settings, backend, caplog):
        async with started(settings, at(backend)) as running:
            before = list(running.app.state.pool.endpoints.values())
            caplog.clear()
            with caplog.at_level(logging.INFO, "nomyo"):
                await settings.change()
            assert [record.getMessage() for record in caplog.records] == []
            assert list(running.app.state.pool.endpoints.values()) == before


class TestBrokenFiles:
    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("endpoints: [", "is not YAML"),
            ("", "must hold keys and values"),
            ("endpoints: null", "endpoints"),
            ("endpoints: [{url: 'http://a'}]\nqueue: {maxx: 1}", "queue.maxx"),
            ("endpoints: [{url: 'http://a', kind: olama}]", "did you mean 'ollama'?"),
            ("endpoints: [{url: 'http://a'}]\napi_key: !!int x", "is not YAML"),
            ("endpoints: [{url: 'http://a', api_key: '${NOT_SET_ANYWHERE}'}]", "NOT_SET_ANYWHERE"),
            (None, "cannot be read"),
        ],
    )
    async def test_the_old_settings_stay_and_the_reason_is_shown(self, settings, backend, caplog, text, says):
        async with started(settings, at(backend)) as running:
            before = running.app.state.config
            if text is None:
                settings.file.unlink()
            else:
                settings.file.write_text(text)
            await reload(running.app.state)
            assert running.app.state.config is before
            assert says in (await running.http.get("/api/endpoints")).json()["config_error"]
            assert [record.levelname for record in caplog.records if record.name == "nomyo.settings"] == ["ERROR"]
            await create(running.http)
            await settings.change(max_body_mb=1)
            assert (await running.http.get("/api/endpoints")).json()["config_error"] is None
            assert running.app.state.config.max_body_mb == 1


class TestTheFile:
    """The task that looks at it: in a server of its own, so that signals reach it."""

    async def test_it_is_read_again_when_it_changes(self, settings, two, monkeypatch):
        monkeypatch.setattr(reloading, "LOOK_EVERY_S", 0.02)
        settings.write(at(two[0]), database={"url": "sqlite://"})
        app = router.create_app(load_config(settings.file), settings.file)
        async with app.router.lifespan_context(app):
            pool = app.state.pool
            await asyncio.sleep(0.05)
            settings.write(at(two[1]))
            await eventually(lambda: list(pool.endpoints) == [f"{two[1].url}/v1"], "the new endpoint is there")
            # Broken, then replaced as editors do it: a new file in its place.
            settings.file.write_text("endpoints: 5")
            await eventually(lambda: app.state.config_error is not None, "the fault is seen")
            other = settings.file.with_suffix(".new")
            settings.data["endpoints"] = [at(two[0])]
            other.write_text(yaml.safe_dump(settings.data))
            other.replace(settings.file)
            await eventually(lambda: list(pool.endpoints) == [f"{two[0].url}/v1"], "the new file is taken")
            assert app.state.config_error is None

    async def test_a_fault_of_ours_does_not_end_it(self, settings, two, monkeypatch, caplog):
        monkeypatch.setattr(reloading, "LOOK_EVERY_S", 0.02)
        settings.write(at(two[0]), database={"url": "sqlite://"})
        app = router.create_app(load_config(settings.file), settings.file)
        async with app.router.lifespan_context(app):
            pool = app.state.pool
            with monkeypatch.context() as patch:

                async def broken(self: Any, config: Any) -> None:
                    raise RuntimeError("a fault of ours")

                patch.setattr(backends.fleet.pool.Pool, "reconfigure", broken)
                await asyncio.sleep(0.05)
                settings.write(at(two[1]))
                await eventually(lambda: "a fault of ours" in caplog.text, "it is in the log")
            settings.write(at(two[0]), at(two[1]))
            await eventually(lambda: len(pool.endpoints) == 2, "the next change is taken")

    async def test_sighup_reads_it_and_loses_no_request(self, two, tmp_path):
        data: dict[str, Any] = {
            "endpoints": [at(two[0])],
            "database": {"url": f"sqlite:///{tmp_path}/router.db"},
        }
        gate = asyncio.Event()
        two[0].script(steps(until(gate), chat("Hello")))
        async with router_process(data, tmp_path) as (http, process):
            busy = asyncio.create_task(create(http))
            await two[0].wait_for(lambda b: b.in_flight == 1)
            file = tmp_path / "config.yaml"
            written = file.stat()
            file.write_text(yaml.safe_dump({**data, "endpoints": [at(two[1])]}))
            # As if nothing had changed: only the signal is there.
            os.utime(file, ns=(written.st_atime_ns, written.st_mtime_ns))
            process.send_signal(signal.SIGHUP)

            async def is_new() -> bool:
                listed = (await http.get("/api/endpoints")).json()["endpoints"]
                return [e["state"] for e in listed if e["url"].startswith(two[1].url)] == ["up"]

            await eventually(is_new, "the new endpoint is there")
            await create(http)
            gate.set()
            assert text_of(await busy) == "Hello"
            assert (len(two[0].turns), len(two[1].turns)) == (1, 1)
            assert process.returncode is None
