"""Two workers as their clients see them: many requests at once, each over a new connection, to whichever worker takes it; and what
becomes of those when a worker dies, the settings change, or all of it stops."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
import pytest_asyncio
import yaml

from db import Store
from tests.carried import TRIGGER, user
from tests.fake_backend import FakeBackend, Reply, chat, pause, stall, steps, until
from tests.stream_grammar import check_stream
from tests.test_restart import free_port
from tests.turns import (
    URL,
    Events,
    Json,
    assert_error,
    create,
    ended,
    eventually,
    follow,
    rejoin,
    retrieve,
    text_of,
    turn,
)

in_module = pytest.mark.asyncio(loop_scope="module")

ROOT = Path(__file__).parents[1]
KEY = "a key"
LIMIT = 3


class Crowd:
    """An answer that takes a moment, and knows how many were given at once."""

    def __init__(self, takes_s: float = 0.005) -> None:
        self._answer = steps(pause(takes_s), chat("Done."))
        self.now = self.most = 0

    async def __call__(self, reply: Reply) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await self._answer(reply)
        finally:
            self.now -= 1


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def backend() -> AsyncIterator[FakeBackend]:
    async with FakeBackend() as backend:
        yield backend


@dataclass
class Service:
    """`serve.py` with two workers, and a client with the key that opens a connection for each request."""

    process: asyncio.subprocess.Process
    folder: Path
    http: httpx2.AsyncClient

    @property
    def temporary(self) -> Path:
        return self.folder / "tmp"

    def workers(self) -> list[int]:
        """Their process ids."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(child) for child in children if "spawn_main" in command_of(int(child))]

    def write_settings(self, backend: FakeBackend, *, max_concurrent: int = LIMIT) -> None:
        endpoint = {
            "url": f"{backend.url}/v1",
            "kind": "openai-chat",
            "name": "one",
            "max_concurrent": max_concurrent,
        }
        settings = {
            "workers": 2,
            "api_key": KEY,
            "endpoints": [endpoint],
            "database": {"url": f"sqlite:///{self.folder}/router.db"},
            "background": {"max_concurrent": 100, "drain_s": 0.2},
        }
        (self.folder / "config.yaml").write_text(yaml.safe_dump(settings))

    async def use(self, backend: FakeBackend, *, max_concurrent: int) -> None:
        """Gives both workers another limit."""
        self.write_settings(backend, max_concurrent=max_concurrent)
        self.process.send_signal(signal.SIGHUP)

        async def all_know() -> bool:
            shown = await self.each("/api/endpoints")
            return all([e["max_concurrent"] for e in worker["endpoints"]] == [max_concurrent] for worker in shown)

        await eventually(all_know, "both workers have the new settings")

    async def each(self, path: str) -> list[Json]:
        """What each worker answers, asked at the doors that they have for each other."""
        answers = []
        for door in sorted(self.temporary.glob("nomyo-*/worker-*.sock")):
            transport = httpx2.AsyncHTTPTransport(uds=str(door))
            async with httpx2.AsyncClient(
                transport=transport, base_url="http://worker", headers=self.http.headers
            ) as http:
                answer = await http.get(path)
            assert answer.status_code == 200, answer.text
            answers.append(answer.json())
        return answers

    async def answered(self) -> list[int]:
        """How many requests each worker has had answered."""
        return [worker["outcomes"]["one"].get("answered", 0) for worker in await self.each("/api/workers/figures")]

    async def running(self) -> list[set[str]]:
        """The responses that each worker is working on."""
        return [set(worker["running"]) for worker in await self.each("/api/workers/figures")]

    def open_files(self) -> int:
        return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in self.workers())

    async def has_successor(self, pid: int) -> None:
        """Waits until another worker has taken the place of a killed one."""
        await eventually(lambda: pid not in self.workers() and len(self.workers()) == 2, f"{pid} is replaced", 10)
        await self.is_up()

    async def is_up(self) -> None:
        """Waits until both workers answer, and know the models."""

        async def knows_models() -> bool:
            assert self.process.returncode is None, (
                f"it ended with {self.process.returncode}: {(self.folder / 'log').read_text()}"
            )
            with suppress(httpx2.TransportError):
                return (
                    len(await self.each("/api/workers/figures")) == 2
                    and (await self.http.get("/v1/models")).json()["data"] != []
                )
            return False

        await eventually(knows_models, "both workers answer", 20)


def command_of(pid: int) -> str:
    """Empty for a process that is no more."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def environment_of(folder: Path) -> dict[str, str]:
    return {**os.environ, "ROUTER_CONFIG": str(folder / "config.yaml"), "TMPDIR": str(folder / "tmp")}


@asynccontextmanager
async def service(backend: FakeBackend, folder: Path) -> AsyncIterator[Service]:
    """The service, up and answering; killed at the end if it still runs."""
    (folder / "tmp").mkdir()
    port = free_port()
    command = [sys.executable, "serve.py", "--port", str(port), "--log-level", "error"]
    async with httpx2.AsyncClient(
        base_url=f"http://127.0.0.1:{port}",
        headers={"Authorization": f"Bearer {KEY}"},
        limits=httpx2.Limits(max_keepalive_connections=0),
        timeout=20,
        verify=False,
    ) as http:
        running = Service(None, folder, http)
        running.write_settings(backend)
        with (folder / "log").open("w") as log:
            running.process = await asyncio.create_subprocess_exec(
                *command, cwd=ROOT, env=environment_of(folder), stderr=log, stdout=log
            )
        pids: list[int] = []
        try:
            await running.is_up()
            pids = running.workers()
            yield running
        finally:
            if running.process.returncode is None:
                pids += running.workers()
                running.process.kill()
                await running.process.wait()
            for pid in pids:
                if "spawn_main" in command_of(pid):
                    os.kill(pid, signal.SIGKILL)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def both(backend: FakeBackend, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    """One service for all tests here."""
    async with service(backend, tmp_path_factory.mktemp("both")) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module", autouse=True)
async def nothing_goes_on(backend: FakeBackend, both: Service) -> AsyncIterator[None]:
    """Before and behind each test."""
    backend.default = chat("Hello.")
    backend.requests.clear()
    yield
    await backend.wait_for(lambda b: b.in_flight == 0)


async def ask_again_and_again(http: httpx2.AsyncClient, until: asyncio.Event) -> tuple[list[int], int]:
    """The statuses of the answers, and how many requests were lost."""
    statuses, lost = [], 0
    while not until.is_set():
        try:
            statuses.append((await http.post(URL, json=turn())).status_code)
        except httpx2.TransportError:
            lost += 1
    return statuses, lost


async def more_turns(backend: FakeBackend, number: int) -> None:
    """Waits until so many more requests have come."""
    enough = len(backend.turns) + number
    await backend.wait_for(lambda b: len(b.turns) >= enough, 10)


@in_module
async def test_both_workers_ask_for_the_key(both: Service) -> None:
    asked = [
        ("POST", URL),
        ("GET", f"{URL}/resp_1"),
        ("POST", f"{URL}/resp_1/cancel"),
        ("GET", "/v1/models"),
        ("GET", "/metrics"),
        ("POST", "/api/endpoints/one/drain"),
        ("GET", "/api/workers/figures"),
    ]
    for key in ("", "Bearer another"):
        for _ in range(4):
            for method, path in asked:
                answer = await both.http.request(method, path, json=turn(), headers={"Authorization": key})
                assert_error(answer, 401)
            assert (await both.http.get("/health", headers={"Authorization": key})).status_code == 200
    for _ in range(8):
        assert_error(await both.http.get("/api/workers/figures"), 404, code="unknown_url")


@in_module
@pytest.mark.parametrize("limit", [1, 3])
async def test_a_crowd_of_new_connections_is_answered_by_both_workers_within_the_limit(
    backend: FakeBackend, both: Service, limit: int
) -> None:
    await both.use(backend, max_concurrent=limit)
    before = await both.answered()
    # All that come at once may be taken by one worker.
    for _ in range(20):
        crowd = backend.default = Crowd()
        sent = len(backend.turns)
        answers = await asyncio.gather(*(both.http.post(URL, json=turn()) for _ in range(40)))
        assert [answer.status_code for answer in answers] == [200] * 40
        assert len(backend.turns) - sent == 40
        assert crowd.most == limit, "these are not the slots that there are"
        after = await both.answered()
        if all(now > then for now, then in zip(after, before, strict=True)):
            break
    else:
        raise AssertionError(f"one worker took everything: {before}, then {after}")


@in_module
async def test_what_one_worker_seals_both_can_open(backend: FakeBackend, both: Service) -> None:
    for _ in range(2):
        backend.script(chat("They spoke of boats."))
        sealed = (await create(both.http, input=[user("Boats!"), TRIGGER]))["output"]
        for _ in range(6):
            await create(both.http, input=[*sealed, user("Go on.")])
            assert "They spoke of boats." in str(backend.turns[-1].json["messages"])


@in_module
async def test_new_settings_reach_both_workers_and_no_request_fails(backend: FakeBackend, both: Service) -> None:
    await both.use(backend, max_concurrent=2)
    backend.default = Crowd()
    is_enough = asyncio.Event()
    asking = [asyncio.create_task(ask_again_and_again(both.http, is_enough)) for _ in range(8)]
    for limit in (5, 1, 3):
        await both.use(backend, max_concurrent=limit)
        await more_turns(backend, 10)  # Those of before have ended.
        crowd = backend.default = Crowd()
        await more_turns(backend, 20)
        assert crowd.most <= limit
    is_enough.set()
    for statuses, lost in await asyncio.gather(*asking):
        assert set(statuses) == {200}
        assert not lost
    assert len(backend.turns) > 90


@in_module
async def test_a_worker_that_is_killed_takes_along_no_more_than_it_had(backend: FakeBackend, both: Service) -> None:
    # Slow, so that the machine has time for the new worker.
    crowd = backend.default = Crowd(takes_s=0.03)
    await both.use(backend, max_concurrent=LIMIT)
    is_enough = asyncio.Event()
    asking = [asyncio.create_task(ask_again_and_again(both.http, is_enough)) for _ in range(8)]
    await more_turns(backend, 20)
    doomed = both.workers()[0]
    os.kill(doomed, signal.SIGKILL)
    await both.has_successor(doomed)
    await more_turns(backend, 20)
    is_enough.set()
    outcomes = await asyncio.gather(*asking)
    assert {status for statuses, _ in outcomes for status in statuses} == {200}
    assert sum(lost for _, lost in outcomes) <= 8, "new connections were lost, too"
    crowd.most = 0
    await asyncio.gather(*(create(both.http) for _ in range(20)))
    assert crowd.most == LIMIT, "slots are missing, or there are too many"


async def read_to_the_end(events: Events) -> bool:
    """Whether the stream was broken off. One that ends has told how the response has ended."""
    try:
        check_stream(await events.rest())
    except (httpx2.ReadError, httpx2.RemoteProtocolError):
        return True
    return False


@in_module
async def test_those_who_follow_what_a_killed_worker_ran_are_cut_off_and_the_others_are_told_the_end(
    backend: FakeBackend, both: Service
) -> None:
    go = asyncio.Event()
    backend.default = steps(until(go), chat("Whole."))
    await both.use(backend, max_concurrent=100)
    ids: list[str] = []
    while not all(running := await both.running()):
        ids.append((await create(both.http, background=True, stream=False))["id"])
        assert len(ids) < 60, f"one worker took everything: {running}"
    async with AsyncExitStack() as following:
        followers = [
            (response_id, await following.enter_async_context(follow(both.http, response_id)))
            for response_id in ids
            for _ in range(3)
        ]
        for _, events in followers:
            await events.until("response.in_progress")
        doomed = both.workers()[0]
        os.kill(doomed, signal.SIGKILL)
        await both.has_successor(doomed)

        failed: set[str] = set()

        async def have_failed() -> bool:
            failed.update([id for id in ids if (await retrieve(both.http, id))["status"] == "failed"])
            return failed in running

        await eventually(have_failed, "what one of the workers was running reads failed, and nothing else")
        lost, kept = sorted(running, key=lambda ids: ids != failed)
        go.set()
        for response_id in kept:
            assert text_of(await ended(both.http, response_id)) == "Whole."
        are_cut = {followed: await read_to_the_end(events) for followed, events in followers if followed in lost}
    assert all(are_cut.values()), "a stream ended as if it were whole"
    for response_id in ids:
        events = [await rejoin(both.http, response_id) for _ in range(4)]
        check_stream(events[0])
        assert events.count(events[0]) == 4, "the workers tell it differently"


@in_module
async def test_followers_that_leave_leave_no_connection_behind(backend: FakeBackend, both: Service) -> None:
    backend.default = stall()
    response_id = (await create(both.http, background=True))["id"]
    await backend.wait_for(lambda b: b.in_flight == 1)

    async def join_and_leave() -> None:
        async with follow(both.http, response_id) as events:
            await events.until("response.in_progress")

    await join_and_leave()
    before = both.open_files()
    for _ in range(4):
        await asyncio.gather(*(join_and_leave() for _ in range(6)))
    await eventually(lambda: both.open_files() <= before, "the connections are closed")
    assert (await both.http.post(f"{URL}/{response_id}/cancel")).json()["status"] == "cancelled"


@in_module
async def test_sigterm_lets_requests_end_and_leaves_nothing_behind(backend: FakeBackend, tmp_path: Path) -> None:
    go = asyncio.Event()

    async def answer(reply: Reply) -> None:
        await (stall() if "for ever" in str(reply.request.json) else steps(until(go), chat("Whole.")))(reply)

    backend.default = answer
    async with service(backend, tmp_path) as running:
        forever = (await create(running.http, input="for ever", background=True))["id"]
        asked = [asyncio.create_task(create(running.http)) for _ in range(2)]
        await backend.wait_for(lambda b: b.in_flight == 3)
        pids = running.workers()
        running.process.terminate()

        async def is_refused() -> bool:
            try:
                await running.http.get("/health", timeout=1)
            except httpx2.TransportError as error:
                return isinstance(error, httpx2.ConnectError)
            return False

        await eventually(is_refused, "who comes now is refused, and does not wait for nobody")
        go.set()
        assert [text_of(response) for response in await asyncio.gather(*asked)] == ["Whole."] * 2
        assert await asyncio.wait_for(running.process.wait(), 10) == 0
        assert not [pid for pid in pids if command_of(pid)], "a worker is left"
        assert list(running.temporary.iterdir()) == [], "a folder is left"
    store = Store(f"sqlite:///{tmp_path}/router.db")
    await store.open()
    try:
        row = await store.get_response(forever)
    finally:
        await store.close()
    assert row
    assert (row["status"], row["response"]["error"]["code"]) == ("failed", "server_error")


def test_a_service_that_cannot_start_ends_with_an_error_and_leaves_nothing_behind(tmp_path: Path) -> None:
    settings = {
        "workers": 2,
        "endpoints": [{"url": "http://127.0.0.1:9"}],
        "database": {"url": f"sqlite:///{tmp_path}"},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    (tmp_path / "tmp").mkdir()
    # The supervisor waits for a word of a worker that is dead already.
    code = "import serve; serve.OPTIONS['timeout_worker_healthcheck'] = 1; serve.main()"
    ended = subprocess.run(
        [sys.executable, "-c", code, "--port", str(free_port())],
        cwd=ROOT,
        env=environment_of(tmp_path),
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert ended.returncode == 3, ended.stderr
    assert "unable to open database file" in ended.stderr
    assert list((tmp_path / "tmp").iterdir()) == [], "a folder is left"
