"""Conversations that clients have made: every store keeps their items in one order, each turn's whole."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from db import Store
from tests.stores.databases import Database, shared
from tests.stores.rows import item, row, with_id

Json = dict


async def made(store: Store, conversation_id: str = "conv_1", *items: Json, owner: str = "") -> None:
    await store.store_conversation(conversation_id, created_at=1000, metadata={}, items=items, owner=owner)


async def ids_in(store: Store, conversation_id: str = "conv_1", owner: str = "") -> list[str]:
    page = await store.list_conversation_items(conversation_id, limit=None, order="asc", owner=owner)
    assert page is not None
    assert not page.has_more
    return [one["id"] for one in page.items]


class TestAConversation:
    async def test_it_is_there_as_it_was_made_until_it_is_deleted(self, store: Store) -> None:
        metadata = {"topic": "a \0 b", "é": ""}
        await store.store_conversation("conv_1", created_at=1000, metadata=metadata, owner="ann")
        expected = {"id": "conv_1", "owner": "ann", "created_at": 1000, "metadata": metadata}
        assert await store.get_conversation("conv_1", owner="ann") == expected
        assert await store.update_conversation("conv_1", {"topic": "other"}, owner="ann")
        assert (await store.get_conversation("conv_1", owner="ann") or {})["metadata"] == {"topic": "other"}
        assert await store.delete_conversation("conv_1", owner="ann")
        assert await store.get_conversation("conv_1", owner="ann") is None
        assert not await store.delete_conversation("conv_1", owner="ann")
        assert not await store.update_conversation("conv_1", {}, owner="ann")

    async def test_that_of_another_owner_never_was(self, store: Store) -> None:
        await made(store, "conv_1", with_id("msg_1"), owner="ann")
        assert await store.get_conversation("conv_1", owner="eve") is None
        assert await store.list_conversation_items("conv_1", owner="eve") is None
        assert await store.get_conversation_items("conv_1", ["msg_1"], owner="eve") == {}
        assert await store.append_items("conv_1", [item("mine")], owner="eve") is None
        assert not await store.delete_conversation_item("conv_1", "msg_1", owner="eve")
        assert not await store.update_conversation("conv_1", {"a": "b"}, owner="eve")
        assert not await store.delete_conversation("conv_1", owner="eve")
        await store.store_response("resp_1", **row(), conversation="conv_1", appended=[item("eve's")], owner="eve")
        assert await ids_in(store, owner="ann") == ["msg_1"]
        await made(store, "conv_1", owner="eve")
        assert await ids_in(store, owner="eve") == []

    async def test_nothing_of_a_deleted_one_is_in_the_next(self, store: Store) -> None:
        await made(store, "conv_1", with_id("msg_1"))
        await store.delete_conversation("conv_1")
        await made(store, "conv_2")
        assert await ids_in(store, "conv_2") == []
        assert await store.list_conversation_items("conv_1") is None

    async def test_one_that_nobody_has_used_since_is_deleted_with_what_is_old(self, store: Store) -> None:
        await made(store, "conv_1", with_id("msg_1"))
        await store.delete_older_than(1001)
        assert await ids_in(store) == ["msg_1"], "it was used now, whenever it was made"
        await store.delete_older_than(2**40)
        assert await store.get_conversation("conv_1") is None
        await made(store, "conv_1")
        assert await ids_in(store) == []


class TestItems:
    async def test_they_are_listed_in_pages_either_way(self, store: Store) -> None:
        ids = [f"msg_{n}" for n in range(7)]
        await made(store, "conv_1", *map(with_id, ids[:3]))
        added = await store.append_items("conv_1", [*map(with_id, ids[3:])])
        assert [one["id"] for one in added or ()] == ids[3:]
        for order, expected in (("asc", ids), ("desc", ids[::-1])):
            seen: list[str] = []
            has_more = True
            while has_more:
                after = seen[-1] if seen else None
                page = await store.list_conversation_items("conv_1", after=after, limit=3, order=order)  # type: ignore[arg-type]
                assert page is not None
                assert page.knows_after
                seen += [one["id"] for one in page.items]
                has_more = page.has_more
            assert seen == expected

    async def test_behind_the_last_there_is_an_empty_page_and_behind_none_no_start(self, store: Store) -> None:
        await made(store, "conv_1", with_id("msg_1"))
        page = await store.list_conversation_items("conv_1", after="msg_1")
        assert page is not None
        assert (page.items, page.has_more, page.knows_after) == ([], False, True)
        page = await store.list_conversation_items("conv_1", after="msg_none")
        assert page is not None
        assert (page.items, page.has_more, page.knows_after) == ([], False, False)
        await made(store, "conv_2")
        page = await store.list_conversation_items("conv_2")
        assert page is not None
        assert (page.items, page.knows_after) == ([], True)

    async def test_each_is_found_by_its_id_until_it_is_deleted(self, store: Store) -> None:
        long = "msg_" + "x" * 5000
        await made(store, "conv_1", with_id("msg_1"), with_id(long))
        assert await store.get_conversation_items("conv_1", [long, "no"]) == {long: with_id(long)}
        assert await store.delete_conversation_item("conv_1", long)
        assert not await store.delete_conversation_item("conv_1", long)
        assert await ids_in(store) == ["msg_1"]

    async def test_an_id_that_is_taken_gives_way_to_one_of_its_own(self, store: Store) -> None:
        await made(store, "conv_1", with_id("msg_1"))
        added = await store.append_items("conv_1", [with_id("msg_1"), with_id("msg_2"), with_id("msg_2"), item("none")])
        ids = [one["id"] for one in added or ()]
        assert ids[1] == "msg_2"
        assert len({"msg_1", *ids}) == 5
        assert await ids_in(store) == ["msg_1", *ids]


class TestTurns:
    async def test_a_response_that_is_stored_as_ended_brings_its_items(self, store: Store) -> None:
        await made(store)
        appended = [with_id("msg_1"), with_id("msg_2")]
        await store.store_response("resp_1", **row(), conversation="conv_1", appended=appended)
        assert await ids_in(store) == ["msg_1", "msg_2"]

    async def test_so_does_one_that_ends_later(self, store: Store) -> None:
        await made(store)
        await store.store_response("resp_1", **row("in_progress"), conversation="conv_1")
        assert await ids_in(store) == []
        ended = {"status": "completed", "output": [item("answer")]}
        await store.update_response("resp_1", ended, conversation="conv_1", appended=[with_id("msg_1")])
        assert await ids_in(store) == ["msg_1"]

    async def test_a_deleted_conversation_gets_nothing_and_the_response_is_stored(self, store: Store) -> None:
        await made(store)
        await store.store_response("resp_1", **row("in_progress"), conversation="conv_1")
        await store.delete_conversation("conv_1")
        ended = {"status": "completed", "output": [item("answer")]}
        await store.update_response("resp_1", ended, conversation="conv_1", appended=[with_id("msg_1")])
        stored = await store.get_response("resp_1")
        assert stored is not None
        assert stored["status"] == "completed"
        assert await store.list_conversation_items("conv_1") is None

    async def test_a_response_that_is_deleted_leaves_its_items_in_the_conversation(self, store: Store) -> None:
        await made(store)
        await store.store_response("resp_1", **row(), conversation="conv_1", appended=[with_id("msg_1")])
        await store.delete_response("resp_1")
        assert await ids_in(store) == ["msg_1"]

    async def test_a_chain_names_the_conversation_that_its_first_response_is_a_turn_of(self, store: Store) -> None:
        await made(store)
        await store.store_response("resp_1", **row(), conversation="conv_1")
        await store.store_response("resp_2", **row(after="resp_1"))
        await store.store_response("resp_3", **row())
        assert (await store.get_history("resp_1")).conversation == "conv_1"
        assert (await store.get_history("resp_2")).conversation == "conv_1"
        assert (await store.get_history("resp_3")).conversation is None

    @settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.lists(st.tuples(st.sampled_from("AB"), st.integers(1, 4)), min_size=1, max_size=8))
    async def test_law_turns_that_end_together_land_whole_in_the_order_of_their_ends(
        self, store: Store, turns: list[tuple[str, int]]
    ) -> None:
        number = getattr(self, "number", 0)
        self.number = number + 1
        expected: dict[str, list[str]] = {"A": [], "B": []}
        names = {letter: f"conv_{letter}{number}" for letter in expected}
        for name in names.values():
            await made(store, name)
        writes = []
        for place, (letter, count) in enumerate(turns):
            ids = [f"msg_{place}_{n}" for n in range(count)]
            expected[letter] += ids
            appended = [*map(with_id, ids)]
            response = f"resp_{number}_{place}"
            writes.append(store.store_response(response, **row(), conversation=names[letter], appended=appended))
        for written in writes:
            await written
        for letter, name in names.items():
            assert await ids_in(store, name) == expected[letter]


@shared
async def test_turns_of_two_workers_that_race_land_whole(store: Store, other: Store, database: Database) -> None:
    await made(store)

    async def run(one: Store, name: str) -> None:
        for turn in range(10):
            appended = [with_id(f"{name}_{turn}_{place}") for place in range(5)] + [with_id("taken")]
            await one.store_response(f"{name}_{turn}", **row(), conversation="conv_1", appended=appended)

    await asyncio.gather(run(store, "a"), run(other, "b"))
    ids = await ids_in(store)
    assert len(ids) == len({*ids}) == 120
    turns = [ids[start : start + 5] for start in range(0, 120, 6)]
    assert all(len({one.rpartition("_")[0] for one in turn}) == 1 for turn in turns)
    assert [turn[0] for turn in turns if turn[0][0] == "a"] == [f"a_{turn}_0" for turn in range(10)]


@pytest.mark.parametrize("database", ["postgres"], indirect=True)
async def test_what_was_taken_over_brings_its_items_once(store: Store, database: Database) -> None:
    """By whoever has taken it over."""
    other = type(store)(database.url, None, "other", None)  # type: ignore[call-arg]
    await other.open()
    await made(store)
    await store.store_response("resp_1", **row("in_progress"), conversation="conv_1", request=b"{}")
    await store._database.read(_taking("resp_1", other._database.process))  # type: ignore[attr-defined]
    other._claimed.add(("", "resp_1"))  # type: ignore[attr-defined]
    ended = {"status": "completed", "output": []}
    late = store.update_response("resp_1", ended, conversation="conv_1", appended=[with_id("msg_late")])
    with pytest.raises(Exception, match="taken this response over"):
        await late
    await other.update_response("resp_1", ended, conversation="conv_1", appended=[with_id("msg_1")])
    assert await ids_in(store) == ["msg_1"]
    await other.close()


def _taking(response_id: str, process: str):
    from stores.postgres_connection import Statement

    return Statement("UPDATE responses SET process = $1::text WHERE id = $2::text", (process, response_id))
