"""Two workers as their clients see them: many requests at once, each over a new connection, to whichever worker takes
it; and what becomes of those when a worker dies, the settings change, or all of it stops."""

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
from typing import Any

import httpx2
import pytest
import pytest_asyncio
import yaml

from db import make_store
from tests.carried import TRIGGER, user
from tests.conftest import short_folder
from tests.fake_backend import FakeBackend, Reply, chat, pause, stall, steps, until
from tests.stream_grammar import check_stream
from tests.test_restart import free_port
from tests.turns import (
    SOON_S,
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

pytestmark = pytest.mark.heavy

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

    async def use(self, backend: FakeBackend, *, max_concurrent: int) -> None:
        """Gives both workers another limit."""
        write_settings(self.folder, backend, max_concurrent)
        self.process.send_signal(signal.SIGHUP)

        async def all_know() -> bool:
            shown = await self.each("/api/endpoints")
            return all([e["max_concurrent"] for e in worker["endpoints"]] == [max_concurrent] for worker in shown)

        await eventually(all_know, "both workers have the new settings")

    async def each(self, path: str) -> list[Json]:
        """What each worker answers, asked at its peer socket."""
        answers = []
        for peer in sorted(self.temporary.glob("nomyo-*/worker-*.sock")):
            async with client("http://worker", uds=str(peer)) as http:
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

    @asynccontextmanager
    async def alone(self, pid: int) -> AsyncIterator[None]:
        """In here one worker gets all new connections. Else it may be any of them, and the same one many times."""
        (other,) = set(self.workers()) - {pid}
        os.kill(other, signal.SIGSTOP)
        try:
            await eventually(lambda: ") T " in Path(f"/proc/{other}/stat").read_text(), "the other one has stopped")
            yield
        finally:
            os.kill(other, signal.SIGCONT)

    def open_files(self) -> int:
        return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in self.workers())

    async def has_successor(self, pid: int) -> None:
        """Waits until another worker has taken the place of a killed one."""
        await eventually(lambda: pid not in self.workers() and len(self.workers()) == 2, f"{pid} is replaced")
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

        await eventually(knows_models, "both workers answer")


def client(url: Any, *, kept_connections: int = 100, uds: str | None = None) -> httpx2.AsyncClient:
    """A client that has the key, and keeps so many connections for more requests."""
    limits = httpx2.Limits(max_keepalive_connections=kept_connections)
    return httpx2.AsyncClient(
        base_url=url,
        headers={"Authorization": f"Bearer {KEY}"},
        transport=httpx2.AsyncHTTPTransport(uds=uds, limits=limits, verify=False),
        timeout=None,
    )


def command_of(pid: int) -> str:
    """Empty for a process that is no more."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def write_settings(folder: Path, backend: FakeBackend, max_concurrent: int) -> None:
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
        "database": {"url": f"sqlite:///{folder}/router.db"},
        "background": {"max_concurrent": 100, "drain_s": 0.2},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))


def environment_of(folder: Path) -> dict[str, str]:
    return {**os.environ, "ROUTER_CONFIG": str(folder / "config.yaml"), "TMPDIR": str(folder / "tmp")}


@asynccontextmanager
async def service(backend: FakeBackend, folder: Path, *options: str) -> AsyncIterator[Service]:
    """The service, up and answering; killed at the end if it still runs. With `--one-socket` the worker that is not
    stopped gets all connections."""
    (folder / "tmp").mkdir()
    write_settings(folder, backend, LIMIT)
    port = free_port()
    command = [sys.executable, "serve.py", "--port", str(port), "--log-level", "error", *options]
    async with client(f"http://127.0.0.1:{port}", kept_connections=0) as http:
        with (folder / "log").open("w") as log:
            process = await asyncio.create_subprocess_exec(
                *command, cwd=ROOT, env=environment_of(folder), stderr=log, stdout=log
            )
        running = Service(process, folder, http)
        pids: list[int] = []
        try:
            await running.is_up()
            pids = running.workers()
            yield running
        finally:
            if process.returncode is None:
                pids += running.workers()
                process.kill()
                await process.wait()
            for pid in pids:
                if "spawn_main" in command_of(pid):
                    os.kill(pid, signal.SIGKILL)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def both(backend: FakeBackend) -> AsyncIterator[Service]:
    """One service for all tests here."""
    with short_folder() as folder:
        async with service(backend, folder, "--one-socket") as running:
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
    for pid in both.workers():
        async with both.alone(pid):
            for key in ("", "Bearer another"):
                for method, path in asked:
                    answer = await both.http.request(method, path, json=turn(), headers={"Authorization": key})
                    assert_error(answer, 401)
                assert (await both.http.get("/health", headers={"Authorization": key})).status_code == 200
            assert_error(await both.http.get("/api/workers/figures"), 404, code="unknown_url")


@in_module
@pytest.mark.parametrize("limit", [1, 3])
async def test_a_crowd_is_answered_by_both_workers_within_the_limit(
    backend: FakeBackend, both: Service, limit: int
) -> None:
    await both.use(backend, max_concurrent=limit)
    async with AsyncExitStack() as stack:
        crowd = backend.default = Crowd()
        clients = [await stack.enter_async_context(client(both.http.base_url)) for _ in range(2)]
        for http, pid in zip(clients, both.workers(), strict=True):
            async with both.alone(pid):
                await asyncio.gather(*(create(http) for _ in range(20)))
        before = await both.answered()
        # Over the connections that they have.
        await asyncio.gather(*(create(http) for http in clients * 20))
    new = [now - then for now, then in zip(await both.answered(), before, strict=True)]
    assert sum(new) == 40
    assert min(new) > 0, f"one worker took everything: {new}"
    assert crowd.most == limit, "these are not the slots that there are"
    assert len(backend.turns) == 80


@in_module
async def test_what_one_worker_seals_the_other_one_opens(backend: FakeBackend, both: Service) -> None:
    one, other = both.workers()
    for seals, opens in ((one, other), (other, one)):
        backend.script(chat("They spoke of boats."))
        async with both.alone(seals):
            sealed = (await create(both.http, input=[user("Boats!"), TRIGGER]))["output"]
        async with both.alone(opens):
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
    """Whether the stream was broken off. One that ends has described how the response has ended."""
    try:
        check_stream(await events.rest())
    except (httpx2.ReadError, httpx2.RemoteProtocolError):
        return True
    return False


@in_module
async def test_when_a_worker_dies_its_streams_break_off_and_what_the_other_one_runs_comes_to_its_end(
    backend: FakeBackend, both: Service
) -> None:
    go = asyncio.Event()
    backend.default = steps(until(go), chat("Whole."))
    await both.use(backend, max_concurrent=100)
    ids: list[str] = []
    for pid in both.workers():
        async with both.alone(pid):
            ids += [(await create(both.http, background=True))["id"] for _ in range(2)]
    running = await both.running()
    assert [len(of_worker) for of_worker in running] == [2, 2]
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
        # Those of the other one break off, too, where it was the dead one that passed them on.
        are_cut = [(followed in lost, await read_to_the_end(events)) for followed, events in followers]
    assert (True, False) not in are_cut, "a stream of the dead worker ended as if it were whole"
    for response_id in ids:
        events = [await rejoin(both.http, response_id) for _ in range(4)]
        check_stream(events[0])
        assert events.count(events[0]) == 4, "the workers give it differently"


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
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux spreads connections over the sockets at a port")
async def test_connections_are_spread_over_the_workers(backend: FakeBackend, short_path: Path) -> None:
    backend.default = chat("Hello.")
    async with service(backend, short_path, "--access-log", "--log-level", "info") as running:
        for _ in range(100):
            await create(running.http)
        assert min(await running.answered()) >= 20, "one worker gets nearly all"
        lines = (short_path / "log").read_text().splitlines()
    assert sum("door=responses" in line for line in lines) == 100, "each worker logs what it answers"
    assert not [line for line in lines if "door=api" in line], "what the workers ask each other is nobody's business"


@in_module
async def test_sigterm_lets_requests_end_and_leaves_nothing_behind(backend: FakeBackend, short_path: Path) -> None:
    go = asyncio.Event()

    async def answer(reply: Reply) -> None:
        await (stall() if "for ever" in str(reply.request.json) else steps(until(go), chat("Whole.")))(reply)

    backend.default = answer
    async with service(backend, short_path) as running:
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
        assert await asyncio.wait_for(running.process.wait(), SOON_S) == 0
        assert not [pid for pid in pids if command_of(pid)], "a worker is left"
        assert list(running.temporary.iterdir()) == [], "a folder is left"
    store = make_store(f"sqlite:///{short_path}/router.db")
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
        timeout=None,
    )
    assert ended.returncode == 3, ended.stderr
    assert f"cannot start: {tmp_path} is a folder" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert list((tmp_path / "tmp").iterdir()) == [], "a folder is left"
