"""What is listed over all owners, without what is in it."""

from __future__ import annotations

from typing import Any

from db import Store
from tests.stores.rows import item, row, said

Json = dict[str, Any]


async def test_responses_are_listed_the_newest_first_over_all_owners(store: Store) -> None:
    assert await store.list_responses(limit=10, owner=None) == []
    await store.store_response("r1", **said("one", at=5), owner="ann")
    await store.store_response("r2", **row("failed", after="r1"), owner="ann")
    await store.store_response("r2", **row("in_progress"), conversation="c", owner="")
    listed = await store.list_responses(limit=10, owner=None)
    assert [(one["owner"], one["id"], one["status"]) for one in listed] == [
        ("", "r2", "in_progress"),
        ("ann", "r2", "failed"),
        ("ann", "r1", "completed"),
    ]
    assert [one["conversation"] for one in listed] == ["c", None, None]
    assert [one["previous_response_id"] for one in listed] == [None, "r1", None]
    assert {one["model"] for one in listed} == {"m"}
    assert listed[2]["created_at"] == 5
    assert listed[2]["bytes"] > 50
    assert listed[0]["number"] > listed[1]["number"] > listed[2]["number"]
    assert [one["id"] for one in await store.list_responses(limit=10, owner="ann")] == ["r2", "r1"]
    assert (await store.list_responses(limit=1, owner=None)) == listed[:1]
    assert (await store.list_responses(limit=10, before=listed[0]["number"], owner=None)) == listed[1:]


async def test_those_at_work_are_those_that_wait_or_run_in_the_background(store: Store) -> None:
    await store.store_response("ends", **row("queued"), request=b"{}", owner="ann")
    await store.store_response("waits", **row("queued"), request=b"{}", owner="ann")
    await store.store_response("has a client", **row("in_progress"))
    await store.update_response("ends", {"status": "completed", "output": []}, owner="ann")
    listed = await store.list_responses(limit=10, at_work=True, owner=None)
    assert [(one["owner"], one["id"]) for one in listed] == [("ann", "waits")]


async def test_conversations_are_listed_the_newest_first_over_all_owners(store: Store) -> None:
    assert await store.list_conversations(limit=10, owner=None) == []
    await store.store_conversation("c1", created_at=5, metadata={"a": "b"}, items=[item("x"), item("y")], owner="ann")
    await store.store_conversation("c2", created_at=7, metadata={})
    listed = await store.list_conversations(limit=10, owner=None)
    assert [(one["owner"], one["id"], one["items"], one["created_at"]) for one in listed] == [
        ("", "c2", 0, 7),
        ("ann", "c1", 2, 5),
    ]
    assert all(one["used_at"] >= one["created_at"] for one in listed)
    assert (await store.list_conversations(limit=10, before=listed[0]["number"], owner=None)) == listed[1:]
    assert (await store.list_conversations(limit=1, owner=None)) == listed[:1]
    assert (await store.list_conversations(limit=10, owner="ann")) == listed[1:]
