"""Databases on disk: who may read them, and what a router says that cannot open one."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
import yaml

import stores.queued_store
import stores.sqlite_connection
from core.errors import StartError
from db import make_store
from stores.files import make_private, opening
from stores.sqlite_connection import BUSY_S
from stores.writing import Outage, Write
from tests.conftest import Running, running_router
from tests.fake_backend import DONE, FakeBackend, chat, chunk, steps, until
from tests.test_restart import ROOT, free_port
from tests.turns import SOON_S, URL, Json, assert_error, create, eventually, open_stream, retrieve, turn

KEPT_OPEN = (
    *("router.db", "router.db-wal", "router.db-shm", "router.db.lock"),
    *("cache.db", "cache.db-wal", "cache.db-shm"),
)


def mode_of(file: Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)


@pytest.fixture(params=[0o022, 0o000, 0o277])
def umask(request: pytest.FixtureRequest) -> Json:
    before = os.umask(request.param)
    yield
    os.umask(before)


async def test_nobody_else_may_read_what_the_router_writes(umask: None, backend: FakeBackend, tmp_path: Path) -> None:
    if os.geteuid() and mode_of(tmp_path) == 0:
        pytest.skip("the mask keeps us out too")
    folder = tmp_path / "data" / "of" / "router"
    async with running_router(
        endpoints=[{"url": f"{backend.url}/v1", "kind": "openai-chat"}],
        database={"url": f"sqlite:///{folder}/router.db"},
        cache={"backend": "sqlite", "path": f"{folder}/cache.db"},
    ) as running:
        await create(running.http, nomyo={"cache": True})
        assert {file.name for file in folder.iterdir()} == set(KEPT_OPEN)
        assert {mode_of(file) & 0o077 for file in folder.iterdir()} == {0}
        assert {mode_of(made) & 0o077 for made in (folder, folder.parent, folder.parent.parent)} == {0}


async def test_a_file_that_others_may_read_is_named_and_left(
    backend: FakeBackend, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "router.db"
    file.touch(0o644)
    file.chmod(0o644)
    store = make_store(f"sqlite:///{file}")
    await store.open()
    await store.close()
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert f"chmod 600 {file}" in line
    assert mode_of(file) == 0o644
    caplog.clear()
    file.chmod(0o600)
    await store.open()
    await store.close()
    assert not caplog.records


# ── a start that fails ───────────────────────────────────────────────────────────────────────────────────────────────


def a_newer_one(file: Path) -> None:
    connection = sqlite3.connect(file)
    connection.execute("PRAGMA user_version = 1000")
    connection.close()


def below_a_file(file: Path) -> None:
    file.parent.rmdir()
    file.parent.write_text("no folder")


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "text": (lambda file: file.write_text("This is no database, and long enough to be sure. " * 100), "no SQLite"),
    "folder": (lambda file: file.mkdir(), "is a folder"),
    "newer": (a_newer_one, "version 1000"),
    "below a file": (below_a_file, "Not a directory"),
}


@pytest.mark.heavy
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("setting", ["database.url", "cache.path"])
@pytest.mark.parametrize("fault", FAULTS)
async def test_a_start_that_fails_says_so_in_one_line(fault: str, setting: str, workers: int, tmp_path: Path) -> None:
    if (fault, setting) == ("newer", "cache.path"):
        return  # It has no versions.
    if workers > 1 and fault != "text":
        return  # They start in the same way.
    folder = tmp_path / "folder"
    folder.mkdir()
    make, words = FAULTS[fault]
    file = folder / "some.db"
    make(file)
    other = tmp_path / "other.db"
    database, cache = (file, other) if setting == "database.url" else (other, file)
    settings = {
        "endpoints": [{"url": "http://127.0.0.1:9", "kind": "openai-chat"}],
        "database": {"url": f"sqlite:///{database}"},
        "cache": {"backend": "sqlite", "path": str(cache)},
        "workers": workers,
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "serve.py", "--port", str(free_port()), "--log-level", "warning"),
        cwd=ROOT,
        env={**os.environ, "ROUTER_CONFIG": str(tmp_path / "config.yaml")},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(process.communicate(), SOON_S)
    text = output.decode()
    assert process.returncode == 3, text
    assert "Traceback" not in text
    # Each worker logs it, at a time of its own.
    lines = {line[line.index("nomyo-router cannot") :] for line in text.splitlines() if "cannot start" in line}
    assert len(lines) == 1, text
    (line,) = lines
    for word in (str(file), words, setting if fault != "newer" else "database.url"):
        assert word in line


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (sqlite3.SQLITE_FULL, "no room"),
        (sqlite3.SQLITE_READONLY_DIRECTORY, "cannot be written"),
        (sqlite3.SQLITE_CANTOPEN, "cannot be opened"),
        (sqlite3.SQLITE_BUSY, "locked"),
        (sqlite3.SQLITE_IOERR_WRITE, "fault of its disk"),
        (sqlite3.SQLITE_CORRUPT, "damaged"),
        (sqlite3.SQLITE_MISUSE, "misuse"),
    ],
)
def test_what_sqlite_says_is_a_cause_and_what_to_do(code: int, words: str) -> None:
    error = sqlite3.OperationalError("misuse")
    error.sqlite_errorcode = code
    with pytest.raises(StartError, match=words) as raised, opening("/data/router.db", "database.url"):
        raise error
    assert str(raised.value).startswith("/data/router.db ")
    assert "database.url" in str(raised.value)


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied", "/data"), OSError(30, "Read-only", "/data")]
)
def test_what_the_system_refuses_is_named(error: OSError) -> None:
    with pytest.raises(StartError, match=f"/data: {error.strerror}"), opening("/data/router.db", "database.url"):
        raise error


def test_several_may_make_the_same_file_at_once(tmp_path: Path) -> None:
    for _ in range(2):
        make_private(str(tmp_path / "a" / "b.db"))
    assert mode_of(tmp_path / "a" / "b.db") == 0o600


# ── while it runs ────────────────────────────────────────────────────────────────────────────────────────────────────


def with_file(backend: FakeBackend, file: Path) -> AbstractAsyncContextManager[Running]:
    endpoint = {"url": f"{backend.url}/v1", "kind": "openai-chat"}
    return running_router(endpoints=[endpoint], database={"url": f"sqlite:///{file}"})


async def health(running: Running) -> int:
    return (await running.http.get("/health")).status_code


def copy_of(file: Path) -> bytes:
    """A whole database, as a backup of it would be."""
    source, copy = sqlite3.connect(file), sqlite3.connect(file.with_name("copy"))
    source.backup(copy)
    source.close()
    copy.close()
    return file.with_name("copy").read_bytes()


@pytest.mark.parametrize("how", ["deleted", "overwritten", "replaced by a folder"])
async def test_a_database_that_is_lost_is_noticed_and_taken_again_when_it_is_back(
    how: str, backend: FakeBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores.queued_store, "CHECK_EVERY_S", 0)
    file = tmp_path / "data" / "router.db"
    async with with_file(backend, file) as running:
        first = await create(running.http)
        assert await health(running) == 200
        copy = copy_of(file)
        if how == "overwritten":
            file.write_bytes(b"garbage" * 10_000)
        else:
            file.unlink()
        if how == "replaced by a folder":
            file.mkdir()
        answer = await running.http.post(URL, json=turn())
        assert_error(answer, 503, code="storage_error")
        assert int(answer.headers["retry-after"]) > 0
        assert await health(running) == 503
        assert (await running.http.get("/v1/models")).status_code == 200, "the rest goes on"

        if how == "replaced by a folder":
            file.rmdir()
        for left in ("router.db-wal", "router.db-shm"):
            (file.parent / left).unlink(missing_ok=True)
        file.write_bytes(copy)
        assert await health(running) == 200
        second = await create(running.http, previous_response_id=first["id"])
    async with with_file(backend, file) as running:
        for response in (first, second):
            assert (await running.http.get(f"{URL}/{response['id']}")).status_code == 200


@pytest.mark.heavy
async def test_turns_wait_for_a_database_that_is_locked(backend: FakeBackend, tmp_path: Path) -> None:
    file = tmp_path / "router.db"
    async with with_file(backend, file) as running:
        other = sqlite3.connect(file, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        asking = [asyncio.create_task(create(running.http)) for _ in range(5)]
        await asyncio.sleep(BUSY_S + 1)  # Once all that SQLite waited.
        assert not any(task.done() for task in asking)
        assert await health(running) == 503
        other.execute("COMMIT")
        other.close()
        for response in await asyncio.gather(*asking):
            assert response["status"] == "completed"
        await eventually(lambda: running.app.state.db._queue.outage is None, "nothing is wrong any more")
        assert await health(running) == 200


async def test_one_that_is_locked_for_too_long_is_a_503(
    backend: FakeBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores.sqlite_connection, "LOCKED_S", 0.05)
    file = tmp_path / "router.db"
    async with with_file(backend, file) as running:
        other = sqlite3.connect(file, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        for answer in await asyncio.gather(*(running.http.post(URL, json=turn()) for _ in range(3))):
            assert_error(answer, 503, code="storage_error")
            assert int(answer.headers["retry-after"]) > 0
        other.execute("COMMIT")
        other.close()
        assert (await create(running.http))["status"] == "completed"


@pytest.mark.parametrize("url", ["sqlite:///{}/router.db", "postgres"])
async def test_a_stream_that_began_while_nothing_could_be_stored_is_stored_at_its_end(
    url: str, backend: FakeBackend, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """There is no row that its end could change."""
    goes_on = asyncio.Event()
    backend.script(chat("Hello", then=steps(until(goes_on), chunk({}, finish_reason="stop"), DONE)))
    database = request.getfixturevalue("postgres").new_database() if url == "postgres" else url.format(tmp_path)
    async with running_router(
        endpoints=[{"url": f"{backend.url}/v1", "kind": "openai-chat"}], database={"url": database}
    ) as running:
        queue = running.app.state.db._queue
        run, failed = queue._run, asyncio.Event()

        async def away(writes: list[Write]) -> list[Write]:
            failed.set()
            raise Outage("the database is away")

        queue._run = away
        async with open_stream(running.http) as events:
            await events.until("response.output_text.delta")
            await failed.wait()
            queue._run = run
            goes_on.set()
            seen = await events.rest()
        assert seen[-1]["type"] == "response.completed"
        assert (await retrieve(running.http, seen[-1]["response"]["id"]))["output"] == seen[-1]["response"]["output"]
        await create(running.http, previous_response_id=seen[-1]["response"]["id"])
