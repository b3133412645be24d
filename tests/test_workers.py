"""Several workers: `serve.py` with two processes in front of a fake backend."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpcore2
import httpx2
import pytest
import pytest_asyncio
import yaml

from tests.conftest import short_folder
from tests.fake_backend import FakeBackend, Reply, chat, pause, say, stall, steps, until
from tests.stream_grammar import check_stream
from tests.test_command import nomyo
from tests.test_restart import free_port
from tests.test_telemetry import scraped, value
from tests.turns import (
    SOON_S,
    assert_error,
    create,
    ended,
    eventually,
    follow,
    has_status,
    open_stream,
    rejoin,
    retrieve,
    text_of,
)

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).parents[1]
HERE = "http://server:1/v1"
TURN = {"model": "test-model", "input": "Say something."}


# ── the service ──────────────────────────────────────────────────────────────────────────────────────────────────────


class OneWorker(httpcore2.AsyncNetworkBackend):
    """Connections to one worker of several that listen at the same socket: the others are stopped until it has taken
    them."""

    def __init__(self, service: Service, pid: int) -> None:
        self._service = service
        self._pid = pid
        self._backend = httpcore2.AnyIOBackend()

    async def connect_tcp(self, *args: Any, **options: Any) -> httpcore2.AsyncNetworkStream:
        others = [pid for pid in self._service.workers() if pid != self._pid]
        async with self._service.connecting:
            while True:
                with stopped(others):
                    stream = await self._backend.connect_tcp(*args, **options)
                    try:
                        await eventually(self._service.has_accepted_all, "it is taken", 0.1)
                        return stream
                    except AssertionError:
                        await stream.aclose()
                # It is still starting, or waits for a lock that a stopped one holds.
                await asyncio.sleep(0.05)


@contextmanager
def stopped(pids: list[int]) -> Iterator[None]:
    for pid in pids:
        send(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            send(pid, signal.SIGCONT)


def send(pid: int, sent: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, sent)


@dataclass
class Service:
    """`serve.py` with two workers in front of `backend`, and clients that open a connection for each request."""

    backend: FakeBackend
    folder: Path
    port: int
    process: asyncio.subprocess.Process
    clients: AsyncExitStack
    name: str = ""
    connecting: asyncio.Lock = field(default_factory=asyncio.Lock)

    def workers(self) -> list[int]:
        return [pid for pid in children(self.process.pid) if "spawn_main" in command_of(pid)]

    async def client(self, pid: int | None = None) -> httpx2.AsyncClient:
        """A client of one worker, or of any."""
        transport = httpx2.AsyncHTTPTransport(verify=False)
        one = OneWorker(self, pid) if pid else None
        transport._pool = httpcore2.AsyncConnectionPool(
            max_connections=None, max_keepalive_connections=0, network_backend=one
        )
        client = httpx2.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", timeout=None, transport=transport)
        return await self.clients.enter_async_context(client)

    async def both(self) -> list[httpx2.AsyncClient]:
        """A client of each worker."""
        return [await self.client(pid) for pid in self.workers()]

    def has_accepted_all(self) -> bool:
        """Whether no connection waits at the socket to be taken by a worker."""
        listening = re.search(rf":{self.port:04X} 00000000:0000 0A \w+:(\w+)", Path("/proc/net/tcp").read_text())
        assert listening, "nobody listens"
        return int(listening[1], 16) == 0

    async def is_up(self) -> None:
        """Waits until both workers answer."""

        async def is_up() -> bool:
            assert self.process.returncode is None, f"it ended: {(self.folder / 'log').read_text()}"
            await asyncio.sleep(0.02)
            return len(self.workers()) == 2 and all([await knows_models(http) for http in await self.both()])

        await eventually(is_up, "both workers answer")

    async def has_successor(self, pid: int) -> None:
        """Waits until another worker has taken the place of a killed one."""
        await eventually(lambda: pid not in self.workers(), f"{pid} is gone")
        await self.is_up()

    async def use(self, **settings: Any) -> None:
        """Gives the endpoint settings, and another name. Its counts begin anew."""
        queue = settings.pop("queue", {})
        before = int(self.name.removeprefix("no. ") or 0)
        self.name = f"no. {before + 1}"
        write_settings(self.folder, self.backend, queue=queue, name=self.name, **settings)
        for pid in self.workers():
            os.kill(pid, signal.SIGHUP)
        both = await self.both()

        async def all_know() -> bool:
            shown = [(await http.get("/api/endpoints")).json()["endpoints"] for http in both]
            return all([endpoint["name"] for endpoint in endpoints] == [self.name] for endpoints in shown)

        await eventually(all_know, "both workers have the new settings")


def write_settings(folder: Path, backend: FakeBackend, *, queue: dict[str, Any] | None = None, **endpoint: Any) -> None:
    settings = {
        "workers": 2,
        "endpoints": [{"url": f"{backend.url}/v1", "kind": "openai-chat", **endpoint}],
        "database": {"url": f"sqlite:///{folder}/router.db"},
        "background": {"max_concurrent": 2, "drain_s": 0.2},
        "queue": queue or {},
    }
    (folder / "new.yaml").write_text(yaml.safe_dump(settings))
    (folder / "new.yaml").rename(folder / "config.yaml")


@asynccontextmanager
async def service(backend: FakeBackend, folder: Path) -> AsyncIterator[Service]:
    """Two workers, up and answering; killed at the end if they still run."""
    (folder / "tmp").mkdir()
    write_settings(folder, backend)
    port = free_port()
    command = [sys.executable, "serve.py", "--port", str(port), "--log-level", "error", "--one-socket"]
    environment = {**os.environ, "ROUTER_CONFIG": str(folder / "config.yaml"), "TMPDIR": str(folder / "tmp")}
    with (folder / "log").open("w") as log:
        process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, env=environment, stderr=log, stdout=log)
    async with AsyncExitStack() as clients:
        running = Service(backend, folder, port, process, clients)
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


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def command_of(pid: int) -> str:
    """Empty for a process that is no more."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


async def knows_models(http: httpx2.AsyncClient) -> bool:
    try:
        return (await http.get("/health")).json()["endpoints"]["up"] == 1
    except httpx2.TransportError:
        return False


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared() -> AsyncIterator[Service]:
    """A start costs a second of CPU: the tests below share one service. Each gives it the settings that it wants."""
    with short_folder() as folder:
        async with FakeBackend() as backend, service(backend, folder) as running:
            yield running


@pytest_asyncio.fixture(loop_scope="module")
async def running(shared: Service) -> AsyncIterator[Service]:
    """The shared service, with nothing to do."""
    shared.backend.default = say("Hello.")
    shared.backend.requests.clear()
    async with AsyncExitStack() as shared.clients:
        await shared.use(max_concurrent=16)
        yield shared
    await shared.backend.wait_for(lambda b: b.in_flight == 0)


in_module = pytest.mark.asyncio(loop_scope="module")


async def metric(http: httpx2.AsyncClient, name: str) -> float:
    """The sum of a metric's values."""
    lines = (await http.get("/metrics")).text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name}{{", f"{name} ")))


async def has_metric(http: httpx2.AsyncClient, name: str, value: float) -> None:
    async def reached() -> bool:
        await asyncio.sleep(0.01)
        return await metric(http, name) == value

    await eventually(reached, f"{name} is {value}")


def post(http: httpx2.AsyncClient, times: int) -> list[asyncio.Task[httpx2.Response]]:
    return [asyncio.create_task(http.post("/v1/responses", json=TURN)) for _ in range(times)]


@in_module
async def test_the_metrics_of_both_are_one_and_prometheus_reads_them(running: Service) -> None:
    here, there = await running.both()
    ours = {"door": "responses", "status": "completed"}
    first = await scraped(here)
    before, apis = value(first, "nomyo_turns_total", ours), value(first, "nomyo_http_requests_total", {"door": "api"})
    assert {answer.status_code for answer in await asyncio.gather(*post(here, 3), *post(there, 4))} == {200}
    for http in (here, there):
        for is_open in (False, True):
            samples = await scraped(http, is_open=is_open)
            assert value(samples, "nomyo_turns_total", ours) == before + 7
            assert value(samples, "nomyo_turn_duration_seconds_count", {"door": "responses"}) == before + 7
            filled = {"door": "responses", "le": "+Inf"}
            assert value(samples, "nomyo_turn_duration_seconds_bucket", filled) == before + 7
            assert value(samples, "nomyo_http_requests_total", {"door": "responses", "status": "200"}) >= 7
            assert value(samples, "nomyo_http_requests_total", {"door": "api"}) == apis, "what peers ask is nobody's"
            assert value(samples, "nomyo_processes") == 2
            assert value(samples, "nomyo_build_info") == 1


class Crowd:
    """An answer that waits for the start, takes a moment, and knows how many were given at once."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self.start = asyncio.Event()

    async def __call__(self, reply: Reply) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await steps(until(self.start), pause(0.002), chat("Done."))(reply)
        finally:
            self.now -= 1


# ── slots ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@in_module
@pytest.mark.parametrize("limit", [1, 3])
async def test_max_concurrent_holds_for_all_workers_together_and_everybody_is_answered(
    running: Service, limit: int
) -> None:
    await running.use(max_concurrent=limit)
    here, there = await running.both()
    crowd = running.backend.default = Crowd()
    asked = post(here, 20) + post(there, 20)
    await has_metric(here, "nomyo_queue_waiting", 40 - limit)
    crowd.start.set()
    answers = await asyncio.gather(*asked)
    assert [answer.status_code for answer in answers] == [200] * 40
    assert crowd.most == limit
    for http in (here, there):
        assert await metric(http, "nomyo_requests_total") == 40
        assert await metric(http, "nomyo_queue_waiting") == 0
        assert await metric(http, "nomyo_endpoint_in_flight") == 0, "a slot was not given back"


@in_module
async def test_who_waits_in_one_worker_is_not_starved_by_the_crowd_in_another(running: Service) -> None:
    await running.use(max_concurrent=1)
    here, there = await running.both()
    crowd = running.backend.default = Crowd()
    crowd.start.set()
    busy = True

    async def ask_again_and_again() -> None:
        while busy:
            await create(here)

    asking = [asyncio.create_task(ask_again_and_again()) for _ in range(6)]
    await running.backend.wait_for(lambda b: len(b.turns) >= 6)
    before = len(running.backend.turns)
    for _ in range(5):
        await create(there)
    went_first = len(running.backend.turns) - before - 5
    busy = False
    await asyncio.gather(*asking)
    assert crowd.most == 1
    assert went_first <= 5 * 20, "so many of the crowd went before five others"


@in_module
async def test_the_queue_is_bounded_over_all_workers(running: Service) -> None:
    await running.use(max_concurrent=1, queue={"max": 4})
    here, there = await running.both()
    refused = await metric(here, "nomyo_queue_full_total")
    go = asyncio.Event()
    running.backend.default = steps(until(go), chat("Done."))
    asked = post(here, 3)
    await has_metric(there, "nomyo_queue_waiting", 2)
    asked += post(there, 2)
    await has_metric(here, "nomyo_queue_waiting", 4)
    for http in (here, there):
        assert_error(await http.post("/v1/responses", json=TURN), 429)
        shown = (await http.get("/api/endpoints")).json()
        assert shown["queue"]["waiting"] == len(shown["queue"]["first"]) == 4
        assert shown["endpoints"][0]["in_flight"] == 1
        assert await metric(http, "nomyo_endpoint_in_flight") == 1
        assert await metric(http, "nomyo_queue_longest_wait_seconds") > 0
    assert await metric(here, "nomyo_queue_full_total") == refused + 2
    go.set()
    assert [answer.status_code for answer in await asyncio.gather(*asked)] == [200] * 5


@in_module
async def test_who_waits_gets_the_slots_of_a_killed_worker_and_the_service_goes_on(running: Service) -> None:
    """All slots are with a worker that dies: nobody else will ever give one back."""
    await running.use(max_concurrent=2)
    doomed, other = running.workers()
    running.backend.default = stall()
    held = post(await running.client(doomed), 3)
    here = await running.client(other)
    await running.backend.wait_for(lambda b: b.in_flight == 2)
    waiting = post(here, 6)
    await has_metric(here, "nomyo_queue_waiting", 7)
    running.backend.default = chat("Still here.")
    os.kill(doomed, signal.SIGKILL)
    answers = await asyncio.wait_for(asyncio.gather(*waiting), SOON_S)
    assert [answer.status_code for answer in answers] == [200] * 6
    await asyncio.gather(*held, return_exceptions=True)
    await running.has_successor(doomed)
    for http in await running.both():
        assert text_of(await create(http)) == "Still here."
        assert await metric(http, "nomyo_endpoint_in_flight") == 0
        assert await metric(http, "nomyo_queue_waiting") == 0


# ── responses ────────────────────────────────────────────────────────────────────────────────────────────────────────


@in_module
async def test_a_background_stream_is_followed_and_cancelled_from_either_worker(running: Service) -> None:
    here, there = await running.both()
    running.backend.default = chat("Half a", then=stall())
    async with open_stream(here, background=True) as begun:
        await begun.until("response.output_text.delta")
    response_id, seen = begun.seen[0]["response"]["id"], begun.seen[-1]["sequence_number"]

    async with (
        follow(here, response_id) as near,
        follow(there, response_id) as far,
        follow(there, response_id, seen) as late,
    ):
        for events in (near, far):
            await asyncio.wait_for(events.until("response.output_text.delta"), SOON_S)
        answer = await there.post(f"/v1/responses/{response_id}/cancel")
        assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
        for events in (near, far, late):
            await asyncio.wait_for(events.rest(), SOON_S)
    check_stream(far.seen)
    assert near.seen == far.seen
    assert late.seen == far.seen[seen + 1 :]
    await running.backend.wait_for(lambda b: b.in_flight == 0)
    assert await rejoin(there, response_id) == far.seen
    assert (await there.post(f"/v1/responses/{response_id}/cancel")).json()["status"] == "cancelled"


@in_module
async def test_a_background_response_is_deleted_from_either_worker(running: Service) -> None:
    here, there = await running.both()
    running.backend.default = stall()
    runs = [await create(here, background=True) for _ in range(2)]
    queued = await create(here, background=True)
    await running.backend.wait_for(lambda b: b.in_flight == 2)
    for response in (queued, *runs):
        address = f"/v1/responses/{response['id']}"
        assert (await there.delete(address)).json() == {
            "id": response["id"],
            "object": "response.deleted",
            "deleted": True,
        }
        for http in (here, there):
            assert_error(await http.get(address), 404)
            assert_error(await http.delete(address), 404)
            assert_error(await http.post(f"{address}/cancel"), 404)
    await running.backend.wait_for(lambda b: b.in_flight == 0)
    assert len(running.backend.turns) == 2, "what was queued was begun"


async def test_keys_reach_both_workers_and_what_runs_is_its_owners_in_either(
    backend: FakeBackend, short_path: Path
) -> None:
    environment = {**os.environ, "ROUTER_CONFIG": str(short_path / "config.yaml")}

    async def key_of(*arguments: str) -> dict[str, str]:
        made = await asyncio.to_thread(nomyo, "keys", *arguments, env=environment)
        assert made.returncode == 0, made.stderr
        return {"Authorization": f"Bearer {made.stdout.strip()}"}

    async with service(backend, short_path) as running:
        here, there = await running.both()

        async def take(key: dict[str, str], status: int) -> bool:
            answers = [await http.post("/v1/responses", json=TURN, headers=key) for http in (here, there)]
            return [answer.status_code for answer in answers] == [status, status]

        ann, eve = await key_of("add", "ann"), await key_of("add", "eve")
        for key, status in (({}, 401), (ann, 200), (eve, 200)):
            await eventually(partial(take, key, status), "both workers know the key")
        backend.default = chat("Half a", then=stall())
        answer = await here.post("/v1/responses", json={**TURN, "background": True, "stream": False}, headers=ann)
        address = f"/v1/responses/{answer.json()['id']}"
        await backend.wait_for(lambda b: b.in_flight == 1)
        for http in (here, there):
            for method, path in (("GET", "?stream=true"), ("GET", ""), ("POST", "/cancel"), ("DELETE", "")):
                assert_error(await http.request(method, address + path, headers=eve), 404)
        assert (await there.post(f"{address}/cancel", headers=ann)).json()["status"] == "cancelled"
        await backend.wait_for(lambda b: b.in_flight == 0)
        backend.default = say("Hello.")
        await key_of("revoke", "ann")
        await eventually(partial(take, ann, 401), "neither worker takes the key")
        assert await take(eve, 200)


@in_module
async def test_a_foreground_stream_of_another_worker_cannot_be_joined(running: Service) -> None:
    here, there = await running.both()
    running.backend.default = chat("Half a", then=stall())
    async with open_stream(here) as begun:
        await begun.until("response.output_text.delta")
        address = f"/v1/responses/{begun.seen[0]['response']['id']}"
        for http in (here, there):
            assert_error(await http.get(address, params={"stream": "true"}), 400, param="stream")
            assert_error(await http.post(f"{address}/cancel"), 400, param="response_id")


@in_module
async def test_a_conversation_goes_on_in_either_worker_until_it_is_deleted_in_either(running: Service) -> None:
    here, there = await running.both()
    first = await create(here)
    for http in (here, there, here, there):
        await create(http, previous_response_id=first["id"])
        messages = running.backend.turns[-1].json["messages"]
        assert [message["role"] for message in messages] == ["user", "assistant", "user"]
    # Its last one is warm where it was made.
    last = await create(here, previous_response_id=first["id"])
    assert (await there.delete(f"/v1/responses/{last['id']}")).status_code == 200
    for http in (here, there):
        answer = await http.post("/v1/responses", json={**TURN, "previous_response_id": last["id"]})
        assert_error(answer, 400, param="previous_response_id")


@in_module
async def test_what_a_killed_worker_was_running_reads_failed_and_what_the_other_runs_goes_on(running: Service) -> None:
    doomed, other = running.workers()
    there, here = await running.client(doomed), await running.client(other)
    go = asyncio.Event()
    running.backend.default = steps(until(go), chat("Whole."))
    lost = [(await create(there, background=True))["id"] for _ in range(2)]
    kept = [(await create(here, background=True))["id"] for _ in range(2)]
    await running.backend.wait_for(lambda b: b.in_flight == 4)
    os.kill(doomed, signal.SIGKILL)
    await running.has_successor(doomed)
    for response_id in lost:
        assert (await has_status(here, response_id, "failed"))["error"]["code"] == "server_error"
    for response_id in kept:
        assert (await retrieve(here, response_id))["status"] == "in_progress"
    go.set()
    for response_id in kept:
        assert text_of(await ended(here, response_id)) == "Whole."


@in_module
async def test_what_two_workers_that_die_at_once_were_running_reads_failed(running: Service) -> None:
    running.backend.default = stall()
    ids = [(await create(http, background=True))["id"] for http in await running.both()]
    await running.backend.wait_for(lambda b: b.in_flight == 2)
    doomed = running.workers()
    for pid in doomed:
        os.kill(pid, signal.SIGKILL)
    for pid in doomed:
        await running.has_successor(pid)
    http = await running.client()
    for response_id in ids:
        assert await has_status(http, response_id, "failed")


# ── the service as a whole ───────────────────────────────────────────────────────────────────────────────────────────


@in_module
async def test_draining_and_counting_reach_all_workers(running: Service) -> None:
    here, there = await running.both()
    tokens = await metric(here, "nomyo_tokens_total")
    for http in (here, there, there):
        await create(http)
    each = (await metric(here, "nomyo_tokens_total") - tokens) / 3
    assert each == int(each) > 0, "tokens are counted in both"
    for http in (here, there):
        assert await metric(http, "nomyo_requests_total") == 3
        assert (await http.get("/api/endpoints")).json()["endpoints"][0]["outcomes"] == {"answered": 3}

    async def states() -> list[str]:
        return [(await http.get("/api/endpoints")).json()["endpoints"][0]["state"] for http in (here, there)]

    # The name has a blank.
    assert (await here.post(f"/api/endpoints/{running.name}/drain")).json()["state"] == "draining"
    assert await states() == ["draining"] * 2
    assert (await there.post(f"/api/endpoints/{running.name}/enable")).json()["state"] == "up"
    assert await states() == ["up"] * 2
    assert_error(await here.get("/api/workers/figures"), 404, code="unknown_url")


@in_module
async def test_an_endpoint_that_is_taken_out_and_put_back_is_drained_no_more(running: Service) -> None:
    here, there = await running.both()
    await here.post(f"/api/endpoints/{running.name}/drain")
    await running.use(max_concurrent=7)
    for http in (here, there):
        assert (await http.get("/api/endpoints")).json()["endpoints"][0]["state"] == "draining", (
            "it was there all the time"
        )
    await running.use(url="http://127.0.0.1:9/v1")
    await running.use()
    for http in (here, there):
        assert (await http.get("/api/endpoints")).json()["endpoints"][0]["state"] != "draining"


@in_module
async def test_sighup_stops_no_worker_and_loses_no_request(running: Service) -> None:
    pids = running.workers()
    here, there = await running.both()
    go = asyncio.Event()
    running.backend.default = steps(until(go), chat("Whole."))
    asked = post(here, 1) + post(there, 1)
    await running.backend.wait_for(lambda b: b.in_flight == 2)

    running.process.send_signal(signal.SIGHUP)
    write_settings(running.folder, running.backend, name="other", max_concurrent=3)
    running.process.send_signal(signal.SIGHUP)

    async def all_know() -> bool:
        shown = [(await http.get("/api/endpoints")).json()["endpoints"] for http in (here, there)]
        return all("other" in [endpoint["name"] for endpoint in endpoints] for endpoints in shown)

    await eventually(all_know, "both workers have the new settings")
    assert running.workers() == pids
    for http in (here, there):
        assert await metric(http, "nomyo_endpoint_in_flight") == 2, "what runs at the server is there under any name"
    go.set()
    assert [answer.status_code for answer in await asyncio.gather(*asked)] == [200, 200]


async def test_sigterm_ends_all_and_leaves_nothing_behind(backend: FakeBackend, short_path: Path) -> None:
    async with service(backend, short_path) as running:
        pids = running.workers()
        for http in await running.both():
            await create(http)
        running.process.terminate()
        assert await asyncio.wait_for(running.process.wait(), SOON_S) == 0
        assert not [pid for pid in pids if command_of(pid)], "a worker is left"
        assert list((short_path / "tmp").iterdir()) == [], "a folder is left"


async def test_the_workers_end_when_the_supervisor_is_killed(backend: FakeBackend, short_path: Path) -> None:
    async with service(backend, short_path) as running:
        pids = running.workers()
        running.process.kill()
        await running.process.wait()
        await eventually(lambda: not any(map(command_of, pids)), "the workers have ended")


def test_the_supervisor_does_not_load_the_service() -> None:
    code = "import sys, serve; print(sorted({'router', 'db', 'fastapi'} & sys.modules.keys()))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"
