"""Every store lists what a response was made from, page by page."""

from __future__ import annotations

from typing import Any

import pytest

from db import Store
from tests.stores.rows import item, row, with_id

Json = dict[str, Any]
ORDERS = pytest.mark.parametrize("order", ["asc", "desc"])


async def chain(store: Store, turns: int, **values: Any) -> list[str]:
    """A chain of turns, the last one `r{turns-1}`; the ids of what that was made from, oldest first."""
    for n in range(turns):
        turn = row(after=f"r{n - 1}" if n else None, at=1000 - n, output=[with_id(f"out{n}.0"), with_id(f"out{n}.1")])
        await store.store_response(
            f"r{n}", **turn | {"input_messages": [with_id(f"in{n}.0"), with_id(f"in{n}.1")]} | values
        )
    ids = [f"{half}{n}.{place}" for n in range(turns) for half in ("in", "out") for place in (0, 1)]
    return ids[:-2]


async def paged(store: Store, response_id: str, limit: int, order: Any, owner: str = "") -> list[Json]:
    """All items, as a client finds them that asks for one page after the other."""
    items: list[Json] = []
    after = None
    while True:
        page = await store.list_input_items(response_id, after=after, limit=limit, order=order, owner=owner)
        assert page is not None
        assert page.knows_after
        assert len(page.items) == limit or not page.has_more
        items += page.items
        if not page.has_more:
            return items
        after = items[-1]["id"]


def ids_of(items: list[Json]) -> list[str]:
    return [item["id"] for item in items]


@ORDERS
@pytest.mark.parametrize("limit", [1, 2, 3, 7, 100])
async def test_a_response_is_made_from_all_turns_before_it(store: Store, order: Any, limit: int) -> None:
    ids = await chain(store, 5)
    store.deletions.add(1)
    listed = await paged(store, "r4", limit, order)
    assert ids_of(listed) == (ids if order == "asc" else ids[::-1])
    assert listed[0] == with_id(listed[0]["id"])


async def test_each_response_of_a_chain_has_its_own_list(store: Store) -> None:
    ids = await chain(store, 3)
    assert ids_of(await paged(store, "r0", 100, "asc")) == ["in0.0", "in0.1"]
    assert ids_of(await paged(store, "r1", 100, "asc")) == ids[:6]


async def test_a_page_is_one_query_and_brings_no_more_than_itself(store: Store, database: Any) -> None:
    await chain(store, 20)
    statements = await database.reads(store)
    page = await store.list_input_items("r19", limit=3)
    assert page is not None
    assert ids_of(page.items) == ["in19.1", "in19.0", "out18.1"]
    assert len(statements) == 1, statements


@ORDERS
async def test_what_is_none_of_the_items_begins_no_page(store: Store, order: Any) -> None:
    await chain(store, 2)
    for unknown in ("no such", "", "out1.0", "'; --", "in1.0\0"):
        page = await store.list_input_items("r1", after=unknown, order=order)
        assert page is not None
        assert not page.knows_after
        assert page.items == []


@ORDERS
async def test_behind_the_last_item_there_is_nothing(store: Store, order: Any) -> None:
    ids = await chain(store, 2)
    page = await store.list_input_items("r1", after=ids[-1 if order == "asc" else 0], order=order)
    assert page is not None
    assert (page.items, page.has_more, page.knows_after) == ([], False, True)


async def test_of_a_response_that_is_not_there_there_is_no_page(store: Store) -> None:
    assert await store.list_input_items("r0") is None
    await store.store_response("r0", **row("queued") | {"response": None})
    assert await store.list_input_items("r0") is None


async def test_a_response_that_runs_has_its_list_already(store: Store) -> None:
    await chain(store, 1)
    await store.store_response("r1", **row("in_progress", after="r0") | {"input_messages": [with_id("in")]})
    assert ids_of(await paged(store, "r1", 2, "asc")) == ["in0.0", "in0.1", "out0.0", "out0.1", "in"]


async def test_turns_that_are_deleted_are_left_out_with_those_before_them(store: Store) -> None:
    await chain(store, 3)
    await store.delete_response("r0")
    assert ids_of(await paged(store, "r2", 100, "asc")) == ["in1.0", "in1.1", "out1.0", "out1.1", "in2.0", "in2.1"]


async def test_a_response_without_input_has_an_empty_list(store: Store) -> None:
    await store.store_response("r0", **row() | {"input_messages": []})
    page = await store.list_input_items("r0")
    assert page is not None
    assert (page.items, page.has_more) == ([], False)


@ORDERS
async def test_each_item_has_an_id_of_its_own_that_stays(store: Store, order: Any) -> None:
    """Also where it has none, an odd one, or one that another item has."""
    odd: list[Json] = [
        item("none"),
        {**item("no text"), "id": 7},
        {**item("null"), "id": None},
        with_id(""),
        with_id("same", "1"),
    ]
    await store.store_response("resp_a", **row(output=[with_id("same", "2"), item("none")]) | {"input_messages": odd})
    given = [with_id("same", "3"), with_id("own")]
    await store.store_response("resp_b", **row(after="resp_a") | {"input_messages": given})
    await store.store_response("resp_c", **row(after="resp_b") | {"input_messages": []})
    listed = await paged(store, "resp_c", 100, order)
    ids = ids_of(listed)
    assert len(set(ids)) == len(ids) == 9
    assert all(isinstance(id_, str) and id_ for id_ in ids)
    for limit in (1, 2, 4):
        assert await paged(store, "resp_c", limit, order) == listed
    of_the_parent = dict(zip(ids, listed, strict=True))
    for known in await paged(store, "resp_b", 100, order):
        assert of_the_parent[known["id"]] == known
    first = next(item for item in listed if item["id"] == "same")
    assert first["content"] == "1", "who had it first keeps it"


async def test_items_come_as_they_are_stored(store: Store) -> None:
    large = {
        **with_id("in"),
        "text": "ü🦙 \u2028 '\";-- \\ \n",
        "number": 2**70,
        "parts": [{"deep": [[[{"a": None, "b": True, "c": 1.5}]]]}],
        "long": "x" * 200_000,
    }
    await store.store_response("r0", **row() | {"input_messages": [large]})
    page = await store.list_input_items("r0")
    assert page is not None
    assert page.items == [large]


async def test_another_owner_has_no_such_list(store: Store) -> None:
    await chain(store, 2, owner="a")
    await store.store_response("r0", **row() | {"input_messages": [with_id("of b")], "owner": "b"})
    assert await store.list_input_items("r1", owner="b") is None
    assert ids_of(await paged(store, "r0", 5, "asc", owner="b")) == ["of b"]
    page = await store.list_input_items("r1", after="of b", owner="a")
    assert page is not None
    assert not page.knows_after
