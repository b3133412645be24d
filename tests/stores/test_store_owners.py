"""A store of several owners is as several stores: what is another's is as what never was."""

from __future__ import annotations

from contextlib import AsyncExitStack
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from db import Store, make_store
from tests.stores.databases import DATABASES
from tests.stores.rows import ENDS, row, said, said_in, with_id
from tests.test_laws import MANY

OWNERS = ("", "alice", "bob")
IDS = ("r0", "r1", "r2", "r3")
ITEM_IDS = ("i0", "i1", "i2")
EVENTS = [{"type": "response.completed", "sequence_number": 0}]

steps = st.tuples(
    st.sampled_from(["store", "store", "begin", "update", "update", "events", "delete", "expire", "orphans"]),
    st.sampled_from(OWNERS),
    st.sampled_from(IDS),
    st.sampled_from([None, *IDS]),
    st.lists(st.sampled_from(ITEM_IDS), max_size=3, unique=True),
    st.sampled_from(ENDS),
)
names = count()


@pytest.mark.parametrize("name", DATABASES)
@settings(
    max_examples=MANY or 30,
    derandomize=not MANY,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(doing=st.lists(steps, max_size=25))
async def test_whatever_others_do_an_owner_sees_what_is_its_own(name: str, tmp_path: Path, doing: list[Any]) -> None:
    async with AsyncExitStack() as stack:
        database = DATABASES[name](tmp_path / str(next(names)))
        stack.callback(database.drop)
        shared = make_store(database.url)
        alone = {owner: make_store("sqlite://") for owner in OWNERS}
        for store in (shared, *alone.values()):
            await store.open()
            stack.push_async_callback(store.close)
        stored: set[tuple[str, str]] = set()
        for number, (verb, owner, response_id, *more) in enumerate(doing):
            if verb in ("store", "begin"):
                # An id is given once; and no chain begins with what comes after it.
                if (owner, response_id) in stored or (more[0] or "") >= response_id:
                    continue
                stored.add((owner, response_id))
            whole = verb in ("expire", "orphans")
            outcomes = [
                await act(store, verb, store_owner, response_id, *more, number)
                for store, store_owner in ((shared, owner), *((alone[o], o) for o in (OWNERS if whole else (owner,))))
            ]
            assert outcomes[0] == (sum(outcomes[1:]) if whole else outcomes[1]), f"{verb} of {owner!r}"
        for cold in (0, 1):
            for owner in OWNERS:
                for store in (shared, alone[owner]):
                    store.deletions.add(cold)
                assert await seen(shared, owner) == await seen(alone[owner], owner)


async def act(
    store: Store, verb: str, owner: str, id: str, after: str | None, items: list[str], end: str, number: int
) -> Any:
    given = [with_id(item_id, f"of {owner} {number}") for item_id in items]
    match verb:
        case "store":
            values = row(end, after=after, at=number, output=given[1:]) | {"input_messages": given[:1]}
            return await store.store_response(id, **values, owner=owner)
        case "begin":
            values = row("queued", after=after, at=number) | {"input_messages": given}
            return await store.store_response(id, **values, owner=owner, request=owner.encode())
        case "update":
            return await store.update_response(id, {"status": end, "output": given}, owner=owner)
        case "events":
            return await store.store_events(id, [*EVENTS, {"by": owner}], owner=owner)
        case "delete":
            return await store.delete_response(id, owner=owner)
        case "expire":
            return await store.delete_older_than(number // 2)
        case "orphans":
            return await store.fail_orphaned_responses()


async def seen(store: Store, owner: str) -> Any:
    """All that an owner can see in a store."""
    return {
        "responses": [await store.get_response(id, owner=owner) for id in IDS],
        "histories": [await store.get_history(id, owner=owner) for id in IDS],
        "items": [await store.get_items([item_id], owner=owner) for item_id in ITEM_IDS],
        "events": [await store.get_events(id, owner=owner) for id in IDS],
        "unfinished": [row for row in await store.unfinished() if row["owner"] == owner],
    }


async def test_the_id_of_anothers_is_an_id_that_never_was(store: Store) -> None:
    await store.store_response("resp_1", **said("mine"), owner="alice")
    await store.store_response("begun", **row("queued"), owner="alice")
    await store.store_response("resp_2", **said("more", after="resp_1"), owner="bob")
    await store.store_events("resp_1", EVENTS, owner="alice")
    for owner in ("bob", ""):
        assert await store.get_response("resp_1", owner=owner) is None
        assert (await store.get_history("resp_1", owner=owner)).missing == "resp_1"
        assert await store.get_events("resp_1", owner=owner) is None
        assert await store.delete_response("resp_1", owner=owner) is False
        await store.update_response("begun", {"status": "failed", "output": []}, owner=owner)
        await store.store_events("begun", EVENTS, owner=owner)
    assert (await store.get_history("resp_2", owner="bob")).missing == "resp_1", "warm"
    store.deletions.add(1)
    assert (await store.get_history("resp_2", owner="bob")).missing == "resp_1", "read"
    assert await said_in(store, "resp_1", "alice") == ["mine", "answer to mine"]
    assert (await store.get_response("begun", owner="alice"))["status"] == "queued"
    assert await store.get_events("begun", owner="alice") is None


async def test_an_item_id_belongs_to_an_owner(store: Store) -> None:
    for owner in ("alice", "bob"):
        await store.store_response("r", **row() | {"input_messages": [with_id("in", f"of {owner}")]}, owner=owner)
    for owner in ("alice", "bob"):
        assert (await store.get_items(["in"], owner=owner))["in"]["content"] == f"of {owner}"
    assert await store.get_items(["in"]) == {}
    await store.delete_response("r", owner="alice")
    assert set(await store.get_items(["in"], owner="bob")) == {"in"}


async def test_a_turn_of_another_owner_keeps_nothing_from_getting_old(store: Store) -> None:
    await store.store_response("old", **row(at=1), owner="alice")
    await store.store_response("young", **row(after="old", at=200), owner="bob")
    assert await store.delete_older_than(100) == 1
    assert await store.get_response("old", owner="alice") is None
