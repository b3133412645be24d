"""The feed of the live page: how the service stands, as long as somebody looks who may."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx2
import pytest

import router
from api.page.snapshots import Snapshots
from backends.fleet.routing import Routing
from core.broadcast import Broadcast
from core.config_checks import parse_config
from tests.cluster.in_process import InProcess, Shared
from tests.conftest import Running, running_router
from tests.fake_backend import FakeBackend, chat, http_error, say, stall
from tests.keyed import ADMIN, as_key, keyed_router, with_secret
from tests.test_page_session import sign_in
from tests.turns import URL, assert_error, create, eventually, soon, stream, turn

FEED = "/api/page/feed"


class Frames:
    """What a page gets: the newest of each kind, and all turns."""

    def __init__(self, pieces: AsyncIterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""
        self.fleets: list[Any] = []
        self.nows: list[Any] = []
        self.turns: list[Any] = []
        self.ended = False

    async def next(self) -> None:
        """Reads until the next `now`, or the end."""
        known = len(self.nows)
        while len(self.nows) == known and not self.ended:
            piece = await anext(self._pieces, None)
            if piece is None:
                self.ended = True
                return
            *frames, self._rest = (self._rest + piece).split(b"\n\n")
            for frame in frames:
                self._take(frame.decode())

    def _take(self, frame: str) -> None:
        fields = dict(line.split(": ", 1) for line in frame.splitlines())
        data = json.loads(fields.get("data", "null"))
        match fields.get("event"):
            case "fleet":
                self.fleets.append(data)
            case "now":
                self.nows.append(data)
            case "turns":
                self.turns += data
            case "bye":
                self.ended = True

    async def until(self, fits: Any) -> Any:
        """The next `now` that fits."""
        async with soon():
            while not (self.nows and fits(self.nows[-1])):
                assert not self.ended
                await self.next()
        return self.nows[-1]

    async def end(self) -> None:
        """Reads to the end."""
        async with soon():
            while not self.ended:
                await self.next()


@asynccontextmanager
async def looking(http: httpx2.AsyncClient, **headers: str) -> AsyncIterator[Frames]:
    async with http.stream("GET", FEED, headers=headers) as answer:
        assert answer.status_code == 200, (await answer.aread()).decode()
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        frames = Frames(answer.aiter_bytes())
        await frames.next()
        yield frames


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.PAGE_EVERY_S", 0.01)


class TestTheFeed:
    async def test_begins_with_all_and_goes_on_with_what_moves(self, backend: FakeBackend) -> None:
        backend.script(chat("Hel", then=stall()))
        endpoint = {"url": f"{backend.url}/v1", "kind": "openai-chat", "name": "gpu", "max_concurrent": 3}
        async with running_router(endpoints=[endpoint]) as running, looking(running.http) as frames:
            ((fleet),) = frames.fleets
            (described,) = fleet["endpoints"]
            assert (described["name"], described["state"], described["kind"]) == ("gpu", "up", "openai-chat")
            assert [model["name"] for model in described["models"]] == ["test-model"]
            idle = {"in_flight": 0, "max_concurrent": 3, "outcomes": {}}
            assert frames.nows[0]["endpoints"] == {"gpu": idle}
            assert frames.nows[0]["processes"] == 1
            async with running.http.stream("POST", URL, json=turn(stream=True)):
                now = await frames.until(lambda now: now["endpoints"]["gpu"]["in_flight"] == 1)
                assert now["running_total"] == 1
            now = await frames.until(lambda now: now["endpoints"]["gpu"]["in_flight"] == 0)
            assert len(frames.fleets) == 1, "nothing of it has changed"
            await running.http.post("/api/endpoints/gpu/drain")
            await frames.until(lambda _: frames.fleets[-1]["endpoints"][0]["state"] == "draining")
            assert len(frames.fleets) == 2

    async def test_a_server_that_dies_is_seen_dying(self, backend: FakeBackend) -> None:
        endpoints = [{"url": f"{backend.url}/v1", "kind": "openai-chat", "name": "gpu"}]
        refreshing = running_router(endpoints=endpoints, models_refresh_s=0.02)
        async with refreshing as running, looking(running.http) as frames:
            await backend.stop()
            await frames.until(lambda _: frames.fleets[-1]["endpoints"][0]["state"] == "down")
            assert "connect" in frames.fleets[-1]["endpoints"][0]["error"].lower()

    async def test_counts_what_waits_and_runs_in_the_background(self, backend: FakeBackend) -> None:
        backend.script(chat("Hel", then=stall()))
        endpoint = {"url": f"{backend.url}/v1", "kind": "openai-chat", "max_concurrent": 1}
        async with running_router(endpoints=[endpoint]) as running, looking(running.http) as frames:
            for _ in range(2):
                await running.http.post(URL, json=turn(background=True))
            now = await frames.until(lambda now: now["queue"]["waiting"] == 1)
            assert now["background"] == {"running": 2, "queued": 0}
            assert now["queue"]["longest_wait_s"] > 0
            ((row),) = now["queue"]["first"]
            assert (row["model"], row["position"]) == ("test-model", 0)


class TestTurns:
    async def test_that_ended_before_somebody_looked_are_there_at_first(self, backend: FakeBackend) -> None:
        backend.script(say("Hello."))
        endpoint = {"url": f"{backend.url}/v1", "kind": "openai-chat", "name": "gpu"}
        async with running_router(endpoints=[endpoint]) as running:
            made = (await stream(running.http, input="a secret question"))[-1]["response"]
            async with looking(running.http) as frames:
                ((row),) = frames.turns
                assert row["id"] == made["id"]
                expected = {"model": "test-model", "endpoint": "gpu", "status": "completed", "door": "responses"}
                expected |= {"input": 7, "output": 3, "attempts": 1, "tries": [], "tools": [], "error": None}
                assert expected.items() <= row.items()
                assert 0 <= row["asked_ms"] <= row["answered_ms"] <= row["first_ms"] <= row["total_ms"]
                assert "secret" not in str(row)
                await create(running.http)
                await frames.until(lambda _: len(frames.turns) == 2)
                assert len({row["id"] for row in frames.turns}) == 2

    async def test_name_each_try_that_failed(self, backends_: list[FakeBackend]) -> None:
        backends_[0].default = http_error(503)
        endpoints = [
            {"url": f"{one.url}/v1", "kind": "openai-chat", "name": name, "priority": priority}
            for one, name, priority in zip(backends_, ("bad", "good"), (0, 1), strict=True)
        ]
        async with running_router(endpoints=endpoints) as running, looking(running.http) as frames:
            await create(running.http)
            await frames.until(lambda _: frames.turns)
            (row,) = frames.turns
            assert (row["status"], row["endpoint"], row["attempts"]) == ("completed", "good", 2)
            ((tried),) = row["tries"]
            assert (tried["endpoint"], tried["error"]) == ("bad", "backend_unreachable")

    async def test_that_run_are_there_while_they_do(self, backend: FakeBackend) -> None:
        backend.script(chat("Hel", then=stall()))
        endpoint = {"url": f"{backend.url}/v1", "kind": "openai-chat", "name": "gpu"}
        async with running_router(endpoints=[endpoint]) as running, looking(running.http) as frames:
            async with running.http.stream("POST", URL, json=turn(stream=True)):
                now = await frames.until(lambda now: now["running"])
                (row,) = now["running"]
                assert (row["model"], row["endpoint"], row["attempts"]) == ("test-model", "gpu", 1)
                assert abs(row["since"] - now["at"]) < 60
            now = await frames.until(lambda now: not now["running"])
            assert now["running_total"] == 0
            await frames.until(lambda _: frames.turns)
            assert frames.turns[0]["status"] == "cancelled"

    async def test_many_that_run_make_no_frame_longer(self, served: Running) -> None:
        pool = served.app.state.pool
        pool.asked = {Routing(model="m", endpoint="e", began_s=float(number)): None for number in range(1000)}
        async with looking(served.http) as frames:
            now = frames.nows[-1]
            assert now["running_total"] == 1000
            assert [round(row["since"] - now["running"][0]["since"]) for row in now["running"]] == [*range(50)]
        pool.asked = {}

    async def test_are_known_to_nobody_once_they_are_forgotten(self, served: Running) -> None:
        snapshots = Snapshots(served.app.state)
        for _ in range(3):
            await create(served.http)
            await snapshots.make()
        seen = [await snapshots.make() for _ in range(2)]
        assert len(seen[-1].turns) == 3
        assert b"event: turns" not in seen[-1].changes
        assert b'"knows_since":0.0' in seen[-1].now
        assert seen[-1].whole().count(b"event: turns") == 1

    async def test_that_were_too_many_are_known_to_be_missing(
        self, served: Running, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("api.page.snapshots.MOST_RECENT", 2)
        served.app.state.telemetry._recent = deque(maxlen=2)
        for _ in range(3):
            await create(served.http)
        async with looking(served.http) as frames:
            assert len(frames.turns) == 2
            assert round(frames.nows[-1]["knows_since"], 3) == frames.turns[0]["at"]


class TestWhileNobodyLooks:
    async def test_nothing_is_gathered_and_no_task_runs(self, served: Running) -> None:
        made: list[int] = []

        async def make() -> int:
            made.append(1)
            return len(made)

        page: Broadcast[int] = Broadcast(make, 0.001)
        before = asyncio.all_tasks()
        await create(served.http)
        assert not served.app.state.page_feed.is_followed
        one: list[int] = []
        other: list[int] = []
        with page.followed_by(one.append):
            with page.followed_by(lambda number: other.append(number)):
                await eventually(lambda: len(one) > 2 and len(other) > 2, "both are given it")
            await eventually(lambda: len(one) > len(other) + 2, "one still is")
        await eventually(lambda: asyncio.all_tasks() <= before | {asyncio.current_task()}, "the task has ended")
        count = len(made)
        await asyncio.sleep(0.02)
        assert len(made) == count

    async def test_a_page_that_is_closed_is_followed_by_nothing(self, served: Running) -> None:
        async with looking(served.http):
            assert served.app.state.page_feed.is_followed
        await eventually(lambda: not served.app.state.page_feed.is_followed, "nobody follows")


class TestWhoLooks:
    async def test_must_be_an_admin(self, backend: FakeBackend) -> None:
        async with keyed_router(backend, "user") as running:
            async with as_key(running, "user") as user, with_secret(running, "") as nobody:
                assert_error(await user.get(FEED), 403, code="insufficient_permissions")
                assert_error(await nobody.get(FEED), 401)
            async with looking(running.http) as frames:
                assert frames.nows

    async def test_sees_no_more_once_its_key_is_revoked(self, backend: FakeBackend) -> None:
        async with keyed_router(backend) as running, with_secret(running, "") as http:
            made = (await running.http.post("/api/keys", json={"name": "ann", "admin": True})).json()
            cookie = await sign_in(http, running, made["key"])
            async with looking(http, Cookie=cookie, **{"Sec-Fetch-Site": "same-origin"}) as frames:
                await frames.next()
                assert (await running.http.delete("/api/keys/ann")).status_code == 200
                await frames.end()
            assert_error(await http.get(FEED, headers={"Cookie": cookie}), 401)

    async def test_is_no_page_of_another_origin(self, backend: FakeBackend) -> None:
        async with keyed_router(backend) as running, with_secret(running, "") as http:
            cookie = await sign_in(http, running)
            for other in ({"Origin": "http://127.0.0.1:1"}, {"Sec-Fetch-Site": "same-site"}):
                assert_error(await http.get(FEED, headers={"Cookie": cookie, **other}), 401)


async def test_the_service_stops_with_the_page_open(backend: FakeBackend) -> None:
    async with keyed_router(backend) as running, with_secret(running, ADMIN) as http:
        async with http.stream("GET", FEED) as answer:
            frames = Frames(answer.aiter_bytes())
            await frames.next()
            running.app.state.stopping.begin(set())
            await frames.end()
        await eventually(lambda: not running.app.state.page_feed.is_followed, "nobody follows")


async def test_a_page_that_reads_slowly_is_given_all_again(served: Running) -> None:
    from api.page.feed import FeedStream, Follower
    from api.page.snapshots import Snapshot

    class Slow(FeedStream):
        def __init__(self) -> None:
            self.written: list[bytes] = []
            self.room = True

        def write(self, body: bytes) -> bool:
            self.written.append(body)
            return self.room

        def when_drained(self, call: Any) -> None:
            self.drained = call

    def made(number: int) -> Snapshot:
        return Snapshot(b"change %d" % number, b"fleet", [], b"now %d" % number)

    slow = Slow()
    follower = Follower(slow, lambda: True)
    follower.take(made(1))
    follower.take(made(2))
    slow.room = False
    follower.take(made(3))
    follower.take(made(4))
    slow.room = True
    slow.drained()
    follower.take(made(5))
    follower.take(made(6))
    whole = [made(number).whole() for number in (1, 5)]
    assert slow.written == [whole[0], b"change 2", b"change 3", whole[1], b"change 6"]


async def test_a_snapshot_that_fails_is_logged_and_the_next_one_comes(caplog: pytest.LogCaptureFixture) -> None:
    results = iter([ValueError("no"), 1])

    async def make() -> int:
        result = next(results, 2)
        if isinstance(result, Exception):
            raise result
        return result

    taken: list[int] = []
    with Broadcast(make, 0.001).followed_by(taken.append):
        await eventually(lambda: taken[:2] == [1, 2], "the next ones are given")
    assert "could not be gathered" in caplog.text


async def test_a_head_follows_nothing(served: Running) -> None:
    head = await served.http.head(FEED)
    assert (head.status_code, head.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert not served.app.state.page_feed.is_followed


async def test_what_a_process_knows_is_for_its_peers_alone(served: Running) -> None:
    assert_error(await served.http.get("/api/workers/page"), 404, code="unknown_url")


async def test_figures_are_those_of_all_processes(backend: FakeBackend, stack: AsyncExitStack) -> None:
    backend.script(chat("Hel", then=stall()), chat("Hel", then=stall()))
    backend.default = say("Hello.")
    shared = Shared()
    endpoint = {"url": f"{backend.url}/v1", "kind": "openai-chat", "name": "gpu", "max_concurrent": 2}
    clients = []
    for _ in range(2):
        settings = {"endpoints": [endpoint], "database": {"url": "sqlite://"}, "background": {"drain_s": 0.0}}
        app = router.create_app(parse_config(settings), cluster=InProcess(shared))
        await stack.enter_async_context(app.router.lifespan_context(app))
        transport = httpx2.ASGITransport(app)
        client = httpx2.AsyncClient(transport=transport, base_url="http://router", timeout=None)
        clients.append(await stack.enter_async_context(client))
    for client in (clients[0], clients[1], clients[1]):
        await client.post(URL, json=turn(background=True))
    await backend.wait_for(lambda b: len(b.turns) == 2)
    snapshots = Snapshots(app.state)

    async def now() -> dict[str, Any]:
        made = await snapshots.make()
        return json.loads(made.now.partition(b"data: ")[2])

    shown = await now()
    assert shown["processes"] == 2
    assert shown["endpoints"]["gpu"]["in_flight"] == shown["running_total"] == len(shown["running"]) == 2
    assert len({row["id"] for row in shown["running"]}) == 2
    assert shown["background"] == {"running": 3, "queued": 0}
    assert shown["queue"]["waiting"] == 1
    for client in clients:
        for row in (await client.get("/api/page/background")).json()["data"]:
            assert (await client.post(f"/api/page/responses/{row['id']}/cancel")).status_code == 200
    shown = await now()
    assert (shown["running_total"], shown["background"]["running"]) == (0, 0)
    turns = (await snapshots.make()).turns
    assert len(turns) == len({row["id"] for row in turns}) == 3
    assert "cancelled" in {row["status"] for row in turns}
