"""Every store keeps responses and their events, and knows how each stands, also when its process has died."""

from __future__ import annotations

from typing import Any

import pytest

from db import Store, make_store
from tests.stores.rows import item, row


class TestResponses:
    async def test_a_stored_response_is_read_as_it_was_given(self, store):
        output = [{"type": "message", "content": [{"type": "output_text", "text": "naïve 🦙\x00 'quoted'"}]}]
        await store.store_response("resp_1", **row(after="resp_0", output=output))
        assert await store.get_response("resp_1") == {
            "id": "resp_1",
            "owner": "",
            "previous_response_id": "resp_0",
            "conversation": None,
            "model": "m",
            "status": "completed",
            "created_at": 1000,
            "input": [item("hi")],
            "response": {"status": "completed", "output": output},
        }

    async def test_a_response_may_be_stored_before_there_is_one(self, store):
        await store.store_response("resp_1", **row("queued") | {"response": None})
        assert (await store.get_response("resp_1"))["response"] is None

    async def test_a_response_may_be_a_turn_of_a_conversation(self, store):
        await store.store_response("resp_1", **row(), conversation="conv_1")
        assert (await store.get_response("resp_1"))["conversation"] == "conv_1"

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

    async def test_it_can_be_opened_again(self, store, database):
        await store.store_response("resp_1", **row())
        await store.close()
        await store.open()
        assert (await store.get_response("resp_1") is not None) == database.is_shared
        await store.store_response("resp_2", **row())
        assert await store.get_response("resp_2") is not None


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


class TestRequests:
    """What it takes to run a turn again is kept until the turn has ended."""

    @pytest.mark.parametrize("status", ["queued", "in_progress"])
    async def test_an_unfinished_turn_keeps_its_request(self, store, status):
        await store.store_response("resp_1", **row(status), request=b"\x00sealed")
        (unfinished,) = await store.unfinished()
        assert unfinished == {**await store.get_response("resp_1"), "request": b"\x00sealed"}
        await store.update_response("resp_1", {"status": "in_progress", "output": []})
        assert [row["request"] for row in await store.unfinished()] == [b"\x00sealed"]

    @pytest.mark.parametrize("status", ["completed", "incomplete", "failed", "cancelled"])
    async def test_it_is_gone_when_the_turn_has_ended(self, store, database, status):
        await store.store_response("resp_1", **row("queued"), request=b"sealed")
        await store.update_response("resp_1", {"status": status, "output": []})
        assert await database.requests(store) == []
        await store.store_response("resp_2", **row(status), request=b"sealed")
        assert await database.requests(store) == []

    async def test_so_it_is_when_the_process_has_died(self, store, database):
        await store.store_response("resp_1", **row("queued"), request=b"sealed")
        assert await database.requests(store) == [b"sealed"]
        assert await store.fail_orphaned_responses() == 1
        assert await database.requests(store) == []

    async def test_unfinished_turns_come_in_the_order_in_which_they_were_stored(self, store):
        names = ["resp_9", "resp_1", "resp_5"]
        for name in names:
            store.store_response(name, **row("queued", at=1000 - len(name)))
        await store.store_response("resp_0", **row())
        assert [row["id"] for row in await store.unfinished()] == names
        assert store.running_ids() == names


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

    async def test_items_of_what_was_failed_are_found(self, store):
        await store.store_response("resp_1", **row("queued") | {"input_messages": [{"id": "in_1", **item("hi")}]})
        await store.fail_orphaned_responses()
        assert await store.get_items(["in_1"]) == {"in_1": {"id": "in_1", **item("hi")}}


class TestSettings:
    async def test_the_first_to_ask_decides(self, store):
        assert await store.get_setting("secret", "a") == "a"
        assert await store.get_setting("secret", "b") == "a"
        assert await store.get_setting("another", "c") == "c"


def test_a_database_that_nobody_knows_is_refused():
    with pytest.raises(ValueError, match="mysql"):
        make_store("mysql://host/db")
