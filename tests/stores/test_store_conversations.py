"""Every store reads a conversation as a chain of responses, and finds items by their ids."""

from __future__ import annotations

import pytest

from tests.stores.rows import item, row, said, said_in, with_id


class TestHistories:
    """Out of the database: `deletions` has moved, so that nothing is warm. What is warm has its own tests, in
    test_store_warm.py."""

    async def test_200_turns_are_read_in_one_query_oldest_first(self, store, database):
        ids = [f"resp_{n}" for n in range(200)]
        for n, response_id in enumerate(ids):
            # No order of insertion, time or name to lean on.
            store.store_response(response_id, **said(response_id, after=ids[n - 1] if n else None, at=1000 - n))
        await store.store_response("resp_other", **said("other"))
        store.deletions.add(1)
        statements = await database.reads(store)
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


class TestItems:
    async def test_items_of_ended_responses_are_found_by_their_ids(self, store, database):
        await store.store_response("resp_1", **row(output=[with_id("out_1")]) | {"input_messages": [with_id("in_1")]})
        begun = row("in_progress") | {"input_messages": [with_id("in_2"), item("no id")]}
        await store.store_response("resp_2", **begun)
        assert await store.get_items(["in_2"]) == {}, "it may still be refused"
        await store.update_response("resp_2", {"status": "incomplete", "output": [with_id("out_2")]})
        wanted = ["out_1", "in_2", "no such", "out_2", "in_1", "in_1"]
        statements = await database.reads(store)
        found = await store.get_items(wanted)
        assert found == {id_: with_id(id_) for id_ in wanted if id_ != "no such"}
        assert len(statements) == 1, statements

    async def test_of_two_with_the_same_id_the_first_writer_keeps_it(self, store):
        for n in (1, 2):
            given = [with_id("in", f"version {n}"), with_id(f"in_{n}")]
            await store.store_response(f"resp_{n}", **row() | {"input_messages": given})
        assert (await store.get_items(["in", "in_1", "in_2"]))["in"]["content"] == "version 1"

    async def test_deleting_a_response_leaves_the_items_of_others(self, store, database):
        """The one that wrote it, one that replays it, and one that replays it with another text."""
        for n, text in enumerate(("mine", "mine", "forged")):
            await store.store_response(f"resp_{n}", **row() | {"input_messages": [with_id("in", text)]})
        await store.delete_response("resp_1")
        assert (await store.get_items(["in"]))["in"]["content"] == "mine"
        await store.delete_response("resp_0")
        assert (await store.get_items(["in"]))["in"]["content"] == "forged", "it is the other one's own"
        await store.delete_response("resp_2")
        assert await store.get_items(["in"]) == {}
        assert await database.indexed_items(store) == set()

    async def test_an_item_id_is_not_redirected_by_a_deletion(self, store):
        for n in range(3):
            await store.store_response(f"resp_{n}", **row() | {"input_messages": [with_id("in", f"version {n}")]})
        for n in (2, 1):
            await store.delete_response(f"resp_{n}")
            await store.store_response(f"again_{n}", **row() | {"input_messages": [with_id("in", "forged")]})
            assert (await store.get_items(["in"]))["in"]["content"] == "version 0"

    async def test_what_ended_otherwise_later_has_the_items_of_its_last_end(self, store, database):
        await store.store_response("resp_1", **row(output=[with_id("out")]) | {"input_messages": [with_id("in")]})
        await store.update_response("resp_1", {"status": "failed", "output": [with_id("other")]})
        assert set(await store.get_items(["in", "out", "other"])) == {"in", "other"}
        assert await database.indexed_items(store) == {"in", "other"}

    @pytest.mark.parametrize("item_id", [5, 0, "", None, {"a": 1}, ["a"], True, "nu\0l", "'\";--", "ü🦙", "a" * 5000])
    async def test_the_id_of_an_item_may_be_anything(self, store, database, item_id):
        odd = {"id": item_id, "type": "message"}
        await store.store_response("resp_1", **row(output=[odd, with_id("out")]))
        await store.store_response("resp_2", **row("queued"))
        await store.update_response("resp_2", {"status": "completed", "output": [odd]})
        assert (await store.get_response("resp_1"))["response"]["output"][0] == odd
        assert set(await store.get_items(["out"])) == {"out"}
        if isinstance(item_id, str) and item_id and "\0" not in item_id:
            assert await store.get_items([item_id]) == {item_id: odd}
        await store.delete_response("resp_1")
        await store.delete_response("resp_2")
        assert await database.indexed_items(store) == set()

    @pytest.mark.parametrize("begun", [True, False])
    async def test_items_go_with_their_response(self, store, database, begun):
        for n in (1, 2):
            values = row(output=[with_id(f"out_{n}")]) | {"input_messages": [with_id(f"in_{n}"), item("no id")]}
            await store.store_response(f"resp_{n}", **values | ({"status": "in_progress"} if begun else {}))
            await store.update_response(f"resp_{n}", values["response"])
        assert await store.delete_response("resp_1") is True
        assert set(await store.get_items(["in_1", "in_2", "out_1", "out_2"])) == {"in_2", "out_2"}
        assert await database.indexed_items(store) == {"in_2", "out_2"}

    async def test_a_response_that_is_deleted_while_it_runs_leaves_no_items(self, store, database):
        await store.store_response("resp_1", **row("in_progress") | {"input_messages": [with_id("in")]})
        await store.delete_response("resp_1")
        await store.update_response("resp_1", {"status": "completed", "output": [with_id("out")]})
        assert await database.indexed_items(store) == set()
