"""Workers on one machine: what is theirs alone, their numbers, their sockets, and how many endpoints there is room
for."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import workers
from cluster.protocol import Quota
from cluster.workers import Workers, new_folder
from tests.cluster.services import WorkersService

HERE = "http://server:1/v1"


@pytest.fixture
def service(short_path: Path) -> WorkersService:
    return WorkersService(short_path)


@pytest.fixture
def here(service: WorkersService) -> Iterator[Workers]:
    """This process among them."""
    here = service.here()
    here.join()
    yield here
    here.leave()


async def test_each_worker_has_a_number_of_its_own(service: WorkersService, here: Workers) -> None:
    async with service.other() as first, service.other() as second:
        numbers = [here.number, *[await other.run("cluster.number") for other in (first, second)]]
        assert numbers == [0, 1, 2]
        assert here.others() == [1, 2]
        await first.kill()
        assert here.others() == [2], "it is dead"
        async with service.other() as successor:
            assert await successor.run("[cluster.number, cluster.is_successor]") == [1, True]
    assert not here.is_successor


@pytest.mark.parametrize("length", [1, 50, 85, 200])
def test_the_sockets_of_the_workers_have_room_for_their_names(monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    """However long TMPDIR is: a system has room for some 100 characters of a socket's path."""
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        long = Path(short) / ("x" * length)
        long.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(long))
        with new_folder() as folder, socket.socket(socket.AF_UNIX) as peers, socket.socket(socket.AF_UNIX) as wake_ups:
            Workers.prepare(Path(folder))
            last = Workers(Path(folder))
            peers.bind(str(last.peer_socket(workers.MOST_WORKERS - 1)))
            wake_ups.bind(str(last.line.wake_up_socket(workers.MOST_WORKERS - 1)))
            assert Path(folder).is_relative_to(long) is (length < 85), "TMPDIR is where it belongs"


def test_of_more_endpoints_than_there_is_room_for_each_worker_counts_its_own(
    here: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[str] = []
    monkeypatch.setattr(workers.log, "warning", lambda text, *values: logged.append(text % values))
    for number in range(workers.MOST_ENDPOINTS):
        here.in_flight(f"{HERE}/{number}").draining = True
    assert not logged
    own = here.in_flight(HERE)
    assert any(str(workers.MOST_ENDPOINTS) in line for line in logged), logged
    with here.exclusive():
        own.begin()
    assert (own.total(), own.draining) == (1, False)
    assert here.in_flight(f"{HERE}/0").draining, "those that are there keep their place"


async def test_of_more_quotas_than_there_is_room_for_each_worker_counts_its_own(
    here: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[str] = []
    monkeypatch.setattr(workers.log, "warning", lambda text, *values: logged.append(text % values))
    for number in range(workers.MOST_QUOTAS):
        assert here.quotas._row(here.quotas._at_once, f"key {number}") is not None
    assert not logged
    for number in range(2):
        taken = await here.quotas.take([(Quota(f"one more, {number}", 1, 0.0), 1)])
        assert (taken.refused, taken.left[0].amount) == (None, 0)
    assert len(logged) == 1
    assert str(workers.MOST_QUOTAS) in logged[0]


def test_what_no_endpoint_and_no_key_uses_takes_no_room(service: WorkersService, here: Workers) -> None:
    counters = service.folder / "counters"
    assert counters.stat().st_size == workers.CELLS * 8
    assert counters.stat().st_blocks * 512 < 200_000
