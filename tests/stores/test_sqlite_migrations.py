"""Files of earlier versions open and serve, whoever opens them first; those of later ones are refused."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import stores.migrations.sqlite as migrations
from core.seals import Sealer
from db import make_store
from stores.migrations import NewerDatabase
from tests.conftest import running_router
from tests.fake_backend import FakeBackend, chat
from tests.stores.rows import row, said, with_id
from tests.turns import URL, assert_error, create, rejoin, retrieve, text_of, turn

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data"
# What the router of commit 71a920e answered of the responses in its file.
ANSWERED: dict[str, Any] = json.loads((DATA / "router-71a920e.json").read_text("utf-8"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "router.db"


@pytest.fixture
def file_of_71a920e(path: Path) -> Path:
    return Path(shutil.copy(DATA / "router-71a920e.db", path))


def id_of(name: str) -> str:
    return ANSWERED[name]["id"]


def on_file(path: Path, backend: FakeBackend) -> Any:
    endpoint = {"url": f"{backend.url}/v1", "kind": "openai-chat"}
    return running_router(endpoints=[endpoint], database={"url": f"sqlite:///{path}"})


SEALED = "reasoning.encrypted_content"


def made_before(name: str) -> list[Any]:
    """The items of the turns before that of a response, oldest first."""
    if not (parent := ANSWERED[name]["previous_response_id"]):
        return []
    (before,) = [other for other in ANSWERED["input"] if id_of(other) == parent]
    return [*made_before(before), *ANSWERED["input"][before], *ANSWERED[before]["output"]]


def tables(path: Path) -> tuple[int, list[tuple[str, ...]]]:
    """The version of a file, and what is in its schema."""
    file = sqlite3.connect(path)
    try:
        version = file.execute("PRAGMA user_version").fetchone()[0]
        return version, file.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY name").fetchall()
    finally:
        file.close()


# ── a file of commit 71a920e ─────────────────────────────────────────────────────────────────────────────────────────


class TestEarlierFile:
    async def test_its_responses_are_answered_as_they_were(self, file_of_71a920e, backend):
        async with on_file(file_of_71a920e, backend) as running:
            for name in ("first", "second", "third", "replaying", "background"):
                assert await retrieve(running.http, id_of(name)) == ANSWERED[name]
            for name, items in ANSWERED["input"].items():
                listed = await running.http.get(f"{URL}/{id_of(name)}/input_items?order=asc&include[]={SEALED}")
                assert listed.json()["data"] == [*made_before(name), *items]
            assert await rejoin(running.http, id_of("background")) == ANSWERED["events"]

    async def test_its_conversations_go_on(self, file_of_71a920e, backend):
        async with on_file(file_of_71a920e, backend) as running:
            backend.script(chat("Goodbye."))
            answer = await create(running.http, input="And now?", previous_response_id=id_of("third"))
            assert text_of(answer) == "Goodbye."
        roles = [message["role"] for message in backend.turns[-1].json["messages"]]
        assert roles == ["user", "assistant", "tool", "assistant", "user", "assistant", "user"]
        contents = [message["content"] for message in backend.turns[-1].json["messages"]]
        assert (contents[0], contents[-1]) == (ANSWERED["input"]["first"][0]["content"][0]["text"], "And now?")

    async def test_what_ran_in_it_is_failed(self, file_of_71a920e, backend):
        async with on_file(file_of_71a920e, backend) as running:
            for name in ("running", "queued"):
                assert (await retrieve(running.http, id_of(name)))["status"] == "failed"

    async def test_its_items_are_found_and_an_id_is_its_first_writers_again(self, file_of_71a920e, backend):
        async with on_file(file_of_71a920e, backend) as running:
            reference = {"type": "item_reference", "id": "msg_mine"}
            await create(running.http, input=[reference], store=False)
            assert backend.turns[-1].json["messages"][0]["content"] == "What is the weather in Brest? 🌧"
            items = [item for name in ("first", "second", "third", "background") for item in ANSWERED[name]["output"]]
            found = await running.app.state.db.get_items([item["id"] for item in items])
            assert list(found.values()) == items

    async def test_its_responses_can_be_deleted(self, file_of_71a920e, backend):
        reference = turn(input=[{"type": "item_reference", "id": "msg_mine"}], store=False)
        async with on_file(file_of_71a920e, backend) as running:
            for name, status in (("first", 200), ("replaying", 400)):
                assert (await running.http.delete(f"{URL}/{id_of(name)}")).status_code == 200
                assert_error(await running.http.get(f"{URL}/{id_of(name)}"), 404)
                assert (await running.http.post(URL, json=reference)).status_code == status
            answer = await running.http.post(URL, json=turn(previous_response_id=id_of("third")))
            assert_error(answer, 400, code="previous_response_not_found", says=id_of("first"))

    async def test_what_it_has_sealed_is_opened(self, file_of_71a920e, backend):
        (reasoning, *_) = ANSWERED["first"]["output"]
        async with on_file(file_of_71a920e, backend) as running:
            key = await running.app.state.db.get_setting("secret_key", "another")
            assert Sealer(key).open(reasoning["encrypted_content"], "reasoning") == "Sea air, so mild."

    async def test_it_becomes_the_same_as_a_new_file(self, file_of_71a920e, tmp_path):
        new = tmp_path / "new.db"
        for path in (file_of_71a920e, new):
            store = make_store(f"sqlite:///{path}")
            await store.open()
            await store.close()
        assert tables(file_of_71a920e) == tables(new)
        assert tables(new)[0] == len(migrations.MIGRATIONS)

    async def test_the_log_of_what_was_written_anew_is_not_left_beside_it(self, file_of_71a920e):
        store = make_store(f"sqlite:///{file_of_71a920e}")
        await store.open()
        assert (file_of_71a920e.parent / "router.db-wal").stat().st_size == 0
        await store.close()


EARLIER_SCHEMA = """
    CREATE TABLE responses (
        id TEXT PRIMARY KEY,
        previous_response_id TEXT,
        model TEXT NOT NULL,
        status TEXT NOT NULL,
        created_at BIGINT NOT NULL,
        input BLOB NOT NULL,
        response BLOB
    );
    CREATE INDEX responses_previous ON responses (previous_response_id);
    CREATE INDEX responses_created ON responses (created_at);
    CREATE INDEX responses_running ON responses (status) WHERE status IN ('queued', 'in_progress');
    CREATE TABLE response_events (response_id TEXT PRIMARY KEY, events BLOB NOT NULL);
    CREATE TABLE response_items (item_id TEXT PRIMARY KEY, response_id TEXT NOT NULL);
    CREATE INDEX response_items_response ON response_items (response_id);
    CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


async def test_what_a_still_earlier_version_stored_is_still_there(path):
    earlier = sqlite3.connect(path)
    earlier.executescript(EARLIER_SCHEMA)
    for n in range(3):
        response = {"id": f"r{n}", "status": "completed", "output": [with_id(f"out_{n}")], "error": None}
        values = (
            f"r{n}",
            f"r{n - 1}" if n else None,
            b'[{"id":"in_%d","content":"hi"}]' % n,
            json.dumps(response).encode(),
        )
        earlier.execute("INSERT INTO responses VALUES (?, ?, 'm', 'completed', 1000, ?, ?)", values)
        earlier.executemany("INSERT INTO response_items VALUES (?, ?)", [(f"in_{n}", f"r{n}"), (f"out_{n}", f"r{n}")])
    earlier.execute("INSERT INTO responses VALUES ('queued', NULL, 'm', 'queued', 1000, '[]', NULL)")
    earlier.commit()
    earlier.close()
    store = make_store(f"sqlite:///{path}")
    for _ in range(2):  # the second time there is nothing to add
        await store.open()
        assert (await store.get_response("r2"))["response"] == response
        assert (await store.get_response("queued"))["response"] is None
        history = await store.get_history("r2")
        assert [item["id"] for item in history.items] == ["in_0", "out_0", "in_1", "out_1", "in_2", "out_2"]
        assert (await store.get_items(["out_1"]))["out_1"] == with_id("out_1")
        await store.close()
    await store.open()
    assert await store.fail_orphaned_responses() == 1
    await store.store_response("r3", **said("more", after="r2"))
    store.deletions.add(1)
    assert len((await store.get_history("r3")).items) == 8
    await store.update_response("r2", response | {"status": "failed"})
    assert (await store.get_response("r2"))["response"] == response | {"status": "failed"}
    ids = [f"{way}_{n}" for way in ("in", "out") for n in range(3)]
    assert len(await store.get_items(ids)) == 6
    assert await store.delete_response("r1") is True
    assert (await store.get_history("r3")).missing == "r1"
    assert set(await store.get_items(ids)) == {"in_0", "out_0", "in_2", "out_2"}
    await store.close()


# ── several at once, and in the middle ───────────────────────────────────────────────────────────────────────────────


async def test_two_may_open_a_new_file_at_once(path):
    stores = [make_store(f"sqlite:///{path}") for _ in range(4)]
    await asyncio.gather(*(store.open() for store in stores))
    for n, store in enumerate(stores):
        await store.store_response(f"resp_{n}", **row())
    assert [await stores[0].get_response(f"resp_{n}") is not None for n in range(4)] == [True] * 4
    for store in stores:
        await store.close()


# Opens the file that is named, waits for a line so that all begin together, and prints what it finds there.
OPEN = """
import asyncio, sys
from db import make_store

async def main():
    store = make_store("sqlite:///" + sys.argv[1])
    print("ready", flush=True)
    sys.stdin.readline()
    await store.open()
    print(len((await store.get_history(sys.argv[2])).items), flush=True)
    await store.close()

asyncio.run(main())
"""


@pytest.mark.parametrize("begins_as", ["new", "71a920e"])
def test_several_processes_may_bring_a_file_along_at_once(begins_as: str, path: Path) -> None:
    if begins_as != "new":
        shutil.copy(DATA / "router-71a920e.db", path)
        path.chmod(0o600)  # Else each of them warns.
    command = [sys.executable, "-c", OPEN, str(path), id_of("third")]
    pipe = subprocess.PIPE
    processes = [subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in range(4)]
    for process in processes:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    found = [process.communicate(timeout=30) for process in processes]
    items = "0" if begins_as == "new" else "8"
    assert [(out.strip(), error) for out, error in found] == [(items, "")] * 4


async def test_one_that_waits_for_the_other_does_nothing_again(file_of_71a920e, monkeypatch):
    """However long the other takes, and whatever it has changed meanwhile."""
    done: list[int] = []
    steps = [lambda connection, n=n, step=step: (done.append(n), step(connection)) for n, step in enumerate(MIGRATIONS)]
    monkeypatch.setattr(migrations, "MIGRATIONS", steps)
    stores = [make_store(f"sqlite:///{file_of_71a920e}") for _ in range(4)]
    await asyncio.gather(*(store.open() for store in stores))
    assert done == list(range(len(MIGRATIONS)))
    for store in stores:
        assert len((await store.get_history(id_of("third"))).items) == 8
        await store.close()


@pytest.mark.parametrize("at", range(len(migrations.MIGRATIONS)))
async def test_a_step_that_breaks_off_leaves_what_was_there_and_is_taken_again(at, file_of_71a920e, monkeypatch):
    store = make_store(f"sqlite:///{file_of_71a920e}")
    monkeypatch.setattr(migrations, "MIGRATIONS", MIGRATIONS[:at])
    await store.open()
    await store.close()
    before = tables(file_of_71a920e)

    def broken(connection: sqlite3.Connection) -> None:
        MIGRATIONS[at](connection)
        raise RuntimeError("the disk is full")

    monkeypatch.setattr(migrations, "MIGRATIONS", (*MIGRATIONS[:at], broken, *MIGRATIONS[at + 1 :]))
    with pytest.raises(RuntimeError, match="the disk is full"):
        await store.open()
    assert tables(file_of_71a920e) == before
    assert before[0] == at
    monkeypatch.setattr(migrations, "MIGRATIONS", MIGRATIONS)
    await store.open()
    assert len((await store.get_history(id_of("third"))).items) == 8
    await store.close()


async def test_a_file_of_a_later_version_is_refused_with_both_versions(path):
    store = make_store(f"sqlite:///{path}")
    await store.open()
    await store.store_response("resp_1", **row())
    await store.close()
    later = len(migrations.MIGRATIONS) + 3
    file = sqlite3.connect(path)
    file.execute(f"PRAGMA user_version = {later}")
    file.close()
    before = tables(path)
    with pytest.raises(NewerDatabase, match=rf"router\.db is .* version {later},.* up to {later - 3}:"):
        await store.open()
    assert tables(path) == before


MIGRATIONS = migrations.MIGRATIONS
