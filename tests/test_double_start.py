"""A second start by mistake, on a port that is taken or on the database of another router, does no harm to the router
that has it."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import sys
from pathlib import Path

import pytest
import yaml

import stores.service_lock
from core.errors import StartError
from db import Store, make_store
from stores.service_lock import ServiceLock
from tests.turns import SOON_S

ROOT = Path(__file__).parents[1]


async def output_of_start(folder: Path, url: str, port: int = 0, **settings: object) -> tuple[int | None, str]:
    """The exit status and what is logged of a start that fails."""
    settings = {"endpoints": [{"url": "http://127.0.0.1:9", "kind": "openai-chat"}], **settings}
    (folder / "config.yaml").write_text(yaml.safe_dump({**settings, "database": {"url": url}}))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "serve.py", "--port", str(port), "--log-level", "warning"),
        cwd=ROOT,
        env={**os.environ, "ROUTER_CONFIG": str(folder / "config.yaml")},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), SOON_S)
    finally:
        if process.returncode is None:
            process.kill()
    return process.returncode, output.decode()


async def begin_turn(store: Store) -> None:
    await store.open()
    await store.store_response(
        "resp_1", previous_response_id=None, model="m", status="in_progress", created_at=1, input_messages=[]
    )


async def status_of_turn(store: Store) -> str:
    stored = await store.get_response("resp_1")
    assert stored is not None
    return str(stored["status"])


async def test_a_start_on_a_taken_port_leaves_the_turns_alone_that_run_there(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/router.db"
    store = make_store(url)
    await begin_turn(store)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        status, output = await output_of_start(tmp_path, url, taken.getsockname()[1])
    assert status, output
    assert "in use" in output
    assert await status_of_turn(store) == "in_progress"
    await store.close()


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.heavy)])
async def test_a_second_router_on_the_same_file_does_not_start(workers: int, tmp_path: Path) -> None:
    file, link = tmp_path / "router.db", tmp_path / "link.db"
    link.symlink_to(file)
    store = make_store(f"sqlite:///{file}", service="the first")
    await begin_turn(store)
    for path in (file, link):
        status, output = await output_of_start(tmp_path, f"sqlite:///{path}", workers=workers)
        assert status == 3, output
        assert "Traceback" not in output
        lines = {line[line.index("nomyo-router") :] for line in output.splitlines() if "cannot start" in line}
        assert lines == {
            f"nomyo-router cannot start: {path} is used by another router: end that one, or give another (database.url)"
        }
    assert await status_of_turn(store) == "in_progress"
    await store.close()


async def test_processes_of_one_service_share_a_file_and_the_last_one_gives_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores.service_lock, "STOPPING_S", 0.05)
    url = f"sqlite:///{tmp_path}/router.db"
    one, two, other = (make_store(url, service=service) for service in ("a", "a", "b"))
    await one.open()
    await two.open()
    await one.close()
    with pytest.raises(StartError, match=r"router\.db is used by another router"):
        await other.open()
    await one.open()
    await two.close()
    await one.close()
    await other.open()
    tool = make_store(url)
    await tool.open()  # Runs no turns, and harms none.
    await tool.close()
    await other.close()


async def test_the_kernel_gives_the_file_of_a_killed_process_back(tmp_path: Path) -> None:
    code = """
import asyncio, sys
from db import make_store

async def main():
    store = make_store(sys.argv[1], service="killed")
    await store.open()
    print("open", flush=True)
    await asyncio.sleep(3600)

asyncio.run(main())
"""
    url = f"sqlite:///{tmp_path}/router.db"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code, url), cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout
    await asyncio.wait_for(process.stdout.readline(), SOON_S)
    store = make_store(url, service="the next")
    with pytest.raises(StartError, match="used by another router"):
        await store.open()
    process.kill()
    await process.wait()
    await store.open()
    await store.close()


async def test_of_many_that_start_at_once_those_of_one_service_have_the_file(tmp_path: Path) -> None:
    for round_ in range(20):
        locks = [ServiceLock(str(tmp_path / f"{round_}.db"), service) for service in ("a", "b", "c") * 3]
        taken = [lock._is_taken() for lock in locks]
        assert {lock._service for lock, is_taken in zip(locks, taken, strict=True) if is_taken} == {b"a"}
        for lock in locks:
            lock.close()


async def test_who_writes_the_name_before_the_lock_is_shared_is_the_one_that_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (ServiceLock(str(tmp_path / "router.db"), service) for service in ("first", "second"))
    lock = first._lock

    def interrupted(how: int) -> bool:
        if how == fcntl.LOCK_SH:  # To share a lock is to give it up first.
            fcntl.flock(first._file, fcntl.LOCK_UN)
            assert second._is_taken()
        return lock(how)

    monkeypatch.setattr(first, "_lock", interrupted)
    assert not first._is_taken()
    monkeypatch.undo()
    assert not first._is_taken()
    assert second._is_taken()
    first.close()
    second.close()


async def test_where_nothing_can_be_locked_the_log_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    store = make_store(f"sqlite:///{tmp_path}/router.db", service="a")
    await store.open()
    await store.close()
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "cannot be locked (No locks available)" in line
