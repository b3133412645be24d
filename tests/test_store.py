"""The store keeps its promises, on a file and in memory: every test but the last few runs on both."""

import asyncio
import json
import re
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from core.errors import ServerError
from db import Store
from requests.responses import new_id
from tests.conftest import running_router
from tests.fake_backend import FakeBackend, chat, http_error
from tests.turns import SOON_S, assert_error, create, eventually, soon, stream, turn


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/deep/router.db" if request.param == "file" else "sqlite://"


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    store = Store(url)
    await store.open()
    yield store
    await store.close()


def item(text: str) -> dict[str, Any]:
    return {"type": "message", "role": "user", "content": text}


def row(status: str = "completed", *, after: str | None = None, at: int = 1000, **response: Any) -> dict[str, Any]:
    """What `store_response` is given for a turn."""
    return {
        "previous_response_id": after,
        "model": "m",
        "status": status,
        "created_at": at,
        "input_messages": [item("hi")],
        "response": {"status": status, "output": [], **response},
    }


def said(text: str, **values: Any) -> dict[str, Any]:
    """A turn with a text and an answer to it."""
    return row(output=[item(f"answer to {text}")], **values) | {"input_messages": [item(text)]}


async def said_in(store: Store, response_id: str) -> list[str]:
    """The texts of a conversation."""
    return [item["content"] for item in (await store.get_history(response_id)).items]


async def traced(connection: Any) -> list[str]:
    """The SQL that a connection runs from now on."""
    statements: list[str] = []
    await connection.run(lambda sqlite: sqlite.set_trace_callback(statements.append))
    return statements


class TestResponses:
    async def test_a_stored_response_is_read_as_it_was_given(self, store):
        output = [{"type": "message", "content": [{"type": "output_text", "text": "naïve 🦙\x00 'quoted'"}]}]
        await store.store_response("resp_1", **row(after="resp_0", output=output))
        assert await store.get_response("resp_1") == {
            "id": "resp_1",
            "previous_response_id": "resp_0",
            "model": "m",
            "status": "completed",
            "created_at": 1000,
            "input": [item("hi")],
            "response": {"status": "completed", "output": output},
        }

    async def test_a_response_may_be_stored_before_there_is_one(self, store):
        await store.store_response("resp_1", **row("queued") | {"response": None})
        assert (await store.get_response("resp_1"))["response"] is None

    async def test_an_unknown_response_is_none_and_deleting_it_is_false(self, store):
        assert await store.get_response("resp_none") is None
        assert await store.delete_response("resp_none") is False

    async def test_storing_again_changes_the_response_and_keeps_the_rest(self, store):
        await store.store_response("resp_1", **row("in_progress", after="resp_0"))
        await store.store_response("resp_1", **row("completed", after="resp_x", at=9) | {"input_messages": []})
        stored = await store.get_response("resp_1")
        assert (stored["status"], stored["response"]["status"]) == ("completed", "completed")
        assert (stored["previous_response_id"], stored["created_at"], stored["input"]) == ("resp_0", 1000, [item("hi")])

    async def test_an_update_changes_status_and_response(self, store):
        await store.store_response("resp_1", **row("in_progress"))
        ended = {"status": "completed", "output": [item("hello")], "error": None}
        await store.update_response("resp_1", ended)
        stored = await store.get_response("resp_1")
        assert stored["status"] == "completed"
        assert stored["response"] == ended

    async def test_what_was_deleted_while_it_ran_stays_deleted(self, store):
        await store.store_response("resp_1", **row("in_progress"))
        assert await store.delete_response("resp_1") is True
        await store.update_response("resp_1", {"status": "completed", "output": []})
        await store.store_events("resp_1", [{"type": "response.completed"}])
        assert await store.get_response("resp_1") is None
        assert await store.get_events("resp_1") is None

    async def test_it_can_be_opened_again(self, store, url):
        await store.store_response("resp_1", **row())
        await store.close()
        await store.open()
        assert (await store.get_response("resp_1") is not None) == (url != "sqlite://")
        await store.store_response("resp_2", **row())
        assert await store.get_response("resp_2") is not None


class TestIds:
    def test_they_sort_by_the_second_in_which_they_were_made(self, monkeypatch):
        now = 0x7FFFFF00
        monkeypatch.setattr("requests.responses.time.time", lambda: now)
        made = []
        for _ in range(600):
            now += 0.9  # also past 2038
            made.append((int(now), new_id("resp")))
        assert [second for second, _ in sorted(made, key=lambda one: one[1])] == [second for second, _ in made]

    def test_they_are_as_long_as_ever_and_nobody_can_guess_them(self):
        ids = [new_id("msg") for _ in range(3000)]
        assert all(re.fullmatch("msg_[0-9a-f]{32}", id_) for id_ in ids)
        parts = [int(id_[12:], 16) for id_ in ids]
        assert len(set(parts)) == 3000
        ones = [sum(part >> bit & 1 for part in parts) for bit in range(96)]
        assert all(1200 < count < 1800 for count in ones), "a bit that is hardly random"


EVENTS = [{"type": "response.created", "sequence_number": 0}, {"type": "response.completed", "sequence_number": 1}]


class TestEvents:
    async def test_events_are_read_as_they_were_given(self, store):
        await store.store_response("resp_1", **row())
        assert await store.get_events("resp_1") is None
        await store.store_events("resp_1", EVENTS)
        assert await store.get_events("resp_1") == EVENTS

    async def test_events_go_with_their_response(self, store):
        await store.store_response("resp_1", **row())
        await store.store_events("resp_1", EVENTS)
        await store.delete_response("resp_1")
        await store.store_response("resp_1", **row())
        assert await store.get_events("resp_1") is None


class TestHistories:
    """Out of the database: `deletions` has moved, so that nothing is warm. What is has its own tests, in test_warm_chains.py."""

    async def test_200_turns_are_read_in_one_query_oldest_first(self, store):
        ids = [f"resp_{n}" for n in range(200)]
        for n, response_id in enumerate(ids):
            # No order of insertion, time or name to lean on.
            store.store_response(response_id, **said(response_id, after=ids[n - 1] if n else None, at=1000 - n))
        await store.store_response("resp_other", **said("other"))
        store.deletions.add(1)
        statements = await traced(store._connector._reader)
        assert await said_in(store, "resp_199") == [text for id_ in ids for text in (id_, f"answer to {id_}")]
        assert len(statements) == 1, statements
        assert await said_in(store, "resp_3") == [text for id_ in ids[:4] for text in (id_, f"answer to {id_}")]

    async def test_branches_share_their_beginning(self, store):
        store.store_response("root", **said("root"))
        store.store_response("left", **said("left", after="root"))
        store.store_response("right", **said("right", after="root"))
        await store.store_response("leaf", **said("leaf", after="right"))
        store.deletions.add(1)
        assert (await said_in(store, "left"))[::2] == ["root", "left"]
        assert (await said_in(store, "leaf"))[::2] == ["root", "right", "leaf"]

    async def test_the_one_that_was_deleted_is_named(self, store):
        store.store_response("a", **row())
        store.store_response("b", **row(after="a"))
        await store.store_response("c", **row(after="b"))
        await store.delete_response("b")
        assert (await store.get_history("c")).missing == "b"
        assert (await store.get_history("a")).missing is None

    async def test_so_is_one_that_never_was(self, store):
        assert (await store.get_history("resp_none")).missing == "resp_none"

    async def test_a_response_that_has_not_ended_says_so(self, store):
        for status in ("queued", "in_progress"):
            await store.store_response(status, **row(status) | {"response": None})
            assert (await store.get_history(status)).unfinished == status
        await store.update_response("queued", {"status": "cancelled", "output": []})
        assert (await store.get_history("queued")).unfinished is None


def with_id(item_id: str) -> dict[str, Any]:
    return {"id": item_id, **item(f"I am {item_id}")}


class TestItems:
    async def test_items_of_ended_responses_are_found_by_their_ids(self, store):
        await store.store_response("resp_1", **row(output=[with_id("out_1")]) | {"input_messages": [with_id("in_1")]})
        begun = row("in_progress") | {"input_messages": [with_id("in_2"), item("no id")]}
        await store.store_response("resp_2", **begun)
        assert await store.get_items(["in_2"]) == {}, "it may still be refused"
        await store.update_response("resp_2", {"status": "incomplete", "output": [with_id("out_2")]})
        wanted = ["out_1", "in_2", "no such", "out_2", "in_1", "in_1"]
        statements = await traced(store._connector._reader)
        found = await store.get_items(wanted)
        assert found == {id_: with_id(id_) for id_ in wanted if id_ != "no such"}
        assert len(statements) == 1, statements

    async def test_of_two_with_the_same_id_the_later_one_is_found(self, store):
        for n in (1, 2):
            given = [{**with_id("in"), "content": f"version {n}"}, with_id(f"in_{n}")]
            await store.store_response(f"resp_{n}", **row() | {"input_messages": given})
        assert (await store.get_items(["in", "in_1", "in_2"]))["in"]["content"] == "version 2"

    @pytest.mark.parametrize("begun", [True, False])
    async def test_items_go_with_their_response(self, store, begun):
        for n in (1, 2):
            values = row(output=[with_id(f"out_{n}")]) | {"input_messages": [with_id(f"in_{n}"), item("no id")]}
            await store.store_response(f"resp_{n}", **values | ({"status": "in_progress"} if begun else {}))
            await store.update_response(f"resp_{n}", values["response"])
        assert await store.delete_response("resp_1") is True
        assert set(await store.get_items(["in_1", "in_2", "out_1", "out_2"])) == {"in_2", "out_2"}
        assert await kept_items(store) == {"in_2", "out_2"}

    async def test_a_response_that_is_deleted_while_it_runs_leaves_no_items(self, store):
        await store.store_response("resp_1", **row("in_progress") | {"input_messages": [with_id("in")]})
        await store.delete_response("resp_1")
        await store.update_response("resp_1", {"status": "completed", "output": [with_id("out")]})
        assert await kept_items(store) == set()


async def kept_items(store: Store) -> set[str]:
    return {row["item_id"] for row in await store._connector.read("SELECT item_id FROM response_items")}


class TestWriting:
    async def test_many_turns_that_finish_together_are_committed_together(self, store):
        statements = await traced(store._connector._writer)
        await asyncio.gather(*(store.store_response(f"resp_{n}", **row()) for n in range(300)))
        commits = sum(statement.upper().startswith("COMMIT") for statement in statements)
        assert 1 <= commits <= 3, f"{commits} commits for 300 responses"
        for n in (0, 150, 299):
            assert await store.get_response(f"resp_{n}") is not None

    async def test_writes_of_one_batch_keep_their_order(self, store):
        done: list[str] = []

        async def note(name: str, write: Any) -> None:
            await write
            done.append(name)

        async with asyncio.TaskGroup() as group:
            for n in range(20):
                group.create_task(note(f"store {n}", store.store_response(f"resp_{n}", **row("in_progress"))))
                group.create_task(note(f"update {n}", store.update_response(f"resp_{n}", {"status": "completed"})))
        assert [(await store.get_response(f"resp_{n}"))["status"] for n in range(20)] == ["completed"] * 20
        assert done == [f"{verb} {n}" for n in range(20) for verb in ("store", "update")]

    async def test_a_write_is_queued_when_it_is_called_and_needs_nobody_to_wait(self, store):
        store.store_response("resp_1", **row())
        await store.store_response("resp_2", **row())
        assert await store.get_response("resp_1") is not None

    async def test_who_stops_waiting_does_not_stop_the_write(self, store):
        waiting = asyncio.ensure_future(store.store_response("resp_1", **row()))
        waiting.cancel()
        await store.store_response("resp_2", **row())
        assert await store.get_response("resp_1") is not None

    async def test_a_failed_write_raises_a_server_error_and_the_next_one_works(self, store):
        with pytest.raises(ServerError) as raised:
            await store.store_response("resp_1", **row() | {"model": object()})
        assert raised.value.code == "storage_error"
        await store.store_response("resp_2", **row())
        assert await store.get_response("resp_1") is None
        assert await store.get_response("resp_2") is not None

    async def test_a_failed_write_does_not_take_others_down_with_it(self, store):
        good = [store.store_response(f"resp_{n}", **row()) for n in range(3)]
        bad = store.store_response("resp_bad", **row() | {"model": object()})
        good += [store.store_response(f"resp_{n}", **row()) for n in range(3, 6)]
        outcomes = await asyncio.gather(*good, bad, return_exceptions=True)
        assert [type(outcome).__name__ for outcome in outcomes] == ["NoneType"] * 6 + ["ServerError"]
        assert [bool(await store.get_response(f"resp_{n}")) for n in range(6)] == [True] * 6

    async def test_a_failed_write_that_nobody_waits_for_is_logged(self, store, caplog):
        store.store_response("resp_1", **row() | {"model": object()})
        await eventually(lambda: bool(caplog.records), "something is logged")
        assert [(record.name, record.levelname) for record in caplog.records] == [("nomyo.db", "ERROR")]

    async def test_a_write_after_the_end_is_an_error_and_not_a_wait_for_ever(self, store):
        await store.close()
        with pytest.raises(ServerError):
            async with soon():
                await store.store_response("resp_1", **row())


class TestRetention:
    async def kept(self, store: Store, before: int, **rows: dict[str, Any]) -> tuple[int, set[str]]:
        for name, values in rows.items():
            await store.store_response(name, **values)
        deleted = await store.delete_older_than(before)
        return deleted, {name for name in rows if await store.get_response(name)}

    async def test_old_responses_go_and_young_ones_stay(self, store):
        assert await self.kept(store, 100, old=row(at=99), young=row(at=100)) == (1, {"young"})

    async def test_a_turn_that_a_younger_one_builds_on_stays(self, store):
        kept = await self.kept(
            store,
            100,
            a=row(at=1),
            b=row(after="a", at=2),
            young=row(after="b", at=200),
            branch=row(after="a", at=3),
            leaf=row(after="branch", at=4),
        )
        assert kept == (2, {"a", "b", "young"})

    async def test_an_old_chain_goes_as_a_whole_with_its_events(self, store):
        rows = {f"r{n}": row(after=f"r{n - 1}" if n else None, at=n) for n in range(10)}
        for name, values in rows.items():
            await store.store_response(name, **values)
            await store.store_events(name, [{"type": "response.created"}])
        assert await store.delete_older_than(100) == 10
        assert [await store.get_events(name) for name in rows] == [None] * 10

    async def test_what_still_runs_stays(self, store):
        kept = await self.kept(store, 100, queued=row("queued", at=1), running=row("in_progress", at=1))
        assert kept == (0, {"queued", "running"})

    async def test_more_than_one_batch(self, store):
        for n in range(1200):
            store.store_response(f"resp_{n}", **row(at=1))
        await store.store_response("young", **row(at=200))
        assert await store.delete_older_than(100) == 1200
        assert await store.get_response("young") is not None


class TestOrphans:
    async def test_what_was_running_when_the_process_died_is_failed(self, store):
        for status in ("queued", "in_progress", "completed", "cancelled", "incomplete", "failed"):
            await store.store_response(status, **row(status, id=status, error=None))
        assert await store.fail_orphaned_responses() == 2
        for status in ("queued", "in_progress"):
            stored = await store.get_response(status)
            assert (stored["status"], stored["response"]["status"]) == ("failed", "failed")
            assert stored["response"]["error"]["code"] == "server_error"
            assert "stopped" in stored["response"]["error"]["message"]
            assert stored["response"]["id"] == status, "the rest of the response is lost"
            assert stored["input"] == [item("hi")]
        for status in ("completed", "cancelled", "incomplete"):
            assert (await store.get_response(status))["response"]["error"] is None
        assert await store.fail_orphaned_responses() == 0


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


class TestFiles:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / "router.db"

    @pytest.fixture
    async def store(self, path: Path) -> AsyncIterator[Store]:
        store = Store(f"sqlite:///{path}")
        await store.open()
        yield store
        await store.close()

    async def test_the_file_is_in_wal_mode(self, store, path):
        with sqlite3.connect(path) as other:
            assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        other.close()

    async def test_a_reader_does_not_wait_for_a_writer(self, store, path):
        await store.store_response("resp_1", **row())
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        write = asyncio.ensure_future(store.store_response("resp_2", **row()))
        async with soon():
            assert await store.get_response("resp_1") is not None
        assert not write.done()
        other.execute("COMMIT")
        await write
        other.close()

    async def test_closing_writes_what_is_queued(self, store, path):
        writes = [store.store_response(f"resp_{n}", **row()) for n in range(50)]
        await store.close()
        await asyncio.wait_for(asyncio.gather(*writes), SOON_S)
        with sqlite3.connect(path) as other:
            assert other.execute("SELECT COUNT(*) FROM responses").fetchone() == (50,)
        other.close()

    async def test_what_was_stored_is_there_after_a_restart(self, store, path):
        await store.store_response("resp_1", **row())
        await store.close()
        await store.open()
        assert (await store.get_response("resp_1"))["input"] == [item("hi")]

    async def test_what_an_earlier_version_stored_is_still_there(self, path):
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
            earlier.executemany(
                "INSERT INTO response_items VALUES (?, ?)", [(f"in_{n}", f"r{n}"), (f"out_{n}", f"r{n}")]
            )
        earlier.execute("INSERT INTO responses VALUES ('queued', NULL, 'm', 'queued', 1000, '[]', NULL)")
        earlier.commit()
        earlier.close()
        store = Store(f"sqlite:///{path}")
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
        assert await store.delete_response("r1") is True
        assert (await store.get_history("r3")).missing == "r1"
        assert await kept_items(store) == {"in_0", "out_0", "in_2", "out_2"}
        await store.close()

    async def test_two_may_open_a_new_file_at_once(self, path):
        stores = [Store(f"sqlite:///{path}") for _ in range(4)]
        await asyncio.gather(*(store.open() for store in stores))
        for n, store in enumerate(stores):
            await store.store_response(f"resp_{n}", **row())
        assert [await stores[0].get_response(f"resp_{n}") is not None for n in range(4)] == [True] * 4
        for store in stores:
            await store.close()

    async def test_a_file_that_cannot_be_opened_is_an_error(self, tmp_path):
        with pytest.raises(sqlite3.OperationalError):
            await Store(f"sqlite:///{tmp_path}").open()

    def test_a_relative_url_is_a_relative_path(self):
        assert Store("sqlite:///data/router.db")._connector._path == "data/router.db"
        assert Store("sqlite:////srv/router.db")._connector._path == "/srv/router.db"
        assert Store("sqlite://")._connector._path == ":memory:"


class TestThroughTheRouter:
    MARKER = "QuetzalcoatlusNorthropi"

    def bytes_on_disk(self, folder: Path) -> bytes:
        files = [file for file in folder.rglob("*") if file.is_file()]
        assert {"router.db", "router.db-wal", "cache.db"} <= {file.name for file in files}
        return b"".join(file.read_bytes() for file in files)

    async def test_store_false_leaves_nothing_on_disk(self, backend: FakeBackend, tmp_path):
        settings = {
            "endpoints": [{"url": f"{backend.url}/v1", "kind": "openai-chat"}],
            "database": {"url": f"sqlite:///{tmp_path}/router.db"},
            "cache": {"backend": "sqlite", "path": f"{tmp_path}/cache.db"},
        }
        secret = {"input": f"I am {self.MARKER}", "instructions": self.MARKER, "nomyo": {"cache": True}}
        backend.default = chat(f"You are {self.MARKER}")
        async with running_router(**settings) as running:
            first = await create(running.http, **secret, store=False)
            streamed = (await stream(running.http, **secret, store=False))[-1]["response"]
            backend.script(http_error(400, f"I do not like {self.MARKER}"))
            assert_error(await running.http.post("/v1/responses", json=turn(**secret, store=False)), 400)
            for response_id in (first["id"], streamed["id"]):
                assert_error(await running.http.get(f"/v1/responses/{response_id}"), 404)
            backend.script(chat("Good."))
            await create(running.http, input="This one may be kept.")
            assert self.MARKER.encode() not in self.bytes_on_disk(tmp_path)
            await create(running.http, **secret)
            assert self.MARKER.encode() in self.bytes_on_disk(tmp_path), "this test looks in the wrong place"

    async def test_retention_deletes_at_the_start(self, backend: FakeBackend, tmp_path):
        url = f"sqlite:///{tmp_path}/router.db"
        store = Store(url)
        await store.open()
        await store.store_response("resp_old", **row(at=1))
        await store.close()
        settings = {"endpoints": [{"url": backend.url, "kind": "openai-chat"}]}
        async with running_router(**settings, database={"url": url, "retention_days": 0}) as running:
            assert (await running.http.get("/v1/responses/resp_old")).status_code == 200, "0 means: keep for ever"
        async with running_router(**settings, database={"url": url, "retention_days": 1}) as running:

            async def gone() -> bool:
                return (await running.http.get("/v1/responses/resp_old")).status_code == 404

            await eventually(gone, "the old response is deleted")
