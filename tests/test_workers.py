"""Several workers: the board alone, then `serve.py` with two processes in front of a fake backend."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpcore2
import httpx2
import pytest
import yaml

import workers
from tests.fake_backend import FakeBackend, Reply, chat, pause, stall, steps, until
from tests.stream_grammar import check_stream
from tests.test_restart import free_port
from tests.turns import (
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
from workers import Board

ROOT = Path(__file__).parents[1]
HERE = "http://server:1/v1"

TURN = {"model": "test-model", "input": "Say something."}


# ── the board ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Board.make(tmp_path)
    return tmp_path


@pytest.fixture
def board(folder: Path) -> Iterator[Board]:
    """This process on the board."""
    board = Board(folder)
    board.join()
    yield board
    board.leave()


@contextmanager
def other_process(folder: Path, does: str = "", *, then: str = "") -> Iterator[subprocess.Popen[str]]:
    """A worker on the same board, that has done what it `does`, and does what comes `then`. Killed at the end, as it stands."""
    code = f"""
import sys
from pathlib import Path
from workers import Board
board = Board(Path({str(folder)!r}))
board.join()
{does}
print(board.number, flush=True)
{then}
print(flush=True)
sys.stdin.readline()
board.leave()
"""
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, **pipes) as process:
        try:
            assert process.stdout
            number = process.stdout.readline().strip()
            assert number, "the other process failed to join the board"
            process.number = int(number)  # type: ignore[attr-defined]
            yield process
        finally:
            process.kill()


def test_each_worker_has_a_number_of_its_own(folder: Path, board: Board) -> None:
    with other_process(folder) as first, other_process(folder) as second:
        assert [board.number, first.number, second.number] == [0, 1, 2]  # type: ignore[attr-defined]
        assert board.others() == [1, 2]


def test_requests_are_counted_over_all_workers(folder: Path, board: Board) -> None:
    count = board.count(HERE)
    assert count is not None
    count.add(2)
    with other_process(folder, f"board.count({HERE!r}).add(3)"):
        assert count.total() == 5
        count.add(-1)
        assert count.total() == 4


def test_what_a_killed_worker_had_is_cleared_by_its_successor(folder: Path, board: Board) -> None:
    count = board.count(HERE)
    assert count is not None
    count.add(1)
    with other_process(folder, f"board.count({HERE!r}).add(3); board.tell_waiting(4, 1.0)") as process:
        assert board.waiting() == 4
        process.kill()
        process.wait()
        assert board.others() == [], "it is dead"
    with other_process(folder, "assert board.is_successor") as successor:
        assert successor.number == 1  # type: ignore[attr-defined]
        assert count.total() == 1
        assert board.waiting() == 0


def test_a_worker_that_leaves_takes_its_counts_along(folder: Path, board: Board) -> None:
    count = board.count(HERE)
    assert count is not None
    with other_process(folder, f"board.count({HERE!r}).add(3); board.tell_waiting(4, 1.0)") as process:
        process.communicate("\n", timeout=5)
        assert (count.total(), board.waiting(), board.others()) == (0, 0, [])


def test_the_first_worker_of_a_service_succeeds_nobody(board: Board) -> None:
    assert not board.is_successor


def test_endpoints_are_told_apart_and_found_again(board: Board) -> None:
    urls = [f"{HERE}/{number}" for number in range(20)]
    for number, url in enumerate(urls):
        count = board.count(url)
        assert count is not None
        count.add(number)
    # In another order, as after a change of the settings.
    for number, url in reversed(list(enumerate(urls))):
        again = board.count(url)
        assert again is not None
        assert again.total() == number, url


def test_a_full_board_has_no_place_for_one_more_endpoint_but_keeps_those_it_has(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(workers.log, "warning", lambda text, *values: said.append(text % values))
    counts = [board.count(f"{HERE}/{number}") for number in range(workers.MOST_ENDPOINTS)]
    assert None not in counts
    assert not said
    assert board.count(HERE) is None
    assert any(str(workers.MOST_ENDPOINTS) in line for line in said), said
    assert board.count(f"{HERE}/0") is not None


def test_a_count_and_a_look_at_it_are_one_step_under_the_lock(folder: Path, board: Board) -> None:
    """Two processes add to the same number, each by reading it and writing it back."""
    with other_process(folder, then="for _ in range(20_000): board.add(1)") as process:
        for _ in range(20_000):
            board.add(1)
        assert process.stdout
        process.stdout.readline()
    assert board.value == 40_000


def test_whoever_has_waited_longest_is_first_in_line(folder: Path, board: Board) -> None:
    assert board.is_first_in_line(), "nobody waits anywhere"
    with other_process(folder, "board.tell_waiting(1, 5.0)"):
        assert not board.is_first_in_line(), "one waits there, and nobody here"
        board.tell_waiting(2, 6.0)
        assert not board.is_first_in_line()
        board.tell_waiting(2, 4.0)
        assert board.is_first_in_line()


async def test_a_ring_reaches_those_in_whom_somebody_waits(folder: Path, board: Board) -> None:
    rung = asyncio.Event()
    board.listen(rung.set)
    try:
        board.tell_waiting(1, 1.0)
        with other_process(folder, "board.ring()"):
            await asyncio.wait_for(rung.wait(), 5)
        rung.clear()
        board.tell_waiting(0, 0.0)
        with other_process(folder, "board.ring()"):
            await asyncio.sleep(0.01)
            assert not rung.is_set(), "nobody waits here"
    finally:
        board.stop_listening()


def test_a_ring_for_a_dead_worker_hurts_nobody(folder: Path, board: Board) -> None:
    with other_process(folder, "board.tell_waiting(1, 1.0)") as process:
        process.kill()
        process.wait()
        board.ring()


# ── the service ──────────────────────────────────────────────────────────────────────────────────────────────────────


class Door(httpcore2.AsyncNetworkBackend):
    """Connections to one worker of several that listen at the same socket: the others are stopped until it has taken them."""

    def __init__(self, service: Service, pid: int) -> None:
        self._service = service
        self._pid = pid
        self._backend = httpcore2.AnyIOBackend()

    async def connect_tcp(self, *args: Any, **options: Any) -> httpcore2.AsyncNetworkStream:
        async with self._service.connecting:
            with self._service.stopped([pid for pid in self._service.workers() if pid != self._pid]):
                stream = await self._backend.connect_tcp(*args, **options)
                while not self._service.all_accepted():
                    await asyncio.sleep(0.001)
        return stream


@dataclass
class Service:
    """`serve.py` with two workers, and clients that open a connection for each request."""

    process: asyncio.subprocess.Process
    port: int
    folder: Path
    clients: AsyncExitStack
    connecting: asyncio.Lock = field(default_factory=asyncio.Lock)

    def workers(self) -> list[int]:
        return [pid for pid in children(self.process.pid) if "spawn_main" in command_of(pid)]

    def up(self) -> int:
        """How many workers take requests."""
        return len(list(self.folder.glob("nomyo-*/worker-*.sock")))

    async def client(self, pid: int | None = None) -> httpx2.AsyncClient:
        """A client of one worker, or of any."""
        transport = httpx2.AsyncHTTPTransport(verify=False)
        door = Door(self, pid) if pid else None
        transport._pool = httpcore2.AsyncConnectionPool(max_keepalive_connections=0, network_backend=door)
        client = httpx2.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", timeout=20, transport=transport)
        return await self.clients.enter_async_context(client)

    async def both(self) -> list[httpx2.AsyncClient]:
        """A client of each worker."""
        return [await self.client(pid) for pid in self.workers()]

    @contextmanager
    def stopped(self, pids: list[int]) -> Iterator[None]:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    def all_accepted(self) -> bool:
        """Whether no connection waits at the socket to be taken by a worker."""
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            _, local, _, state, queues, *_ = line.split()
            if state == "0A" and int(local.rpartition(":")[2], 16) == self.port:
                return int(queues.rpartition(":")[2], 16) == 0
        raise AssertionError("nobody listens")

    async def has_successor(self, pid: int) -> None:
        """Waits until another worker has taken the place of a killed one."""
        await eventually(lambda: pid not in self.workers() and len(self.workers()) == 2, f"{pid} is replaced", 10)


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


@asynccontextmanager
async def service(
    backend: FakeBackend, folder: Path, *, max_concurrent: int = 16, **settings: Any
) -> AsyncIterator[Service]:
    """Two workers, up and answering; killed at the end if they still run."""
    temporary = folder / "tmp"
    temporary.mkdir()
    endpoint = {"url": f"{backend.url}/v1", "kind": "openai-chat", "name": "one", "max_concurrent": max_concurrent}
    settings = {
        "workers": 2,
        "endpoints": [endpoint],
        "database": {"url": f"sqlite:///{folder}/router.db"},
        "background": {"max_concurrent": 16, "drain_s": 0.2},
        **settings,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    port = free_port()
    command = [sys.executable, "serve.py", "--port", str(port), "--log-level", "error", "--no-access-log"]
    environment = {**os.environ, "ROUTER_CONFIG": str(folder / "config.yaml"), "TMPDIR": str(temporary)}
    with (folder / "log").open("w") as log:
        process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, env=environment, stderr=log, stdout=log)
    pids: list[int] = []
    async with AsyncExitStack() as clients:
        running = Service(process, port, temporary, clients)
        any_client = await running.client()

        async def is_up() -> bool:
            assert process.returncode is None, f"it ended: {(folder / 'log').read_text()}"
            await asyncio.sleep(0.02)
            return running.up() == 2 and await knows_models(any_client)

        try:
            await eventually(is_up, "both workers answer", 20)
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


async def knows_models(http: httpx2.AsyncClient) -> bool:
    try:
        return (await http.get("/health")).json()["endpoints"]["up"] == 1
    except httpx2.TransportError:
        return False


class Crowd:
    """An answer that takes a moment, and knows how many were given at once."""

    def __init__(self) -> None:
        self.now = self.most = 0

    async def __call__(self, reply: Reply) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await steps(pause(0.005), chat("Done."))(reply)
        finally:
            self.now -= 1


async def metric(http: httpx2.AsyncClient, name: str) -> float:
    """The sum of a metric's values."""
    lines = (await http.get("/metrics")).text.splitlines()
    found = [float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name}{{", f"{name} "))]
    assert found, f"{name} is not there: {lines}"
    return sum(found)


async def has_metric(http: httpx2.AsyncClient, name: str, value: float, timeout_s: float = 5) -> None:
    async def reached() -> bool:
        return await metric(http, name) == value

    await eventually(reached, f"{name} is {value}", timeout_s)


def post(http: httpx2.AsyncClient, times: int) -> list[asyncio.Task[httpx2.Response]]:
    return [asyncio.create_task(http.post("/v1/responses", json=TURN)) for _ in range(times)]


# ── slots ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("limit", [1, 3])
async def test_max_concurrent_holds_for_all_workers_together_and_everybody_is_answered(
    backend: FakeBackend, tmp_path: Path, limit: int
) -> None:
    crowd = backend.default = Crowd()
    async with service(backend, tmp_path, max_concurrent=limit) as running:
        here, there = await running.both()
        answers = await asyncio.gather(*post(here, 20), *post(there, 20))
        assert [answer.status_code for answer in answers] == [200] * 40
        assert crowd.most == limit, "the slots are not all that was used"
        for http in (here, there):
            assert await metric(http, "nomyo_requests_total") == 40
            assert await metric(http, "nomyo_queue_waiting") == 0
            assert await metric(http, "nomyo_endpoint_in_flight") == 0, "a slot was not given back"


async def test_who_waits_in_one_worker_is_not_starved_by_the_crowd_in_another(
    backend: FakeBackend, tmp_path: Path
) -> None:
    crowd = backend.default = Crowd()
    async with service(backend, tmp_path, max_concurrent=1) as running:
        here, there = await running.both()
        busy = True

        async def ask_again_and_again() -> None:
            while busy:
                await create(here)

        asking = [asyncio.create_task(ask_again_and_again()) for _ in range(6)]
        await eventually(lambda: len(backend.turns) >= 6, "they are under way")
        before = len(backend.turns)
        for _ in range(5):
            await create(there)
        busy = False
        await asyncio.gather(*asking)
        assert crowd.most == 1
        assert len(backend.turns) - before <= 5 * 20, "five requests had to let too many others go first"


async def test_the_queue_is_bounded_over_all_workers(backend: FakeBackend, tmp_path: Path) -> None:
    go = asyncio.Event()
    backend.default = steps(until(go), chat("Done."))
    async with service(backend, tmp_path, max_concurrent=1, queue={"max": 4}) as running:
        here, there = await running.both()
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
        assert await metric(here, "nomyo_queue_full_total") == 2
        go.set()
        assert [answer.status_code for answer in await asyncio.gather(*asked)] == [200] * 5


async def test_who_waits_gets_the_slots_of_a_killed_worker_and_the_service_goes_on(
    backend: FakeBackend, tmp_path: Path
) -> None:
    """All slots are with a worker that dies: nobody else will ever give one back."""
    backend.default = stall()
    async with service(backend, tmp_path, max_concurrent=2) as running:
        doomed, other = running.workers()
        held = post(await running.client(doomed), 3)
        here = await running.client(other)
        await backend.wait_for(lambda b: b.in_flight == 2)
        waiting = post(here, 6)
        await has_metric(here, "nomyo_queue_waiting", 7)
        backend.default = chat("Still here.")
        os.kill(doomed, signal.SIGKILL)
        answers = await asyncio.wait_for(asyncio.gather(*waiting), 8)
        assert [answer.status_code for answer in answers] == [200] * 6
        await asyncio.gather(*held, return_exceptions=True)
        await running.has_successor(doomed)
        for http in await running.both():
            assert text_of(await create(http)) == "Still here."
            assert await metric(http, "nomyo_endpoint_in_flight") == 0
            assert await metric(http, "nomyo_queue_waiting") == 0


# ── responses ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_background_stream_is_followed_and_cancelled_from_either_worker(
    backend: FakeBackend, tmp_path: Path
) -> None:
    backend.default = chat("Half a", then=stall())
    async with service(backend, tmp_path) as running:
        here, there = await running.both()
        async with open_stream(here, background=True) as begun:
            await begun.until("response.output_text.delta")
        response_id, seen = begun.seen[0]["response"]["id"], begun.seen[-1]["sequence_number"]

        async with follow(here, response_id) as near, follow(there, response_id) as far:
            for events in (near, far):
                await asyncio.wait_for(events.until("response.output_text.delta"), 5)
            async with follow(there, response_id, seen) as late:
                answer = await there.post(f"/v1/responses/{response_id}/cancel")
                assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
                for events in (near, far, late):
                    await asyncio.wait_for(events.rest(), 5)
        check_stream(far.seen)
        assert near.seen == far.seen
        assert late.seen == far.seen[seen + 1 :]
        await backend.wait_for(lambda b: b.in_flight == 0)
        assert await rejoin(there, response_id) == far.seen
        assert (await there.post(f"/v1/responses/{response_id}/cancel")).json()["status"] == "cancelled"


async def test_a_background_response_is_deleted_from_either_worker(backend: FakeBackend, tmp_path: Path) -> None:
    backend.default = stall()
    async with service(backend, tmp_path, background={"max_concurrent": 1, "drain_s": 0.2}) as running:
        here, there = await running.both()
        runs, queued = await create(here, background=True), await create(here, background=True)
        await backend.wait_for(lambda b: b.in_flight == 1)
        for response in (queued, runs):
            address = f"/v1/responses/{response['id']}"
            assert (await there.delete(address)).json() == {"id": response["id"], "object": "response", "deleted": True}
            for http in (here, there):
                assert_error(await http.get(address), 404)
                assert_error(await http.delete(address), 404)
                assert_error(await http.post(f"{address}/cancel"), 404)
        await backend.wait_for(lambda b: b.in_flight == 0)
        assert len(backend.turns) == 1, "what was queued was begun"


async def test_a_foreground_stream_of_another_worker_cannot_be_joined(backend: FakeBackend, tmp_path: Path) -> None:
    backend.default = chat("Half a", then=stall())
    async with service(backend, tmp_path) as running:
        here, there = await running.both()
        async with open_stream(here) as begun:
            await begun.until("response.output_text.delta")
            address = f"/v1/responses/{begun.seen[0]['response']['id']}"
            for http in (here, there):
                assert_error(await http.get(address, params={"stream": "true"}), 400, param="stream")
                assert_error(await http.post(f"{address}/cancel"), 400, param="response_id")


async def test_a_conversation_goes_on_in_either_worker_until_it_is_deleted_in_either(
    backend: FakeBackend, tmp_path: Path
) -> None:
    async with service(backend, tmp_path) as running:
        here, there = await running.both()
        first = await create(here)
        for http in (here, there, here, there):
            await create(http, previous_response_id=first["id"])
        assert [message["role"] for message in backend.turns[-1].json["messages"]] == ["user", "assistant", "user"]
        assert (await there.delete(f"/v1/responses/{first['id']}")).status_code == 200
        for http in (here, there):
            answer = await http.post("/v1/responses", json={**TURN, "previous_response_id": first["id"]})
            assert_error(answer, 400, param="previous_response_id")


async def test_what_a_killed_worker_was_running_reads_failed_and_what_the_other_runs_goes_on(
    backend: FakeBackend, tmp_path: Path
) -> None:
    go = asyncio.Event()
    backend.default = steps(until(go), chat("Whole."))
    async with service(backend, tmp_path) as running:
        doomed, other = running.workers()
        there, here = await running.client(doomed), await running.client(other)
        lost = [(await create(there, background=True))["id"] for _ in range(2)]
        kept = [(await create(here, background=True))["id"] for _ in range(2)]
        await backend.wait_for(lambda b: b.in_flight == 4)
        os.kill(doomed, signal.SIGKILL)
        await running.has_successor(doomed)
        for response_id in lost:
            assert (await has_status(here, response_id, "failed"))["error"]["code"] == "server_error"
        for response_id in kept:
            assert (await retrieve(here, response_id))["status"] == "in_progress"
        go.set()
        for response_id in kept:
            assert text_of(await ended(here, response_id)) == "Whole."


async def test_what_two_workers_that_die_at_once_were_running_reads_failed(
    backend: FakeBackend, tmp_path: Path
) -> None:
    backend.default = stall()
    async with service(backend, tmp_path) as running:
        ids = [(await create(http, background=True))["id"] for http in await running.both()]
        await backend.wait_for(lambda b: b.in_flight == 2)
        doomed = running.workers()
        for pid in doomed:
            os.kill(pid, signal.SIGKILL)
        for pid in doomed:
            await running.has_successor(pid)
        http = await running.client()
        for response_id in ids:
            assert await has_status(http, response_id, "failed")


# ── the service as a whole ───────────────────────────────────────────────────────────────────────────────────────────


async def test_draining_and_counting_reach_all_workers(backend: FakeBackend, tmp_path: Path) -> None:
    async with service(backend, tmp_path) as running:
        here, there = await running.both()
        for http in (here, there, there):
            await create(http)
        for http in (here, there):
            assert await metric(http, "nomyo_requests_total") == 3
            assert await metric(http, "nomyo_tokens_total") > 0
            assert (await http.get("/api/endpoints")).json()["endpoints"][0]["outcomes"] == {"answered": 3}

        async def states() -> list[str]:
            return [(await http.get("/api/endpoints")).json()["endpoints"][0]["state"] for http in (here, there)]

        assert (await here.post("/api/endpoints/one/drain")).json()["state"] == "draining"
        assert await states() == ["draining"] * 2
        assert (await there.post("/api/endpoints/one/enable")).json()["state"] == "up"
        assert await states() == ["up"] * 2
        assert_error(await here.get("/api/workers/figures"), 404, code="unknown_url")


async def test_sighup_reloads_the_settings_in_every_worker_and_stops_none(backend: FakeBackend, tmp_path: Path) -> None:
    backend.default = chat("Half a", then=stall())
    async with service(backend, tmp_path) as running:
        both, pids = await running.both(), running.workers()
        async with open_stream(both[0]) as begun:
            await begun.until("response.output_text.delta")
            file = tmp_path / "config.yaml"
            settings = yaml.safe_load(file.read_text())
            settings["endpoints"][0]["name"] = "two"
            file.write_text(yaml.safe_dump(settings))
            running.process.send_signal(signal.SIGHUP)

            async def all_know() -> bool:
                shown = [(await http.get("/api/endpoints")).json()["endpoints"] for http in both]
                return all("two" in [endpoint["name"] for endpoint in endpoints] for endpoints in shown)

            await eventually(all_know, "both workers have the new settings")
            assert running.workers() == pids
            assert backend.in_flight == 1, "the request was lost"
            for http in both:
                assert await metric(http, "nomyo_endpoint_in_flight") == 1


async def test_sigterm_ends_all_and_leaves_nothing_behind(backend: FakeBackend, tmp_path: Path) -> None:
    async with service(backend, tmp_path) as running:
        pids = running.workers()
        for http in await running.both():
            await create(http)
        running.process.terminate()
        assert await asyncio.wait_for(running.process.wait(), 10) == 0
        assert not [pid for pid in pids if command_of(pid)], "a worker is left"
        assert list(running.folder.iterdir()) == [], "a folder is left"


def test_the_supervisor_does_not_load_the_service() -> None:
    code = "import sys, serve; print(sorted({'router', 'db', 'fastapi'} & sys.modules.keys()))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"
