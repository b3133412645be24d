"""Several workers: the board alone, then `serve.py` with two processes in front of a fake backend."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from workers import VARIABLE, Board

ROOT = Path(__file__).parents[1]
HERE = "http://server:1/v1"

# Connections of their own, so that either worker gets some. That all of twelve reach the same one happens once in 2000 times.
TRIES = 12


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


@dataclass
class Service:
    """`serve.py` with two workers, and a client that opens a connection for each request."""

    process: asyncio.subprocess.Process
    http: httpx2.AsyncClient
    temporary: Path

    def workers(self) -> list[int]:
        """The processes that hold a number on the board."""
        return [pid for pid in children(self.process.pid) if "spawn_main" in command_of(pid)]

    def board(self) -> Path:
        return next(self.temporary.glob("nomyo-*"))

    def doors(self) -> int:
        """How many workers are up."""
        return len(list(self.board().glob("worker-*.sock")))

    async def stopped(self) -> None:
        """The service, after SIGTERM."""
        self.process.terminate()
        await asyncio.wait_for(self.process.wait(), 15)


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def is_alive(pid: int) -> bool:
    return bool(command_of(pid))


@asynccontextmanager
async def service(backend: FakeBackend, folder: Path, **settings: Any) -> AsyncIterator[Service]:
    """Two workers, up and answering; killed at the end if they still run."""
    temporary = folder / "tmp"
    temporary.mkdir()
    limit = settings.pop("max_concurrent", 8)
    settings = {
        "workers": 2,
        "endpoints": [{"url": f"{backend.url}/v1", "kind": "openai-chat", "name": "one", "max_concurrent": limit}],
        "database": {"url": f"sqlite:///{folder}/router.db"},
        "background": {"drain_s": 0.2},
        **settings,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    port = free_port()
    command = [sys.executable, "serve.py", "--port", str(port), "--log-level", "error", "--no-access-log"]
    environment = {**os.environ, "ROUTER_CONFIG": str(folder / "config.yaml"), "TMPDIR": str(temporary)}
    with (folder / "log").open("w") as log:
        process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, env=environment, stderr=log, stdout=log)
    limits = httpx2.Limits(max_keepalive_connections=0)
    before: list[int] = []
    try:
        async with httpx2.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", timeout=20, limits=limits, verify=False
        ) as http:
            running = Service(process, http, temporary)

            async def is_up() -> bool:
                assert process.returncode is None, f"it ended: {(folder / 'log').read_text()}"
                await asyncio.sleep(0.02)
                return any(temporary.glob("nomyo-*")) and running.doors() == 2 and await knows_models(http)

            await eventually(is_up, "both workers answer", 20)
            before = running.workers()
            assert len(before) == 2, before
            yield running
    finally:
        before += children(process.pid) if process.returncode is None else []
        if process.returncode is None:
            process.kill()
        for pid in before:
            if "spawn_main" in command_of(pid):
                os.kill(pid, signal.SIGKILL)
        await process.wait()


async def knows_models(http: httpx2.AsyncClient) -> bool:
    try:
        return (await http.get("/health")).json()["endpoints"]["up"] == 1
    except httpx2.TransportError:
        return False


class Crowd:
    """An answer that remembers how many were given at once."""

    def __init__(self, takes_s: float) -> None:
        self.now = self.most = self.answered = 0
        self._answer = steps(pause(takes_s), chat("Done."))

    async def __call__(self, reply: Reply) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await self._answer(reply)
            self.answered += 1
        finally:
            self.now -= 1


async def metric(http: httpx2.AsyncClient, name: str) -> float:
    """The sum of a metric's values."""
    lines = (await http.get("/metrics")).text.splitlines()
    found = [float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name}{{", f"{name} "))]
    assert found, f"{name} is not there: {lines}"
    return sum(found)


async def nobody_is_in_flight(http: httpx2.AsyncClient) -> bool:
    return await metric(http, "nomyo_endpoint_in_flight") == 0


@pytest.mark.parametrize("limit", [1, 3])
async def test_max_concurrent_holds_for_all_workers_together_and_everybody_is_answered(
    backend: FakeBackend, tmp_path: Path, limit: int
) -> None:
    crowd = backend.default = Crowd(takes_s=0.01)
    async with service(backend, tmp_path, max_concurrent=limit) as running:
        await asyncio.gather(*(create(running.http) for _ in range(40)))
        assert crowd.answered == 40
        assert crowd.most == limit, "exactly as many as there are slots"
        assert await metric(running.http, "nomyo_requests_total") == 40, "counted in whichever worker answered"
        assert await metric(running.http, "nomyo_queue_waiting") == 0
        # Who asks again and again, over connections of either worker, does not starve the others.
        for _ in range(TRIES):
            assert await nobody_is_in_flight(running.http), "a slot was not given back"


async def test_the_queue_is_bounded_over_all_workers(backend: FakeBackend, tmp_path: Path) -> None:
    go = asyncio.Event()
    backend.default = steps(until(go), chat("Done."))
    async with service(backend, tmp_path, max_concurrent=1, queue={"max": 3}) as running:
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(running.http.post("/v1/responses", json=TURN)) for _ in range(1 + TRIES)]
            await eventually(lambda: sum(one.done() for one in asked) == TRIES - 3, "all but four are refused")
            assert await metric(running.http, "nomyo_queue_waiting") == 3
            shown = (await running.http.get("/api/endpoints")).json()
            assert shown["queue"]["waiting"] == len(shown["queue"]["first"]) == 3
            assert shown["endpoints"][0]["in_flight"] == 1
            go.set()
        answers = [one.result() for one in asked]
        assert sorted(answer.status_code for answer in answers) == [200] * 4 + [429] * (TRIES - 3)
        assert await metric(running.http, "nomyo_queue_full_total") == TRIES - 3


async def test_a_killed_worker_gives_its_slots_back_and_the_service_goes_on(
    backend: FakeBackend, tmp_path: Path
) -> None:
    backend.default = stall()
    async with service(backend, tmp_path, max_concurrent=4) as running:
        held = await taken(running, backend, 4)
        before = running.workers()
        backend.default = chat("Still here.")
        # They wait in either worker: for those that are about to die.
        waiting = [asyncio.create_task(running.http.post("/v1/responses", json=TURN)) for _ in range(TRIES)]
        await has_metric(running.http, "nomyo_queue_waiting", TRIES)
        os.kill(before[0], signal.SIGKILL)
        answers = await asyncio.gather(*waiting, return_exceptions=True)
        lost = [answer for answer in answers if isinstance(answer, Exception)]
        assert len(lost) < TRIES, "all had come to one worker"
        assert {answer.status_code for answer in answers if not isinstance(answer, Exception)} == {200}
        await eventually(lambda: len(running.workers()) == 2 and running.workers() != before, "there are two again", 10)
        await eventually(lambda: running.doors() == 2, "its successor is up", 10)
        for stream in held:
            stream.cancel()
        await asyncio.gather(*held, return_exceptions=True)
        await eventually(lambda: nobody_is_in_flight(running.http), "all slots are free")
        assert text_of(await create(running.http)) == "Still here."


async def test_who_waits_gets_the_slots_of_a_killed_worker(backend: FakeBackend, tmp_path: Path) -> None:
    """All slots are with one worker, and it dies: nobody else will ever give one back."""
    backend.default = stall()
    async with service(backend, tmp_path, max_concurrent=1) as running:
        held = await taken(running, backend, 1)
        holder = await holder_of(running, backend)
        backend.default = chat("Still here.")
        waiting = [asyncio.create_task(running.http.post("/v1/responses", json=TURN)) for _ in range(TRIES)]
        await has_metric(running.http, "nomyo_queue_waiting", TRIES)
        os.kill(holder, signal.SIGKILL)
        async with asyncio.timeout(8):
            answers = await asyncio.gather(*waiting, return_exceptions=True)
        answered = [answer.status_code for answer in answers if not isinstance(answer, Exception)]
        assert answered, "all had come to the killed worker"
        assert set(answered) == {200}
        await asyncio.gather(*held, return_exceptions=True)


async def test_a_background_stream_is_followed_cancelled_and_deleted_from_whichever_worker(
    backend: FakeBackend, tmp_path: Path
) -> None:
    backend.default = chat("Half a", then=stall())
    async with service(backend, tmp_path, background={"max_concurrent": 4, "drain_s": 0.2}) as running:
        async with open_stream(running.http, background=True) as begun:
            await begun.until("response.output_text.delta")
        response_id = begun.seen[0]["response"]["id"]
        go_on = len(begun.seen)

        async with AsyncExitStack() as stack:
            followers = [await stack.enter_async_context(follow(running.http, response_id)) for _ in range(TRIES)]
            for events in followers:
                await asyncio.wait_for(events.until("response.output_text.delta"), 5)
            assert await retrieve(running.http, response_id)
            late = await stack.enter_async_context(follow(running.http, response_id, go_on - 2))

            answer = await running.http.post(f"/v1/responses/{response_id}/cancel")
            assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
            for events in followers:
                check_stream(await asyncio.wait_for(events.rest(), 5))
            assert [event["sequence_number"] for event in await late.rest()][0] == go_on - 1
        await backend.wait_for(lambda b: b.in_flight == 0)
        assert await rejoin(running.http, response_id) == followers[0].seen

        for _ in range(TRIES):
            async with open_stream(running.http, background=True) as begun:
                await begun.until("response.output_text.delta")
            other = begun.seen[0]["response"]["id"]
            answer = await running.http.delete(f"/v1/responses/{other}")
            assert (answer.status_code, answer.json()["deleted"]) == (200, True)
            await backend.wait_for(lambda b: b.in_flight == 0)
            for _ in range(3):
                assert_error(await running.http.get(f"/v1/responses/{other}"), 404)
        for _ in range(TRIES):
            queued = await create(running.http, background=True)
            answer = await running.http.post(f"/v1/responses/{queued['id']}/cancel")
            assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")


async def test_a_foreground_stream_in_another_worker_cannot_be_joined(backend: FakeBackend, tmp_path: Path) -> None:
    backend.default = chat("Half a", then=stall())
    async with service(backend, tmp_path) as running, open_stream(running.http) as begun:
        await begun.until("response.output_text.delta")
        address = f"/v1/responses/{begun.seen[0]['response']['id']}"
        for _ in range(TRIES):
            assert_error(await running.http.get(address, params={"stream": "true"}), 400, param="stream")
            assert_error(await running.http.post(f"{address}/cancel"), 400, param="response_id")


async def test_a_conversation_goes_on_in_any_worker_until_it_is_deleted_in_any(
    backend: FakeBackend, tmp_path: Path
) -> None:
    async with service(backend, tmp_path) as running:
        first = await create(running.http)
        for _ in range(TRIES):
            await create(running.http, previous_response_id=first["id"])
        assert (await running.http.delete(f"/v1/responses/{first['id']}")).status_code == 200
        for _ in range(TRIES):
            answer = await running.http.post("/v1/responses", json={**TURN, "previous_response_id": first["id"]})
            assert_error(answer, 404 if answer.status_code == 404 else 400, param="previous_response_id")


async def test_what_a_killed_worker_was_running_reads_failed_and_what_others_run_goes_on(
    backend: FakeBackend, tmp_path: Path
) -> None:
    go = asyncio.Event()
    backend.default = steps(until(go), chat("Whole."))
    async with service(backend, tmp_path, max_concurrent=16, background={"max_concurrent": 16, "drain_s": 0.2}) as running:
        ids = [(await create(running.http, background=True))["id"] for _ in range(TRIES)]
        await backend.wait_for(lambda b: b.in_flight == TRIES)
        os.kill(running.workers()[0], signal.SIGKILL)
        await backend.wait_for(lambda b: b.in_flight < TRIES)
        lost = TRIES - backend.in_flight

        async def have_failed() -> bool:
            await asyncio.sleep(0.05)
            responses = [await retrieve(running.http, response_id) for response_id in ids]
            return sum(response["status"] == "failed" for response in responses) == lost

        await eventually(have_failed, f"{lost} of {TRIES} read failed", 10)
        go.set()
        statuses = [(await ended(running.http, response_id))["status"] for response_id in ids]
        assert (statuses.count("failed"), statuses.count("completed")) == (lost, TRIES - lost)


async def test_what_two_killed_workers_were_running_reads_failed(backend: FakeBackend, tmp_path: Path) -> None:
    backend.default = stall()
    async with service(backend, tmp_path) as running:
        ids = [(await create(running.http, background=True))["id"] for _ in range(4)]
        await backend.wait_for(lambda b: b.in_flight == 4)
        for pid in running.workers():
            os.kill(pid, signal.SIGKILL)

        async def is_up_again() -> bool:
            await asyncio.sleep(0.05)
            return await knows_models(running.http)

        await backend.wait_for(lambda b: b.in_flight == 0)
        await eventually(is_up_again, "the service is back", 10)
        for response_id in ids:
            assert (await has_status(running.http, response_id, "failed"))["status"] == "failed"


async def test_draining_and_counting_reach_all_workers(backend: FakeBackend, tmp_path: Path) -> None:
    async with service(backend, tmp_path) as running:
        for _ in range(TRIES):
            await create(running.http)
        for _ in range(TRIES):
            assert await metric(running.http, "nomyo_requests_total") == TRIES
            shown = (await running.http.get("/api/endpoints")).json()["endpoints"][0]
            assert shown["outcomes"] == {"answered": TRIES}

        assert (await running.http.post("/api/endpoints/one/drain")).json()["state"] == "draining"
        states = [(await running.http.get("/api/endpoints")).json()["endpoints"][0]["state"] for _ in range(TRIES)]
        assert set(states) == {"draining"}
        await running.http.post("/api/endpoints/one/enable")
        states = [(await running.http.get("/api/endpoints")).json()["endpoints"][0]["state"] for _ in range(TRIES)]
        assert set(states) == {"up"}
        assert_error(await running.http.get("/api/workers/figures"), 404, code="unknown_url")


async def test_sighup_reloads_the_settings_in_every_worker_and_stops_none(
    backend: FakeBackend, tmp_path: Path
) -> None:
    backend.default = chat("Half a", then=stall())
    async with service(backend, tmp_path) as running, open_stream(running.http) as begun:
        await begun.until("response.output_text.delta")
        before = running.workers()
        file = tmp_path / "config.yaml"
        settings = yaml.safe_load(file.read_text())
        settings["endpoints"][0]["name"] = "two"
        file.write_text(yaml.safe_dump(settings))
        running.process.send_signal(signal.SIGHUP)

        async def all_know() -> bool:
            shown = [(await running.http.get("/api/endpoints")).json()["endpoints"] for _ in range(TRIES)]
            return all("two" in [endpoint["name"] for endpoint in endpoints] for endpoints in shown)

        await eventually(all_know, "every worker has the new settings")
        assert running.workers() == before
        assert await asyncio.wait_for(metric(running.http, "nomyo_endpoint_in_flight"), 5) >= 0


async def test_sigterm_ends_all_and_leaves_nothing_behind(backend: FakeBackend, tmp_path: Path) -> None:
    async with service(backend, tmp_path) as running:
        pids = running.workers()
        await create(running.http)
        await running.stopped()
        assert not [pid for pid in pids if is_alive(pid)], "a worker is left"
        assert list(running.temporary.iterdir()) == [], "a folder is left"
        assert running.process.returncode == 0


async def test_a_service_that_cannot_start_says_so_with_its_exit_status(backend: FakeBackend, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(AssertionError, match="it ended"):
        async with service(backend, tmp_path, database={"url": f"sqlite:///{tmp_path}/file/router.db"}):
            pass


async def test_the_supervisor_does_not_load_the_service(backend: FakeBackend, tmp_path: Path) -> None:
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, serve; print('router' in sys.modules, 'fastapi' in sys.modules)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, VARIABLE: ""},
    )
    assert loaded.stdout.split() == ["False", "False"]


TURN = {"model": "test-model", "input": "Say something."}


async def taken(running: Service, backend: FakeBackend, slots: int) -> list[asyncio.Task[httpx2.Response]]:
    """Requests that hold so many slots."""
    held = [asyncio.create_task(running.http.post("/v1/responses", json=TURN)) for _ in range(slots)]
    await backend.wait_for(lambda b: b.in_flight == slots)
    return held


async def has_metric(http: httpx2.AsyncClient, name: str, value: float) -> None:
    async def reached() -> bool:
        return await metric(http, name) == value

    await eventually(reached, f"{name} is {value}")


async def holder_of(running: Service, backend: FakeBackend) -> int:
    """The worker that has a turn at the backend: the one with the most sockets, by what it looks like from outside."""
    connected = {pid: sum("socket" in os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()) for pid in running.workers()}
    return max(connected, key=lambda pid: connected[pid])


Waits = Callable[[], Awaitable[bool]]
